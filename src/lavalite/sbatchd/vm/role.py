"""The role `vm`: a logical host as a virtual machine on its anchor.

    nothing ──► folder ──► QEMU, paused ──► its disks plugged ──► it runs ──► its ssh port answers: made
       ▲                                                             (disks take others' places)    │
       └───── folder gone ◄── process gone ◄── shut down, or switched off ◄─────── remove ◄─────────┘

Each step looks what is there and does the next one, so sbatchd may be killed between any two. A machine that has
ended is started again by the next `make`, from its own disk.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import InputError, LavaLiteError, UnreachableError
from lavalite.sbatchd.attach.roles import Made
from lavalite.sbatchd.vm import files, places
from lavalite.sbatchd.vm.accelerator import accelerator
from lavalite.sbatchd.vm.command import CONSOLE, CONSOLE_LOG, QMP, Machine
from lavalite.sbatchd.vm.disks import Disks
from lavalite.sbatchd.vm.images import find_image
from lavalite.sbatchd.vm.qmp import Qmp, connected
from lavalite.sbatchd.vm.resize import Resize
from lavalite.sbatchd.vm.runners import Place, Runner
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import VmName, Wanted, wanted
from lavalite.wire.frames import PartOrder

SSH_PORT = 22
SSH_GREETING = b"SSH-"
START_SECONDS = 20.0
"""Until QEMU answers after its start."""
LOOK_SECONDS = 0.5
CONNECT_SECONDS = 5.0
PAUSED = {
    "io-error": "a disk of it fails",
    "guest-panicked": "its kernel has crashed",
    "internal-error": "QEMU has failed",
    "shutdown": "it was shut down from within",
}

log = structlog.get_logger(__name__)


class VmRole:
    """Makes, removes and checks the virtual machines of one node."""

    def __init__(self, state_path: Path, settings: VmSettings, clock: Clock, runner: Runner) -> None:
        self._vms = state_path / "vms"
        self._settings, self._clock, self._runner = settings, clock, runner
        self._locks: dict[VmName, asyncio.Lock] = {}
        self._accelerator = ""

    async def make(self, order: PartOrder) -> Made:
        """Returns when the guest's ssh port answers. Raises LavaLiteError with why it cannot be as ordered, and
        NotYetError while a disk is copied.
        """
        want, name = wanted(order), VmName.of(order)
        async with self._lock(name):
            place = Place(name, name.folder(self._vms))
            if not await self._runner.runs(place):
                await self._start(place, want)
            await self._become(place, want)
            await self._move_disks(place, want)
            await self._wait_for_ssh(place, want)
            return Made(str(want.interface.ip), SSH_PORT, path=str(place.folder / CONSOLE))

    async def remove(self, order: PartOrder) -> None:
        """Nothing of it is left, whatever there was. Raises LavaLiteError."""
        name = VmName.of(order)
        async with self._lock(name):
            place = Place(name, name.folder(self._vms))
            if await self._runner.runs(place):
                await self._shut_down(place)
            await self._runner.kill(place)
            try:
                await asyncio.to_thread(files.remove, place.folder)
            except OSError as error:
                raise LavaLiteError(f"{place.folder} cannot be removed ({error.strerror})") from None
        self._locks.pop(name, None)

    async def check(self, order: PartOrder, made: Made) -> str:
        """Empty, or why it is lost."""
        name = VmName.of(order)
        place = Place(name, name.folder(self._vms))
        if not await self._runner.runs(place):
            how = await self._runner.how_ended(place)
            return f"the virtual machine of {name.host} has ended" + (f": {how}" if how else "")
        try:
            async with connected(place.folder / QMP) as qmp:
                status = await _status(qmp)
                want = wanted(order)
                if status == "running" and any(disk.mirrors for disk in want.disks):
                    disks = Disks(qmp, place.folder, self._settings, self._clock, runs=True)
                    if not self._lock(name).locked() and (reason := await disks.not_following(want.disks)):
                        return reason
        except UnreachableError:
            return "" if self._lock(name).locked() else f"the virtual machine of {name.host} does not answer"
        if status == "running" or self._lock(name).locked():
            return ""
        return f"the virtual machine of {name.host} stands still: {PAUSED.get(status, status)}"

    # --- steps of making

    async def _start(self, place: Place, want: Wanted) -> None:
        if not self._settings.vm_bridge:
            hint = "Name the bridge in sbatchd.conf, as vm_bridge."
            raise InputError("this node has no bridge for virtual machines", field="vm_bridge", hint=hint)
        image = await asyncio.to_thread(find_image, self._settings.images_path, want.image)
        self._accelerator = self._accelerator or await accelerator(self._settings)
        machine = Machine(place.name, place.folder, image, want, self._accelerator)
        try:
            await asyncio.to_thread(files.prepare, machine, self._settings)
        except OSError as error:
            raise LavaLiteError(f"{place.folder} cannot be written ({error.strerror})") from None
        log.info("a virtual machine starts", host=place.name.host, accelerator=self._accelerator)
        await self._runner.start(place, want)

    async def _become(self, place: Place, want: Wanted) -> None:
        """As large as it is to be, and running."""
        await self._wait_for_qemu(place)
        async with connected(place.folder / QMP) as qmp:
            status = await _status(qmp)
            if status == "shutdown":
                await qmp.call("system_reset")
                status = "prelaunch"
            runs = status == "running"
            await Disks(qmp, place.folder, self._settings, self._clock, runs).plugged(want.disks)
            resize = Resize(qmp, self._settings, self._clock, runs)
            grows = want.memory_bytes >= await resize.memory_held()
            # More before the guest takes it, less when it has let go of it: or the kernel would kill it.
            if grows:
                await self._runner.limit(place, want)
            await resize.to(want)
            if not grows:
                await self._runner.limit(place, want)
            if not runs:
                await qmp.call("cont")

    async def _move_disks(self, place: Place, want: Wanted) -> None:
        """While the guest runs: it may take as long as all that is on them takes to travel."""
        taken = await asyncio.to_thread(places.load, place.folder)
        if any(disk.mirrors or disk.serial in taken for disk in want.disks):
            async with connected(place.folder / QMP) as qmp:
                await Disks(qmp, place.folder, self._settings, self._clock, runs=True).moved(want.disks)

    async def _wait_for_qemu(self, place: Place) -> None:
        deadline = self._clock.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(UnreachableError):
                async with connected(place.folder / QMP):
                    return
            await self._still_runs(place)
            if self._clock.monotonic() > deadline:
                raise LavaLiteError(f"QEMU does not answer within {START_SECONDS:.0f} s of its start")
            await self._clock.sleep(LOOK_SECONDS / 5)

    async def _wait_for_ssh(self, place: Place, want: Wanted) -> None:
        address = str(want.interface.ip)
        deadline = self._clock.monotonic() + self._settings.vm_boot_seconds
        while not await _greets(address):
            await self._still_runs(place)
            if self._clock.monotonic() > deadline:
                raise LavaLiteError(
                    f"no ssh server answered at {address} within {self._settings.vm_boot_seconds:.0f} s",
                    hint=f"See what the guest says: {place.folder / CONSOLE_LOG} on its node.",
                )
            await self._clock.sleep(LOOK_SECONDS)

    async def _still_runs(self, place: Place) -> None:
        if not await self._runner.runs(place):
            how = await self._runner.how_ended(place) or files.last_line(place.folder / files.LOG)
            raise LavaLiteError(f"QEMU has ended{': ' + how if how else ''}", hint=f"See {place.folder / files.LOG}.")

    # --- and of removing

    async def _shut_down(self, place: Place) -> None:
        """As far as it goes: whoever does not listen is switched off."""
        with contextlib.suppress(LavaLiteError):
            async with connected(place.folder / QMP) as qmp:
                if await _status(qmp) == "running":
                    await qmp.call("system_powerdown")
                    deadline = self._clock.monotonic() + self._settings.vm_stop_seconds
                    while await _status(qmp) == "running" and self._clock.monotonic() < deadline:
                        await self._clock.sleep(LOOK_SECONDS)
                await qmp.call("quit")

    def _lock(self, name: VmName) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


async def _status(qmp: Qmp) -> str:
    return str((await qmp.call("query-status"))["status"])


async def _greets(address: str) -> bool:
    """Whether an ssh server speaks there."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(address, SSH_PORT)
            return await reader.readexactly(len(SSH_GREETING)) == SSH_GREETING
    except (OSError, TimeoutError, EOFError):
        return False
    finally:
        if writer:
            writer.close()
