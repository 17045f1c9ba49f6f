"""Gangs: jobs whose tasks start together or not at all, and end as one.

    placed      all tasks at once, on as few nodes as the gang's span allows; where not all fit, none is taken
    committed   in as few transactions as the store's limit allows; nothing goes to a node before all are durable
    unwound     if one of these transactions is not written, what the others wrote is given back: nobody heard of it
    one fails   where a retry is left all go back to PENDING and start anew together; else all end as FAILED
    one is cancelled, requeued, suspended    all are

All tasks of a gang make the same attempt, by its number. Once one of them has ended well, the gang does not begin
anew: what fails after that has failed for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lavalite.control import affinity
from lavalite.control.outbox import Outbox
from lavalite.control.state import ClusterState
from lavalite.control.tasks import ASSUMED, BLOCKED, CODES, READY, WAITING, End, JobState, TaskKey, TaskRun
from lavalite.control.wishes import end_run
from lavalite.model.job import Gang
from lavalite.model.task import TaskState
from lavalite.placement.ranking import Leaning

REASON = "its gang is ended as one"
NOTHING_MET: Mapping[int, int] = {}
_ENDED_BADLY = (CODES[TaskState.FAILED], CODES[TaskState.CANCELLED])
_ENDED = (*_ENDED_BADLY, CODES[TaskState.SUCCEEDED])


class Step(NamedTuple):
    """So many tasks of a part, by its number, on a row."""

    part: int
    row: int
    tasks: int


@dataclass(slots=True)
class Seats:
    """Where the tasks of a gang would go: so many on each row. `fit` is how many could start at once, `within` where;
    `seats` is empty while that is not all of them."""

    fit: int
    within: str = ""
    seats: dict[int, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    """The same in the order in which they are to be taken, by part: devices go to those that are first."""


# --- placing --------------------------------------------------------------------------------------------------------


def seats_in(state: ClusterState, job: JobState, room: dict[int, int]) -> Seats:
    """Room for all tasks of a job that ask for the same, on rows that take so many each, in the tightest place that
    has it; else where most of them fit. See control.seating for parts."""
    gang, wanted = job.spec.gang or Gang(), len(job.codes)
    most = min(wanted, gang.tasks_per_node or wanted)
    leaning = affinity.leaning(state, job) or Leaning()
    room = {row: min(most, tasks) for row, tasks in room.items() if leaning.open is None or leaning.open[row]}
    met = {row: int(leaning.met[row]) for row in room} if leaning.met is not None else {}
    found = [
        _nearby(state, gang, wanted, place, some, met) for place, some in places(state, gang.within, room).items()
    ]
    good = [seats for seats in found if seats.seats]
    if good:
        return min(good, key=lambda seats: (-met_by(seats, met), seats.fit, seats.within))
    return max(found, key=lambda seats: seats.fit, default=Seats(0))


def _nearby(
    state: ClusterState, gang: Gang, wanted: int, place: str, room: dict[int, int], met: Mapping[int, int]
) -> Seats:
    """Seats in as few values of the preferred label as can be; anywhere in the place if that is not enough."""
    inner = places(state, gang.prefer_within, room)
    if len(inner) < 2:
        return _seats(gang, wanted, place, room, met)
    alone = [_seats(gang, wanted, place, some, met) for some in inner.values()]
    if good := [seats for seats in alone if seats.seats]:
        return min(good, key=lambda seats: (-met_by(seats, met), seats.fit))
    rows: dict[int, int] = {}
    for some in sorted(inner.values(), key=lambda some: -sum(some.values())):
        rows |= some
        if (seats := _seats(gang, wanted, place, rows, met)).seats:
            return seats
    return _seats(gang, wanted, place, room, met)


def places(state: ClusterState, label: str, room: dict[int, int]) -> dict[str, dict[int, int]]:
    """The rows by the value of the label that all of them must share; all of them where there is none."""
    if not label:
        return {"": room}
    places: dict[str, dict[int, int]] = {}
    for row, tasks in room.items():
        node = state.node_of(state.columns.names[row])
        for value in node.labels.get(label, ()) if node is not None else ():
            places.setdefault(value, {})[row] = tasks
    return dict(sorted(places.items()))


def met_by(seats: Seats, met: Mapping[int, int]) -> int:
    """How much is met of what is preferred, over all tasks."""
    return sum(met.get(row, 0) * tasks for row, tasks in seats.seats.items())


def _seats(gang: Gang, wanted: int, place: str, room: dict[int, int], met: Mapping[int, int] = NOTHING_MET) -> Seats:
    """The fewest rows that the span allows and that take all, the roomiest first; the last one as tight as can be.

    Where rows meet more of what is preferred than others, those come first, if with them the span can be kept.
    """
    if met:
        preferred = _fewest(gang, wanted, place, room, met)
        if preferred.seats:
            return preferred
    return _fewest(gang, wanted, place, room, NOTHING_MET)


def _fewest(gang: Gang, wanted: int, place: str, room: dict[int, int], met: Mapping[int, int]) -> Seats:
    rows = sorted(room, key=lambda row: (-met.get(row, 0), -room[row], row))
    least, most = gang.nodes_least, min(gang.nodes_most or wanted, wanted)
    fit = sum(room[row] for row in rows[:most])
    count = next((n for n in range(1, most + 1) if sum(room[r] for r in rows[:n]) >= wanted), None)
    if count is None or len(rows) < least:
        return Seats(min(fit, wanted) if len(rows) >= least else 0, place)
    chosen = rows[: max(count, least)]
    if len(chosen) > 1 and least <= count:
        rest = wanted - sum(room[row] for row in chosen[:-1])
        enough = (row for row in rows[count - 1 :] if room[row] >= rest)
        chosen[-1] = min(enough, key=lambda row: (-met.get(row, 0), room[row], row))
    seats, left = {}, wanted
    for number, row in enumerate(chosen):
        # Each of those that come after takes one at least.
        seats[row] = min(room[row], left - (len(chosen) - number - 1))
        left -= seats[row]
    return Seats(sum(room.values()), place, seats)


def number_of_attempt(job: JobState) -> int:
    """The number that the next attempt of all its tasks has."""
    return max(job.attempts_of(position) for position in range(len(job.codes))) + 1


# --- starting -------------------------------------------------------------------------------------------------------


def may_start(state: ClusterState, job: JobState) -> bool:
    """Whether every task's commitment is durable: only then may one of them be sent to its node."""
    return not job.is_gang or not (job.counts.get(ASSUMED) or is_broken(state, job))


