"""All nodes while logical hosts are planned: what is free of each kind as columns, and one node's devices as a room.

Nodes stand in natural order, so that the first of equals is the first by name. A node is known by its row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lavalite.model.host import BARE, HostState, LogicalHost
from lavalite.model.resources import CPU, GPU, KINDS, MEMORY, NETWORK, WHOLE, amount_of, is_special
from lavalite.model.specs import HostSpec, LinkSpec, NodeCapacity, PoolSpec
from lavalite.placement.fabric import ENDLESS, Bools, Fabric, Ints
from lavalite.placement.reasons import Reason
from lavalite.placement.room import Room, named, natural
from lavalite.placement.wiring import LINK, Wiring

Closed = Mapping[str, Reason]


class Floor:
    """Amounts are in the kind's unit; what is over-committed is less than 0."""

    def __init__(
        self, nodes: Iterable[NodeCapacity], pools: Iterable[PoolSpec], closed: Closed, links: Sequence[LinkSpec] = ()
    ) -> None:
        ordered = sorted(nodes, key=lambda node: natural(node.name))
        wiring = Wiring.of(links, ordered)
        self.nodes = [wiring.with_card(node) for node in ordered]
        self.rows = {node.name: row for row, node in enumerate(self.nodes)}
        self.special = {kind for node in self.nodes for kind in node.amounts if is_special(kind)}
        """Kinds that operators named, of which any node has some."""
        kinds = (*KINDS, *self.special)
        self.total = _Amounts({k: _column(node.amounts.get(k, 0) for node in self.nodes) for k in kinds})
        self.free = _Amounts({kind: column.copy() for kind, column in self.total.items()})
        self.total.nothing = self.free.nothing = np.zeros(len(self.nodes), dtype=np.int64)
        self.fabric = Fabric(wiring, self.nodes, self.free[NETWORK])
        self.closed = closed
        self.open: Bools = np.array([node.name not in closed for node in self.nodes], dtype=np.bool_)
        self._members = {
            pool.name: np.array([pool.has(node.name, node.labels) for node in self.nodes], dtype=np.bool_)
            for pool in pools
        }
        self._everybody = np.ones(len(self.nodes), dtype=np.bool_)
        self._rooms: dict[int, Room] = {}
        self._devices: dict[tuple[object, ...], _Devices] = {}
        self._swapping: dict[int, set[str]] = {}

    def room(self, row: int) -> Room:
        """The node by itself."""
        room = self._rooms.get(row)
        if room is None:
            room = self._rooms[row] = Room(self.nodes[row])
        return room

    def members(self, spec: HostSpec, kind: str) -> Bools:
        """Which nodes are in the pool that the host takes the kind of."""
        pool = spec.pools.get(kind, "")
        if not pool:
            return self._everybody
        return self._members.get(pool, ~self._everybody)

    def has(self, spec: HostSpec, kind: str, *, empty: bool = False) -> Ints:
        """How much of what the host asks for of a kind each node could give it, now or with nothing taken."""
        amounts = (self.total if empty else self.free)[kind]
        if not named(spec, kind):
            return amounts
        devices = self._devices_of(spec, kind)
        return np.minimum(amounts, devices.empty if empty else devices.now)

    def has_model(self, spec: HostSpec, kind: str = GPU) -> Bools:
        """Which nodes have any device of the kind, free or not, that is what the host asks for."""
        empty = self._devices_of(_alike(spec, kind, amount_of(kind, 1)), kind).empty
        found: Bools = (empty > 0) & (empty != ENDLESS)
        return found

    def swaps(self, name: str) -> Bools:
        """Which nodes carry another bare host with far memory than this one."""
        found = np.zeros(len(self.nodes), dtype=np.bool_)
        found[[row for row, names in self._swapping.items() if names - {name}]] = True
        return found

    # --- taking -----------------------------------------------------------------------------------------------

    def move(self, provider: str, kind: str, amount: int, devices: Sequence[str], sign: int) -> None:
        """Take (sign -1) or give back (sign +1); of a floating resource, or a node that is no more, nothing."""
        if provider.startswith(LINK):
            self.fabric.move(provider, amount, sign)
        elif (row := self.rows.get(provider)) is not None:
            self.move_at(row, kind, amount, devices, sign)

    def move_at(self, row: int, kind: str, amount: int, devices: Sequence[str], sign: int) -> None:
        if kind in self.free:
            self.free[kind][row] += sign * amount
        room = self.room(row)
        room.move(kind, amount, devices, sign)
        if devices:
            for column in self._devices.values():
                if column.kind == kind:
                    column.refresh(row, room)

    def move_circuit(self, first: int, second: int, bits_per_second: int, links: Iterable[str], sign: int) -> None:
        """Of both cards, and of every link."""
        for row in (first, second):
            self.move_at(row, NETWORK, bits_per_second, (), sign)
        for link in links:
            self.fabric.move(link, bits_per_second, sign)

    def move_host(self, host: LogicalHost, sign: int) -> None:
        """All that the host holds: a released one nothing."""
        if host.state is HostState.RELEASED:
            return
        for part in host.parts:
            self.move(part.provider, part.kind, part.amount, part.devices, sign)
        for circuit in host.circuits:
            for name in (circuit.anchor, circuit.provider, *circuit.links):
                self.move(name, NETWORK, circuit.bits_per_second, (), sign)
        self.note_swap(host, sign)

    def note_swap(self, host: LogicalHost, sign: int) -> None:
        """Swap is machine-wide: a node knows who has far memory there."""
        row = self.rows.get(host.anchor)
        swaps = host.executor == BARE and any(p.kind == MEMORY and host.is_far(p) for p in host.parts)
        if row is not None and swaps:
            names = self._swapping.setdefault(row, set())
            if sign < 0:
                names.add(host.name)
            else:
                names.discard(host.name)

    # --- devices ----------------------------------------------------------------------------------------------

    def _devices_of(self, spec: HostSpec, kind: str) -> _Devices:
        """The column for all hosts that devices are counted alike for."""
        asked, topology = spec.amounts[kind], spec.topology if kind == GPU else ""
        count = 1 if asked < WHOLE else WHOLE if asked == WHOLE or not topology else 2 * WHOLE
        count = count if kind == GPU else amount_of(kind, 1)
        memory_bytes = spec.gpu_memory_bytes if kind == GPU else 0
        key = (kind, spec.model_of(kind), memory_bytes, topology, count)
        known = self._devices.get(key)
        if known is None:
            alike = replace(_alike(spec, kind, count), topology=topology)
            known = self._devices[key] = _Devices(alike, kind, self.nodes, self._rooms)
        return known


