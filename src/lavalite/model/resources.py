"""Resources as first-class, versioned objects: what providers offer.

Kinds and their units, all integers: cpu milli-cores, memory bytes, gpu milli-GPUs, storage bytes, network bits a
second. A FLOATING resource (a licence) belongs to no node; its kind is the name the operator gave it. So is that of a
special resource, which is of a node: devices (an FPGA, a SmartNIC) that are counted, and given out whole by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

CPU, MEMORY, GPU, STORAGE, NETWORK = "cpu", "memory", "gpu", "storage", "network"
KINDS = (CPU, MEMORY, GPU, STORAGE, NETWORK)
UNITS = {CPU: "milli-core", MEMORY: "byte", GPU: "milli-GPU", STORAGE: "byte", NETWORK: "bit/s"}

WHOLE = 1000
"""Milli-cores in a core, milli-GPUs in a GPU."""
PLACES = "places"
ALL_PLACES = 2**30
"""A node has so many places, beside what it offers. Whoever holds anything of it takes one; a task that is to have
the node for itself takes all. Nobody is shown them, and they count in no limit and no quota."""
DEVICE = "device"
"""The unit of a special kind."""
MOST_SPECIAL = 32
"""Kinds of which a node may have devices: each has a column for all nodes."""
_SPECIAL = re.compile(r"[a-z][a-z0-9_-]{0,30}")
_NOT_SPECIAL = frozenset({*KINDS, PLACES, "tasks", "floating", "special", "circuit", "pool", "pools"})
"""What is said beside kinds, where kinds are said."""


def is_special(kind: str) -> bool:
    """Whether a kind that nodes offer is none of the five."""
    return kind not in KINDS and kind != PLACES


def kinds_in_order(kinds: Iterable[str]) -> list[str]:
    """The five in their order, then special ones by name."""
    return sorted(kinds, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))


def amount_of(kind: str, devices: int) -> int:
    """How much so many whole devices are."""
    return devices if is_special(kind) else devices * WHOLE


def grain_of(kind: str) -> int:
    """Of what is divided between nodes, what cannot be: a whole device; 1 of what is no devices."""
    return WHOLE if kind == GPU else 1


def load_of(kind: str, amount: int, devices: int) -> int:
    """How much an amount takes of each of its devices, out of WHOLE: of special kinds all."""
    return WHOLE if is_special(kind) else amount // devices


def special_fault(name: str) -> str:
    """Why nothing special can be called that; empty if it can."""
    if name in _NOT_SPECIAL:
        return f"{name} has a meaning already"
    if not _SPECIAL.fullmatch(name):
        return f"{name[:40] or 'nothing'} is no name of a kind: up to 31 of a-z, 0-9, _ and -, a letter first"
    return ""


def _may_be_special(name: str) -> str:
    if fault := special_fault(name):
        raise ValueError(fault)
    return name


SpecialName = Annotated[str, AfterValidator(_may_be_special)]
"""The name of a special kind, which an operator chose."""


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

    def kinds(self) -> list[str]:
        """What is offered: of special kinds those that may be called so, and so many at most."""
        found = dict.fromkeys(resource.kind for resource in self.resources)
        special = [kind for kind in found if is_special(kind) and not special_fault(kind)]
        return [kind for kind in found if kind in KINDS] + sorted(special)[:MOST_SPECIAL]

    def amount(self, kind: str) -> int:
        """The sum of what is offered of a kind, in the kind's unit; of a special one its devices."""
        if is_special(kind):
            return len({device.id for device in self.devices(kind)})
        return sum(r.amount for r in self.resources if r.kind == kind)

    def devices(self, kind: str) -> list[Device]:
        return [d for r in self.resources if r.kind == kind for d in r.devices]
