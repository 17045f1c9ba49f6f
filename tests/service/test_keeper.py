"""Executors with real processes: the contract that every one keeps, then what is the keeper's own."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lavalite.base.errors import UnreachableError
from lavalite.sbatchd import keeper
from lavalite.sbatchd.executors import Ended, ExecutorEvent, Launch, Signalled, Started
from lavalite.sbatchd.process import ProcessExecutor

DEADLINE_SECONDS = 20.0


async def until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not so within {DEADLINE_SECONDS} s: {what}"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    process = keeper.look_at(pid)
    return process is not None and process.alive


def marked(folder: Path) -> list[int]:
    """Live processes that an attempt of this keeper started."""
    found = []
    for pid in keeper.all_processes():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if f"{keeper.MARK}={folder}:".encode() in environment and alive(pid):
            found.append(pid)
    return found


class Bench:
    """An executor, what it told, and a folder for what attempts write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "keeper"
        self.folder.mkdir()
        self.out = folder / "out"
        self.out.mkdir()
        self.executor = ProcessExecutor(self.folder, keeper_idle_seconds=60)
        self.told: list[ExecutorEvent] = []
        self.breaks = 0
        self.keepers: set[int] = set()

    async def connect(self) -> None:
        def lost() -> None:
            self.breaks += 1

        self.listed = await self.executor.connect(self.told.append, lost)
        self.keepers.add(self.executor.keeper_pid)

    def launch(self, name: str, script: str, **more: object) -> Launch:
        values: dict[str, object] = {
            "id": name,
            "argv": ["/bin/sh", "-c", script],
            "cwd": str(self.out),
            "environment": {"PATH": os.environ["PATH"], "GREETING": "hello"},
            "stdout_path": str(self.out / f"{name}.stdout"),
            "stderr_path": str(self.out / f"{name}.stderr"),
            "own_outputs": [],
            "uid": os.geteuid(),
            "gid": os.getegid(),
            "cpus": [],
            "limits": {},
            "walltime_seconds": None,
            "grace_seconds": 0.2,
            "fence_after_seconds": 0.0,
            "contact": keeper.boottime(),
        }
        return Launch(**(values | more))  # type: ignore[arg-type]

    def ends(self, name: str) -> list[Ended]:
        return [event for event in self.told if isinstance(event, Ended) and event.id == name]

    async def end_of(self, name: str) -> Ended:
        await until(lambda: self.ends(name), f"{name} ended")
        return self.ends(name)[0]

    def text(self, file: str) -> str:
        path = self.out / file
        return path.read_text() if path.exists() else ""

    async def pid_in(self, file: str) -> int:
        await until(lambda: self.text(file).endswith("\n"), file)
        return int(self.text(file).split()[0])

    async def crash_keeper(self) -> None:
        pid = self.executor.keeper_pid
        os.kill(pid, signal.SIGKILL)
        before = self.breaks
        await until(lambda: self.breaks > before, "the broken connection is noticed")

    async def close(self) -> None:
        try:
            await self.executor.shutdown(force=True)
        except UnreachableError:
            await self.connect()
            await self.executor.shutdown(force=True)
        # Zombies of ours: the keeper is our child.
        await until(lambda: all(not alive(pid) for pid in self.keepers), "keepers ended")
        await self.executor.close()
        if self.executor._spawned:
            self.executor._spawned.wait(DEADLINE_SECONDS)
        assert marked(self.folder) == []


@pytest.fixture(params=["process"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.connect()
    yield bench
    await bench.close()


# --- the contract ---------------------------------------------------------------------------------------------


async def test_an_attempt_runs_and_its_end_is_told(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "echo $GREETING; pwd; echo oops >&2; exit 7"))
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (7, "exit")
    assert bench.text("1.0.1.stdout") == f"hello\n{bench.out}\n"
    assert bench.text("1.0.1.stderr") == "oops\n"
    assert [type(event) for event in bench.told] == [Started, Ended]
    assert end.started_at is not None and end.at >= end.started_at


async def test_an_id_is_started_once(bench: Bench) -> None:
    launch = bench.launch("1.0.1", "echo line >> count; sleep 0.05")
    await bench.executor.start(launch)
    await bench.executor.start(launch)
    await bench.end_of("1.0.1")
    await bench.executor.start(launch)
    await bench.executor.list()
    assert bench.text("count") == "line\n"


async def test_an_end_is_listed_until_it_is_acknowledged(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "exit 3"))
    await bench.end_of("1.0.1")
    (known,) = (await bench.executor.list()).known
    assert (known.state, known.exit_code) == ("ended", 3)
    await bench.executor.acknowledge("1.0.1")
    assert (await bench.executor.list()).known == ()