def is_broken(state: ClusterState, job: JobState) -> bool:
    """Whether some of a gang hold something while others wait: then all of it has to begin anew.

    After a restore that is not known before all nodes have told what they started.
    """
    if not job.is_gang or state.waits_for_journals(job):
        return False
    return _waiting(job) > 0 and any(True for _ in job.holding())


def nodes_of(state: ClusterState, job: JobState, positions: range | None = None) -> str:
    """`n1:4 n2:2`: how many tasks of the gang, or of some of it, each node has, in the order of their indices."""
    counts: dict[str, int] = {}
    for position in range(len(job.codes)) if positions is None else positions:
        run = state.runs.get(TaskKey(job.id, job.indices[position]))
        node = run.node if run is not None else job.ends[position].node if position in job.ends else ""
        if node:
            counts[node] = counts.get(node, 0) + 1
    return " ".join(f"{node}:{tasks}" for node, tasks in counts.items())


# --- ending as one --------------------------------------------------------------------------------------------------


def begins_anew(state: ClusterState, job: JobState) -> bool:
    """Whether an attempt that has ended just now is of no account, however it ended: its gang begins anew."""
    return is_broken(state, job)


def has_begun_to_end(job: JobState) -> bool:
    """Whether a task of the gang has ended for good, so that no other may go back to PENDING."""
    return job.is_gang and any(job.counts.get(code) for code in _ENDED)


def settle(state: ClusterState, now: float, out: Outbox) -> None:
    """Bring the tasks of each gang in line of which one has moved."""
    moved, state.gangs_moved = state.gangs_moved, set()
    for number in sorted(moved):
        job = state.jobs.get(number)
        if job is not None and job.unfinished and not state.waits_for_journals(job):
            _settle(state, job, now, out)
    state.gangs_moved.clear()


def _settle(state: ClusterState, job: JobState, now: float, out: Outbox) -> None:
    badly = any(job.counts.get(code) for code in _ENDED_BADLY)
    if badly or is_broken(state, job):
        for run in runs_of(state, job):
            if not (run.cancel_requested or run.requeue_requested):
                end_run(state, run, REASON, now, out, requeue=True)
    if has_begun_to_end(job) and _waiting(job):
        never_again = End(None, REASON, "", None, now)
        for position, code in enumerate(bytes(job.codes)):
            if code in (READY, WAITING, BLOCKED):
                state.cancel_pending(job, position, never_again)


def _waiting(job: JobState) -> int:
    return sum(job.counts.get(code, 0) for code in (READY, WAITING, BLOCKED))


def runs_of(state: ClusterState, job: JobState) -> list[TaskRun]:
    """Those of its tasks that hold something."""
    return [state.runs[TaskKey(job.id, job.indices[position])] for position in job.holding()]
