"""`--affinity` and `--anti-affinity` of `lavalite submit`, as they are typed."""

from __future__ import annotations

import re
from typing import Any

from lavalite.base.errors import InputError
from lavalite.model.affinity import ITSELF, MAX_WEIGHT, USUAL_WEIGHT
from lavalite.model.job import MAX_AMOUNT

_HINT = "Write name=db, group=ml, job=12, job=self or label=rack:r1|r2; behind it ,within=rack and ,prefer=50."


def parse_affinity(text: str, *, anti: bool) -> dict[str, Any]:
    """`name=db,within=rack,prefer`, `label=rack:r1|r2,prefer=80`. Raises InputError."""
    option = "--anti-affinity" if anti else "--affinity"
    term: dict[str, Any] = {"anti": anti}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if key == "prefer" and not equals:
            term["weight"] = USUAL_WEIGHT
        elif not value:
            raise InputError(f"{part.strip() or 'nothing'} is no part of an affinity", field=option, hint=_HINT)
        elif key == "prefer":
            term["weight"] = _weight(value, option)
        elif key == "job":
            term["job"] = _job(value, option)
        elif key == "label":
            label, colon, values = value.partition(":")
            if not colon or not label or not values:
                raise InputError(f"{value} is no label with a value", field=option, hint=_HINT)
            term.setdefault("labels", {})[label] = values.split("|")
        elif key in ("name", "group", "within"):
            term[key] = value
        else:
            raise InputError(f"{key} is nothing that an affinity has", field=option, hint=_HINT)
    return term


def _weight(text: str, option: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_WEIGHT:
        hint = f"Write a number from 1 to {MAX_WEIGHT}."
        raise InputError(f"{text} is no weight of what is preferred", field=option, hint=hint)
    return int(text)


def _job(text: str, option: str) -> int:
    if text == "self":
        return ITSELF
    if not re.fullmatch(r"[0-9]{1,19}", text) or not 1 <= int(text) <= MAX_AMOUNT:
        raise InputError(f"{text} is no number of a job", field=option, hint="Write job=12, or job=self.")
    return int(text)
