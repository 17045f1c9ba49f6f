"""Jobs as the scheduler holds them: a byte a task, and an object only for tasks that hold something.

The bytes are the letters of model.task.STATE_CODES, and three more, all of them PENDING to everybody else:

    P ready to be placed        A placed and assumed, its commitment not durable yet        W backed off until a time
    B waits for another job's task of the same index
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavalite.model.job import CommitmentRecord, JobSpec, Share, TaskChunk
from lavalite.model.task import (
    CHUNK_TASKS,
    FINAL,
    LIVE,
    STATE_CODES,
    STATES_BY_CODE,
    AttemptId,
    TaskState,
    allowed,
    job_state,
)

READY, ASSUMED, WAITING, BLOCKED = ord("P"), ord("A"), ord("W"), ord("B")
CODES: dict[TaskState, int] = {state: ord(code) for state, code in STATE_CODES.items()}
STATES: dict[int, TaskState] = {
    **{ord(code): state for code, state in STATES_BY_CODE.items()},
    ASSUMED: TaskState.PENDING,
    WAITING: TaskState.PENDING,
    BLOCKED: TaskState.PENDING,
}
ENDS_OF_ALL_TASKS = 256
"""In a job of more tasks than this, how a task ended is kept only where it ran and did not succeed: a chunk is
written anew with every end, and must stay small."""
MAX_CHUNK_BYTES = 960 * 1024
"""Most that the record of a chunk has: it must fit into one transaction, whatever agents say of how tasks ended."""
FINAL_CODES = frozenset(CODES[state] for state in FINAL)
LIVE_CODES = frozenset(CODES[state] for state in LIVE)
_HOLDING = re.compile(b"[%sA]" % bytes(sorted(LIVE_CODES)))
_UNFINISHED = re.compile(b"[^%s]" % bytes(sorted(FINAL_CODES)))
AS_STORED = bytes.maketrans(b"AWBCRSU", b"PPPPPPP")
"""A live task's state is in its commitment; in its chunk it is what it falls back to."""


NONE_UNMET: frozenset[int] = frozenset()
NOTHING: Mapping[int, Any] = MappingProxyType({})
UNPACKED_SPECS = 512
"""Specs of so many jobs are at hand: those of the jobs that something happens to."""
UNPACKED_ASKS = 4096
OF_ONE_JOB: Any = {
    **dict.fromkeys(("name", "command", "cwd", "environment", "stdout_path", "stderr_path"), True),
    **dict.fromkeys(("depends", "not_before", "hold", "retries", "retry_on", "backoff"), True),
    **dict.fromkeys(("grace_seconds", "start_within_seconds", "component"), True),
    "parts": {"__all__": {"command"}},
}
"""What of a spec does not matter to which other jobs it waits with."""


@lru_cache(UNPACKED_ASKS)
def _asked(packed: str) -> JobSpec:
    return JobSpec.model_validate(json.loads(packed) | {"command": ["-"]})


@lru_cache(UNPACKED_SPECS)
def unpacked(packed: bytes) -> JobSpec:
    """A spec out of its JSON, in which all that is as by default may be left out."""
    return JobSpec.model_validate_json(packed)


class IllegalTransition(AssertionError):
    """A transition that the table does not have was tried: a bug, and nothing that could be gone on from."""


class TaskKey(NamedTuple):
    """`task` is the array index, 0 where the job is no array."""

    job: int
    task: int

    @property
    def owner(self) -> str:
        """The name its commitment goes by."""
        return f"job/{self.job}/{self.task}"


class End(NamedTuple):
    """How a task ended. `exit_code` is negative for a signal, absent where it never ran."""

    exit_code: int | None = None
    reason: str = ""
    node: str = ""
    started_at: float | None = None
    ended_at: float | None = None

    def stored(self) -> dict[str, Any]:
        return {k: v for k, v in self._asdict().items() if v not in (None, "")}


