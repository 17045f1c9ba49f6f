"""Many runs of one scenario, each with other settings: what a planner compares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lavalite.base.errors import InputError
from lavalite.simulate.report import Report
from lavalite.simulate.run import Simulation
from lavalite.simulate.scenario import read_scenario

MOST_RUNS = 1000


@dataclass(slots=True, frozen=True)
class Swept:
    """One run: what was set for it, and how it went."""

    settings: dict[str, Any]
    report: Report


def parse_setting(text: str, option: str) -> tuple[str, list[Any]]:
    """`policy=best-fit,spread` as a name and its values. Raises InputError."""
    name, equals, values = text.partition("=")
    if not equals or not name or not values:
        raise InputError(f"{text} is no NAME=VALUE", field=option, hint=f"Write it as {option} policy=best-fit.")
    return name, [_value(word) for word in values.split(",")]


def _value(word: str) -> Any:
    """As YAML reads it: 100 is a number, 2m is text."""
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return word
    return value if isinstance(value, bool | int) else word


def sweep(
    path: Path, fixed: dict[str, Any], swept: Sequence[tuple[str, list[Any]]], until: float | None
) -> Iterator[Swept]:
    """Each combination in turn, the last name fastest. Raises InputError before the first where one is wrong."""
    names = [name for name, _ in swept]
    combinations = [dict(zip(names, values, strict=True)) for values in product(*(values for _, values in swept))]
    if len(combinations) > MOST_RUNS:
        hint = "Leave some values out."
        raise InputError(
            f"that is {len(combinations)} runs, and {MOST_RUNS} are the most", field="--sweep", hint=hint
        )
    scenarios = [read_scenario(path, {**fixed, **settings}) for settings in combinations]
    for settings, scenario in zip(combinations, scenarios, strict=True):
        scenario.top.events = False
        run = Simulation(scenario, lambda line: None, lambda snapshot: None)
        limit = until if until is not None else scenario.top.until
        yield Swept(settings, run.run(limit))
