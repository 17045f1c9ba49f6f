"""The keeper with real processes: what is its own. What every executor does is in test_executors.py."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from executor_bench import DEADLINE_SECONDS, ProcessBench, alive, until

from lavalite.sbatchd.executors import Ended, Signalled, StartFailed
from lavalite.sbatchd.keeper import PROGRAM, proc
from lavalite.sbatchd.keeper.files import JOURNAL_NAME, SOCKET_NAME
from lavalite.sbatchd.keeper.main import ALREADY_RUNS_EXIT
from lavalite.sbatchd.process import ProcessExecutor


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ProcessBench]:
    bench = ProcessBench(tmp_path)
    await bench.connect()
    yield bench
    await bench.close()


async def test_attempts_of_a_lost_keeper_are_watched_and_never_started_again(bench: ProcessBench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "echo line >> count; while [ ! -e go ]; do sleep 0.02; done"))
    await bench.executor.start(bench.launch("2.0.1", "echo $$ > pid; exit 6"))
    await until(lambda: bench.text("count"))
    await bench.end_of("2.0.1")
    await bench.crash_keeper()
    await bench.connect()
    states = {known.id: (known.state, known.exit_code) for known in bench.listed.known}
    assert states == {"1.0.1": ("running", None), "2.0.1": ("ended", 6)}
    await bench.executor.start(bench.launch("1.0.1", "echo line >> count"))
    (bench.out / "go").touch()
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (None, "keeper_lost")
    assert bench.text("count") == "line\n"


async def test_a_lost_keeper_s_attempts_end_unknown(bench: ProcessBench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "echo $$ > pid; exec sleep 300"))
    pid = await bench.pid_in("pid")
    await bench.crash_keeper()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not alive(pid))
    await bench.connect()
    (known,) = bench.listed.known
    assert (known.state, known.exit_code, known.reason) == ("ended", None, "keeper_lost")


@pytest.mark.parametrize("reason", ["walltime", "fence"])
async def test_deadlines_hold_across_a_lost_keeper(bench: ProcessBench, reason: str) -> None:
    limit = {"walltime_seconds": 3} if reason == "walltime" else {"fence_after_seconds": 3.0}
    script = "setsid sh -c 'echo $$ > far; exec sleep 300' & echo $$ > pid; exec sleep 300"
    begun = proc.boottime()
    await bench.executor.start(bench.launch("1.0.1", script, **limit))
    await bench.executor.list()  # it is journalled
    await bench.crash_keeper()
    # Nobody ends it now, however long it takes to get so far.
    pid, far = await bench.pid_in("pid"), await bench.pid_in("far")
    assert alive(pid) and alive(far)
    await bench.connect()
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (None, reason)
    assert proc.boottime() >= begun + 3.0
    assert not alive(pid) and not alive(far)


async def test_contact_survives_the_keeper(bench: ProcessBench) -> None:
    sent = proc.boottime()
    await bench.executor.contact(sent)
    # By what it was started with alone, its fence would have fallen long since.
    await bench.executor.start(bench.launch("1.0.1", "sleep 300", fence_after_seconds=3.0, contact=sent - 1000))
    await bench.executor.list()
    await bench.crash_keeper()
    await bench.connect()
    end = await bench.end_of("1.0.1")
    assert end.reason == "fence" and proc.boottime() >= sent + 3.0


def test_a_signal_before_the_exec_is_not_lost() -> None:
    """Nothing in the forked child may swallow it: it waits until all is at its default."""
    script = """
import os, signal, sys
from lavalite.sbatchd.keeper import launch

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as whoever started the keeper may have left it
launch.hold_signals()
os.setsid = lambda: os.kill(os.getpid(), signal.SIGTERM)  # the first thing that the child does
spec = {"id": "1.0.1", "argv": ["true"], "environment": {}, "cwd": "/", "stdout_path": os.devnull}
spec |= {"stderr_path": os.devnull, "own_outputs": [], "uid": -1, "gid": -1, "cpus": [], "limits": {}}
kept = launch.fork(spec | {"walltime_seconds": None, "grace_seconds": 0, "fence_after_seconds": 0}, "boot", "mark")
try:
    os.write(kept.gate, b"g")
except BrokenPipeError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(kept.pid, 0)[1]) != -signal.SIGTERM)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")


async def test_one_keeper_a_folder(bench: ProcessBench) -> None:
    command = [sys.executable, "-I", "-S", PROGRAM, str(bench.folder)]
    second = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    assert (second.returncode, second.stderr) == (ALREADY_RUNS_EXIT, "another keeper has this folder\n")


