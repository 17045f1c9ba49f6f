"""What changed, for whoever follows /v1/events: a word per thing, never its content. Slow listeners are cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from lavalite.api.models import Change
from lavalite.base.steady import SteadyTime
from lavalite.control import events

MAX_WAITING = 10_000


class Changes:
    """Hears every event that was applied, and tells it on."""

    def __init__(self, time: SteadyTime) -> None:
        self._time = time
        self._listeners: set[asyncio.Queue[Change | None]] = set()

    def heard(self, event: events.Event) -> None:
        if not self._listeners:
            return
        for change in self._changes(event):
            for queue in list(self._listeners):
                if queue.qsize() >= MAX_WAITING:
                    self._listeners.discard(queue)
                    queue.put_nowait(None)
                else:
                    queue.put_nowait(change)

    async def follow(self) -> AsyncIterator[Change]:
        """Changes from now on; ends when the listener has fallen too far behind."""
        queue: asyncio.Queue[Change | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while (change := await queue.get()) is not None:
                yield change
        finally:
            self._listeners.discard(queue)

    def _changes(self, event: events.Event) -> Iterator[Change]:
        now = self._time.now()
        if isinstance(event, events.Submitted):
            yield Change(kind="job", name=str(event.record.id), state="pending", at=now)
        elif isinstance(event, events.NodeReported):
            for report in event.attempts:
                name = f"{report.id.job}.{report.id.task}"
                yield Change(kind="task", name=name, state=report.state, at=report.at)
        elif isinstance(event, events.CancelRequested | events.HoldRequested | events.ReleaseRequested):
            yield Change(kind="job", name=str(event.job), state="asked", at=now)
        elif isinstance(event, events.NodeRegistered):
            yield Change(kind="node", name=event.node, state="connected", at=now)
        elif isinstance(event, events.NodeDisconnected):
            yield Change(kind="node", name=event.node, state="disconnected", at=now)
        elif isinstance(event, events.DefinitionApplied):
            yield Change(kind="definition", name="", state="applied", at=now)
