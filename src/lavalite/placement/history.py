"""What rows were before they changed, so that they can be seen as they were: the last so many changes.

Writing one down costs a few copies of some numbers; what a row was is worked out only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lavalite.model.resources import KINDS

if TYPE_CHECKING:
    from lavalite.placement.columns import Columns, DeviceRow, Ints

MOST_CHANGES = 2**15
SpecialThen = Mapping[str, tuple[int, int]]
"""By special kind, what is free and what there is. Not to be changed: another one takes its place."""
NOTHING_SPECIAL: SpecialThen = {}


class RowThen(NamedTuple):
    """Amounts have a number for each kind, and one for places."""

    free: Ints
    capacity: Ints
    devices: tuple[DeviceRow, ...]
    state: str
    is_host: bool
    special: SpecialThen = NOTHING_SPECIAL


class History:
    """Of one Columns. `mark` says how many changes there were so far."""

    def __init__(self, most: int = MOST_CHANGES) -> None:
        self.mark = 0
        self._most = most
        self._rows = np.zeros(most, dtype=np.int64)
        self._amounts = np.zeros((2, most, len(KINDS) + 1), dtype=np.int64)
        self._others: list[tuple[tuple[DeviceRow, ...], str, bool, SpecialThen]] = [
            ((), "", False, NOTHING_SPECIAL)
        ] * most

    def note(self, row: int, now: RowThen) -> None:
        """The row is about to change."""
        at = self.mark % self._most
        self._rows[at] = row
        self._amounts[0, at], self._amounts[1, at] = now.free, now.capacity
        self._others[at] = now.devices, now.state, now.is_host, now.special
        self.mark += 1

    def reaches(self, mark: int) -> bool:
        """Whether rows can still be seen as they were then."""
        return self.mark - mark <= self._most

    def rows_at(self, columns: Columns, mark: int, count: int) -> list[RowThen]:
        """The first `count` rows as they were then; it must reach so far."""
        changed: dict[int, RowThen] = {}
        for change in range(self.mark - 1, mark - 1, -1):
            at = change % self._most
            changed[int(self._rows[at])] = RowThen(
                self._amounts[0, at].copy(), self._amounts[1, at].copy(), *self._others[at]
            )
        return [changed.get(row) or columns.row_now(row) for row in range(count)]
