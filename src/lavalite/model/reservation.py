"""Reservations: amounts on some nodes that are kept for some users during some time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from lavalite.model.job import Amount, Name
from lavalite.model.resources import Stored

Positive = Annotated[Amount, Field(gt=0)]
_OF_GROUPS = ("group", "component", "drained")
_RECURRING = ("every", "zone", "first", "until", "later")


class Reservation(Stored):
    """What is stored under `reservations/NAME`. Never changed, but for the time of one that recurs.

    `amounts` are kept on each of `nodes`, per kind in the kind's unit; of GPUs whole ones, whichever are free then.
    `start` and `end` are seconds since the Unix epoch. Unused for `timeout_seconds` after its start, it ends early.

    One that recurs `every` day, weekday or week by the clock of `zone` is at its present or next time; `later` holds
    the starts of those after that, each as long as this one, and `first` the one that it began with.
    """

    name: Name
    owner: str
    users: list[str] = []
    pool: str = ""
    amounts: dict[str, Positive]
    nodes: list[str] = Field(min_length=1)
    start: float
    end: float
    timeout_seconds: int | None = None
    made_at: float = 0.0
    every: str = ""
    zone: str = ""
    first: float | None = None
    until: float | None = None
    later: list[float] = []
    group: bool = False
    """Whether it is a compute group (lavalite.groups), for one job at a time."""
    component: str = ""
    """Of a compute group: the only component whose jobs it lets in; empty: those of any."""
    drained: bool = False
    """Whether nothing new starts in it. What is kept stays so."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """One that does not recur, and is no compute group, is written as the first release did."""
        written: dict[str, Any] = write(self)
        unsaid = {*(() if self.every else _RECURRING), *(name for name in _OF_GROUPS if not written[name])}
        return {name: value for name, value in written.items() if name not in unsaid}

    def lets_in(self, user: str) -> bool:
        return user == self.owner or user in self.users

    def overlaps(self, start: float, end: float) -> bool:
        """Whether it holds anything at any time from `start` up to, but not at, `end`."""
        return next(self.spans(start, end), None) is not None

    def spans(self, start: float, end: float) -> Iterator[tuple[float, float]]:
        """Its times, from their start to their end, that are partly between these."""
        if self.start < end and start < self.end:
            yield self.start, self.end
        length_seconds = self.end - self.start
        for at in self.later[bisect_right(self.later, start - length_seconds) :]:
            if at >= end:
                return
            yield at, at + length_seconds

    def after(self) -> Reservation | None:
        """What it is once its present time is over; None if that was its last."""
        if not self.later:
            return None
        end = self.later[0] + self.end - self.start
        return self.model_copy(update={"start": self.later[0], "end": end, "later": self.later[1:]})
