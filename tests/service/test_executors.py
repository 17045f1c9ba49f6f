"""Executors with real processes: the contract that every one keeps."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from executor_bench import Bench, ProcessBench, SystemdBench, alive, until

from lavalite.sbatchd.executors import Ended, Signalled, Started
from lavalite.sbatchd.keeper import proc

BENCHES: list[type[Bench]] = [ProcessBench]
if os.environ.get("LAVALITE_SYSTEMD_BENCH") == "1":
    # It makes units in this machine's own systemd: test_systemd.py asks for it on a host of the lab.
    BENCHES = [SystemdBench]


@pytest.fixture(params=BENCHES)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    bench: Bench = request.param(tmp_path)
    await bench.connect()
    yield bench
    await bench.close()


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
    await bench.executor.start(bench.launch("1.0.1", "echo $$ > pid; exec sleep 300"))
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
    script = "setsid sh -c 'echo $$ > far; sleep 300 & sleep 300' & sh -c 'echo $$ > near; sleep 300' & wait"
    await bench.executor.start(bench.launch("1.0.1", script))
    far, near = await bench.pid_in("far"), await bench.pid_in("near")
    await bench.executor.signal("1.0.1", signal.SIGKILL, ending=True)
    await bench.end_of("1.0.1")
    assert not alive(far) and not alive(near) and bench.leftovers() == []


async def test_nothing_is_left_behind_by_one_that_ends_by_itself(bench: Bench) -> None:
    await bench.executor.start(bench.launch("2.0.1", "sleep 300"))  # a neighbour, which must live on
    await bench.executor.start(bench.launch("1.0.1", "(setsid sh -c 'echo $$ > far; sleep 300' &) ; sleep 0.2"))
    far = await bench.pid_in("far")
    end = await bench.end_of("1.0.1")
    assert end.exit_code == 0 and not alive(far)
    assert [known.state for known in (await bench.executor.list()).known if known.id == "2.0.1"] == ["running"]


async def test_walltime(bench: Bench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "sleep 300", walltime_seconds=1))
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (-signal.SIGTERM, "walltime")


async def test_walltime_of_one_that_does_not_listen(bench: Bench) -> None:
    script = "trap '' TERM; while :; do sleep 0.05; done"
    await bench.executor.start(bench.launch("1.0.1", script, walltime_seconds=4))
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (-signal.SIGKILL, "walltime")


async def test_the_fence_falls_unless_contact_is_renewed(bench: Bench) -> None:
    begun = proc.boottime()
    # Due in 6 s by the contact that its launch tells of, in 100 s by the one after that.
    renewed = bench.launch("1.0.1", "sleep 300", fence_after_seconds=100.0, contact=begun - 94)
    await bench.executor.start(renewed)
    await bench.executor.start(bench.launch("2.0.1", "sleep 300"))
    await bench.executor.start(bench.launch("3.0.1", "sleep 300", fence_after_seconds=7.0, contact=begun))
    last = proc.boottime()
    await bench.executor.contact(last)
    end = await bench.end_of("3.0.1")
    assert (end.exit_code, end.reason) == (-signal.SIGKILL, "fence")
    assert proc.boottime() - last >= 7.0
    assert not bench.ends("1.0.1"), "it counts from the last contact"
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