def test_it_loads_the_standard_library_and_its_own_package_alone() -> None:
    script = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules, sep='\\n')"
    command = [sys.executable, "-I", "-S", "-c", script, PROGRAM]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True).stdout
    others = {name for name in loaded.split() if name.partition(".")[0] not in {*sys.stdlib_module_names, "__main__"}}
    own = {f"lavalite.sbatchd.keeper.{path.stem}" for path in Path(PROGRAM).parent.glob("[a-z]*.py")}
    # All of it at once: nothing is left to be loaded from a later release.
    assert others == {"lavalite.sbatchd.keeper", *own}


async def test_it_goes_when_nothing_runs_and_nobody_is_there(tmp_path: Path) -> None:
    executor = ProcessExecutor(tmp_path, keeper_idle_seconds=0.1)
    await executor.connect(lambda event: None, lambda: None)
    pid = executor.keeper_pid
    await executor.close()
    assert executor._spawned
    assert executor._spawned.wait(DEADLINE_SECONDS) == 0
    assert not alive(pid) and not (tmp_path / SOCKET_NAME).exists()


async def test_it_refuses_to_go_while_something_runs(bench: ProcessBench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "sleep 300"))
    assert await bench.executor.shutdown() == "1 attempts run"
    os.kill(bench.executor.keeper_pid, signal.SIGTERM)
    await bench.executor.list()
    assert alive(bench.executor.keeper_pid)


async def test_nonsense_harms_nobody(bench: ProcessBench) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        folder = os.open(bench.folder, os.O_PATH)
        stranger.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        os.close(folder)
        stranger.sendall(b'nonsense\n{"op": "fly"}\n{"op": "start", "id": "9.0.1"}\n{"op": "list", "n": 7}\n')
        stranger.settimeout(DEADLINE_SECONDS)
        lines = stranger.makefile("rb")
        answers = [json.loads(lines.readline()) for _ in range(4)]
    assert all("error" in answer for answer in answers[:3])
    assert answers[3] == {"reply": 7, "op": "list", "id": "", "attempts": []}


@pytest.mark.parametrize("quietly", [True, False], ids=["this release", "one that answers all"])
async def test_a_start_that_cannot_be_is_told_whether_or_not_the_others_are_answered(
    bench: ProcessBench, quietly: bool
) -> None:
    assert bench.executor._quietly
    bench.executor._quietly = quietly
    await bench.executor.start(bench.launch("1.0.1", "exit 1", walltime_seconds="soon"))
    await bench.executor.start(bench.launch("2.0.1", "exit 2"))
    await bench.executor.signal("3.0.1", signal.SIGCONT, ending=False)
    assert (await bench.end_of("2.0.1")).exit_code == 2
    (failed,) = (event for event in bench.told if isinstance(event, StartFailed))
    assert failed.id == "1.0.1" and "TypeError" in failed.reason
    assert not any(isinstance(event, Signalled) for event in bench.told)


async def test_what_was_asked_last_is_heard(bench: ProcessBench) -> None:
    """Whoever leaves has been read to the end, though nothing of it is answered."""
    names = [f"{job}.0.1" for job in range(1, 31)]
    for name in names:
        await bench.executor.start(bench.launch(name, "exit 0"))
    await bench.executor.close()
    await bench.connect()
    assert {known.id for known in bench.listed.known} == set(names)


async def test_many_at_once(bench: ProcessBench) -> None:
    names = [f"{job}.0.1" for job in range(1, 101)]
    for name in names:
        await bench.executor.start(bench.launch(name, f"exit {int(name.split('.')[0]) % 5}"))
    await until(lambda: sum(isinstance(event, Ended) for event in bench.told) == len(names))
    codes = {event.id: event.exit_code for event in bench.told if isinstance(event, Ended)}
    assert codes == {name: int(name.split(".")[0]) % 5 for name in names}


async def test_a_full_disk_starts_nothing_and_ends_nothing(bench: ProcessBench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "while [ ! -e go ]; do sleep 0.02; done; exit 3"))
    await until(lambda: bench.told)
    size = (bench.folder / JOURNAL_NAME).stat().st_size
    before = resource.prlimit(bench.executor.keeper_pid, resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
    await bench.executor.start(bench.launch("2.0.1", "echo line > count"))
    end = await bench.end_of("2.0.1")
    assert "journal cannot be written" in end.reason and end.exit_code == 126
    assert bench.text("count") == "" and not bench.ends("1.0.1")
    resource.prlimit(bench.executor.keeper_pid, resource.RLIMIT_FSIZE, before)
    (bench.out / "go").touch()
    await bench.end_of("1.0.1")
    await bench.executor.start(bench.launch("3.0.1", "exit 4"))
    await bench.end_of("3.0.1")
    await bench.crash_keeper()
    await bench.connect()
    codes = {known.id: known.exit_code for known in bench.listed.known}
    assert codes == {"1.0.1": 3, "2.0.1": 126, "3.0.1": 4}
