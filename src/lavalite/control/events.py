"""What may happen. The shell turns frames, API calls and time into these; `decide` takes them one at a time.

An event has happened: it is never refused here. What a person asks for is checked first (control.admission), so
that a refusal can be answered before anything changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lavalite.model.job import JobRecord
from lavalite.model.pools_document import PoolsDocument
from lavalite.model.reservation import Reservation
from lavalite.model.resources import NodeOffer
from lavalite.model.specs import HostSpec, LinkSpec, PoolSpec, QueueSpec
from lavalite.model.task import AttemptId


@dataclass(slots=True, frozen=True)
class Specs:
    """What a definition means, each by its name. Empty before the first one."""

    pools: dict[str, PoolSpec] = field(default_factory=dict)
    queues: dict[str, QueueSpec] = field(default_factory=dict)
    hosts: dict[str, HostSpec] = field(default_factory=dict)
    links: tuple[LinkSpec, ...] = ()

    @classmethod
    def of(cls, document: PoolsDocument) -> Specs:
        return cls(
            pools={p.name: p for p in document.pool_specs()},
            queues={q.name: q for q in document.queue_specs()},
            hosts={h.name: h for h in document.hosts()},
            links=tuple(document.link_specs()),
        )


@dataclass(slots=True, frozen=True)
class Loaded:
    """The store has been read (ClusterState.load) and service begins. Lost nodes are counted from now on."""


@dataclass(slots=True, frozen=True)
class Tick:
    """Time has passed. Send one at least every second, and one at each `Wake`."""


# --- from people ----------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class DefinitionApplied:
    """The whole of pools.yml. `document` is stored as it is, `specs` is what it means.

    Hosts that stand in it no more are left alone, or released once unused where `purge` says so.
    """

    document: bytes
    specs: Specs
    purge: bool = False
    reserve: dict[str, float] = field(default_factory=dict)
    """Hosts that are only to be held, and until when; 0 where they are to be composed, also if they were held."""


@dataclass(slots=True, frozen=True)
class HostRemoved:
    """A logical host is to go; it is released once no job holds anything of it."""

    host: str


@dataclass(slots=True, frozen=True)
class HostGrown:
    """The application inside wants so much of these kinds, in all. growth.limits has let it through."""

    host: str
    amounts: dict[str, int]


@dataclass(slots=True, frozen=True)
class HostApplied:
    """What failed is tried again at once, and what is reserved is composed."""

    host: str


@dataclass(slots=True, frozen=True)
class HostReserved:
    """What the host would take is to be held for it until then, and nothing is done about it yet."""

    host: str
    until: float


@dataclass(slots=True, frozen=True)
class HostDrained:
    """Nothing new is to start on the host, which stays as it is; or (`undo`) work is placed there again."""

    host: str
    undo: bool = False


@dataclass(slots=True, frozen=True)
class Submitted:
    """A job that admission let in. Its id comes from `ClusterState.next_job_id()`."""

    record: JobRecord


@dataclass(slots=True, frozen=True)
class CancelRequested:
    """`tasks` are array indices; None means all. With `force`, UNKNOWN tasks count as ended: a person says so.

    With `waiting`, only what holds nothing ends: what was placed meanwhile goes on.
    """

    job: int
    tasks: tuple[int, ...] | None = None
    force: bool = False
    by: str = ""
    waiting: bool = False


@dataclass(slots=True, frozen=True)
class SignalRequested:
    """Stop running tasks in place, or let stopped ones go on."""

    job: int
    action: Literal["suspend", "resume"]
    tasks: tuple[int, ...] | None = None


@dataclass(slots=True, frozen=True)
class RequeueRequested:
    """Stop the live tasks and try them again from the start; this is charged to no retry."""

    job: int
    tasks: tuple[int, ...] | None = None
    by: str = ""


@dataclass(slots=True, frozen=True)
class HoldRequested:
    """Keep the job's pending tasks from starting."""

    job: int


@dataclass(slots=True, frozen=True)
class ReleaseRequested:
    """Undo a hold."""

    job: int


@dataclass(slots=True, frozen=True)
class DrainRequested:
    """Start nothing new on the node; what runs there runs on, until a deadline where one is given.

    None leaves as it is what an earlier request said.
    """

    node: str
    reason: str | None = None
    deadline_seconds: int | None = None
    no_deadline: bool = False
    """Whether a deadline that stands is taken away."""


