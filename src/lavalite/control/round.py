"""One pass over the order: each lane has its turn, until it is set aside or nothing more of its shape fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lavalite.control.lazy_heap import Key, LazyHeap
from lavalite.control.order import Order, Shape

if TYPE_CHECKING:
    from lavalite.control.demand import WaitingClass


class HasPriority(Protocol):
    @property
    def priority(self) -> int: ...


@dataclass(slots=True)
class Round:
    """One pass over the order. Lanes that are set aside, and shapes that are closed, are not seen again in it."""

    order: Order
    queues: LazyHeap[str]
    open: dict[str, LazyHeap[Shape]]
    aside: dict[Shape, None] = field(default_factory=dict)
    roused: dict[Shape, None] = field(default_factory=dict)
    """Shapes that sleep and have their turn all the same."""
    planned: dict[WaitingClass, Shape] = field(default_factory=dict)
    """Lanes of which the first jobs are planned."""

    @classmethod
    def begin(cls, order: Order, priorities: Callable[[str], HasPriority]) -> Round:
        """Shapes that sleep have no turn, unless they are roused."""
        opened: dict[str, LazyHeap[Shape]] = {}

        def queue_key(queue: str) -> Key:
            least = opened[queue].least()
            assert least is not None
            return (-priorities(queue).priority, *least[0][-2:], queue)

        for queue in order.queues():
            heap: LazyHeap[Shape] = LazyHeap(Shape.key)
            for shape in order.awake(queue):
                heap.lower(shape)
            if heap:
                opened[queue] = heap
        queues: LazyHeap[str] = LazyHeap(queue_key)
        for queue in opened:
            queues.lower(queue)
        return cls(order, queues, opened)

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

    def rouse(self, queue: str, before: Shape | None, most: int) -> int:
        """Give up to so many of the queue a turn that sleep and come before a shape, the first ones; how many."""
        dormant, found = self.order.dormant(queue), 0
        heap = self.open.setdefault(queue, LazyHeap(Shape.key))
        while found < most and (shape := dormant.first(before)) is not None:
            dormant.take(shape)
            self.roused[shape] = None
            heap.lower(shape)
            found += 1
        self._queue_changed(queue)
        return found

    def close(self, shape: Shape) -> None:
        """Nothing more for any lane of the shape in this pass."""
        self.open[shape.queue].discard(shape)
        self._shape_changed(shape)

    def changed(self, shape: Shape) -> None:
        """Jobs of the shape were placed, or a lane is out."""
        if not shape:
            self.open[shape.queue].discard(shape)
        self._shape_changed(shape)

    def end(self) -> None:
        """Lanes that were set aside wait for the next pass, and first jobs that were planned are the first again."""
        for lane, shape in self.planned.items():
            lane.planned = 0
            if lane.jobs:
                shape.lower(lane)
        for shape in self.aside:
            shape.bring_back()
        for shape in self.roused:
            if not shape.empty:
                self.order.dormant(shape.queue).add(shape)

    def _shape_changed(self, shape: Shape) -> None:
        """What comes next in its queue was submitted later; where shares count, it may be anything."""
        if shape.fair is not None or not self.open[shape.queue]:
            self._queue_changed(shape.queue)

    def _queue_changed(self, queue: str) -> None:
        if not self.open[queue]:
            self.queues.discard(queue)
        else:
            self.queues.lower(queue)
