"""A virtual machine's unit, with the real systemd of a host that is the test's alone; run there by test_vm_units.py.

What is started is no QEMU but a process that sleeps: here it is about who owns it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from executor_bench import systemctl, until

from lavalite.base.clock import SystemClock
from lavalite.sbatchd.vm.files import LAUNCH
from lavalite.sbatchd.vm.runners import Place
from lavalite.sbatchd.vm.units import OVERHEAD_BYTES, UnitRunner
from lavalite.sbatchd.vm.wanted import VmName, Wanted

MIB = 1024 * 1024
NAME = VmName("trainer-1", 7)
WANTED = Wanted(cpu_milli=1500, memory_bytes=512 * MIB, image="none", network_address="198.19.0.50/24")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    subprocess.run("ip link show br-t || ip link add br-t type bridge", shell=True, check=True, capture_output=True)
    folder = tmp_path / str(NAME)
    folder.mkdir()
    launch = {"tap": NAME.tap, "bridge": "br-t", "user": "nobody", "command": ["/bin/sleep", "600"]}
    (folder / LAUNCH).write_text(json.dumps(launch))
    return Place(NAME, folder)


@pytest.fixture
async def runner(place: Place) -> AsyncIterator[UnitRunner]:
    runner = UnitRunner(SystemClock())
    yield runner
    await runner.kill(place)
    await runner.close()


def shown(name: str) -> str:
    return subprocess.run(
        ["systemctl", "show", "--value", "--property", name, NAME.unit], capture_output=True, text=True
    ).stdout.strip()


def links() -> str:
    return subprocess.run(["ip", "link"], capture_output=True, text=True).stdout


async def test_a_machine_is_a_unit_with_its_hosts_limits(runner: UnitRunner, place: Place) -> None:
    await runner.start(place, WANTED)
    await until(lambda: shown("MainPID") != "0" and "sleep" in Path(f"/proc/{shown('MainPID')}/comm").read_text())
    assert await runner.runs(place)
    assert (shown("CPUQuotaPerSecUSec"), shown("MemoryMax")) == ("1.500000s", str(512 * MIB + OVERHEAD_BYTES))
    assert f"{NAME.tap}: " in links() and "master br-t" in links()
    assert Path(f"/proc/{shown('MainPID')}").stat().st_uid == 65534
    await runner.limit(place, WANTED.model_copy(update={"cpu_milli": 2000, "memory_bytes": 1024 * MIB}))
    assert (shown("CPUQuotaPerSecUSec"), shown("MemoryMax")) == ("2s", str(1024 * MIB + OVERHEAD_BYTES))
    # Whoever comes after sbatchd was killed finds it by its name.
    another = UnitRunner(SystemClock())
    assert await another.runs(place)
    await another.kill(place)
    await another.close()
    assert not await runner.runs(place) and NAME.tap not in links()
    assert shown("LoadState") == "not-found"


async def test_one_that_was_killed_says_so_and_can_be_started_again(runner: UnitRunner, place: Place) -> None:
    await runner.start(place, WANTED)
    await until(lambda: shown("MainPID") != "0")
    os.kill(int(shown("MainPID")), signal.SIGKILL)
    await until(lambda: shown("ActiveState") == "failed")
    assert not await runner.runs(place)
    assert await runner.how_ended(place) == "killed by signal 9"
    await runner.start(place, WANTED)
    assert await runner.runs(place), systemctl("status", NAME.unit)


async def test_one_that_cannot_start_says_why(runner: UnitRunner, place: Place) -> None:
    launch = json.loads((place.folder / LAUNCH).read_text())
    (place.folder / LAUNCH).write_text(json.dumps({**launch, "bridge": "no-bridge"}))
    await runner.start(place, WANTED)
    await until(lambda: shown("ActiveState") == "failed")
    assert "bridge no-bridge: No such device" in await runner.how_ended(place)


async def test_to_kill_what_is_not_there_is_no_error(runner: UnitRunner, place: Place) -> None:
    assert not await runner.runs(place)
    await runner.kill(place)
    assert "loaded" not in systemctl("list-units", "--all", "--no-legend", "lavalite-vm-*")
