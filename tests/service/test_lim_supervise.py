"""Supervision through systemd, with a small systemctl of our own on PATH."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from cluster import until

from lavalite.base.clock import SystemClock
from lavalite.base.errors import LavaLiteError
from lavalite.lim import program as program_module
from lavalite.lim.program import LockedProgram, SystemdProgram
from lavalite.lim.supervise import Supervisor

SYSTEMCTL = """#!/bin/sh
# Knows one unit, whose state is in a file; writes down what it was told.
echo "$*" >> {folder}/calls
state={folder}/state
case "$1" in
  start) if [ -e {folder}/broken ]; then echo "Unit is broken" >&2; exit 1; fi; echo active > $state ;;
  stop) [ -e {folder}/stubborn ] || echo inactive > $state ;;
  kill) echo failed > $state ;;
  is-active) cat $state; grep -q '^active$' $state || exit 3 ;;
esac
"""


class FakeSystemd:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.set("inactive")
        script = folder / "systemctl"
        script.write_text(SYSTEMCTL.format(folder=folder))
        script.chmod(0o755)

    def set(self, state: str) -> None:
        (self.folder / "state").write_text(state + "\n")

    @property
    def state(self) -> str:
        return (self.folder / "state").read_text().strip()

    def count(self, verb: str) -> int:
        calls = self.folder / "calls"
        return calls.read_text().split("\n").count(verb) if calls.exists() else 0


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(program_module, "POLL_SECONDS", 0.05)
    return FakeSystemd(tmp_path)


async def test_a_unit_is_started_kept_and_stopped(systemd: FakeSystemd) -> None:
    clock = SystemClock()
    supervisor = Supervisor(SystemdProgram("m.service", clock), clock)
    supervisor.start()

    async def started_again() -> bool:
        return systemd.state == "active" and systemd.count("start m.service") >= 2

    async def active() -> bool:
        return systemd.state == "active"

    await until(active, 10, "the unit is started")
    systemd.set("failed")
    await until(started_again, 10, "what systemd gave up on is started again")
    await supervisor.stop(clock.boottime() + 5)
    assert systemd.state == "inactive"
    assert systemd.count("kill --signal=SIGKILL m.service") == 0


async def test_a_unit_that_does_not_stop_is_killed(systemd: FakeSystemd) -> None:
    clock = SystemClock()
    (systemd.folder / "stubborn").touch()
    supervisor = Supervisor(SystemdProgram("m.service", clock), clock)
    supervisor.start()

    async def active() -> bool:
        return systemd.state == "active"

    await until(active, 10, "the unit is started")
    await supervisor.stop(clock.boottime() + 0.2)
    assert systemd.state == "failed"


async def test_a_unit_left_active_is_stopped_before_the_campaign(systemd: FakeSystemd) -> None:
    systemd.set("active")
    await SystemdProgram("m.service", SystemClock()).clear()
    assert systemd.state in ("inactive", "failed")


async def test_what_systemctl_complains_of_is_repeated(systemd: FakeSystemd) -> None:
    (systemd.folder / "broken").touch()
    with pytest.raises(LavaLiteError, match=r"Unit is broken.*journalctl -u m\.service"):
        await SystemdProgram("m.service", SystemClock()).start()


async def test_a_machine_without_systemd_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LavaLiteError, match=r"supervise\.mode: child"):
        await SystemdProgram("m.service", SystemClock()).start()


async def test_where_the_lock_starts_and_stops_it_only_the_lock_is_touched(
    systemd: FakeSystemd, tmp_path: Path
) -> None:
    clock, lock = SystemClock(), tmp_path / "master.lock"
    lock.touch()
    supervisor = Supervisor(LockedProgram("m.service", clock, lock.unlink), clock)
    supervisor.start()

    async def looked() -> bool:
        return systemd.count("is-active m.service") > 0

    await until(looked, 10, "it waits for systemd")
    systemd.set("active")

    async def started() -> bool:
        return supervisor.starts == 1

    await until(started, 10, "what systemd started is seen")
    stopping = asyncio.create_task(supervisor.stop(clock.boottime() + 60))

    async def unlocked() -> bool:
        return not lock.exists()

    await until(unlocked, 10, "the lock is given up")
    assert not stopping.done(), "it is not gone before systemd has stopped it"
    systemd.set("inactive")
    await stopping
    calls = (tmp_path / "calls").read_text().split("\n")
    assert {call.split(" ")[0] for call in calls if call} == {"is-active"}


async def test_a_path_unit_that_does_nothing_is_named(systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "FOLLOW_SECONDS", 0.1)
    with pytest.raises(LavaLiteError, match=r"does not start m\.service.*path unit"):
        await LockedProgram("m.service", SystemClock(), lambda: None).start()
