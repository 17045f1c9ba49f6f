"""Which of the rows that fit is taken. Every policy is a function of columns, in integers, and deterministic.

A policy answers with runs: so many tasks of one class on one row, in the order in which they are placed. The law
(held by a property test) is that runs are what placing the tasks one by one would give.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from lavalite.placement.columns import Ints


class Run(NamedTuple):
    row: int
    tasks: int


@dataclass(slots=True, frozen=True)
class Choice:
    """What a policy may look at. `fits`: how many tasks of the class each row can take; 0 where it takes none.

    `fullness`: 0–100, how full each row would be with one more task. `after`: the row chosen last, -1 at first.
    """

    fits: Ints
    fullness: Ints
    after: int = -1


class Policy(Protocol):
    """A way to choose. `name` is what people write in a queue or a request."""

    name: str

    def runs(self, choice: Choice, tasks: int) -> Iterator[Run]:
        """Runs for up to so many tasks; fewer if there is no room for more."""
        ...


class FirstFit:
    """The first row that fits, in the order in which the providers came."""

    name = "first-fit"

    def runs(self, choice: Choice, tasks: int) -> Iterator[Run]:
        yield from _fill(choice, np.flatnonzero(choice.fits), tasks)


class BestFit:
    """The row that the task leaves fullest; among equals the first.

    A row only gets fuller by what is placed on it, so the best one stays the best until nothing more fits: that is
    why it can be filled at once.
    """

    name = "best-fit"

    def runs(self, choice: Choice, tasks: int) -> Iterator[Run]:
        rows = np.flatnonzero(choice.fits)
        if not rows.size:
            return
        best = int(rows[np.argmax(choice.fullness[rows])])
        if choice.fits[best] >= tasks:
            yield Run(best, tasks)
            return
        yield from _fill(choice, rows[np.argsort(-choice.fullness[rows], kind="stable")], tasks)


class RoundRobin:
    """The next row that fits after the one chosen last, and from the last to the first again."""

    name = "round-robin"

    def runs(self, choice: Choice, tasks: int) -> Iterator[Run]:
        left = choice.fits.copy()
        rows = np.flatnonzero(left)
        rows = np.concatenate([rows[rows > choice.after], rows[rows <= choice.after]])
        while tasks and rows.size:
            for row in rows[:tasks]:
                yield Run(int(row), 1)
            tasks -= min(tasks, rows.size)
            left[rows] -= 1
            rows = rows[left[rows] > 0]


def _fill(choice: Choice, rows: Ints, tasks: int) -> Iterator[Run]:
    for row in rows:
        if not tasks:
            return
        placed = min(tasks, int(choice.fits[row]))
        yield Run(int(row), placed)
        tasks -= placed


POLICIES: dict[str, Policy] = {policy.name: policy for policy in (FirstFit(), BestFit(), RoundRobin())}
"""By name. A plug-in adds itself here."""
