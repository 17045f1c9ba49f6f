"""When jobs that wait will start, as far as walltimes tell; and where they tell nothing, why not.

    planned      room is kept for it at that time: latest then, if ends are kept
    about        everybody before it in the order is planned; beside them it fits then
    not before   others wait before it whose starts are not planned; nothing was left for it before that
    unknown      what it waits for has no end that is known

Ends may come before their walltimes: then all of these are earlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lavalite.control import limits, quotas, reservations
from lavalite.control.ahead import lasts_until
from lavalite.control.find_start import find, floating_of
from lavalite.control.state import ClusterState
from lavalite.control.tasks import WAITING, JobState
from lavalite.ledger.book import FLOATING
from lavalite.model.resources import PLACES
from lavalite.model.task import TaskState
from lavalite.placement.filters import never_fits

MOST_SEARCHES = 32
"""So many kinds of requests are looked for in one list."""


@dataclass(slots=True, frozen=True)
class Estimate:
    """`at` is there for all but `unknown`; `why` says what is not known, or what it waits for."""

    kind: str
    at: float | None = None
    why: str = ""


class Estimates:
    """Of one look at the jobs: requests that are equal are looked for once."""

    def __init__(self, state: ClusterState, now: float) -> None:
        self._state = state
        self._now = now
        self._found: dict[tuple[object, ...], float] = {}
        state.refresh_columns(now)

    def of(self, job: JobState) -> Estimate | None:
        """None where nothing of the job waits."""
        state, now = self._state, self._now
        if not job.by_state().get(TaskState.PENDING):
            return None
        planned = state.plan.starts.get(job.id)
        if planned is not None and job.class_key:
            return Estimate("planned", max(now, planned.at))
        if not job.class_key:
            return _held_back(state, job, now)
        if job.spec.reservation:
            kept = state.reservations.get(job.spec.reservation)
            if kept is None or now < kept.start:
                at = kept.start if kept else None
                return Estimate("not before", at) if kept else Estimate("unknown", why="Its reservation is over.")
            return Estimate("unknown", why=f"It waits for what reservation {kept.name} keeps.")
        reached = [limits.sentence(state, limit) for limit in limits.reached(state, job)[:1]]
        if reached or (reached := quotas.sentences(state, job.spec)):
            return Estimate("unknown", why=reached[0])
        if fault := state.order.shape_of(state.classes[job.class_key]).fault:
            return Estimate("unknown", why=fault)
        at = self._at(job)
        if at is None:
            return Estimate("unknown", why="It was not worked out yet: ask again, or for this job alone.")
        if at == math.inf:
            return Estimate("unknown", why=_why_unknown(state, job, now))
        return Estimate("about" if _is_next(state, job) else "not before", at)

    def _at(self, job: JobState) -> float | None:
        """The earliest time at which it fits beside all that is planned; None if that is too much to look for."""
        if job.class_key not in self._found:
            if len(self._found) >= MOST_SEARCHES:
                return None
            state, waiting = self._state, self._state.classes[job.class_key]
            if not state.horizon.refresh(state, self._now, state.settings.max_rows_ahead):
                return None
            found = find(state, waiting, job, self._now)
            self._found[job.class_key] = found.at if found is not None else math.inf
        return self._found[job.class_key]


def _held_back(state: ClusterState, job: JobState, now: float) -> Estimate:
    """It is not in the order: something else than room keeps it."""
    if job.held:
        return Estimate("unknown", why="It is held.")
    if job.unmet:
        return Estimate("unknown", why="It waits for other jobs.")
    if job.sleeping and job.spec.not_before is not None:
        return Estimate("not before", job.spec.not_before)
    if job.counts.get(WAITING) and job.wakes and not job.ready:
        return Estimate("not before", max(now, min(job.wakes.values())))
    return Estimate("unknown", why="")


def _is_next(state: ClusterState, job: JobState) -> bool:
    """Whether everybody who waits before it is planned. With fairshare anybody may come to be before it."""
    mine = (-state.queue(job.queue).priority, -job.spec.priority, job.id)
    by_submission = job.queue not in state.fair
    for waiting in state.classes.values():
        priority = -state.queue(waiting.queue).priority
        known = waiting.key == job.class_key or (by_submission and waiting.queue not in state.fair)
        for place in waiting.jobs:
            if priority > mine[0] or (known and (priority, *place) >= mine):
                break
            if place[1] not in state.plan.starts:
                return False
    return True


def _why_unknown(state: ClusterState, job: JobState, now: float) -> str:
    """Who keeps it without an end, as a sentence."""
    waiting = state.classes[job.class_key]
    if any(never_fits(state.columns, wanted) is not None for wanted in waiting.each):
        return "No node could take it even if it were empty."
    places = [(FLOATING, kind) for kind in floating_of(job)]
    providers: list[str] = []
    for wanted in waiting.each:
        eligible = wanted.eligible(state.columns) & state.columns.ready
        names = [name for name, can in zip(state.columns.names, eligible, strict=True) if can]
        places += [(name, kind) for name in names for kind in wanted.needs if kind != PLACES]
        # One place is one of many, unless somebody has all of them.
        places += [(name, PLACES) for name in names if wanted.exclusive or not state.book.free_places(name)]
        providers += names
    for provider, kind in dict.fromkeys(places):
        for owner in state.book.holders(state.places.account(provider, kind), kind):
            run = state.run_of(owner)
            if run is None:
                return f"Host {owner.partition('/')[2]} holds what it waits for, and has no end."
            if lasts_until(state, run, now) == math.inf:
                if run.state is not TaskState.COMMITTED and run.state is not TaskState.RUNNING:
                    return f"Job {run.key.job} is {run.state.value}, and holds what it waits for."
                return f"Job {run.key.job}, which holds what it waits for, has no walltime."
    if any(reservations.kept_on(state, state.places.node(name), now) for name in providers[:100]):
        return "What it waits for is kept for others."
    return "Its turn comes with the next pass."
