"""What is stored of compute groups. Keys are relative to the ledger's own prefix.

groups/ID          GroupRecord    what it holds, and of whom it is
nodes/NAME         NodeOffer      what the node has (model.resources), as it was looked at last
pools/NAME         PoolRecord     in the words of pools.yml
waiting/ID         WaitingRecord  an ask that waits for room, until it expires
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lavalite.model.job import Share
from lavalite.model.resources import Stored

GROUPS, NODES, POOLS, WAITING = "groups/", "nodes/", "pools/", "waiting/"


class Holder(Stored):
    """The process that allocated a group, in a way that no later process can be mistaken for it."""

    boot_id: str = ""
    pid: int = 0
    start_ticks: int = 0


class GroupRecord(Stored):
    """`shares` are of its one node. `created`: it was made on purpose, and stays when it is deallocated."""

    id: str
    node: str
    shares: list[Share]
    state: Literal["free", "reserved", "allocated", "draining"]
    component: str = ""
    team: str = ""
    pool: str = ""
    priority: int = 0
    created: bool = False
    requirements: dict[str, Any] = {}
    """As they were asked for, so that a later ask can be compared."""
    run: dict[str, Any] = {}
    """What runs in it, where the provider runs components (requirements.Run)."""
    isolation: Literal["", "mig", "mps", "none"] = ""
    """Of a part of a GPU, what keeps it apart from others; empty where it has whole ones."""
    mig_profile: str = ""
    """Of MIG instances that are made on demand for it, as `1g.10gb`: so many as its GPU shares come to."""
    instances: list[str] = []
    """MIG instances that were made for it and are removed with it, by UUID."""
    ready: bool = True
    """False while what it needs beside the commitment (a MIG instance, a pod) is being made or removed."""
    unready_since: float = 0.0
    """Since when it is; seconds since the Unix epoch."""
    lifetime: Literal["process", "manual"] = "process"
    holder: Holder = Holder()
    made_at: float = 0.0
    expires_at: float | None = None
    """Of a reservation; seconds since the Unix epoch."""


class PoolRecord(Stored):
    """`entry` is what pools.yml says of a pool (model.pools_entries.PoolEntry)."""

    name: str
    entry: dict[str, Any]


class WaitingRecord(Stored):
    """Who waits with a higher `priority`, or longer with the same, is not overtaken by who asks for that room."""

    id: str
    component: str
    resources: dict[str, Any]
    priority: int = 0
    asked_at: float
    expires_at: float = Field(description="Seconds since the Unix epoch; its asker prolongs it while it lives.")