@dataclass(slots=True, frozen=True)
class ResumeRequested:
    """Undo a drain."""

    node: str


@dataclass(slots=True, frozen=True)
class NodeForgotten:
    """The node was taken down for good. One that is there, or of which somebody holds anything, stays."""

    node: str


@dataclass(slots=True, frozen=True)
class LabelsSet:
    """All the labels that people gave to the node; they go over those that its LIM tells."""

    node: str
    labels: dict[str, list[str]]


@dataclass(slots=True, frozen=True)
class ReservationMade:
    """One that fits: `reservations.choose_nodes` found its nodes a moment ago."""

    reservation: Reservation


@dataclass(slots=True, frozen=True)
class ReservationEnded:
    """Nothing is to be kept for it any more."""

    name: str


@dataclass(slots=True, frozen=True)
class ReservationDrained:
    """Nothing new is to start in it, whose amounts are kept; or (`undo`) again."""

    name: str
    undo: bool = False


# --- from agents ----------------------------------------------------------------------------------------------

ReportedState = Literal["refused", "started", "suspended", "resumed", "ended"]


@dataclass(slots=True, frozen=True)
class AttemptReported:
    """What an agent's journal says of an attempt. `at` is the node's wall clock; a negative code is a signal."""

    id: AttemptId
    state: ReportedState
    at: float
    exit_code: int | None = None
    reason: str = ""


@dataclass(slots=True, frozen=True)
class NodeRegistered:
    """An agent's session began. `attempts`: all that are unfinished or unacknowledged in its journal."""

    node: str
    boot_id: str
    journal_id: str
    offer: NodeOffer
    attempts: tuple[AttemptReported, ...] = ()
    fabric_address: str = ""
    """Where other nodes reach its exports."""


@dataclass(slots=True, frozen=True)
class NodeReported:
    """Answered by Acknowledge(node, seq) once all that follows from it is durable."""

    node: str
    seq: int
    attempts: tuple[AttemptReported, ...]


@dataclass(slots=True, frozen=True)
class PartReported:
    """How far a node is with one thing that it was told to have, or not to have: the frame `PartState`.

    The secret opens an export: it is kept in memory alone, and shown to nobody.
    """

    part: str
    role: str
    host: str
    incarnation: int
    version: int = 1
    state: Literal["ready", "failed", "lost", "gone"] = "ready"
    reason: str = ""
    address: str = ""
    port: int = 0
    secret: str = field(default="", repr=False)
    device: str = ""
    path: str = ""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.part, self.role, self.incarnation


@dataclass(slots=True, frozen=True)
class PartsReported:
    """All that a node has for logical hosts, and what it was told to have and has not."""

    node: str
    parts: tuple[PartReported, ...]


@dataclass(slots=True, frozen=True)
class NodeBeat:
    """A beat on the agent's session that was (or is about to be) acknowledged. The offer travels if it changed."""

    node: str
    offer: NodeOffer | None = None


@dataclass(slots=True, frozen=True)
class NodesBeat:
    """Beats that came together, of agents whose offers are as they were."""

    nodes: tuple[str, ...]


@dataclass(slots=True, frozen=True)
class NodeDisconnected:
    """The agent's session ended. Nothing is lost yet."""

    node: str


@dataclass(slots=True, frozen=True)
class MembersSeen:
    """Which nodes beat to the leading LIM. One it says nothing of is judged by its agent alone."""

    alive: frozenset[str]
    silent: frozenset[str]


# --- from the ledger ------------------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class CommitConfirmed:
    """The batch of a Commit is durable."""

    batch_id: int


@dataclass(slots=True, frozen=True)
class CommitUnwound:
    """Nothing of the batch was written, and nothing of it ever will be."""

    batch_id: int


Event = (
    Loaded
    | Tick
    | DefinitionApplied
    | HostRemoved
    | HostApplied
    | HostReserved
    | HostDrained
    | HostGrown
    | Submitted
    | CancelRequested
    | SignalRequested
    | RequeueRequested
    | HoldRequested
    | ReleaseRequested
    | DrainRequested
    | ResumeRequested
    | LabelsSet
    | ReservationMade
    | ReservationEnded
    | ReservationDrained
    | NodeForgotten
    | NodeRegistered
    | NodeReported
    | PartsReported
    | NodeBeat
    | NodesBeat
    | NodeDisconnected
    | MembersSeen
    | CommitConfirmed
    | CommitUnwound
)
