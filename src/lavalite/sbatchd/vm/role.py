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
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import InputError, LavaLiteError, UnreachableError
from lavalite.sbatchd.attach.attachments import is_free
from lavalite.sbatchd.attach.roles import Made
from lavalite.sbatchd.vm import files, handover, places
from lavalite.sbatchd.vm.accelerator import accelerator
from lavalite.sbatchd.vm.command import CONSOLE, CONSOLE_LOG, QMP, Machine
from lavalite.sbatchd.vm.disks import Disks
from lavalite.sbatchd.vm.handover import Listening, Receiving, Sending
from lavalite.sbatchd.vm.hardware import Built, Hardware, as_built, built_of, hardware, hardware_of
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

    def __init__(
        self,
        state_path: Path,
        settings: VmSettings,
        clock: Clock,
        runner: Runner,
        ports: Iterable[int] = (),
        usable: Callable[[int], bool] = is_free,
    ) -> None:
        """`ports`: of this node's exports; machines that come here have some. `usable`: whether one is free."""
        self._ports, self._usable = tuple(ports), usable
        self._vms = state_path / "vms"
        self._settings, self._clock, self._runner = settings, clock, runner
        self._locks: dict[VmName, asyncio.Lock] = {}
        self._accelerator = ""
        self._newest: dict[VmName, int] = {}

    def overtaken(self, order: PartOrder) -> None:
        """What is waited for may not be wanted any more."""
        with contextlib.suppress(InputError):
            name = VmName.of(order)
            self._newest[name] = max(self._newest.get(name, 0), order.version)

    async def make(self, order: PartOrder) -> Made:
        """Returns when the guest's ssh port answers. Raises LavaLiteError with why it cannot be as ordered, and
        NotYetError while a disk is copied.
        """
        want, name = wanted(order), VmName.of(order)
        async with self._lock(name):
            place = Place(name, name.folder(self._vms))
            if want.incoming:
                return await self._receive(place, want)
            if want.outgoing:
                return await self._send(place, want, order.version)
            await self._arrive(place)
            if not await self._runner.runs(place):
                await self._start(place, want)
            await self._become(place, want)
            await self._move_disks(place, want)
            await self._wait_for_ssh(place, want)
            async with connected(place.folder / QMP) as qmp:
                built = await hardware_of(qmp, place.folder, want.disks)
            return Made(str(want.interface.ip), SSH_PORT, device=built, path=str(place.folder / CONSOLE))

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
        self._newest.pop(name, None)

    async def check(self, order: PartOrder, made: Made) -> str:
        """Empty, or why it is lost."""
        name, want = VmName.of(order), wanted(order)
        place = Place(name, name.folder(self._vms))
        if want.outgoing:
            return ""  # handed over, so nothing of it can be lost here
        if not await self._runner.runs(place):
            how = await self._runner.how_ended(place)
            return f"the virtual machine of {name.host} has ended" + (f": {how}" if how else "")
        try:
            async with connected(place.folder / QMP) as qmp:
                status = await _status(qmp)
                if status == "running" and any(disk.mirrors for disk in want.disks):
                    disks = Disks(qmp, place.folder, self._settings, self._clock, runs=True)
                    if not self._lock(name).locked() and (reason := await disks.not_following(want.disks)):
                        return reason
        except UnreachableError:
            return "" if self._lock(name).locked() else f"the virtual machine of {name.host} does not answer"
        if status == "running" or want.incoming or self._lock(name).locked():
            return ""
        return f"the virtual machine of {name.host} stands still: {PAUSED.get(status, status)}"

    # --- steps of making

    async def _start(self, place: Place, want: Wanted, told: Hardware | None = None) -> None:
        """`told`: of the QEMU from which its guest comes."""
        if not self._settings.vm_bridge:
            hint = "Name the bridge in sbatchd.conf, as vm_bridge."
            raise InputError("this node has no bridge for virtual machines", field="vm_bridge", hint=hint)
        image = await asyncio.to_thread(find_image, self._settings.images_path, want.image)
        self._accelerator = self._accelerator or await accelerator(self._settings)
        built = await asyncio.to_thread(built_of, want, image, self._accelerator)
        machine = Machine(place.name, place.folder, image, want, self._accelerator)
        if told:
            _is_alike(told, built)
            built = told.built
            alike = as_built(want, built)
            machine = Machine(place.name, place.folder, image, alike, self._accelerator, told.machine, incoming=True)
        try:
            await asyncio.to_thread(files.prepare, machine, self._settings, built.model_dump())
        except OSError as error:
            raise LavaLiteError(f"{place.folder} cannot be written ({error.strerror})") from None
        log.info("a virtual machine starts", host=place.name.host, accelerator=self._accelerator)
        await self._runner.start(place, want)

    async def _become(self, place: Place, want: Wanted) -> None:
        """As large as it is to be, and running."""
        await self._wait_for_qemu(place)
        async with connected(place.folder / QMP) as qmp:
            await Sending(qmp, place.folder, self._settings, self._clock).keep()
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

    def _overtaken(self, place: Place, version: int) -> Callable[[], bool]:
        return lambda: self._newest.get(place.name, 0) > version

    # --- from node to node

    async def _receive(self, place: Place, want: Wanted) -> Made:
        """Returns when QEMU waits for the machine, which is built as it is at the other node."""
        assert want.incoming
        told, folder = hardware(want.incoming.hardware), place.folder
        at, runs = await asyncio.to_thread(handover.load, folder), await self._runner.runs(place)
        if at is None and (runs or await asyncio.to_thread(folder.exists)):
            raise LavaLiteError(f"a machine of {place.name.host} is on this node already")
        if at is not None and at.waits and not runs:
            # What is here may be all that there is of it.
            how = await self._runner.how_ended(place) or files.last_line(folder / files.LOG)
            raise LavaLiteError(f"QEMU has ended while it waited for the machine{': ' + how if how else ''}")
        if at is None or not at.waits:
            await self._runner.kill(place)
            await asyncio.to_thread(files.remove, folder)
            at = Listening(want.incoming.address, await asyncio.to_thread(self._two_ports), handover.new_secret())
            await asyncio.to_thread(handover.save, folder, at)
            await self._start(place, want, told)
            await self._wait_for_qemu(place)
            async with connected(folder / QMP) as qmp:
                await Receiving(qmp, folder, self._settings, self._clock).receive(told, want.disks, at)
        return Made(at.address, at.port, at.secret, path=str(folder / CONSOLE))

    async def _send(self, place: Place, want: Wanted, version: int) -> Made:
        """Returns when it is handed over, and stands here."""
        assert want.outgoing
        await self._still_runs(place)
        async with connected(place.folder / QMP) as qmp:
            sending = Sending(qmp, place.folder, self._settings, self._clock)
            await sending.send(want.outgoing, want.disks, self._overtaken(place, version))
        return Made(path=str(place.folder / CONSOLE))

    async def _arrive(self, place: Place) -> None:
        """What was waited for is here, and runs from now on; where only its disks are left of it, it starts anew."""
        if await asyncio.to_thread(handover.load, place.folder) is None:
            return
        here = False
        if await self._runner.runs(place):
            await self._wait_for_qemu(place)
            async with connected(place.folder / QMP) as qmp:
                here = await Receiving(qmp, place.folder, self._settings, self._clock).arrive()
        if not here:
            await self._runner.kill(place)
        await handover.arrived(place.folder)

    def _two_ports(self) -> int:
        """The first of two that are free; the last ones, since exports have the first. Raises LavaLiteError."""
        free = [port for port in reversed(self._ports) if self._usable(port)]
        found = next((port for port in free if port + 1 in free), 0)
        if not found:
            raise LavaLiteError(
                "no two of export_ports in a row are free on this node, for a machine that comes here"
            )
        return found

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


def _is_alike(told: Hardware, here: Built) -> None:
    """Raises LavaLiteError where QEMU could not take over the guest here, or the guest would not find all again."""
    for name, what in (("accelerator", "accelerator"), ("processor", "processor"), ("image", "image of its name")):
        if getattr(told.built, name) != getattr(here, name):
            raise LavaLiteError(f"the machine cannot come here: its node has another {what}")


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
