"""Providers as columns: one row for each node and each composed logical host, one number a kind.

Rows are only added and rewritten, never moved, so that a row number stays good and the order of rows, which policies
break ties by, is the order in which providers came. `changes` tells request classes which rows to look at again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavalite.model.resources import KINDS, WHOLE, Device
from lavalite.model.specs import fits_model
from lavalite.placement.reasons import Reason

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MOST = 2**56
"""Amounts are cut to this, so that sums and hundredfolds of them stay within 64 bits."""

READY = ""
GONE = "gone"
"""Why a row takes nothing: READY, a Reason, or GONE for a provider that is no more."""


@dataclass(slots=True, frozen=True)
class DeviceRow:
    """One device of a provider: `free` is what is left of it, out of WHOLE."""

    id: str
    model: str
    memory_bytes: int
    free: int


class GpuSelector(NamedTuple):
    """What is asked of each device. `part` is 0 for whole devices, else the milli-GPUs wanted of one."""

    model: str
    memory_bytes: int
    part: int

    def accepts(self, device: DeviceRow) -> bool:
        """Whether it is such a device at all, free or not."""
        return _accepts(self.model, self.memory_bytes, device.model, device.memory_bytes)

    def units(self, device: DeviceRow) -> int:
        """How many askers the device can serve now; for whole devices 1 or 0."""
        if not self.accepts(device):
            return 0
        return max(0, device.free) // self.part if self.part else int(device.free == WHOLE)


class Columns:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.states: list[str] = []
        self.changes: list[int] = []
        self.generation = 0
        """Grows when `changes` was cut, or when what pools select changed: then look at every row again."""
        self._index: dict[str, int] = {}
        self._size = 64
        self._free: dict[str, Ints] = {kind: self._zeros() for kind in KINDS}
        self._capacity: dict[str, Ints] = {kind: self._zeros() for kind in KINDS}
        self._ready = np.zeros(self._size, dtype=np.bool_)
        self._is_host = np.zeros(self._size, dtype=np.bool_)
        self._devices: list[tuple[DeviceRow, ...]] = []
        self._gpus: dict[GpuSelector, Ints] = {}
        self._pools: dict[str, Bools] = {}

    def __len__(self) -> int:
        return len(self.names)

    def row(self, provider: str) -> int | None:
        return self._index.get(provider)

    def set_row(
        self,
        provider: str,
        capacity: Mapping[str, int],
        free: Mapping[str, int],
        devices: Sequence[DeviceRow] = (),
        *,
        state: str = READY,
        is_host: bool = False,
    ) -> int:
        """Write a provider's row anew, or add one. Amounts in each kind's unit; returns the row."""
        row = self._index.get(provider)
        if row is None:
            row = self._add(provider)
        for kind in KINDS:
            self._capacity[kind][row] = min(capacity.get(kind, 0), MOST)
            self._free[kind][row] = max(0, min(free.get(kind, 0), MOST))
        self.states[row] = state
        self._ready[row] = state == READY
        self._is_host[row] = is_host
        self._devices[row] = tuple(devices)
        for selector, column in self._gpus.items():
            column[row] = sum(map(selector.units, devices))
        self._note(row)
        return row

    def set_pools(self, pools: Mapping[str, Iterable[str]]) -> None:
        """Which providers each pool selects, all told. Classes look at every row again."""
        self._pools = {}
        for pool, members in pools.items():
            mask = np.zeros(self._size, dtype=np.bool_)
            mask[[self._index[name] for name in members if name in self._index]] = True
            self._pools[pool] = mask
        self._restart()

    # --- columns, cut to the rows that there are -----------------------------------------------------------------

    def free(self, kind: str) -> Ints:
        return self._free[kind][: len(self)]

    def capacity(self, kind: str) -> Ints:
        return self._capacity[kind][: len(self)]

    @property
    def ready(self) -> Bools:
        return self._ready[: len(self)]

    @property
    def is_host(self) -> Bools:
        return self._is_host[: len(self)]

    def pool(self, name: str) -> Bools:
        mask = self._pools.get(name)
        return mask[: len(self)] if mask is not None else np.zeros(len(self), dtype=np.bool_)

    def gpus(self, selector: GpuSelector) -> Ints:
        """How many devices (or, for parts, askers) of this sort each row has free."""
        if selector not in self._gpus:
            column = self._zeros()
            column[: len(self)] = [sum(map(selector.units, devices)) for devices in self._devices]
            self._gpus[selector] = column
        return self._gpus[selector][: len(self)]

    def devices(self, row: int) -> tuple[DeviceRow, ...]:
        return self._devices[row]

    # --- growing --------------------------------------------------------------------------------------------------

    def _zeros(self) -> Ints:
        return np.zeros(self._size, dtype=np.int64)

    def _add(self, provider: str) -> int:
        row = len(self.names)
        if row == self._size:
            self._grow()
        self._index[provider] = row
        self.names.append(provider)
        self.states.append(READY)
        self._devices.append(())
        return row

    def _grow(self) -> None:
        before, self._size = self._size, 2 * self._size
        zeros = np.zeros(before, dtype=np.int64)
        self._free = {kind: np.concatenate([old, zeros]) for kind, old in self._free.items()}
        self._capacity = {kind: np.concatenate([old, zeros]) for kind, old in self._capacity.items()}
        self._gpus = {selector: np.concatenate([old, zeros]) for selector, old in self._gpus.items()}
        grown = np.zeros(before, dtype=np.bool_)
        self._ready = np.concatenate([self._ready, grown])
        self._is_host = np.concatenate([self._is_host, grown])
        self._pools = {name: np.concatenate([mask, grown]) for name, mask in self._pools.items()}

    def _note(self, row: int) -> None:
        self.changes.append(row)
        if len(self.changes) > 4 * self._size:
            self._restart()

    def _restart(self) -> None:
        self.changes = []
        self.generation += 1


def whole_gpus(amount: int) -> bool:
    """Whether so many milli-GPUs can be given out: whole devices, or a part of a single one."""
    return amount < WHOLE or amount % WHOLE == 0


def state_reason(state: str) -> Reason | None:
    """The reason that a row's state stands for; None for READY and GONE."""
    return Reason(state) if state not in (READY, GONE) else None


@lru_cache(maxsize=4096)
def _accepts(model: str, memory_bytes: int, device_model: str, device_memory_bytes: int) -> bool:
    return fits_model(Device(id="", model=device_model, memory_bytes=device_memory_bytes), model, memory_bytes)
