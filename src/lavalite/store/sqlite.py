"""SqliteStore: the store of one machine. One file, shared by the processes of that machine.

All work on the file happens on one thread of our own, so that a slow disk never stops the event loop. Watches look
when this process wrote, when another process rings the doorbell, and in any case every WATCH_POLL_SECONDS or when
a lease is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lavalite.base.clock import Clock
from lavalite.store.arguments import StoreClosed, check_ttl, check_txn, check_watch, page_limit
from lavalite.store.base import (
    PAGE_LIMIT,
    Compare,
    Event,
    OutcomeUnknown,
    Page,
    Put,
    Record,
    Store,
    StoreStatus,
    StoreUnavailable,
    TxnResult,
    WatchBatch,
)
from lavalite.store.sqlite_bell import Doorbell
from lavalite.store.sqlite_faults import CommitFailed, explain
from lavalite.store.sqlite_file import SqliteFile

T = TypeVar("T")

HISTORY_REVISIONS = 10_000
WATCH_POLL_SECONDS = 0.25
WATCH_POLL_WITHOUT_BELL_SECONDS = 0.03
WATCH_RETRY_SECONDS = 1.0
OPEN_RETRY_SECONDS = 0.02


class SqliteStore(Store):
    """Make one with `await SqliteStore.open(path, clock=clock)`."""

    def __init__(
        self,
        path: Path | str,
        *,
        clock: Clock,
        timeout_seconds: float = 10.0,
        history_revisions: int = HISTORY_REVISIONS,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._history_revisions = history_revisions
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lavalite-sqlite")
        self._bell = Doorbell(self.path)
        self._file: SqliteFile | None = None
        self._seen_version = -1
        self._rung = asyncio.Event()
        self._watchers = 0
        self._poller: asyncio.Task[None] | None = None
        self._ear: socket.socket | None = None
        self._closed = False

    @classmethod
    async def open(
        cls,
        path: Path | str,
        *,
        clock: Clock,
        timeout_seconds: float = 10.0,
        history_revisions: int = HISTORY_REVISIONS,
    ) -> SqliteStore:
        """Open or create the file at `path`. Raises StoreUnavailable with what is wrong with it.

        `history_revisions` is how much history is kept at least for watches.
        """
        store = cls(path, clock=clock, timeout_seconds=timeout_seconds, history_revisions=history_revisions)
        try:
            await store._open_file()
        except BaseException:
            await store.close()
            raise
        return store

    async def _open_file(self) -> None:
        def connect() -> SqliteFile:
            return SqliteFile(
                self.path,
                boottime=self._clock.boottime,
                busy_seconds=self._timeout_seconds * 0.8,
                history_revisions=self._history_revisions,
            )

        deadline = self._clock.monotonic() + self._timeout_seconds
        while self._file is None:
            try:
                self._file = await asyncio.wrap_future(self._thread.submit(connect))
            except (sqlite3.Error, OSError, CommitFailed) as error:
                # Several processes that create the file at once get 'busy' without SQLite waiting for its turn.
                busy = str(getattr(error, "sqlite_errorname", "")).startswith("SQLITE_BUSY")
                if not busy or self._clock.monotonic() > deadline:
                    raise explain(error, self.path) from error
                await self._clock.sleep(OPEN_RETRY_SECONDS)

    # --- the contract ------------------------------------------------------------------------------------------

    async def get(self, key: str) -> Record | None:
        return await self._read(lambda file: file.get(key))

    async def range(
        self, prefix: str, *, limit: int = PAGE_LIMIT, after: str | None = None, at_revision: int = 0
    ) -> Page:
        count = page_limit(limit)
        return await self._read(lambda file: file.range(prefix, count, after, at_revision))

    async def txn(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> TxnResult:
        check_txn(compares, puts, deletes, self.max_txn_operations)
        return await self._write(lambda file: file.txn(compares, puts, deletes))

    async def lease_grant(self, ttl_seconds: int) -> int:
        check_ttl(ttl_seconds)
        return await self._write(lambda file: file.grant(ttl_seconds))

    async def lease_keepalive(self, lease_id: int) -> int:
        return await self._write(lambda file: file.keepalive(lease_id), outcome_matters=False)

    async def lease_revoke(self, lease_id: int) -> None:
        await self._write(lambda file: file.revoke(lease_id))

    async def compact(self, revision: int) -> None:
        await self._write(lambda file: file.compact(revision), outcome_matters=False)

    async def status(self) -> StoreStatus:
        revision, size_bytes = await self._read(lambda file: file.size())
        return StoreStatus("sqlite", sqlite3.sqlite_version, revision, size_bytes, str(self.path))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stop_polling()
        self._ring_here()
        file, self._file = self._file, None
        if file is not None:
            await asyncio.wrap_future(self._thread.submit(file.close))
        self._thread.shutdown(wait=False)

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        check_watch(from_revision)
        position = from_revision
        with self._watching():
            while True:
                rung = self._rung  # taken before we look, so that a ring in between is not lost
                events, last = await self._look(prefix, position)
                if last < position:
                    await rung.wait()
                    continue
                position = last + 1
                if events:
                    yield WatchBatch(last, events)

    async def _look(self, prefix: str, position: int) -> tuple[list[Event], int]:
        while True:
            try:
                return await self._read(lambda file: file.events(prefix, position))
            except StoreUnavailable:  # an outage, such as a full disk: a watch waits through it
                await self._clock.sleep(WATCH_RETRY_SECONDS)

    # --- the thread --------------------------------------------------------------------------------------------

    async def _read(self, work: Callable[[SqliteFile], T]) -> T:
        return await self._on_thread(work, outcome_matters=False)

    async def _write(self, work: Callable[[SqliteFile], T], *, outcome_matters: bool = True) -> T:
        def then_ring(file: SqliteFile) -> T:
            result = work(file)
            self._bell.ring()
            return result

        try:
            return await self._on_thread(then_ring, outcome_matters=outcome_matters)
        finally:
            self._ring_here()

    async def _on_thread(self, work: Callable[[SqliteFile], T], *, outcome_matters: bool) -> T:
        if self._file is None:
            raise StoreClosed()
        future = self._thread.submit(work, self._file)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            message = f"{self.path} did not answer within {self._timeout_seconds:g} seconds"
            # Work that had not begun is cancelled for good; work that had begun goes on to some end.
            if outcome_matters and not future.cancelled():
                raise OutcomeUnknown(message, hint="Read the keys to know.") from None
            raise StoreUnavailable(message, hint="Check the load of its disk.") from None
        except (sqlite3.Error, OSError, CommitFailed) as error:
            raise explain(error, self.path) from error

    # --- waking watches ----------------------------------------------------------------------------------------

    def _ring_here(self) -> None:
        """Wake the watches of this process."""
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        if self._closed:
            raise StoreClosed()
        self._watchers += 1
        if self._poller is None:
            self._start_polling()
        try:
            yield
        finally:
            self._watchers -= 1
            if self._watchers == 0:
                self._stop_polling()

    def _start_polling(self) -> None:
        self._ear = self._bell.listen()
        if self._ear is not None:
            asyncio.get_running_loop().add_reader(self._ear, self._on_ring)
        self._poller = asyncio.create_task(self._poll(), name="lavalite-sqlite-watch")

    def _stop_polling(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
        if self._ear is not None:
            asyncio.get_running_loop().remove_reader(self._ear)
            self._ear = None
            self._bell.stop()

    def _on_ring(self) -> None:
        self._bell.drain()
        self._ring_here()

    async def _poll(self) -> None:
        """Ring for what other processes did and end leases that are due, as long as anybody watches."""
        pause_seconds = WATCH_POLL_SECONDS if self._ear else WATCH_POLL_WITHOUT_BELL_SECONDS
        while True:
            await self._clock.sleep(await self._poll_once(pause_seconds))

    async def _poll_once(self, pause_seconds: float) -> float:
        """Ring if anything changed; seconds until the next lease is due, at most `pause_seconds`."""
        try:
            version, due_seconds = await self._read(lambda file: (file.data_version(), file.next_deadline_seconds()))
            if due_seconds is not None and due_seconds <= 0:
                await self._write(lambda file: file.expire(), outcome_matters=False)
        except (StoreUnavailable, OutcomeUnknown):
            return pause_seconds  # the watches meet the same trouble and wait through it
        if version != self._seen_version:
            self._seen_version = version
            self._ring_here()
        return pause_seconds if due_seconds is None else min(pause_seconds, max(due_seconds, 0.001))
