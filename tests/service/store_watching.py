"""What tests of watches share: collect batches, and the laws that hold for every collection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from patience import PATIENCE_SECONDS

from lavalite.store.base import Record, Store, WatchBatch


class Watching:
    """Collects what a watch delivers, as a task.

    async with Watching(store, prefix, from_revision) as seen:
        await seen.until(lambda: seen.revision >= 7)
    """

    def __init__(self, store: Store, prefix: str, from_revision: int) -> None:
        self.batches: list[WatchBatch] = []
        self._store, self._prefix, self._from_revision = store, prefix, from_revision
        self._arrived = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watching:
        self._task = asyncio.create_task(self._collect())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _collect(self) -> None:
        async with contextlib.aclosing(self._store.watch(self._prefix, self._from_revision)) as batches:
            async for batch in batches:
                self.batches.append(batch)
                async with self._arrived:
                    self._arrived.notify_all()

    @property
    def revision(self) -> int:
        return self.batches[-1].revision if self.batches else 0

    @property
    def revisions(self) -> set[int]:
        return {event.record.mod_revision for batch in self.batches for event in batch.events}

    @property
    def changes(self) -> list[tuple[int, str, str, bytes]]:
        """(revision, kind, key, value) of every event, in the order of delivery."""
        events = [event for batch in self.batches for event in batch.events]
        return [(e.record.mod_revision, e.kind, e.record.key, e.record.value) for e in events]

    async def until(self, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        assert self._task is not None

        async def wait() -> None:
            async with self._arrived:
                await self._arrived.wait_for(condition)

        waiting = asyncio.create_task(wait())
        done, _ = await asyncio.wait({waiting, self._task}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if waiting not in done:
            waiting.cancel()
            if self._task in done:
                self._task.result()
            raise AssertionError(f"not within {seconds:g} s; seen up to revision {self.revision}")

    def check_order(self) -> None:
        """The laws: batches are not empty, revisions ascend, none is split over batches, nothing comes twice."""
        before = self._from_revision - 1
        for batch in self.batches:
            revisions = [event.record.mod_revision for event in batch.events]
            assert revisions == sorted(revisions)
            assert before < revisions[0], "a revision came twice or was split over two batches"
            assert revisions[-1] <= batch.revision
            before = batch.revision
        named = [(revision, key) for revision, _, key, _ in self.changes]
        assert len(named) == len(set(named))

    def replay(self, records: list[Record]) -> dict[str, bytes]:
        """Keys and values after all events, starting from `records`."""
        state = {record.key: record.value for record in records}
        for _, kind, key, value in self.changes:
            if kind == "put":
                state[key] = value
            else:
                del state[key]  # a deletion of what was not there would be a fault
        return state
