"""A running machine becomes what is wanted: CPUs, memory and disks come and go over QMP.

Each step looks first and does what is missing, so that it may be interrupted anywhere and done again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.vm import files
from lavalite.sbatchd.vm.command import (
    GUEST,
    SPARE_DEVICE,
    block_name,
    key_name,
    plug,
    port_name,
    processors,
    spare_bytes,
)
from lavalite.sbatchd.vm.guest import let_go
from lavalite.sbatchd.vm.qmp import Qmp, QmpError
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import DISKS_MOST, MIB, SERIAL_PREFIXES, Disk, Wanted

PERIPHERAL = "/machine/peripheral"
POLL_SECONDS = 0.2


@dataclass(slots=True, frozen=True)
class Resize:
    """One machine's. `runs`: whether the guest does, and can be asked for things."""

    qmp: Qmp
    folder: Path
    settings: VmSettings
    clock: Clock
    runs: bool

    async def to(self, wanted: Wanted) -> None:
        """Raises LavaLiteError with what the guest or QEMU does not give."""
        await self.disks(wanted.disks)
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
            await self._ask_back(path)
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

    # --- disks

    async def disks(self, wanted: list[Disk]) -> None:
        blocks = await self._blocks()
        serials = {disk.serial for disk in wanted}
        left = {name.removeprefix("block-") for name in blocks if name.startswith("block-")}
        for serial in sorted((left | await asyncio.to_thread(files.local_disks, self.folder)) - serials):
            await self._unplug(serial)
            await asyncio.to_thread(files.forget_disk, self.folder, serial)
        for disk in wanted:
            await self._plug(disk)

    async def _plug(self, disk: Disk) -> None:
        await asyncio.to_thread(files.prepare_disk, self.folder, disk, self.settings.vm_user)
        steps = plug(disk, self.folder, await self._free_port(), self.settings.vm_reconnect_seconds)
        try:
            if steps.credentials and key_name(disk.serial) not in await self.qmp.names("/objects"):
                await self.qmp.call("object-add", steps.credentials)
            if block_name(disk.serial) not in await self._blocks():
                await self.qmp.call("blockdev-add", steps.block)
            elif not disk.address:
                await self._lengthen(disk)
            if disk.serial not in await self.qmp.names(PERIPHERAL):
                if not steps.device["bus"]:
                    raise LavaLiteError("the machine has no slot left for another disk")
                await self.qmp.call("device_add", steps.device)
        except QmpError as error:
            where = f"{disk.address}:{disk.port}" if disk.address else "this node"
            raise LavaLiteError(f"the disk {disk.part} of {where} cannot be attached: {error}") from None

    async def _lengthen(self, disk: Disk) -> None:
        have = (await self._blocks())[block_name(disk.serial)]["image"]["virtual-size"]
        if have < disk.bytes:
            await self.qmp.call("block_resize", {"node-name": block_name(disk.serial), "size": disk.bytes})

    async def _unplug(self, serial: str) -> None:
        if serial in await self.qmp.names(PERIPHERAL):
            if self.runs:
                await let_go(self.folder / GUEST, serial, self.settings.vm_resize_seconds)
            await self._ask_back(serial)

            async def gone() -> bool:
                return serial not in await self.qmp.names(PERIPHERAL)

            await self._until(gone, f"the guest does not let go of its disk {serial}")
        if block_name(serial) in await self._blocks():
            await self.qmp.call("blockdev-del", {"node-name": block_name(serial)})
        if key_name(serial) in await self.qmp.names("/objects"):
            await self.qmp.call("object-del", {"id": key_name(serial)})

    async def _blocks(self) -> dict[str, Any]:
        return {each["node-name"]: each for each in await self.qmp.call("query-named-block-nodes", {"flat": True})}

    async def _free_port(self) -> str:
        """A slot with nothing in it; empty where there is none."""
        # Not query-pci: before the firmware has run it finds nothing behind a port.
        used = set()
        for name in await self.qmp.names(PERIPHERAL):
            if name.startswith(SERIAL_PREFIXES):
                bus = await self.qmp.call("qom-get", {"path": f"{PERIPHERAL}/{name}", "property": "parent_bus"})
                used.add(str(bus).rpartition("/")[2])
        return next((port for port in map(port_name, range(DISKS_MOST)) if port not in used), "")

    # --- patience

    async def _ask_back(self, device: str) -> None:
        """To be asked twice is no error."""
        with contextlib.suppress(QmpError):
            await self.qmp.call("device_del", {"id": device})

    async def _until(self, done: Callable[[], Awaitable[bool]], why: str) -> None:
        deadline = self.clock.monotonic() + self.settings.vm_resize_seconds
        while not await done():
            if self.clock.monotonic() > deadline:
                raise LavaLiteError(f"{why} within {self.settings.vm_resize_seconds:.0f} s")
            await self.clock.sleep(POLL_SECONDS)
