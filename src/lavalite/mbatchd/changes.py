"""What changed, for whoever follows /v1/events: a word per thing, never its content. Slow listeners are cut off.

The last of them are remembered, each by its number, so that a program may ask now and then and miss nothing. Numbers
are those of one leadership: a cursor says of which. A new leader knows nothing of what came before it, and says so.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from lavalite.api.models import Change, ChangePage
from lavalite.base.errors import BusyError, InputError
from lavalite.base.steady import SteadyTime
from lavalite.control import events
from lavalite.control.preemption import PREEMPTED
from lavalite.control.state import ClusterState
from lavalite.model.task import AttemptId

MAX_WAITING = 10_000
MAX_LISTENERS = 1_000
QUIET_SECONDS = 15.0
MAX_REMEMBERED = 10_000
GATHER_SECONDS = 0.05
"""Who waits for changes looks this long after the first: they come in bursts."""
NOW = "now"
_RESERVATIONS = (events.Tick, events.ReservationMade, events.ReservationEnded, events.ReservationDrained)
"""After which there may be other reservations."""
_CURSOR = re.compile(r"(\d{1,18}\.\d{1,18})-(\d{1,18})")


class Told(NamedTuple):
    """A Change, as it is made for every task that starts or ends: this takes a tenth of the time."""

    kind: str
    name: str
    state: str
    at: float


class Changes:
    """Hears every event that was applied, and tells it on."""

    def __init__(self, state: ClusterState, time: SteadyTime) -> None:
        self._state, self._time = state, time
        self._listeners: set[asyncio.Queue[Told | None]] = set()
        self._remembered: deque[Told] = deque(maxlen=MAX_REMEMBERED)
        self._last = 0
        """The number of the change that was heard last; the first is 1."""
        self._news = asyncio.Event()
        self._waiting = 0
        self._ended = False
        self._note_hosts()
        self._reserved = self._reservations()

    def heard(self, event: events.Event) -> None:
        told = [*self._changes(event), *self._host_changes()]
        if isinstance(event, _RESERVATIONS):
            told += self._reservation_changes()
        if not told:
            return
        self._last += len(told)
        self._remembered.extend(told)
        self._news.set()
        for queue in list(self._listeners):
            for change in told:
                if queue.qsize() >= MAX_WAITING:
                    self._listeners.discard(queue)
                    queue.put_nowait(None)
                    break
                queue.put_nowait(change)

    async def follow(self, quiet_seconds: float = QUIET_SECONDS) -> AsyncGenerator[Change | None, None]:
        """Changes from now on, None when there was none for a while; ends for a listener that fell too far behind."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise BusyError("too many follow the changes already", hint="Try again later.")
        queue: asyncio.Queue[Told | None] = asyncio.Queue()
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
                yield Change(**change._asdict())
        finally:
            self._listeners.discard(queue)

    async def recent(self, since: str, wanted: Callable[[Told], bool], limit: int, wait_seconds: float) -> ChangePage:
        """What changed after the cursor `since`: at most `limit`, and as soon as there is anything.

        Without a cursor, all that is remembered; with `now`, what is yet to come. Raises InputError for a cursor that
        none of ours is, and BusyError where too many wait.
        """
        number, missed = self._number(since)
        found, number = self._after(number, wanted, limit)
        if found or wait_seconds <= 0:
            return self._page(found, number, missed)
        if self._waiting >= MAX_LISTENERS:
            raise BusyError("too many wait for changes already", hint="Try again later.")
        self._waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    while not found and not self._ended:
                        if self._last == number:
                            self._news.clear()
                            await self._news.wait()
                            await asyncio.sleep(GATHER_SECONDS)
                        missed |= number < self._last - len(self._remembered)
                        found, number = self._after(number, wanted, limit)
        finally:
            self._waiting -= 1
        return self._page(found, number, missed)

    def _number(self, since: str) -> tuple[int, bool]:
        """(the number after which to begin, whether something that came later is forgotten)."""
        oldest = self._last - len(self._remembered)
        if since == NOW:
            return self._last, False
        if not since:
            return oldest, False
        match = _CURSOR.fullmatch(since)
        if match is None or (match[1] == self._leadership and int(match[2]) > self._last):
            hint = "Give the cursor of an earlier answer, now, or none."
            raise InputError(f"{since[:40]!r} is no cursor", code="bad_cursor", field="since", hint=hint)
        if match[1] != self._leadership:
            return oldest, True
        return max(oldest, int(match[2])), int(match[2]) < oldest

    def _after(self, number: int, wanted: Callable[[Told], bool], limit: int) -> tuple[list[Told], int]:
        """(at most `limit` of what came after a number, the number to go on from)."""
        oldest = self._last - len(self._remembered)
        at, found = max(number, oldest), []
        for change in islice(self._remembered, at - oldest, None):
            at += 1
            if wanted(change):
                found.append(change)
                if len(found) == limit:
                    break
        return found, at

    def _page(self, found: list[Told], number: int, missed: bool) -> ChangePage:
        items = [Change(**told._asdict()) for told in found]
        return ChangePage(items=items, cursor=f"{self._leadership}-{number}", missed=missed)

    @property
    def _leadership(self) -> str:
        return ".".join(map(str, self._state.epoch))

    def end(self) -> None:
        """End what all listeners hear: the scheduler is stopping."""
        self._ended = True
        self._news.set()
        for queue in self._listeners:
            queue.put_nowait(None)
        self._listeners.clear()

    def _changes(self, event: events.Event) -> Iterator[Told]:
        now = self._time.now()
        match event:
            case events.Submitted(record):
                yield from self._job_and_group(record.id, now)
            case events.NodeReported(attempts=attempts):
                yield from self._tasks([report.id for report in attempts], now)
            case events.NodeRegistered(node=node, attempts=attempts):
                yield Told(kind="node", name=node, state="connected", at=now)
                yield from self._tasks([report.id for report in attempts], now)
            case events.NodeDisconnected(node):
                yield Told(kind="node", name=node, state="disconnected", at=now)
            case events.DrainRequested(node):
                yield Told(kind="node", name=node, state="drained", at=now)
            case events.ResumeRequested(node):
                yield Told(kind="node", name=node, state="resumed", at=now)
            case events.NodeForgotten(node):
                yield Told(kind="node", name=node, state="forgotten", at=now)
            case events.LabelsSet(node):
                yield Told(kind="node", name=node, state="labelled", at=now)
            case events.HostDrained(host, undo) if host in self._state.hosts:
                yield Told(kind="host", name=host, state="resumed" if undo else "drained", at=now)
            case events.DefinitionApplied():
                yield Told(kind="definition", name="", state="applied", at=now)
            case (
                events.CancelRequested(job)
                | events.HoldRequested(job)
                | events.ReleaseRequested(job)
                | events.RequeueRequested(job)
            ):
                yield from self._job_and_group(job, now)
            case _:
                pass

    def _tasks(self, attempts: list[AttemptId], now: float) -> Iterator[Told]:
        """Tasks that agents told of, and their jobs; nothing of what nobody here knows."""
        jobs: dict[int, None] = {}
        for attempt in attempts:
            job = self._state.jobs.get(attempt.job)
            position = job.position_of(attempt.task) if job else None
            if job is not None and position is not None:
                state = job.state_of(position).value
                end = job.ends.get(position)
                if state == "pending" and end is not None and end.reason.startswith(PREEMPTED):
                    yield Told(kind="task", name=f"{attempt.job}.{attempt.task}", state=PREEMPTED, at=now)
                yield Told(kind="task", name=f"{attempt.job}.{attempt.task}", state=state, at=now)
                jobs[attempt.job] = None
        for job_id in jobs:
            yield from self._job_and_group(job_id, now)

    def _job_and_group(self, job_id: int, now: float) -> Iterator[Told]:
        """A job, and once more where it is a component's: who watches groups hears of no others."""
        job = self._state.jobs.get(job_id)
        yield Told(kind="job", name=str(job_id), state=self._job(job_id), at=now)
        if job is not None and job.spec.component:
            yield Told(kind="group", name=str(job_id), state=job.state.value, at=now)

    def _job(self, job_id: int) -> str:
        job = self._state.jobs.get(job_id)
        return job.state.value if job else "gone"

    def _reservations(self) -> dict[str, str]:
        return {name: "drained" if r.drained else "kept" for name, r in self._state.reservations.items()}

    def _reservation_changes(self) -> Iterator[Told]:
        """Some end by themselves, when time passes."""
        before, self._reserved, now = self._reserved, self._reservations(), self._time.now()
        for name in before.keys() | self._reserved.keys():
            state = self._reserved.get(name, "gone")
            if before.get(name) != state:
                yield Told(kind="reservation", name=name, state=state, at=now)

    def _host_changes(self) -> Iterator[Told]:
        if self._state.hosts_version == self._hosts_version:
            return
        before, now = self._hosts, self._time.now()
        self._note_hosts()
        for name in before.keys() | self._hosts.keys():
            state = self._hosts.get(name, "gone")
            if before.get(name) != state:
                yield Told(kind="host", name=name, state=state, at=now)

    def _note_hosts(self) -> None:
        self._hosts_version = self._state.hosts_version
        self._hosts = {name: host.state.value for name, host in self._state.hosts.items()}
