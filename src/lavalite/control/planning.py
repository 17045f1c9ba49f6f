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

A pass looks for a few starts only, and again only for one that holds no longer or was found some time ago. Of those
that sleep a few have their turn for that in each pass (control.dormant), and none while nothing ends anywhere.
"""

from __future__ import annotations

from dataclasses import replace

from lavalite.control.demand import WaitingClass
from lavalite.control.find_start import find, holds, planned
from lavalite.control.plan import PlannedStart
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState
from lavalite.ledger.book import FLOATING


def plan(state: ClusterState, waiting: WaitingClass, job: JobState, now: float) -> bool:
    """Plan a start of one task of the job, or of all of a gang, which has no room.

    Whether the next of its class may be planned too. A search that found nothing is noted in its shape.
    """
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
    if before is not None and not holds(state, waiting, before, now):
        before = None
    if before is not None and now < before.found_at + again_seconds:
        return before
    shape = state.order.shape_of(waiting)
    tried_at, rows_version, tried = shape.tried
    if before is None and tried == job.id and now < tried_at + again_seconds and rows_version == state.rows_version:
        return None
    if not _may_search(state, now):
        state.plan_wanted = True
        return before
    found = find(state, waiting, job, now)
    if found is None:
        if before is None:
            shape.tried = (now, state.rows_version, job.id)
        return before
    if before is not None and before.at <= found.at:
        return replace(before, found_at=now)
    return planned(state, waiting, job, found.seats, found.at, now)


def _may_search(state: ClusterState, now: float) -> bool:
    """Whether this pass may look for another one, with nearly all rows up to date."""
    state.horizon.refresh(state, now, state.settings.max_rows_ahead)
    if not state.plan.searches_left or len(state.ends_changed) > len(state.columns) // 10:
        return False
    state.plan.searches_left -= 1
    return True


def may_end(state: ClusterState, now: float) -> bool:
    """Whether anything ends anywhere, so that a start may be planned at all."""
    up_to_date = state.horizon.refresh(state, now, state.settings.max_rows_ahead)
    kept = state.reservations or state.plan or state.book.kinds(FLOATING)
    return bool(kept) or not (up_to_date and state.horizon.empty)


def go_on(state: ClusterState, now: float) -> None:
    """Let planned starts be looked at again, now and then: ends may come late, and others early."""
    if state.plan and now >= state.plan.looked_at + state.settings.plan_again_seconds:
        state.schedule_wanted = state.keeps_changed = True
