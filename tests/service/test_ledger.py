"""The committer over a real store: fenced, in order, and never guessing what became of a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from patience import PATIENCE_SECONDS

from lavalite.base.clock import SystemClock
from lavalite.base.errors import FencedError
from lavalite.ledger.book import Book, Shortage
from lavalite.ledger.committer import BatchTooLarge, Committer, Outcome
from lavalite.ledger.fence import Fence, renew_writer, take_writer
from lavalite.model.job import CommitmentRecord, Share
from lavalite.store.base import Compare, OutcomeUnknown, Put, Store, StoreUnavailable, TxnResult
from lavalite.store.keys import Keys
from lavalite.store.sqlite import SqliteStore

KEYS = Keys("test")


class Faulty:
    """A store whose next transactions go wrong as told; everything else is the store's own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.faults: list[str] = []
        self.sizes: list[int] = []
        self.gate: asyncio.Event | None = None
        self.reached = asyncio.Event()
        """Whether a transaction waits at the gate."""
        self.max_txn_operations = store.max_txn_operations
        self.late: list[tuple[Sequence[Compare], Sequence[Put], Sequence[str]]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def txn(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> TxnResult:
        if self.gate is not None:
            self.reached.set()
            await self.gate.wait()
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "unavailable":
            raise StoreUnavailable("the store is away")
        if fault == "unknown before":
            raise OutcomeUnknown("no answer came")
        if fault == "late":
            self.late.append((compares, puts, deletes))
            raise OutcomeUnknown("no answer came")
        self.sizes.append(len(puts) + len(deletes))
        result = await self._store.txn(compares, puts, deletes)
        if fault == "unknown after":
            raise OutcomeUnknown("no answer came")
        return result


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "store.db", clock=SystemClock())
    yield opened
    await opened.close()


async def lead(store: Store) -> int:
    """Win the leadership anew; the revision at which that was."""
    await store.txn([], [], [KEYS.leader])
    await store.txn([Compare.absent(KEYS.leader)], [Put(KEYS.leader, b"n1")])
    record = await store.get(KEYS.leader)
    assert record is not None
    return record.create_revision


class Setup:
    def __init__(self, store: Faulty, fence: Fence, committer: Committer) -> None:
        self.store, self.fence, self.committer = store, fence, committer

    async def value(self, key: str) -> bytes | None:
        record = await self.store._store.get(key)
        return record.value if record else None


@pytest.fixture
async def setup(store: SqliteStore) -> AsyncIterator[Setup]:
    faulty = Faulty(store)
    fence = await take_writer(store, KEYS, await lead(store), (0, 1), "first")
    committer = Committer(faulty, fence, SystemClock(), window_seconds=0.001)  # type: ignore[arg-type]
    committer.start()
    yield Setup(faulty, fence, committer)
    await committer.close()


async def test_what_is_confirmed_is_there(setup: Setup) -> None:
    assert await setup.committer.submit({"a": b"1", "b": b"2"}) is Outcome.CONFIRMED
    assert await setup.committer.submit({"b": b"3"}, {"a"}) is Outcome.CONFIRMED
    assert (await setup.value("a"), await setup.value("b")) == (None, b"3")
    await setup.committer.drain()
    assert setup.committer.pending == 0


async def test_what_queues_up_goes_in_one_transaction_the_last_word_on_each_key(setup: Setup) -> None:
    setup.store.gate = asyncio.Event()
    futures = [setup.committer.submit({"x": b"%d" % n, f"k{n}": b""}) for n in range(20)]
    futures.append(setup.committer.submit({}, {"k3"}))
    await asyncio.sleep(0)
    setup.store.gate.set()
    assert set(await asyncio.gather(*futures)) == {Outcome.CONFIRMED}
    assert await setup.value("x") == b"19" and await setup.value("k3") is None
    assert len(setup.store.sizes) <= 2 and sum(setup.store.sizes) <= 23


async def test_batches_are_whole_and_within_the_limit(setup: Setup) -> None:
    limit = setup.store.max_txn_operations
    big = {f"big{n}": b"" for n in range(limit - 1)}
    futures = [setup.committer.submit({"a": b"", "b": b""}), setup.committer.submit(big), setup.committer.submit({})]
    await asyncio.gather(*futures)
    assert setup.store.sizes == [2, limit - 1]
    with pytest.raises(BatchTooLarge) as refused:
        setup.committer.submit({f"k{n}": b"" for n in range(limit + 1)})
    assert isinstance(refused.value, ValueError) and refused.value.code == "batch_too_large"


async def test_what_fills_a_transaction_does_not_wait_for_more(setup: Setup) -> None:
    """With a window of an hour, all but the last, which fills none, must be done at once."""
    setup.committer._window_seconds = 3600
    limit = setup.store.max_txn_operations
    futures = [setup.committer.submit({f"k{n}.{i}": b"" for i in range(limit // 2)}) for n in range(4)]
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*futures)
    assert setup.store.sizes == [limit, limit]


async def test_order_is_kept_across_transactions(setup: Setup) -> None:
    limit = setup.store.max_txn_operations
    done: list[int] = []
    futures = []
    for n in range(5):
        future = setup.committer.submit({"x": b"%d" % n, **{f"p{n}.{i}": b"" for i in range(limit - 1)}})
        future.add_done_callback(lambda _, n=n: done.append(n))
        futures.append(future)
    await asyncio.gather(*futures)
    assert done == [0, 1, 2, 3, 4] and await setup.value("x") == b"4"


async def test_an_empty_batch_is_a_barrier(setup: Setup) -> None:
    setup.store.gate = asyncio.Event()
    first = setup.committer.submit({"a": b"1"})
    barrier = setup.committer.submit({})
    await asyncio.sleep(0.01)
    assert not barrier.done()
    setup.store.gate.set()
    await barrier
    assert first.done()
    assert await setup.committer.submit({}) is Outcome.CONFIRMED


@pytest.mark.parametrize("fault", ["unknown before", "unknown after", "late"])
@pytest.mark.parametrize(
    "while_renewing", [[], ["unknown before"], ["unknown after"], ["unavailable", "unavailable"]]
)
async def test_an_unknown_outcome_is_found_out(setup: Setup, fault: str, while_renewing: list[str]) -> None:
    await setup.committer.submit({"gone": b""})
    setup.store.faults = [fault, *while_renewing]
    retried = setup.committer.submit({"a": b"1"}, {"gone"})
    assert await retried is Outcome.CONFIRMED
    assert (await setup.value("a"), await setup.value("gone")) == (b"1", None)
    await setup.committer.submit({"a": b"2"})
    for compares, puts, deletes in setup.store.late:
        assert not (await setup.store._store.txn(compares, puts, deletes)).succeeded, "a straggler got through"
    assert await setup.value("a") == b"2"


@pytest.mark.parametrize(("fault", "outcome"), [("unknown before", "unwound"), ("unknown after", "confirmed")])
async def test_a_commitment_that_did_not_happen_is_unwound_and_the_rest_is_tried_again(
    setup: Setup, fault: str, outcome: str
) -> None:
    setup.store.gate = asyncio.Event()
    setup.store.faults = ["", fault]
    first = setup.committer.submit({"before": b""})
    async with asyncio.timeout(60):
        await setup.store.reached.wait()  # what comes now goes in a transaction after it
    commitment = setup.committer.submit({"c": b"1"}, retry=False)
    other = setup.committer.submit({"d": b"1"})
    setup.store.gate.set()
    assert await first is Outcome.CONFIRMED
    assert await commitment == outcome
    assert await other is Outcome.CONFIRMED
    assert (await setup.value("c") is not None) == (outcome == "confirmed")
    assert await setup.value("d") == b"1"


async def test_an_outage_of_any_length_loses_nothing(setup: Setup) -> None:
    setup.store.faults = ["unavailable"] * 4
    futures = [setup.committer.submit({f"k{n}": b"1"}, retry=False) for n in range(3)]
    assert set(await asyncio.gather(*futures)) == {Outcome.CONFIRMED}
    assert setup.committer.counters.retries == 4


async def test_a_predecessor_is_shut_out_by_the_next_writer_of_the_same_epoch(setup: Setup) -> None:
    successor = await take_writer(setup.store._store, KEYS, setup.fence.leader_create_revision, (0, 1), "second")
    futures = [setup.committer.submit({"a": b"old"}), setup.committer.submit({"b": b"old"})]
    for future in futures:
        with pytest.raises(FencedError):
            await future
    assert setup.committer.fenced.is_set()
    sizes = len(setup.store.sizes)
    with pytest.raises(FencedError):
        await setup.committer.submit({"c": b"old"})
    assert len(setup.store.sizes) == sizes, "a transaction was tried after the fence was lost"
    assert await setup.value("a") is None
    assert (await setup.store._store.txn(successor.compares(), [Put("a", b"new")])).succeeded


async def test_a_deposed_leader_is_shut_out_and_cannot_take_the_writer_again(setup: Setup) -> None:
    old_revision = setup.fence.leader_create_revision
    revision = await lead(setup.store._store)
    await take_writer(setup.store._store, KEYS, revision, (0, 2), "next")
    with pytest.raises(FencedError):
        await setup.committer.submit({"a": b"old"})
    with pytest.raises(FencedError):
        await take_writer(setup.store._store, KEYS, old_revision, (0, 1), "again")
    with pytest.raises(FencedError):
        await renew_writer(setup.store._store, setup.fence)


async def test_an_unknown_outcome_after_being_deposed_is_not_resolved(setup: Setup) -> None:
    setup.store.faults = ["unknown before"]
    await lead(setup.store._store)
    with pytest.raises(FencedError):
        await setup.committer.submit({"a": b"1"})
    assert await setup.value("a") is None


async def test_nothing_is_written_past_the_deadline(store: SqliteStore) -> None:
    fence = await take_writer(store, KEYS, await lead(store), (0, 1), "first")
    leads = True
    committer = Committer(store, fence, SystemClock(), may_continue=lambda: leads)
    committer.start()
    await committer.submit({"a": b"1"})
    leads = False
    with pytest.raises(FencedError):
        await committer.submit({"a": b"2"})
    record = await store.get("a")
    assert record is not None and record.value == b"1"
    await committer.close()


@pytest.mark.parametrize("fault", ["unknown before", "unknown after"])
async def test_taking_the_writer_with_an_unknown_outcome(store: SqliteStore, fault: str) -> None:
    faulty = Faulty(store)
    revision = await lead(store)
    faulty.faults = [fault]
    fence = await take_writer(faulty, KEYS, revision, (0, 1), "first")  # type: ignore[arg-type]
    assert (await store.txn(fence.compares(), [Put("a", b"1")])).succeeded


async def test_a_store_that_was_restored_in_place_shuts_out_the_writer_of_before(setup: Setup) -> None:
    """Leader and writer are as it knows them: both were in the backup."""
    await setup.committer.submit({"a": b"1"})
    store = setup.store._store
    await store.txn([], [Put(KEYS.generation, b"1")])
    with pytest.raises(FencedError):
        await setup.committer.submit({"a": b"2"})
    with pytest.raises(FencedError, match="restored"):
        await take_writer(store, KEYS, setup.fence.leader_create_revision, (0, 1), "again")
    fence = await take_writer(store, KEYS, await lead(store), (1, 2), "next")
    assert (await store.txn(fence.compares(), [Put("a", b"3")])).succeeded
    await store.txn([], [Put(KEYS.generation, b"2")])
    assert not (await store.txn(fence.compares(), [Put("a", b"4")])).succeeded


async def test_a_commitment_is_assumed_written_and_then_confirmed_or_unwound(setup: Setup) -> None:
    book = Book()
    book.set_capacity("n1", "cpu", 2000)

    async def commit(owner: str, amount: int) -> Shortage | Outcome:
        shares = [Share(provider="n1", kind="cpu", amount=amount)]
        record = CommitmentRecord(owner=owner, epoch=(0, 1), shares=shares, committed_at=0.0)
        short = book.assume(record)
        if short is not None:
            return short
        put = {KEYS.commitment(owner): record.model_dump_json().encode()}
        outcome = await setup.committer.submit(put, retry=False)
        (book.confirm if outcome is Outcome.CONFIRMED else book.unwind)(owner)
        return outcome

    assert await commit("a", 1000) is Outcome.CONFIRMED
    assert isinstance(await commit("b", 2000), Shortage)
    setup.store.faults = ["unknown before"]
    assert await commit("c", 1000) is Outcome.UNWOUND
    assert await commit("d", 1000) is Outcome.CONFIRMED
    assert sorted(book.owners()) == ["a", "d"]
    assert await setup.value(KEYS.commitment("c")) is None and await setup.value(KEYS.commitment("d")) is not None
    book.check()
