"""By what compute groups may be filtered when they are listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavalite.base.errors import Fault, InputError
from lavalite.groups.views import STATES

AMOUNTS = ("gpu_milli", "cpu_milli", "memory_bytes")
FILTERS = ("state", "component", "node", "pool", "model", *AMOUNTS)
"""Amounts are at least so much; the others are equal."""


def read_filters(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Raises InputError with all faults."""
    if not isinstance(filters, Mapping):
        raise InputError(f"a mapping is wanted, not a {type(filters).__name__}", field="filters")
    faults = [
        Fault("bad_input", "there is no such filter", f"filters.{str(name)[:40]}", f"There are {', '.join(FILTERS)}.")
        for name in filters
        if name not in FILTERS
    ]
    for name in set(filters) & set(FILTERS):
        kind, what = (int, "a number") if name in AMOUNTS else (str, "text")
        if type(filters[name]) is not kind and not (name == "component" and filters[name] is None):
            faults.append(
                Fault("bad_input", f"it is {what}, not a {type(filters[name]).__name__}", f"filters.{name}")
            )
    if "state" in filters and filters["state"] not in STATES:
        faults.append(Fault("bad_input", "it is no state", "filters.state", f"There are {', '.join(STATES)}."))
    if faults:
        raise InputError(faults=faults)
    return dict(filters)


def passes(group: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a GROUP of lavalite.providers.base is meant by the filters, as they were read."""
    for name, value in wanted.items():
        if name in AMOUNTS:
            if group["resources"].get(name, 0) < value:
                return False
        elif name == "model":
            if value not in {gpu.get("model") for gpu in group["resources"].get("gpus", [])}:
                return False
        elif (group.get(name) or "") != (value or ""):
            return False
    return True
