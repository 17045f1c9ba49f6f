"""The earliest time and place at which a task of a job, or all tasks of a gang, will fit, as far as ends are known.

one task    rows by when they have enough at the earliest (control.horizon); the first few are looked at in full
a gang      the first of all ends by which enough rows have enough, taken together; what is kept for others is
            looked at from there on, for a few ends. So a start is found that holds, and not always the earliest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lavalite.control import seating
from lavalite.control.ahead import Ahead, Point, ahead_of, floating_ahead, floating_room, margin_seconds
from lavalite.control.demand import WaitingClass
from lavalite.control.plan import PlannedPart, PlannedStart
from lavalite.control.seating import NOTHING_HELD, Held, Rooms
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState
from lavalite.model.task import AttemptId
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import DeviceRow

MOST_LOOKS = 32
"""So many rows are looked at in full for one planned start, those that may be the first."""
MOST_TIMES = 64
"""So many times of a row are tried."""
MOST_GANG_TIMES = 8
"""So many ends are tried for a gang, from the first on by which it may fit."""
MOST_GANG_ROWS = 256
"""So many rows, those with most room, are looked at in full for a gang."""


@dataclass(slots=True, frozen=True)
class Found:
    """When, and how many tasks where: of each part, or of all that ask for the same."""

    at: float
    seats: tuple[dict[str, int], ...]


@dataclass(slots=True, frozen=True)
class _Wish:
    """What floats that all who start at once need, and for how long they hold their places."""

    floating: Mapping[str, int]
    lasts_seconds: float


def find(state: ClusterState, waiting: WaitingClass, job: JobState, now: float) -> Found | None:
    """The earliest time and place at which a task of the job will fit beside what is kept so far, if it ever will."""
    wish = _Wish(floating_at_once(job), lasts_seconds(state, job))
    if job.is_gang:
        return _find_gang(state, waiting, job, wish, now)
    soonest = state.horizon.earliest(state, waiting.wanted, now)
    best: Found | None = None
    for row in _in_order(soonest):
        if best is not None and soonest[row] >= best.at:
            break
        provider = state.columns.names[row]
        at = _earliest_on(state, waiting.wanted, wish, provider, float(soonest[row]), now)
        if at < math.inf and (best is None or at < best.at):
            best = Found(at, ({provider: 1},))
    return best


def planned(
    state: ClusterState,
    waiting: WaitingClass,
    job: JobState,
    seats: Sequence[dict[str, int]],
    at: float,
    now: float,
    preempts: frozenset[AttemptId] = frozenset(),
) -> PlannedStart:
    """A start of the job at that time, on so many seats of each provider for each part."""
    parts = tuple(
        PlannedPart(some, wanted.needs, wanted.gpu) for wanted, some in zip(waiting.each, seats, strict=True)
    )
    times = sum(sum(some.values()) for some in seats) // job.spec.tasks_counted
    floating = {kind: amount * times for kind, amount in floating_of(job).items()}
    return PlannedStart(job.id, waiting.queue, parts, at, at + lasts_seconds(state, job), floating, now, preempts)


def floating_of(job: JobState) -> dict[str, int]:
    """What one task needs of what floats, or all of a job with parts."""
    sums: dict[str, int] = {}
    for piece, tasks in job.spec.pieces():
        for kind, amount in piece.request.floating.items():
            if amount:
                sums[kind] = sums.get(kind, 0) + amount * tasks
    return sums


def floating_at_once(job: JobState) -> dict[str, int]:
    """What all that start at once need of what floats: of a gang all tasks, else one."""
    times = len(job.codes) // job.spec.tasks_counted if job.is_gang else 1
    return {kind: amount * times for kind, amount in floating_of(job).items()}


def lasts_seconds(state: ClusterState, job: JobState) -> float:
    """For how long a task may hold its place."""
    walltime = state.walltime_seconds(job)
    return math.inf if walltime is None else walltime + margin_seconds(state)


def holds(state: ClusterState, waiting: WaitingClass, start: PlannedStart, now: float) -> bool:
    """Whether a planned start, of before, is still to come and has its room."""
    if start.at <= now or len(start.parts) != len(waiting.each):
        return False
    wish = _Wish(start.floating, start.until - start.at)
    rooms = _RoomsThen(state, wish, start.at, now)
    held: dict[int, Held] = {}
    for wanted, part in zip(waiting.each, start.parts, strict=True):
        eligible = wanted.eligible(state.columns) & state.columns.ready
        for provider, tasks in part.seats.items():
            row = state.columns.row(provider)
            if row is None or not eligible[row]:
                return False
            beside = held.setdefault(row, Held())
            if rooms.beside(wanted, row, beside) < tasks:
                return False
            for _ in range(tasks if len(start.parts) > 1 else 0):
                beside.take(wanted, rooms.devices(row))
    return _floating_is_there(state, wish, start.at, now)


def _in_order(soonest: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[int]:
    """The rows that may be the first, soonest first; among equals in the order of rows."""
    rows = np.flatnonzero(soonest < math.inf)
    if len(rows) > MOST_LOOKS:
        last = np.partition(soonest[rows], MOST_LOOKS - 1)[MOST_LOOKS - 1]
        rows = rows[soonest[rows] <= last]
    return [int(row) for row in rows[np.argsort(soonest[rows], kind="stable")][:MOST_LOOKS]]


def _earliest_on(
    state: ClusterState, wanted: RequestClass, wish: _Wish, provider: str, first: float, now: float
) -> float:
    """From when on, at `first` at the earliest, the task has room on the provider for as long as it lasts."""
    ahead = ahead_of(state, provider, now)
    floating = floating_ahead(state, wish.floating, now)
    times = sorted({*ahead.times(first), *floating.times(first)})
    for time in times[:MOST_TIMES]:
        end = time + wish.lasts_seconds
        if wish.floating and not floating_room(state, wish.floating, floating.points(time, end)):
            continue
        if _room_along(state, wanted, provider, ahead, time, end):
            return time
    return math.inf


def _find_gang(state: ClusterState, waiting: WaitingClass, job: JobState, wish: _Wish, now: float) -> Found | None:
    """All tasks at one time. Room by amounts alone only grows with each end: the first end is found by halving."""
    times = state.horizon.times(now)
    first, last = 0, len(times)
    while first < last:
        middle = (first + last) // 2
        if seating.seats_in(state, waiting, job, _AmountsThen(state, times[middle])).seats:
            last = middle
        else:
            first = middle + 1
    names = state.columns.names
    for at in times[first : first + MOST_GANG_TIMES]:
        steps = seating.seats_in(state, waiting, job, _RoomsThen(state, wish, at, now)).steps
        if steps and _floating_is_there(state, wish, at, now):
            return Found(at, seating.by_part(waiting, steps, names))
    return None


class _AmountsThen(Rooms):
    """At a time, by what will have ended: what is kept for others, and which devices are free, is left out."""

    def __init__(self, state: ClusterState, at: float) -> None:
        self._state, self._at = state, at

    def rows(self, wanted: RequestClass) -> dict[int, int]:
        room = self._state.horizon.room(self._state, wanted, self._at)
        return {int(row): int(room[row]) for row in np.flatnonzero(room > 0)}

    def beside(self, wanted: RequestClass, row: int, held: Held) -> int:
        free = held.less(self._state.horizon.free_on(self._state, wanted, row, self._at))
        return max(0, min(free[kind] // amount for kind, amount in wanted.needs.items()))

    def devices(self, row: int) -> tuple[DeviceRow, ...]:
        return ()


class _RoomsThen(Rooms):
    """From a time on for as long as the tasks last, beside what is kept; of so many rows, the rest are left out."""

    def __init__(self, state: ClusterState, wish: _Wish, at: float, now: float) -> None:
        self._state, self._now = state, now
        self._at, self._end = at, at + wish.lasts_seconds
        self._points: dict[int, list[Point]] = {}

    def rows(self, wanted: RequestClass) -> dict[int, int]:
        room = _AmountsThen(self._state, self._at).rows(wanted)
        chosen = sorted(room, key=lambda row: (-room[row], row))[:MOST_GANG_ROWS]
        found = {row: min(room[row], self.beside(wanted, row, NOTHING_HELD)) for row in sorted(chosen)}
        return {row: tasks for row, tasks in found.items() if tasks}

    def beside(self, wanted: RequestClass, row: int, held: Held) -> int:
        columns = self._state.columns
        free = held.less({kind: int(columns.free(kind)[row]) for kind in wanted.needs})
        devices = held.less_devices(columns.devices(row)) if wanted.gpu is not None else ()
        return min(point.fits(wanted, free, devices) for point in self._along(row))

    def devices(self, row: int) -> tuple[DeviceRow, ...]:
        return tuple(self._along(row)[0].devices_then(self._state.columns.devices(row)))

    def _along(self, row: int) -> list[Point]:
        if row not in self._points:
            ahead = ahead_of(self._state, self._state.columns.names[row], self._now)
            self._points[row] = ahead.points(self._at, self._end)
        return self._points[row]


def _room_along(
    state: ClusterState, wanted: RequestClass, provider: str, ahead: Ahead, start: float, end: float
) -> int:
    return min(_room_at(state, wanted, provider, point) for point in ahead.points(start, end))


def _floating_is_there(state: ClusterState, wish: _Wish, start: float, now: float) -> bool:
    """Whether there is enough of what floats, from then on for as long as they last."""
    points = floating_ahead(state, wish.floating, now).points(start, start + wish.lasts_seconds)
    return floating_room(state, wish.floating, points) > 0


def _room_at(state: ClusterState, wanted: RequestClass, provider: str, point: Point) -> int:
    """How many tasks fit on the provider then, beside what is kept there."""
    columns, row = state.columns, state.columns.row(provider)
    if row is None:
        return 0
    free = {kind: int(columns.free(kind)[row]) for kind in wanted.needs}
    return point.fits(wanted, free, columns.devices(row))
