"""The disks of a running machine: they come, go and take each other's place over QMP.

    plugged     all that is wanted is there, what is not wanted leaves; of two that share a place, the old one
    moved       copies onto those that take a place; where the old one is not wanted, the new one goes on alone

        guest ──► device, with the serial of the place ──► [copy-NEW, a mirror job] ──► block-OLD
                                                                          └───────────► block-NEW

Each step looks first and does what is missing, so that it may be interrupted anywhere and done again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.roles import NotYetError
from lavalite.sbatchd.vm import files, places
from lavalite.sbatchd.vm.command import (
    BLOCK,
    COPY,
    GUEST,
    as_long_as,
    block_name,
    copy_name,
    in_full,
    key_name,
    plug,
    port_name,
    wire_name,
)
from lavalite.sbatchd.vm.guest import let_go
from lavalite.sbatchd.vm.places import Places, Taken, follows, place_of
from lavalite.sbatchd.vm.qmp import PERIPHERAL, Qmp, QmpError, ask_back, until
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import DISKS_MOST, SERIAL_PREFIXES, Disk

READY, OVER = "ready", "concluded"
"""Of a job: both disks get what is written; it has ended, well or not."""


@dataclass(slots=True, frozen=True)
class Found:
    """What QEMU has. `behind`: the disk behind each device; of one that is copied, the old one. All are serials."""

    nodes: frozenset[str]
    behind: dict[str, str]
    jobs: dict[str, dict[str, Any]]
    """By the disk that is copied onto, as query-jobs says."""


def found_in(nodes: list[str], blocks: list[dict[str, Any]], jobs: list[dict[str, Any]], taken: Places) -> Found:
    """From query-named-block-nodes, query-block and query-jobs."""
    behind = {}
    for block in blocks:
        device = str(block.get("qdev", "")).removeprefix(f"{PERIPHERAL}/").partition("/")[0]
        node = str(block.get("inserted", {}).get("node-name", ""))
        if not device.startswith(SERIAL_PREFIXES):
            continue
        if node.startswith(BLOCK):
            behind[device] = node.removeprefix(BLOCK)
        elif node.startswith(COPY):
            copied = taken.get(node.removeprefix(COPY))
            behind[device] = copied.before if copied else device
    return Found(
        frozenset(name.removeprefix(BLOCK) for name in nodes if name.startswith(BLOCK)),
        behind,
        {job["id"].removeprefix(COPY): job for job in jobs if job["id"].startswith(COPY)},
    )


@dataclass(slots=True, frozen=True)
class Disks:
    """One machine's. `runs`: whether the guest does, and can be asked for things."""

    qmp: Qmp
    folder: Path
    settings: VmSettings
    clock: Clock
    runs: bool

    async def plugged(self, wanted: list[Disk]) -> None:
        """Raises LavaLiteError with what the guest or QEMU does not give."""
        taken, serials = await self._places(), {disk.serial for disk in wanted}
        found = await self._found(taken)
        _whole(wanted, found, taken)
        for serial, job in sorted(found.jobs.items()):
            if serial not in serials:
                await self._stop(serial)
            elif serial in found.behind.values() and job["status"] == OVER:
                await self._dismiss(serial)
        following = [disk for disk in wanted if follows(disk, wanted, taken, found.behind)]
        heirs = {place_of(disk, taken) for disk in following}
        for device, serial in sorted(found.behind.items()):
            if serial not in serials and device not in heirs:
                await self._unplug(device)
                await self._close(serial)
        found = await self._found(taken)
        there = found.nodes | await asyncio.to_thread(files.local_disks, self.folder)
        for serial in sorted(there - serials - set(found.behind.values())):
            await self._forget(serial)
        kept = {serial: each for serial, each in taken.items() if serial in serials}
        for disk in following:
            if disk.serial in kept and found.jobs.get(disk.serial, {}).get("status") != READY:
                kept[disk.serial] = replace(kept[disk.serial], whole=False)
        for serial, each in kept.items():
            if serial in found.behind.values() and each.before not in serials:
                kept[serial] = replace(each, before="")
        if kept != taken:
            await self._write(kept)
        for disk in wanted:
            if disk not in following:
                await self._plug(disk, found, kept)

    async def moved(self, wanted: list[Disk]) -> None:
        """Returns when both disks of each place get whatever is written, or the new one alone where that is wanted.

        Raises NotYetError while one is copied, LavaLiteError where that fails: the guest goes on with the old one.
        """
        taken, serials = await self._places(), {disk.serial for disk in wanted}
        found = await self._found(taken)
        following = [disk for disk in wanted if follows(disk, wanted, taken, found.behind)]
        for disk in following:
            place = place_of(disk, taken)
            if place not in found.behind:
                raise LavaLiteError(f"the disk {disk.part} is to take the place of one that is not there")
            if found.jobs.get(disk.serial, {}).get("status") == OVER:
                await self._stop(disk.serial)  # it failed: from the start, by a connection of its own
            if found.jobs.get(disk.serial, {}).get("status", OVER) == OVER:
                taken[disk.serial] = Taken(place, found.behind[place])
                await self._write(taken)
                await self._copy(disk, found.behind[place])
        for disk in following:
            await self._demand_whole(disk)
            taken[disk.serial] = replace(taken[disk.serial], whole=True)
            await self._write(taken)
        for disk in following:
            before = taken[disk.serial].before
            if before not in serials:
                await self._take_over(disk)
                await self._lengthen(disk)
                taken[disk.serial] = replace(taken[disk.serial], before="")
                await self._write(taken)
                await self._forget(before)

    async def not_following(self, wanted: list[Disk]) -> str:
        """Why a disk that takes another one's place does not get any more what is written; empty where all do."""
        taken = await self._places()
        found = await self._found(taken)
        for disk in wanted:
            job = found.jobs.get(disk.serial, {})
            if follows(disk, wanted, taken, found.behind) and job.get("status") != READY:
                if disk.serial in taken:
                    taken[disk.serial] = replace(taken[disk.serial], whole=False)
                    await self._write(taken)
                return _fails(disk, job)
        return ""

    # --- one disk comes, and goes

    async def _plug(self, disk: Disk, found: Found, taken: Places) -> None:
        name = place_of(disk, taken)
        await self._open(disk)
        try:
            if disk.serial in found.nodes:
                await self._lengthen(disk)
            if name not in await self.qmp.names(PERIPHERAL):
                steps = plug(disk, self.folder, await self._free_port(), self.settings.vm_reconnect_seconds, name)
                if not steps.device["bus"]:
                    raise LavaLiteError("the machine has no slot left for another disk")
                await self.qmp.call("device_add", steps.device)
        except QmpError as error:
            raise _cannot(disk, error) from None

    async def _open(self, disk: Disk, length: int = 0) -> None:
        """QEMU has it, and no guest as yet. It is cut to `length` bytes, where that is said."""
        await asyncio.to_thread(files.prepare_disk, self.folder, disk, self.settings.vm_user)
        steps = plug(disk, self.folder, "", self.settings.vm_reconnect_seconds)
        try:
            if steps.credentials and key_name(disk.serial) not in await self.qmp.names("/objects"):
                await self.qmp.call("object-add", steps.credentials)
            if block_name(disk.serial) not in await self._blocks():
                block = as_long_as(steps.block, disk.serial, length) if length else steps.block
                await self.qmp.call("blockdev-add", block)
        except QmpError as error:
            raise _cannot(disk, error) from None

    async def _lengthen(self, disk: Disk) -> None:
        blocks = await self._blocks()
        if blocks[block_name(disk.serial)]["image"]["virtual-size"] >= disk.bytes:
            return
        if wire_name(disk.serial) in blocks:
            await self.qmp.call("blockdev-reopen", {"options": [in_full(disk.serial)]})
        # An export is as long as it is; of one that was cut the guest is told.
        if not disk.address or wire_name(disk.serial) in blocks:
            await self.qmp.call("block_resize", {"node-name": block_name(disk.serial), "size": disk.bytes})

    async def _unplug(self, device: str) -> None:
        if self.runs:
            await let_go(self.folder / GUEST, device, self.settings.vm_resize_seconds)
        await ask_back(self.qmp, device)

        async def gone() -> bool:
            return device not in await self.qmp.names(PERIPHERAL)

        await self._until(gone, f"the guest does not let go of its disk {device}")

    async def _close(self, serial: str) -> None:
        if block_name(serial) in await self._blocks():
            await self.qmp.call("blockdev-del", {"node-name": block_name(serial)})
        if key_name(serial) in await self.qmp.names("/objects"):
            await self.qmp.call("object-del", {"id": key_name(serial)})

    async def _forget(self, serial: str) -> None:
        """Of no guest any more: nothing that it is to be told yet is of use to anybody."""
        await self._tear(serial)  # or QEMU would wait for an export that is away, and its guest too
        await self._close(serial)
        await asyncio.to_thread(files.forget_disk, self.folder, serial)

    # --- and takes the place of another one

    async def _copy(self, disk: Disk, before: str) -> None:
        length = (await self._blocks())[block_name(before)]["image"]["virtual-size"]
        await self._open(disk, length)
        copy = {
            "job-id": copy_name(disk.serial),
            "device": block_name(before),
            "target": block_name(disk.serial),
            "sync": "full",
            "copy-mode": "write-blocking",
            "filter-node-name": copy_name(disk.serial),
            "auto-dismiss": False,  # so that it is known also afterwards how it ended
        }
        try:
            await self.qmp.call("blockdev-mirror", copy)
        except QmpError as error:
            await self._close(disk.serial)
            raise _cannot(disk, error) from None

    async def _demand_whole(self, disk: Disk) -> None:
        """However long it takes: where either end is away for long, the job ends by itself."""
        job = await self._job(disk.serial)
        if job.get("status", OVER) == OVER:
            await self._stop(disk.serial)
            raise LavaLiteError(_fails(disk, job))
        if job.get("status") != READY:
            raise NotYetError(f"the disk {disk.part} is being copied")

    async def _take_over(self, disk: Disk) -> None:
        await self.qmp.call("job-complete", {"id": copy_name(disk.serial)})

        async def over() -> bool:
            return await self._is_over(disk.serial)

        await self._until(over, f"QEMU does not go on with the disk {disk.part} alone")
        job = await self._job(disk.serial)
        if job.get("error"):
            await self._stop(disk.serial)
            raise LavaLiteError(_fails(disk, job))
        await self._dismiss(disk.serial)

    async def _stop(self, serial: str) -> None:
        """The copy onto this disk ends, and the guest goes on with the old one."""
        # What waits for it, the guest's own writes too, would wait for as long as an export may be away.
        await self._tear(serial)
        if not await self._is_over(serial):
            await self.qmp.call("job-cancel", {"id": copy_name(serial)})

        async def over() -> bool:
            return await self._is_over(serial)

        await self._until(over, f"the copy onto {serial} does not end")
        await self._dismiss(serial)
        await self._close(serial)

    async def _tear(self, serial: str) -> None:
        for node in (block_name(serial), wire_name(serial)):
            await self.qmp.yank(node)

    async def _dismiss(self, serial: str) -> None:
        if await self._job(serial):
            await self.qmp.call("job-dismiss", {"id": copy_name(serial)})

    async def _is_over(self, serial: str) -> bool:
        return bool((await self._job(serial)).get("status", OVER) == OVER)

    async def _job(self, serial: str) -> dict[str, Any]:
        return next((job for job in await self.qmp.call("query-jobs") if job["id"] == copy_name(serial)), {})

    # --- looks

    async def _found(self, taken: Places) -> Found:
        blocks, jobs = await self.qmp.call("query-block"), await self.qmp.call("query-jobs")
        return found_in(list(await self._blocks()), blocks, jobs, taken)

    async def _blocks(self) -> dict[str, Any]:
        return {each["node-name"]: each for each in await self.qmp.call("query-named-block-nodes", {"flat": True})}

    async def _places(self) -> Places:
        return await asyncio.to_thread(places.load, self.folder)

    async def _write(self, taken: Places) -> None:
        await asyncio.to_thread(places.save, self.folder, taken)

    async def _free_port(self) -> str:
        """A slot with nothing in it; empty where there is none."""
        # Not query-pci: before the firmware has run it finds nothing behind a port.
        used = set()
        for name in await self.qmp.names(PERIPHERAL):
            if name.startswith(SERIAL_PREFIXES):
                bus = await self.qmp.call("qom-get", {"path": f"{PERIPHERAL}/{name}", "property": "parent_bus"})
                used.add(str(bus).rpartition("/")[2])
        return next((port for port in map(port_name, range(DISKS_MOST)) if port not in used), "")

    async def _until(self, done: Callable[[], Any], why: str) -> None:
        await until(self.clock, self.settings.vm_resize_seconds, done, why)


def _whole(wanted: list[Disk], found: Found, taken: Places) -> None:
    """Raises LavaLiteError where one would be taken for all that there is, and is not: before anything else goes."""
    for disk in wanted:
        alone = disk.serial not in found.behind.values() and not follows(disk, wanted, taken, found.behind)
        if alone and disk.serial in taken and not taken[disk.serial].whole:
            before = taken[disk.serial].before
            raise LavaLiteError(f"the disk {disk.part} does not hold all that is on {before}, whose place it takes")


def _cannot(disk: Disk, error: QmpError) -> LavaLiteError:
    where = f"{disk.address}:{disk.port}" if disk.address else "this node"
    return LavaLiteError(f"the disk {disk.part} of {where} cannot be attached: {error}")


def _fails(disk: Disk, job: dict[str, Any]) -> str:
    why = str(job.get("error", "")) or "its copy has ended"
    return f"the disk {disk.part} does not take the place of {disk.mirrors or 'the one before it'}: {why}"
