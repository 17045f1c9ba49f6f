"""One request class under one policy: a column of scores over the rows, kept up row by row, and what is chosen by it.

    rows that changed ──► do they fit? (classes) ──► scores (policy) ──► column ──► the best row, or runs of tasks

The law (held by a property test): runs are what placing the tasks one by one would give, looking at every row anew
before each. It holds since a row's score depends on that row alone: while tasks go to one, all others keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavalite.placement.classes import MANY, NONE, RequestClass
from lavalite.placement.columns import Bools, Columns, Floats, Ints
from lavalite.placement.policies import Policy
from lavalite.placement.rows import Rows

NO_ROWS: Mapping[int, int] = {}
MOST_NARROW = 2**15 - 1

Scores = NDArray[np.signedinteger[Any]]
"""Narrow where the policy's scores are: the best of them is found the sooner."""


class PolicyFault(Exception):
    """A policy raised, or answered nonsense: the sentence says which. Who waits for it waits."""


class Run(NamedTuple):
    """So many tasks on one row, in the order in which they are placed."""

    row: int
    tasks: int


@dataclass(slots=True, frozen=True)
class Bounds:
    """What is kept back: `most` tasks on some rows, and with `only` none on any other."""

    most: Mapping[int, int]
    only: bool = False


@dataclass(slots=True, frozen=True)
class Leaning:
    """What is near says of each row: whether it is `open`, and how much is met there of what is preferred.

    What is preferred counts before the policy's score. None is: all are open, or all are alike.
    """

    open: Bools | None = None
    met: Ints | None = None


