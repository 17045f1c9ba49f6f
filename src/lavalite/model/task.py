"""States of a task and the one table of transitions between them.

PENDING ──► COMMITTED ──► RUNNING ◄──► SUSPENDED        ends: SUCCEEDED  FAILED  CANCELLED
   ▲            │            │             │
   └────────────┴────────────┴─────────────┘  refused, retry, requeue, evicted (with back-off)
COMMITTED, RUNNING, SUSPENDED ──► UNKNOWN when their agent is lost, and back when it says so
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class TaskState(StrEnum):
    PENDING = "pending"
    COMMITTED = "committed"
    RUNNING = "running"
    SUSPENDED = "suspended"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


P, C, R, S, U = (
    TaskState.PENDING,
    TaskState.COMMITTED,
    TaskState.RUNNING,
    TaskState.SUSPENDED,
    TaskState.UNKNOWN,
)
FINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})
LIVE = frozenset({C, R, S, U})
"""States in which a task holds a commitment."""

TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    P: frozenset({C, TaskState.CANCELLED}),
    C: frozenset({R, P, TaskState.FAILED, TaskState.CANCELLED, U}),
    R: frozenset({S, P, U}) | FINAL,
    S: frozenset({R, P, U}) | FINAL,
    U: frozenset({R, S, P}) | FINAL,
    TaskState.SUCCEEDED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELLED: frozenset(),
}

STATE_CODES: dict[TaskState, str] = {
    P: "P",
    C: "C",
    R: "R",
    S: "S",
    U: "U",
    TaskState.SUCCEEDED: "D",
    TaskState.FAILED: "F",
    TaskState.CANCELLED: "X",
}
"""One letter a state: a chunk of tasks is stored as a string of them."""
STATES_BY_CODE = {code: state for state, code in STATE_CODES.items()}

CHUNK_TASKS = 8192
"""Tasks whose states are stored in one record."""


JOBS_PER_GENERATION = 10**9
"""A store that was restored from a backup has forgotten the last ids that were given out. Agents have not: they would
take a new job's attempt for one that they know. So each generation has ids of its own, and ids tell what may have
been forgotten: that of a job before the restore."""


def before_restore(job: int, epoch: tuple[int, int]) -> bool:
    """Whether the job is older than the last restore, so that the store may not know all of it."""
    return job <= epoch[0] * JOBS_PER_GENERATION


class AttemptId(NamedTuple):
    """One try at running one task. `task` is the array index, 0 where the job is no array. Counts from 1."""

    job: int
    task: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.job}.{self.task}.{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> AttemptId:
        """The inverse of str(). Raises ValueError."""
        job, task, attempt = text.split(".")
        return cls(int(job), int(task), int(attempt))


def allowed(before: TaskState, after: TaskState) -> bool:
    """Whether the table has this transition."""
    return after in TRANSITIONS[before]


def job_state(states: Iterable[TaskState]) -> TaskState:
    """The state of a job: what is still going on comes first, then what went wrong.

    RUNNING if any task runs; else UNKNOWN, SUSPENDED, COMMITTED, PENDING if any is; when all have ended:
    CANCELLED if any was cancelled, FAILED if any failed, else SUCCEEDED.
    """
    present = set(states)
    for state in (R, U, S, C, P, TaskState.CANCELLED, TaskState.FAILED):
        if state in present:
            return state
    return TaskState.SUCCEEDED
