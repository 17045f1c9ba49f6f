"""Whose turn it is: queue priority, fairshare in the queue, job priority, submission.

    queue ──► shapes: jobs that ask for the same ──► groups, by use of their share ──► users, likewise ──► jobs

A lane (WaitingClass) holds what waits of one shape; of one group and user only, where queue or pools count those
apart. Lanes are kept in heaps that go by the least key each was known to have. Keys grow while their users hold more,
and that is found out when a lane comes to the top; where one may have become less, it is put in anew. So a pass looks
at those whose turn it is, and at nobody else, however many wait. A shape that does not fit leaves it with all lanes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from lavalite.control.fairshare import FairQueue
from lavalite.placement.classes import RequestClass

if TYPE_CHECKING:
    from lavalite.control.demand import WaitingClass

NOBODY = (math.inf, 0)
"""Behind all jobs: where a lane stands of which all are planned, until it is set aside."""

Item = TypeVar("Item")
Key = tuple[Any, ...]


class LazyHeap(Generic[Item]):
    """The item of least key, where keys grow by themselves. Whoever makes a key less says so by `lower`."""

    def __init__(self, key: Callable[[Item], Key]) -> None:
        self._key = key
        self._heap: list[tuple[Key, int, Item]] = []
        self._latest: dict[Item, int] = {}
        self._serial = 0
        self.looked_at = 0
        """How many keys were worked out, since ever: what the heap costs."""

    def __len__(self) -> int:
        return len(self._latest)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._latest)

    def lower(self, item: Item) -> None:
        """Put it in, or in again since its key may have become less."""
        self._serial += 1
        self._latest[item] = self._serial
        self._push(item, self._serial)
        if len(self._heap) > 2 * len(self._latest) + 64:
            self._heap = [entry for entry in self._heap if self._latest.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def discard(self, item: Item) -> None:
        self._latest.pop(item, None)

    def best(self) -> Item | None:
        """The item of least key; None of an empty heap."""
        while self._heap:
            key, serial, item = self._heap[0]
            if self._latest.get(item) != serial:
                heapq.heappop(self._heap)
                continue
            self.looked_at += 1
            current = self._key(item)
            if current > key:
                heapq.heapreplace(self._heap, (current, serial, item))
                continue
            return item
        return None

    def _push(self, item: Item, serial: int) -> None:
        self.looked_at += 1
        heapq.heappush(self._heap, (self._key(item), serial, item))


class Shape:
    """Lanes that ask for the same in one queue, by group and user."""

    def __init__(self, queue: str, policy: str, wanted: RequestClass, fair: FairQueue | None) -> None:
        self.queue, self.policy = queue, policy
        self.wanted = wanted
        self._fair = fair
        self._lanes: dict[str, LazyHeap[WaitingClass]] = {}
        self._aside: dict[WaitingClass, None] = {}
        """Lanes that are not seen again in this pass."""
        self._groups: LazyHeap[str] = LazyHeap(self._group_key)
        self.fault = ""
        """What is wrong with its policy, as a sentence; and the columns' generation and mark as of which it is."""
        self.fault_as_of: tuple[int, int] = (-1, -1)

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
        """Where its first lane stands among those of the queue. There must be one."""
        group = self._groups.best()
        assert group is not None, "a shape that nobody waits for is left out before"
        return self._group_key(group)

    def looked_at(self) -> int:
        return self._groups.looked_at + sum(heap.looked_at for heap in self._lanes.values())

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def _group_key(self, group: str) -> Key:
        lane = self._lanes[group].best()
        assert lane is not None, "a group of which nobody waits is left out before"
        return (self._fair.standing(group) if self._fair and group else 0, *self._lane_key(lane))

    def _lane_key(self, lane: WaitingClass) -> Key:
        standing = self._fair.standing(lane.group, lane.user) if self._fair and lane.user else 0
        return (standing, *(lane.first or NOBODY))


class HasPriority(Protocol):
    @property
    def priority(self) -> int: ...


class Order:
    """All lanes, by queue and shape."""

    def __init__(self) -> None:
        self._shapes: dict[str, dict[Key, Shape]] = {}
        self._of_user: dict[tuple[str, str, str], dict[WaitingClass, None]] = {}
        self._settled: dict[str, int] = {}

    def clear(self) -> None:
        self._shapes.clear()
        self._of_user.clear()
        self._settled.clear()

    def lower(self, lane: WaitingClass, fair: FairQueue | None) -> None:
        """A lane is new, or its first job is another one."""
        shapes = self._shapes.setdefault(lane.queue, {})
        shape = shapes.get(lane.shape)
        if shape is None:
            shape = shapes[lane.shape] = Shape(lane.queue, lane.policy, lane.wanted, fair)
        shape.lower(lane)
        self._of_user.setdefault((lane.queue, lane.group, lane.user), {})[lane] = None

    def discard(self, lane: WaitingClass) -> bool:
        """Nothing waits in it any more. Whether nobody else waits for its shape, which is forgotten then."""
        shape = self._shapes[lane.queue][lane.shape]
        shape.discard(lane)
        if shape.empty:
            del self._shapes[lane.queue][lane.shape]
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
        else:
            for group, user in fair.lowered:
                if not user:
                    for shape in shapes.values():
                        shape.lower_group(group)
                for lane in self._of_user.get((queue, group, user), ()) if user else ():
                    shapes[lane.shape].lower(lane)
        fair.lowered.clear()

    def shapes(self, queue: str) -> dict[Key, Shape]:
        return self._shapes.get(queue, {})

    def queues(self) -> list[str]:
        return [queue for queue, shapes in self._shapes.items() if shapes]

    def looked_at(self) -> int:
        """How many keys were worked out for the lanes that wait now."""
        return sum(shape.looked_at() for shapes in self._shapes.values() for shape in shapes.values())


