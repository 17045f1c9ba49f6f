"""A node as it is stored under `resources/NODE`, and what a person may have said of it."""

from __future__ import annotations

from dataclasses import dataclass

from lavalite.model.resources import NodeOffer, Stored


@dataclass(slots=True, frozen=True)
class Drain:
    """Nothing new is placed on the node; from `deadline_at` on, what still runs there is ended.

    `deadline_seconds` is what was asked for, `deadline_at` what came of it, in seconds since the Unix epoch. None for
    both: what runs there may run on for as long as it likes.
    """

    reason: str = ""
    deadline_seconds: int | None = None
    deadline_at: float | None = None


class NodeRecord(Stored):
    """What the node offered last, who its agent was, and what a person said: to drain it, and labels of it."""

    offer: NodeOffer
    journal_id: str = ""
    drained: bool = False
    drain_reason: str = ""
    drain_deadline_seconds: int | None = None
    drain_deadline_at: float | None = None
    operator_labels: dict[str, list[str]] = {}
    generation: int = 0
    """In which its agent told its journal last."""
    fabric_address: str = ""
    owes_parts: bool = False
    """Whether it may have parts of hosts that were taken apart while it was away."""

    @property
    def drain(self) -> Drain | None:
        if not self.drained:
            return None
        return Drain(self.drain_reason, self.drain_deadline_seconds, self.drain_deadline_at)
