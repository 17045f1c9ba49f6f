"""Parts of the scheduler service by themselves: pages, output, changes, and what happens before what."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster import until
from control_world import KEYS, offer
from hypothesis import given
from hypothesis import strategies as st

from lavalite.api.models import DefinitionPut, EntryPut, Host
from lavalite.base.clock import ManualClock, SystemClock
from lavalite.base.errors import FencedError, InputError, LavaLiteError, UnknownNameError, UnreachableError
from lavalite.base.steady import SteadyTime
from lavalite.control import events
from lavalite.control.settings import Settings
from lavalite.control.state import ClusterState
from lavalite.ledger.committer import Committer
from lavalite.ledger.fence import take_writer
from lavalite.mbatchd.changes import MAX_REMEMBERED, MAX_WAITING, Changes
from lavalite.mbatchd.definition import DefinitionDesk, go_on_removing
from lavalite.mbatchd.hosts import HostDesk
from lavalite.mbatchd.hosts_here import HostNews
from lavalite.mbatchd.identity import Identity
from lavalite.mbatchd.jobs import MAX_NAMED_TASKS, JobDesk
from lavalite.mbatchd.output import MAX_PIECES, MAX_STREAMS_EACH, OutputStreams
from lavalite.mbatchd.paging import paged
from lavalite.mbatchd.service import Service
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.job import Array, JobRecord, JobSpec
from lavalite.store.base import Put
from lavalite.store.sqlite import SqliteStore
from lavalite.wire.frames import AnyFrame, CancelRead, Dispatch, HostsHere, Output, Read, ReportAck

EPOCH = (0, 1)


# --- pages ----------------------------------------------------------------------------------------------------


@given(st.sets(st.text(max_size=3), max_size=30), st.integers(1, 5), st.sampled_from(["", "a"]))
def test_pages_hold_each_kept_item_once_and_in_order(names: set[str], limit: int, dropped: str) -> None:
    wanted = sorted(name for name in names if name and not (dropped and name.startswith(dropped)))
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = paged(sorted(names - {""}), str, limit, cursor, keep=lambda n: not (dropped and n.startswith(dropped)))
        assert len(page.items) <= limit
        seen, cursor = [*seen, *page.items], page.next_cursor
    assert seen == wanted


def test_a_page_makes_no_more_items_than_it_needs() -> None:
    made = []

    def items() -> Iterator[str]:
        for name in "abcdef":
            made.append(name)
            yield name

    assert paged(items(), str, 2, "").next_cursor == "b"
    assert made == ["a", "b", "c"]


# --- output ---------------------------------------------------------------------------------------------------


class Agent:
    """Takes what is posted to node n1; `gone` while it is not connected."""

    def __init__(self) -> None:
        self.got: list[AnyFrame] = []
        self.gone = False
        self.streams = OutputStreams(self.post)

    def post(self, node: str, *frames: AnyFrame) -> bool:
        if not self.gone:
            self.got += frames
        return not self.gone

    def say(self, text: bytes = b"", *, ended: bool = False, error: str = "") -> None:
        asked = next(f for f in reversed(self.got) if isinstance(f, Read))
        data = base64.b64encode(text).decode()
        self.streams.take(
            "n1", Output(stream_id=asked.stream_id, offset=0, data_base64=data, ended=ended, error=error)
        )

    def read(self, reader: str = "ann") -> AsyncGenerator[bytes, None]:
        return self.streams.read("n1", EPOCH, "1.0.1", "stdout", follow=True, reader=reader)


async def test_a_slow_reader_is_cut_off_and_the_agent_told() -> None:
    agent = Agent()
    pieces = agent.read()
    first = asyncio.ensure_future(anext(pieces))
    await asyncio.sleep(0)
    for _ in range(MAX_PIECES + 50):
        agent.say(b"x")
    assert await first == b"x"
    with pytest.raises(LavaLiteError, match="too slow"):
        async for _ in pieces:
            pass
    assert isinstance(agent.got[-1], CancelRead)


async def test_a_reader_is_told_when_the_node_goes_and_what_the_agent_says_is_wrong() -> None:
    agent = Agent()
    for happens, error in [
        (lambda: agent.streams.node_gone("n1"), UnreachableError),
        (lambda: agent.say(error="no such attempt"), LavaLiteError),
        (lambda: agent.say(b"x" * 200_000), LavaLiteError),
    ]:
        pieces = agent.read()
        first = asyncio.ensure_future(anext(pieces))
        await asyncio.sleep(0)
        happens()
        with pytest.raises(error):
            await first
    agent.gone = True
    with pytest.raises(UnreachableError, match="not connected"):
        await anext(agent.read())


async def test_nobody_keeps_the_others_from_reading() -> None:
    agent = Agent()
    waiting = [asyncio.ensure_future(anext(agent.read())) for _ in range(MAX_STREAMS_EACH)]
    await asyncio.sleep(0)
    with pytest.raises(LavaLiteError, match="too many"):
        await anext(agent.read())
    other = asyncio.ensure_future(anext(agent.read("bob")))
    await asyncio.sleep(0)
    agent.say(b"for bob")
    assert await other == b"for bob"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    again = asyncio.ensure_future(anext(agent.read()))
    await asyncio.sleep(0)
    agent.say(b"room again")
    assert await again == b"room again"


# --- the service: what is durable before what -----------------------------------------------------------------


@dataclass
class World:
    """A service over a store whose transactions wait while `through` is not set."""

    service: Service
    state: ClusterState
    committer: Committer
    store: SqliteStore
    through: asyncio.Event
    clock: ManualClock
    sent: list[AnyFrame] = field(default_factory=list)

    def register(self, node: str = "n1", *attempts: events.AttemptReported) -> None:
        self.service.apply(events.NodeRegistered(node, "boot-1", "j1", offer(node), attempts))

    def acks(self) -> list[int]:
        return [frame.seq for frame in self.sent if isinstance(frame, ReportAck)]

    async def settled(self) -> None:
        async with asyncio.timeout(60):
            await self.committer.drain()
            for _ in range(3):
                await asyncio.sleep(0)

    def submit(self, **fields: Any) -> asyncio.Future[None]:
        spec = JobSpec(command=["true"], **fields)
        record = JobRecord(id=self.state.next_job_id(), spec=spec, submitted_at=0.0)
        return self.service.apply(events.Submitted(record))


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    clock, through = ManualClock(), asyncio.Event()
    store = await SqliteStore.open(tmp_path / "store.db", clock=SystemClock())
    leads = (await store.txn([], [Put(KEYS.leader, b"n1")])).revision
    fence = await take_writer(store, KEYS, leads, EPOCH, "test")
    txn = store.txn

    async def slow(*asked: Any) -> Any:
        await through.wait()
        return await txn(*asked)

    monkeypatch.setattr(store, "txn", slow)
    state = ClusterState(KEYS, EPOCH)
    committer = Committer(store, fence, SystemClock(), window_seconds=0)
    world = World(
        Service(state, committer, SteadyTime(clock), EPOCH, "test"), state, committer, store, through, clock
    )

    def post(node: str, *frames: AnyFrame) -> bool:
        world.sent.extend(frames)
        return True

    world.service.connect(post, lambda node, reason: None)
    committer.start()
    yield world
    await committer.close()
    await store.close()


async def test_what_is_asked_twice_is_answered_twice_only_when_it_is_durable(world: World) -> None:
    world.submit(hold=True)
    asks = [asyncio.ensure_future(world.service.obey(events.HoldRequested(1))) for _ in range(2)]
    asks += [asyncio.ensure_future(world.service.obey(events.ReleaseRequested(99)))]
    await asyncio.sleep(0.02)
    assert not any(ask.done() for ask in asks), "also the second, by which nothing changes"
    world.through.set()
    async with asyncio.timeout(60):
        await asyncio.gather(*asks)
    assert await world.store.get(KEYS.job(1)) is not None


async def test_who_waits_hears_that_it_did_not_become_durable(world: World) -> None:
    written, asked = world.submit(), asyncio.ensure_future(world.service.obey(events.CancelRequested(1)))
    await asyncio.sleep(0)
    await world.committer.close()
    for waiting in (written, asked):
        with pytest.raises(FencedError):
            await waiting
    with pytest.raises(FencedError):
        await world.service.obey(events.HoldRequested(1))


async def test_a_report_is_acknowledged_when_it_is_durable(world: World) -> None:
    world.register()
    world.service.apply(events.NodeReported("n1", 1, ()))
    await asyncio.sleep(0.02)
    assert world.acks() == []
    world.through.set()
    await world.settled()
    assert world.acks() == [0, 1]


async def test_a_new_session_never_hears_what_an_earlier_one_was_told(world: World) -> None:
    """Each session counts its reports from 1: an old session's ack would stand for something else."""
    world.register()
    world.service.apply(events.NodeReported("n1", 1, ()))
    world.service.apply(events.NodeReported("n1", 2, ()))
    world.service.apply(events.NodeDisconnected("n1"))
    world.register()
    world.register("n2")
    world.service.apply(events.NodeReported("n1", 1, ()))
    world.through.set()
    await world.settled()
    assert world.acks() == [0, 0, 1], "of the second session of n1, and the registering of n2"


