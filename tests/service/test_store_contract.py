"""The store contract, run on every implementation."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from etcd_server import EtcdServer
from store_watching import Watching

from lavalite.base.clock import SystemClock
from lavalite.store.base import (
    Compacted,
    Compare,
    LeaseLost,
    Put,
    Store,
    TxnResult,
    range_all,
)
from lavalite.store.open import StoreConfig, open_store

WRITER = Path(__file__).with_name("store_writer.py")


class Place:
    """One place where records are kept, to be opened as often as a test likes."""

    def __init__(self, kind: str, target: str) -> None:
        self.kind = kind
        self.target = target
        self.prefix = f"/t/{uuid.uuid4().hex}/"
        self._stack = AsyncExitStack()

    async def open(self) -> Store:
        if self.kind == "sqlite":
            config = StoreConfig(kind="sqlite", path=Path(self.target))
        else:
            config = StoreConfig(kind="etcd", endpoints=(self.target,))
        store = await open_store(config, SystemClock())
        self._stack.push_async_callback(store.close)
        return store

    async def writer(self, count: int) -> asyncio.subprocess.Process:
        arguments = (str(WRITER), self.kind, self.target, self.prefix, str(count))
        return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture(scope="module")
def etcd_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd.endpoints[0]


@pytest.fixture(params=["sqlite", pytest.param("etcd", marks=pytest.mark.etcd)])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    is_etcd = request.param == "etcd"
    target = request.getfixturevalue("etcd_endpoint") if is_etcd else str(tmp_path / "store.db")
    place = Place(request.param, target)
    yield place
    await place.close()


@pytest.fixture
async def store(place: Place) -> Store:
    return await place.open()


async def put(store: Store, key: str, value: bytes = b"", lease_id: int = 0) -> int:
    result = await store.txn([], [Put(key, value, lease_id)])
    assert result.succeeded
    return result.revision


# --- records -----------------------------------------------------------------------------------------------------


async def test_a_record_carries_its_revisions(place: Place, store: Store) -> None:
    key = place.prefix + "ключ"
    assert await store.get(key) is None
    created = await put(store, key, b"one")
    changed = await put(store, key, b"\x00\xff")
    record = await store.get(key)
    assert record is not None
    assert (record.key, record.value, record.lease_id) == (key, b"\x00\xff", 0)
    assert (record.create_revision, record.mod_revision) == (created, changed)
    assert created > 0
    assert changed == created + 1


async def test_a_key_made_again_has_a_new_create_revision(place: Place, store: Store) -> None:
    key = place.prefix + "k"
    await put(store, key)
    await store.txn([], deletes=[key])
    again = await put(store, key)
    record = await store.get(key)
    assert record is not None
    assert record.create_revision == again


@pytest.mark.parametrize("target", ["absent", "created_at", "unchanged", "equals"])
async def test_compare_and_set(place: Place, store: Store, target: str) -> None:
    key, other = place.prefix + "k", place.prefix + "other"
    created = await put(store, key, b"v1")
    changed = await put(store, key, b"v2")
    holds, fails = {
        "absent": (Compare.absent(other), Compare.absent(key)),
        "created_at": (Compare.created_at(key, created), Compare.created_at(key, changed)),
        "unchanged": (Compare.unchanged(key, changed), Compare.unchanged(key, created)),
        "equals": (Compare.equals(key, b"v2"), Compare.equals(key, b"v1")),
    }[target]
    refused = await store.txn([holds, fails], [Put(other, b"x")])
    assert refused == TxnResult(False, changed)
    assert await store.get(other) is None
    assert await store.txn([holds], [Put(other, b"x")]) == TxnResult(True, changed + 1)


async def test_an_absent_key_has_revisions_zero_and_equals_no_value(place: Place, store: Store) -> None:
    key = place.prefix + "absent"
    assert (await store.txn([Compare.unchanged(key, 0), Compare.created_at(key, 0)])).succeeded
    assert not (await store.txn([Compare.equals(key, b"")])).succeeded


async def test_what_changes_nothing_takes_no_revision(place: Place, store: Store) -> None:
    revision = await put(store, place.prefix + "k")
    assert await store.txn([]) == TxnResult(True, revision)
    assert await store.txn([], deletes=[place.prefix + "absent"]) == TxnResult(True, revision)


async def test_bad_transactions_are_refused_before_they_are_sent(place: Place, store: Store) -> None:
    before = (await store.status()).revision
    key, most = place.prefix + "k", store.max_txn_operations
    bad = [
        ([], [Put(key, b""), Put(key, b"")], []),
        ([], [Put(key, b"")], [key]),
        ([], [Put(f"{key}{n}", b"") for n in range(most)], [key]),
        ([Compare.absent(f"{key}{n}") for n in range(most + 1)], [], []),
        ([], [Put("", b"")], []),
        ([], [Put(key, b"x" * 2_000_000)], []),
    ]
    for compares, puts, deletes in bad:
        with pytest.raises(ValueError, match=r"twice|at most|empty"):
            await store.txn(compares, puts, deletes)
    assert (await store.status()).revision == before
    full = await store.txn(
        [Compare.absent(f"{key}{n}") for n in range(most)], [Put(f"{key}{n}", b"x" * 7000) for n in range(most)]
    )
    assert full.succeeded


# --- pages -------------------------------------------------------------------------------------------------------


async def test_pages_are_of_one_revision_while_others_write(place: Place, store: Store) -> None:
    keys = [f"{place.prefix}{n:04d}" for n in range(300)]
    for start in range(0, 300, 100):
        await store.txn([], [Put(key, b"old") for key in keys[start : start + 100]])
    await put(store, place.prefix[:-1] + "0beyond", b"a sibling of the prefix")
    other = await place.open()
    page = await store.range(place.prefix, limit=7)
    records, revision = list(page.records), page.revision
    numbers = random.Random(1)
    while page.next_after is not None:
        changed, gone = numbers.sample(keys, 2)
        await other.txn([], [Put(changed, b"new"), Put(f"{changed}+", b"new")], [gone])
        page = await store.range(place.prefix, limit=70, after=page.next_after, at_revision=revision)
        assert page.revision == revision
        records.extend(page.records)
    assert [(record.key, record.value) for record in records] == [(key, b"old") for key in keys]


async def test_a_range_of_large_values_comes_whole(place: Place, store: Store) -> None:
    value = bytes(200_000)
    for start in range(0, 40, 4):
        await store.txn([], [Put(f"{place.prefix}{start + n:02d}", value) for n in range(4)])
    records, _ = await range_all(store, place.prefix)
    assert [record.value for record in records] == [value] * 40


async def test_a_page_that_is_just_full_is_the_last(place: Place, store: Store) -> None:
    await store.txn([], [Put(f"{place.prefix}{n}", b"") for n in range(3)])
    page = await store.range(place.prefix, limit=3)
    assert (len(page.records), page.next_after) == (3, None)
    assert (await store.range(place.prefix + "nothing")).records == []
    with pytest.raises(ValueError, match="at least 1"):
        await store.range(place.prefix, limit=0)


# --- leases ------------------------------------------------------------------------------------------------------


async def test_an_expired_lease_takes_its_keys_and_watches_see_it(place: Place, store: Store) -> None:
    watcher = await place.open()
    lease_id = await store.lease_grant(5)
    start = await put(store, place.prefix + "leased", b"v", lease_id)
    await put(store, place.prefix + "free", b"v", lease_id)
    await put(store, place.prefix + "free", b"without the lease")
    record = await store.get(place.prefix + "leased")
    assert record is not None
    assert record.lease_id == lease_id
    async with Watching(watcher, place.prefix, start + 3) as seen:
        await seen.until(lambda: seen.revision > 0)
        assert [change[1:3] for change in seen.changes] == [("delete", place.prefix + "leased")]
        seen.check_order()
    assert await store.get(place.prefix + "leased") is None
    assert await store.get(place.prefix + "free") is not None
    with pytest.raises(LeaseLost):
        await store.lease_keepalive(lease_id)
    with pytest.raises(LeaseLost):
        await put(store, place.prefix + "late", b"", lease_id)


async def test_a_lease_lives_as_long_as_it_is_renewed(place: Place, store: Store) -> None:
    lease_id = await store.lease_grant(4)
    await put(store, place.prefix + "k", b"", lease_id)
    deadline = asyncio.get_running_loop().time() + 5.0
    while asyncio.get_running_loop().time() < deadline:
        assert await store.lease_keepalive(lease_id) == 4
        assert await store.get(place.prefix + "k") is not None
        await asyncio.sleep(0.3)
    await store.lease_revoke(lease_id)
    assert await store.get(place.prefix + "k") is None
    await store.lease_revoke(lease_id)
    with pytest.raises(LeaseLost):
        await store.lease_keepalive(lease_id)


async def test_a_failed_compare_does_not_mind_a_lost_lease(place: Place, store: Store) -> None:
    key = place.prefix + "k"
    await put(store, key)
    assert not (await store.txn([Compare.absent(key)], [Put(key, b"", 12345)])).succeeded


# --- watches -----------------------------------------------------------------------------------------------------


async def test_a_transaction_is_one_batch(place: Place, store: Store) -> None:
    left, right = place.prefix + "left", place.prefix + "right"
    start = await put(store, left, b"1")
    async with Watching(store, place.prefix, start) as seen:
        await seen.until(lambda: seen.revision == start)
        moved = (await store.txn([], [Put(right, b"2")], [left])).revision
        await seen.until(lambda: seen.revision >= moved)
        assert len(seen.batches) == 2
        assert set(seen.changes[1:]) == {(moved, "put", right, b"2"), (moved, "delete", left, b"")}
        seen.check_order()


async def test_a_watch_sees_its_prefix_and_nothing_else(place: Place, store: Store) -> None:
    start = await put(store, place.prefix + "a/1")
    await put(store, place.prefix + "b/1")
    last = await put(store, place.prefix + "a/2")
    async with Watching(store, place.prefix + "a/", start) as seen:
        await seen.until(lambda: seen.revision >= last)
        assert [change[2] for change in seen.changes] == [place.prefix + "a/1", place.prefix + "a/2"]


async def test_a_watch_has_no_gap_and_no_repetition_under_many_writers(place: Place, store: Store) -> None:
    await put(store, place.prefix + "first")
    records, revision = await range_all(store, place.prefix)
    done: dict[int, set[tuple[str, str, bytes]]] = {}

    async def write(seed: int) -> None:
        numbers, mine = random.Random(seed), await place.open()
        keys = [f"{place.prefix}{seed}/{n}" for n in range(5)]
        present: set[str] = set()
        for step in range(40):
            chosen = numbers.sample(keys, 3)
            value = f"{seed}-{step}".encode()
            result = await mine.txn([], [Put(key, value) for key in chosen[:2]], chosen[2:])
            events = {("put", key, value) for key in chosen[:2]}
            events |= {("delete", key, b"") for key in chosen[2:] if key in present}
            present = (present | set(chosen[:2])) - set(chosen[2:])
            assert result.revision not in done
            done[result.revision] = events

    async with Watching(await place.open(), place.prefix, revision + 1) as early:
        writers = [asyncio.create_task(write(seed)) for seed in range(4)]
        process = await place.writer(40)
        assert process.stdout is not None
        foreign = {int(line) async for line in process.stdout}
        assert await process.wait() == 0
        await asyncio.gather(*writers)
        last = max(max(done), max(foreign))
        await early.until(lambda: early.revision >= last)
        async with Watching(await place.open(), place.prefix, revision + 1) as late:
            await late.until(lambda: late.revision >= last)
            assert sorted(late.changes) == sorted(early.changes)
        final, _ = await range_all(store, place.prefix)
        for seen in (early, late):
            seen.check_order()
            assert seen.revisions == set(done) | foreign
            assert seen.replay(records) == {record.key: record.value for record in final}
        own = {revision: set() for revision in done}
        for revision, kind, key, value in early.changes:
            if revision in own:
                own[revision].add((kind, key, value))
        assert own == done


async def test_many_watches_of_one_store_end_one_by_one(place: Place, store: Store) -> None:
    start = await put(store, place.prefix + "k")
    async with Watching(store, place.prefix, start) as stays:
        async with Watching(store, place.prefix, start) as leaves:
            await leaves.until(lambda: leaves.revision >= start)
        last = await put(store, place.prefix + "k")
        await stays.until(lambda: stays.revision >= last)


# --- compaction --------------------------------------------------------------------------------------------------


async def test_what_is_compacted_is_reported_and_the_rest_stays(place: Place, store: Store) -> None:
    keep, gone = place.prefix + "keep", place.prefix + "gone"
    first = await put(store, keep, b"1")
    await put(store, gone, b"1")
    await store.txn([], deletes=[gone])
    middle = await put(store, keep, b"2")
    last = await put(store, keep, b"3")
    await store.compact(middle)
    await store.compact(first)  # older than what is compacted already: nothing to do
    with pytest.raises(Compacted):
        await store.range(place.prefix, at_revision=first)
    with pytest.raises(Compacted):
        async with Watching(store, place.prefix, first) as seen:
            await seen.until(lambda: False)
    page = await store.range(place.prefix, at_revision=middle)
    assert [(r.key, r.value, r.create_revision) for r in page.records] == [(keep, b"2", first)]
    async with Watching(store, place.prefix, last) as seen:
        await seen.until(lambda: seen.revision >= last)
        assert seen.changes == [(last, "put", keep, b"3")]
    with pytest.raises(ValueError, match="not reached"):
        await store.compact(last + 1000)


async def test_a_running_watch_does_not_mind_a_compaction(place: Place, store: Store) -> None:
    start = await put(store, place.prefix + "k", b"1")
    async with Watching(store, place.prefix, start) as seen:
        await seen.until(lambda: seen.revision >= start)
        middle = await put(store, place.prefix + "k", b"2")
        await seen.until(lambda: seen.revision >= middle)
        await store.compact(middle)
        last = await put(store, place.prefix + "k", b"3")
        await seen.until(lambda: seen.revision >= last)
        assert [change[3] for change in seen.changes] == [b"1", b"2", b"3"]


# --- faults ------------------------------------------------------------------------------------------------------


async def test_a_writer_killed_half_way_leaves_whole_transactions(place: Place, store: Store) -> None:
    _, revision = await range_all(store, place.prefix)
    async with Watching(store, place.prefix, revision + 1) as seen:
        process = await place.writer(100_000)
        assert process.stdout is not None
        told = [int(await process.stdout.readline()) for _ in range(25)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) async for line in process.stdout if line.endswith(b"\n")]
        await process.wait()
        last = await put(store, place.prefix + "after")
        await seen.until(lambda: seen.revision >= last)
        seen.check_order()
        # The last one may have been carried out and not told.
        assert seen.revisions - set(told) - {last} <= {told[-1] + 1}
        assert set(told) <= seen.revisions
        for revision in told:
            change = {key: value for at, kind, key, value in seen.changes if at == revision and kind == "put"}
            assert len(change) == 3
            assert len(set(change.values())) == 1
        final, _ = await range_all(store, place.prefix)
        assert seen.replay([]) == {record.key: record.value for record in final}


async def test_status_names_kind_and_place(place: Place, store: Store) -> None:
    revision = await put(store, place.prefix + "k")
    status = await store.status()
    assert (status.kind, status.revision) == (place.kind, revision)
    assert place.target in status.endpoint
    assert status.size_bytes > 0
    assert status.version


async def test_closing_twice_is_no_error(place: Place) -> None:
    store = await place.open()
    await store.close()
    await store.close()
