"""What found no room is not looked at again until something was freed that could be enough for it.

A sleeper remembers what it needs of each kind. It is woken when a row on which something was freed has that much of
every kind, or when everything may be different. Whether it really fits is then found out: the law is that nothing
sleeps that fits.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from lavalite.placement.columns import Columns, Ints

ROWS_AT_ONCE = 64
"""Beyond so many freed rows their maxima stand for all of them: too many are woken then, never too few."""


class Sleepers:
    """By key. `woken` must be asked before anybody is put to sleep on newer columns."""

    def __init__(self) -> None:
        self._places: dict[Hashable, int] = {}
        self._keys: list[Hashable | None] = []
        self._vacant: list[int] = []
        self._needs: Ints = np.zeros((0, 0), dtype=np.int64)
        self._generation = -1
        self._mark = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def sleep(self, key: Hashable, line: Ints) -> None:
        """It needs so much of each kind on one row, and found none. A line of zeros wakes by anything freed."""
        if key in self._places:
            return
        if not self._vacant:
            self._grow(len(line))
        place = self._vacant.pop()
        self._places[key], self._keys[place] = place, key
        self._needs[place] = line

    def forget(self, key: Hashable) -> None:
        """It waits no longer."""
        place = self._places.pop(key, None)
        if place is not None:
            self._keys[place] = None
            self._needs[place] = np.iinfo(np.int64).max
            self._vacant.append(place)

    def wake_all(self) -> list[Hashable]:
        """Everything may be different: nobody sleeps any more."""
        everyone = list(self._places)
        for key in everyone:
            self.forget(key)
        return everyone

    def woken(self, columns: Columns) -> list[Hashable]:
        """Who may fit now, for what was freed since this was asked last. They sleep no longer."""
        if self._generation != columns.generation:
            self._generation, self._mark = columns.generation, columns.freed_mark
            return self.wake_all()
        rows = np.unique(columns.freed_since(self._mark))
        self._mark = columns.freed_mark
        if not self._places or not rows.size:
            return []
        enough = np.zeros(len(self._needs), dtype=np.bool_)
        for free in _free_on(columns, rows):
            enough |= (self._needs <= free).all(axis=1)
        keys = [key for place in np.flatnonzero(enough) if (key := self._keys[place]) is not None]
        for key in keys:
            self.forget(key)
        return keys

    def _grow(self, kinds: int) -> None:
        before = len(self._keys)
        more = max(16, before)
        unknown = np.full((more, kinds), np.iinfo(np.int64).max, dtype=np.int64)
        self._needs = np.concatenate([self._needs, unknown]) if before else unknown
        self._keys += [None] * more
        self._vacant += range(before + more - 1, before - 1, -1)


def _free_on(columns: Columns, rows: Ints) -> list[Ints]:
    """What is free on each of the rows; their maxima where they are many."""
    each = [columns.free_on(int(row)) for row in rows] if len(rows) <= ROWS_AT_ONCE else []
    return each or [np.max([columns.free_on(int(row)) for row in rows], axis=0)]
