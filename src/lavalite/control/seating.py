"""Seats for all tasks of a gang at once, also where they ask for different things (the parts of a job).

    a gang of equal tasks    control.gangs: rows that take so many each
    parts                    one part after the other, what was seated before is held beside it: until all are seated

Which part is first, and which row it takes, decides whether the last one finds room. So several orders are tried, the
hardest to place first, and several ways to choose a row. The plainest of them is among them: the largest part first,
and each task on the first row that has room. Rows are as `Rooms` says: now, once others have ended, or later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, permutations
from typing import NamedTuple

import numpy as np

from lavalite.control import affinity, gangs, reservations
from lavalite.control.demand import WaitingClass
from lavalite.control.gangs import Seats, Step
from lavalite.control.reservations import Left
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState
from lavalite.model.job import MAX_GANG_TASKS, Gang
from lavalite.model.resources import KINDS, WHOLE
from lavalite.placement.classes import PartClass, RequestClass
from lavalite.placement.columns import DeviceRow
from lavalite.placement.ranking import Leaning

FEW_PARTS = 3
"""Of so many parts every order is tried."""
FEW_WAYS = 4
"""So many are tried where it is only preferred to be."""


@dataclass(slots=True)
class Held:
    """What is held of a row for tasks that are seated there so far."""

    tasks: int = 0
    amounts: dict[str, int] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)

    def less(self, free: Mapping[str, int]) -> dict[str, int]:
        return {kind: amount - self.amounts.get(kind, 0) for kind, amount in free.items()}

    def less_devices(self, devices: Sequence[DeviceRow]) -> tuple[DeviceRow, ...]:
        if not self.devices:
            return tuple(devices)
        return tuple(replace(d, free=d.free - self.devices[d.id]) if d.id in self.devices else d for d in devices)

    def take(self, wanted: RequestClass, devices: Sequence[DeviceRow]) -> None:
        """One task more, on a row that has room for it; `devices` are the row's as they would be without these,
        and none where it does not matter which."""
        self.tasks += 1
        for kind, amount in wanted.needs.items():
            self.amounts[kind] = self.amounts.get(kind, 0) + amount
        if wanted.gpu is not None and devices:
            for device in wanted.pick_devices(self.less_devices(devices)):
                self.devices[device] = self.devices.get(device, 0) + (wanted.gpu.part or WHOLE)


NOTHING_HELD = Held()


class Rooms(ABC):
    """Rows as they are at some time, for who looks for seats. Nothing of the state changes by it."""

    @abstractmethod
    def rows(self, wanted: RequestClass) -> dict[int, int]:
        """How many tasks each row takes; rows that take none are left out."""

    @abstractmethod
    def beside(self, wanted: RequestClass, row: int, held: Held) -> int:
        """How many tasks the row takes, one that takes some, beside what is held there."""

    @abstractmethod
    def devices(self, row: int) -> tuple[DeviceRow, ...]:
        """The row's devices, of which tasks are given theirs."""


class RoomsNow(Rooms):
    """As it is now, beside what is kept for others."""

    def __init__(self, state: ClusterState, job: JobState, now: float) -> None:
        self._state, self._job, self._now = state, job, now

    def rows(self, wanted: RequestClass) -> dict[int, int]:
        return reservations.room(self._state, wanted, self._job, self._now)

    def beside(self, wanted: RequestClass, row: int, held: Held) -> int:
        free = {kind: int(self._state.columns.free(kind)[row]) for kind in wanted.needs}
        devices = held.less_devices(self.devices(row)) if wanted.gpu is not None else ()
        left = Left(held.less(free), devices)
        return reservations.room_beside(self._state, wanted, self._job, row, held.amounts, left, self._now)

    def devices(self, row: int) -> tuple[DeviceRow, ...]:
        return self._state.columns.devices(row)


def find(state: ClusterState, waiting: WaitingClass, job: JobState, now: float) -> Seats:
    """Room for all its tasks at once, in the tightest place that has it; else where most of them fit."""
    return seats_in(state, waiting, job, RoomsNow(state, job, now))


