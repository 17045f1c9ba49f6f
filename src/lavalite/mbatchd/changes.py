"""What changed, for whoever follows /v1/events: a word per thing, never its content. Slow listeners are cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator

from lavalite.api.models import Change
from lavalite.base.errors import LavaLiteError
from lavalite.base.steady import SteadyTime
from lavalite.control import events
from lavalite.control.state import ClusterState
from lavalite.model.task import AttemptId

MAX_WAITING = 10_000
MAX_LISTENERS = 1_000
QUIET_SECONDS = 15.0


class Changes:
    """Hears every event that was applied, and tells it on."""

    def __init__(self, state: ClusterState, time: SteadyTime) -> None:
        self._state, self._time = state, time
        self._listeners: set[asyncio.Queue[Change | None]] = set()
        self._hosts_version = -1
        self._hosts: dict[str, str] = {}

    def heard(self, event: events.Event) -> None:
        if not self._listeners:
            return
        for change in (*self._changes(event), *self._host_changes()):
            for queue in list(self._listeners):
                if queue.qsize() >= MAX_WAITING:
                    self._listeners.discard(queue)
                    queue.put_nowait(None)
                else:
                    queue.put_nowait(change)

    async def follow(self, quiet_seconds: float = QUIET_SECONDS) -> AsyncGenerator[Change | None, None]:
        """Changes from now on, None when there was none for a while; ends for a listener that fell too far behind."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise LavaLiteError("too many follow the changes already", code="too_many", hint="Try again later.")
        queue: asyncio.Queue[Change | None] = asyncio.Queue()
        if not self._listeners:
            self._note_hosts()
        self._listeners.add(queue)
        try:
            while True:
                try:
                    async with asyncio.timeout(quiet_seconds):
                        change = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if change is None:
                    return
                yield change
        finally:
            self._listeners.discard(queue)

    def end(self) -> None:
        """End what all listeners hear: the scheduler is stopping."""
        for queue in self._listeners:
            queue.put_nowait(None)
        self._listeners.clear()

    def _changes(self, event: events.Event) -> Iterator[Change]:
        now = self._time.now()
        match event:
            case events.Submitted(record):
                yield Change(kind="job", name=str(record.id), state=self._job(record.id), at=now)
            case events.NodeReported(attempts=attempts):
                yield from self._tasks([report.id for report in attempts], now)
            case events.NodeRegistered(node=node, attempts=attempts):
                yield Change(kind="node", name=node, state="connected", at=now)
                yield from self._tasks([report.id for report in attempts], now)
            case events.NodeDisconnected(node):
                yield Change(kind="node", name=node, state="disconnected", at=now)
            case events.DrainRequested(node):
                yield Change(kind="node", name=node, state="drained", at=now)
            case events.ResumeRequested(node):
                yield Change(kind="node", name=node, state="resumed", at=now)
            case events.DefinitionApplied():
                yield Change(kind="definition", name="", state="applied", at=now)
            case (
                events.CancelRequested(job)
                | events.HoldRequested(job)
                | events.ReleaseRequested(job)
                | events.RequeueRequested(job)
            ):
                yield Change(kind="job", name=str(job), state=self._job(job), at=now)
            case _:
                pass

    def _tasks(self, attempts: list[AttemptId], now: float) -> Iterator[Change]:
        """Tasks that agents told of, and their jobs; nothing of what nobody here knows."""
        jobs: dict[int, None] = {}
        for attempt in attempts:
            job = self._state.jobs.get(attempt.job)
            position = job.position_of(attempt.task) if job else None
            if job is not None and position is not None:
                state = job.state_of(position).value
                yield Change(kind="task", name=f"{attempt.job}.{attempt.task}", state=state, at=now)
                jobs[attempt.job] = None
        for job_id in jobs:
            yield Change(kind="job", name=str(job_id), state=self._job(job_id), at=now)

    def _job(self, job_id: int) -> str:
        job = self._state.jobs.get(job_id)
        return job.state.value if job else "gone"

    def _host_changes(self) -> Iterator[Change]:
        if self._state.hosts_version == self._hosts_version:
            return
        before, now = self._hosts, self._time.now()
        self._note_hosts()
        for name in before.keys() | self._hosts.keys():
            state = self._hosts.get(name, "gone")
            if before.get(name) != state:
                yield Change(kind="host", name=name, state=state, at=now)

    def _note_hosts(self) -> None:
        self._hosts_version = self._state.hosts_version
        self._hosts = {name: host.state.value for name, host in self._state.hosts.items()}
