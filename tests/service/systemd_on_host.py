"""What is the systemd executor's own, with the real systemd of a host that is the test's alone.

Run there by test_systemd.py, together with the contract of all executors. Where controllers are version 1, a host
sees them read-only: what is tested here is that limits are asked for, not that the kernel keeps them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from executor_bench import SystemdBench, alive, systemctl, until

from lavalite.sbatchd.executors import Ended, Started
from lavalite.sbatchd.keeper import proc
from lavalite.sbatchd.systemd import records
from lavalite.sbatchd.systemd.executor import SWEEP_SECONDS

NOBODY = {"uid": 65534, "gid": 65534}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[SystemdBench]:
    bench = SystemdBench(tmp_path)
    await bench.connect()
    yield bench
    await bench.close()


async def restart(bench: SystemdBench) -> None:
    """As sbatchd does when it comes again: another process would know no more than this."""
    await bench.executor.close()
    bench.executor = bench.fresh()
    await bench.connect()


async def found_ended(bench: SystemdBench, attempt: str) -> tuple[int | None, str]:
    """Exit code and reason of one whose end nobody was there to see."""
    bench.executor = bench.fresh()
    await bench.connect()
    listed = [each for each in bench.listed.known if each.id == attempt]
    await until(lambda: bench.ends(attempt) or listed[0].state == "ended")
    (known,) = [each for each in (await bench.executor.list()).known if each.id == attempt]
    return known.exit_code, known.reason


async def run(*words: str) -> None:
    await asyncio.to_thread(subprocess.run, words, check=True)


async def test_limits_and_identity_are_properties_of_the_unit(bench: SystemdBench) -> None:
    core = min(os.sched_getaffinity(0))
    more = {"cpu_milli": 1500, "memory_bytes": 2**30, "cpus": [core], "walltime_seconds": 600, "grace_seconds": 7}
    await bench.executor.start(bench.launch("1.0.1", "sleep 60", cwd="/", stdout_path="/dev/null",
                                            stderr_path="/dev/null", **NOBODY, **more))  # fmt: skip
    await until(lambda: bench.told)
    wanted = {
        "User": "65534",
        "Group": "65534",
        "Slice": "lavalite-work.slice",
        "NoNewPrivileges": "yes",
        "KillMode": "control-group",
        "OOMPolicy": "kill",
        "CPUQuotaPerSecUSec": "1.500000s",
        "CPUWeight": "150",
        "AllowedCPUs": str(core),
        "CPUAffinity": str(core),
        "MemoryMax": str(2**30),
        "MemorySwapMax": "0",
        "TasksMax": "16384",
        "IOWeight": "100",
        "RuntimeMaxUSec": "10min",
        "TimeoutStopUSec": "7s",
        "DevicePolicy": "closed",
    }
    assert bench.show("1.0.1", *wanted) == wanted
    assert bench.show("1.0.1", "MainPID") == {"MainPID": str(bench.told[0].pid)}  # type: ignore[union-attr]


async def test_a_submitter_has_his_groups_and_gains_no_privileges(bench: SystemdBench) -> None:
    await run("groupadd", "-g", "5001", "crew")
    await run("useradd", "-u", "5000", "-G", "crew", "-M", "ada")
    script = "id -u; id -g; id -G; grep NoNewPrivs /proc/self/status; umask"
    names = ["stdout_path", "stderr_path"]
    await bench.executor.start(bench.launch("1.0.1", script, uid=5000, gid=5000, cwd="/", own_outputs=names))
    assert (await bench.end_of("1.0.1")).exit_code == 0
    assert bench.text("1.0.1.stdout").split() == ["5000", "5000", "5000", "5001", "NoNewPrivs:", "1", "0022"]


async def test_outputs_are_opened_as_the_user_and_not_as_root(bench: SystemdBench) -> None:
    bench.out.chmod(0o777)
    victim = bench.folder / "victim"
    victim.write_text("precious\n")
    (bench.out / "o").symlink_to(victim)
    await bench.executor.start(bench.launch("1.0.1", "echo x", cwd="/", stdout_path=str(bench.out / "o"), **NOBODY))
    assert (await bench.end_of("1.0.1")).reason == f"cannot_start: open {bench.out}/o: Permission denied"
    assert victim.read_text() == "precious\n"


async def test_nothing_secret_is_in_the_unit_and_nothing_is_expanded(bench: SystemdBench) -> None:
    odd = "a $HOME ${HOME} $$ %n %% \\t \"'; \n é"
    environment = {"TOKEN": "hunter2 $HOME %n\n", "BASH_FUNC_f%%": "() { :; }", "PATH": "/usr/bin:/bin"}
    script = 'printf "%s|%s" "$0" "$TOKEN"; grep -c BASH_FUNC_f%% /proc/$$/environ; touch up; while [ ! -e go ]; do sleep 0.02; done'  # noqa: E501
    await bench.executor.start(bench.launch("1.0.1", script, argv=["sh", "-c", script, odd], environment=environment))
    await until((bench.out / "up").exists)
    systemctl("daemon-reload")
    assert "hunter2" not in systemctl("show", "bench-1.0.1.service") + systemctl("cat", "bench-1.0.1.service")
    (bench.out / "go").touch()
    assert (await bench.end_of("1.0.1")).exit_code == 0
    assert bench.text("1.0.1.stdout") == f"{odd}|hunter2 $HOME %n\n1\n"


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -15), ("kill -ABRT $$", -6), ("exit 203", 203)],
)
async def test_how_it_ended_is_known_although_nobody_was_there(bench: SystemdBench, script: str, code: int) -> None:
    await bench.executor.start(bench.launch("1.0.1", f"while [ ! -e go ]; do sleep 0.02; done; {script}"))
    await until(lambda: bench.told)
    await bench.executor.close()
    (bench.out / "go").touch()
    await until(lambda: systemctl("is-active", "bench-1.0.1.service").strip() in ("inactive", "failed"))
    systemctl("reset-failed")
    bench.executor = bench.fresh()
    await bench.connect()
    (known,) = bench.listed.known
    assert (known.state, known.exit_code, known.reason) == ("ended", code, "exit")
    await bench.executor.start(bench.launch("1.0.1", "echo again > again"))
    await bench.executor.acknowledge("1.0.1")
    assert (await bench.executor.list()).known == () and bench.text("again") == ""
    assert "bench-1.0.1" not in systemctl("list-units", "--all", "--plain", "--no-legend", bench.PATTERN)


async def test_one_that_runs_is_found_again(bench: SystemdBench) -> None:
    await bench.executor.start(
        bench.launch("1.0.1", "echo line >> count; while [ ! -e go ]; do sleep 0.02; done; exit 4")
    )
    await until(lambda: bench.told)
    (started,) = bench.told
    assert isinstance(started, Started) and alive(started.pid)
    await restart(bench)
    (known,) = bench.listed.known
    assert (known.state, known.pid, known.started_at) == ("running", started.pid, started.at)
    await bench.executor.start(bench.launch("1.0.1", "echo line >> count"))
    (bench.out / "go").touch()
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason, bench.text("count")) == (4, "exit", "line\n")
    assert [type(event) for event in bench.told] == [Started, Ended]


@pytest.fixture
def queue() -> Iterator[Path]:
    """While this file is not there, the start of every attempt waits in systemd's queue."""
    units, go = Path("/run/systemd/system"), Path("/run/go")
    late = units / "lavalite-work.slice.d/late.conf"
    late.parent.mkdir(exist_ok=True)
    hold = "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\n"
    (units / "hold.service").write_text(hold + f"ExecStart=/bin/sh -c 'until [ -e {go} ]; do sleep 0.05; done'\n")
    late.write_text("[Unit]\nWants=hold.service\nAfter=hold.service\n")
    systemctl("stop", "lavalite-work.slice")
    systemctl("daemon-reload")
    yield go
    go.touch()
    late.unlink()
    (units / "hold.service").unlink()
    systemctl("daemon-reload")
    go.unlink()