def seats_in(state: ClusterState, waiting: WaitingClass, job: JobState, rooms: Rooms) -> Seats:
    """The same, of such rows."""
    if not waiting.parts:
        found = gangs.seats_in(state, job, rooms.rows(waiting.wanted))
        found.steps = [Step(0, row, tasks) for row, tasks in found.seats.items()]
        return found
    gang, leaning = job.spec.gang or Gang(), affinity.leaning(state, job) or Leaning()
    each = [
        {row: tasks for row, tasks in rooms.rows(part.wanted).items() if leaning.open is None or leaning.open[row]}
        for part in waiting.parts
    ]
    together = {row: sum(room.get(row, 0) for room in each) for row in sorted(set().union(*each))}
    met = {row: int(leaning.met[row]) for row in together} if leaning.met is not None else {}
    table = _Table(state, waiting.parts, gang, rooms, each, together, met)
    found_in = [
        _nearby(state, table, place, rows) for place, rows in gangs.places(state, gang.within, together).items()
    ]
    good = [seats for seats in found_in if seats.seats]
    if good:
        return min(good, key=lambda seats: (-gangs.met_by(seats, met), seats.fit, seats.within))
    return max(found_in, key=lambda seats: seats.fit, default=Seats(0))


def by_part(waiting: WaitingClass, steps: Sequence[Step], names: Sequence[str]) -> tuple[dict[str, int], ...]:
    """Of each part, how many tasks are on each provider."""
    found: tuple[dict[str, int], ...] = tuple({} for _ in waiting.each)
    for part, row, tasks in steps:
        found[part][names[row]] = found[part].get(names[row], 0) + tasks
    return found


def _nearby(state: ClusterState, table: _Table, place: str, rows: Mapping[int, int]) -> Seats:
    """Seats in as few values of the preferred label as can be; anywhere in the place if that is not enough."""
    inner = gangs.places(state, table.gang.prefer_within, dict(rows))
    if len(inner) > 1:
        alone = [seats for some in inner.values() if (seats := table.seats(place, some, FEW_WAYS)).seats]
        if alone:
            return min(alone, key=lambda seats: (-gangs.met_by(seats, table.met), seats.fit))
        joined: dict[int, int] = {}
        for some in sorted(inner.values(), key=lambda some: -sum(some.values())):
            joined |= some
            if (seats := table.seats(place, joined, FEW_WAYS)).seats:
                return seats
    return table.seats(place, rows)


def _by_size(state: ClusterState, parts: Sequence[PartClass]) -> list[tuple[int, ...]]:
    """Orders of the parts, the largest first: by the shares of all there is that a task takes, and by each kind."""
    numbers, lines = range(len(parts)), [part.wanted.need[:, 0].tolist() for part in parts]
    there = [max(1, int(np.minimum(state.columns.capacity(kind), 2**40).sum())) for kind in KINDS]
    shares = [[amount / has for amount, has in zip(line, there, strict=True)] for line in lines]
    found = [sorted(numbers, key=lambda n: -sum(shares[n]))]
    for at in range(len(KINDS)):
        ranks = [(-share[at], -sum(share)) for share in shares]
        found.append(sorted(numbers, key=ranks.__getitem__))
    every = list(permutations(numbers)) if len(parts) <= FEW_PARTS else []
    return [*map(tuple, found), *every]


@dataclass(slots=True, frozen=True)
class _Table:
    """The parts of one job and the rows on which they may be. `each`: how many tasks of a part a row takes alone."""

    state: ClusterState
    parts: Sequence[PartClass]
    gang: Gang
    rooms: Rooms
    each: Sequence[Mapping[int, int]]
    together: Mapping[int, int]
    met: Mapping[int, int]
    orders: list[tuple[int, ...]] = field(default_factory=list)
    """In which to try the parts, wherever it is; worked out when they are needed first."""

    def seats(self, place: str, rows: Mapping[int, int], ways: int | None = None) -> Seats:
        """Seats on these rows for all tasks, by the first way, or of the first so many ways, that finds some."""
        each = [{row: room[row] for row in rows if row in room} for room in self.each]
        in_vain = any(sum(room.values()) < part.tasks for room, part in zip(each, self.parts, strict=True))
        fit = 0
        for way in islice(self._ways(each), ways):
            seated = _Seating(self, each, *way, to_the_end=in_vain)
            if seated.left == 0:
                taken: dict[int, int] = {}
                for step in seated.steps:
                    taken[step.row] = taken.get(step.row, 0) + step.tasks
                return Seats(sum(rows.values()), place, taken, seated.steps)
            fit = max(fit, seated.placed)
            if in_vain:
                break
        return Seats(fit, place)

    def _ways(self, each: Sequence[Mapping[int, int]]) -> Iterator[tuple[tuple[int, ...], str, Mapping[int, int]]]:
        """The orders of the parts, with how a row is chosen and what is preferred: the hardest to place first."""
        numbers = range(len(self.parts))
        room = [sum(each[n].values()) / self.parts[n].tasks for n in numbers]
        hardest = tuple(sorted(numbers, key=lambda n: (len(each[n]), room[n])))
        yield hardest, "tightest", self.met
        if not self.orders:
            self.orders.extend(_by_size(self.state, self.parts))
        scarcest = tuple(sorted(numbers, key=lambda n: room[n]))
        orders = list(dict.fromkeys([hardest, scarcest, *self.orders]))
        for met in [self.met, {}] if self.met else [{}]:
            for choice in ("tightest", "first", "fullest", "emptiest", "roomiest"):
                for order in orders:
                    if (order, choice, met) != (hardest, "tightest", self.met):
                        yield order, choice, met


