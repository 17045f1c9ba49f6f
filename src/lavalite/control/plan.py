"""Planned starts: who of those that wait will have room where and when, as far as is known.

A planned start holds nothing in the book. It is kept in memory alone, and a new leader works it out anew. In each
pass those that are looked at later leave free what is kept for those that were looked at before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lavalite.model.task import AttemptId
from lavalite.placement.columns import GpuSelector


class PlannedPart(NamedTuple):
    """Tasks that ask for the same: so many on each provider. `amounts` are what one of them takes."""

    seats: dict[str, int]
    amounts: dict[str, int]
    gpu: GpuSelector | None = None


@dataclass(slots=True, frozen=True)
class PlannedStart:
    """One task of a job, or all of a gang, `at` a time (latest, if ends are kept); they may last up to `until`.

    `parts` is one entry, but of a job with parts one for each. `floating` is what all of them take of what floats.
    """

    job: int
    queue: str
    parts: tuple[PlannedPart, ...]
    at: float
    until: float
    floating: dict[str, int] = field(default_factory=dict)
    found_at: float = 0.0
    """When it was looked for last."""
    preempts: frozenset[AttemptId] = frozenset()
    """Attempts that were told to end for it, or that end by themselves and that it counts on (control.preemption)."""

    @property
    def seats(self) -> dict[str, int]:
        """So many tasks on each provider."""
        sums: dict[str, int] = {}
        for part in self.parts:
            for provider, tasks in part.seats.items():
                sums[provider] = sums.get(provider, 0) + tasks
        return sums

    def kept_on(self, provider: str) -> dict[str, int]:
        """What its tasks take there, per kind."""
        sums: dict[str, int] = {}
        for part in self.parts:
            for kind, amount in part.amounts.items() if provider in part.seats else ():
                sums[kind] = sums.get(kind, 0) + amount * part.seats[provider]
        return sums

    def keeps_as_much_as(self, other: PlannedStart) -> bool:
        """Whether it keeps the same, for the same time."""
        return (self.parts, self.at, self.until) == (other.parts, other.at, other.until)


class Plan:
    """Planned starts by job. During a pass, only of those that were looked at in it."""

    def __init__(self) -> None:
        self.starts: dict[int, PlannedStart] = {}
        self.searches_left = 0
        self.roused_left = 0
        """So many more of those that sleep may have a turn in this pass."""
        self.looked_at = 0.0
        """When the last pass was."""
        self.passing = False
        self.points: dict[str, list[Any]] = {}
        """Of a pass, by provider: what is kept there when (control.ahead)."""
        self._begun_with: dict[int, PlannedStart] = {}
        self._before: dict[int, PlannedStart] = {}
        self._by_provider: dict[str, list[PlannedStart]] = {}
        self._by_queue: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.starts)

    def begin(self, searches: int, roused: int, now: float) -> None:
        """A pass begins: nobody was looked at yet."""
        self.looked_at, self.passing = now, True
        self._begun_with, self._before, self.starts = self.starts, dict(self.starts), {}
        self._by_provider, self._by_queue, self.points = {}, {}, {}
        self.searches_left, self.roused_left = searches, roused

    def end(self, waiting: Iterable[int]) -> bool:
        """The pass is over, and these, who still wait, were not looked at: what was planned for them still stands.

        Whether anything that was kept before is kept no longer.
        """
        for job in waiting:
            if job in self._before:
                self.add(self._before[job])
        self._before, self.passing, self.points = {}, False, {}
        kept, self._begun_with = self._begun_with, {}
        now = self.starts
        return not all(job in now and now[job].keeps_as_much_as(start) for job, start in kept.items())

    def not_seen(self) -> list[int]:
        """Jobs with a planned start that were not looked at in this pass."""
        return list(self._before)

    def stood(self, job: int) -> bool:
        """Whether a start was planned for the job before this pass, which has not come to it yet."""
        return job in self._before

    def before(self, job: int) -> PlannedStart | None:
        """What was planned for the job before this pass, which has not come to it yet."""
        return self._before.get(job)

    def take_before(self, job: int) -> PlannedStart | None:
        """What was planned for the job before this pass, to be planned or started now."""
        return self._before.pop(job, None)

    def add(self, start: PlannedStart) -> None:
        self.starts[start.job] = start
        for provider in start.seats:
            self.points.pop(provider, None)
            self._by_provider.setdefault(provider, []).append(start)
        self._by_queue[start.queue] = self._by_queue.get(start.queue, 0) + 1

    @contextmanager
    def leaving_out(self, job: int) -> Iterator[None]:
        """As the job itself sees it: nothing is kept for it."""
        start = self.starts.pop(job, None)
        if start is None:
            yield
            return
        for provider in start.seats:
            self._by_provider[provider].remove(start)
        try:
            yield
        finally:
            self.starts[job] = start
            for provider in start.seats:
                self._by_provider[provider].append(start)

    def of_queue(self, queue: str) -> int:
        """How many of the queue are planned."""
        return self._by_queue.get(queue, 0)

    def on(self, provider: str) -> list[PlannedStart]:
        return self._by_provider.get(provider, [])

    def providers(self) -> Iterator[str]:
        return iter(self._by_provider)
