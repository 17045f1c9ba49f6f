"""What should be done. `decide` returns these in order, and the shell must keep that order:

    Commit, Persist   go to the committer in the order they come (across calls of `decide` too). It is FIFO, and
                      that is what makes it safe to free capacity in memory before the freeing is durable: whoever
                      is given it is written later.
    Effect            carried out at once. Inside a Persist (`then`): only when that Persist is durable.

A Persist that writes nothing is a barrier: its effects wait until all that was given before it is durable.

    CONFIRMED  ──► decide(state, CommitConfirmed(batch_id), now)     for each Commit, once
    UNWOUND    ──► decide(state, CommitUnwound(batch_id), now)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lavalite.model.job import CommitmentRecord
from lavalite.model.task import AttemptId

PartKey = tuple[str, str, int]
"""Part, role and incarnation: what an order and a report are matched by."""


@dataclass(slots=True, frozen=True)
class AttemptStart:
    """One attempt to be started: field by field what the agent's frame `Attempt` holds."""

    id: AttemptId
    journal_id: str
    command: tuple[str, ...]
    cwd: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    stdout_path: str = ""
    stderr_path: str = ""
    user: str = ""
    uid: int = -1
    gid: int = -1
    cpu_milli: int = 0
    memory_bytes: int = 0
    devices: dict[str, list[str]] = field(default_factory=dict)
    walltime_seconds: int | None = None
    fence_after_seconds: float = 0.0
    host: str = ""


@dataclass(slots=True, frozen=True)
class PartOrdered:
    """One thing that a node is to have for a host, or not to have: field by field the frame `PartOrder`."""

    part: str
    role: str
    host: str
    incarnation: int
    version: int = 1
    want: Literal["present", "absent"] = "present"
    kind: str = ""
    amount: int = 0
    peer: str = ""
    peer_address: str = ""
    address: str = ""
    port: int = 0
    tls: bool = False
    secret: str = field(default="", repr=False)
    iops: int = 0
    mirrors: str = ""
    vm: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> PartKey:
        return self.part, self.role, self.incarnation


# --- effects: carried out once, forgotten if the node is not connected (registering brings it up again) ----------


@dataclass(slots=True, frozen=True)
class SendDispatch:
    """Their commitments are durable. Safe to repeat: an agent never starts a journalled attempt again."""

    node: str
    attempts: tuple[AttemptStart, ...]


@dataclass(slots=True, frozen=True)
class SendStop:
    """Signal an attempt's whole group; KILL follows after `grace_seconds` where that is not 0."""

    node: str
    id: AttemptId
    signal: int
    grace_seconds: float = 0.0
    reason: str = "stop"


@dataclass(slots=True, frozen=True)
class Acknowledge:
    """All that followed from the node's report `seq` is durable. 0 stands for the attempts it registered with."""

    node: str
    seq: int


@dataclass(slots=True, frozen=True)
class Wake:
    """Send a Tick at `at` (same clock as `now`) at the latest. A time that has passed means at once."""

    at: float


@dataclass(slots=True, frozen=True)
class CloseSession:
    """End the agent's connection: it was silent for too long, and what it knows must be told anew."""

    node: str
    reason: str


@dataclass(slots=True, frozen=True)
class SendParts:
    """All that is ordered of a node for logical hosts; the steps that it follows from are durable."""

    node: str
    orders: tuple[PartOrdered, ...]


Effect = SendDispatch | SendStop | Acknowledge | Wake | CloseSession | SendParts


# --- writes ------------------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Commit:
    """Write these commitments, and `puts` with them, in one transaction: all or nothing.

    They are assumed in the book already. The answer is one of the events CommitConfirmed and CommitUnwound.
    `puts` holds everything there is to write, the commitments' own records included.
    """

    batch_id: int
    records: tuple[CommitmentRecord, ...]
    puts: dict[str, bytes]
    deletes: frozenset[str] = frozenset()
    retry: bool = False
    """Whether it is tried again where it did not happen, instead of unwound."""


@dataclass(slots=True, frozen=True)
class Persist:
    """Write and delete in one transaction, retried until it is done; then carry out `then`."""

    puts: dict[str, bytes] = field(default_factory=dict)
    deletes: frozenset[str] = frozenset()
    then: tuple[Effect, ...] = ()


Action = Commit | Persist | Effect
