"""One node as the leader knows it: what it offers, what people say of it, whether its agent is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from lavalite.control.tasks import TaskKey, TaskRun
from lavalite.model.node import Drain
from lavalite.model.resources import NodeOffer
from lavalite.model.specs import NodeCapacity

UNPACKED_OFFERS = 1024
"""Offers of so many nodes are at hand."""


@dataclass(slots=True, eq=False)
class NodeState:
    """One node. `heard_at`: when its agent's session was last heard of, or since when we serve."""

    name: str
    packed: bytes
    """What it offers, as `unpacked_offer` takes it: a tenth of what the model weighs."""
    boot_id: str
    told_labels: dict[str, list[str]]
    """By its LIM. These and the boot id are the offer's; all nodes are looked through for them."""
    journal_id: str = ""
    drain: Drain | None = None
    operator_labels: dict[str, list[str]] = field(default_factory=dict)
    """What people gave it. They are not changed in place."""
    connected: bool = False
    registered: bool = False
    """Whether its agent has told its journal to us, rather than to a predecessor."""
    heard_at: float = 0.0
    generation: int = 0
    """In which its agent told its journal last."""
    lim_silent: bool = False
    fabric_address: str = ""
    """Where other nodes reach what it exports."""
    owes_parts: bool = False
    """Whether it was let go while it may have had parts of hosts: nothing is composed there until it has told."""
    doubtful: bool = False
    """Whether it may have something of which its agent can never tell what became of it (`TaskRun.lost_since`)."""
    runs: dict[TaskKey, TaskRun] = field(default_factory=dict)
    _capacity: NodeCapacity | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, offer: NodeOffer) -> NodeState:
        return cls(offer.node, _packed(offer), offer.boot_id, offer.labels)

    @property
    def offer(self) -> NodeOffer:
        """Not to be changed in place."""
        return unpacked_offer(self.packed)

    def set_offer(self, offer: NodeOffer) -> None:
        self.packed, self.boot_id, self.told_labels = _packed(offer), offer.boot_id, offer.labels
        self._capacity = None

    @property
    def labels(self) -> dict[str, list[str]]:
        """What selectors go by: what people gave it, over what its LIM tells."""
        return self.told_labels | self.operator_labels if self.operator_labels else self.told_labels

    def set_labels(self, labels: dict[str, list[str]]) -> None:
        """What people say of it."""
        self.operator_labels, self._capacity = labels, None

    def capacity(self) -> NodeCapacity:
        """The node as planning sees it: kept, since every plan sees all nodes. Not to be changed in place."""
        if self._capacity is None:
            self._capacity = NodeCapacity.from_offer(NodeOffer.model_validate_json(self.packed), self.labels)
        return self._capacity


def _packed(offer: NodeOffer) -> bytes:
    return offer.model_dump_json(exclude_defaults=True).encode()


@lru_cache(UNPACKED_OFFERS)
def unpacked_offer(packed: bytes) -> NodeOffer:
    """An offer out of its JSON, in which all that is as by default may be left out."""
    return NodeOffer.model_validate_json(packed)
