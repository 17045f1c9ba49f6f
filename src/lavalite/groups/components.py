"""Components as they register with a planner: what each of their groups needs, and what runs in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavalite.base.errors import UnknownNameError
from lavalite.groups.requirements import read_ask


@dataclass(slots=True, frozen=True)
class Component:
    """`run` is empty where the caller starts its processes itself."""

    name: str
    requirements: Mapping[str, Any]
    constraints: Mapping[str, Any]
    run: Mapping[str, Any]
    drain_seconds: int

    def resources(self, *, with_run: bool) -> dict[str, Any]:
        """RESOURCES of lavalite.providers.base, for one group."""
        found = {**self.requirements, "constraints": dict(self.constraints)}
        return found | {"run": dict(self.run)} if with_run and self.run else found


class Components:
    """Those that registered with this planner. It is asked anew after a restart: groups are what is durable."""

    def __init__(self) -> None:
        self._known: dict[str, Component] = {}

    def register(
        self,
        name: str,
        requirements: Mapping[str, Any],
        constraints: Mapping[str, Any] | None,
        command: Sequence[str] | None,
        environment: Mapping[str, str] | None,
        drain_seconds: int,
        image: str = "",
    ) -> Component:
        """Again is to change it. Raises InputError."""
        run: dict[str, Any] = {}
        if command:
            run = {"command": list(command), "environment": dict(environment or {}), "drain_seconds": drain_seconds}
            run |= {"image": image} if image else {}
        component = Component(name, dict(requirements), dict(constraints or {}), run, drain_seconds)
        read_ask(name or " ", component.resources(with_run=True))
        self._known[name] = component
        return component

    def of(self, name: str) -> Component | None:
        return self._known.get(name)

    def known(self, name: str) -> Component:
        """Raises UnknownNameError."""
        if (found := self._known.get(name)) is None:
            hint = "Call register_component first."
            raise UnknownNameError(f"component {name[:80]!r} has not registered here", hint=hint)
        return found
