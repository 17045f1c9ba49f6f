"""Whose turn it is: queue priority, fairshare in the queue, job priority, submission.

    queue ──► shapes: jobs that ask for the same ──► groups, by use of their share ──► users, likewise ──► jobs

A lane (WaitingClass) holds what waits of one shape; of one group and user only, where queue or pools count those
apart. Lanes are kept in heaps that go by the least key each was known to have. Keys grow while their users hold more,
and that is found out when a lane comes to the top; where one may have become less, it is put in anew. So a pass looks
at those whose turn it is, and at nobody else, however many wait. A shape that does not fit leaves it with all lanes.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from lavalite.control.dormant import Dormant
from lavalite.control.fairshare import FairQueue
from lavalite.control.lazy_heap import Key, LazyHeap
from lavalite.placement.classes import RequestClass

if TYPE_CHECKING:
    from lavalite.control.demand import WaitingClass

NOBODY = (math.inf, 0)
"""Behind all jobs: where a lane stands of which all are planned, until it is set aside."""


class Shape:
    """Lanes that ask for the same in one queue, by group and user."""

    def __init__(self, queue: str, policy: str, wanted: RequestClass, fair: FairQueue | None) -> None:
        self.queue, self.policy = queue, policy
        self.wanted = wanted
        self.fair = fair
        self._lanes: dict[str, LazyHeap[WaitingClass]] = {}
        self._aside: dict[WaitingClass, None] = {}
        """Lanes that are not seen again in this pass."""
        self._groups: LazyHeap[str] = LazyHeap(self._group_key)
        self.fault = ""
        """What is wrong with its policy, as a sentence; and the columns' generation and mark as of which it is."""
        self.fault_as_of: tuple[int, int] = (-1, -1)
        self.tried: tuple[float, int, int] = (-math.inf, -1, 0)
        """When, as of which version of the rows and for which job a start was looked for last without any found."""

    def lower(self, lane: WaitingClass) -> None:
        heap = self._lanes.get(lane.group)
        if heap is None:
            heap = self._lanes[lane.group] = LazyHeap(self._lane_key)
        heap.lower(lane)
        self._groups.lower(lane.group)

    def set_aside(self, lane: WaitingClass) -> None:
        """Leave it out until `bring_back`."""
        self._leave_out(lane)
        self._aside[lane] = None

    def bring_back(self) -> None:
        """All that was set aside waits again."""
        aside, self._aside = self._aside, {}
        for lane in aside:
            self.lower(lane)

    def discard(self, lane: WaitingClass) -> None:
        """Nothing waits in it any more."""
        self._aside.pop(lane, None)
        self._leave_out(lane)

    @property
    def empty(self) -> bool:
        """Whether nobody waits in it, not even aside."""
        return not self._lanes and not self._aside

    def _leave_out(self, lane: WaitingClass) -> None:
        heap = self._lanes.get(lane.group)
        if heap is not None:
            heap.discard(lane)
            if not heap:
                del self._lanes[lane.group]
                self._groups.discard(lane.group)

    def lower_group(self, group: str) -> None:
        if group in self._lanes:
            self._groups.lower(group)

    def lower_all(self) -> None:
        for heap in self._lanes.values():
            for lane in list(heap):
                heap.lower(lane)
        for group in list(self._groups):
            self._groups.lower(group)

    def best(self) -> WaitingClass | None:
        """The lane whose turn it is."""
        group = self._groups.best()
        return self._lanes[group].best() if group is not None else None

    def key(self) -> Key:
        """Where its first lane stands among those of the queue, its first job last. There must be one."""
        least = self._groups.least()
        assert least is not None, "a shape that nobody waits for is left out before"
        return least[0]

    def looked_at(self) -> int:
        return self._groups.looked_at + sum(heap.looked_at for heap in self._lanes.values())

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def _group_key(self, group: str) -> Key:
        least = self._lanes[group].least()
        assert least is not None, "a group of which nobody waits is left out before"
        return (self.fair.standing(group) if self.fair and group else 0, *least[0])

    def _lane_key(self, lane: WaitingClass) -> Key:
        standing = self.fair.standing(lane.group, lane.user) if self.fair and lane.user else 0
        return (standing, *(lane.first or NOBODY))


