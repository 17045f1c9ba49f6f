"""Sums over what a host holds: of what it was and what it becomes together, and of what jobs may use meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lavalite.model.host import Circuit, Holding, LogicalHost, Part
from lavalite.model.resources import GPU, amount_of


def union_of(was: Holding, becomes: Holding) -> Holding:
    """All that is held while a host turns from one into the other. Never less than either of them, of anything."""
    after = {part.id: part for part in becomes.parts}
    before = {part.id for part in was.parts}
    parts = [piece for part in was.parts for piece in _both(part, after.get(part.id))]
    parts += [part for part in becomes.parts if part.id not in before]
    circuits = {circuit.id: circuit for circuit in was.circuits}
    for circuit in becomes.circuits:
        circuits[circuit.id] = _wider(circuit, circuits.get(circuit.id))
    return Holding(parts=parts, circuits=list(circuits.values()), pools=sorted({*was.pools, *becomes.pools}))


def _wider(circuit: Circuit, other: Circuit | None) -> Circuit:
    if other is None:
        return circuit
    links = list(dict.fromkeys((*other.links, *circuit.links)))
    width = max(circuit.bits_per_second, other.bits_per_second)
    return circuit.model_copy(update={"links": links, "bits_per_second": width})


def _both(part: Part, other: Part | None) -> list[Part]:
    """One part as two plans have it. A share loads its devices alike: those that are not are parts of their own."""
    if other is None or other == part:
        return [part]
    loads: dict[str, int] = {}
    for one in (part, other):
        for device in one.devices:
            loads[device] = max(loads.get(device, 0), one.amount // len(one.devices))
    pieces = [
        part.model_copy(update={"amount": load * len(devices), "devices": devices})
        for load in sorted(set(loads.values()), reverse=True)
        if (devices := [device for device, found in loads.items() if found == load])
    ]
    rest = max(part.amount, other.amount) - sum(loads.values())
    if rest > 0:
        pieces.append(part.model_copy(update={"amount": rest, "devices": []}))
    return [piece.model_copy(update={"pool": other.pool}) for piece in pieces]


def offered(host: LogicalHost) -> dict[str, tuple[int, list[str]]]:
    """What jobs may use of the host now, by kind: the amount and the devices.

    While it is resized, that is what it had and will have as well. Parts that are lost are not counted.
    """
    # What is on another node is part of the host, but no device of it is any that a task on its anchor could use.
    return _now(host, lambda part: part.provider == host.anchor or not part.devices)


def beside(host: LogicalHost, node: str) -> tuple[int, list[str]]:
    """The same of its GPUs of another node: what tasks of its jobs may use that are on that node."""
    return _now(host, lambda part: part.provider == node and is_beside(host, part)).get(GPU, (0, []))


def nodes_beside(host: LogicalHost) -> list[str]:
    """The other nodes of which it holds GPUs, lost ones too."""
    return sorted({part.provider for part in host.parts if is_beside(host, part)})


def is_beside(host: LogicalHost, part: Part) -> bool:
    """Whether tasks must be on another node than the anchor to use the part."""
    return part.kind == GPU and bool(part.devices) and host.is_far(part)


def devices_elsewhere(host: LogicalHost) -> dict[str, dict[str, list[str]]]:
    """By kind, its devices of other nodes, by node; lost ones left out."""
    found: dict[str, dict[str, list[str]]] = {}
    for part in (host.becomes or host.holding).parts:
        if part.devices and host.is_far(part) and part.id not in host.degraded:
            found.setdefault(part.kind, {}).setdefault(part.provider, []).extend(part.devices)
    return found


def gpu_nodes(host: LogicalHost) -> dict[str, list[str]]:
    """Its GPUs of other nodes, by node; lost ones left out."""
    return devices_elsewhere(host).get(GPU, {})


def _now(host: LogicalHost, counts: Callable[[Part], bool]) -> dict[str, tuple[int, list[str]]]:
    found = _usable(host, filter(counts, (host.becomes or host.holding).parts))
    if host.was is None:
        return found
    before = _usable(host, filter(counts, host.was.parts))
    return {kind: _least(kind, found[kind], before[kind]) for kind in found if kind in before}


def _usable(host: LogicalHost, parts: Iterable[Part]) -> dict[str, tuple[int, list[str]]]:
    found: dict[str, tuple[int, list[str]]] = {}
    for part in parts:
        if part.id not in host.degraded:
            amount, devices = found.get(part.kind, (0, []))
            found[part.kind] = (amount + part.amount, [*devices, *part.devices])
    return found


def _least(kind: str, one: tuple[int, list[str]], other: tuple[int, list[str]]) -> tuple[int, list[str]]:
    amount = min(one[0], other[0])
    devices = [device for device in one[1] if device in other[1]]
    named = bool(one[1] or other[1])
    amount = min(amount, amount_of(kind, len(devices))) if named else amount
    return amount, devices if amount else []