@dataclass(slots=True)
class Round:
    """One pass over the order. Lanes that are set aside, and shapes that are closed, are not seen again in it."""

    order: Order
    queues: LazyHeap[str]
    open: dict[str, LazyHeap[Shape]]
    aside: dict[Shape, None]
    sleeping: dict[str, dict[Shape, None]]
    """By queue, shapes that have no turn."""
    planned: dict[WaitingClass, Shape]
    """Lanes of which the first jobs are planned."""

    @classmethod
    def begin(cls, order: Order, priorities: Callable[[str], HasPriority], asleep: Container[Key] = ()) -> Round:
        """Shapes that are `asleep` have no turn, unless they are roused."""
        opened: dict[str, LazyHeap[Shape]] = {}
        sleeping: dict[str, dict[Shape, None]] = {}

        def queue_key(queue: str) -> Key:
            shape = opened[queue].best()
            assert shape is not None
            lane = shape.best()
            assert lane is not None
            return (-priorities(queue).priority, *(lane.first or NOBODY), queue)

        for queue in order.queues():
            heap: LazyHeap[Shape] = LazyHeap(Shape.key)
            for key, shape in order.shapes(queue).items():
                if key not in asleep:
                    heap.lower(shape)
                else:
                    sleeping.setdefault(queue, {})[shape] = None
            if heap:
                opened[queue] = heap
        queues: LazyHeap[str] = LazyHeap(queue_key)
        for queue in opened:
            queues.lower(queue)
        return cls(order, queues, opened, {}, sleeping, {})

    def next(self) -> tuple[Shape, WaitingClass] | None:
        """The lane whose turn it is; None when all were seen."""
        queue = self.queues.best()
        if queue is None:
            return None
        shape = self.open[queue].best()
        lane = shape.best() if shape is not None else None
        assert shape is not None and lane is not None
        return shape, lane

    def alone(self, shape: Shape) -> bool:
        """Whether nobody else of its queue waits: then it may have all at once."""
        return len(self.open[shape.queue]) == 1 and len(shape) == 1

    def set_aside(self, shape: Shape, lane: WaitingClass) -> None:
        """Nothing more for this lane in this pass."""
        shape.set_aside(lane)
        self.aside[shape] = None
        self.changed(shape)

    def planned_first(self, shape: Shape, lane: WaitingClass) -> None:
        """The first job of the lane is planned: it is the turn of the next one, if there is one."""
        lane.planned += 1
        self.planned[lane] = shape
        self.placed(shape, lane)

    def placed(self, shape: Shape, lane: WaitingClass) -> None:
        """Jobs of the lane were placed, or planned."""
        if lane.jobs and lane.first is None:
            self.set_aside(shape, lane)
        else:
            self.changed(shape)

    def rouse(self, queue: str, before: Shape | None = None) -> bool:
        """Give those of the queue a turn that sleep and come before a shape, or all that sleep; whether any do."""
        sleeping = self.sleeping.get(queue, {})
        mine = before.key() if before is not None else None
        found = [shape for shape in sleeping if shape and (mine is None or shape.key() < mine)]
        if not found:
            return False
        heap = self.open.setdefault(queue, LazyHeap(Shape.key))
        for shape in found:
            del sleeping[shape]
            heap.lower(shape)
        self.queues.lower(queue)
        return True

    def close(self, shape: Shape) -> None:
        """Nothing more for any lane of the shape in this pass."""
        self.open[shape.queue].discard(shape)
        self._queue_changed(shape.queue)

    def changed(self, shape: Shape) -> None:
        """Jobs of the shape were placed, or a lane is out: what comes next may be any later."""
        if not shape:
            self.open[shape.queue].discard(shape)
        self._queue_changed(shape.queue)

    def end(self) -> None:
        """Lanes that were set aside wait for the next pass, and first jobs that were planned are the first again."""
        for lane, shape in self.planned.items():
            lane.planned = 0
            if lane.jobs:
                shape.lower(lane)
        for shape in self.aside:
            shape.bring_back()

    def _queue_changed(self, queue: str) -> None:
        if not self.open[queue]:
            self.queues.discard(queue)
        else:
            self.queues.lower(queue)
