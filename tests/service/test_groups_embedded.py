"""A provider of compute groups over any ledger: one transaction, what is made beside it, crashes between, who waits,
who watches; several of them on one store."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import groups_ledgers
import pytest
from forgetful_store import Forgetful
from groups_ledgers import DEADLINE_SECONDS, SEEDS, OpenLedger, OpenStore
from groups_world import offer

from lavalite.base.clock import SystemClock
from lavalite.base.errors import LavaLiteError
from lavalite.groups import ComputeGroupManager
from lavalite.groups.embedded import LedgerProvider
from lavalite.groups.errors import InsufficientResourcesError
from lavalite.groups.ledger import GroupLedger
from lavalite.groups.records import GroupRecord, Holder
from lavalite.groups.store_ledger import StoreLedger
from lavalite.model.resources import NodeOffer

etcd_endpoint, store, cluster = groups_ledgers.etcd_endpoint, groups_ledgers.store, groups_ledgers.cluster
open_ledger = groups_ledgers.open_ledger


class Provider(LedgerProvider):
    """One node with four GPUs, of which two serve parts; what is made is told, and may fail."""

    def __init__(self, ledger: GroupLedger, holder: Holder | None = None) -> None:
        super().__init__(ledger, clock=SystemClock(), holder=holder)
        self.made: list[tuple[str, bool]] = []
        self.fails = self.hangs = self.stuck = False
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
        if self.stuck:
            raise LavaLiteError("it is in use still")
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
    kept = await other.reserve("decode", {"gpu": 1}, timeout_seconds=1)

    async def run_out() -> bool:
        return any(c["id"] == kept.id and c["state"] == "gone" for c in seen)

    await until(run_out)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def test_very_many_run_out_and_are_drained_at_once(provider: OpenProvider) -> None:
    manager, made = await provider()
    for _ in range(130):
        await manager.reserve("decode", {"cpu": 0.01}, timeout_seconds=2)
    deadline = made._clock.now() + 2

    async def over() -> bool:
        return made._clock.now() >= deadline

    await until(over)
    assert await manager.list_compute_groups() == []
    groups = [await manager.allocate_compute_group("decode", {"cpu": 0.01}) for _ in range(130)]
    assert await made.drain_resources([group.id for group in groups])
    assert {group.allocation_state for group in await manager.list_compute_groups()} == {"draining"}
    assert await made.deallocate_resources("decode", [group.id for group in groups])
    assert await manager.list_compute_groups() == []


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


async def test_what_another_provider_of_the_process_makes_is_let_alone(provider: OpenProvider) -> None:
    manager, made = await provider()
    made.hangs = True
    allocating = asyncio.create_task(manager.allocate_compute_group("small", HALF))
    await asyncio.wait_for(made.hung.wait(), DEADLINE_SECONDS)
    other, second = await provider()
    assert [group.id for group in await other.list_compute_groups()] == [made.made[0][0]] and second.made == []
    for task in asyncio.all_tasks() - {asyncio.current_task(), allocating}:
        if "_give" in str(task.get_coro()):
            task.cancel()
    await asyncio.gather(allocating, return_exceptions=True)
    assert await other.list_compute_groups() == [], "nobody makes it any more"


async def test_what_could_not_be_removed_is_removed_later(provider: OpenProvider) -> None:
    manager, made = await provider()
    group = await manager.allocate_compute_group("small", HALF)
    made.stuck = True
    with pytest.raises(LavaLiteError, match="in use still"):
        await manager.deallocate_compute_group(group.id)
    assert [each.id for each in await manager.list_compute_groups()] == [group.id], "and nobody else is stopped by it"
    made.stuck = False
    assert await manager.list_compute_groups() == []


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS:g} s"
        await asyncio.sleep(0.02)
