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

    __slots__ = ("_columns", "_device_free", "_free", "numbers")

    def __init__(self, columns: Columns, numbers: Ints, free: Ints | None = None) -> None:
        self.numbers = numbers
        self._columns = columns
        self._free = columns.free_at(numbers) if free is None else free
        """A line for each kind."""
        self._device_free: Ints | None = None

    @classmethod
    def filled(cls, columns: Columns, row: int, wanted: RequestClass, tasks: int) -> Rows:
        """The row with 0, 1, … tasks - 1 more of the class on it."""
        free: Ints = columns.free_on(row).reshape(-1, 1) - wanted.need * np.arange(tasks)
        rows = cls(columns, np.full(tasks, row, dtype=np.int64), free)
        if wanted.gpu is not None:
            rows._device_free = _devices_filled(columns, row, wanted, tasks)
        return rows

    def __len__(self) -> int:
        return len(self.numbers)

    def free(self, kind: str) -> Ints:
        """What is free of the kind, before the task is placed."""
        line: Ints = self._free[KIND_AT[kind]]
        return line

    def capacity(self, kind: str) -> Ints:
        return self._columns.capacity(kind)[self.numbers]

    def free_of_all(self) -> Ints:
        """What is free of every kind: a line for each."""
        return self._free

    def fullness(self, wanted: RequestClass) -> Ints:
        """0–100: how much of each kind is in use with one task more. A line for each kind, of use for those asked."""
        capacity = self._columns.capacity_at(self.numbers)
        used = capacity - self._free
        used += wanted.need
        used *= 100
        used //= capacity
        return used

    def mean_fullness(self, wanted: RequestClass) -> Ints:
        """0–100: the average of `fullness` over the kinds asked for."""
        total: Ints = wanted.asked @ self.fullness(wanted)
        return total // max(1, len(wanted.amounts))

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
