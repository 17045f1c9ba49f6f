"""Reservations: amounts on some nodes that are kept for some users during some time."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lavalite.model.job import Amount, Name
from lavalite.model.resources import Stored

Positive = Annotated[Amount, Field(gt=0)]


class Reservation(Stored):
    """What is stored under `reservations/NAME`. Never changed: it is made, and it goes.

    `amounts` are kept on each of `nodes`, per kind in the kind's unit; of GPUs whole ones, whichever are free then.
    `start` and `end` are seconds since the Unix epoch. Unused for `timeout_seconds` after its start, it ends early.
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

    def lets_in(self, user: str) -> bool:
        return user == self.owner or user in self.users

    def overlaps(self, start: float, end: float) -> bool:
        """Whether it holds anything at any time from `start` up to, but not at, `end`."""
        return self.start < end and start < self.end
