"""A node as it is stored under `resources/NODE`."""

from __future__ import annotations

from lavalite.model.resources import NodeOffer, Stored


class NodeRecord(Stored):
    """What the node offered last, who its agent was, and whether a person drained it."""

    offer: NodeOffer
    journal_id: str = ""
    drained: bool = False
    drain_reason: str = ""
