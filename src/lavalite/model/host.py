"""Logical hosts: what was asked for, what was taken, and how far it is.

PLANNED ──► RESERVED ──► COMPOSING ──► COMPOSED ◄──► RESIZING      any but RELEASED ──► FAILED
                                          └──► DRAINING ──► RELEASED

While parts of other nodes are put together or taken apart, the host is at a step, which is durable before anything is
done of it:

    composing   EXPORT ──► ATTACH ──► composed          a part fails:  DETACH ──► WITHDRAW ──► failed, nothing held
    resizing    EXPORT ──► ATTACH ──► DETACH ──► WITHDRAW ──► composed    a part fails: what is new leaves instead
    draining    DETACH ──► WITHDRAW ──► gone
"""

from __future__ import annotations

from enum import StrEnum

from lavalite.model.resources import Stored


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


class LogicalHost(Stored):
    """One host. `anchor` is the node its CPU is on; parts may come from other providers.

    `parts` and `circuits` are all that it holds; `leaving` names those (by id) that go in DETACH and WITHDRAW.
    `incarnation` tells it from an earlier host of the same name: agents never mix up the parts of two.
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
    degraded: list[str] = []
    """Parts, by id, that are lost and that it goes on without."""

    def amount(self, kind: str) -> int:
        return sum(p.amount for p in self.parts if p.kind == kind)

    def is_far(self, part: Part) -> bool:
        """Whether the part is of another node than the anchor."""
        return part.provider != self.anchor
