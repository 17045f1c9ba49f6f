"""A heap whose keys may change while they are in it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

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

    def __contains__(self, item: Item) -> bool:
        return item in self._latest

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
        least = self.least()
        return least[1] if least is not None else None

    def least(self) -> tuple[Key, Item] | None:
        """The same, with its key as it is now."""
        if len(self._latest) == 1:
            self.looked_at += 1
            (item,) = self._latest
            return self._key(item), item
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
            return current, item
        return None

    def _push(self, item: Item, serial: int) -> None:
        self.looked_at += 1
        heapq.heappush(self._heap, (self._key(item), serial, item))
