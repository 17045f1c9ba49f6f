"""A logical host put together on one anchor: its parts there, those of other nodes, and the circuits between.

What it takes is taken on the floor as it is found; where something cannot be had, nothing is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lavalite.model.host import Circuit, HostState, LogicalHost, Part
from lavalite.model.resources import CPU, GPU, NETWORK, is_special, kinds_in_order
from lavalite.model.specs import HostSpec
from lavalite.placement.anchors import circuit_bandwidth
from lavalite.placement.floor import Floor
from lavalite.placement.reasons import Gap
from lavalite.placement.remote import FarPart, Laid, Remote


def assemble(
    spec: HostSpec,
    floor: Floor,
    row: int,
    lacking: Mapping[str, int],
    before: LogicalHost | None = None,
    kept: Sequence[Part] = (),
) -> LogicalHost | Gap:
    """The host on the node of that row, where all that is not lacking fits.

    `lacking` comes from other nodes. `before` is the host as it was, which holds nothing now, and `kept` those of its
    parts of other nodes that stay as they are.
    """
    here = _here(spec, floor, row, lacking, before, kept)
    for part in here:
        floor.move_at(row, part.kind, part.amount, part.devices, -1)
    circuits = {circuit.provider: circuit for circuit in before.circuits} if before else {}
    gone = [part for part in kept if part.provider not in floor.rows]
    lost = [circuits[name] for name in dict.fromkeys(part.provider for part in gone) if name in circuits]
    for circuit in lost:
        _move(floor, circuit, -1)
    remote = Remote(floor, spec, row)
    gap = _keep(spec, floor, remote, [part for part in kept if part.provider in floor.rows], circuits)
    gap = gap or remote.take_all(dict(lacking))
    if gap is not None:
        remote.undo()
        for circuit in lost:
            _move(floor, circuit, +1)
        for part in here:
            floor.move_at(row, part.kind, part.amount, part.devices, +1)
        return gap
    host = _host(spec, floor, row, here, _there(spec, floor, remote, kept), before)
    host.circuits = _circuits(spec, floor, row, remote) + lost
    floor.note_swap(host, -1)
    return host


def wanted_bandwidth(spec: HostSpec, kinds: Iterable[str]) -> int:
    """Of the one circuit over which things of these kinds come."""
    return max(circuit_bandwidth(spec, kind) for kind in kinds)


def _here(
    spec: HostSpec,
    floor: Floor,
    row: int,
    lacking: Mapping[str, int],
    before: LogicalHost | None,
    kept: Sequence[Part],
) -> list[Part]:
    """The parts of the anchor itself: cores near to its GPUs."""
    far = dict(lacking)
    for part in kept:
        far[part.kind] = far.get(part.kind, 0) + part.amount
    amounts = {
        kind: left for kind in kinds_in_order(spec.amounts) if (left := spec.amounts[kind] - far.get(kind, 0)) > 0
    }
    local, room, name = replace(spec, amounts=amounts), floor.room(row), floor.nodes[row].name
    held = {part.kind: part.devices for part in before.parts if part.provider == name} if before else {}
    devices: dict[str, list[str]] = {}
    if GPU in amounts:
        devices[GPU] = room.pick(local, GPU, held.get(GPU, ()))
    for kind in filter(is_special, amounts):
        devices[kind] = room.pick(local, kind, held.get(kind, ()))
    if CPU in amounts:
        devices[CPU] = room.pick(local, CPU, held.get(CPU, ()), room.numa_nodes(GPU, devices.get(GPU, ())))
    return [_part(spec, kind, name, amount, devices.get(kind, []), ()) for kind, amount in amounts.items()]


def _keep(
    spec: HostSpec, floor: Floor, remote: Remote, kept: Sequence[Part], circuits: Mapping[str, Circuit]
) -> Gap | None:
    """Hold what stays, over circuits that are as wide as is asked for now."""
    rows = {floor.rows[part.provider]: circuits.get(part.provider) for part in kept}
    laid = {row: Laid(known.bits_per_second, tuple(known.links)) for row, known in rows.items() if known}
    laid |= {row: Laid(0, ()) for row, known in rows.items() if known is None}
    remote.keep((FarPart(p.kind, floor.rows[p.provider], p.amount, p.devices) for p in kept), laid)
    for row in rows:
        kinds = [part.kind for part in kept if floor.rows[part.provider] == row]
        gap = remote.widen(row, wanted_bandwidth(spec, kinds))
        if gap is not None:
            return gap
    return None


def _there(spec: HostSpec, floor: Floor, remote: Remote, kept: Sequence[Part]) -> list[Part]:
    """The parts of other nodes: those that stay with the names that they have."""
    parts = list(kept)
    known = sum(part.provider in floor.rows for part in kept)
    for kind, row, amount, devices in remote.parts[known:]:
        taken = [part.id for part in parts]
        parts.append(_part(spec, kind, floor.nodes[row].name, amount, devices, taken))
    return parts


def _part(spec: HostSpec, kind: str, provider: str, amount: int, devices: list[str], taken: Iterable[str]) -> Part:
    first = f"{spec.name}/{kind}/{provider}"
    name, number, known = first, 2, set(taken)
    while name in known:
        name, number = f"{first}.{number}", number + 1
    pool = spec.pools.get(kind, "")
    return Part(id=name, kind=kind, amount=amount, provider=provider, pool=pool, devices=devices)


def _circuits(spec: HostSpec, floor: Floor, row: int, remote: Remote) -> list[Circuit]:
    anchor = floor.nodes[row].name
    return [
        Circuit(
            id=circuit_id(spec.name, floor.nodes[other].name),
            anchor=anchor,
            provider=floor.nodes[other].name,
            bits_per_second=laid.bits_per_second,
            links=list(laid.links),
        )
        for other, laid in sorted(remote.circuits.items())
    ]


def circuit_id(host: str, provider: str) -> str:
    return f"{host}/circuit/{provider}"


def _host(
    spec: HostSpec, floor: Floor, row: int, here: list[Part], there: list[Part], before: LogicalHost | None
) -> LogicalHost:
    there = [part.model_copy(update={"circuit": circuit_id(spec.name, part.provider)}) for part in there]
    kinds = kinds_in_order({part.kind for part in (*here, *there)})
    parts = [part for kind in kinds for part in (*here, *there) if part.kind == kind]
    pools = sorted(set(spec.pools.values()))
    if before is None:
        name = floor.nodes[row].name
        before = LogicalHost(name=spec.name, state=HostState.PLANNED, anchor=name, parts=[], version=0)
    asked = {"executor": spec.executor, "vm": spec.vm, "on_loss": spec.on_loss}
    return before.model_copy(update={"parts": parts, "pools": pools, "version": before.version + 1, **asked})


def _move(floor: Floor, circuit: Circuit, sign: int) -> None:
    for name in (circuit.anchor, circuit.provider, *circuit.links):
        floor.move(name, NETWORK, circuit.bits_per_second, (), sign)
