"""The ledger of compute groups: one contract, on SQLite, on etcd where there is one, and in memory. And what only a
store has: answers that are lost, a leader that comes, history that is forgotten."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import groups_ledgers
import pytest
from forgetful_store import Forgetful
from groups_ledgers import DEADLINE_SECONDS, SEEDS, OpenLedger, OpenStore

from lavalite.base.clock import SystemClock
from lavalite.base.errors import ConflictError
from lavalite.groups.ledger import Changed, GroupLedger
from lavalite.groups.store_ledger import StoreLedger
from lavalite.store.base import OutcomeUnknown, Put, StoreUnavailable, TxnResult, range_all
from lavalite.store.keys import Keys

etcd_endpoint, store, cluster = groups_ledgers.etcd_endpoint, groups_ledgers.store, groups_ledgers.cluster
open_ledger = groups_ledgers.open_ledger


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