async def test_one_whose_start_waits_in_systemd_is_not_over(bench: SystemdBench, queue: Path) -> None:
    """Its unit is inactive then, as one that has ended is. On a busy machine that lasts long enough to be seen."""
    await bench.executor.start(bench.launch("1.0.1", "exit 4"))
    asked = proc.boottime()
    assert bench.show("1.0.1", "ActiveState") == {"ActiveState": "inactive"}
    await until(lambda: proc.boottime() > asked + 1.5 * SWEEP_SECONDS)  # it has looked by then
    assert bench.told == []
    await restart(bench)
    assert [(known.id, known.state) for known in bench.listed.known] == [("1.0.1", "running")]
    queue.touch()
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (4, "exit")


async def test_one_whose_start_waits_can_be_ended_and_does_not_start(bench: SystemdBench, queue: Path) -> None:
    await bench.executor.start(bench.launch("1.0.1", "echo x > ran"))
    await bench.executor.signal("1.0.1", signal.SIGTERM, ending=True, reason="stop")
    assert (await bench.end_of("1.0.1")).reason == "stop"
    queue.touch()
    await until(lambda: systemctl("is-active", "hold.service") == "inactive\n")
    assert bench.text("ran") == ""


async def test_a_lost_note_is_made_good_from_what_systemd_knows(bench: SystemdBench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "exit 9"))
    await bench.end_of("1.0.1")
    (bench.folder / "1.0.1" / "end").unlink()
    await restart(bench)
    assert [(known.exit_code, known.reason) for known in bench.listed.known] == [(9, "exit")]