async def test_a_death_by_signal_is_a_negative_code(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "kill -SEGV $$"))
    assert (await bench.end_of("1.0.1")).exit_code == -signal.SIGSEGV


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        ({"argv": ["/no/such/program"]}, 127, "/no/such/program: No such file"),
        ({"cwd": "/no/such/folder"}, 127, "enter /no/such/folder"),
        ({"stdout_path": "/no/such/folder/x"}, 127, "open /no/such/folder/x"),
        ({"argv": ["/etc/passwd"]}, 126, "/etc/passwd: Permission denied"),
        ({"cpus": [4095]}, 126, "pin to cores"),
    ],
)
async def test_what_cannot_start_says_why(bench: Bench, change: dict[str, object], code: int, word: str) -> None:
    await bench.executor.start(bench.launch("1.0.1", "true", **change))
    end = await bench.end_of("1.0.1")
    assert end.exit_code == code
    assert end.reason.startswith("cannot_start: ") and word in end.reason
    assert end.started_at is None
    assert [type(event) for event in bench.told] == [Ended]


async def test_output_is_appended_to(bench: Bench) -> None:
    (bench.out / "log").write_text("before\n")
    both = {"stdout_path": str(bench.out / "log"), "stderr_path": str(bench.out / "log")}
    await bench.executor.start(bench.launch("1.0.1", "echo out; echo err >&2", **both))
    await bench.end_of("1.0.1")
    assert bench.text("log") == "before\nout\nerr\n"


async def test_limits_cores_and_session_are_set(bench: Bench) -> None:
    core = min(os.sched_getaffinity(0))
    script = "ulimit -c; ulimit -d; awk '/Cpus_allowed_list/{print $2}' /proc/self/status; ls /proc/self/fd | wc -l"
    limits = {"RLIMIT_CORE": 0, "RLIMIT_DATA": 512 * 1024 * 1024}
    await bench.executor.start(bench.launch("1.0.1", script, cpus=[core], limits=limits))
    await bench.end_of("1.0.1")
    assert bench.text("1.0.1.stdout").split() == ["0", "524288", str(core), "4"]  # 0, 1, 2, and the folder listed


async def test_suspend_and_resume(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "echo $$ > pid; exec sleep 60"))
    pid = await bench.pid_in("pid")
    await bench.executor.signal("1.0.1", signal.SIGSTOP, ending=False)
    await until(lambda: Signalled("1.0.1", suspended=True) in bench.told)
    await until(lambda: " T " in Path(f"/proc/{pid}/stat").read_text(), "it is stopped")
    assert (await bench.executor.list()).known[0].state == "suspended"
    await bench.executor.signal("1.0.1", signal.SIGCONT, ending=False)
    await until(lambda: " T " not in Path(f"/proc/{pid}/stat").read_text(), "it goes on")
    await until(lambda: Signalled("1.0.1", suspended=False) in bench.told)


async def test_a_suspended_attempt_hears_that_it_shall_end(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "trap 'exit 5' TERM; echo x > up; while :; do sleep 0.05; done"))
    await until(lambda: bench.text("up"))
    await bench.executor.signal("1.0.1", signal.SIGSTOP, ending=False)
    await bench.executor.signal("1.0.1", signal.SIGTERM, ending=True)
    end = await bench.end_of("1.0.1")
    assert end.reason == "stop" and end.exit_code in (5, -signal.SIGTERM)


async def test_kill_follows_term_after_the_grace(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "trap '' TERM; echo x > up; while :; do sleep 0.05; done"))
    await until(lambda: bench.text("up"))
    await bench.executor.signal("1.0.1", signal.SIGTERM, ending=True, grace_seconds=0.2, reason="preempted")
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (-signal.SIGKILL, "preempted")