class _Amounts(dict[str, Ints]):
    """By kind; of a kind that no node has there is nothing anywhere."""

    nothing: Ints

    def __missing__(self, kind: str) -> Ints:
        return self.nothing


def _alike(spec: HostSpec, kind: str, count: int) -> HostSpec:
    """So many devices of the kind, described as the host describes them."""
    alike = HostSpec("", {kind: count}, special_models=spec.special_models)
    if kind != GPU:
        return alike
    return replace(alike, gpu_model=spec.gpu_model, gpu_memory_bytes=spec.gpu_memory_bytes)


class _Devices:
    """What the devices of each node could give of a kind; ENDLESS where the node gives it out without names."""

    def __init__(self, alike: HostSpec, kind: str, nodes: Sequence[NodeCapacity], rooms: Mapping[int, Room]) -> None:
        self.kind = kind
        self._alike = alike
        self.empty: Ints = np.full(len(nodes), ENDLESS, dtype=np.int64)
        for row, node in enumerate(nodes):
            if devices := node.devices.get(kind):
                known = WHOLE * len(devices) if kind == CPU else Room(node).in_devices(alike, kind, empty=True)
                self.empty[row] = known
        self.now = self.empty.copy()
        for row, room in rooms.items():
            self.refresh(row, room)

    def refresh(self, row: int, room: Room) -> None:
        if self.empty[row] != ENDLESS:
            self.now[row] = room.in_devices(self._alike, self.kind)


def _column(amounts: Iterable[int]) -> Ints:
    return np.array([min(amount, ENDLESS) for amount in amounts], dtype=np.int64)
