"""Providers as columns: one row for each node and each composed logical host, one number a kind.

Rows are only added and rewritten, never moved, so that a row number stays good and the order of rows, which policies
break ties by, is the order in which providers came. Two logs of row numbers tell who keeps something up which rows
to look at again: `changed_since` holds every change, `freed_since` only those that could let something more fit.

Special kinds, which few ask for and few rows have, have columns beside the others: policies go by the five alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import gt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavalite.model.resources import ALL_PLACES, KINDS, PLACES, WHOLE, Device
from lavalite.model.specs import fits_model
from lavalite.placement.closeness import LEVELS, NOWHERE, Near, together
from lavalite.placement.history import NOTHING_SPECIAL, History, RowThen, SpecialThen
from lavalite.placement.reasons import Reason

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Line = tuple[list[int], list[int]]
"""One row as plain numbers, quicker to reckon with than arrays of one element: of each kind what is free, as in
`Columns.room_at`, and what to divide by, as in `Columns.divisor_at`.
"""

MOST = 2**56
"""Amounts are cut to this, so that sums and hundredfolds of them stay within 64 bits."""
CLOSED = 2**60
EXACT = 2**46
"""A hundredfold of this is exact as a double, and no quotient of two such is rounded up or down to an integer: that
would take a divisor times a quotient of more than 2**53. Processors divide doubles ten times as fast as integers.
"""
KIND_AT = {kind: at for at, kind in enumerate((*KINDS, PLACES))}
"""Where a kind stands in what has a line for each. Places come last, and are left out of what policies see."""
LINES = len(KIND_AT)
PLACES_AT = KIND_AT[PLACES]
FEW = 64
"""Of fewer changes it is quicker to look at a row twice than to find out which are the same."""
LOG_ROWS = 2**16
"""So many changes are remembered; then everybody looks at every row again."""
LINES_KEPT = 2**10
"""So many rows are kept as plain numbers too."""

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
    near: Near = NOWHERE
    mig: str = ""
    """The profile of a MIG instance; empty for a whole GPU."""

    @property
    def sort(self) -> tuple[str, int, str]:
        return self.model, self.memory_bytes, self.mig


class GpuSelector(NamedTuple):
    """What is asked of each device. `part` is 0 for whole devices, else the milli-GPUs wanted of one.

    With `together`, a level of placement.closeness, each `each` of them must be of one island of that level.
    """

    model: str
    memory_bytes: int
    part: int
    together: str = ""
    each: int = 0
    mig: str = ""
    """Instances of this MIG profile are asked for; else whole GPUs, or parts of such."""

    def accepts(self, device: DeviceRow) -> bool:
        """Whether it is such a device at all, free or not."""
        return self.mig == device.mig and _accepts(self.model, self.memory_bytes, device.model, device.memory_bytes)

    def units(self, device: DeviceRow) -> int:
        """How many askers the device can serve now; for whole devices 1 or 0."""
        if not self.accepts(device):
            return 0
        return max(0, device.free) // self.part if self.part else int(device.free == WHOLE)

    def units_in(self, devices: Iterable[DeviceRow]) -> int:
        """How many askers these can serve now; of devices that must be together, only those that can be."""
        if not self.together:
            return sum(map(self.units, devices))
        usable = [device.near for device in devices if self.units(device)]
        return self.each * together(usable, self.together, self.each)


class Columns:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.states: list[str] = []
        self.generation = 0
        """Grows when the logs were cut, or when what pools select changed: then look at every row again."""
        self.workload: Workload = Workload()
        """What is asked for here in general, for policies that look ahead."""
        self._index: dict[str, int] = {}
        self._size = 64
        self._all_room = np.full((LINES, self._size), -CLOSED, dtype=np.int64)
        """What is free; where nothing may be placed as on a node, or one has it for itself, less CLOSED: so that one
        look says all of it."""
        self._room = self._all_room[:PLACES_AT]
        self._closed = np.full(self._size, CLOSED, dtype=np.int64)
        self._all_capacity = np.zeros((LINES, self._size), dtype=np.int64)
        self._capacity = self._all_capacity[:PLACES_AT]
        self._divisor = np.ones((len(KINDS), self._size), dtype=np.float64)
        self._hundredfold: Floats = np.zeros((len(KINDS), 0), dtype=np.float64)
        self._hundredfold_as_of = 0
        self.lines: dict[int, Line] = {}
        """The rows that `line` was asked for, kept up."""
        self.exact = True
        """Whether no amount is above EXACT."""
        self._special: list[SpecialThen] = []
        """By row, what is free of each special kind that it has, and what it has of it."""
        self._special_columns: dict[str, Ints] = {}
        """The same by kind, two lines each; of all kinds that any row ever had."""
        self._ready = np.zeros(self._size, dtype=np.bool_)
        self._is_host = np.zeros(self._size, dtype=np.bool_)
        self._devices: list[tuple[DeviceRow, ...]] = []
        self._device_free = np.zeros((self._size, 0), dtype=np.int64)
        self._device_sort = np.zeros((self._size, 0), dtype=np.int64)
        self._device_island = np.zeros((len(LEVELS), self._size, 0), dtype=np.int64)
        """By level, the number of the island within its row that a device is on; 0 stands for none."""
        self._sorts: dict[tuple[str, int, str], int] = {("", -1, ""): 0}
        """(model, memory, MIG profile) → number; 0 stands for no device."""
        self._accepted: dict[GpuSelector, Bools] = {}
        self._pools: dict[str, Bools] = {}
        self._places: dict[str, list[tuple[int, int]]] = {}
        self._last_change = np.zeros(self._size, dtype=np.int64)
        """Where a row is in the log of changes for the last time."""
        self._changed = np.zeros(LOG_ROWS, dtype=np.int64)
        self.mark = 0
        """How many changes there were in this generation."""
        self._freed = np.zeros(LOG_ROWS, dtype=np.int64)
        self.freed_mark = 0
        self.history = History()
        """What rows were before."""

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
        """Write a provider's row anew, or add one. Amounts in each kind's unit; returns the row.

        Where nothing is said of places, all are free.
        """
        row = self._index.get(provider)
        if row is None:
            row = self._add(provider)
        then = self.row_now(row)
        self.history.note(row, then)
        freed = not self._ready[row] or then.is_host != is_host
        places = free.get(PLACES, ALL_PLACES)
        left = [*(max(0, min(free.get(kind, 0), MOST)) for kind in KINDS), places]
        freed = freed or any(map(gt, left, then.free.tolist()))
        has = [*(min(capacity.get(kind, 0), MOST) for kind in KINDS), ALL_PLACES]
        if has != then.capacity.tolist():
            self._all_capacity[:, row] = has
            self._divisor[:, row] = [max(1, amount) for amount in has[:PLACES_AT]]
            self.exact = self.exact and max(has[:PLACES_AT]) <= EXACT
        freed = self._set_devices(row, tuple(devices)) or freed
        freed = self._set_special(row, capacity, free) or freed
        self.states[row] = state
        self._ready[row] = state == READY
        self._is_host[row] = is_host
        self._closed[row] = closed = 0 if state == READY and not is_host and places > 0 else CLOSED
        self._all_room[:, row] = [amount - closed for amount in left]
        self.lines.pop(row, None)
        self._note(row, freed=freed and state == READY)
        return row

    def take(self, row: int, amounts: Ints, devices: Sequence[str] = (), of_each: int = WHOLE) -> None:
        """Something was placed on the row: so much less of each kind (a number for each) and of these devices."""
        room = self._all_room[:, row]
        np.subtract(room, amounts, out=room)
        if amounts.item(PLACES_AT) == ALL_PLACES and not self._closed[row]:
            self._closed[row] = CLOSED
            np.subtract(room, CLOSED, out=room)
        line = self.lines.get(row)
        if line is not None:
            line[0][:] = room[:PLACES_AT].tolist()
        if devices:
            left = list(self._devices[row])
            for at, device in enumerate(left):
                if device.id in devices:
                    left[at] = device = replace(device, free=max(0, device.free - of_each))
                    self._device_free[row, at] = device.free
            self._devices[row] = tuple(left)
        self._note(row, freed=False)

    def set_pools(self, pools: Mapping[str, Iterable[str]]) -> None:
        """Which providers each pool selects, all told. Everybody looks at every row again."""
        self._pools = {}
        for pool, members in pools.items():
            self.add_pool(pool, members)
        self._restart()

    def set_places(self, host: str, places: Mapping[str, str]) -> None:
        """The host has a row for tasks beside its GPUs on each of these nodes; of those of which there is none yet
        nothing is known."""
        rows = ((self._index.get(place), self._index.get(node)) for node, place in places.items())
        self._places[host] = [(place, node) for place, node in rows if place is not None and node is not None]

    def places_of(self, host: str) -> list[tuple[int, int]]:
        """The rows of the host's places, each with that of its node. Some may offer nothing any more."""
        return self._places.get(host, [])

    def add_pool(self, pool: str, members: Iterable[str]) -> None:
        """Another one, that nobody has asked about yet."""
        mask = np.zeros(self._size, dtype=np.bool_)
        mask[[self._index[name] for name in members if name in self._index]] = True
        self._pools[pool] = mask

    # --- what has changed ---------------------------------------------------------------------------------------

    def changed_since(self, mark: int) -> Ints:
        """Rows that changed since then, in this generation; one may be in it more than once. Not to be kept."""
        rows = self._changed[mark : self.mark]
        if len(rows) < FEW:
            return rows
        last: Ints = rows[self._last_change[rows] == np.arange(mark, self.mark)]
        return last

    def freed_since(self, mark: int) -> Ints:
        """Rows of which anything was freed, or that came, since then."""
        return self._freed[mark : self.freed_mark]

    # --- columns, cut to the rows that there are, or to those asked for -------------------------------------------

    def free(self, kind: str) -> Ints:
        if kind not in KIND_AT:
            return self._special_line(kind, 0)
        free: Ints = self._all_room[KIND_AT[kind], : len(self)] + self._closed[: len(self)]
        return free

    def capacity(self, kind: str) -> Ints:
        if kind not in KIND_AT:
            return self._special_line(kind, 1)
        return self._all_capacity[KIND_AT[kind], : len(self)]

    def room_at(self, rows: Ints | None) -> Ints:
        """A line for each kind, a column for each of the rows: what is free, and below 0 where no node takes work.

        None is all rows. Not to be changed.
        """
        return self._room[:, : len(self)] if rows is None else self._room.take(rows, axis=1)

    def free_at(self, rows: Ints | None) -> Ints:
        """The same of what is free, whether the row takes work or not."""
        closed = self._closed[: len(self)] if rows is None else self._closed[rows]
        free: Ints = self.room_at(rows) + closed
        return free

    def divisor_at(self, rows: Ints | None) -> Floats:
        """The same of capacity; 1 where there is nothing of a kind. Only to divide by, and only while `exact`."""
        return self._divisor[:, : len(self)] if rows is None else self._divisor.take(rows, axis=1)

    def hundredfold(self) -> Floats:
        """A hundred times `room_at`, of all rows, as doubles. Only while `exact`.

        Kept up when it is asked for, since few ask. Not to be changed.
        """
        if self._hundredfold.shape[1] < len(self):
            self._hundredfold = np.multiply(self._room, 100.0, dtype=np.float64)
        else:
            for row in set(self.changed_since(self._hundredfold_as_of).tolist()):
                np.multiply(self._room[:, row], 100.0, out=self._hundredfold[:, row])
        self._hundredfold_as_of = self.mark
        return self._hundredfold[:, : len(self)]

    def line(self, row: int) -> Line:
        """One row as plain numbers, and from then on among `lines`. Not to be changed, nor kept."""
        line = self.lines.get(row)
        if line is None:
            if len(self.lines) >= LINES_KEPT:
                self.lines.clear()
            divisor = [has or 1 for has in self._capacity[:, row].tolist()]
            line = self.lines[row] = self._room[:, row].tolist(), divisor
        return line

    def capacity_at(self, rows: Ints | None) -> Ints:
        """The same of capacity."""
        return self._capacity[:, : len(self)] if rows is None else self._capacity.take(rows, axis=1)

    def free_on(self, row: int) -> Ints:
        """All kinds of one row, and its places."""
        free: Ints = self._all_room[:, row] + self._closed[row]
        return free

    def row_now(self, row: int) -> RowThen:
        """All of one row. Not to be kept while rows change."""
        return RowThen(
            self.free_on(row),
            self._all_capacity[:, row],
            self._devices[row],
            self.states[row],
            bool(self._is_host[row]),
            self._special[row],
        )

    def special_free(self, row: int, kind: str) -> int:
        """What is free of a special kind on one row."""
        return self._special[row].get(kind, (0, 0))[0]

    @property
    def pool_masks(self) -> dict[str, Bools]:
        """By pool. Not to be changed; a new one takes its place when pools, or what they select, have changed."""
        return self._pools

    @property
    def ready(self) -> Bools:
        return self._ready[: len(self)]

    @property
    def is_host(self) -> Bools:
        return self._is_host[: len(self)]

    def pool(self, name: str) -> Bools:
        mask = self._pools.get(name)
        return mask[: len(self)] if mask is not None else np.zeros(len(self), dtype=np.bool_)

    # --- devices --------------------------------------------------------------------------------------------------

    def devices(self, row: int) -> tuple[DeviceRow, ...]:
        return self._devices[row]

    def device_free(self, rows: Ints | None) -> Ints:
        """What is free of each device: a line for each row, filled up with zeros."""
        return self._device_free[: len(self)] if rows is None else self._device_free[rows]

    def device_sorts(self, rows: Ints | None) -> Ints:
        """Of which sort each device is, as a number; 0 where there is none."""
        return self._device_sort[: len(self)] if rows is None else self._device_sort[rows]

    def accepted(self, selector: GpuSelector) -> Bools:
        """For each sort of device, by its number, whether it is what is asked for."""
        known = self._accepted.get(selector)
        if known is None or len(known) < len(self._sorts):
            asked = (selector.model, selector.memory_bytes)
            known = np.array(
                [
                    memory >= 0 and mig == selector.mig and _accepts(*asked, model, memory)
                    for model, memory, mig in self._sorts
                ]
            )
            if len(self._accepted) >= 4096:
                self._accepted.clear()
            self._accepted[selector] = known
        return known

    def gpus(self, selector: GpuSelector, rows: Ints | None = None) -> Ints:
        """How many devices (or, for parts, askers) of this sort each row has free."""
        some = slice(len(self)) if rows is None else rows
        free, accepted = self._device_free[some], self.accepted(selector)[self._device_sort[some]]
        if not selector.together:
            return units_of(selector, free, accepted)
        islands = self._device_island[LEVELS.index(selector.together)][some]
        units = np.zeros(len(free), dtype=np.int64)
        for island in range(1, int(islands.max(initial=0)) + 1):
            here = units_of(selector, free, accepted & (islands == island))
            units += here - here % selector.each
        return units

    def _set_devices(self, row: int, devices: tuple[DeviceRow, ...]) -> bool:
        """Whether that could let something fit that did not before."""
        before = self._devices[row]
        if devices == before:
            return False
        if len(devices) > self._device_free.shape[1]:
            wider = ((0, 0), (0, len(devices) - self._device_free.shape[1]))
            self._device_free = np.pad(self._device_free, wider)
            self._device_sort = np.pad(self._device_sort, wider)
            self._device_island = np.pad(self._device_island, ((0, 0), *wider))
        if len(devices) != len(before) or any(
            d.near is not old.near and d.near != old.near for d, old in zip(devices, before, strict=True)
        ):
            self._set_islands(row, devices)
        self._devices[row] = devices
        self._device_free[row] = 0
        self._device_sort[row] = 0
        for at, device in enumerate(devices):
            self._device_free[row, at] = max(0, device.free)
            self._device_sort[row, at] = self._sorts.setdefault(device.sort, len(self._sorts))
        same = len(before) == len(devices) and all(
            (old.id, old.near, *old.sort) == (new.id, new.near, *new.sort) and new.free <= old.free
            for old, new in zip(before, devices, strict=True)
        )
        return not same

    def _set_islands(self, row: int, devices: tuple[DeviceRow, ...]) -> None:
        self._device_island[:, row] = 0
        for at in range(len(LEVELS)):
            numbers: dict[str, int] = {"": 0}
            for place, device in enumerate(devices):
                island = device.near[at]
                self._device_island[at, row, place] = numbers.setdefault(island, len(numbers))

    # --- special kinds --------------------------------------------------------------------------------------------

    def _special_line(self, kind: str, at: int) -> Ints:
        """What is free (0), or capacity (1), cut to the rows that there are."""
        lines = self._special_columns.get(kind)
        found: Ints = np.zeros(len(self), dtype=np.int64) if lines is None else lines[at, : len(self)]
        return found

    def _set_special(self, row: int, capacity: Mapping[str, int], free: Mapping[str, int]) -> bool:
        """Whether that could let something fit that did not before."""
        before = self._special[row]
        if not before and capacity.keys() <= KIND_AT.keys():
            return False
        now = {
            kind: (max(0, min(free.get(kind, 0), MOST)), min(amount, MOST))
            for kind, amount in capacity.items()
            if kind not in KIND_AT
        }
        self._special[row] = now or NOTHING_SPECIAL
        for kind in before.keys() | now.keys():
            if kind not in self._special_columns:
                self._special_columns[kind] = np.zeros((2, self._size), dtype=np.int64)
            self._special_columns[kind][:, row] = now.get(kind, (0, 0))
        return any(left > before.get(kind, (0, 0))[0] for kind, (left, _) in now.items())

    # --- growing --------------------------------------------------------------------------------------------------

    def _add(self, provider: str) -> int:
        row = len(self.names)
        if row == self._size:
            self._grow()
        self._index[provider] = row
        self.names.append(provider)
        self.states.append(READY)
        self._devices.append(())
        self._special.append(NOTHING_SPECIAL)
        return row

    def _grow(self) -> None:
        more, self._size = self._size, 2 * self._size
        self._all_room = np.pad(self._all_room, ((0, 0), (0, more)), constant_values=-CLOSED)
        self._room = self._all_room[:PLACES_AT]
        self._closed = np.pad(self._closed, (0, more), constant_values=CLOSED)
        self._all_capacity = np.pad(self._all_capacity, ((0, 0), (0, more)))
        self._capacity = self._all_capacity[:PLACES_AT]
        self._divisor = np.pad(self._divisor, ((0, 0), (0, more)), constant_values=1)
        self._ready = np.pad(self._ready, (0, more))
        self._last_change = np.pad(self._last_change, (0, more))
        self._is_host = np.pad(self._is_host, (0, more))
        self._device_free = np.pad(self._device_free, ((0, more), (0, 0)))
        self._device_sort = np.pad(self._device_sort, ((0, more), (0, 0)))
        self._device_island = np.pad(self._device_island, ((0, 0), (0, more), (0, 0)))
        self._special_columns = {k: np.pad(lines, ((0, 0), (0, more))) for k, lines in self._special_columns.items()}
        self._pools = {name: np.pad(mask, (0, more)) for name, mask in self._pools.items()}

    def _note(self, row: int, *, freed: bool) -> None:
        self._last_change[row] = self.mark
        self._changed[self.mark] = row
        self.mark += 1
        if freed:
            self._freed[self.freed_mark] = row
            self.freed_mark += 1
        if self.mark == LOG_ROWS:  # of which those that were freed are some
            self._restart()

    def _restart(self) -> None:
        self.mark = self.freed_mark = self._hundredfold_as_of = 0
        self._hundredfold = np.zeros((len(KINDS), 0), dtype=np.float64)
        self.generation += 1


