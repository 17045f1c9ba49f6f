"""Which of the rows that fit is taken. A policy is one small class that gives each of them a score, in integers.

Everything else is in one place for all policies (ranking): which rows fit, keeping scores up, finding the best,
placing many tasks at once. How to write one of your own, with worked sums: docs/policies.md.
"""

from __future__ import annotations

import numpy as np

from lavalite.model.resources import KINDS
from lavalite.placement.classes import NONE, RequestClass
from lavalite.placement.columns import Floats, Ints, Line
from lavalite.placement.rows import Rows

MOST_SCORE = 10**9
"""The most that `highest` may be."""


class Policy:
    """Base of all. The row with the highest score is taken; among equals the first.

    A row's score may depend on that row, on what is asked for and on `rows.workload`; never on other rows, on the
    time, or on chance: then what is decided can be worked out again, and many tasks can be placed at once.
    """

    name: str = ""
    """What people write in a queue or a request."""
    turns: bool = False
    """Among equals not the first is taken, but the next after the one taken last."""
    looks_ahead: bool = False
    """Whether it goes by `rows.workload`: then all scores are worked out anew when that changes."""
    trusted: bool = False
    """Of those that are tested here: asked about rows where nothing fits too, and not checked."""
    highest: int = 100
    """Scores are from 0 to this, at most MOST_SCORE; up to 32,767 the best is found the sooner."""

    summed: bool = False
    """Of those that are tested here: its score is a sum over the kinds asked for, as `score` and `part` have it."""

    def scores(self, wanted: RequestClass, rows: Rows) -> Ints | Floats:
        """An integer from 0 to `highest` for each row. One task more fits on each of them."""
        raise NotImplementedError

    def score(self, wanted: RequestClass, line: Line) -> int:
        """That of one row, in plain numbers; NONE where the task does not fit, of what is no device."""
        raise NotImplementedError

    def part(self, left: Floats, divisor: Floats) -> Floats:
        """What one kind adds to the score: a hundred times what the task leaves of it, and what there is of it.

        May be written over what is left.
        """
        raise NotImplementedError


class FirstFit(Policy):
    """The first row that fits, in the order in which the providers came."""

    name = "first-fit"
    trusted = True

    def scores(self, wanted: RequestClass, rows: Rows) -> Ints:
        return np.zeros(len(rows), dtype=np.int64)


class RoundRobin(FirstFit):
    """The next row that fits after the one chosen last, and from the last to the first again."""

    name = "round-robin"
    turns = True


class BestFit(Policy):
    """The row that the task leaves fullest, by the sum over the kinds it asks for."""

    name = "best-fit"
    trusted = summed = True
    highest = 100 * len(KINDS)

    def scores(self, wanted: RequestClass, rows: Rows) -> Ints | Floats:
        return rows.sum_of_fullness()

    def score(self, wanted: RequestClass, line: Line) -> int:
        room, divisor = line
        total = 0
        for at, amount, hundredfold in wanted.at:
            if room[at] < amount:
                return NONE
            # What is left, rounded up, stands for what is used, rounded down, as in Rows.sum_of_fullness.
            total += 100 + (hundredfold - 100 * room[at]) // divisor[at]
        return total

    def part(self, left: Floats, divisor: Floats) -> Floats:
        np.divide(left, divisor, out=left)
        np.ceil(left, out=left)
        return np.subtract(100.0, left, out=left)


class BinPack(Policy):
    """The row that is fullest with the task, on average over all kinds that it has: others stay empty."""

    name = "binpack"
    trusted = True

    def scores(self, wanted: RequestClass, rows: Rows) -> Ints:
        total = np.zeros(len(rows), dtype=np.int64)
        offered = np.zeros(len(rows), dtype=np.int64)
        for kind in KINDS:
            capacity = rows.capacity(kind)
            used = capacity - rows.free(kind) + wanted.amounts.get(kind, 0)
            total += used * 100 // np.maximum(capacity, 1)
            offered += capacity > 0
        return total // np.maximum(offered, 1)


class Spread(Policy):
    """The row that is emptiest with the task, by the kind asked for that it then has least of."""

    name = "spread"
    trusted = True

    def scores(self, wanted: RequestClass, rows: Rows) -> Ints:
        if not wanted.at:
            return np.zeros(len(rows), dtype=np.int64)
        fullest: Ints = rows.fullness().max(axis=0)
        return 100 - fullest
