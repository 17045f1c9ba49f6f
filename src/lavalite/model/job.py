"""Jobs as people submit them and as they are stored."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from lavalite.base.errors import InputError
from lavalite.model.affinity import MAX_TERMS, Affinity
from lavalite.model.exits import parse_exit
from lavalite.model.parts import Part, fault_of
from lavalite.model.request import MAX_AMOUNT as MAX_AMOUNT
from lavalite.model.request import TYPED as TYPED
from lavalite.model.request import Amount as Amount
from lavalite.model.request import Request as Request
from lavalite.model.resources import Stored
from lavalite.model.task import TaskState

MAX_ARRAY_TASKS = 1_000_000
ONE_TASK = range(1)
MAX_GANG_TASKS = 256
"""Of so many is known how each ended, so that each can be told where all of them are."""
MAX_TEXT_BYTES = 128 * 1024
MAX_BACKOFF_SECONDS = 30 * 86400
MAX_GRACE_SECONDS = 86400
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class Array(Stored):
    """Task indices `first`, `first + step`, … up to and including `last`."""

    first: int = Field(ge=0)
    last: int = Field(ge=0)
    step: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Array:
        if self.last < self.first:
            raise ValueError(f"array {self.first}-{self.last} ends before it begins")
        if len(self.indices()) > MAX_ARRAY_TASKS:
            raise ValueError(f"an array has at most {MAX_ARRAY_TASKS} tasks")
        return self

    def indices(self) -> range:
        return range(self.first, self.last + 1, self.step)

    def text(self) -> str:
        """`3`, `1-8`, `0-100:10`."""
        if self.first == self.last:
            return str(self.first)
        return f"{self.first}-{self.last}" + (f":{self.step}" if self.step != 1 else "")


class DependencyKind(StrEnum):
    DONE = "done"  # all tasks succeeded
    EXIT = "exit"  # ended, and not all succeeded
    ENDED = "ended"  # ended either way
    STARTED = "started"  # none of them waits any more


class Dependency(Stored):
    """On all tasks of a job; on `tasks` of them, which are array indices; or, with `each`, of every task on the one
    of the same index."""

    kind: DependencyKind = DependencyKind.DONE
    job: int = Field(ge=1)
    tasks: Array | None = None
    each: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Dependency:
        if self.each and self.tasks is not None:
            raise ValueError("tasks and each exclude each other: the one names tasks, the other goes index by index")
        return self

    def text(self) -> str:
        """`done(6)`, `done(6[3])`, `ended(6[1-10:2])`, `done(6[*])`."""
        return f"{self.kind.value}({self.job}{self._which()})"

    def _which(self) -> str:
        if self.each:
            return "[*]"
        return f"[{self.tasks.text()}]" if self.tasks is not None else ""


def _exit_code(value: object) -> int:
    try:
        return parse_exit(value)
    except InputError as error:
        raise ValueError(f"{error.fault.message}. {error.fault.hint}") from error


ExitCode = Annotated[int, BeforeValidator(_exit_code)]
Retries = Annotated[int, Field(ge=0, le=100)]
Factor = Annotated[int, Field(ge=1, le=100)]
BackoffSeconds = Annotated[int, Field(ge=1, le=MAX_BACKOFF_SECONDS)]


class Backoff(Stored):
    """For how long a task that ended is left alone: `first_seconds`, then each time `factor` times as long as the
    time before, but never more than `most_seconds`. What is not said is as the queue says."""

    first_seconds: BackoffSeconds | None = None
    factor: Factor | None = None
    most_seconds: BackoffSeconds | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Backoff:
        if (
            self.first_seconds is not None
            and self.most_seconds is not None
            and self.first_seconds > self.most_seconds
        ):
            raise ValueError(
                f"a first back-off of {self.first_seconds} s is more than the most, {self.most_seconds} s"
            )
        return self


class Gang(Stored):
    """The job's tasks start together or not at all, on nodes as this says. None is no limit.

    `within` is a label of nodes, such as `rack`, of which all of them have the same value; `prefer_within` one of
    which they have as few values as can be.
    """

    tasks_per_node: int | None = Field(default=None, ge=1, le=MAX_GANG_TASKS)
    nodes_least: int = Field(default=1, ge=1, le=MAX_GANG_TASKS)
    nodes_most: int | None = Field(default=None, ge=1, le=MAX_GANG_TASKS)
    within: str = Field(default="", max_length=63)
    prefer_within: str = Field(default="", max_length=63)

    @model_validator(mode="after")
    def _ordered(self) -> Gang:
        if self.nodes_most is not None and self.nodes_most < self.nodes_least:
            raise ValueError(f"at least {self.nodes_least} nodes and at most {self.nodes_most} exclude each other")
        return self

    def fault(self, tasks: int) -> str:
        """Why so many tasks can never be placed like that; empty if they can."""
        if tasks > MAX_GANG_TASKS:
            return f"{tasks} tasks are to start together, and a gang has at most {MAX_GANG_TASKS}"
        if self.nodes_least > tasks:
            return f"{tasks} tasks cannot be on {self.nodes_least} nodes"
        if self.tasks_per_node and self.nodes_most and self.tasks_per_node * self.nodes_most < tasks:
            return f"{self.nodes_most} nodes with {self.tasks_per_node} tasks each do not take {tasks} tasks"
        return ""


class JobSpec(Stored):
    """Immutable once accepted. Paths may hold `%J` (job) and `%I` (task); relative ones are below `cwd`.

    `retries` and `retry_on` are the queue's where they are None. With an empty `retry_on` every failure is worth one.
    `user`, `uid` and `gid` are set by the server from whoever asks, never taken from the request.
    `grace_seconds` are between the request to end and the end by force; else as the settings say. One of which
    nothing has been placed for `start_within_seconds` is cancelled.
    """

    name: str = Field(default="", max_length=128)
    command: list[str] = Field(min_length=1, max_length=4096)
    array: Array | None = None
    gang: Gang | None = None
    queue: str = ""
    host: str = ""
    reservation: str = ""
    request: Request = Request()
    parts: list[Part] | None = None
    """Sorts of tasks that ask for different things: such a job is a gang, and its own request is not said."""
    policy: str = ""
    affinity: list[Affinity] = Field(default=[], max_length=MAX_TERMS)
    priority: int = Field(default=0, ge=-1000, le=1000)
    walltime_seconds: int | None = Field(default=None, ge=1)
    retries: Retries | None = None
    retry_on: list[ExitCode] | None = Field(default=None, max_length=400)
    backoff: Backoff | None = None
    rerunnable: bool = False
    grace_seconds: int | None = Field(default=None, ge=0, le=MAX_GRACE_SECONDS)
    start_within_seconds: int | None = Field(default=None, ge=1, le=366 * 86400)
    hold: bool = False
    not_before: float | None = Field(default=None, allow_inf_nan=False)
    depends: list[Dependency] = Field(default=[], max_length=1000)
    cwd: str = ""
    environment: dict[str, str] = {}
    stdout_path: str = ""
    stderr_path: str = ""
    group: str = Field(default="", max_length=128)
    """For whom it counts in fairshare, limits and quotas; where none is named, the user's own, set by the server."""
    component: str = Field(default="", max_length=63)
    """Whose compute group the job is (lavalite.groups): jobs are found by it."""
    user: str = ""
    uid: int = -1
    gid: int = -1

    @model_validator(mode="after")
    def _parts_that_can_be(self) -> JobSpec:
        if self.parts is None:
            return self
        if fault := fault_of(self.parts, MAX_GANG_TASKS):
            raise ValueError(fault)
        if self.array is not None:
            raise ValueError("array and parts exclude each other: each part says how many tasks it has")
        if self.request != Request():
            raise ValueError("request and parts exclude each other: each part says what its tasks need")
        self.gang = self.gang or Gang()
        return self

    @model_validator(mode="after")
    def _a_gang_that_can_be(self) -> JobSpec:
        if self.gang is not None and (fault := self.gang.fault(len(self.indices()))):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _not_too_long(self) -> JobSpec:
        commands = [self.command, *(part.command or [] for part in self.parts or ())]
        texts = [*(text for one in commands for text in one), *self.environment, *self.environment.values()]
        joined = "\0".join(texts)
        if joined.count("\0") >= len(texts):
            raise ValueError("command and environment must not hold NUL characters")
        if len(joined.encode()) + 1 > MAX_TEXT_BYTES:
            raise ValueError(f"command and environment have more than {MAX_TEXT_BYTES} bytes together; use a file")
        return self

    def indices(self) -> range:
        """The task indices: the array's, those of the parts, one part after the other, or a single 0."""
        if self.parts is not None:
            return range(sum(part.tasks for part in self.parts))
        return self.array.indices() if self.array else ONE_TASK

    def pieces(self) -> list[tuple[JobSpec, int]]:
        """What is asked for, and by how many tasks: each part as a job of its own; else all of it, counted by task.

        What is said of a job's request is said of each of these.
        """
        if self.parts is None:
            return [(self, 1)]
        return [(self._of(part), part.tasks) for part in self.parts]

    @property
    def tasks_counted(self) -> int:
        """How many tasks all pieces are of: one, but of a job with parts all of them, since these start at once."""
        return 1 if self.parts is None else len(self.indices())

    def part_at(self, position: int) -> tuple[Part | None, int]:
        """The part that a task is of, and its rank there; (None, position) where the job has none."""
        for part in self.parts or ():
            if position < part.tasks:
                return part, position
            position -= part.tasks
        return None, position

    def at(self, position: int) -> JobSpec:
        """As the task at that position sees it: with the request and the command of its part."""
        part, _ = self.part_at(position)
        return self if part is None else self._of(part)

    def _of(self, part: Part) -> JobSpec:
        return self.model_copy(
            update={"request": part.request, "command": part.command or self.command, "parts": None}
        )


