"""A running machine becomes as large as is wanted: CPUs and memory come and go over QMP. disks.py has the disks.

Each step looks first and does what is missing, so that it may be interrupted anywhere and done again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.vm.command import SPARE_DEVICE, processors, spare_bytes
from lavalite.sbatchd.vm.qmp import PERIPHERAL, Qmp, ask_back, until
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import MIB, Wanted


@dataclass(slots=True, frozen=True)
class Resize:
    """One machine's. `runs`: whether the guest does, and can be asked for things."""

    qmp: Qmp
    settings: VmSettings
    clock: Clock
    runs: bool

    async def to(self, wanted: Wanted) -> None:
        """Raises LavaLiteError with what the guest or QEMU does not give."""
        await self.cpus(wanted.cpus)
        await self.memory(wanted.memory_bytes)

    # --- CPUs

    async def cpus(self, count: int) -> None:
        listed = await self.qmp.call("query-hotpluggable-cpus")
        absent, present = processors(listed)
        if count > len(listed):
            raise LavaLiteError(
                f"the machine was started for at most {len(listed)} CPUs, not {count}", hint="Start the host anew."
            )
        for device in absent[: max(count - len(present), 0)]:
            await self.qmp.call("device_add", device)
        for path in reversed(present[count:]):
            await ask_back(self.qmp, path)
        if count < len(present):
            await self._until(lambda: self._has_cpus(count), "the guest does not let go of its CPUs")

    async def _has_cpus(self, count: int) -> bool:
        _, present = processors(await self.qmp.call("query-hotpluggable-cpus"))
        return len(present) <= count

    # --- memory

    async def memory_held(self) -> int:
        summary = await self.qmp.call("query-memory-size-summary")
        return int(summary["base-memory"]) + int(summary.get("plugged-memory", 0))

    async def memory(self, wanted_bytes: int) -> None:
        summary = await self.qmp.call("query-memory-size-summary")
        base = int(summary["base-memory"])
        if wanted_bytes // MIB * MIB < base:
            hint = "Start the host anew."
            raise LavaLiteError(f"memory cannot shrink below the {base // MIB} MiB that it started with", hint=hint)
        spare = await self._spare()
        if spare is None:
            if wanted_bytes // MIB * MIB > base:
                raise LavaLiteError("the machine was started with all of its memory", hint="Start the host anew.")
            return
        asked = spare_bytes(wanted_bytes, base, int(spare["block-size"]))
        if asked > int(spare["max-size"]):
            most = (base + int(spare["max-size"])) // MIB
            raise LavaLiteError(f"the machine was started for at most {most} MiB", hint="Start the host anew.")
        if asked != int(spare["requested-size"]):
            path = f"{PERIPHERAL}/{SPARE_DEVICE}"
            await self.qmp.call("qom-set", {"path": path, "property": "requested-size", "value": asked})
        if self.runs:
            shrinks = asked < int(spare["size"])
            why = "the guest does not let go of its memory" if shrinks else "the guest does not take its memory"
            await self._until(lambda: self._has_spare(asked), why)

    async def _spare(self) -> dict[str, Any] | None:
        devices = await self.qmp.call("query-memory-devices")
        return next((each["data"] for each in devices if each["data"].get("id") == SPARE_DEVICE), None)

    async def _has_spare(self, asked: int) -> bool:
        spare = await self._spare()
        return spare is not None and int(spare["size"]) == asked

    async def _until(self, done: Callable[[], Awaitable[bool]], why: str) -> None:
        await until(self.clock, self.settings.vm_resize_seconds, done, why)
