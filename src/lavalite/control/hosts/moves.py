"""Which parts of a host may go elsewhere while it is used."""

from __future__ import annotations

from lavalite.control.events import PartReported
from lavalite.control.hosts.orders import DISK, moved_disk
from lavalite.control.state import ClusterState
from lavalite.model.host import VM, LogicalHost, Step
from lavalite.model.resources import GPU, MEMORY, STORAGE

MAPPED = "/dev/mapper/"
"""How the device of a disk is called on an anchor that can put another one under it."""


def movable(state: ClusterState, host: LogicalHost) -> frozenset[str]:
    """The kinds of which parts may be brought elsewhere now: GPUs only while nobody uses them."""
    kinds = {MEMORY}
    if not state.host_in_use(host.name):
        kinds.add(GPU)
    if _disk_may_move(state, host):
        kinds.add(STORAGE)
    return frozenset(kinds)


def held_back(state: ClusterState, before: LogicalHost, after: LogicalHost) -> str:
    """Why the host's disk cannot move as is planned, for people; nothing where it can, or stays."""
    planned = after.model_copy(update={"was": before.holding, "becomes": after.holding})
    if moved_disk(planned) is None or _disk_may_move(state, before):
        return ""
    if None in _disks_told(state, before):
        return f"{before.anchor} has not said yet whether another disk can take the place of the host's"
    return f"{before.anchor} has its disk without the device mapper, so that it can be neither moved nor enlarged"


def is_copying(host: LogicalHost) -> bool:
    """Whether a disk is being copied, which may last: whoever wants the host away does not wait for it."""
    return moved_disk(host) is not None and host.step in (Step.ATTACH, Step.DETACH)


def _disk_may_move(state: ClusterState, host: LogicalHost) -> bool:
    """Whether the anchor says so, by the name of the device. A virtual machine's disks all may."""
    told = _disks_told(state, host)
    return host.executor == VM or all(disk is not None and disk.device.startswith(MAPPED) for disk in told)


def _disks_told(state: ClusterState, host: LogicalHost) -> list[PartReported | None]:
    told = state.parts_told.get(host.anchor, {})
    return [told.get((part.id, DISK, host.incarnation)) for part in host.parts if part.kind == STORAGE]
