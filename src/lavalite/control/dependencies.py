"""Whether what a job waits for of other jobs has come true, at a cost that does not grow with their arrays.

    of a job, done exit ended    looked at once, when the last of its tasks has ended
    of a job, started            from the number of its tasks in each state
    of some tasks of it          from a cursor: which of them, in order, is the first that is not there yet
    index by index               a letter a task: BLOCKED until the other job's task of the same index is there

What has come true stays true for a leader: that a task has started, too, where it is to be tried again after that.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from lavalite.control.tasks import BLOCKED, CODES, FINAL_CODES, JobState
from lavalite.model.job import Dependency, DependencyKind
from lavalite.model.task import TaskState

DONE, EXIT, ENDED, STARTED = (
    DependencyKind.DONE,
    DependencyKind.EXIT,
    DependencyKind.ENDED,
    DependencyKind.STARTED,
)
_SUCCEEDED = CODES[TaskState.SUCCEEDED]
_MET_BY: dict[DependencyKind, frozenset[int]] = {
    DONE: frozenset({_SUCCEEDED}),
    EXIT: FINAL_CODES - {_SUCCEEDED},
    ENDED: FINAL_CODES,
    STARTED: FINAL_CODES | {CODES[TaskState.RUNNING], CODES[TaskState.SUSPENDED]},
}
"""The letters with which one task is as a dependency needs."""
_NOT_THERE = {kind: re.compile(b"[^%s]" % bytes(sorted(met))) for kind, met in {**_MET_BY, EXIT: FINAL_CODES}.items()}
"""Of many tasks: what a letter is in which one of them keeps the dependency from being met."""
_TABLES: dict[DependencyKind, NDArray[np.bool_]] = {
    kind: np.isin(np.arange(256), sorted(met)) for kind, met in _MET_BY.items()
}


def by_task(dependency: Dependency) -> bool:
    """Whether single tasks of the other job matter, and not its end alone."""
    return dependency.each or dependency.tasks is not None or dependency.kind is STARTED


def job_is_as_needed(job: JobState, kind: DependencyKind) -> bool:
    """Whether the whole job is."""
    if kind is STARTED:
        return sum(job.counts.get(code, 0) for code in _MET_BY[STARTED]) == len(job.codes)
    if job.unfinished:
        return False
    return kind is ENDED or (job.state is TaskState.SUCCEEDED) == (kind is DONE)


def task_is_as_needed(job: JobState, kind: DependencyKind, index: int) -> bool:
    """Whether the task of that index is. One that the job does not have never is."""
    position = job.position_of(index)
    return position is not None and job.codes[position] in _MET_BY[kind]


def first_missing(job: JobState, dependency: Dependency, cursor: int = 0) -> int | None:
    """Which of the tasks that it names is the first, from the cursor on, that is not as needed; None if all are.

    It counts in the order in which they are named. Those before the cursor were as needed at some time.
    """
    places, kind = _positions(job, dependency), dependency.kind
    if places.step == 1:
        found = _NOT_THERE[kind].search(job.codes, places.start + cursor, places.stop)
        missing = found.start() - places.start if found else None
    else:
        there = FINAL_CODES if kind is EXIT else _MET_BY[kind]
        missing = next((n for n in range(cursor, len(places)) if job.codes[places[n]] not in there), None)
    if missing is None and kind is EXIT and job.codes[places.start : places.stop : places.step].strip(b"D") == b"":
        return len(places) - 1  # all have ended, and all well: it never comes true
    return missing


def position_at(job: JobState, dependency: Dependency, cursor: int) -> int:
    """Where in the job the task stands to which the cursor points."""
    return _positions(job, dependency)[cursor]


def _positions(job: JobState, dependency: Dependency) -> range:
    """Where the tasks that it names stand. Admission saw to it that there are such."""
    named, indices = dependency.tasks, job.indices
    if named is None:
        return range(len(job.codes))
    first, step = named.first - indices.start, named.step
    count = len(named.indices())
    start = first // indices.step
    stride = step // indices.step if count > 1 else 1
    return range(start, start + (count - 1) * stride + 1, stride)


def block(job: JobState, others: list[tuple[Dependency, JobState | None]]) -> None:
    """Keep back the ready tasks of which a task of the same index is not as needed."""
    kept = np.zeros(len(job.codes), dtype=np.bool_)
    for dependency, other in others:
        kept |= ~_met(job, dependency.kind, other)
    job.block(kept)


def never(job: JobState, dependency: Dependency, other: JobState | None) -> int:
    """How many blocked tasks wait for one that has ended otherwise, or is not there."""
    mine = np.frombuffer(bytes(job.codes), dtype=np.uint8) == BLOCKED
    over = _met(job, ENDED, other) if other is not None else np.ones(len(mine), dtype=np.bool_)
    return int(np.count_nonzero(mine & over & ~_met(job, dependency.kind, other)))


def _met(job: JobState, kind: DependencyKind, other: JobState | None) -> NDArray[np.bool_]:
    """For each task of the job, whether the other's task of the same index is as needed."""
    met: NDArray[np.bool_] = np.zeros(len(job.codes), dtype=np.bool_)
    if other is not None:
        indices = np.arange(job.indices.start, job.indices.stop, job.indices.step, dtype=np.int64)
        places, rest = np.divmod(indices - other.indices.start, other.indices.step)
        there = (rest == 0) & (places >= 0) & (places < len(other.codes))
        met[there] = _TABLES[kind][np.frombuffer(bytes(other.codes), dtype=np.uint8)[places[there]]]
    return met
