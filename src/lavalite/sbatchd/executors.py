"""The contract between the agent and whatever runs attempts.

An executor owns attempts: it outlives sbatchd, starts an attempt at most once by its id, enforces walltime and fence
on its own, and remembers how each ended until that is acknowledged. `process` (the keeper) is one, `systemd` another;
the contract tests run on each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(slots=True, frozen=True)
class Launch:
    """All that an executor needs to start an attempt. Paths are absolute; times in seconds."""

    id: str
    argv: list[str]
    cwd: str
    environment: dict[str, str]
    stdout_path: str
    stderr_path: str
    own_outputs: list[str]
    """Which of the two paths are in the agent's own folder: opened with its rights, then given to the user."""
    uid: int
    gid: int
    cpus: list[int]
    limits: dict[str, int]
    """By the names of setrlimit: RLIMIT_DATA in bytes, RLIMIT_CORE in bytes."""
    walltime_seconds: int | None
    grace_seconds: float
    """Between TERM and KILL at walltime."""
    fence_after_seconds: float
    contact: float
    """When the last acknowledged beat was sent, CLOCK_BOOTTIME; the fence counts from it or a later one."""
    cpu_milli: int = 0
    """Thousandths of a core that it may use together; 0: as many as there are."""
    memory_bytes: int = 0
    """What all its processes may use together; 0: no limit. An executor that cannot enforce it has `limits`."""
    gpus: list[str] = field(default_factory=list)
    """UUIDs of its GPUs."""
    special: list[str] = field(default_factory=list)
    """Paths of its devices of special kinds."""
    host: str = ""
    """The logical host that it runs on, where that has memory of other nodes."""
    host_near_bytes: int = 0
    """Memory of this node that all of that host's attempts may use together."""
    host_far_bytes: int = 0
    """And of other nodes, as swap."""
    groups: list[int] | None = None
    """All groups of the user, `gid` among them; None: the executor looks them up."""


# --- what it tells --------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Started:
    """`at`: wall time."""

    id: str
    pid: int
    at: float


@dataclass(slots=True, frozen=True)
class StartFailed:
    """It was not started, and will not be."""

    id: str
    reason: str


@dataclass(slots=True, frozen=True)
class Signalled:
    """A signal that suspends or resumes was delivered."""

    id: str
    suspended: bool


@dataclass(slots=True, frozen=True)
class Ended:
    """Nothing of it is left. `exit_code` is negative for a signal, None where nobody could know it.

    `reason`: exit, walltime, fence, stop, cannot_start: …, memory limit of … exceeded, keeper_lost, lost.
    """

    id: str
    exit_code: int | None
    reason: str
    at: float
    pid: int = 0
    started_at: float | None = None


@dataclass(slots=True, frozen=True)
class Known:
    """One attempt in an executor's list: running, or ended and not acknowledged."""

    id: str
    state: Literal["running", "suspended", "ended"]
    pid: int
    started_at: float
    exit_code: int | None = None
    reason: str = ""
    ended_at: float = 0.0

    def end(self) -> Ended:
        never_ran = self.reason.startswith("cannot_start")
        started_at = None if never_ran else self.started_at
        return Ended(self.id, self.exit_code, self.reason, self.ended_at, self.pid, started_at)


@dataclass(slots=True, frozen=True)
class Listed:
    """The executor was connected (again): these and no others are its attempts."""

    known: tuple[Known, ...]


ExecutorEvent = Started | StartFailed | Signalled | Ended | Listed
Tell = Callable[[ExecutorEvent], None]


class Executor(Protocol):
    """Requests return once they are sent; what becomes of them is told through the callback given to `connect`."""

    async def connect(self, tell: Tell, lost: Callable[[], None]) -> Listed:
        """Make it ready, starting what must be started. `lost` is called when the connection breaks: connect anew.

        Raises UnreachableError.
        """
        ...

    async def start(self, launch: Launch) -> None:
        """Told later: Started or StartFailed, then Ended. One that it knows by id is not started again."""
        ...

    async def signal(
        self, attempt: str, signal: int, *, ending: bool, grace_seconds: float = 0.0, reason: str = "stop"
    ) -> None:
        """To all processes of the attempt. `ending`: it shall end; KILL follows after a grace above 0."""
        ...

    async def list(self) -> Listed: ...

    async def acknowledge(self, attempt: str) -> None:
        """Its end is durable elsewhere."""
        ...

    async def contact(self, sent: float) -> None:
        """A beat sent then (CLOCK_BOOTTIME) was acknowledged."""
        ...

    async def close(self) -> None:
        """Leave; attempts run on."""
        ...