@dataclass(slots=True, eq=False)
class TaskRun:
    """A task that holds a commitment. `assumed` until that is durable; `state` is its live state after that."""

    key: TaskKey
    position: int
    attempt: int
    node: str
    journal_id: str
    committed_at: float
    epoch: tuple[int, int] = (0, 0)
    state: TaskState = TaskState.COMMITTED
    assumed: bool = True
    started_at: float | None = None
    fence_after_seconds: int = 0
    """As its node is told, whatever its queue says by now; 0: its node does not stop it."""
    ends_by: float | None = None
    """When its reservation ends, and the task with it."""
    exclusive: bool = False
    """Whether it has its node for itself."""
    cancel_requested: bool = False
    requeue_requested: bool = False
    suspend_requested: bool = False
    """Whether it is, or is to be, suspended for another one."""
    resume_sent: bool = False
    """Whether it was told to go on after that, and has not said yet that it does."""
    parked: tuple[Share, ...] = ()
    """What it gave back while it is suspended for another one."""
    preempted: str = ""
    """For whom it was told to end or to stand still, for people; empty if it was not preempted."""
    stop_by: float | None = None
    """When it has surely ended, since its agent was told to end it; in memory alone."""
    maybe_sent: bool = False
    """Whether the agent may have heard of it."""
    lost_since: float | None = None
    """Since when its agent has been gone for good, so far as we know: its journal is another one now."""
    told_to_end_at: float | None = None
    """When its agent was told last to end it, since its node is to be free of work."""

    @property
    def id(self) -> AttemptId:
        return AttemptId(self.key.job, self.key.task, self.attempt)


