"""What other distributions register for us under an entry point group. Looked up once; loaded only when asked to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

POLICIES_GROUP = "lavalite.policies"


@cache
def registered(group: str) -> dict[str, Callable[[], Any]]:
    """Name → how to load it. Nothing is imported by asking."""
    return {point.name: point.load for point in entry_points(group=group)}
