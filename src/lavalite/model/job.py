"""Jobs as people submit them and as they are stored."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from lavalite.model.resources import Stored
from lavalite.model.task import TaskState

MAX_AMOUNT = 2**63 - 1
MAX_ARRAY_TASKS = 1_000_000
MAX_TEXT_BYTES = 128 * 1024
Amount = Annotated[int, Field(ge=0, le=MAX_AMOUNT)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class Request(Stored):
    """What one task needs, per kind in the kind's unit (model.resources). All equal requests form a class."""

    cpu_milli: Amount = 1000
    memory_bytes: Amount = 0
    gpu_milli: Amount = 0
    gpu_model: str = ""
    gpu_memory_bytes: Amount = 0
    storage_bytes: Amount = 0
    network_bits_per_second: Amount = 0
    floating: dict[str, Amount] = {}
    pools: dict[str, str] = {}

    def amounts(self) -> dict[str, int]:
        """Amount per kind, zeros left out."""
        asked = {
            "cpu": self.cpu_milli,
            "memory": self.memory_bytes,
            "gpu": self.gpu_milli,
            "storage": self.storage_bytes,
            "network": self.network_bits_per_second,
        }
        return {kind: amount for kind, amount in asked.items() if amount}


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


class DependencyKind(StrEnum):
    DONE = "done"  # all tasks succeeded
    EXIT = "exit"  # ended, and not all succeeded
    ENDED = "ended"  # ended either way


class Dependency(Stored):
    kind: DependencyKind = DependencyKind.DONE
    job: int = Field(ge=1)


class JobSpec(Stored):
    """Immutable once accepted. Paths may hold `%J` (job) and `%I` (task); relative ones are below `cwd`.

    `user`, `uid` and `gid` are set by the server from whoever asks, never taken from the request.
    """

    name: str = Field(default="", max_length=128)
    command: list[str] = Field(min_length=1, max_length=4096)
    array: Array | None = None
    queue: str = ""
    host: str = ""
    reservation: str = ""
    request: Request = Request()
    policy: str = ""
    priority: int = Field(default=0, ge=-1000, le=1000)
    walltime_seconds: int | None = Field(default=None, ge=1)
    retries: int = Field(default=0, ge=0, le=100)
    rerunnable: bool = False
    hold: bool = False
    not_before: float | None = Field(default=None, allow_inf_nan=False)
    depends: list[Dependency] = []
    cwd: str = ""
    environment: dict[str, str] = {}
    stdout_path: str = ""
    stderr_path: str = ""
    group: str = Field(default="", max_length=128)
    """For whom it counts in fairshare, limits and quotas; where none is named, the user's own, set by the server."""
    user: str = ""
    uid: int = -1
    gid: int = -1

    @model_validator(mode="after")
    def _not_too_long(self) -> JobSpec:
        texts = [*self.command, *self.environment, *self.environment.values()]
        if any("\0" in text for text in texts):
            raise ValueError("command and environment must not hold NUL characters")
        if sum(len(text.encode()) + 1 for text in texts) > MAX_TEXT_BYTES:
            raise ValueError(f"command and environment have more than {MAX_TEXT_BYTES} bytes together; use a file")
        return self

    def indices(self) -> range:
        """The task indices: the array's, or a single 0."""
        return self.array.indices() if self.array else range(1)


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
    `attempts` counts tries that have ended, `charges` those of them that used up a retry, `ends` holds how tasks
    ended, `wakes` when a backed-off task may be tried again; all sparse, keyed by position as text. A commitment for
    an attempt not above `attempts`, or for a task that has ended, is stale: its end was written first.
    `held` is set in the first chunk where a hold or release came after the submit, `cancelling` where the whole job
    is to be cancelled, some of it perhaps not yet. `started_at` and `ended_at` are the job's first start and last end
    as of this chunk. Of large arrays `ends` holds only what ran and did not succeed, and no more of that than fits;
    of tasks that succeeded or failed in one attempt, and of those that never ran, `attempts` says nothing.
    """

    states: str
    attempts: dict[str, int] = {}
    charges: dict[str, int] = {}
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
    fence_after_seconds: int = 0
    """After how long without its leader the attempt's own node stops it, as the node was told; 0: it does not."""
    ends_by: float | None = None
    """When its reservation ends, and the task with it; seconds since the Unix epoch."""
    cancel_requested: bool = False
    requeue_requested: bool = False