async def test_grandchildren_in_sessions_of_their_own_are_killed(bench: Bench) -> None:
    script = "setsid sh -c 'echo $$ > far; sleep 60 & sleep 60' & sh -c 'echo $$ > near; sleep 60' & wait"
    await bench.executor.start(bench.launch("1.0.1", script))
    far, near = await bench.pid_in("far"), await bench.pid_in("near")
    await bench.executor.signal("1.0.1", signal.SIGKILL, ending=True)
    await bench.end_of("1.0.1")
    assert not alive(far) and not alive(near) and marked(bench.folder) == []


async def test_nothing_is_left_behind_by_one_that_ends_by_itself(bench: Bench) -> None:
    await bench.executor.start(bench.launch("2.0.1", "sleep 60"))  # a neighbour, which must live on
    await bench.executor.start(bench.launch("1.0.1", "(setsid sh -c 'echo $$ > far; sleep 60' &) ; sleep 0.2"))
    far = await bench.pid_in("far")
    end = await bench.end_of("1.0.1")
    assert end.exit_code == 0 and not alive(far)
    assert [known.state for known in (await bench.executor.list()).known if known.id == "2.0.1"] == ["running"]


async def test_walltime(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "sleep 60", walltime_seconds=1))
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (-signal.SIGTERM, "walltime")


async def test_walltime_of_one_that_does_not_listen(bench: Bench) -> None:
    script = "trap '' TERM; while :; do sleep 0.05; done"
    await bench.executor.start(bench.launch("1.0.1", script, walltime_seconds=2))
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (-signal.SIGKILL, "walltime")


async def test_the_fence_falls_unless_contact_is_renewed(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "sleep 60", fence_after_seconds=1.5))
    await bench.executor.start(bench.launch("2.0.1", "sleep 60"))
    begun = last = keeper.boottime()
    while last < begun + 2.0:
        last = keeper.boottime()
        await bench.executor.contact(last)
        await asyncio.sleep(0.05)
    assert not bench.ends("1.0.1"), "renewed for longer than its fence"
    last = keeper.boottime()
    await bench.executor.contact(last)
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (-signal.SIGKILL, "fence")
    assert keeper.boottime() - last >= 1.5
    assert not bench.ends("2.0.1"), "without a fence it outlives a lost connection"


async def test_attempts_outlive_their_client(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "while [ ! -e go ]; do sleep 0.02; done; exit 4"))
    await until(lambda: bench.told)
    await bench.executor.close()
    (bench.out / "go").touch()
    await bench.connect()
    await until(lambda: bench.ends("1.0.1") or bench.listed.known[0].state == "ended")
    (known,) = (await bench.executor.list()).known
    assert (known.state, known.exit_code, known.reason) == ("ended", 4, "exit")


# --- the keeper's own -----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start an attempt as another user")
async def test_it_runs_as_its_user(bench: Bench) -> None:
    # Its cwd and the attempts' own files are not below the test's folder, which only root may enter.
    own = {"stdout_path": str(bench.out / "o"), "stderr_path": str(bench.out / "e"), "cwd": "/"}
    names = ["stdout_path", "stderr_path"]
    launch = bench.launch("1.0.1", "id -u; id -g; id -G; umask", uid=65534, gid=65534, own_outputs=names, **own)
    await bench.executor.start(launch)
    assert (await bench.end_of("1.0.1")).exit_code == 0
    assert bench.text("o").split() == ["65534", "65534", "65534", "0022"]
    found = (bench.out / "o").stat()
    assert (found.st_uid, found.st_mode & 0o777) == (65534, 0o600)


async def test_own_output_does_not_follow_a_link(bench: Bench) -> None:
    (bench.out / "o").symlink_to(bench.out / "victim")
    await bench.executor.start(
        bench.launch("1.0.1", "echo x", stdout_path=str(bench.out / "o"), own_outputs=["stdout_path"])
    )
    assert (await bench.end_of("1.0.1")).reason.startswith("cannot_start: open")
    assert not (bench.out / "victim").exists()


async def test_attempts_of_a_lost_keeper_are_watched_and_never_started_again(bench: Bench) -> None:
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