@dataclass(slots=True)
class Tried:
    """What there is to be remembered of tasks that were tried: sparse, by position."""

    attempts: dict[int, int] = field(default_factory=dict)
    charges: dict[int, int] = field(default_factory=dict)
    preemptions: dict[int, int] = field(default_factory=dict)
    ends: dict[int, End] = field(default_factory=dict)
    wakes: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class JobState:
    """One job. Positions count from 0 in `indices`; letters, counts and cursor are kept in step by `set_code`.

    Most jobs that wait have never been tried, and have tasks that are all alike: these weigh nothing extra.
    """

    id: int
    packed: bytes
    """Its spec, as `unpacked` takes it: a tenth of what the model weighs."""
    packed_asks: str
    """The same without what is OF_ONE_JOB: one text for all jobs that are alike otherwise."""
    user: str
    name: str
    host: str
    is_gang: bool
    """This and the three before it are the spec's; all jobs are looked through for them."""
    submitted_at: float
    submit_key: str
    indices: range
    codes: bytearray
    unfinished: int
    """How many tasks have not ended."""
    _counts: dict[int, int] | None = None
    """None while all tasks have one letter, as that of a single task always is."""
    _tried: Tried | None = None
    """None while there is nothing to be remembered."""
    held: bool = False
    cancelling: bool = False
    """Whether all of it is to be cancelled: nothing of it starts any more."""
    sleeping: bool = False
    """Whether it is too early for it to start."""
    hold_changed: bool = False
    queue: str = ""
    class_key: tuple[Any, ...] = ()
    """Under which it waits; empty while it does not."""
    unmet: frozenset[int] = NONE_UNMET
    """Which of its dependencies have not come true, by their place in the spec; not those index by index."""
    cursor: int = 0
    """No task before this position is ready."""
    started_at: float | None = None
    ended_at: float | None = None

    @classmethod
    def new(cls, job_id: int, spec: JobSpec, submitted_at: float, submit_key: str = "") -> JobState:
        indices = spec.indices()
        codes = bytearray(b"P" * len(indices))
        return cls(
            job_id,
            spec.model_dump_json(exclude_defaults=True).encode(),
            sys.intern(spec.model_dump_json(exclude=OF_ONE_JOB, exclude_defaults=True)),
            sys.intern(spec.user),
            spec.name,
            sys.intern(spec.host),
            spec.gang is not None,
            submitted_at,
            submit_key,
            indices,
            codes,
            len(codes),
            held=spec.hold,
        )

    @property
    def spec(self) -> JobSpec:
        """What was submitted. Not to be changed in place: all equal jobs share it."""
        return unpacked(self.packed)

    @property
    def asks(self) -> JobSpec:
        """Its spec as far as it is told from other jobs that wait: what is OF_ONE_JOB is not its own there.

        For who looks at all jobs that wait: it is unpacked once for all that are alike.
        """
        return _asked(self.packed_asks)

    @property
    def ready(self) -> int:
        """How many tasks could be placed now, were the job free to start."""
        if self._counts is None:
            return len(self.codes) if self.codes[0] == READY else 0
        return self._counts.get(READY, 0)

    @property
    def counts(self) -> Mapping[int, int]:
        """How many tasks have each letter."""
        return {self.codes[0]: len(self.codes)} if self._counts is None else self._counts

    @property
    def attempts(self) -> Mapping[int, int]:
        """How many attempts of a task have ended, where that does not go without saying (`attempts_of`)."""
        return self._tried.attempts if self._tried is not None else NOTHING

    @property
    def charges(self) -> Mapping[int, int]:
        """How many attempts of each task have used up a retry."""
        return self._tried.charges if self._tried is not None else NOTHING

    @property
    def preemptions(self) -> Mapping[int, int]:
        """How often each task has ended since it was preempted."""
        return self._tried.preemptions if self._tried is not None else NOTHING

    @property
    def ends(self) -> Mapping[int, End]:
        """How tasks, or their last attempts, have ended."""
        return self._tried.ends if self._tried is not None else NOTHING

    @property
    def wakes(self) -> Mapping[int, float]:
        """When tasks that are backed off may be tried again."""
        return self._tried.wakes if self._tried is not None else NOTHING

    @property
    def tried(self) -> Tried:
        """To be changed."""
        if self._tried is None:
            self._tried = Tried()
        return self._tried

    def no_wake(self, position: int) -> None:
        """The task is not backed off, or no longer."""
        if self._tried is not None:
            self._tried.wakes.pop(position, None)

    @property
    def startable(self) -> int:
        """How many of its tasks are ready; of a gang none before all of them are."""
        return 0 if self.is_gang and self.ready < len(self.codes) else self.ready

    @property
    def state(self) -> TaskState:
        if self.is_gang and not self.unfinished and self.counts.get(CODES[TaskState.FAILED]):
            return TaskState.FAILED  # for which the others were ended
        return job_state(STATES[code] for code, count in self.counts.items() if count)

    def state_of(self, position: int) -> TaskState:
        return STATES[self.codes[position]]

    def by_state(self) -> dict[TaskState, int]:
        """How many tasks are in each state, states without any left out."""
        sums: dict[TaskState, int] = {}
        for code, count in self.counts.items():
            if count:
                sums[STATES[code]] = sums.get(STATES[code], 0) + count
        return sums

    def position_of(self, index: int) -> int | None:
        """Where the array index stands; None if the job has no such task."""
        return self.indices.index(index) if index in self.indices else None

    def next_ready(self) -> int:
        """The first task that is ready. There must be one."""
        self.cursor = self.codes.index(READY, self.cursor)
        return self.cursor

    def attempts_of(self, position: int) -> int:
        """How many attempts of a task have ended."""
        return self.attempts.get(position, self._usual_attempts(position))

    def note_attempt(self, position: int, attempt: int) -> None:
        """So many attempts have ended; call it in the state that the last one led to."""
        if attempt == self._usual_attempts(position):
            if self._tried is not None:
                self._tried.attempts.pop(position, None)
        else:
            self.tried.attempts[position] = attempt

    def _usual_attempts(self, position: int) -> int:
        """What goes without saying: one where it has ended by running, none where it has not."""
        return 1 if self.codes[position] in (CODES[TaskState.SUCCEEDED], CODES[TaskState.FAILED]) else 0

    def holding(self) -> Iterator[int]:
        """The positions of tasks that hold something. States may change meanwhile."""
        return (found.start() for found in _HOLDING.finditer(self.codes))

    def next_unfinished(self, position: int) -> int | None:
        """The first task from the position on that has not ended."""
        found = _UNFINISHED.search(self.codes, position)
        return found.start() if found else None

    def move(self, position: int, after: TaskState) -> None:
        """Change a task's state as the table allows. Raises IllegalTransition."""
        before = self.state_of(position)
        if not allowed(before, after):
            raise IllegalTransition(f"task {self.id}.{self.indices[position]}: {before} → {after}")
        self.set_code(position, CODES[after])

    def set_code(self, position: int, code: int) -> None:
        """Change the letter. Within PENDING only; everything else goes through `move`."""
        old = self.codes[position]
        if len(self.codes) > 1:
            counts = self._changed_counts()
            counts[old] -= 1
            counts[code] = counts.get(code, 0) + 1
        self.codes[position] = code
        self.unfinished += (old in FINAL_CODES) - (code in FINAL_CODES)
        if code == READY:
            self.cursor = min(self.cursor, position)

    def _changed_counts(self) -> dict[int, int]:
        if self._counts is None:
            self._counts = {self.codes[0]: len(self.codes)}
        return self._counts

    def block(self, kept: NDArray[np.bool_]) -> None:
        """Let those of the ready tasks wait for another job. All at once: there may be a million."""
        codes = np.frombuffer(self.codes, dtype=np.uint8)
        chosen = kept & (codes == READY)
        if len(self.codes) > 1:
            counts, count = self._changed_counts(), int(np.count_nonzero(chosen))
            counts[READY] = counts.get(READY, 0) - count
            counts[BLOCKED] = counts.get(BLOCKED, 0) + count
        codes[chosen] = BLOCKED

    def note_end(self, position: int, end: End) -> None:
        """Remember how a task, or an attempt of it, ended."""
        if end.started_at is not None:
            self.started_at = min(self.started_at or end.started_at, end.started_at)
        if end.ended_at is not None:
            self.ended_at = max(self.ended_at or end.ended_at, end.ended_at)
        succeeded = self.codes[position] == CODES[TaskState.SUCCEEDED]
        if len(self.codes) <= ENDS_OF_ALL_TASKS or (end.node and not succeeded):
            self.tried.ends[position] = end
        elif self._tried is not None:
            self._tried.ends.pop(position, None)

    # --- as stored ------------------------------------------------------------------------------------------

    def encode_chunk(self, chunk: int) -> bytes:
        """The record of 8,192 tasks. By hand, since a pydantic model of thousands of entries is slow."""
        first = chunk * CHUNK_TASKS
        span = range(first, min(first + CHUNK_TASKS, len(self.codes)))
        stored: dict[str, Any] = {"states": bytes(self.codes[first : span.stop]).translate(AS_STORED).decode()}
        columns: dict[str, dict[int, Any]] = {
            "attempts": dict(_within(self.attempts, span)),
            "charges": dict(_within(self.charges, span)),
            "preemptions": dict(_within(self.preemptions, span)),
            "ends": {p: end.stored() for p, end in _within(self.ends, span)},
            "wakes": dict(_within(self.wakes, span)),
        }
        stored.update({name: column for name, column in columns.items() if column})
        times = {"started_at": self.started_at, "ended_at": self.ended_at}
        stored.update({name: at for name, at in times.items() if at is not None})
        if chunk == 0 and self.hold_changed:
            stored["held"] = self.held
        if chunk == 0 and self.cancelling:
            stored["cancelling"] = True
        encoded = _encoded(stored)
        while len(encoded) > MAX_CHUNK_BYTES and "ends" in stored:
            # What became of each task is told without it; of the first ones to end, also how.
            stored["ends"] = dict(islice(stored["ends"].items(), len(stored["ends"]) // 2))
            encoded = _encoded(stored)
        return encoded

    def load_chunk(self, chunk: int, record: TaskChunk) -> None:
        """Take over what is stored. All tasks are ready, waiting or ended after it."""
        first = chunk * CHUNK_TASKS
        for offset, letter in enumerate(record.states.encode()):
            if letter != self.codes[first + offset]:
                self.set_code(first + offset, letter)
        if record.attempts or record.charges or record.preemptions:
            self.tried.attempts.update({int(p): n for p, n in record.attempts.items()})
            self.tried.charges.update({int(p): n for p, n in record.charges.items()})
            self.tried.preemptions.update({int(p): n for p, n in record.preemptions.items()})
        for p, e in record.ends.items():
            self.tried.ends[int(p)] = End(e.exit_code, e.reason, e.node, e.started_at, e.ended_at)
        if record.started_at is not None:
            self.started_at = min(self.started_at or record.started_at, record.started_at)
        if record.ended_at is not None:
            self.ended_at = max(self.ended_at or record.ended_at, record.ended_at)
        for p, at in record.wakes.items():
            self.tried.wakes[int(p)] = at
            self.set_code(int(p), WAITING)
        if record.held is not None:
            self.held, self.hold_changed = record.held, True
        self.cancelling |= record.cancelling


def _encoded(stored: dict[str, Any]) -> bytes:
    return json.dumps(stored, separators=(",", ":")).encode()


def _within(column: Mapping[int, Any], span: range) -> Iterator[tuple[int, Any]]:
    """The entries of a sparse column whose positions are in the span."""
    if len(column) > len(span):
        return ((p, column[p]) for p in span if p in column)
    return ((p, value) for p, value in column.items() if p in span)


def commitment_of(run: TaskRun, shares: Iterable[Share]) -> CommitmentRecord:
    """The record of a task that holds `shares`."""
    return CommitmentRecord(
        owner=run.key.owner,
        epoch=run.epoch,
        shares=list(shares),
        committed_at=run.committed_at,
        job=run.key.job,
        task=run.key.task,
        attempt=run.attempt,
        node=run.node,
        journal_id=run.journal_id,
        state=run.state,
        started_at=run.started_at,
        exclusive=run.exclusive,
        fence_after_seconds=run.fence_after_seconds,
        ends_by=run.ends_by,
        cancel_requested=run.cancel_requested,
        requeue_requested=run.requeue_requested,
        preempted=run.preempted,
        suspend_requested=run.suspend_requested,
        resume_sent=run.resume_sent,
        parked=list(run.parked),
    )