class WorkloadPart(NamedTuple):
    """A sort of task: the amount of each kind, what it asks of GPUs, how many whole ones, and how often it comes."""

    amounts: tuple[int, ...]
    gpu: GpuSelector | None
    whole_gpus: int
    weight: int


@dataclass(slots=True, frozen=True)
class Workload:
    """What is asked for in general. `version` grows with each change."""

    parts: tuple[WorkloadPart, ...] = ()
    version: int = 0


def units_of(selector: GpuSelector, free: Ints, accepted: Bools) -> Ints:
    """How many askers each row can serve: lines of what is free of each device, and which devices will do."""
    units = free // selector.part if selector.part else free == WHOLE
    counted: Ints = np.add.reduce(units * accepted, axis=1, dtype=np.int64)
    return counted


def whole_gpus(amount: int) -> bool:
    """Whether so many milli-GPUs can be given out: whole devices, or a part of a single one."""
    return amount < WHOLE or amount % WHOLE == 0


def amounts_line(amounts: Mapping[str, int]) -> Ints:
    """A number for each kind, and for places; 0 where nothing of it is asked for."""
    line = np.zeros(LINES, dtype=np.int64)
    for kind, amount in amounts.items():
        if kind in KIND_AT:
            line[KIND_AT[kind]] = min(amount, MOST)
    return line


def state_reason(state: str) -> Reason | None:
    """The reason that a row's state stands for; None for READY and GONE."""
    return Reason(state) if state not in (READY, GONE) else None


@lru_cache(maxsize=4096)
def _accepts(model: str, memory_bytes: int, device_model: str, device_memory_bytes: int) -> bool:
    return fits_model(Device(id="", model=device_model, memory_bytes=device_memory_bytes), model, memory_bytes)
