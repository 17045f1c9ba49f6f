"""A node as decisions see it, and its GPUs as rows of placement's columns.

What keeps parts of a GPU apart is said to placement in the words that it knows, the model and the MIG profile:

    a GPU in MIG mode, whose instances are made on demand    `mig` is all its profiles, MADE_ON_DEMAND before them
    a GPU that can serve parts by MPS, and has none other    the word BY_MPS is in its model
    a GPU that can serve bare parts, and has none other      the word BARE is in its model

So an ask for a part by MPS is one for a GPU of the model asked for, and of the model BY_MPS.
"""

from __future__ import annotations

from collections.abc import Mapping

from lavalite.model.resources import GPU, Device, NodeOffer
from lavalite.placement.closeness import Near, near_of
from lavalite.placement.columns import DeviceRow

CLOSED = "closed"
"""The extra field of a NodeOffer that says why nothing new is placed there."""
MADE_ON_DEMAND = "on-demand "
BY_MPS, BARE = "«mps»", "«bare»"
WORDS = {"mps": BY_MPS, "none": BARE}


class GpuState:
    """A GPU of a node. `profiles`: the load of each MIG profile of which instances can be made, out of 1000."""

    __slots__ = ("_rows", "device", "id", "mig", "mps", "near", "profiles")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.id = device.id
        self.near: Near = near_of(device)
        self.profiles = profiles_of(device)
        self.mps = device.attributes.get("mps") == "yes"
        self.mig = device.mig
        if device.attributes.get("mig") == "on" and not self.mig:
            self.mig = MADE_ON_DEMAND + ",".join(f"{name}:{load}" for name, load in self.profiles.items())
        self._rows: dict[tuple[int, str], DeviceRow] = {}

    def row(self, free: int, isolation: str) -> DeviceRow:
        """With so much free, out of 1000, and parts of this isolation on it."""
        row = self._rows.get((free, isolation))
        if row is None:
            words = [self.device.model]
            if not self.mig:
                words += [BY_MPS] if self.mps and isolation in ("", "mps") else []
                words += [BARE] if isolation in ("", "none") else []
            memory_bytes = self.device.memory_bytes
            row = DeviceRow(self.id, " ".join(words), memory_bytes, free, self.near, self.mig)
            self._rows[(free, isolation)] = row
        return row


class NodeState:
    """`closed`: why nothing new is placed there; empty if anything may be."""

    __slots__ = ("closed", "gpus", "name", "offer")

    def __init__(self, offer: NodeOffer) -> None:
        self.offer = offer
        self.name = offer.node
        self.gpus = {device.id: GpuState(device) for device in offer.devices(GPU)}
        self.closed = str((offer.model_extra or {}).get(CLOSED) or "")

    @property
    def labels(self) -> Mapping[str, list[str]]:
        return self.offer.labels


def profiles_of(device: Device) -> dict[str, int]:
    """The MIG profiles of which instances can be made on the GPU: their load, the smallest first."""
    if device.attributes.get("mig") != "on" or device.mig:
        return {}
    found: dict[str, int] = {}
    for entry in device.attributes.get("mig_profiles", "").split(","):
        name, _, load = entry.strip().partition(":")
        if name and load.isdecimal() and 0 < int(load) <= 1000:
            found[name] = int(load)
    return dict(sorted(found.items(), key=lambda entry: (entry[1], entry[0])))