async def test_a_dispatch_waits_for_its_commitment(world: World) -> None:
    world.service.apply(events.Loaded())
    world.register()
    world.submit()
    await asyncio.sleep(0.02)
    assert not any(isinstance(frame, Dispatch) for frame in world.sent)
    world.through.set()
    await world.settled()
    assert sum(isinstance(frame, Dispatch) for frame in world.sent) == 1


async def test_only_the_next_wake_is_remembered(world: World) -> None:
    """A job of next year and a thousand that back off in between leave one time to remember, and not a thousand."""
    world.through.set()
    world.submit(not_before=world.clock.now() + 1e7)
    running = asyncio.ensure_future(world.service.run())
    for _ in range(20):
        world.submit(not_before=world.clock.now() + 5)
        world.clock.advance(6)
        await asyncio.sleep(0.002)
    job = world.state.jobs[21]

    async def awake() -> bool:
        return not job.sleeping

    await until(awake, 5, "the last of them is ready")
    assert world.state.jobs[1].sleeping
    assert world.service._wake_at == pytest.approx(1_000_000 + 1e7)
    running.cancel()


async def test_a_large_job_is_cancelled_while_others_have_their_turn(world: World) -> None:
    world.state.settings = Settings(max_cancels=4)
    who = Identity("root", 0, 0, operator=True)
    desk = JobDesk(world.service, OutputStreams(lambda node, *frames: False), 1000)
    world.through.set()
    world.submit(array=Array(first=1, last=11))
    with pytest.raises(InputError, match="too many"):
        await desk.cancel(1, [1] * (MAX_NAMED_TASKS + 1), who, force=False)
    await desk.cancel(1, None, who, force=False)
    stored = await world.store.get(KEYS.task_chunk(1, 0))
    assert stored is not None and b'"cancelling":true' in stored.value and b"XXXXPPPPPPP" in stored.value
    running = asyncio.ensure_future(world.service.run())
    async with asyncio.timeout(60):
        await desk.cancel(1, None, who, force=True)
    assert not world.state.jobs[1].unfinished and world.state.unfinished_tasks == 0
    running.cancel()


