"""The earliest time and place at which a task of a job, or all tasks of a gang, will fit, as far as ends are known.

one task    rows by when they have enough at the earliest (control.horizon); the first few are looked at in full
a gang      the first of all ends by which enough rows have enough, taken together; what is kept for others is
            looked at from there on, for a few ends. So a start is found that holds, and not always the earliest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lavalite.control import gangs
from lavalite.control.ahead import Ahead, Point, ahead_of, floating_ahead, floating_room, margin_seconds
from lavalite.control.demand import WaitingClass
from lavalite.control.plan import PlannedStart
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState
from lavalite.placement.classes import RequestClass

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
    """When, and how many tasks where."""

    at: float
    seats: dict[str, int]


@dataclass(slots=True, frozen=True)
class _Task:
    """What one task needs, and for how long it holds that."""

    wanted: RequestClass
    floating: Mapping[str, int]
    lasts_seconds: float


def find(state: ClusterState, waiting: WaitingClass, job: JobState, now: float) -> Found | None:
    """The earliest time and place at which a task of the job will fit beside what is kept so far, if it ever will."""
    task = _Task(waiting.wanted, floating_of(job), lasts_seconds(state, job))
    if job.is_gang:
        return _find_gang(state, task, job, now)
    soonest = state.horizon.earliest(state, waiting.wanted, now)
    best: Found | None = None
    for row in _in_order(soonest):
        if best is not None and soonest[row] >= best.at:
            break
        provider = state.columns.names[row]
        at = _earliest_on(state, task, provider, float(soonest[row]), now)
        if at < math.inf and (best is None or at < best.at):
            best = Found(at, {provider: 1})
    return best


def floating_of(job: JobState) -> dict[str, int]:
    """What one task needs of what floats."""
    return {kind: amount for kind, amount in job.spec.request.floating.items() if amount}


def lasts_seconds(state: ClusterState, job: JobState) -> float:
    """For how long a task may hold its place."""
    walltime = state.walltime_seconds(job)
    return math.inf if walltime is None else walltime + margin_seconds(state)


def holds(state: ClusterState, wanted: RequestClass, start: PlannedStart, now: float) -> bool:
    """Whether a planned start, of before, is still to come and has its room."""
    if start.at <= now:
        return False
    task = _Task(wanted, start.floating, start.until - start.at)
    eligible = wanted.eligible(state.columns) & state.columns.ready
    rows = [state.columns.row(provider) for provider in start.seats]
    if any(row is None or not eligible[row] for row in rows):
        return False
    enough = all(_room(state, task, p, start.at, now) >= tasks for p, tasks in start.seats.items())
    return enough and _floating_room(state, task, start.at, now) >= start.tasks


def _in_order(soonest: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[int]:
    """The rows that may be the first, soonest first; among equals in the order of rows."""
    rows = np.flatnonzero(soonest < math.inf)
    if len(rows) > MOST_LOOKS:
        last = np.partition(soonest[rows], MOST_LOOKS - 1)[MOST_LOOKS - 1]
        rows = rows[soonest[rows] <= last]
    return [int(row) for row in rows[np.argsort(soonest[rows], kind="stable")][:MOST_LOOKS]]


def _earliest_on(state: ClusterState, task: _Task, provider: str, first: float, now: float) -> float:
    """From when on, at `first` at the earliest, the task has room on the provider for as long as it lasts."""
    ahead = ahead_of(state, provider, now)
    floating = floating_ahead(state, task.floating, now)
    times = sorted({*ahead.times(first), *floating.times(first)})
    for time in times[:MOST_TIMES]:
        end = time + task.lasts_seconds
        if task.floating and not floating_room(state, task.floating, floating.points(time, end)):
            continue
        if _room_along(state, task.wanted, provider, ahead, time, end):
            return time
    return math.inf


def _find_gang(state: ClusterState, task: _Task, job: JobState, now: float) -> Found | None:
    """All tasks at one time. Room by amounts alone only grows with each end: the first end is found by halving."""
    times = state.horizon.times(now)
    first, last = 0, len(times)
    while first < last:
        middle = (first + last) // 2
        if gangs.seats_in(state, job, _rows(state.horizon.room(state, task.wanted, times[middle]))).seats:
            last = middle
        else:
            first = middle + 1
    for at in times[first : first + MOST_GANG_TIMES]:
        room = _rows(state.horizon.room(state, task.wanted, at))
        seats = gangs.seats_in(state, job, _beside_others(state, task, room, at, now)).seats
        if seats and _floating_room(state, task, at, now) >= len(job.codes):
            return Found(at, {state.columns.names[row]: tasks for row, tasks in seats.items()})
    return None


def _rows(room: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[int, int]:
    return {int(row): int(room[row]) for row in np.flatnonzero(room > 0)}


def _beside_others(state: ClusterState, task: _Task, room: dict[int, int], at: float, now: float) -> dict[int, int]:
    """How many tasks those rows really take from then on; of so many rows, the rest are left out."""
    chosen = sorted(room, key=lambda row: (-room[row], row))[:MOST_GANG_ROWS]
    names = state.columns.names
    found = {row: min(room[row], _room(state, task, names[row], at, now)) for row in sorted(chosen)}
    return {row: tasks for row, tasks in found.items() if tasks}


def _room(state: ClusterState, task: _Task, provider: str, start: float, now: float) -> int:
    """How many tasks fit on the provider from then on for as long as they last, beside what is kept there."""
    end = start + task.lasts_seconds
    return _room_along(state, task.wanted, provider, ahead_of(state, provider, now), start, end)


def _room_along(
    state: ClusterState, wanted: RequestClass, provider: str, ahead: Ahead, start: float, end: float
) -> int:
    return min(_room_at(state, wanted, provider, point) for point in ahead.points(start, end))


def _floating_room(state: ClusterState, task: _Task, start: float, now: float) -> int:
    """For how many tasks there is enough of what floats, from then on for as long as they last."""
    points = floating_ahead(state, task.floating, now).points(start, start + task.lasts_seconds)
    return floating_room(state, task.floating, points)


def _room_at(state: ClusterState, wanted: RequestClass, provider: str, point: Point) -> int:
    """How many tasks fit on the provider then, beside what is kept there."""
    columns, row = state.columns, state.columns.row(provider)
    if row is None:
        return 0
    free = {kind: int(columns.free(kind)[row]) for kind in wanted.needs}
    return point.fits(wanted, free, columns.devices(row))