class Order:
    """All lanes, by queue and shape."""

    def __init__(self) -> None:
        self._shapes: dict[str, dict[Key, Shape]] = {}
        self._of_user: dict[tuple[str, str, str], dict[WaitingClass, None]] = {}
        self._settled: dict[str, int] = {}
        self._awake: dict[str, dict[Key, Shape]] = {}
        self._dormant: dict[str, Dormant] = {}

    def clear(self) -> None:
        self._shapes.clear()
        self._of_user.clear()
        self._settled.clear()
        self._awake.clear()
        self._dormant.clear()

    def lower(self, lane: WaitingClass, fair: FairQueue | None) -> None:
        """A lane is new, or its first job is another one."""
        shapes = self._shapes.setdefault(lane.queue, {})
        shape = shapes.get(lane.shape)
        if shape is None:
            shape = shapes[lane.shape] = Shape(lane.queue, lane.policy, lane.wanted, fair)
            self._awake.setdefault(lane.queue, {})[lane.shape] = shape
        shape.lower(lane)
        self.dormant(lane.queue).lower(shape)
        self._of_user.setdefault((lane.queue, lane.group, lane.user), {})[lane] = None

    def discard(self, lane: WaitingClass) -> bool:
        """Nothing waits in it any more. Whether nobody else waits for its shape, which is forgotten then."""
        shape = self._shapes[lane.queue][lane.shape]
        shape.discard(lane)
        if shape.empty:
            del self._shapes[lane.queue][lane.shape]
            self._awake[lane.queue].pop(lane.shape, None)
            self.dormant(lane.queue).discard(shape)
        user = (lane.queue, lane.group, lane.user)
        del self._of_user[user][lane]
        if not self._of_user[user]:
            del self._of_user[user]
        return shape.empty

    def shape_of(self, lane: WaitingClass) -> Shape:
        """What it waits for. Something must wait in it."""
        return self._shapes[lane.queue][lane.shape]

    def catch_up(self, queue: str, fair: FairQueue) -> None:
        """Take in what made use less since the last pass."""
        shapes = self._shapes.get(queue, {})
        if self._settled.get(queue) != fair.settlements:
            self._settled[queue] = fair.settlements
            for shape in shapes.values():
                shape.lower_all()
                self.dormant(queue).lower(shape)
        else:
            for group, user in fair.lowered:
                if not user:
                    for shape in shapes.values():
                        shape.lower_group(group)
                        self.dormant(queue).lower(shape)
                for lane in self._of_user.get((queue, group, user), ()) if user else ():
                    shapes[lane.shape].lower(lane)
                    self.dormant(queue).lower(shapes[lane.shape])
        fair.lowered.clear()

    def shapes(self, queue: str) -> dict[Key, Shape]:
        return self._shapes.get(queue, {})

    def moved(self, keys: Iterable[Key], asleep: Container[Key]) -> None:
        """These shapes may have fallen asleep, or been woken."""
        for key in keys:
            queue = str(key[0])
            shape = self._shapes.get(queue, {}).get(key)
            if shape is None:
                continue
            if key in asleep:
                self._awake[queue].pop(key, None)
                self.dormant(queue).add(shape)
            else:
                self._awake[queue][key] = shape
                self.dormant(queue).discard(shape)

    def awake(self, queue: str) -> Iterable[Shape]:
        """Shapes that have their turn in each pass."""
        return self._awake.get(queue, {}).values()

    def dormant(self, queue: str) -> Dormant:
        """Shapes that sleep."""
        found = self._dormant.get(queue)
        if found is None:
            found = self._dormant[queue] = Dormant()
        return found

    def queues(self) -> list[str]:
        return [queue for queue, shapes in self._shapes.items() if shapes]

    def looked_at(self) -> int:
        """How many keys were worked out for the lanes that wait now."""
        return sum(shape.looked_at() for shapes in self._shapes.values() for shape in shapes.values())
