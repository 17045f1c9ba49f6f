"""QEMU as a transient unit of the machine's systemd, which limits it and outlives sbatchd."""

from __future__ import annotations

import contextlib
from typing import Any

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.systemd.bus import SERVICE, UNIT, CallError, SystemdBus
from lavalite.sbatchd.systemd.units import Property, cpu_mask
from lavalite.sbatchd.vm.files import LOG, last_line
from lavalite.sbatchd.vm.runners import Place, begin_command
from lavalite.sbatchd.vm.wanted import MIB, Wanted

SLICE = "lavalite-vms.slice"
OVERHEAD_BYTES = 512 * MIB
"""What QEMU needs on top of its guest's memory: code that emulation keeps, buffers, its own heap."""
STOP_MICROSECONDS = 5_000_000
POLL_SECONDS = 0.1
END_SECONDS = 20.0
DEVICES = (("/dev/net/tun", "rw"), ("/dev/kvm", "rw"))
GONE = ("inactive", "failed")


def unit_properties(place: Place, wanted: Wanted) -> list[Property]:
    """All of the machine's unit."""
    command, log = begin_command(place), str(place.folder / LOG)
    return [
        ("Description", "s", f"LavaLite logical host {place.name.host}"),
        ("Type", "s", "exec"),
        ("Slice", "s", SLICE),
        # Kept after a failure, so that it can be said why, until it is started anew or removed.
        ("CollectMode", "s", "inactive"),
        ("ExecStart", "a(sasb)", [[command[0], command, False]]),
        ("StandardInput", "s", "null"),
        ("StandardOutputFileToAppend", "s", log),
        ("StandardErrorFileToAppend", "s", log),
        ("KillMode", "s", "control-group"),
        ("TimeoutStopUSec", "t", STOP_MICROSECONDS),
        ("OOMPolicy", "s", "kill"),
        ("NoNewPrivileges", "b", True),
        ("DevicePolicy", "s", "closed"),
        ("DeviceAllow", "a(ss)", [list(each) for each in DEVICES]),
        *limits(wanted),
    ]


def limits(wanted: Wanted) -> list[Property]:
    """What may change while it runs."""
    found: list[Property] = [
        ("CPUQuotaPerSecUSec", "t", wanted.cpu_milli * 1000),
        ("MemoryMax", "t", wanted.memory_bytes + OVERHEAD_BYTES),
        ("MemorySwapMax", "t", 0),
    ]
    if wanted.cores:
        found.append(("AllowedCPUs", "ay", cpu_mask(wanted.cores)))
    return found


class UnitRunner:
    """The contract is runners.Runner. Needs root, and systemd as process 1."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bus: SystemdBus | None = None

    async def start(self, place: Place, wanted: Wanted) -> None:
        await self._reset(place)
        await self._ask(place, "started", lambda bus: bus.start(place.name.unit, unit_properties(place, wanted)))

    async def limit(self, place: Place, wanted: Wanted) -> None:
        await self._ask(place, "limited", lambda bus: bus.change(place.name.unit, limits(wanted)))

    async def runs(self, place: Place) -> bool:
        return await self._state(place) not in GONE

    async def how_ended(self, place: Place) -> str:
        bus = await self._connected()
        try:
            result = await bus.property(place.name.unit, SERVICE, "Result")
            status = await bus.property(place.name.unit, SERVICE, "ExecMainStatus")
        except CallError:
            return last_line(place.folder / LOG)
        if result in ("signal", "core-dump"):
            return f"killed by signal {status}"
        return "it took more memory than it has" if result == "oom-kill" else last_line(place.folder / LOG)

    async def kill(self, place: Place) -> None:
        bus = await self._connected()
        deadline = self._clock.monotonic() + END_SECONDS
        while await self._state(place) not in GONE:
            try:
                await bus.manager("StopUnit", "ss", place.name.unit, "replace")
            except CallError as error:
                if error.name != "NoSuchUnit":
                    raise LavaLiteError(f"{place.name.unit} cannot be stopped: {error}") from None
            if self._clock.monotonic() > deadline:
                hint = f"See `systemctl status {place.name.unit}`."
                raise LavaLiteError(f"{place.name.unit} does not end", hint=hint)
            await self._clock.sleep(POLL_SECONDS)
        await self._reset(place)

    async def close(self) -> None:
        if self._bus:
            await self._bus.close()
        self._bus = None

    async def _state(self, place: Place) -> str:
        bus = await self._connected()
        # Before its start has had its turn a unit is inactive, as one that is over; but there is a job. Looked for
        # first: it may end between the two looks.
        with contextlib.suppress(CallError):
            if (await bus.property(place.name.unit, UNIT, "Job"))[0]:
                return "activating"
        return (await bus.active_states(place.name.unit)).get(place.name.unit, "inactive")

    async def _reset(self, place: Place) -> None:
        """A unit that failed would stand in the way of the next of its name."""
        bus = await self._connected()
        with contextlib.suppress(CallError):  # there is none
            await bus.manager("ResetFailedUnit", "s", place.name.unit)

    async def _ask(self, place: Place, what: str, ask: Any) -> None:
        try:
            await ask(await self._connected())
        except CallError as error:
            raise LavaLiteError(f"{place.name.unit} cannot be {what}: {error}", code="systemd") from None

    async def _connected(self) -> SystemdBus:
        """Raises UnreachableError."""
        if self._bus is None:
            bus = SystemdBus(lambda unit, state: None, lambda unit, result: None, self._lost)
            await bus.connect()
            self._bus = bus
        return self._bus

    def _lost(self) -> None:
        self._bus = None
