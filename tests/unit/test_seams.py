"""Promises that no room keeps alone: each test crosses a seam where one side once believed too much of the other."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from control_world import KEYS, Agent, World, offer, spec
from test_sbatchd_core import Mind, attempt

from lavalite.api.models import Submit, SubmitBatch
from lavalite.base.clock import SystemClock
from lavalite.base.errors import FencedError, InputError, RefusedError
from lavalite.base.steady import SteadyTime
from lavalite.control.actions import AttemptStart, SendDispatch
from lavalite.control.events import AttemptReported, Loaded, NodeRegistered, NodeReported, Specs, Tick
from lavalite.control.records import load
from lavalite.control.settings import Settings
from lavalite.control.state import ClusterState
from lavalite.ledger.committer import Committer, Outcome
from lavalite.ledger.fence import take_writer
from lavalite.mbatchd.dispatch import frame_of
from lavalite.mbatchd.identity import Identity
from lavalite.mbatchd.jobs import JobDesk
from lavalite.mbatchd.output import OutputStreams
from lavalite.mbatchd.service import Service
from lavalite.mbatchd.sessions import AgentSessions
from lavalite.model.job import Array
from lavalite.model.specs import QueueSpec
from lavalite.model.task import CHUNK_TASKS, AttemptId, TaskState
from lavalite.sbatchd.actions import Send, Signal, Start
from lavalite.sbatchd.events import FlushDue
from lavalite.sbatchd.executors import Ended, Listed, Started
from lavalite.store.base import Compare, Put
from lavalite.store.sqlite import SqliteStore
from lavalite.wire.codec import encode
from lavalite.wire.connection import Connection, FrameServer
from lavalite.wire.frames import MAX_FRAME_BYTES, Dispatch, Hello, Register, Welcome

ROOM_IN_A_TXN = 1024 * 1024
"""Bytes that a store takes at once, with 64 for each operation."""


def world(*offers: Any, **settings: Any) -> World:
    made = World(Settings(**settings))
    for one in offers or (offer("n1"),):
        made.connect(one.node, one)
    made.settle()
    return made


def queues(*found: QueueSpec) -> Specs:
    return Specs(queues={queue.name: queue for queue in found})


def settled(w: World) -> None:
    for agent in w.agents:
        w.report(agent)
    w.settle()
    w.check()


# --- no second run while the first may still run --------------------------------------------------------------------


@pytest.mark.parametrize("new_leader", [False, True])
@pytest.mark.parametrize("removed", [False, True])
def test_a_definition_that_shortens_lost_after_waits_for_fences_that_were_given_out(
    new_leader: bool, removed: bool
) -> None:
    w = world(offer("n1"))
    w.apply(queues(QueueSpec("q", default=True, fence_after_seconds=9000, lost_after_seconds=9060)))
    job = w.submit(spec(rerunnable=True, queue="q"))
    settled(w)
    w.connect("n2", offer("n2"))
    settled(w)
    assert w.running() == [AttemptId(job, 0, 1)]
    w.disconnect("n1")
    w.apply(Specs() if removed else queues(QueueSpec("q", fence_after_seconds=10, lost_after_seconds=20)))
    w.settle()
    if new_leader:
        w.change_leader()
        w.connect("n2")
    for _ in range(93):  # the world fails a start while another attempt of the task runs
        w.advance(100.0)
        settled(w)
    assert w.running() == [AttemptId(job, 0, 2)] and list(w.agents["n2"].running) == w.running()


def test_a_node_whose_journal_is_back_is_not_given_up_while_it_reports() -> None:
    w = world(offer("n1"), offer("n2"))
    job = w.submit(spec(rerunnable=True))
    settled(w)
    (running,) = w.running()
    name = next(agent.name for agent in w.agents.values() if agent.running)
    first = w.agents[name]
    w.disconnect(name)
    w.agents[name] = Agent(name, first.offer, "another-journal")
    w.connect(name)
    settled(w)
    w.disconnect(name)
    w.agents[name] = first
    w.connect(name)
    for _ in range(20):
        settled(w)
        w.advance(60.0)
    assert w.running() == [running] and w.state.jobs[job].state is TaskState.RUNNING


def test_what_the_executor_starts_after_it_was_reported_lost_is_killed() -> None:
    mind = Mind()
    mind.open()
    mind.dispatch(attempt("1.0.1"))
    mind.do(Listed(()))
    assert [(r.id, r.state, r.reason) for r in mind.flush()] == [("1.0.1", "ended", "lost")]
    assert mind.do(Started("1.0.1", 77, 1100.0)) == [Signal("1.0.1", signal.SIGKILL, True, 0.0, "lost")]


def test_a_restored_store_gives_no_job_an_id_that_an_agent_knows() -> None:
    mind = Mind()
    mind.open()
    mind.dispatch(attempt("1.0.1"))
    mind.do(Ended("1.0.1", 0, "exit", 1100.0, 77, 1090.0))
    again = mind.dispatch(attempt("1.0.1"), epoch=(2, 2))
    assert not any(isinstance(action, Start) for action in again)  # it answers instead how the old one ended
    assert [(r.id, r.exit_code) for r in mind.flush()[-1:]] == [("1.0.1", 0)]
    before, restored = load(KEYS, (1, 5), []), load(KEYS, (2, 2), [])
    assert before.next_job_id() > 10**8
    assert restored.next_job_id() > before.next_job_id() + 10**8


def test_all_that_a_node_has_to_tell_fits_into_a_frame() -> None:
    mind = Mind()
    mind.open()
    names = [f"1.{task}.1" for task in range(10_000)]
    for name in names:
        mind.dispatch(attempt(name))
        mind.do(Ended(name, 127, "cannot_start: open " + "/long" * 800, 1100.0, 77, 1090.0))
    frames = [action.frame for action in mind.do(FlushDue()) if isinstance(action, Send)]
    frames += [action.frame for action in mind.restart().open() if isinstance(action, Send)]
    assert len(frames) == 11 and all(len(encode(frame)) <= MAX_FRAME_BYTES for frame in frames)


# --- a crash between two transactions -------------------------------------------------------------------------------


@pytest.mark.parametrize("operations", range(1, 8))
def test_a_removed_job_does_not_rise_again(operations: int) -> None:
    w = world(keep_finished_seconds=100.0, max_txn_operations=operations + 2)
    jobs = [w.submit(spec(), key=f"k{n}") for n in range(4)]
    settled(w)
    for running in w.running():
        w.finish(running)
    settled(w)
    w.state.settings = Settings(keep_finished_seconds=100.0, max_txn_operations=operations)
    w.settings = w.state.settings
    w.advance(200.0)
    while True:
        state = load(KEYS, (0, 9), w.store.items())
        assert all(state.jobs[job].state is TaskState.SUCCEEDED for job in jobs if job in state.jobs)
        if not w.write():
            break
    assert not state.jobs


def test_what_a_crash_left_of_a_removed_job_is_swept_away() -> None:
    w = world()
    job = w.submit(spec(array=Array(first=0, last=3)), key="k")
    settled(w)
    for running in w.running():
        w.finish(running)
    settled(w)
    del w.store[KEYS.job(job)]
    w.change_leader()
    w.feed(Tick())
    w.settle()
    left = [key for key in w.store if "/tasks/" in key or "/commitments/" in key]
    assert left == []


@pytest.mark.parametrize("clock", [0.0, 1e12])
def test_a_node_with_a_wrong_clock_does_not_say_how_long_a_job_is_remembered(clock: float) -> None:
    w = World(Settings(keep_finished_seconds=100.0))
    w.now = 1.79e9
    w.connect("n1", offer("n1"))
    job = w.submit(spec())
    w.settle()
    w.feed(NodeReported("n1", 7, (AttemptReported(AttemptId(job, 0, 1), "ended", clock, 0, "exit"),)))
    w.settle()
    w.advance(50.0)
    assert w.state.jobs[job].state is TaskState.SUCCEEDED
    w.advance(60.0)
    assert job not in w.state.jobs


# --- what control hands over fits into one transaction --------------------------------------------------------------


def test_however_the_tasks_of_a_large_array_end_their_record_fits() -> None:
    w = world(offer("n1", cpu=2 * CHUNK_TASKS), max_placements=CHUNK_TASKS)
    job = w.submit(spec(array=Array(first=0, last=CHUNK_TASKS - 1), retries=1))
    settled(w)
    node = w.state.nodes["n1"]
    assert len(node.runs) == CHUNK_TASKS
    told = [
        AttemptReported(run.id, "ended", 1795000000.1234567 + run.position, -11, "\N{PILE OF POO}" * 200)
        for run in node.runs.values()
    ]

    w.feed(NodeReported("n1", 1, tuple(told)))
    w.settle()
    assert w.state.jobs[job].state is TaskState.PENDING
    key = KEYS.task_chunk(job, 0)
    assert len(key) + len(w.store[key]) + 64 <= ROOM_IN_A_TXN
    before = w.state.jobs[job]
    w.change_leader()
    after = w.state.jobs[job]
    assert (after.codes, after.attempts, after.charges) == (before.codes, before.attempts, before.charges)
    assert after.ends[0].exit_code == -11


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[tuple[Service, Committer]]:
    """Control, committer and a real store, without agents."""
    clock = SystemClock()
    store = await SqliteStore.open(tmp_path / "store.db", clock=clock)
    led = await store.txn([Compare.absent(KEYS.leader)], [Put(KEYS.leader, b"n1")])
    fence = await take_writer(store, KEYS, led.revision, (0, led.revision), "first")
    committer = Committer(store, fence, clock)
    committer.start()
    state = ClusterState(KEYS, (0, led.revision), Settings(max_txn_operations=store.max_txn_operations))
    made = Service(state, committer, SteadyTime(clock), (0, led.revision), "test")
    made.apply(Loaded())
    yield made, committer
    await committer.close()
    await store.close()


async def test_a_group_of_many_middling_batches_fits(service: tuple[Service, Committer]) -> None:
    _, committer = service
    each = ROOM_IN_A_TXN // 128 - 20
    written = [committer.submit({f"key{n:06d}": b"x" * each}) for n in range(300)]
    assert {await future for future in written} == {Outcome.CONFIRMED}
    assert not committer.fenced.is_set()


async def test_a_barrier_does_not_pass_when_the_leadership_is_over(tmp_path: Path) -> None:
    clock, leads = SystemClock(), [True]
    store = await SqliteStore.open(tmp_path / "store.db", clock=clock)
    led = await store.txn([Compare.absent(KEYS.leader)], [Put(KEYS.leader, b"n1")])
    fence = await take_writer(store, KEYS, led.revision, (0, led.revision), "first")
    committer = Committer(store, fence, clock, may_continue=lambda: leads[0])
    committer.start()
    assert await committer.submit({}) is Outcome.CONFIRMED
    leads[0] = False
    with pytest.raises(FencedError):
        await committer.submit({})
    await committer.close()
    await store.close()


async def test_a_node_that_is_to_start_much_hears_of_all_of_it() -> None:
    starts = tuple(
        AttemptStart(AttemptId(1, task, 1), "j1", ("true",), environment={"A": "x" * 100_000}) for task in range(256)
    )
    heard: list[str] = []
    leadership = SimpleNamespace(check=lambda: None, holds=lambda: True, lead=SimpleNamespace(epoch=(0, 1)))

    def apply(event: object) -> None:
        if isinstance(event, NodeRegistered):
            assert sessions.post("n1", *frame_of(SendDispatch("n1", starts), (0, 1)))

    sessions = AgentSessions(
        "test",
        "n0",
        leadership,
        None,
        SystemClock(),
        SimpleNamespace(apply=apply),
        2.0,  # type: ignore[arg-type]
    )

    async def greet(hello: Hello, _: Connection) -> Welcome:
        return Welcome(software_version="1", node="n0", epoch=(0, 1))

    server = FrameServer("127.0.0.1:0", greet, sessions.serve)
    await server.start()
    hello = Hello(software_version="1", cluster="test", node="n1", role="agent")
    agent, _ = await Connection.open(server.address, hello)
    await agent.send(Register(boot_id="boot-1", journal_id="j1", offer=offer("n1")))
    while len(heard) < len(starts):
        frame = await agent.receive()
        heard += [found.id for found in frame.attempts] if isinstance(frame, Dispatch) else []
    assert heard == [str(start.id) for start in starts]
    await agent.close()
    await server.close()


WHO = Identity("ada", 1000, 1000, operator=False)


@pytest.mark.parametrize("field", ["cwd", "stdout_path"])
async def test_a_job_is_measured_in_bytes(service: tuple[Service, Committer], field: str) -> None:
    made, committer = service
    desk = JobDesk(made, OutputStreams(lambda node, *frames: False), 1000)
    asked = SubmitBatch(jobs=[Submit(spec=spec(**{field: "/" + "\N{PILE OF POO}" * 400_000}))])
    with pytest.raises(InputError, match="bytes"):
        await desk.submit(asked, WHO, dry_run=False)
    assert not committer.fenced.is_set()


@pytest.mark.parametrize(
    "fields",
    [
        {"journal_id": "j" * 2_000_000},
        {"boot_id": "b" * 2_000_000},
        {"offer": offer("n1", label="\N{PILE OF POO}" * 400_000)},
    ],
)
async def test_no_node_can_register_with_what_cannot_be_stored(fields: dict[str, Any]) -> None:
    usual = {"boot_id": "boot-1", "journal_id": "j1", "offer": offer("n1")}

    async def receive() -> Register:
        return Register(**(usual | fields))

    applied: list[object] = []
    sessions = AgentSessions(
        "test",
        "n1",
        SimpleNamespace(),
        None,
        SystemClock(),
        SimpleNamespace(apply=applied.append),
        2.0,  # type: ignore[arg-type]
    )
    connection = SimpleNamespace(hello=SimpleNamespace(node="n1", software_version="1"), receive=receive)
    with pytest.raises(RefusedError):
        await sessions.serve(connection)  # type: ignore[arg-type]
    assert applied == []
