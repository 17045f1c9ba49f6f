"""What each node is to have of a host, at the step that the host is at. Pure: from its record and what agents told.

                   EXPORT        ATTACH          DETACH          WITHDRAW        composed
    far    circuits, exports
        new        present *     present         present         present         present
        leaving    present       present         present         absent *        –
    near   disks, swap, the VM (on the anchor)
        new        –             present *       present         present         present
        leaving    present       present         absent *        absent          –
        the VM     as it was     with all        without what leaves *

    *  has to be heard of, ready or gone, before the host goes on

A disk that takes the place of another one says so (`mirrors`) from ATTACH on until that one is gone for good: if it
breaks when the other is to go already, it can be made anew from that one. In a VM's order it says so at ATTACH alone,
where both are in it.

An order's version grows with the host's, and twice within it, since what is near and what is far change at different
steps: near 2v at ATTACH, 2v + 1 from DETACH on; far 2v before WITHDRAW, 2v + 1 from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from lavalite.control.actions import PartOrdered
from lavalite.control.events import PartReported
from lavalite.model.host import VM, Circuit, Holding, HostState, LogicalHost, Part, Step, VmAsk
from lavalite.model.resources import CPU, MEMORY, STORAGE

CIRCUIT, EXPORT, DISK, SWAP = "circuit", "export", "disk", "swap"
VM_PART = "vm"
"""Role of the virtual machine itself, and the end of its part's id."""
BEFORE_COMPOSING = frozenset({HostState.PLANNED, HostState.RESERVED, HostState.RELEASED})
NEAR_IS_LEAVING = frozenset({Step.DETACH, Step.WITHDRAW})


@dataclass(slots=True, frozen=True)
class Fabric:
    """What is known of nodes: what they told of their parts, and where others reach their exports."""

    told: Callable[[str, tuple[str, str, int]], PartReported | None]
    address: Callable[[str], str]


@dataclass(slots=True, frozen=True)
class Ordered:
    """An order for a node. `awaited`: the host's step waits for it. `whole`: all that it needs to say is known."""

    node: str
    order: PartOrdered
    awaited: bool = False
    whole: bool = True

    def is_met(self, report: PartReported | None) -> bool:
        state = "ready" if self.order.want == "present" else "gone"
        return self.whole and report is not None and (report.state, report.version) == (state, self.order.version)

    def is_broken(self, report: PartReported | None) -> bool:
        """Whether the node says that it cannot carry it out, or that what was ready broke."""
        return report is not None and report.state in ("failed", "lost") and report.version == self.order.version


def vm_part(host: LogicalHost) -> str:
    return f"{host.name}/{VM_PART}"


def part_ids(host: LogicalHost) -> set[str]:
    """Of all that agents may have of the host."""
    ids = {part.id for part in host.parts} | {circuit.id for circuit in host.circuits}
    return ids | {vm_part(host)} if host.executor == VM else ids


def goal_of(host: LogicalHost) -> Holding:
    """What it is to have when its last step is done: nothing where it is taken apart."""
    if host.step in NEAR_IS_LEAVING and host.state is not HostState.RESIZING:
        return Holding()
    return host.becomes or host.holding


def moved_disk(host: LogicalHost) -> tuple[Part, Part] | None:
    """The disk that leaves and the one that takes its place, while the host is resized to have that."""
    if host.was is None or host.becomes is None:
        return None
    before = {part.id: part for part in host.was.parts if part.kind == STORAGE}
    after = {part.id: part for part in host.becomes.parts if part.kind == STORAGE}
    old, new = before.keys() - after.keys(), after.keys() - before.keys()
    return (before[min(old)], after[min(new)]) if old and new else None


def ordered(host: LogicalHost, fabric: Fabric) -> list[Ordered]:
    """All that is ordered for the host now, in a stable order."""
    composing_is_unwritten = host.state is HostState.COMPOSING and host.step is Step.SETTLED
    if not host.incarnation or not host.parts or host.state in BEFORE_COMPOSING or composing_is_unwritten:
        return []
    return [*_far(host, fabric), *_near(host, fabric)]


# --- far: on providers, and circuits at both ends -------------------------------------------------------------------


def _far(host: LogicalHost, fabric: Fabric) -> Iterator[Ordered]:
    goal, late = goal_of(host), host.step in (Step.WITHDRAW, Step.SETTLED)
    version = 2 * host.version + late
    stays = {part.id for part in goal.parts} | {circuit.id for circuit in goal.circuits}
    goes = host.step is Step.WITHDRAW
    shown = goal if late else host.holding
    gone = [p for p in host.parts if p.id not in stays] if goes else []
    gone_circuits = [c for c in host.circuits if c.id not in stays] if goes else []
    for circuit in (*shown.circuits, *gone_circuits):
        want_absent = goes and circuit.id not in stays
        awaited = want_absent if host.step is not Step.EXPORT else circuit.id in stays
        for node, peer in _ends(circuit):
            order = _circuit(host, circuit, peer, version, want_absent, fabric)
            yield Ordered(node, order, awaited, want_absent or bool(order.peer_address))
    for part in (*shown.parts, *gone):
        if host.is_far(part) and part.kind in (STORAGE, MEMORY):
            want_absent = goes and part.id not in stays
            awaited = want_absent if host.step is not Step.EXPORT else part.id in stays
            order = _export(host, part, version, want_absent, fabric)
            yield Ordered(part.provider, order, awaited, want_absent or bool(order.peer_address))


