"""Which parts of a host may go elsewhere while it is used."""

from __future__ import annotations

from lavalite.control.hosts.orders import DISK, VM_PART, moved_disk, vm_part
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


def may_go(state: ClusterState, host: LogicalHost) -> bool:
    """Whether it is a machine that another node could take over: its own says what it is built of."""
    told = state.parts_told.get(host.anchor, {}).get((vm_part(host), VM_PART, host.incarnation))
    return host.executor == VM and told is not None and told.state == "ready" and bool(told.device)


def held_back(state: ClusterState, before: LogicalHost, after: LogicalHost) -> str:
    """Why the host's disk cannot move as is planned, for people; nothing where it can, or stays."""
    planned = after.model_copy(update={"was": before.holding, "becomes": after.holding})
    if moved_disk(planned) is None or _disk_may_move(state, before):
        return ""
    return f"{before.anchor} has its disk without the device mapper, so that it can be neither moved nor enlarged"


def is_copying(host: LogicalHost) -> bool:
    """Whether a disk is being copied, which may last: whoever wants the host away does not wait for it."""
    return moved_disk(host) is not None and host.step in (Step.ATTACH, Step.DETACH)


def _disk_may_move(state: ClusterState, host: LogicalHost) -> bool:
    """Whether the anchor says so, by the name of the device. A virtual machine's disks all may."""
    if host.executor == VM:
        return True
    told = state.parts_told.get(host.anchor, {})
    disks = [told.get((part.id, DISK, host.incarnation)) for part in host.parts if part.kind == STORAGE]
    return all(disk is not None and disk.device.startswith(MAPPED) for disk in disks)
