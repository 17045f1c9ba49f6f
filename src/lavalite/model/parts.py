"""Parts of a job: sorts of tasks that ask for different things, and start together or not at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from pydantic import Field, field_validator

from lavalite.model.request import MAX_AMOUNT, Request
from lavalite.model.resources import Stored

LEAST_PARTS, MOST_PARTS = 2, 16
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")


class Part(Stored):
    """So many tasks, each of which needs `request`. Without a command they run the job's."""

    name: str
    tasks: int = Field(default=1, ge=1, le=MAX_AMOUNT)
    request: Request = Request()
    command: list[str] | None = Field(default=None, min_length=1, max_length=4096)

    @field_validator("name")
    @classmethod
    def _goes_into_names_of_variables(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name[:40]!r} is no name of a part: write up to 32 letters, digits and _, a letter first"
            )
        return name


def fault_of(parts: Sequence[Part], most_tasks: int) -> str:
    """Why no job has such parts; empty if one may."""
    if not LEAST_PARTS <= len(parts) <= MOST_PARTS:
        return f"a job with parts has from {LEAST_PARTS} to {MOST_PARTS} of them, and here {_are(len(parts))}"
    name, times = Counter(part.name for part in parts).most_common(1)[0]
    if times > 1:
        return f"{times} parts have the name {name}, and a part is told from the others by it"
    tasks = sum(part.tasks for part in parts)
    if tasks > most_tasks:
        return f"the parts have {tasks} tasks, which are to start together, and such a job has at most {most_tasks}"
    return ""


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count or 'none'}"