GROUP_VARIABLE = "LAVALITE_COMPUTE_GROUP"
"""In the environment of what runs in a compute group: the group's id."""


def compute_group_id(job_id: int, reservation: str) -> str:
    """What the compute group is called that a job of a component is: as its reservation, if it is in one."""
    return reservation or f"job-{job_id}"


class JobRecord(Stored):
    """What is stored under `jobs/ID`: never rewritten after the submit."""

    id: int
    spec: JobSpec
    submitted_at: float
    submit_key: str = ""


class TaskEnd(Stored):
    """How a task ended. `exit_code` is negative for a signal; absent where the task never ran."""

    exit_code: int | None = None
    reason: str = ""
    node: str = ""
    started_at: float | None = None
    ended_at: float | None = None


class TaskChunk(Stored):
    """States of up to 8,192 tasks, by position in the job's indices; a letter each (model.task.STATE_CODES).

    The letter is that of the last durable state that is no live one: a live task's state is in its commitment.
    `attempts` counts tries that have ended, `charges` those of them that used up a retry, `preemptions` those that
    ended since they were preempted, `ends` holds how tasks ended, `wakes` when a backed-off task may be tried again;
    all sparse, keyed by position as text. A commitment for an attempt not above `attempts`, or for a task that has
    ended, is stale: its end was written first.
    `held` is set in the first chunk where a hold or release came after the submit, `cancelling` where the whole job
    is to be cancelled, some of it perhaps not yet. `started_at` and `ended_at` are the job's first start and last end
    as of this chunk. Of large arrays `ends` holds only what ran and did not succeed, and no more of that than fits;
    of tasks that succeeded or failed in one attempt, and of those that never ran, `attempts` says nothing.
    """

    states: str
    attempts: dict[str, int] = {}
    charges: dict[str, int] = {}
    preemptions: dict[str, int] = {}
    ends: dict[str, TaskEnd] = {}
    wakes: dict[str, float] = {}
    held: bool | None = None
    cancelling: bool = False
    started_at: float | None = None
    ended_at: float | None = None


class Share(Stored):
    """A part of a commitment: so much of a kind, from a provider (a node, a logical host, or `floating`)."""

    provider: str
    kind: str
    amount: Amount
    devices: list[str] = []
    pool: str = ""


class CommitmentRecord(Stored):
    """What is stored under `commitments/OWNER`. For a job's task also who runs it and how far it is."""

    owner: str
    epoch: tuple[int, int]
    shares: list[Share]
    committed_at: float
    job: int = 0
    task: int = 0
    attempt: int = 0
    node: str = ""
    journal_id: str = ""
    state: TaskState = TaskState.COMMITTED
    started_at: float | None = None
    exclusive: bool = False
    """Whether nobody else may hold anything of its node."""
    fence_after_seconds: int = 0
    """After how long without its leader the attempt's own node stops it, as the node was told; 0: it does not."""
    ends_by: float | None = None
    """When its reservation ends, and the task with it; seconds since the Unix epoch."""
    cancel_requested: bool = False
    requeue_requested: bool = False
    preempted: str = ""
    """For whom it was told to end or to stand still; empty if it was not preempted."""
    suspend_requested: bool = False
    resume_sent: bool = False
    parked: list[Share] = []
    """What it gave back while it is suspended for another one, and is to have again."""
