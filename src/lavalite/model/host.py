"""Logical hosts: what was asked for, what was taken, and how far it is.

PLANNED ──► RESERVED ──► COMPOSING ──► COMPOSED ◄──► RESIZING      any but RELEASED ──► FAILED
                                          └──► DRAINING ──► RELEASED

While parts of other nodes are put together or taken apart, the host is at a step, which is durable before anything is
done of it:

    composing   EXPORT ──► ATTACH ──► composed          a part fails:  DETACH ──► WITHDRAW ──► failed, nothing held
    resizing    EXPORT ──► ATTACH ──► DETACH ──► WITHDRAW ──► composed    a part fails: what is new leaves instead
    draining    DETACH ──► WITHDRAW ──► gone
    failed      DETACH ──► WITHDRAW ──► failed, nothing held                    (it was composed, and lost a part)

An incarnation is `generation of the store × 10^13 + milliseconds`: whoever hears of a part that no record knows can
tell whether it was ordered since the store was restored last.
"""

from __future__ import annotations

from enum import StrEnum

from lavalite.model.resources import STORAGE, Stored


class HostState(StrEnum):
    PLANNED = "planned"
    RESERVED = "reserved"
    COMPOSING = "composing"
    COMPOSED = "composed"
    RESIZING = "resizing"
    DRAINING = "draining"
    RELEASED = "released"
    FAILED = "failed"


class Step(StrEnum):
    """EXPORT: providers open exports, and circuits are laid at both ends. ATTACH: the anchor attaches them.
    DETACH: the anchor lets go of what leaves. WITHDRAW: providers withdraw that, and its circuits are taken up."""

    SETTLED = ""
    EXPORT = "export"
    ATTACH = "attach"
    DETACH = "detach"
    WITHDRAW = "withdraw"


BARE, VM = "bare", "vm"
"""How a host is run: on its anchor as it is, or as a virtual machine there."""
FAIL, DEGRADE = "fail", "degrade"
"""What becomes of a host that loses a part: it fails, or goes on without it."""


class Circuit(Stored):
    """A channel between the anchor and one other node of a host, its bandwidth reserved on every link of its path.

    `links` are the ledger's accounts between the two nodes' own cards (placement.fabric). Reserved both ways.
    """

    id: str
    anchor: str
    provider: str
    bits_per_second: int
    links: list[str] = []


class VmAsk(Stored):
    """What a host that is a virtual machine starts from. `address` is in CIDR form; `ssh_keys` may log in as root."""

    image: str
    address: str = ""
    gateway: str = ""
    ssh_keys: list[str] = []


class Part(Stored):
    """So much of a kind from one provider. `circuit` names the reserved channel where the part is not local."""

    id: str
    kind: str
    amount: int
    provider: str
    pool: str = ""
    devices: list[str] = []
    circuit: str = ""


class Holding(Stored):
    """Parts and circuits that belong together: what a host had, or what it is to have."""

    parts: list[Part] = []
    circuits: list[Circuit] = []
    pools: list[str] = []


INCARNATIONS_PER_GENERATION = 10**13


def generation_of(incarnation: int) -> int:
    """The generation of the store in which a host was composed."""
    return incarnation // INCARNATIONS_PER_GENERATION


class LogicalHost(Stored):
    """One host. `anchor` is the node its CPU is on; parts may come from other providers.

    `parts` and `circuits` are all that it holds; `leaving` names those (by id) that go in DETACH and WITHDRAW.
    While it is resized, that is `was` and `becomes` together: a part of both stands there as the larger of the two,
    or twice, where their devices are not loaded alike.
    `incarnation` tells it from an earlier host of the same name: agents never mix up the parts of two. One that an
    earlier release composed has none, and nothing is ordered for it until it is resized.
    """

    name: str
    state: HostState
    anchor: str
    parts: list[Part]
    circuits: list[Circuit] = []
    pools: list[str] = []
    version: int = 1
    reason: str = ""
    incarnation: int = 0
    step: Step = Step.SETTLED
    leaving: list[str] = []
    executor: str = BARE
    vm: VmAsk | None = None
    on_loss: str = FAIL
    grown: dict[str, int] = {}
    """What the application inside asked for, by kind, in all: it stands where the definition says less."""
    degraded: list[str] = []
    """Parts, by id, that are lost and that it goes on without."""
    was: Holding | None = None
    becomes: Holding | None = None
    most: dict[str, int] = {}
    """How far a kind may grow, where that has to be said from the start (VMs)."""
    storage_iops: int = 0
    drained: bool = False
    """Whether nothing new is to start on it."""
    tries: int = 0
    """How often it could not be composed, or resized, since that went well; tried again from `retry_at` on."""
    retry_at: float = 0.0
    reserved_until: float = 0.0
    """Of one that is RESERVED: when it is given back, in seconds since the Unix epoch."""

    @property
    def holding(self) -> Holding:
        return Holding(parts=self.parts, circuits=self.circuits, pools=self.pools)

    @property
    def under_way(self) -> bool:
        """Whether it is being put together or taken apart, step by step."""
        return self.step is not Step.SETTLED

    @property
    def is_far_reaching(self) -> bool:
        """Whether agents have to do anything for it, beside letting people in."""
        far = any(part.provider != self.anchor for part in self.parts)
        return self.executor == VM or far or bool(self.circuits) or any(p.kind == STORAGE for p in self.parts)

    def amount(self, kind: str) -> int:
        return sum(p.amount for p in self.parts if p.kind == kind)

    def is_far(self, part: Part) -> bool:
        """Whether the part is of another node than the anchor."""
        return part.provider != self.anchor
