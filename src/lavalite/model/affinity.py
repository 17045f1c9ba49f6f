"""Where a task goes by what is there: near other jobs or apart from them, on nodes with or without some labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from lavalite.base.errors import InputError
from lavalite.model.resources import Stored
from lavalite.model.selector import Selector

MAX_TERMS = 16
MAX_WEIGHT = 100
USUAL_WEIGHT = 50
"""Of what is preferred, and no weight given."""
ITSELF = 0
"""As a job's number in its own terms: the job itself."""

Subject = tuple[str, int | str]
"""Whose tasks are meant: ("job", 12), ("name", "db") or ("group", "research")."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Values = Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], BeforeValidator(_as_list)]


class Affinity(Stored):
    """One term. Just one of `job` (0: the job itself), `name`, `group`, `labels` and `nodes` says what it is about.

    Near tasks of such jobs, or with `anti` apart from them, is: on the same node, or with `within` on a node that has
    the same value of that label. Of `labels` a node must have all, or with `anti` not all; a list means any of them.
    `nodes` are names of nodes, or patterns of such: it must be one of those, or with `anti` none.
    What has no `weight` is demanded; with one, from 1 to 100, it is preferred.
    """

    job: int | None = Field(default=None, ge=0)
    name: str = Field(default="", max_length=128)
    group: str = Field(default="", max_length=128)
    labels: dict[str, Values] = Field(default={}, max_length=16)
    nodes: Values = Field(default=[], max_length=256)
    anti: bool = False
    within: str = Field(default="", max_length=63)
    weight: int | None = Field(default=None, ge=1, le=MAX_WEIGHT)

    @model_validator(mode="after")
    def _about_one_thing(self) -> Affinity:
        named = [self.job is not None, *map(bool, (self.name, self.group, self.labels, self.nodes))]
        if sum(named) != 1:
            raise ValueError("an affinity is to a job, a name, a group, labels or nodes: just one of them")
        if self.labels and self.within:
            raise ValueError("an affinity to labels has no within: the node itself has them, or has not")
        if self.nodes and self.within:
            raise ValueError("an affinity to nodes has no within: it is about those alone")
        try:
            self.selector()
        except InputError as error:
            raise ValueError(f"{error.fault.message}. {error.fault.hint}") from error
        return self

    @property
    def demanded(self) -> bool:
        return self.weight is None

    def subject(self, job_id: int) -> Subject:
        """Whose tasks it is about, in a term of that job; there are none where it is about labels."""
        if self.job is not None:
            return "job", self.job or job_id
        return ("name", self.name) if self.name else ("group", self.group)

    def selector(self) -> Selector | None:
        """Which nodes are meant, by labels or by name; None where it is about jobs."""
        if self.nodes:
            return Selector.parse(list(self.nodes))
        return Selector.parse(dict(self.labels)) if self.labels else None

    def text(self) -> str:
        """`near jobs named db within one rack`, `rather apart from itself (50)`: for people."""
        about = {"name": f"jobs named {self.name}", "group": f"jobs of group {self.group}"}
        if selector := self.selector():
            words = f"{'not ' if self.anti else ''}on nodes {selector.spelled()}"
        else:
            whom = "itself" if self.job == ITSELF else f"job {self.job}" if self.job else about[self.subject(0)[0]]
            within = f" within one {self.within}" if self.within else ""
            words = f"{'apart from' if self.anti else 'near'} {whom}{within}"
        return words if self.weight is None else f"rather {words} ({self.weight})"
