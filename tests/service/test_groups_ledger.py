"""The ledger of compute groups: one contract, on SQLite, on etcd where there is one, and in memory. And what only a
store has: answers that are lost, a leader that comes, history that is forgotten; and a provider over it."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from etcd_server import EtcdServer
from groups_world import offer
from memory_ledger import MemoryLedger, World

from lavalite.base.clock import SystemClock
from lavalite.base.errors import ConflictError, LavaLiteError
from lavalite.groups import ComputeGroupManager
from lavalite.groups.embedded import LedgerProvider
from lavalite.groups.errors import InsufficientResourcesError
from lavalite.groups.ledger import Changed, GroupLedger
from lavalite.groups.records import GroupRecord, Holder
from lavalite.groups.store_ledger import StoreLedger
from lavalite.model.resources import NodeOffer
from lavalite.store.base import Compare, OutcomeUnknown, Put, Store, StoreUnavailable, TxnResult, range_all
from lavalite.store.keys import Keys
from lavalite.store.open import StoreConfig, open_store

DEADLINE_SECONDS = 30.0
OpenStore = Callable[[], Awaitable[Store]]
OpenLedger = Callable[[], Awaitable[GroupLedger]]
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def etcd_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd.endpoints[0]


@pytest.fixture(params=["sqlite", pytest.param("etcd", marks=pytest.mark.etcd)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens the store once more, as another process would."""
    config = StoreConfig(kind="sqlite", path=tmp_path / "store.db")
    if request.param == "etcd":
        config = StoreConfig(kind="etcd", endpoints=(request.getfixturevalue("etcd_endpoint"),))
    async with AsyncExitStack() as stack:

        async def opened() -> Store:
            found = await open_store(config, SystemClock())
            stack.push_async_callback(found.close)
            return found

        yield opened


@pytest.fixture
def cluster() -> str:
    return uuid.uuid4().hex


@pytest.fixture(params=["memory", "sqlite", pytest.param("etcd", marks=pytest.mark.etcd)])
async def open_ledger(request: pytest.FixtureRequest, tmp_path: Path, cluster: str) -> AsyncIterator[OpenLedger]:
    """Opens the ledger once more, as another process would."""
    world = World()
    config = StoreConfig(kind="sqlite", path=tmp_path / "store.db")
    if request.param == "etcd":
        config = StoreConfig(kind="etcd", endpoints=(request.getfixturevalue("etcd_endpoint"),))
    async with AsyncExitStack() as stack:

        async def opened() -> GroupLedger:
            if request.param == "memory":
                return MemoryLedger(world)
            ledger = StoreLedger(await open_store(config, SystemClock()), cluster, clock=SystemClock())
            stack.push_async_callback(ledger.close)
            return ledger

        yield opened


def told(changed: Sequence[Changed]) -> dict[str, bytes | None]:
    assert len({key for key, _ in changed}) == len(changed), "each key once"
    return dict(changed)


async def records(ledger: GroupLedger, known: dict[str, bytes]) -> dict[str, bytes]:
    """All that there is, by who kept up with what `known` was."""
    for key, value in await ledger.sync():
        if value is None:
            known.pop(key, None)
        else:
            known[key] = value
    return known


# --- the contract ---------------------------------------------------------------------------------------------------


async def test_what_is_committed_is_told_to_others_once(open_ledger: OpenLedger) -> None:
    one, two = await open_ledger(), await open_ledger()
    assert await one.sync() == [] and await two.sync() == []
    assert await one.commit({"groups/a": b"1", "groups/b": b"2"})
    assert await one.commit({"groups/a": b"3"}, ["groups/b"]), "one's own needs no sync"
    assert await one.sync() == []
    assert told(await two.sync()) == {"groups/a": b"3", "groups/b": None}
    assert await two.sync() == []
    assert told(await (await open_ledger()).sync()) == {"groups/a": b"3"}


async def test_who_has_not_read_what_others_wrote_writes_nothing(open_ledger: OpenLedger) -> None:
    one, two = await open_ledger(), await open_ledger()
    await one.sync()
    await two.sync()
    assert await one.commit({"groups/a": b"1"})
    assert not await two.commit({"groups/b": b"1"}, ["groups/a"])
    assert not await two.commit({"groups/b": b"1"}), "nor the second time"
    assert told(await two.sync()) == {"groups/a": b"1"}
    assert await two.commit({"groups/b": b"2"}, ["groups/a"])
    assert told(await one.sync()) == {"groups/a": None, "groups/b": b"2"}