# --- hosts that are to go -------------------------------------------------------------------------------------


async def test_a_purge_that_a_crash_cut_short_is_gone_on_with(world: World) -> None:
    """The definition is written first, the hosts after it: by the new leader where the old one did not get there."""

    async def planned(*asked: object) -> list[Host]:
        return []

    desk = DefinitionDesk(world.service, SimpleNamespace(planned=planned, hosts=list), "test")  # type: ignore[arg-type]
    world.through.set()

    async def apply(text: str, *, purge: bool) -> bool:
        put = DefinitionPut(text="cluster: test\n" + text, purge=purge)
        return (await desk.apply(put, dry_run=False)).changed

    world.state.set_host(host("x-1", "n1"))
    world.state.set_host(host("x-2", "n1"))
    assert await apply("logical_hosts: {x: {cpu: 1, count: 2}}", purge=False)
    assert await apply("logical_hosts: {x: {cpu: 1, count: 1}}", purge=False)
    assert world.state.hosts["x-2"].state is HostState.COMPOSED, "without purge it is left alone"
    assert await apply("logical_hosts: {x: {cpu: 1, count: 1}}", purge=True), "now it is to go"
    assert not await apply("logical_hosts: {x: {cpu: 1, count: 1}}", purge=True)
    assert desk.current().version == 3 and "x-2" not in world.state.hosts

    after = ClusterState(KEYS, EPOCH)
    after.document = world.state.document
    after.restore_hosts([host("x-1", "n1"), host("x-2", "n1")])
    after.restore_specs(world.state.specs)
    next_one = Service(after, world.committer, SteadyTime(world.clock), EPOCH, "test")
    go_on_removing(next_one)
    assert set(after.hosts) == {"x-1"}