async def test_a_lost_keeper_s_attempts_end_unknown(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "echo $$ > pid; exec sleep 60"))
    pid = await bench.pid_in("pid")
    await bench.crash_keeper()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not alive(pid))
    await bench.connect()
    (known,) = bench.listed.known
    assert (known.state, known.exit_code, known.reason) == ("ended", None, "keeper_lost")


@pytest.mark.parametrize("reason", ["walltime", "fence"])
async def test_deadlines_hold_across_a_lost_keeper(bench: Bench, reason: str) -> None:
    limit = {"walltime_seconds": 3} if reason == "walltime" else {"fence_after_seconds": 3.0}
    script = "setsid sh -c 'echo $$ > far; exec sleep 60' & echo $$ > pid; exec sleep 60"
    await bench.executor.start(bench.launch("1.0.1", script, **limit))
    pid, far = await bench.pid_in("pid"), await bench.pid_in("far")
    await bench.crash_keeper()
    await bench.connect()
    assert alive(pid) and bench.listed.known[0].state == "running"
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (None, reason)
    assert not alive(pid) and not alive(far)


async def test_contact_survives_the_keeper(bench: Bench) -> None:
    begun = keeper.boottime()
    await bench.executor.start(bench.launch("1.0.1", "sleep 60", fence_after_seconds=3.0, contact=begun))
    sent = begun + 1.0
    await until(lambda: keeper.boottime() >= sent)
    await bench.executor.contact(sent)
    await bench.executor.list()
    await bench.crash_keeper()
    await bench.connect()
    end = await bench.end_of("1.0.1")
    assert end.reason == "fence" and keeper.boottime() >= sent + 3.0


async def test_one_keeper_a_folder(bench: Bench) -> None:
    command = [sys.executable, "-I", "-S", keeper.__file__, str(bench.folder)]
    second = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )
    assert (second.returncode, second.stderr) == (keeper.ALREADY_RUNS_EXIT, "another keeper has this folder\n")


async def test_it_goes_when_nothing_runs_and_nobody_is_there(tmp_path: Path) -> None:
    executor = ProcessExecutor(tmp_path, keeper_idle_seconds=0.1)
    await executor.connect(lambda event: None, lambda: None)
    pid = executor.keeper_pid
    await executor.close()
    assert executor._spawned
    assert executor._spawned.wait(DEADLINE_SECONDS) == 0
    assert not alive(pid) and not (tmp_path / keeper.SOCKET_NAME).exists()


async def test_it_refuses_to_go_while_something_runs(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "sleep 60"))
    assert await bench.executor.shutdown() == "1 attempts run"
    os.kill(bench.executor.keeper_pid, signal.SIGTERM)
    await bench.executor.list()
    assert alive(bench.executor.keeper_pid)


async def test_nonsense_harms_nobody(bench: Bench) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        folder = os.open(bench.folder, os.O_PATH)
        stranger.connect(f"/proc/self/fd/{folder}/{keeper.SOCKET_NAME}")
        os.close(folder)
        stranger.sendall(b'nonsense\n{"op": "fly"}\n{"op": "start", "id": "9.0.1"}\n{"op": "list", "n": 7}\n')
        stranger.settimeout(DEADLINE_SECONDS)
        lines = stranger.makefile("rb")
        answers = [json.loads(lines.readline()) for _ in range(4)]
    assert all("error" in answer for answer in answers[:3])
    assert answers[3] == {"reply": 7, "id": "", "attempts": []}


async def test_many_at_once(bench: Bench) -> None:
    names = [f"{job}.0.1" for job in range(1, 101)]
    for name in names:
        await bench.executor.start(bench.launch(name, f"exit {int(name.split('.')[0]) % 5}"))
    await until(lambda: sum(isinstance(event, Ended) for event in bench.told) == len(names))
    codes = {event.id: event.exit_code for event in bench.told if isinstance(event, Ended)}
    assert codes == {name: int(name.split(".")[0]) % 5 for name in names}


async def test_a_full_disk_starts_nothing_and_ends_nothing(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "while [ ! -e go ]; do sleep 0.02; done; exit 3"))
    await until(lambda: bench.told)
    size = (bench.folder / keeper.JOURNAL_NAME).stat().st_size
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
