"""Resources as first-class, versioned objects: what providers offer.

Kinds and their units, all integers: cpu milli-cores, memory bytes, gpu milli-GPUs, storage bytes, network bits a
second. A FLOATING resource (a licence) belongs to no node; its kind is the name the operator gave it.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

CPU, MEMORY, GPU, STORAGE, NETWORK = "cpu", "memory", "gpu", "storage", "network"
KINDS = (CPU, MEMORY, GPU, STORAGE, NETWORK)
UNITS = {CPU: "milli-core", MEMORY: "byte", GPU: "milli-GPU", STORAGE: "byte", NETWORK: "bit/s"}

WHOLE = 1000
"""Milli-cores in a core, milli-GPUs in a GPU."""
PLACES = "places"
ALL_PLACES = 2**30
"""A node has so many places, beside what it offers. Whoever holds anything of it takes one; a task that is to have
the node for itself takes all. Nobody is shown them, and they count in no limit and no quota."""


class Stored(BaseModel):
    """Base of everything stored: fields it does not know are kept, so that an older release loses nothing."""

    model_config = ConfigDict(extra="allow")


class Scope(StrEnum):
    HOST = "HOST"
    FLOATING = "FLOATING"


class Device(Stored):
    """One GPU (or core set, disk, NIC) that is given out by name. `id` is stable: a UUID, a path, an address."""

    id: str
    model: str = ""
    memory_bytes: int = Field(default=0, ge=0)
    numa_node: int = -1
    pci_address: str = ""
    attributes: dict[str, str] = {}

    @property
    def mig(self) -> str:
        """The profile of a MIG instance, as `1g.10gb`; empty for a whole GPU."""
        return self.attributes.get("mig_profile", "")


class Resource(Stored):
    """`name` is `OWNER/KIND`; `version` grows whenever anything of it changes."""

    name: str
    kind: str
    amount: int = Field(ge=0)
    unit: str
    scope: Scope = Scope.HOST
    owner: str
    version: int = Field(default=1, ge=1)
    devices: list[Device] = []
    attributes: dict[str, str] = {}


class NodeOffer(Stored):
    """All that one node offers, as its LIM found it. `version` grows when any resource or label changes."""

    node: str
    boot_id: str
    version: int = Field(default=1, ge=1)
    labels: dict[str, list[str]] = {}
    resources: list[Resource] = []

    def amount(self, kind: str) -> int:
        """The sum of what is offered of a kind, in the kind's unit."""
        return sum(r.amount for r in self.resources if r.kind == kind)

    def devices(self, kind: str) -> list[Device]:
        return [d for r in self.resources if r.kind == kind for d in r.devices]