class Ranking:
    """See the module's docstring. Methods raise PolicyFault where the policy does not answer as it must."""

    def __init__(self, wanted: RequestClass, policy: Policy) -> None:
        self.wanted = wanted
        self.policy = policy
        self._scores: Scores = np.zeros(0, dtype=width_of(policy))
        self._version: tuple[int, int] = (-1, -1)
        self._mark = 0

    def best(self, columns: Columns, after: int = NONE) -> int:
        """The row for one task, NONE if there is none. `after` is the row chosen last, for who takes turns."""
        return self._best(self._kept_up(columns), after)

    def runs(
        self,
        columns: Columns,
        tasks: int,
        after: int = NONE,
        bounds: Bounds | None = None,
        leaning: Leaning | None = None,
    ) -> list[Run]:
        """Where up to so many tasks go; fewer if there is no room for more."""
        if tasks == 1 and bounds is None and leaning is None:
            row = self.best(columns, after)
            return [Run(row, 1)] if row >= 0 else []
        scores: Scores = self._kept_up(columns).copy()
        most = bounds.most if bounds is not None else NO_ROWS
        lift = self._lift(leaning)
        if leaning is not None:
            scores = _leant(scores, leaning, lift)
        if bounds is not None:
            _keep_back(scores, bounds)
        return list(self._runs(columns, scores, tasks, after, most, lift))

    def _lift(self, leaning: Leaning | None) -> Ints | None:
        """What is added to the scores of each row for what is preferred."""
        return None if leaning is None or leaning.met is None else leaning.met * (self.policy.highest + 1)

    def _runs(
        self,
        columns: Columns,
        scores: Scores,
        tasks: int,
        after: int,
        most: Mapping[int, int],
        lift: Ints | None,
    ) -> Iterator[Run]:
        ahead: dict[int, tuple[Ints | Floats, int]] = {}
        """Row → its scores with 0, 1, … tasks placed on it, and how many are."""
        while tasks:
            row = self._best(scores, after)
            if row < 0:
                return
            if row not in ahead:
                coming = self._ahead(columns, row, min(tasks, most.get(row, tasks)))
                ahead[row] = coming if lift is None else coming + lift[row], 0
            coming, placed = ahead[row]
            scores[row] = NONE
            length = min(tasks, self._length(coming[placed:], row, self._best(scores, row), scores))
            placed += length
            if placed < len(coming):
                scores[row] = coming[placed]
            ahead[row] = coming, placed
            yield Run(row, length)
            tasks -= length
            after = row

    def _length(self, coming: Ints | Floats, row: int, rival: int, scores: Scores) -> int:
        """How many tasks go to the row before the best of the others is better."""
        if rival < 0:
            return len(coming)
        wins_ties = row < rival and not self.policy.turns
        stays = coming[1:] >= scores[rival] if wins_ties else coming[1:] > scores[rival]
        return len(coming) if stays.all() else 1 + int(np.argmin(stays))

    def _ahead(self, columns: Columns, row: int, tasks: int) -> Ints | Floats:
        tasks = min(tasks, self.wanted.tasks_on(columns, row))
        return self._ask(Rows.filled(columns, row, self.wanted, tasks))

    def _best(self, scores: Scores, after: int) -> int:
        if not len(scores):
            return NONE
        row = int(scores.argmax())
        score = scores[row]
        if score < 0:
            return NONE
        if self.policy.turns and 0 <= after < len(scores) - 1 and row <= after:
            later = after + 1 + int(scores[after + 1 :].argmax())
            return later if scores[later] == score else row
        return row

    # --- keeping up -------------------------------------------------------------------------------------------------

    def _kept_up(self, columns: Columns) -> Scores:
        version = (columns.generation, columns.workload.version if self.policy.looks_ahead else 0)
        if version != self._version:
            self._scores = np.full(len(columns), NONE, dtype=width_of(self.policy))
            self._version = (-1, -1)
            self._look_at(columns, None)
            self._version, self._mark = version, columns.mark
        elif self._mark < columns.mark:
            missing = len(columns) - len(self._scores)
            if missing:
                self._scores = np.pad(self._scores, (0, missing), constant_values=NONE)
            self._look_at(columns, columns.changed_since(self._mark))
            self._mark = columns.mark
        return self._scores

    def _look_at(self, columns: Columns, rows: Ints | None) -> None:
        """Work the scores of these rows out anew; None: of all."""
        wanted = self.wanted
        few = rows is not None and len(rows) < MANY
        spare = wanted.spare(columns, rows) if few or wanted.host else None
        fits = wanted.fitting(columns, rows, spare)
        if self.policy.trusted:  # whatever it says of rows where nothing fits
            scores = self._ask(Rows(columns, wanted, rows, spare))
            np.copyto(scores, NONE, where=~fits)
        else:
            scores = np.full(len(fits), NONE)
            fitting = np.flatnonzero(fits) if rows is None else rows[fits]
            if len(fitting):
                scores[fits] = self._ask(Rows(columns, wanted, fitting))
        self._scores[slice(None) if rows is None else rows] = scores

    def _ask(self, rows: Rows) -> Ints | Floats:
        try:
            scores = self.policy.scores(self.wanted, rows)
        except Exception as error:
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            raise PolicyFault(f"Policy {self.policy.name} failed: {what[:300]}.".replace("..", ".")) from error
        if not self.policy.trusted and (wrong := _nonsense(scores, len(rows), self.policy.highest)):
            raise PolicyFault(f"Policy {self.policy.name} answered {wrong}.")
        return scores


def width_of(policy: Policy) -> type[np.signedinteger[Any]]:
    """Of its scores."""
    return np.int16 if policy.highest <= MOST_NARROW else np.int32


def _nonsense(scores: object, rows: int, highest: int) -> str:
    """What is wrong with a policy's answer; empty if nothing is."""
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "iu":
        kind = f"an array of {scores.dtype}" if isinstance(scores, np.ndarray) else f"a {type(scores).__name__}"
        return f"with {kind}, and not with an array of integers"
    if scores.shape != (rows,):
        return f"with scores of shape {scores.shape} for {rows} rows"
    low, high = int(scores.min()), int(scores.max())
    if low < 0 or high > highest:
        return f"with a score of {low if low < 0 else high}, which is not from 0 to {highest}"
    return ""


def _leant(scores: Scores, leaning: Leaning, lift: Ints | None) -> Scores:
    fits = scores >= 0 if leaning.open is None else (scores >= 0) & leaning.open
    return np.where(fits, scores if lift is None else scores + lift, NONE)


def _keep_back(scores: Scores, bounds: Bounds) -> None:
    if bounds.only:
        inside = np.zeros(len(scores), dtype=np.bool_)
        inside[list(bounds.most)] = True
        scores[~inside] = NONE
    for row, most in bounds.most.items():
        if not most:
            scores[row] = NONE