async def test_nothing_is_written_before_anything_was_read(open_ledger: OpenLedger) -> None:
    one = await open_ledger()
    assert not await one.commit({"groups/a": b"1"})
    assert await one.sync() == []


async def test_who_waits_wakes_when_another_one_writes(open_ledger: OpenLedger) -> None:
    one, two = await open_ledger(), await open_ledger()
    await one.sync()
    await two.sync()
    waiting = asyncio.create_task(two.wait(DEADLINE_SECONDS))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    assert await one.commit({"groups/a": b"1"})
    await asyncio.wait_for(waiting, DEADLINE_SECONDS)
    assert told(await two.sync()) == {"groups/a": b"1"}
    await two.wait(0.05)  # and no longer than it was told to


@pytest.mark.parametrize("seed", SEEDS)
async def test_several_that_write_at_once_all_see_the_same(open_ledger: OpenLedger, seed: int) -> None:
    """Each adds one to one of a few counters, as often as it can; no addition is lost."""
    print(f"seed {seed}")
    ledgers = [await open_ledger() for _ in range(4)]
    chance, each = random.Random(seed), 8

    async def count(ledger: GroupLedger) -> dict[str, bytes]:
        known = await records(ledger, {})
        for _ in range(each):
            key = f"groups/{chance.randrange(3)}"
            while True:
                value = str(int(known.get(key, b"0")) + 1).encode()
                if await ledger.commit({key: value}):
                    known[key] = value
                    break
                await records(ledger, known)
        return known

    async with asyncio.timeout(DEADLINE_SECONDS * 4):
        pictures = await asyncio.gather(*map(count, ledgers))
    for ledger, known in zip(ledgers, pictures, strict=True):
        await records(ledger, known)
    assert all(known == pictures[0] for known in pictures)
    assert sum(map(int, pictures[0].values())) == 4 * each
    assert await records(await open_ledger(), {}) == pictures[0]


# --- what only stores have ------------------------------------------------------------------------------------------


