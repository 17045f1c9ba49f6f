"""When each row will have how much, as columns: to find in one look the rows where a task will fit first.

Each row has its next ends, in order, and what they will have given back by then, summed up. Only rows of which
anything changed are written anew, and only so many at a time. What a row says leaves out what is kept for others and
which devices are free. So it may be too early, and the truth is looked up for the few rows that count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lavalite.control.ahead import Release, releases_of
from lavalite.model.resources import KINDS, PLACES
from lavalite.placement.classes import NO_LIMIT, RequestClass
from lavalite.placement.columns import MOST, Ints

if TYPE_CHECKING:
    from lavalite.control.state import ClusterState

KEPT = (*KINDS, PLACES)
ENDS = 12
"""So many ends of each row are told apart; the last one stands for all that come after."""

Floats = NDArray[np.float64]


class Horizon:
    """See the module's docstring. It belongs to the state's columns: rows have the same numbers."""

    def __init__(self) -> None:
        self._at: Floats = np.full((0, ENDS), np.inf)
        self._back: dict[str, Ints] = {kind: np.zeros((0, ENDS), dtype=np.int64) for kind in KEPT}
        self._ends: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def refresh(self, state: ClusterState, now: float, most: int) -> bool:
        """Write up to so many rows anew; whether all are up to date then. One that is not yet tells of no end."""
        self._grow(len(state.columns))
        for _ in range(most):
            if not state.ends_changed:
                return True
            provider = state.ends_changed.pop()
            for name in (provider, *state.places.over([provider])):
                row = state.columns.row(name)
                if row is not None:
                    self._write(row, releases_of(state, name, now))
        return not state.ends_changed

    @property
    def empty(self) -> bool:
        """Whether nothing ends anywhere, so far as is known."""
        return not self._ends.any()

    def times(self, now: float) -> list[float]:
        """Now, and when anything ends anywhere: at these times there may be more room than before."""
        later = np.unique(self._at[np.isfinite(self._at)])
        return [now, *(float(at) for at in later[later > now])]

    def room(self, state: ClusterState, wanted: RequestClass, at: float) -> Ints:
        """For how many tasks each row has enough by then; none where they are not to go."""
        columns, rows = state.columns, len(state.columns)
        ended = (self._at[:rows] <= at).sum(axis=1)
        tasks = np.where(wanted.eligible(columns) & columns.ready, NO_LIMIT, 0)
        for kind, amount in wanted.needs.items():
            back = self._back_of(kind)[np.arange(rows), np.maximum(ended, 1) - 1]
            free = columns.free(kind) + np.where(ended > 0, back, 0)
            tasks = np.minimum(tasks, np.minimum(free, columns.capacity(kind)) // amount)
        return tasks.astype(np.int64)

    def free_on(self, state: ClusterState, wanted: RequestClass, row: int, at: float) -> dict[str, int]:
        """What a row has by then of each kind that is asked for."""
        columns, ended = state.columns, int((self._at[row] <= at).sum())
        found = {}
        for kind in wanted.needs:
            back = int(self._back_of(kind)[row, ended - 1]) if ended else 0
            found[kind] = min(int(columns.free(kind)[row]) + back, int(columns.capacity(kind)[row]))
        return found

    def earliest(self, state: ClusterState, wanted: RequestClass, now: float) -> Floats:
        """For each row, when a task fits there at the earliest; never where it is not to go or is too big."""
        columns, rows = state.columns, len(state.columns)
        can = wanted.eligible(columns) & columns.ready
        enough = np.ones((rows, ENDS), dtype=np.bool_)
        at_once = can.copy()
        for kind, amount in wanted.needs.items():
            free = columns.free(kind)
            can &= columns.capacity(kind) >= amount
            at_once &= free >= amount
            enough &= free[:, None] + self._back_of(kind)[:rows] >= amount
        first = np.argmax(enough, axis=1)
        found = np.where(enough.any(axis=1), self._at[np.arange(rows), first], np.inf)
        found = np.where(at_once, now, found)
        return np.where(can, np.maximum(found, now), np.inf)

    def _write(self, row: int, releases: list[Release]) -> None:
        releases.sort(key=lambda release: release.at)
        self._at[row] = np.inf
        for column in self._back.values():
            column[row] = 0
        self._ends[row] = len(releases)
        sums = dict.fromkeys(self._back, 0)
        for place, release in enumerate(releases):
            for kind, amount in release.amounts.items():
                sums[kind] = min(MOST, sums.get(kind, 0) + amount)
            self._at[row, min(place, ENDS - 1)] = release.at
            for kind, total in sums.items():
                self._back_of(kind)[row, min(place, ENDS - 1)] = total

    def _back_of(self, kind: str) -> Ints:
        """Of a special kind that nobody has asked about yet, nothing is given back so far."""
        if kind not in self._back:
            self._back[kind] = np.zeros((len(self._at), ENDS), dtype=np.int64)
        return self._back[kind]

    def _grow(self, rows: int) -> None:
        have = len(self._at)
        if have < rows:
            more = max(rows, 2 * have) - have
            self._at = np.concatenate([self._at, np.full((more, ENDS), np.inf)])
            self._ends = np.concatenate([self._ends, np.zeros(more, dtype=np.int64)])
            zeros = np.zeros((more, ENDS), dtype=np.int64)
            self._back = {kind: np.concatenate([old, zeros]) for kind, old in self._back.items()}
