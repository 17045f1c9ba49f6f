"""The one door through which a scheduler writes: an ordered pipeline of fenced transactions.

    submit ──► queue ──► group ──► transaction ──► CONFIRMED
                 ▲         │           │ compare failed ───────► FencedError for all that is queued; never again
                 │         │           │ outcome unknown ──┐
                 └─ retry ─┴───────────┴─ unavailable      ▼
                                                     renew writer, read the keys: CONFIRMED, or not done:
                                                     tried again, or UNWOUND where it was submitted so

One transaction is in flight at a time, and batches go in the order they were submitted. That makes the pipeline FIFO,
which is what lets the scheduler give freed capacity to the next holder before the freeing is durable: the store can
never hold the second commitment without the first one's end. Throughput comes from grouping instead: all that has
queued up while one transaction was in flight goes into the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from lavalite.base.clock import Clock
from lavalite.base.errors import FencedError, LavaLiteError
from lavalite.ledger.fence import Fence, renew_writer
from lavalite.store.arguments import MAX_TXN_BYTES, write_bytes
from lavalite.store.base import OutcomeUnknown, Put, Store, StoreUnavailable

BACKOFF_FIRST_SECONDS, BACKOFF_MOST_SECONDS = 0.02, 1.0


class Outcome(StrEnum):
    CONFIRMED = "confirmed"  # durable
    UNWOUND = "unwound"  # not done, and never will be; only where `retry` was false


class BatchTooLarge(LavaLiteError, ValueError):
    """More operations than one transaction of the store can hold. Submit less at once."""

    default_code = "batch_too_large"


@dataclass(slots=True, eq=False)
class _Batch:
    puts: Mapping[str, bytes]
    deletes: frozenset[str]
    retry: bool
    size_bytes: int
    done: asyncio.Future[Outcome]

    def settle(self, outcome: Outcome) -> None:
        if not self.done.done():
            self.done.set_result(outcome)


@dataclass(slots=True)
class Counters:
    """For metrics; all since the start."""

    transactions: int = 0
    batches: int = 0
    operations: int = 0
    retries: int = 0
    unknown: int = 0
    unwound: int = 0


class Committer:
    """See the module's docstring. Use from one event loop; `start()` first, `close()` last.

    `may_continue` is asked before each transaction: once it says no, everything pending fails with FencedError,
    as it does when a compare fails. `fenced` is set then, and the process should end.
    """

    def __init__(
        self,
        store: Store,
        fence: Fence,
        clock: Clock,
        *,
        may_continue: Callable[[], bool] = lambda: True,
        window_seconds: float = 0.003,
    ) -> None:
        self.fenced = asyncio.Event()
        self.counters = Counters()
        self._store = store
        self._fence = fence
        self._clock = clock
        self._may_continue = may_continue
        self._window_seconds = window_seconds
        self._queue: deque[_Batch] = deque()
        self._flying: list[_Batch] = []
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._end_reason = ""

    def start(self) -> None:
        """Begin to write what is submitted."""
        self._task = asyncio.create_task(self._run(), name="committer")

    async def close(self) -> None:
        """Stop without waiting; what is pending fails. Call drain() first to let it through."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail("the scheduler is stopping")

    async def drain(self) -> None:
        """Wait until nothing is pending, or the fence is lost."""
        await self._idle.wait()

    @property
    def end_reason(self) -> str:
        """Why nothing is written any more; empty while it is."""
        return self._end_reason

    @property
    def pending(self) -> int:
        """Batches submitted and not settled."""
        return len(self._queue) + len(self._flying)

    def submit(
        self, puts: Mapping[str, bytes], deletes: Iterable[str] = (), *, retry: bool = True
    ) -> asyncio.Future[Outcome]:
        """Queue one batch: all of it in one transaction, after all that was submitted before.

        An empty batch is a barrier: it is confirmed once all before it are settled. Without `retry`, a batch
        whose transaction is found not to have happened is UNWOUND instead of tried again.
        The future raises FencedError when we are not the writer any more; raises BatchTooLarge at once.
        """
        deletes = frozenset(deletes)
        size_bytes = sum(write_bytes(k, v) for k, v in puts.items()) + sum(write_bytes(k, None) for k in deletes)
        batch = _Batch(puts, deletes, retry, size_bytes, asyncio.get_running_loop().create_future())
        batch.done.add_done_callback(_look_at)
        if len(batch.puts.keys() | batch.deletes) > self._store.max_txn_operations:
            raise BatchTooLarge(
                f"{len(batch.puts) + len(batch.deletes)} writes in one batch, "
                f"the store takes {self._store.max_txn_operations}"
            )
        if self._end_reason:
            batch.done.set_exception(FencedError(self._end_reason))
            return batch.done
        self._queue.append(batch)
        self._idle.clear()
        self._arrived.set()
        return batch.done

    # --- the loop -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                if not self._queue:
                    self._idle.set()
                    self._arrived.clear()
                    await self._arrived.wait()
                elif len(self._queue) > 1 and not self._fills_a_transaction():
                    # More is coming in faster than one at a time: let a group gather. Alone, nobody waits.
                    await self._clock.sleep(self._window_seconds)
                await self._write_group()
        except FencedError as error:
            self._fail(str(error))
        except Exception as error:
            # A store that breaks its contract: going on would be guessing.
            self._fail(f"the commit queue broke: {error!r}")
            raise

    def _fills_a_transaction(self) -> bool:
        """Whether as much is queued as one can hold, so that waiting would make none fuller."""
        operations = 0
        for batch in self._queue:
            operations += len(batch.puts) + len(batch.deletes)
            if operations >= self._store.max_txn_operations:
                return True
        return False

    async def _write_group(self) -> None:
        self._flying, puts, deletes = self._next_group()
        backoff_seconds = BACKOFF_FIRST_SECONDS
        while True:
            if not self._may_continue():
                raise FencedError("the leadership was not renewed in time; nothing more is written")
            if not puts and not deletes:
                self._settle_all(Outcome.CONFIRMED)
                return
            try:
                result = await self._store.txn(
                    self._fence.compares(), [Put(k, v) for k, v in puts.items()], sorted(deletes)
                )
            except StoreUnavailable:
                self.counters.retries += 1
                await self._clock.sleep(backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, BACKOFF_MOST_SECONDS)
                continue
            except OutcomeUnknown:
                self.counters.unknown += 1
                if not await self._resolve(puts, deletes):
                    self._put_back()
                    return
            else:
                if not result.succeeded:
                    raise FencedError(
                        "another scheduler has taken over, or the store was restored: it refused our write"
                    )
            self.counters.transactions += 1
            self.counters.operations += len(puts) + len(deletes)
            self._settle_all(Outcome.CONFIRMED)
            return

    def _next_group(self) -> tuple[list[_Batch], dict[str, bytes], set[str]]:
        """As many whole batches from the head of the queue as fit, the last word on each key."""
        group: list[_Batch] = []
        puts: dict[str, bytes] = {}
        deletes: set[str] = set()
        size_bytes = 0
        while self._queue:
            batch = self._queue[0]
            new_keys = (batch.puts.keys() | batch.deletes) - puts.keys() - deletes
            if group and (
                len(puts) + len(deletes) + len(new_keys) > self._store.max_txn_operations
                or size_bytes + batch.size_bytes > MAX_TXN_BYTES
            ):
                break
            size_bytes += batch.size_bytes
            for key in batch.deletes:
                puts.pop(key, None)
                deletes.add(key)
            for key, value in batch.puts.items():
                deletes.discard(key)
                puts[key] = value
            group.append(self._queue.popleft())
        return group, puts, deletes

    async def _resolve(self, puts: Mapping[str, bytes], deletes: Iterable[str]) -> bool:
        """Whether the transaction of unknown outcome was carried out. After this it never will be, if not."""
        backoff_seconds = BACKOFF_FIRST_SECONDS
        while True:
            if not self._may_continue():
                raise FencedError("the leadership was not renewed in time; nothing more is written")
            try:
                self._fence = await renew_writer(self._store, self._fence)
                return await self._is_written(puts, deletes)
            except (StoreUnavailable, OutcomeUnknown):
                self.counters.retries += 1
                await self._clock.sleep(backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, BACKOFF_MOST_SECONDS)

    async def _is_written(self, puts: Mapping[str, bytes], deletes: Iterable[str]) -> bool:
        """All or nothing was done, and nobody else writes: so the first key that differs tells."""
        for key, value in puts.items():
            found = await self._store.get(key)
            if found is None or found.value != value:
                return False
        for key in deletes:
            if await self._store.get(key) is not None:
                return False
        return True

    # --- settling -------------------------------------------------------------------------------------------

    def _settle_all(self, outcome: Outcome) -> None:
        self.counters.batches += len(self._flying)
        for batch in self._flying:
            batch.settle(outcome)
        self._flying = []

    def _put_back(self) -> None:
        """The group was not written: unwind what asked for it, and queue the rest again in its place."""
        for batch in reversed(self._flying):
            if batch.retry:
                self._queue.appendleft(batch)
            else:
                self.counters.unwound += 1
                batch.settle(Outcome.UNWOUND)
        self._flying = []

    def _fail(self, reason: str) -> None:
        self._end_reason = self._end_reason or reason
        for batch in (*self._flying, *self._queue):
            if not batch.done.done():
                batch.done.set_exception(FencedError(self._end_reason))
        self._flying = []
        self._queue.clear()
        self._idle.set()
        self.fenced.set()


def _look_at(future: asyncio.Future[Outcome]) -> None:
    """Nobody has to await a future of ours: its failure is told by `fenced` too."""
    if not future.cancelled():
        future.exception()
