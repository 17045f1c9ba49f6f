"""sbatchd as a process, with its keeper and real attempts, in conversation with peers that speak the protocol."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_SECONDS

from lavalite.model.resources import NodeOffer
from lavalite.sbatchd.keeper import proc
from lavalite.sbatchd.process import ProcessExecutor
from lavalite.wire.connection import Connection, FrameServer
from lavalite.wire.frames import (
    AnyFrame,
    AskOffer,
    AskToken,
    Attempt,
    AttemptReport,
    Beat,
    BeatAck,
    CancelRead,
    Dispatch,
    Granted,
    Hello,
    HostHere,
    HostsApplied,
    HostsHere,
    Leader,
    Offer,
    Output,
    Read,
    Register,
    Registered,
    Report,
    ReportAck,
    Stop,
    Welcome,
)

DEADLINE_SECONDS = PATIENCE_SECONDS
NODE = "n1"


async def until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not so within {DEADLINE_SECONDS} s: {what}"
        await asyncio.sleep(0.01)


class LimPeer:
    """A LIM's local socket: says who leads, gives a token and an offer."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.leader = Leader()
        self.offer = NodeOffer(node=NODE, boot_id="boot")
        self.server = FrameServer(f"unix:{socket_path}", self._greet, self._serve)

    async def _greet(self, hello: Hello, connection: Connection) -> Welcome:
        assert hello.role == "local"
        return Welcome(software_version="test", node=NODE)

    async def _serve(self, connection: Connection) -> None:
        while True:
            question = await connection.receive()
            if isinstance(question, AskToken):
                await connection.send(Granted(token=f"token-for-{question.audience}", expires_at=0))
            elif isinstance(question, AskOffer):
                await connection.send(Offer(offer=self.offer))
            else:
                await connection.send(self.leader)


class LeaderPeer:
    """An mbatchd as agents see it: it registers, acknowledges, remembers what it was told."""

    def __init__(self, epoch: tuple[int, int] = (1, 5)) -> None:
        self.epoch = epoch
        self.hello: Hello | None = None
        self.registers: list[Register] = []
        self.reports: list[AttemptReport] = []
        self.outputs: list[Output] = []
        self.applied: list[HostsApplied] = []
        self.acknowledges_beats = self.acknowledges_reports = True
        self.beats = 0
        self.agent: Connection | None = None
        self.server = FrameServer("127.0.0.1:0", self._greet, self._serve)

    async def _greet(self, hello: Hello, connection: Connection) -> Welcome:
        self.hello = hello
        return Welcome(software_version="test", node="c1", epoch=self.epoch)

    async def _serve(self, connection: Connection) -> None:
        try:
            while True:
                await self._answer(connection, await connection.receive())
        finally:
            if self.agent is connection:
                self.agent = None

    async def _answer(self, connection: Connection, frame: AnyFrame) -> None:
        if isinstance(frame, Register):
            self.registers.append(frame)
            self.reports += frame.attempts
            await connection.send(Registered(epoch=self.epoch, beat_seconds=0.1))
            if self.acknowledges_reports:
                await connection.send(ReportAck(epoch=self.epoch, seq=0))
            self.agent = connection
        elif isinstance(frame, Beat):
            self.beats += 1
            if self.acknowledges_beats:
                await connection.send(BeatAck(seq=frame.seq, sent=frame.sent, epoch=self.epoch))
        elif isinstance(frame, Report):
            self.reports += frame.attempts
            if self.acknowledges_reports:
                await connection.send(ReportAck(epoch=self.epoch, seq=frame.seq))
        elif isinstance(frame, Output):
            self.outputs.append(frame)
        elif isinstance(frame, HostsApplied):
            self.applied.append(frame)

    async def send(self, *frames: AnyFrame) -> None:
        await until(lambda: self.agent is not None, "the agent is registered")
        assert self.agent is not None
        await self.agent.send(*frames)

    def said(self, name: str) -> list[str]:
        return [report.state for report in self.reports if report.id == name]

    def final(self, name: str) -> AttemptReport | None:
        found = [r for r in self.reports if r.id == name and r.state in ("ended", "refused")]
        return found[-1] if found else None

    async def end_of(self, name: str) -> AttemptReport:
        await until(lambda: self.final(name), f"{name} ended")
        found = self.final(name)
        assert found
        return found

    async def output(self, stream_id: int) -> bytes:
        await until(lambda: any(o.stream_id == stream_id and o.ended for o in self.outputs), "the stream ended")
        mine = [o for o in self.outputs if o.stream_id == stream_id]
        assert mine[-1].error == ""
        return b"".join(base64.b64decode(o.data_base64) for o in mine)


