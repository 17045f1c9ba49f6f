"""Who of those that sleep has its turn for a planned start: the first in the order, a few at a time.

    sleeps ──► its turn comes ──► a start is looked for ──► none is found: it is left alone for a while
                    ▲                                                      │
                    └──── the while is over, or nodes came or went ◄───────┘

So what a pass spends on those that sleep does not depend on how many they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lavalite.control.lazy_heap import LazyHeap

if TYPE_CHECKING:
    from lavalite.control.order import Shape

DEPTH = 256
"""So many shapes of a queue, the first of its order, have their turn in one while."""


class Dormant:
    """Those of one queue. `Shape.tried` says when its turn was."""

    def __init__(self) -> None:
        self._heap: LazyHeap[Shape] = LazyHeap(lambda shape: shape.key())
        self._tried: dict[Shape, None] = {}
        self._since, self._rows_version = -math.inf, -1

    def __len__(self) -> int:
        return len(self._heap) + len(self._tried)

    @property
    def looked_at(self) -> int:
        """How many keys were worked out, since ever."""
        return self._heap.looked_at

    def add(self, shape: Shape) -> None:
        """It sleeps, and waits for its turn unless that was in this while."""
        at, rows_version, _ = shape.tried
        if at >= self._since and rows_version == self._rows_version:
            self._heap.discard(shape)
            self._tried[shape] = None
        else:
            self._tried.pop(shape, None)
            self._heap.lower(shape)

    def lower(self, shape: Shape) -> None:
        """It may come before others now."""
        if shape in self._heap:
            self._heap.lower(shape)

    def discard(self, shape: Shape) -> None:
        self._heap.discard(shape)
        self._tried.pop(shape, None)

    def look(self, now: float, rows_version: int, again_seconds: float) -> None:
        """Begin another while if this one is over."""
        if rows_version != self._rows_version or now >= self._since + again_seconds:
            self._since, self._rows_version = now, rows_version
            tried, self._tried = self._tried, {}
            for shape in tried:
                self._heap.lower(shape)

    def first(self, before: Shape | None) -> Shape | None:
        """Whose turn it is, of those that come before a shape; None if that is nobody in this while."""
        if len(self._tried) >= DEPTH:
            return None
        shape = self._heap.best()
        return shape if shape is not None and (before is None or shape.key() < before.key()) else None

    def take(self, shape: Shape) -> None:
        """It has its turn; `add` it again if it sleeps on."""
        self._heap.discard(shape)
