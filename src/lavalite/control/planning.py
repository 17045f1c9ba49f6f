"""Planned starts and backfill: what waits first is told when it will start, and nothing behind it makes that later.

    no room for a job ──► the earliest time and place at which it will fit ──► that room is kept, in this pass, from
                                                                               all that is looked at later in it

    easy           the first of each queue is planned
    conservative   so many of each queue are, in the order in which they wait
    none           nobody is: what fits starts, whoever waits before it

The law: what starts behind a planned start either ends in time for it or fits beside it. It holds since whoever is
looked at later in a pass sees what is kept for those before (reservations.choice), and since in each later pass a
planned start has its turn before them again. Only ends that come later than walltimes allow, nodes that go, and what
comes before it in the order make a planned start later.

A pass looks for a few starts only, and again only for one that holds no longer or was found some time ago.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

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


@dataclass(slots=True, frozen=True)
class _Task:
    """What one task needs, and for how long it holds that."""

    wanted: RequestClass
    floating: Mapping[str, int]
    lasts_seconds: float


def plan(state: ClusterState, waiting: WaitingClass, job: JobState, now: float) -> bool:
    """Plan a start of one task of the job, which has no room; whether the next of its class may be planned too."""
    queue, before = state.queue(waiting.queue), state.plan.take_before(job.id)
    most = queue.planned_starts
    if state.plan.of_queue(waiting.queue) >= most or job.spec.reservation:
        return False
    start = _planned(state, waiting, job, before, now)
    if start is None:
        return False
    state.plan.add(start)
    return state.plan.of_queue(waiting.queue) < most


def _planned(
    state: ClusterState, waiting: WaitingClass, job: JobState, before: PlannedStart | None, now: float
) -> PlannedStart | None:
    """What stands of before where that still holds, else what is found now."""
    again_seconds = state.settings.plan_again_seconds
    if before is not None and not holds(state, waiting.wanted, before, now):
        before = None
    if before is not None and now < before.found_at + again_seconds:
        return before
    failed_at, rows_version = state.plan.failed.get(job.id, (-math.inf, -1))
    if before is None and now < failed_at + again_seconds and rows_version == state.rows_version:
        return None
    if not _may_search(state, now):
        state.plan_wanted = True
        return before
    found = find(state, waiting.wanted, job, now)
    if found is None:
        if before is None:
            state.plan.failed[job.id] = (now, state.rows_version)
        return before
    if before is not None and before.at <= found[0]:
        return replace(before, found_at=now)
    at, provider = found
    wanted, until = waiting.wanted, at + _lasts_seconds(state, job)
    return PlannedStart(job.id, waiting.queue, provider, at, until, wanted.amounts, _floating(job), wanted.gpu, now)


def _may_search(state: ClusterState, now: float) -> bool:
    """Whether this pass may look for another one, with nearly all rows up to date."""
    state.horizon.refresh(state, now, state.settings.max_rows_ahead)
    if not state.plan.searches_left or len(state.ends_changed) > len(state.columns) // 10:
        return False
    state.plan.searches_left -= 1
    return True


def _floating(job: JobState) -> dict[str, int]:
    return {kind: amount for kind, amount in job.spec.request.floating.items() if amount}


def _lasts_seconds(state: ClusterState, job: JobState) -> float:
    walltime = state.walltime_seconds(job)
    return math.inf if walltime is None else walltime + margin_seconds(state)


def find(state: ClusterState, wanted: RequestClass, job: JobState, now: float) -> tuple[float, str] | None:
    """The earliest time and place at which a task of the job will fit beside what is kept so far, if it ever will."""
    soonest = state.horizon.earliest(state, wanted, now)
    task = _Task(wanted, _floating(job), _lasts_seconds(state, job))
    best: tuple[float, str] | None = None
    for row in _in_order(soonest):
        if best is not None and soonest[row] >= best[0]:
            break
        provider = state.columns.names[row]
        at = earliest_on(state, task, provider, float(soonest[row]), now)
        if at < math.inf and (best is None or at < best[0]):
            best = (at, provider)
    return best


def _in_order(soonest: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[int]:
    """The rows that may be the first, soonest first; among equals in the order of rows."""
    rows = np.flatnonzero(soonest < math.inf)
    if len(rows) > MOST_LOOKS:
        last = np.partition(soonest[rows], MOST_LOOKS - 1)[MOST_LOOKS - 1]
        rows = rows[soonest[rows] <= last]
    return [int(row) for row in rows[np.argsort(soonest[rows], kind="stable")][:MOST_LOOKS]]


def earliest_on(state: ClusterState, task: _Task, provider: str, first: float, now: float) -> float:
    """From when on, at `first` at the earliest, the task has room on the provider for as long as it lasts."""
    ahead = ahead_of(state, provider, now)
    floating = floating_ahead(state, task.floating, now)
    times = sorted({*ahead.times(first), *floating.times(first)})
    for time in times[:MOST_TIMES]:
        if _fits(state, task, provider, (ahead, floating), time):
            return time
    return math.inf


def holds(state: ClusterState, wanted: RequestClass, start: PlannedStart, now: float) -> bool:
    """Whether a planned start, of before, is still to come and has its room."""
    row = state.columns.row(start.provider)
    if row is None or start.at <= now or not (state.columns.ready[row] and wanted.eligible(state.columns)[row]):
        return False
    task = _Task(wanted, start.floating, start.until - start.at)
    both = (ahead_of(state, start.provider, now), floating_ahead(state, start.floating, now))
    return _fits(state, task, start.provider, both, start.at)


def _fits(state: ClusterState, task: _Task, provider: str, both: tuple[Ahead, Ahead], start: float) -> bool:
    ahead, floating = both
    end = start + task.lasts_seconds
    if task.floating and not floating_room(state, task.floating, floating.points(start, end)):
        return False
    return all(room_at(state, task.wanted, provider, point) for point in ahead.points(start, end))


def room_at(state: ClusterState, wanted: RequestClass, provider: str, point: Point) -> int:
    """How many tasks fit on the provider then, beside what is kept there."""
    columns, row = state.columns, state.columns.row(provider)
    if row is None:
        return 0
    free = {kind: int(columns.free(kind)[row]) for kind in wanted.amounts}
    return point.fits(wanted, free, columns.devices(row))


def go_on(state: ClusterState, now: float) -> None:
    """Let planned starts be looked at again, now and then: ends may come late, and others early."""
    if state.plan and now >= state.plan.looked_at + state.settings.plan_again_seconds:
        state.schedule_wanted = True