async def test_one_of_which_nothing_is_known_is_lost(bench: SystemdBench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "exit 0"))
    await bench.end_of("1.0.1")
    await bench.executor.close()
    (bench.folder / "1.0.1" / "end").unlink()
    bench.executor = bench.fresh()
    await bench.connect()
    assert [(known.exit_code, known.reason) for known in bench.listed.known] == [(None, "lost")]


async def test_units_of_a_lost_folder_are_listed_and_can_be_ended(bench: SystemdBench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "exec sleep 60"))
    await until(lambda: bench.told)
    await bench.executor.close()
    shutil.rmtree(bench.folder / "1.0.1")
    bench.executor = bench.fresh()
    await bench.connect()
    (known,) = bench.listed.known
    assert known.state == "running" and alive(known.pid)
    await bench.executor.signal("1.0.1", signal.SIGKILL, ending=True, reason="lost")
    assert (await bench.end_of("1.0.1")).reason == "lost" and not alive(known.pid)


async def test_walltime_is_kept_without_us(bench: SystemdBench) -> None:
    await bench.executor.start(
        bench.launch("1.0.1", "trap '' TERM; while :; do sleep 0.05; done", walltime_seconds=2)
    )
    await until(lambda: bench.told)
    await bench.executor.close()
    await until(lambda: bench.leftovers() == [])
    assert await found_ended(bench, "1.0.1") == (-signal.SIGKILL, "walltime")


async def test_kill_follows_term_without_us(bench: SystemdBench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "trap '' TERM; echo x > up; while :; do sleep 0.05; done"))
    await until(lambda: bench.text("up"))
    await bench.executor.signal("1.0.1", signal.SIGTERM, ending=True, grace_seconds=1.0, reason="preempted")
    await bench.executor.close()
    await until(lambda: bench.leftovers() == [])
    assert await found_ended(bench, "1.0.1") == (-signal.SIGKILL, "preempted")