class Forgetful(Store):
    """Its answers are lost, before it has done what it was told, or after; or it is not there at all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lose: list[str] = []
        """What becomes of the next transactions: `before`, `after`, `down`, or `late`: done when we have asked."""
        self.transactions = self.reads = 0
        self._late: tuple[Sequence[Compare], Sequence[Put], Sequence[str]] | None = None
        self.late_succeeded: bool | None = None

    async def txn(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> TxnResult:
        self.transactions += 1
        how = self.lose.pop(0) if self.lose else ""
        if how == "down":
            raise StoreUnavailable("it is down")
        if how == "after":
            await self._store.txn(compares, puts, deletes)
        if how == "late":
            self._late = (compares, puts, deletes)
        if how:
            raise OutcomeUnknown("the answer is lost")
        result = await self._store.txn(compares, puts, deletes)
        if self._late is not None:
            late, self._late = self._late, None
            self.late_succeeded = (await self._store.txn(*late)).succeeded
        return result

    async def get(self, key: str) -> Any:
        self.reads += 1
        return await self._store.get(key)

    async def range(self, *arguments: Any, **named: Any) -> Any:
        self.reads += 1
        return await self._store.range(*arguments, **named)

    def watch(self, prefix: str, from_revision: int) -> Any:
        self.reads += 1
        return self._store.watch(prefix, from_revision)

    async def lease_grant(self, ttl_seconds: int) -> int:
        return await self._store.lease_grant(ttl_seconds)

    async def lease_keepalive(self, lease_id: int) -> int:
        return await self._store.lease_keepalive(lease_id)

    async def lease_revoke(self, lease_id: int) -> None:
        await self._store.lease_revoke(lease_id)

    async def compact(self, revision: int) -> None:
        await self._store.compact(revision)

    async def status(self) -> Any:
        return await self._store.status()

    async def close(self) -> None:
        await self._store.close()


@pytest.mark.parametrize(("how", "done"), [("before", False), ("after", True), ("late", False)])
async def test_an_answer_that_is_lost_is_found_out_about(
    store: OpenStore, cluster: str, how: str, done: bool
) -> None:
    forgetful = Forgetful(await store())
    one = StoreLedger(forgetful, cluster, clock=SystemClock())
    two = StoreLedger(await store(), cluster, clock=SystemClock())
    for first in (True, False):  # where there is no head yet, and where there is one
        await one.sync()
        await two.sync()
        forgetful.lose = [how]
        assert await one.commit({"groups/a": str(first).encode()}) == done
        assert forgetful.late_succeeded in (None, False), "what is late comes to nothing"
        assert (told(await two.sync()) == {"groups/a": str(first).encode()}) == done
        assert await one.sync() == []
        assert await one.commit({"groups/b": str(first).encode()}), "and it goes on"
        assert told(await two.sync())["groups/b"] == str(first).encode()


async def test_an_answer_is_lost_and_others_come_after(store: OpenStore, cluster: str) -> None:
    class Overtaken(Forgetful):
        async def txn(self, *arguments: Any, **named: Any) -> TxnResult:
            try:
                return await super().txn(*arguments, **named)
            except OutcomeUnknown:
                await two.sync()
                assert await two.commit({"groups/b": b"2"})
                raise

    forgetful = Overtaken(await store())
    one = StoreLedger(forgetful, cluster, clock=SystemClock())
    two = StoreLedger(await store(), cluster, clock=SystemClock())
    await one.sync()
    forgetful.lose = ["after"]
    assert await one.commit({"groups/a": b"1"})
    assert not await one.commit({"groups/c": b"1"}), "what others wrote since was not read"
    assert told(await one.sync())["groups/b"] == b"2"
    forgetful.lose = ["before"]
    assert not await one.commit({"groups/c": b"1"})
    await one.sync()
    assert await one.commit({"groups/c": b"1"})


async def test_a_store_that_is_down_does_nothing_and_says_so(store: OpenStore, cluster: str) -> None:
    forgetful = Forgetful(await store())
    one = StoreLedger(forgetful, cluster, clock=SystemClock())
    await one.sync()
    forgetful.lose = ["down"]
    with pytest.raises(StoreUnavailable):
        await one.commit({"groups/a": b"1"})
    assert await one.commit({"groups/a": b"2"})


async def test_a_store_that_a_system_runs_on_is_that_ones(store: OpenStore, cluster: str) -> None:
    raw = await store()
    one = StoreLedger(await store(), cluster, clock=SystemClock())
    await one.sync()
    assert await one.commit({"groups/a": b"1"})
    await raw.txn([], [Put(Keys(cluster).leader, b"lim")])
    assert not await one.commit({"groups/a": b"2"}), "a leader has come"
    for ledger in (one, StoreLedger(await store(), cluster, clock=SystemClock())):
        with pytest.raises(ConflictError, match="running system"):
            await ledger.sync()
    await raw.txn([], [], [Keys(cluster).leader])
    await one.sync()
    assert await one.commit({"groups/a": b"2"})


async def test_history_that_is_forgotten_is_read_anew(store: OpenStore, cluster: str) -> None:
    raw = await store()
    one = StoreLedger(await store(), cluster, clock=SystemClock())
    two = StoreLedger(await store(), cluster, clock=SystemClock())
    await one.sync()
    assert await one.commit({"groups/a": b"1", "groups/b": b"1"})
    await two.sync()
    for number in range(3):
        assert await one.commit({"groups/c": str(number).encode()}, ["groups/a"] if number == 1 else [])
    _, revision = await range_all(raw, f"/lavalite/{cluster}/")
    await raw.compact(revision)
    changed = told(await two.sync())
    assert changed["groups/a"] is None and changed["groups/c"] == b"2"
    assert await two.commit({"groups/d": b"1"})
    assert told(await one.sync()) == {"groups/d": b"1"}


# --- a provider over it ---------------------------------------------------------------------------------------------


class Provider(LedgerProvider):
    """One node with four GPUs, of which two serve parts; what is made is told, and may fail."""

    def __init__(self, ledger: GroupLedger, holder: Holder | None = None) -> None:
        super().__init__(ledger, clock=SystemClock(), holder=holder)
        self.made: list[tuple[str, bool]] = []
        self.fails = self.hangs = False
        self.hung = asyncio.Event()

    async def _discover(self) -> list[NodeOffer]:
        found = offer("n1", 4, cpu=8)
        for resource in found.resources:
            for device in resource.devices[2:]:
                device.attributes["mps"] = "yes"
        return [found]

    async def _make(self, record: GroupRecord) -> GroupRecord:
        self.made.append((record.id, True))
        if self.hangs:
            self.hung.set()
            await asyncio.Event().wait()
        if self.fails:
            raise LavaLiteError("MPS does not start")
        return record.model_copy(update={"instances": [f"MPS-{record.id}"]})

    async def _unmake(self, record: GroupRecord) -> None:
        self.made.append((record.id, False))

    def _environment(self, record: GroupRecord) -> dict[str, str]:
        return {"INSTANCES": ",".join(record.instances)}


OpenProvider = Callable[..., Awaitable[tuple[ComputeGroupManager, Provider]]]


@pytest.fixture
async def provider(open_ledger: OpenLedger) -> AsyncIterator[OpenProvider]:
    """Opens one more manager, over a provider of its own, as another process would."""
    async with AsyncExitStack() as stack:

        async def opened(holder: Holder | None = None) -> tuple[ComputeGroupManager, Provider]:
            made = Provider(await open_ledger(), holder)
            await made.start()
            return await stack.enter_async_context(ComputeGroupManager(made)), made

        yield opened


HALF = {"gpu": 0.5, "isolation": "mps"}


async def test_if_nobody_else_wrote_an_allocation_is_one_transaction(store: OpenStore, cluster: str) -> None:
    forgetful = Forgetful(await store())
    provider = Provider(StoreLedger(forgetful, cluster, clock=SystemClock()))
    await provider.start()
    async with ComputeGroupManager(provider) as manager:
        for _ in range(3):
            forgetful.transactions = forgetful.reads = 0
            group = await manager.allocate_compute_group("decode", {"gpu": 1})
            assert (forgetful.transactions, forgetful.reads) == (1, 0)
            await provider.deallocate_resources("decode", [group.id])
            assert (forgetful.transactions, forgetful.reads) == (2, 0)


async def test_what_is_made_beside_it_is_made_after_and_removed_before(provider: OpenProvider) -> None:
    manager, made = await provider()
    group = await manager.allocate_compute_group("small", HALF)
    assert made.made == [(group.id, True)]
    assert group.environment == {"INSTANCES": f"MPS-{group.id}"} and group.reason == ""
    await manager.deallocate_compute_group(group.id)
    assert made.made == [(group.id, True), (group.id, False)]
    assert await manager.list_compute_groups() == []


async def test_what_cannot_be_made_is_undone(provider: OpenProvider) -> None:
    manager, made = await provider()
    other, _ = await provider()
    made.fails = True
    with pytest.raises(LavaLiteError, match="MPS does not start"):
        await manager.allocate_compute_group("small", HALF)
    assert [is_made for _, is_made in made.made] == [True, False]
    assert await other.list_compute_groups() == []
    made.fails = False
    created = await manager.create_compute_group(HALF)
    made.fails = True
    with pytest.raises(LavaLiteError, match="MPS does not start"):
        await manager.create_compute_group(HALF)
    assert [group.id for group in await other.list_compute_groups()] == [created.id]


async def test_a_crash_between_is_cleared_up_by_whoever_comes(provider: OpenProvider) -> None:
    dead = Holder(boot_id="another", pid=1, start_ticks=1)
    manager, made = await provider(dead)
    made.hangs = True
    allocating = asyncio.create_task(manager.allocate_compute_group("small", HALF))
    await asyncio.wait_for(made.hung.wait(), DEADLINE_SECONDS)
    other, cleared = await provider()
    assert cleared.made == [(made.made[0][0], False)]
    assert await other.list_compute_groups() == []
    assert len((await other.allocate_compute_group("large", {"gpu": 4})).resources["gpus"]) == 4
    allocating.cancel()
    made.hangs = False
    await asyncio.wait([allocating], timeout=0.01)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if "_give" in str(task.get_coro()):
            task.cancel()
    await asyncio.gather(allocating, return_exceptions=True)


async def test_what_a_dead_process_had_is_free_again_when_it_is_wanted(provider: OpenProvider) -> None:
    gone, _ = await provider(Holder(boot_id="another", pid=1, start_ticks=1))
    await gone.allocate_compute_group("decode", {"gpu": 3})
    kept = await gone.allocate_compute_group("decode", {"gpu": 1}, {"lifetime": "manual"})
    manager, _ = await provider()
    assert [group.id for group in await manager.list_compute_groups()] == [kept.id]
    await gone.allocate_compute_group("decode", {"gpu": 3})
    assert len((await manager.allocate_compute_group("large", {"gpu": 3})).resources["gpus"]) == 3
    with pytest.raises(InsufficientResourcesError):
        await manager.allocate_compute_group("large", {"gpu": 1})


async def test_who_is_cancelled_has_nothing(provider: OpenProvider) -> None:
    manager, _ = await provider()
    for _ in range(10):
        allocating = asyncio.create_task(manager.allocate_compute_group("decode", {"gpu": 4}))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        allocating.cancel()
        await asyncio.gather(allocating, return_exceptions=True)
        assert await manager.list_compute_groups() == []


async def test_who_waits_gets_it_when_another_process_gives_it_back(provider: OpenProvider) -> None:
    manager, _ = await provider()
    other, made = await provider()
    full = await manager.allocate_compute_group("old", {"gpu": 4})
    waiting = asyncio.create_task(other.allocate_compute_group("decode", {"gpu": 4}, {"wait": "60s"}))

    async def waits() -> bool:
        await manager.list_compute_groups()
        return bool(manager.provider.picture.waiting)  # type: ignore[attr-defined]

    await until(waits)
    await manager.deallocate_compute_group(full.id)
    with pytest.raises(InsufficientResourcesError) as refused:
        await manager.allocate_compute_group("thief", {"gpu": 4})
    assert refused.value.reasons
    group = await asyncio.wait_for(waiting, DEADLINE_SECONDS)
    assert group.component == "decode" and not made.picture.waiting
    with pytest.raises(InsufficientResourcesError):
        await other.allocate_compute_group("decode", {"gpu": 4}, {"wait": 1})
    assert not made.picture.waiting


async def test_watchers_are_told_what_other_processes_do(provider: OpenProvider) -> None:
    manager, _ = await provider()
    other, _ = await provider()
    seen: list[dict[str, Any]] = []

    async def listen() -> None:
        async for change in manager.watch():
            seen.append(change)  # noqa: PERF401 - one after the other, as they come

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    group = await other.allocate_compute_group("decode", {"gpu": 1})

    async def allocated() -> bool:
        return any(c["id"] == group.id and c["state"] == "allocated" for c in seen)

    await until(allocated)
    await other.deallocate_compute_group(group.id)

    async def gone() -> bool:
        return any(c["id"] == group.id and c["state"] == "gone" and c["group"] is None for c in seen)

    await until(gone)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


@pytest.mark.parametrize("seed", SEEDS)
async def test_two_that_allocate_at_once_never_share_a_device(provider: OpenProvider, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    managers = [(await provider())[0] for _ in range(3)]
    held: dict[str, str] = {}

    async def play(manager: ComputeGroupManager, name: str) -> None:
        mine = []
        for _ in range(12):
            if mine and chance.random() < 0.5:
                group = mine.pop(chance.randrange(len(mine)))
                for device in group.resources["gpus"]:
                    assert held.pop(device["id"]) == group.id
                await manager.deallocate_compute_group(group.id)
                continue
            try:
                group = await manager.allocate_compute_group(name, {"gpu": chance.choice([1, 2])})
            except InsufficientResourcesError:
                continue
            for device in group.resources["gpus"]:
                assert device["id"] not in held, "given out twice"
                held[device["id"]] = group.id
            mine.append(group)
        for group in mine:
            for device in group.resources["gpus"]:
                held.pop(device["id"])
            await manager.deallocate_compute_group(group.id)

    async with asyncio.timeout(DEADLINE_SECONDS * 4):
        await asyncio.gather(*(play(manager, f"p{at}") for at, manager in enumerate(managers)))
    summary = await managers[0].get_allocation_summary()
    assert summary["resources"]["gpu_milli"] == {"capacity": 4000, "free": 4000}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS:g} s"
        await asyncio.sleep(0.02)