class _Place(NamedTuple):
    """A row in the order in which rows are taken."""

    unmet: int
    rank: int
    row: int
    room: int


class _Seating:
    """One try: parts in this order, each on rows that are chosen in this way, until one finds no room; or
    `to_the_end`, to know how many could start."""

    def __init__(
        self,
        table: _Table,
        each: Sequence[Mapping[int, int]],
        order: Sequence[int],
        choice: str,
        met: Mapping[int, int],
        *,
        to_the_end: bool,
    ) -> None:
        self._table, self._choice, self._met = table, choice, met
        self.left = sum(part.tasks for part in table.parts)
        self.placed = 0
        self.steps: list[Step] = []
        self._held: dict[int, Held] = {}
        for number in order:
            if not self._seat(number, each[number]) and not to_the_end:
                break

    def _seat(self, number: int, room: Mapping[int, int]) -> bool:
        """Whether all tasks of the part have found a seat."""
        table, wanted, left = self._table, self._table.parts[number].wanted, self._table.parts[number].tasks
        gang = table.gang
        used = {row: table.rooms.beside(wanted, row, held) for row, held in self._held.items() if row in room}
        fresh = {row: n for row, n in room.items() if row not in self._held}
        if self._choice in ("tightest", "roomiest"):
            queues = [self._queue(used), self._queue(fresh)]
        else:
            queues = [self._queue(used | fresh), deque[_Place]()]
        while left and any(queues):
            row, most = self._next(queues, left)
            held = self._held.get(row)
            most = min(most, left, (gang.tasks_per_node or MAX_GANG_TASKS) - (held.tasks if held else 0))
            # Each row that is still to be one of the least number of nodes takes one task at least.
            most = min(most, self.left - max(0, gang.nodes_least - len(self._held) - (held is None)))
            if most <= 0 or (held is None and len(self._held) == (gang.nodes_most or MAX_GANG_TASKS)):
                continue
            held = self._held.setdefault(row, Held())
            devices = table.rooms.devices(row) if wanted.gpu is not None else ()
            for _ in range(most):
                held.take(wanted, devices)
            self.steps.append(Step(number, row, most))
            left -= most
            self.left -= most
            self.placed += most
        return not left

    def _queue(self, room: Mapping[int, int]) -> deque[_Place]:
        """The rows, those that come first in front: what is preferred is before everything else."""
        rank: Callable[[int], int] = {
            "tightest": lambda row: -room[row],
            "first": lambda row: row,
            "fullest": self._left_on,
            "emptiest": lambda row: -self._left_on(row),
            "roomiest": lambda row: -self._table.together[row],
        }[self._choice]
        return deque(sorted(_Place(-self._met.get(row, 0), rank(row), row, n) for row, n in room.items()))

    def _left_on(self, row: int) -> int:
        """For how many tasks of all parts, each part alone, there is room beside what is held."""
        held = self._held.get(row)
        if held is None:
            return self._table.together[row]
        rooms = zip(self._table.parts, self._table.each, strict=True)
        return sum(self._table.rooms.beside(part.wanted, row, held) for part, room in rooms if row in room)

    def _next(self, queues: Sequence[deque[_Place]], left: int) -> tuple[int, int]:
        """The row to go on with: one in use, unless there are to be more; the last one as tight as can be."""
        spreads = len(self._held) < self._table.gang.nodes_least
        first, second = (queues[1], queues[0]) if spreads else (queues[0], queues[1])
        queue = second if not first or (second and second[0].unmet < first[0].unmet) else first
        at = 0
        if self._choice == "tightest":
            enough = (n for n, place in enumerate(queue) if place.room < left or place.unmet > queue[0].unmet)
            at = max(0, next(enough, len(queue)) - 1)
        place = queue[at]
        del queue[at]
        return place.row, place.room
