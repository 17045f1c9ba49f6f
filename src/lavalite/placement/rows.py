"""What a policy sees: some rows, on each of which one task more of the class fits.

Either rows as they are, or (`Rows.filled`) one row as it will be with 0, 1, 2, … tasks of the class placed on it:
that is how many tasks at once stay on a row before another one becomes better.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lavalite.model.resources import WHOLE
from lavalite.placement.classes import MANY, RequestClass
from lavalite.placement.columns import KIND_AT, PLACES_AT, Bools, Columns, Floats, GpuSelector, Ints, Workload


class Rows:
    """All that is asked of it has one number for each row, in the order of `numbers`, the row numbers."""

    __slots__ = ("_columns", "_device_free", "_known_spare", "_rows", "_wanted")

    def __init__(self, columns: Columns, wanted: RequestClass, rows: Ints | None, spare: Ints | None = None) -> None:
        """None is all rows. `spare` is what a task leaves on them, where that is known already."""
        self._columns = columns
        self._wanted = wanted
        self._rows = rows
        self._known_spare = spare
        self._device_free: Ints | None = None

    @classmethod
    def filled(cls, columns: Columns, row: int, wanted: RequestClass, tasks: int) -> Rows:
        """The row with 0, 1, … tasks - 1 more of the class on it."""
        spare: Ints = columns.free_on(row)[:PLACES_AT].reshape(-1, 1) - wanted.need * np.arange(1, tasks + 1)
        rows = cls(columns, wanted, np.full(tasks, row, dtype=np.int64), spare)
        if wanted.gpu is not None:
            rows._device_free = _devices_filled(columns, row, wanted, tasks)
        return rows

    def __len__(self) -> int:
        return len(self._columns) if self._rows is None else len(self._rows)

    @property
    def numbers(self) -> Ints:
        return np.arange(len(self)) if self._rows is None else self._rows

    @property
    def spare(self) -> Ints:
        """What is free of every kind with the task placed: a line for each kind, in the order of model.resources."""
        if self._known_spare is None:
            self._known_spare = self._wanted.spare(self._columns, self._rows)
        return self._known_spare

    def free(self, kind: str) -> Ints:
        """What is free of the kind before the task is placed."""
        line: Ints = self.spare[KIND_AT[kind]] + self._wanted.amounts.get(kind, 0)
        return line

    def capacity(self, kind: str) -> Ints:
        line: Ints = self._columns.capacity_at(self._rows)[KIND_AT[kind]]
        return line

    def fullness(self) -> Ints:
        """0–100: how much of each kind is in use with the task placed. A line for each kind that is asked for."""
        lines = [at for at, _, _ in self._wanted.at]
        capacity = self._columns.capacity_at(self._rows)[lines]
        used: Ints = capacity - self.spare[lines]
        return used * 100 // np.maximum(capacity, 1)

    def sum_of_fullness(self) -> Ints | Floats:
        """The sum of `fullness` over the kinds that are asked for: integers, perhaps as doubles."""
        wanted = self._wanted
        if not self._columns.exact:
            total: Ints = np.add.reduce(self.fullness(), axis=0, dtype=np.int64)
            return total
        # What is left, rounded up, stands for what is used, rounded down: 100 - ⌈left⌉ = ⌊100 - left⌋.
        divisor = self._columns.divisor_at(self._rows)
        if self._known_spare is not None or wanted.host or len(self) < MANY:
            left: Floats = wanted.asked @ np.ceil(self.spare * 100 / divisor)
            return 100 * len(wanted.at) - left
        free = self._columns.hundredfold()
        if self._rows is not None:
            free = free.take(self._rows, axis=1)
        total_left: Floats | None = None
        for at, _, hundredfold in wanted.at:
            left = free[at] - float(hundredfold)
            np.divide(left, divisor[at], out=left)
            np.ceil(left, out=left)
            total_left = left if total_left is None else np.add(total_left, left, out=total_left)
        if total_left is None:
            return np.zeros(len(self))
        return np.subtract(100.0 * len(wanted.at), total_left, out=total_left)

    @property
    def device_free(self) -> Ints:
        """What is free of each GPU, out of 1000: a line for each row, filled up with zeros."""
        return self._columns.device_free(self._rows) if self._device_free is None else self._device_free

    @property
    def device_sorts(self) -> Ints:
        """Of which sort each GPU is, for `accepted`; 0 where there is none."""
        return self._columns.device_sorts(self._rows)

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
