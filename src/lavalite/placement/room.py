"""What is free on one node while logical hosts are planned, and which devices are picked there.

Picking is deterministic: on one NUMA node where that is possible, on the fullest that has enough, in natural order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from lavalite.model.resources import CPU, GPU, WHOLE, Device, amount_of, is_special, load_of
from lavalite.model.specs import HostSpec, NodeCapacity, fits_model
from lavalite.placement.closeness import largest, near_of, nearest


@lru_cache(maxsize=2**16)
def natural(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """A key that sorts n2 before n10, and no two names alike."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((int(part), "") if at % 2 else (-1, part) for at, part in enumerate(parts)), name


class Room:
    """One node. Amounts are in the kind's unit; a device is free up to WHOLE."""

    def __init__(self, node: NodeCapacity) -> None:
        self.node = node
        self.free = dict(node.amounts)
        self._devices = node.devices
        self._sorted: dict[str, list[Device]] = {}
        self._device_free: dict[str, dict[str, int]] = {}

    def move(self, kind: str, amount: int, devices: Sequence[str], sign: int) -> None:
        """Take (sign -1) or give back (sign +1) an amount, and a like part of each of its devices."""
        self.free[kind] = self.free.get(kind, 0) + sign * amount
        if not devices:
            return
        held = self._free_of(kind)
        load = load_of(kind, amount, len(devices))
        for device in devices:
            if device in held:
                held[device] += sign * load

    def names_devices(self, spec: HostSpec, kind: str) -> bool:
        """Whether the kind is given out by name here."""
        return bool(self._devices.get(kind)) and named(spec, kind)

    def has_model(self, spec: HostSpec) -> bool:
        """Whether any GPU here, free or not, is what the host asks for."""
        if GPU not in spec.amounts or not (spec.gpu_model or spec.gpu_memory_bytes):
            return True
        return bool(self._suitable(spec, GPU))

    def lacks(self, spec: HostSpec, *, empty: bool = False) -> dict[str, int]:
        """What is short for the host per kind, now or (`empty`) even with nothing taken; {} where it fits."""
        short = {}
        for kind, asked in spec.amounts.items():
            have = max(0, self.node.amounts.get(kind, 0) if empty else self.free.get(kind, 0))
            if self.names_devices(spec, kind):
                have = min(have, self.in_devices(spec, kind, empty=empty))
            if have < asked:
                short[kind] = asked - have
        return short

    def pick(self, spec: HostSpec, kind: str, held: Collection[str] = (), near: Collection[int] = ()) -> list[str]:
        """Devices for the host, which fits: those it held first; [] where the kind has no names here.

        `near` are NUMA nodes to be on where there is a choice.
        """
        if not self.names_devices(spec, kind):
            return []
        asked = _thousandths(kind, spec.amounts[kind])
        free = self._free_of(kind)
        least = asked if asked < WHOLE else WHOLE
        usable = [device for device in self._in_order(spec, kind) if free[device.id] >= least]
        if asked < WHOLE:
            return [min(usable, key=lambda device: (device.id not in held, free[device.id])).id]
        count = asked // WHOLE
        kept = [device for device in usable if device.id in held][:count]
        rest = [device for device in usable if device.id not in held]
        near = near or {device.numa_node for device in kept}
        if kind == GPU and spec.topology and count > 1 and not kept:
            picked = nearest(usable, count, near_of, spec.topology)
        else:
            picked = kept + _together(rest, count - len(kept), near)
        return sorted((device.id for device in picked), key=natural)

    def numa_nodes(self, kind: str, ids: Iterable[str]) -> set[int]:
        """The NUMA nodes that these devices are on, where known."""
        wanted = set(ids)
        return {d.numa_node for d in self._devices.get(kind, ()) if d.id in wanted and d.numa_node >= 0}

    def keeps(self, spec: HostSpec, kind: str, ids: Collection[str]) -> bool:
        """Whether devices held here are still what the host asks for; one that has vanished is not judged."""
        suitable = {device.id for device in self._suitable(spec, kind)}
        return all(device.id in suitable for device in self._devices.get(kind, ()) if device.id in ids)

    def in_devices(self, spec: HostSpec, kind: str, *, empty: bool = False) -> int:
        """How much of what is asked for the named devices could give, now or with nothing taken."""
        asked = _thousandths(kind, spec.amounts[kind])
        free = self._free_of(kind)
        suitable = self._suitable(spec, kind)
        if kind == GPU and spec.topology and asked > WHOLE:
            whole = [device for device in suitable if empty or free[device.id] == WHOLE]
            return WHOLE * largest([near_of(device) for device in whole], spec.topology)
        have = [WHOLE if empty else free[device.id] for device in suitable]
        return max(have, default=0) if asked < WHOLE else amount_of(kind, sum(left == WHOLE for left in have))

    def _free_of(self, kind: str) -> dict[str, int]:
        """What is free of each device, worked out for those nodes that anything is asked of."""
        if kind not in self._device_free:
            self._device_free[kind] = {device.id: WHOLE for device in self._devices.get(kind, ())}
        return self._device_free[kind]

    def _in_order(self, spec: HostSpec, kind: str) -> list[Device]:
        """What suits, in natural order."""
        if kind not in self._sorted:
            self._sorted[kind] = sorted(self._devices.get(kind, ()), key=lambda device: natural(device.id))
        suitable = {device.id for device in self._suitable(spec, kind)}
        return [device for device in self._sorted[kind] if device.id in suitable]

    def _suitable(self, spec: HostSpec, kind: str) -> Sequence[Device]:
        devices = self._devices.get(kind, ())
        if is_special(kind):
            return [d for d in devices if fits_model(d, spec.model_of(kind), 0)]
        if kind != GPU:
            return devices
        return [d for d in devices if not d.mig and fits_model(d, spec.gpu_model, spec.gpu_memory_bytes)]


def named(spec: HostSpec, kind: str) -> bool:
    """Whether the kind is given out by name: GPUs and what is special always, cores where only whole ones are asked
    for."""
    return kind == GPU or is_special(kind) or (kind == CPU and spec.amounts[CPU] % WHOLE == 0)


def _thousandths(kind: str, amount: int) -> int:
    return amount * WHOLE if is_special(kind) else amount


def _together(devices: list[Device], count: int, near: Collection[int]) -> list[Device]:
    """So many of the devices: of one NUMA node if one has enough, the fullest such; else from as few as can be."""
    if count <= 0:
        return []
    groups: dict[int, list[Device]] = {}
    for device in devices:
        groups.setdefault(device.numa_node, []).append(device)
    enough = [numa for numa, group in groups.items() if len(group) >= count]
    if enough:
        best = min(enough, key=lambda numa: (numa not in near, len(groups[numa]), numa))
        return groups[best][:count]
    largest_first = sorted(groups, key=lambda numa: (numa not in near, -len(groups[numa]), numa))
    return [device for numa in largest_first for device in groups[numa]][:count]