class Node:
    """One sbatchd with a state folder, its LIM, and a leader."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.work = folder / "work"
        self.work.mkdir()
        self.config = folder / "sbatchd.conf"
        self.lim = LimPeer(folder / "lim.sock")
        self.leader = LeaderPeer()
        self.sbatchd: subprocess.Popen[bytes] | None = None
        self.write_config()

    def write_config(self, **more: Any) -> None:
        values = {
            "cluster": "rack1",
            "node": NODE,
            "state_path": self.state,
            "lim_socket_path": self.lim.socket_path,
            "allow_root": True,
            "grace_seconds": 0.5,
        } | more
        self.config.write_text("".join(f"{key}: {str(v).lower() if v is True else v}\n" for key, v in values.items()))

    async def open(self) -> None:
        await self.lim.server.start()
        await self.lead(self.leader)
        self.start()
        await until(lambda: self.leader.agent, "the agent is registered")

    async def lead(self, leader: LeaderPeer) -> None:
        await leader.server.start()
        self.leader = leader
        self.lim.leader = Leader(node="c1", epoch=leader.epoch, mbatchd_address=leader.server.address)

    def command(self, *more: str) -> list[str]:
        return [sys.executable, "-m", "lavalite.sbatchd.daemon", "--config", str(self.config), *more]

    def start(self) -> None:
        with (self.state.parent / "sbatchd.log").open("ab") as log:
            self.sbatchd = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stderr=log)

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.sbatchd
        self.sbatchd.send_signal(number)
        if number == signal.SIGKILL:
            self.sbatchd.wait(DEADLINE_SECONDS)

    def attempt(self, name: str, script: str, **more: Any) -> Attempt:
        values = {
            "id": name,
            "journal_id": self.leader.registers[-1].journal_id,
            "command": ["sh", "-c", script],
            "cwd": str(self.work),
            "uid": os.geteuid(),
            "gid": os.getegid(),
        }
        return Attempt(**(values | more))

    async def run(self, name: str, script: str, **more: Any) -> None:
        await self.leader.send(Dispatch(epoch=self.leader.epoch, attempts=[self.attempt(name, script, **more)]))

    def text(self, file: str) -> str:
        path = self.work / file
        return path.read_text() if path.exists() else ""

    async def close(self) -> None:
        if self.sbatchd and self.sbatchd.poll() is None:
            self.kill(signal.SIGCONT)
            self.kill(signal.SIGTERM)
            assert self.sbatchd.wait(DEADLINE_SECONDS) == 0
        await self.leader.server.close()
        await self.lim.server.close()
        if (self.state / "keeper").exists():
            keeper_of = ProcessExecutor(self.state / "keeper")
            await keeper_of.connect(lambda event: None, lambda: None)
            await keeper_of.shutdown(force=True)
            pid = keeper_of.keeper_pid
            await until(lambda: not (found := proc.look_at(pid)) or not found.alive, "the keeper ended")
            await keeper_of.close()
            if keeper_of._spawned:
                keeper_of._spawned.wait(DEADLINE_SECONDS)
        for pid in proc.all_processes():
            assert f"{proc.MARK}={self.state}" not in environment_of(pid), f"process {pid} is left"


def environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.open()
    yield node
    await node.close()


async def test_from_dispatch_to_acknowledged_end(node: Node) -> None:
    assert node.leader.hello and node.leader.hello.token == "token-for-mbatchd"
    assert node.leader.hello.journal_id == node.leader.registers[0].journal_id != ""
    devices = {"cpu": [str(min(os.sched_getaffinity(0)))], "gpu": ["GPU-a", "GPU-b"]}
    await node.run(
        "4711.3.2",
        "env; exit 3",
        devices=devices,
        environment={"GREETING": "hello", "LAVALITE_JOB": "0"},
        host="trainer-1",
        user="ada",
    )
    end = await node.leader.end_of("4711.3.2")
    assert (end.exit_code, end.reason) == (3, "exit")
    assert node.leader.said("4711.3.2") == ["started", "ended"]
    output = (node.state / "output" / "4711.3.2.stdout").read_text()
    told = dict(line.partition("=")[::2] for line in output.splitlines())
    expected = {
        "LAVALITE_JOB": "4711",
        "LAVALITE_TASK": "3",
        "LAVALITE_ATTEMPT": "2",
        "LAVALITE_HOST": "trainer-1",
        "LAVALITE_CPUS": devices["cpu"][0],
        "LAVALITE_GPUS": "GPU-a,GPU-b",
        "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b",
        "GREETING": "hello",
        "USER": "ada",
    }
    assert {name: told.get(name) for name in expected} == expected


async def test_dispatched_twice_started_once(node: Node) -> None:
    attempt = node.attempt("1.0.1", "echo line >> count; sleep 0.2")
    for _ in range(3):
        await node.leader.send(Dispatch(epoch=(1, 5), attempts=[attempt, attempt]))
    await node.leader.end_of("1.0.1")
    await node.leader.send(Dispatch(epoch=(1, 5), attempts=[attempt]))
    await until(lambda: node.leader.said("1.0.1").count("ended") >= 2, "the end is told again")
    assert node.text("count") == "line\n"


async def test_an_attempt_outlives_kill_9_of_sbatchd(node: Node) -> None:
    await node.run("1.0.1", "echo line >> count; while [ ! -e go ]; do sleep 0.02; done; exit 4")
    await node.run("2.0.1", "echo line >> count2; while [ ! -e go2 ]; do sleep 0.02; done; exit 5")
    await until(lambda: node.text("count") and node.text("count2"))
    node.kill()
    (node.work / "go").touch()  # it ends while nobody is there
    node.start()
    end = await node.leader.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (4, "exit")
    (node.work / "go2").touch()
    assert (await node.leader.end_of("2.0.1")).exit_code == 5
    attempts = [node.attempt("1.0.1", "echo line >> count"), node.attempt("2.0.1", "echo line >> count2")]
    await node.leader.send(Dispatch(epoch=(1, 5), attempts=attempts))
    await node.run("3.0.1", "true")
    await node.leader.end_of("3.0.1")
    assert (node.text("count"), node.text("count2")) == ("line\n", "line\n")
    assert len({register.journal_id for register in node.leader.registers}) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_restarts_amid_many_dispatches_start_nothing_twice(node: Node, number: signal.Signals) -> None:
    names = [f"{job}.0.1" for job in range(1, 41)]
    attempts = [node.attempt(name, f"echo line >> count-{name}") for name in names]
    for attempt in attempts:
        await node.leader.send(Dispatch(epoch=(1, 5), attempts=[attempt]))
    await until(lambda: any(node.leader.said(name) for name in names))
    node.kill(number)
    assert node.sbatchd
    await asyncio.to_thread(node.sbatchd.wait, DEADLINE_SECONDS)
    node.start()
    await until(lambda: len(node.leader.registers) == 2 and node.leader.agent, "it is back")
    await node.leader.send(Dispatch(epoch=(1, 5), attempts=attempts))
    ends = [await node.leader.end_of(name) for name in names]
    # Stopped in order, it has finished what it began; killed, it does not know of one or the other.
    assert {end.reason for end in ends} <= ({"exit"} if number == signal.SIGTERM else {"exit", "lost"})
    for name, end in zip(names, ends, strict=True):
        lines = node.text(f"count-{name}")
        assert lines == "line\n" if end.reason == "exit" else lines in ("", "line\n")


async def test_an_end_is_told_until_it_is_acknowledged(node: Node) -> None:
    node.leader.acknowledges_reports = False
    await node.run("1.0.1", "exit 6")
    await node.leader.end_of("1.0.1")
    node.kill()
    successor = LeaderPeer((1, 9))
    await node.leader.server.close()
    await node.lead(successor)
    node.start()
    assert (await successor.end_of("1.0.1")).exit_code == 6
    assert successor.registers[0].highest_epoch == (1, 9)
    await until(lambda: b"acknowledged" in (node.state / "journal").read_bytes())


@pytest.mark.parametrize("how", ["frozen", "dead"])
@pytest.mark.parametrize("limit", ["walltime", "fence"])
async def test_limits_hold_without_sbatchd(node: Node, how: str, limit: str) -> None:
    more = {"walltime_seconds": 2} if limit == "walltime" else {"fence_after_seconds": 1.5}
    await node.run("1.0.1", "setsid sleep 300 & echo $! > far; exec sleep 300", **more)
    await until(lambda: node.text("far").strip() and node.leader.said("1.0.1"))
    far = int(node.text("far"))
    node.kill(signal.SIGSTOP if how == "frozen" else signal.SIGKILL)
    await until(lambda: not (found := proc.look_at(far)) or not found.alive, f"the {limit} is enforced")
    if how == "frozen":
        node.kill(signal.SIGCONT)
    else:
        node.start()
    end = await node.leader.end_of("1.0.1")
    code = -signal.SIGTERM if limit == "walltime" else -signal.SIGKILL
    assert (end.exit_code, end.reason) == (code, limit)


async def test_the_fence_counts_from_acknowledged_beats(node: Node) -> None:
    await node.run("1.0.1", "exec sleep 300", fence_after_seconds=4.0)
    await node.run("2.0.1", "exec sleep 300")
    begun = proc.boottime()
    await until(lambda: proc.boottime() > begun + 5.0, "beats for longer than the fence")
    assert not node.leader.final("1.0.1")
    node.leader.acknowledges_beats = False  # beats still come in; what counts is that they are answered
    assert (await node.leader.end_of("1.0.1")).reason == "fence"
    assert not node.leader.final("2.0.1")


async def test_stop_reaches_the_whole_attempt(node: Node) -> None:
    await node.run("1.0.1", "trap '' TERM; setsid sleep 300 & echo $! > far; while :; do sleep 0.05; done")
    await until(lambda: node.text("far").strip())
    stop = Stop(epoch=(1, 5), id="1.0.1", signal=signal.SIGTERM, grace_seconds=0.3, reason="cancelled")
    await node.leader.send(stop)
    end = await node.leader.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (-signal.SIGKILL, "cancelled")
    found = proc.look_at(int(node.text("far")))
    assert not found or not found.alive


async def test_suspend_and_resume_are_reported(node: Node) -> None:
    await node.run("1.0.1", "exec sleep 300")
    await until(lambda: node.leader.said("1.0.1"))
    for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
        await node.leader.send(Stop(epoch=(1, 5), id="1.0.1", signal=number))
    await node.leader.end_of("1.0.1")
    assert node.leader.said("1.0.1") == ["started", "suspended", "resumed", "ended"]


async def test_a_lost_keeper_is_replaced(node: Node) -> None:
    await node.run("1.0.1", "echo line >> count; while [ ! -e go ]; do sleep 0.02; done")
    await until(lambda: node.text("count"))
    pids = [pid for pid, p in proc.all_processes().items() if is_keeper(pid, node.state)]
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    await node.run("2.0.1", "exit 7")
    # It may have been on its way to the keeper that was killed: then it is lost, and never started.
    assert (await node.leader.end_of("2.0.1")).reason in ("exit", "lost")
    (node.work / "go").touch()
    end = await node.leader.end_of("1.0.1")
    assert (end.exit_code, end.reason) == (None, "keeper_lost")
    await node.run("3.0.1", "exit 8")
    assert (await node.leader.end_of("3.0.1")).exit_code == 8
    assert node.text("count") == "line\n"


def is_keeper(pid: int, state: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(state / "keeper").encode() in words


async def test_another_journal_is_refused(node: Node) -> None:
    await node.run("1.0.1", "echo line >> count", journal_id="of-the-disk-that-was-lost")
    end = await node.leader.end_of("1.0.1")
    assert end.state == "refused" and end.reason.startswith("journal: ")
    await node.run("2.0.1", "true")
    await node.leader.end_of("2.0.1")
    assert node.text("count") == ""


async def test_lower_epochs_are_refused_also_after_a_restart(node: Node) -> None:
    await node.leader.send(BeatAck(seq=0, sent=0, epoch=(2, 1)))
    agent = node.leader.agent
    await node.leader.send(Dispatch(epoch=(1, 5), attempts=[node.attempt("1.0.1", "echo line >> count")]))
    await until(lambda: node.leader.agent is not agent, "the session is ended")
    node.kill()
    node.start()
    old, successor = node.leader, LeaderPeer((2, 1))
    await node.lead(successor)
    await until(lambda: successor.registers, "it goes to the newer leader")
    await node.run("2.0.1", "exit 0")
    assert (await successor.end_of("2.0.1")).exit_code == 0
    assert node.text("count") == "" and old.final("1.0.1") is None
    await old.server.close()


async def test_output_is_read_and_followed(node: Node) -> None:
    await node.run("1.0.1", "echo one; echo bad >&2; while [ ! -e go ]; do sleep 0.02; done; echo two")
    await node.leader.send(
        Read(epoch=(1, 5), stream_id=1, attempt="1.0.1", stream="stdout", follow=True),
        Read(epoch=(1, 5), stream_id=2, attempt="1.0.1", stream="stderr", follow=True),
    )
    await until(lambda: sum(bool(output.data_base64) for output in node.leader.outputs) == 2)
    (node.work / "go").touch()
    assert await node.leader.output(1) == b"one\ntwo\n"
    assert await node.leader.output(2) == b"bad\n"
    await node.leader.send(Read(epoch=(1, 5), stream_id=3, attempt="1.0.1", stream="stdout", offset=4))
    assert await node.leader.output(3) == b"two\n"


async def test_much_output_comes_whole_and_in_pieces(node: Node) -> None:
    await node.run("1.0.1", "head -c 1000000 /dev/zero", stdout_path="big")
    await node.leader.end_of("1.0.1")
    await node.leader.send(Read(epoch=(1, 5), stream_id=1, attempt="1.0.1", stream="stdout"))
    assert await node.leader.output(1) == bytes(1_000_000)
    pieces = [output for output in node.leader.outputs if output.data_base64]
    assert max(len(base64.b64decode(piece.data_base64)) for piece in pieces) == 64 * 1024
    assert (node.work / "big").stat().st_size == 1_000_000


async def test_output_that_cannot_be_read_says_why(node: Node) -> None:
    await node.run("1.0.1", "rm log; ln -s /etc/passwd log", stdout_path="log")
    await node.leader.end_of("1.0.1")
    await node.leader.send(
        Read(epoch=(1, 5), stream_id=1, attempt="1.0.1", stream="stdout"),
        Read(epoch=(1, 5), stream_id=2, attempt="9.0.1", stream="stdout"),
    )
    await until(lambda: len(node.leader.outputs) == 2)
    errors = {output.stream_id: output.error for output in node.leader.outputs}
    assert "log cannot be read" in errors[1] and "never ran here" in errors[2]


async def test_a_cancelled_read_ends(node: Node) -> None:
    await node.run("1.0.1", "while :; do echo x; sleep 0.05; done")
    await node.leader.send(Read(epoch=(1, 5), stream_id=1, attempt="1.0.1", stream="stdout", follow=True))
    await until(lambda: len(node.leader.outputs) >= 2)
    await node.leader.send(CancelRead(epoch=(1, 5), stream_id=1))
    # Frames are handled in order: once the next stream has ended, the cancelled one is silent.
    await node.leader.send(Read(epoch=(1, 5), stream_id=2, attempt="1.0.1", stream="stdout"))
    await node.leader.output(2)
    seen = sum(output.stream_id == 1 for output in node.leader.outputs)
    beats = node.leader.beats
    await until(lambda: node.leader.beats >= beats + 4)
    assert sum(output.stream_id == 1 for output in node.leader.outputs) == seen


async def test_it_follows_the_leader(node: Node) -> None:
    await node.run("1.0.1", "while [ ! -e go ]; do sleep 0.02; done; exit 9")
    await until(lambda: node.leader.said("1.0.1"))
    old = node.leader
    await node.lead(LeaderPeer((1, 9)))
    await old.server.close()
    await until(lambda: node.leader.registers, "it has found the new leader")
    assert node.leader.said("1.0.1") == ["started"]
    (node.work / "go").touch()
    assert (await node.leader.end_of("1.0.1")).exit_code == 9


async def test_hosts_are_answered(node: Node) -> None:
    host = HostHere(name="trainer-1", version=3, cpu_milli=1000, memory_bytes=0)
    await node.leader.send(HostsHere(epoch=(1, 5), hosts=[host]))
    await until(lambda: node.leader.applied)


# --- the daemon's edges ---------------------------------------------------------------------------------------


async def test_a_second_sbatchd_says_so(node: Node) -> None:
    done = await asyncio.to_thread(subprocess.run, node.command(), capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert f"another sbatchd uses {node.state}. Stop it first" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"state_path": "/etc/passwd/x"}, "state_path: /etc/passwd/x is not writable"),
        ({"state_path": "relative"}, "state_path: relative is not absolute"),
        ({"stat_path": "/x"}, "Did you mean state_path?"),
    ],
)
@pytest.mark.parametrize("check", [[], ["--check-config"]])
async def test_bad_configuration(tmp_path: Path, config: dict[str, str], words: str, check: list[str]) -> None:
    node = Node(tmp_path)
    node.write_config(**config)
    done = await asyncio.to_thread(subprocess.run, node.command(*check), capture_output=True, text=True, timeout=20)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be asked to run as root")
async def test_root_is_refused_unless_allowed(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.write_config(allow_root="false")
    await node.open()
    await node.run("1.0.1", "true")
    assert (await node.leader.end_of("1.0.1")).reason.startswith("policy: ")
    await node.run("2.0.1", "id -u; id -G", uid=65534, gid=65534, cwd="/")
    assert (await node.leader.end_of("2.0.1")).exit_code == 0
    assert (node.state / "output" / "2.0.1.stdout").read_text() == "65534\n65534\n"
    await node.leader.send(Read(epoch=(1, 5), stream_id=1, attempt="2.0.1", stream="stdout"))
    assert await node.leader.output(1) == b"65534\n65534\n"
    await node.close()


async def test_no_token_goes_to_another_machine_in_the_clear(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.lim.server.start()
    node.lim.leader = Leader(node="c1", epoch=(1, 5), mbatchd_address="192.0.2.1:6881")
    node.start()
    log = tmp_path / "sbatchd.log"
    await until(lambda: "the leader is at 192.0.2.1:6881, and there is no TLS" in log.read_text())
    await node.close()


async def test_a_reader_that_takes_nothing_holds_up_nobody(node: Node) -> None:
    await node.run("1.0.1", "head -c 40000000 /dev/zero")
    await node.leader.end_of("1.0.1")
    reads = [Read(epoch=(1, 5), stream_id=n, attempt="1.0.1", stream="stdout") for n in range(1, 11)]
    await node.leader.send(*reads)
    await until(lambda: len(node.leader.outputs) > 10)
    assert node.sbatchd
    resident = int(Path(f"/proc/{node.sbatchd.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident < 200_000_000, "400 MB are asked for; they are not read ahead"
    await node.run("2.0.1", "exit 7")
    assert (await node.leader.end_of("2.0.1")).exit_code == 7
    for n in range(1, 11):
        await node.leader.send(CancelRead(epoch=(1, 5), stream_id=n))


async def test_without_a_leader_it_waits(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.lim.server.start()
    node.start()
    log = tmp_path / "sbatchd.log"
    await until(lambda: "nobody leads as yet" in log.read_text())
    await node.lead(node.leader)
    await until(lambda: node.leader.registers, "it registers once there is one")
    await node.close()
