"""Who may run, where output goes, what an attempt finds in its environment; and how its output is read."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavalite.base.clock import ManualClock
from lavalite.sbatchd import output
from lavalite.sbatchd.accounts import Account
from lavalite.sbatchd.actions import Start
from lavalite.sbatchd.hosts import HostFolder
from lavalite.sbatchd.launch import Launcher, Policy, core_numbers, environment
from lavalite.wire.frames import Attempt, HostHere


def attempt(**more: Any) -> Attempt:
    return Attempt(**({"id": "1.2.3", "journal_id": "j", "command": ["true"], "uid": 1000, "gid": 1000} | more))


def launcher(own_uid: int = 0, *, allow_root: bool = False) -> Launcher:
    policy = Policy(own_uid, own_uid, allow_root)
    return Launcher(Path("/state/output"), policy, ManualClock(), grace_seconds=10, enforce_memory=True)


@pytest.mark.parametrize(
    ("own_uid", "uid", "allow_root", "allowed"),
    [
        (0, 1000, False, True),
        (0, 0, False, False),
        (0, 0, True, True),
        (0, -1, True, False),  # root, and nobody is named
        (500, 500, False, True),
        (500, -1, False, True),
        (500, 1000, True, False),
        (500, 0, True, False),
    ],
)
def test_who_may_run(own_uid: int, uid: int, allow_root: bool, allowed: bool) -> None:
    reason = launcher(own_uid, allow_root=allow_root).refusal(attempt(uid=uid))
    assert (reason == "") is allowed, reason


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"command": []}, "command"),
        ({"command": ["a\0b"]}, "zero byte"),
        ({"environment": {"A=B": "c"}}, "bad variable name"),
        ({"environment": {"A": "x" * 2_000_000}}, "longer than"),
        ({"cwd": "not/absolute"}, "not absolute"),
        ({"devices": {"cpu": ["socket zero"]}}, "names no core"),
    ],
)
def test_what_cannot_run(more: dict[str, Any], word: str) -> None:
    assert word in launcher().refusal(attempt(**more))


@pytest.mark.parametrize(
    ("stdout", "stderr", "expected", "own"),
    [
        ("", "", ("/state/output/1.2.3.stdout", "/state/output/1.2.3.stderr"), ["stdout_path", "stderr_path"]),
        ("out", "", ("/w/out", "/w/out"), []),
        ("/a/out", "err", ("/a/out", "/w/err"), []),
        ("", "err", ("/state/output/1.2.3.stdout", "/w/err"), ["stdout_path"]),
    ],
)
def test_where_output_goes(stdout: str, stderr: str, expected: tuple[str, str], own: list[str]) -> None:
    asked = attempt(cwd="/w", stdout_path=stdout, stderr_path=stderr)
    paths = launcher().paths(asked)
    assert paths == expected
    assert launcher().launch(Start(asked, *paths, contact=0.0)).own_outputs == own


def test_environment_is_clean_and_says_who_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_AGENT", "x")
    asked = attempt(environment={"PATH": "/mine", "LAVALITE_GPUS": "all", "A": "b"}, user="ada")
    found = environment(asked, Account("ada", "/home/ada", 1000))
    assert found["PATH"] == "/mine" and found["A"] == "b"
    assert found["LAVALITE_GPUS"] == found["CUDA_VISIBLE_DEVICES"] == ""
    assert (found["LAVALITE_JOB"], found["LAVALITE_TASK"], found["LAVALITE_ATTEMPT"]) == ("1", "2", "3")
    assert (found["USER"], found["LOGNAME"]) == ("ada", "ada")
    assert "SECRET_OF_THE_AGENT" not in found


def test_a_job_on_a_logical_host_is_told_what_that_has(tmp_path: Path) -> None:
    gpus = {"n08": ["GPU-c"], "n07": ["GPU-a", "GPU-b"]}
    host = HostHere(name="h", version=1, cpu_milli=0, memory_bytes=6, far_memory_bytes=2, gpu_nodes=gpus)
    folder = HostFolder(tmp_path, lambda name: f"/scratch/{name}")
    asyncio.run(folder([host]))
    there = environment(attempt(host="h"), Account("ada", "/home/ada", 100), folder.find("h"))
    assert {name: there[f"LAVALITE_{name}"] for name in ("HOST", "SCRATCH", "GPU_NODES", "MEMORY_BYTES")} == {
        "HOST": "h",
        "SCRATCH": "/scratch/h",
        "GPU_NODES": "n07:GPU-a,GPU-b;n08:GPU-c",
        "MEMORY_BYTES": "6",
    }
    assert there["LAVALITE_FAR_MEMORY_BYTES"] == "2"
    assert folder.find("other") is None


def test_memory_is_limited_where_it_was_asked_for() -> None:
    start = Start(attempt(memory_bytes=1 << 30), "/o", "/e", 0.0)
    assert launcher().launch(start).limits == {"RLIMIT_CORE": 0, "RLIMIT_DATA": 1 << 30}
    assert launcher().launch(Start(attempt(), "/o", "/e", 0.0)).limits == {"RLIMIT_CORE": 0}


@given(st.sets(st.integers(0, 500), max_size=20), st.sampled_from(["{}", "cpu{}", "core{}"]))
def test_cores_are_numbers(cores: set[int], spelling: str) -> None:
    assert core_numbers([spelling.format(core) for core in cores]) == sorted(cores)


def test_cores_in_ranges() -> None:
    assert core_numbers(["0-3", "cpu2", "8"]) == [0, 1, 2, 3, 8]


# --- output ---------------------------------------------------------------------------------------------------


def test_only_a_plain_file_of_the_user_is_read(tmp_path: Path) -> None:
    plain, link, pipe = tmp_path / "plain", tmp_path / "link", tmp_path / "pipe"
    plain.write_bytes(b"0123456789")
    link.symlink_to(plain)
    os.mkfifo(pipe)
    assert output.read_chunk(str(plain), 4, os.geteuid()) == b"456789"
    assert output.read_chunk(str(plain), 10, os.geteuid()) == b""
    assert output.read_chunk(str(tmp_path / "none"), 0, 0, missing_ok=True) == b""
    for path, uid in ((plain, os.geteuid() + 1), (link, os.geteuid()), (pipe, os.geteuid()), (tmp_path / "none", 0)):
        with pytest.raises(OSError):
            output.read_chunk(str(path), 0, uid)


def test_old_output_goes_and_live_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "KEPT_ATTEMPTS", 3)
    now = 100 * 24 * 3600.0
    for job, age_days in ((1, 0), (2, 1), (3, 2), (4, 3), (5, 8), (6, 9)):
        for stream in ("stdout", "stderr"):
            path = tmp_path / f"{job}.0.1.{stream}"
            path.touch()
            os.utime(path, (now, now - age_days * 24 * 3600))
    # 5 and 6 are older than seven days, 4 is beyond the newest three; but 6 still runs.
    assert output.prune(tmp_path, {"6.0.1"}, now) == 4
    assert sorted(path.name for path in tmp_path.glob("*.stdout")) == [f"{job}.0.1.stdout" for job in (1, 2, 3, 6)]
