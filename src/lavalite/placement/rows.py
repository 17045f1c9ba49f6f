"""What a policy sees: some rows, on each of which one task more of the class fits.

Either rows as they are, or (`Rows.filled`) one row as it will be with 0, 1, 2, … tasks of the class placed on it:
that is how many tasks at once stay on a row before another one becomes better.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lavalite.model.resources import WHOLE
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import KIND_AT, Bools, Columns, GpuSelector, Ints, Workload


class Rows:
    """All that is asked of it has one number for each row, in the order of `numbers`, the row numbers."""

    __slots__ = ("_columns", "_device_free", "_taken", "numbers")

    def __init__(self, columns: Columns, numbers: Ints) -> None:
        self.numbers = numbers
        self._columns = columns
        self._taken: Ints | None = None
        """What hypothetical tasks take of each kind: a line for each kind."""
        self._device_free: Ints | None = None

    @classmethod
    def filled(cls, columns: Columns, row: int, wanted: RequestClass, tasks: int) -> Rows:
        """The row with 0, 1, … tasks - 1 more of the class on it."""
        rows = cls(columns, np.full(tasks, row, dtype=np.int64))
        rows._taken = wanted.line.reshape(-1, 1) * np.arange(tasks)
        if wanted.gpu is not None:
            rows._device_free = _devices_filled(columns, row, wanted, tasks)
        return rows

    def __len__(self) -> int:
        return len(self.numbers)

    def free(self, kind: str) -> Ints:
        """What is free of the kind, before the task is placed."""
        return self._free_of(np.int64(KIND_AT[kind]))

    def capacity(self, kind: str) -> Ints:
        return self._columns.capacity(kind)[self.numbers]

    def fullness(self, wanted: RequestClass) -> Ints:
        """0–100: how much of each kind asked for is in use with one task more. A line for each kind."""
        capacity = self._columns.capacity_of(wanted.kinds, self.numbers)
        used = capacity - self._free_of(wanted.kinds)
        used += wanted.need
        used *= 100
        used //= capacity
        return used

    def mean_fullness(self, wanted: RequestClass) -> Ints:
        """0–100: the average of `fullness` over the kinds asked for."""
        if not wanted.amounts:
            return np.zeros(len(self), dtype=np.int64)
        total: Ints = np.add.reduce(self.fullness(wanted), axis=0)
        return total // len(wanted.amounts)

    @property
    def device_free(self) -> Ints:
        """What is free of each GPU, out of 1000: a line for each row, filled up with zeros."""
        return self._columns.device_free(self.numbers) if self._device_free is None else self._device_free

    @property
    def device_sorts(self) -> Ints:
        """Of which sort each GPU is, for `accepted`; 0 where there is none."""
        return self._columns.device_sorts(self.numbers)

    def accepted(self, selector: GpuSelector) -> Bools:
        """For each sort of GPU, by its number, whether it is what the selector asks for."""
        return self._columns.accepted(selector)

    @property
    def workload(self) -> Workload:
        """What is asked for here in general."""
        return self._columns.workload

    def _free_of(self, kinds: Ints | np.int64) -> Ints:
        free = self._columns.free_of(kinds, self.numbers)  # type: ignore[arg-type]
        return free if self._taken is None else free - self._taken[kinds].reshape(free.shape)


def _devices_filled(columns: Columns, row: int, wanted: RequestClass, tasks: int) -> Ints:
    """What is free of each device of the row, line by line with one task more on it."""
    devices = columns.devices(row)
    each = wanted.gpu.part if wanted.gpu is not None and wanted.gpu.part else WHOLE
    lines = np.zeros((tasks, columns.device_free(np.array([row])).shape[1]), dtype=np.int64)
    for line in lines:
        line[: len(devices)] = [max(0, device.free) for device in devices]
        if line is lines[-1]:
            break
        picked = set(wanted.pick_devices(devices))
        devices = tuple(replace(d, free=d.free - each) if d.id in picked else d for d in devices)
    return lines
