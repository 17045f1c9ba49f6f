"""What found no room is not looked at again until something was freed that could be enough for it.

A sleeper remembers what it needs of each kind. It is woken when a row on which something was freed has that much of
every kind, or when everything may be different. Whether it really fits is then found out: the law is that nothing
sleeps that fits. One that is kept out by something else than rows is woken by `wake_kept` as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lavalite.placement.columns import Columns, Ints

Key = tuple[Any, ...]

ROWS_AT_ONCE = 64
"""Beyond so many freed rows their maxima stand for all of them: too many are woken then, never too few."""


class Sleepers:
    """By key. `woken` must be asked before anybody is put to sleep on newer columns."""

    def __init__(self) -> None:
        self._places: dict[Key, int] = {}
        self._kept: dict[Key, None] = {}
        self._moved: dict[Key, None] = {}
        self._keys: list[Key | None] = []
        self._vacant: list[int] = []
        self._needs: Ints = np.zeros((0, 0), dtype=np.int64)
        self._generation = -1
        self._mark = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def sleep(self, key: Key, line: Ints, *, kept: bool = False) -> None:
        """It needs so much of each kind on one row, and found none. A line of zeros wakes by anything freed.

        `kept`: it may have found one, and something else keeps it out.
        """
        if kept:
            self._kept[key] = None
        if key in self._places:
            return
        self._moved[key] = None
        if not self._vacant:
            self._grow(len(line))
        place = self._vacant.pop()
        self._places[key], self._keys[place] = place, key
        self._needs[place] = line

    def forget(self, key: Key) -> None:
        """It waits no longer."""
        place = self._places.pop(key, None)
        self._kept.pop(key, None)
        if place is not None:
            self._moved[key] = None
            self._keys[place] = None
            self._needs[place] = np.iinfo(np.int64).max
            self._vacant.append(place)

    def wake_all(self) -> list[Key]:
        """Everything may be different: nobody sleeps any more."""
        everyone = list(self._places)
        for key in everyone:
            self.forget(key)
        return everyone

    def is_kept(self, key: Key) -> bool:
        """Whether it sleeps, and not for want of room alone."""
        return key in self._kept

    def wake_kept(self) -> None:
        """What else kept some out may be different."""
        for key in list(self._kept):
            self.forget(key)

    def take_moved(self) -> list[Key]:
        """Who may have fallen asleep, or been woken, since this was asked last."""
        moved, self._moved = self._moved, {}
        return list(moved)

    def woken(self, columns: Columns) -> list[Key]:
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
