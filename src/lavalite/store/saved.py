"""What a backup holds, whichever store it is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lavalite.base.errors import InputError
from lavalite.store.base import Record


@dataclass(slots=True, frozen=True)
class Saved:
    """All records of a saved store, in key order, and the revision that it was at."""

    kind: str
    revision: int
    records: list[Record]


def damaged(path: Path, why: str) -> InputError:
    """`why` follows `PATH is `."""
    hint = "Take another one: this one was cut off or changed, or another program wrote it."
    return InputError(f"{path} is {why}", code="damaged", hint=hint)
