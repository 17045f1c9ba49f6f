"""The unit of fence.py: that it runs, from this release, for this folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from lavalite.base.clock import Clock
from lavalite.sbatchd.systemd.bus import UNIT, CallError, SystemdBus
from lavalite.sbatchd.systemd.units import service_properties

GONE_SECONDS = 10.0
"""How long an older one may take to end."""
RETRY_SECONDS = 0.05


async def ensure_service(bus: SystemdBus, clock: Clock, unit: str, command: Sequence[str]) -> None:
    """Run `command` as a service that restarts; one with another command is replaced.

    Raises CallError, UnreachableError.
    """
    description = "LavaLite: " + " ".join(command)
    states = await bus.active_states(unit)
    if states.get(unit, "inactive") not in ("inactive", "failed"):
        same = await bus.property(unit, UNIT, "Description") == description
        if same and states[unit] == "active":
            return
        await bus.manager("StopUnit", "ss", unit, "replace")
    due = clock.boottime() + GONE_SECONDS
    while True:
        try:
            await bus.start(unit, service_properties(description, command))
            return
        except CallError as error:
            if error.name != "UnitExists" or clock.boottime() > due:
                raise
        with contextlib.suppress(CallError):
            await bus.manager("ResetFailedUnit", "s", unit)
        await clock.sleep(RETRY_SECONDS)