async def test_an_entry_may_be_reserved_and_is_composed_when_it_is_applied(world: World) -> None:
    """What is asked of a host is durable before it is answered, and one that is not there is refused by name."""

    async def planned(*asked: object) -> list[Host]:
        return []

    desk = DefinitionDesk(world.service, SimpleNamespace(planned=planned, hosts=list), "test")  # type: ignore[arg-type]
    hosts = HostDesk(world.service)
    world.through.set()
    world.service.apply(events.NodeRegistered("n1", "boot-1", "j", offer("n1")))
    reserved = EntryPut(spec={"cpu": 1}, reserve_seconds=60)
    await desk.put_entry("hosts", "x", reserved, dry_run=True)
    assert "x" not in world.state.hosts
    await desk.put_entry("hosts", "x", reserved, dry_run=False)
    await world.service.settled()
    assert world.state.hosts["x"].state is HostState.RESERVED and world.state.book.committed("n1", "cpu") == 1000
    assert (await hosts.apply("x", dry_run=True)).state is HostState.RESERVED
    await hosts.apply("x", dry_run=False)
    assert world.state.hosts["x"].state is HostState.COMPOSED
    assert (await hosts.drain("x", undo=False, dry_run=True)).drained and not world.state.hosts["x"].drained
    assert (await hosts.drain("x", undo=False, dry_run=False)).drained
    stored = await world.store.get(KEYS.host("x"))
    assert stored is not None and b'"drained":true' in stored.value
    with pytest.raises(UnknownNameError, match="no host y"):
        await hosts.drain("y", undo=False, dry_run=False)
    with pytest.raises(InputError, match="only logical hosts"):
        await desk.put_entry("queues", "q", reserved, dry_run=False)


async def test_an_entry_that_is_written_without_a_reservation_is_composed(world: World) -> None:
    """Also where its reservation ran out, and by no other entry of that name."""

    async def planned(*asked: object) -> list[Host]:
        return []

    desk = DefinitionDesk(world.service, SimpleNamespace(planned=planned, hosts=list), "test")  # type: ignore[arg-type]
    world.through.set()
    world.service.apply(events.NodeRegistered("n1", "boot-1", "j", offer("n1")))
    await desk.put_entry("hosts", "x", EntryPut(spec={"cpu": 1}, reserve_seconds=60), dry_run=False)
    await world.service.settled()
    await desk.put_entry("queues", "x", EntryPut(spec={}), dry_run=False)
    await world.service.settled()
    assert world.state.hosts["x"].state is HostState.RESERVED
    world.clock.advance(61)
    world.service.apply(events.NodeRegistered("n1", "boot-1", "j", offer("n1")))
    world.service.apply(events.Tick())
    await world.service.settled()
    assert world.state.hosts["x"].state is HostState.PLANNED and not world.state.hosts["x"].parts
    await desk.put_entry("hosts", "x", EntryPut(spec={"cpu": 1}), dry_run=False)
    await world.service.settled()
    assert world.state.hosts["x"].state is HostState.COMPOSED


# --- what is told -------------------------------------------------------------------------------------------


def host(name: str, anchor: str, state: HostState = HostState.COMPOSED, version: int = 1) -> LogicalHost:
    return LogicalHost(name=name, state=state, anchor=anchor, parts=[], version=version)