def _ends(circuit: Circuit) -> tuple[tuple[str, str], tuple[str, str]]:
    return (circuit.anchor, circuit.provider), (circuit.provider, circuit.anchor)


def _order(host: LogicalHost, part: str, role: str, version: int, absent: bool) -> PartOrdered:
    return PartOrdered(part, role, host.name, host.incarnation, version, "absent" if absent else "present")


def _circuit(
    host: LogicalHost, circuit: Circuit, peer: str, version: int, absent: bool, fabric: Fabric
) -> PartOrdered:
    order = _order(host, circuit.id, CIRCUIT, version, absent)
    if absent:
        return order
    return replace(order, amount=circuit.bits_per_second, peer=peer, peer_address=fabric.address(peer))


def _export(host: LogicalHost, part: Part, version: int, absent: bool, fabric: Fabric) -> PartOrdered:
    order = _order(host, part.id, EXPORT, version, absent)
    if absent:
        return order
    return replace(
        order,
        kind=part.kind,
        amount=part.amount,
        peer=host.anchor,
        peer_address=fabric.address(host.anchor),
        tls=host.executor == VM,
        iops=host.storage_iops if part.kind == STORAGE else 0,
    )


# --- near: on the anchor --------------------------------------------------------------------------------------------


def _near(host: LogicalHost, fabric: Fabric) -> Iterator[Ordered]:
    goal, step = goal_of(host), host.step
    if step is Step.EXPORT:
        shown, version = host.was or Holding(), 2 * host.version - 1
    elif step is Step.ATTACH:
        shown, version = host.holding, 2 * host.version
    else:
        shown, version = goal, 2 * host.version + 1
    stays = {part.id for part in goal.parts}
    if host.executor == VM:
        if shown.parts or step in NEAR_IS_LEAVING:
            awaited = step in (Step.ATTACH, Step.DETACH)
            yield _machine(host, shown, version, awaited, fabric)
        return
    moved = moved_disk(host) if step is not Step.EXPORT else None
    for part in shown.parts:
        if role := _near_role(host, part):
            one = _attached(host, part, role, version, step is Step.ATTACH and part.id in stays, fabric)
            yield _mirroring(one, moved[0]) if moved is not None and part.id == moved[1].id else one
    for part in host.parts if step in NEAR_IS_LEAVING else ():
        if part.id not in stays and (role := _near_role(host, part)):
            order = _order(host, part.id, role, version, absent=True)
            yield Ordered(host.anchor, order, step is Step.DETACH)


def _near_role(host: LogicalHost, part: Part) -> str:
    """As what the anchor has it; nothing for what needs no attaching."""
    if part.kind == STORAGE:
        return DISK
    return SWAP if part.kind == MEMORY and host.is_far(part) else ""


def _source(host: LogicalHost, part: Part, fabric: Fabric) -> tuple[str, int, str] | None:
    """Where a part of another node is exported: address, port, secret. None while its provider has not said."""
    if not host.is_far(part):
        return "", 0, ""
    report = fabric.told(part.provider, (part.id, EXPORT, host.incarnation))
    if report is None or report.state != "ready" or not report.port:
        return None
    return report.address or fabric.address(part.provider), report.port, report.secret


def _attached(host: LogicalHost, part: Part, role: str, version: int, awaited: bool, fabric: Fabric) -> Ordered:
    source = _source(host, part, fabric)
    address, port, secret = source or ("", 0, "")
    order = replace(
        _order(host, part.id, role, version, absent=False),
        kind=part.kind,
        amount=part.amount,
        peer=part.provider if host.is_far(part) else "",
        address=address,
        port=port,
        secret=secret,
        iops=host.storage_iops if part.kind == STORAGE else 0,
    )
    return Ordered(host.anchor, order, awaited, whole=source is not None)


def _mirroring(one: Ordered, old: Part) -> Ordered:
    return replace(one, order=replace(one.order, mirrors=old.id))


def _machine(host: LogicalHost, shown: Holding, version: int, awaited: bool, fabric: Fabric) -> Ordered:
    order = _order(host, vm_part(host), VM_PART, version, absent=not shown.parts)
    if not shown.parts:
        return Ordered(host.anchor, order, awaited)
    disks, whole = [], True
    moved = moved_disk(host) if host.step is Step.ATTACH else None
    for part in shown.parts:
        if part.kind != STORAGE and not (part.kind == MEMORY and host.is_far(part)):
            continue
        source = _source(host, part, fabric)
        whole &= source is not None
        address, port, secret = source or ("", 0, "")
        disk = {"part": part.id, "kind": part.kind, "bytes": part.amount}
        mirrors = {"mirrors": moved[0].id} if moved is not None and part.id == moved[1].id else {}
        disks.append({**disk, "address": address, "port": port, "secret": secret, **mirrors})
    near = [part for part in shown.parts if not host.is_far(part)]
    cpu_milli = sum(part.amount for part in near if part.kind == CPU)
    memory_bytes = sum(part.amount for part in near if part.kind == MEMORY)
    ask = host.vm or VmAsk(image="")
    machine = {
        "cpu_milli": cpu_milli,
        "cpu_most_milli": max(cpu_milli, host.most.get(CPU, 0)),
        "memory_bytes": memory_bytes,
        "memory_most_bytes": max(memory_bytes, host.most.get(MEMORY, 0)),
        "image": ask.image,
        "network_address": ask.address,
        "gateway": ask.gateway,
        "ssh_keys": list(ask.ssh_keys),
        "disks": disks,
    }
    return Ordered(host.anchor, replace(order, vm=machine), awaited, whole)
