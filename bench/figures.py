"""Figures: what a bench measured, beside what was aimed at. The last line of `--json` is a list of them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass


@dataclass(slots=True, frozen=True)
class Figure:
    """`peer` is what the same thing was measured against in the same run; `ok` is None where nothing was aimed at."""

    metric: str
    value: float
    unit: str
    target: str = ""
    ok: bool | None = None
    peer: str = ""


def at_most(metric: str, value: float, unit: str, limit: float, peer: str = "") -> Figure:
    return Figure(metric, round(value, 3), unit, f"<= {limit:g}", value <= limit, peer)


def at_least(metric: str, value: float, unit: str, limit: float, peer: str = "") -> Figure:
    return Figure(metric, round(value, 3), unit, f">= {limit:g}", value >= limit, peer)


def noted(metric: str, value: float, unit: str, peer: str = "") -> Figure:
    return Figure(metric, round(value, 3), unit, peer=peer)


def report(figures: list[Figure], *, as_json: bool) -> int:
    """Print them; 1 where a target was missed."""
    for figure in figures:
        verdict = {True: "ok", False: "MISSED", None: ""}[figure.ok]
        print(
            f"{figure.metric:<44}{figure.value:>10.3f} {figure.unit:<4}{figure.target:>8}  {verdict:<7}{figure.peer}"
        )
    if as_json:
        print(json.dumps([asdict(figure) for figure in figures]))
    return int(any(figure.ok is False for figure in figures))


def not_measured(reason: str, as_json: bool) -> int:
    """Say why there are no figures; that a machine lacks something is no missed target."""
    print(f"not measured: {reason}", file=sys.stderr)
    if as_json:
        print(json.dumps([]))
    return 0