def test_a_node_is_told_of_its_hosts_when_they_change_and_of_nothing_else() -> None:
    state, told = ClusterState(KEYS, EPOCH), []

    def post(node: str, *frames: AnyFrame) -> bool:
        told.extend((node, [h.name for h in f.hosts]) for f in frames if isinstance(f, HostsHere))
        return True

    news = HostNews(state, EPOCH, post)

    def heard(event: events.Event | None = None) -> list[tuple[str, list[str]]]:
        told.clear()
        news.heard(event or events.Tick())
        return list(told)

    assert heard() == []
    state.set_host(host("b", "n1"))
    state.set_host(host("a", "n1"))
    state.set_host(host("c", "n2", HostState.COMPOSING))
    assert heard() == [("n1", ["a", "b"])]
    assert heard() == []
    state.set_host(host("c", "n2"))
    assert heard() == [("n2", ["c"])]
    state.set_host(host("a", "n2", version=2))
    assert heard() == [("n1", ["b"]), ("n2", ["a", "c"])]
    assert heard(events.NodeRegistered("n3", "", "", offer("n3"))) == [("n3", [])]
    assert heard(events.NodeRegistered("n2", "", "", offer("n2"))) == [("n2", ["a", "c"])]
    state.remove_host("c")
    state.set_host(host("d", "n1"))
    assert heard() == [("n1", ["b", "d"]), ("n2", ["a"])]


async def test_changes_are_told_to_who_follows_until_they_fall_behind() -> None:
    clock, state = ManualClock(), ClusterState(KEYS, EPOCH)
    changes = Changes(state, SteadyTime(clock))
    changes.heard(events.NodeDisconnected("n0"))  # nobody listens
    async with aclosing(changes.follow(quiet_seconds=0.01)) as following:
        assert await anext(following) is None
        state.set_host(host("a", "n1"))
        changes.heard(events.NodeDisconnected("n1"))
        found = [await anext(following), await anext(following)]
        assert [(c.kind, c.name, c.state) for c in found if c] == [
            ("node", "n1", "disconnected"),
            ("host", "a", "composed"),
        ]
        state.remove_host("a")
        for _ in range(MAX_WAITING + 5):
            changes.heard(events.NodeDisconnected("n1"))
        seen = [change async for change in following]
    assert len(seen) == MAX_WAITING
    assert changes._listeners == set()


def all_of(_: object) -> bool:
    return True


async def test_changes_that_are_remembered_are_read_on_from_a_cursor() -> None:
    clock, state = ManualClock(), ClusterState(KEYS, EPOCH)
    changes = Changes(state, SteadyTime(clock))
    for name in ("n1", "n2", "n3"):
        changes.heard(events.NodeDisconnected(name))
    first = await changes.recent("", all_of, 2, 0)
    assert ([c.name for c in first.items], first.missed) == (["n1", "n2"], False)
    rest = await changes.recent(first.cursor, lambda c: c.name != "n2", 2, 0)
    assert [c.name for c in rest.items] == ["n3"]
    assert (await changes.recent(rest.cursor, all_of, 2, 0)).items == []
    assert (await changes.recent("now", all_of, 2, 0)).cursor == rest.cursor
    for _ in range(MAX_REMEMBERED):
        changes.heard(events.NodeDisconnected("n4"))
    assert (await changes.recent(first.cursor, all_of, 1, 0)).missed
    with pytest.raises(InputError, match="is no cursor"):
        await changes.recent("yesterday", all_of, 1, 0)


async def test_a_cursor_of_another_leader_says_that_something_may_be_missed() -> None:
    state = ClusterState(KEYS, EPOCH)
    page = await Changes(state, SteadyTime(ManualClock())).recent("", all_of, 1, 0)
    other = Changes(ClusterState(KEYS, (EPOCH[0], EPOCH[1] + 1)), SteadyTime(ManualClock()))
    other.heard(events.NodeDisconnected("n1"))
    after = await other.recent(page.cursor, all_of, 5, 0)
    assert ([c.name for c in after.items], after.missed) == (["n1"], True)


async def test_who_waits_for_a_change_hears_it_and_waits_no_longer_than_was_said() -> None:
    changes = Changes(ClusterState(KEYS, EPOCH), SteadyTime(ManualClock()))
    assert (await changes.recent("now", all_of, 5, 0.01)).items == []
    waiting = asyncio.ensure_future(changes.recent("now", lambda c: c.name == "n2", 5, 60))
    await asyncio.sleep(0)
    changes.heard(events.NodeDisconnected("n1"))
    changes.heard(events.NodeDisconnected("n2"))
    assert [c.name for c in (await waiting).items] == ["n2"]
    waiting = asyncio.ensure_future(changes.recent("now", all_of, 5, 60))
    await asyncio.sleep(0)
    changes.end()
    assert (await waiting).items == []
