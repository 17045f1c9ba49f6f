"""Logical hosts: what was asked for, what was taken, and how far it is.

PLANNED ──► RESERVED ──► COMPOSING ──► COMPOSED ◄──► RESIZING      any but RELEASED ──► FAILED
                                          └──► DRAINING ──► RELEASED
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
    """One host. `anchor` is the node its CPU is on; parts may come from other providers."""

    name: str
    state: HostState
    anchor: str
    parts: list[Part]
    pools: list[str] = []
    version: int = 1
    reason: str = ""

    def amount(self, kind: str) -> int:
        return sum(p.amount for p in self.parts if p.kind == kind)
