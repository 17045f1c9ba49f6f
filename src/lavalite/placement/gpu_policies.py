"""Policies that keep GPUs usable: `gpu-packing`, and `fgd`, fragmentation gradient descent.

Both are after "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent"
(USENIX ATC'23), in integers.
"""

from __future__ import annotations

import numpy as np

from lavalite.model.resources import WHOLE
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Bools, Columns, Floats, Ints, Workload, WorkloadPart
from lavalite.placement.policies import Policy
from lavalite.placement.rows import Rows

LEVEL = 100_000
"""Between two levels of gpu-packing: more milli-GPUs than a node has."""
EVEN = 500_000_000
"""The score under fgd of a row on which the task changes nothing."""


class GpuPacking(Policy):
    """GPUs in use before idle ones, and those of nodes in use before those of idle nodes.

    A part of a GPU goes where a begun one has room (level 3); whole ones, and parts that begin one, to nodes that
    have GPUs in use (level 2); else to where none is (1). What needs no GPU goes to nodes without any (3), then to
    nodes whose GPUs are all taken (2). Within a level less left is better: of that GPU for a part, else of all of the
    node's GPUs.
    """

    name = "gpu-packing"
    highest = 3 * LEVEL
    trusted = True

    def scores(self, wanted: RequestClass, rows: Rows) -> Ints:
        levels, left = self._levels(wanted, rows)
        return LEVEL * levels - np.minimum(left, LEVEL - 1)

    @staticmethod
    def _levels(wanted: RequestClass, rows: Rows) -> tuple[Ints, Ints]:
        """For each row its level, and how many milli-GPUs would be left."""
        free, sorts = rows.device_free, rows.device_sorts
        if wanted.gpu is None:
            return 3 - _any(sorts > 0) - _any((sorts > 0) & (free > 0)), _sum(free)
        begun = (free < WHOLE) & (sorts > 0)
        levels = 1 + _any(begun)
        if not wanted.gpu.part:
            return levels, _sum(free) - WHOLE * wanted.whole_gpus
        room = rows.accepted(wanted.gpu)[sorts] & (free >= wanted.gpu.part)
        least: Ints = np.minimum.reduce(np.where(room, free, WHOLE), axis=1, initial=WHOLE)
        return np.maximum(levels, 3 * _any(room & begun)), least - wanted.gpu.part


class Fgd(Policy):
    """The row on which the task adds least to the GPU capacity that the usual tasks cannot use.

    Of a row, the fragment for a sort of task is: all that is free of its GPUs where such a task does not fit there;
    else what is free of those GPUs that, each by itself, would not do for it. The score is by how much the average
    over the workload falls (EVEN and more) or grows (less), in milli-GPUs times the weights of the workload.
    """

    name = "fgd"
    highest = 2 * EVEN
    looks_ahead = True
    trusted = True

    def scores(self, wanted: RequestClass, rows: Rows) -> Ints | Floats:
        parts = rows.workload.parts
        if not parts:
            return rows.sum_of_fullness()
        free = rows.spare + wanted.need
        devices, sorts = rows.device_free, rows.device_sorts
        then, devices_then = rows.spare, _taken(wanted, rows, devices, sorts)
        change = np.zeros(len(rows), dtype=np.int64)
        for part in parts:
            accepted = rows.accepted(part.gpu)[sorts] if part.gpu is not None else sorts < 0
            grown = _fragment(part, then, devices_then, accepted) - _fragment(part, free, devices, accepted)
            change += part.weight * grown
        return np.clip(EVEN - change, 0, 2 * EVEN)


def fragment_share(columns: Columns, workload: Workload) -> float | None:
    """Which part of all free GPUs is of no use to the usual task, from 0 to 1; None where none is free, or nothing
    is known of what is usual."""
    devices, sorts = columns.device_free(None), columns.device_sorts(None)
    total, weights = int(devices.sum()), sum(part.weight for part in workload.parts)
    if not total or not weights:
        return None
    free, lost = columns.free_at(None), 0
    for part in workload.parts:
        accepted = columns.accepted(part.gpu)[sorts] if part.gpu is not None else sorts < 0
        lost += part.weight * int(_fragment(part, free, devices, accepted).sum())
    return lost / (total * weights)


def _taken(wanted: RequestClass, rows: Rows, free: Ints, sorts: Ints) -> Ints:
    """What is free of each device once the task has those that `RequestClass.pick_devices` would pick."""
    if wanted.gpu is None or not free.shape[1]:
        return free
    accepted = rows.accepted(wanted.gpu)[sorts]
    if wanted.gpu.part:
        left = np.where(accepted & (free >= wanted.gpu.part), free, 2 * WHOLE)
        picked = np.zeros(free.shape, dtype=np.bool_)
        picked[np.arange(len(free)), left.argmin(axis=1)] = True
        return free - picked * wanted.gpu.part
    usable = accepted & (free == WHOLE)
    return np.where(usable & (usable.cumsum(axis=1) <= wanted.whole_gpus), 0, free)


def _fragment(part: WorkloadPart, free: Ints, devices: Ints, accepted: Bools) -> Ints:
    """How many milli-GPUs of each row are of no use to such a task."""
    if part.gpu is None:
        return _sum(devices)
    usable = accepted & (devices >= (part.gpu.part or WHOLE))
    room: Bools = np.logical_and.reduce(free >= np.array(part.amounts).reshape(-1, 1), axis=0)
    fits: Bools = (_sum(usable) >= (part.whole_gpus or 1)) & room
    return _sum(devices) - fits * _sum(devices * usable)


def _any(lines: Bools) -> Ints:
    """1 for each line in which anything is true, else 0."""
    some: Ints = np.logical_or.reduce(lines, axis=1).astype(np.int64)
    return some


def _sum(lines: Ints | Bools) -> Ints:
    total: Ints = np.add.reduce(lines, axis=1, dtype=np.int64)
    return total
