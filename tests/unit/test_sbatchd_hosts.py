"""Logical hosts as files on a node: the enter program, and what becomes of hosts that are gone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lavalite.sbatchd.hosts import HostFolder
from lavalite.wire.frames import HostHere

ONE_CORE = str(min(os.sched_getaffinity(0)))


def host(name: str = "analytics", version: int = 1, **fields: object) -> HostHere:
    given = {"cpu_milli": 1000, "memory_bytes": 256 << 20, "devices": {"cpu": [ONE_CORE]}, "pools": ["general"]}
    return HostHere.model_validate({"name": name, "version": version, **given, **fields})


def run(folder: Path, script: str, name: str = "analytics") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [folder / "hosts" / name / "enter", "-c", script], capture_output=True, text=True, check=False
    )


async def test_a_shell_inside_sees_its_cores_memory_and_environment(tmp_path: Path) -> None:
    assert await HostFolder(tmp_path)([host()]) == {"analytics": 1}
    told = run(tmp_path, 'nproc; ulimit -d; echo "$LAVALITE_HOST $LAVALITE_CPUS $LAVALITE_POOLS [$LAVALITE_GPUS]"')
    assert told.stdout.splitlines() == ["1", str(256 * 1024), f"analytics {ONE_CORE} general []"]


async def test_more_memory_than_the_host_has_is_not_to_be_had(tmp_path: Path) -> None:
    await HostFolder(tmp_path)([host(memory_bytes=64 << 20)])
    took = run(tmp_path, "exec python3 -c 'bytearray(200 << 20)'")
    assert took.returncode == 1
    assert "MemoryError" in took.stderr


async def test_arguments_and_exit_code_are_the_shells_own(tmp_path: Path) -> None:
    await HostFolder(tmp_path)([host()])
    told = run(tmp_path, "printf '%s|' \"a b\" '$x' ; exit 7")
    assert (told.returncode, told.stdout) == (7, "a b|$x|")


async def test_what_the_leader_names_no_more_is_gone(tmp_path: Path) -> None:
    folder = HostFolder(tmp_path)
    await folder([host(), host("trainer")])
    assert await folder([host("trainer", 2)]) == {"trainer": 2}
    assert sorted(p.name for p in (tmp_path / "hosts").iterdir()) == ["trainer"]


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".", "x" * 64])
async def test_a_name_that_is_none_makes_no_file(tmp_path: Path, name: str) -> None:
    assert await HostFolder(tmp_path / "state")([host(name)]) == {}
    assert not list(tmp_path.rglob("enter"))


async def test_a_released_host_is_refused_in_one_sentence(tmp_path: Path) -> None:
    await HostFolder(tmp_path)([host()])
    (tmp_path / "hosts" / "analytics" / "host.json").unlink()
    told = run(tmp_path, "true")
    assert told.returncode == 126
    assert told.stderr.count("\n") == 1 and "cannot be entered" in told.stderr