async def test_kill_follows_term_where_sbatchd_sees_another_boot_than_its_fence(
    bench: SystemdBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under ProtectKernelTunables in a container, where the kernel's own id shows through."""
    monkeypatch.setattr(records, "boot_id", lambda: "7" * 36)
    bench.executor = bench.fresh()
    await bench.connect()
    await test_kill_follows_term_without_us(bench)


async def test_kill_is_heard_in_the_grace_of_walltime(bench: SystemdBench) -> None:
    script = "trap 'touch asked' TERM; while :; do sleep 0.05; done"
    await bench.executor.start(bench.launch("1.0.1", script, walltime_seconds=1, grace_seconds=600))
    await until((bench.out / "asked").exists)
    await bench.executor.signal("1.0.1", signal.SIGKILL, ending=True)
    end = await bench.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (-signal.SIGKILL, "walltime")


FROZEN = """
import asyncio, sys
from pathlib import Path
from lavalite.base.clock import SystemClock
from lavalite.sbatchd.systemd import SystemdExecutor

async def main():
    clock = SystemClock()
    executor = SystemdExecutor(Path(sys.argv[1]), clock, prefix="bench")
    await executor.connect(lambda event: None, lambda: None)
    print("up", flush=True)
    while True:
        await executor.contact(clock.boottime())
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


@pytest.mark.parametrize("fence_dies_too", [False, True])
async def test_the_fence_falls_while_sbatchd_is_frozen(bench: SystemdBench, fence_dies_too: bool) -> None:
    await bench.executor.start(bench.launch("1.0.1", "exec sleep 60", fence_after_seconds=4.0))
    await bench.executor.start(bench.launch("2.0.1", "exec sleep 60"))
    await until(lambda: len(bench.told) == 2)
    await bench.executor.close()
    with subprocess.Popen([sys.executable, "-c", FROZEN, bench.folder], stdout=subprocess.PIPE) as sbatchd:  # noqa: ASYNC220
        try:
            assert sbatchd.stdout and await asyncio.to_thread(sbatchd.stdout.readline) == b"up\n"
            begun = proc.boottime()
            await until(lambda: proc.boottime() > begun + 5.0)
            assert systemctl("is-active", "bench-1.0.1.service") == "active\n", "renewed for longer than its fence"
            frozen = proc.boottime()
            sbatchd.send_signal(signal.SIGSTOP)
            if fence_dies_too:
                systemctl("daemon-reload")  # as any installation of a package does
                systemctl("kill", "--signal=KILL", "bench-fence.service")
            await until(lambda: systemctl("is-active", "bench-1.0.1.service") != "active\n")
            assert proc.boottime() - frozen > 3.5
        finally:
            sbatchd.kill()
    assert await found_ended(bench, "1.0.1") == (-signal.SIGKILL, "fence")
    assert not bench.ends("2.0.1")


async def test_one_that_was_held_up_until_its_fence_fell_does_not_start(bench: SystemdBench) -> None:
    before = proc.boottime() - 10
    await bench.executor.start(bench.launch("1.0.1", "echo x > ran", fence_after_seconds=5.0, contact=before))
    assert (await bench.end_of("1.0.1")).exit_code != 0
    assert bench.text("ran") == ""


async def test_a_broken_bus_is_told_and_harms_nobody(bench: SystemdBench) -> None:
    await bench.executor.start(bench.launch("1.0.1", "while [ ! -e go ]; do sleep 0.02; done; exit 3"))
    await until(lambda: bench.told)
    systemctl("kill", "--signal=KILL", "dbus.service")
    await until(lambda: bench.breaks == 1)
    (bench.out / "go").touch()
    systemctl("start", "dbus.service")
    await bench.connect()
    await until(lambda: bench.ends("1.0.1") or bench.listed.known[0].state == "ended")
    assert [(known.state, known.exit_code) for known in (await bench.executor.list()).known] == [("ended", 3)]


async def test_who_wants_nothing_left_ends_all_and_the_next_agent_hears_why(bench: SystemdBench) -> None:
    from lavalite.sbatchd.systemd.ending import end_units

    await bench.executor.start(bench.launch("1.0.1", "sleep 600"))
    stubborn = "trap '' TERM; echo up > up; while :; do sleep 0.1; done"
    await bench.executor.start(bench.launch("2.0.1", stubborn, grace_seconds=600))
    await until((bench.out / "up").exists)
    await bench.executor.close()
    assert await asyncio.to_thread(end_units, bench.folder, grace_seconds=1.0, prefix=bench.PREFIX) == 2
    assert bench.leftovers() == []
    assert systemctl("list-units", "--state=active", "--plain", "--no-legend", f"{bench.PREFIX}-*") == ""
    assert await asyncio.to_thread(end_units, bench.folder, grace_seconds=1.0, prefix=bench.PREFIX) == 0
    bench.executor = bench.fresh()
    await bench.connect()
    ended = {known.id: (known.state, known.exit_code, known.reason) for known in bench.listed.known}
    assert ended == {"1.0.1": ("ended", -15, "stop"), "2.0.1": ("ended", -9, "stop")}


async def test_many_at_once(bench: SystemdBench) -> None:
    names = [f"{job}.0.1" for job in range(1, 41)]
    for name in names:
        await bench.executor.start(bench.launch(name, f"exit {int(name.split('.')[0]) % 5}"))
    await until(lambda: sum(isinstance(event, Ended) for event in bench.told) == len(names))
    codes = {event.id: event.exit_code for event in bench.told if isinstance(event, Ended)}
    assert codes == {name: int(name.split(".")[0]) % 5 for name in names}
