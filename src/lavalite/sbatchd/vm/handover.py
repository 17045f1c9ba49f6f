"""A machine goes from one QEMU to another while it runs (ADR 13): what both nodes ask of their own.

    at the new one   receive   a machine built alike waits; its root layer, and the disks that travel, can be written
                     arrive    all is here: it runs from now on
    at the old one   send      both get what the guest writes ──► memory travels ──► the guest stands ──► its disks
                               are alike, the rest of memory goes ──► the new one has read it: handed over
                     keep      it does not go after all, and runs on here

Each looks how far it is by QEMU's own state. The old QEMU goes on by itself if it could not hand over, and does not
once it has; the new one never begins by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.vm import files, places
from lavalite.sbatchd.vm.command import PSK_USER, block_name, hand_name
from lavalite.sbatchd.vm.disks import OVER, READY, Disks
from lavalite.sbatchd.vm.hardware import Hardware, pairs
from lavalite.sbatchd.vm.qmp import POLL_SECONDS, Qmp, QmpError, until
from lavalite.sbatchd.vm.resize import Resize
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import Disk, Outgoing

KEY, KEY_FOLDER, NOTE = "moving", "moving", "incoming.json"
ROOT = "root"
CAPABILITIES = ("return-path", "pause-before-switchover", "auto-converge")
COMPLETED, STANDS = "completed", "pre-switchover"
UNDER_WAY = ("setup", "active", "device", "cancelling", STANDS)
UNLIMITED = 10**12
"""Bytes a second."""


@dataclass(slots=True, frozen=True)
class Listening:
    """Where QEMU waits for a machine, or is to: memory comes to `port`, disks to the next one."""

    address: str
    port: int
    secret: str
    waits: bool = False


def load(folder: Path) -> Listening | None:
    """None where no machine is to come."""
    try:
        return Listening(**json.loads((folder / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def save(folder: Path, at: Listening) -> None:
    """Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.replace(folder / NOTE, json.dumps(asdict(at)))


def new_secret() -> str:
    return secrets.token_hex(32)


async def _key(qmp: Qmp, folder: Path, secret: str, user: str, endpoint: str) -> None:
    def write() -> None:
        (folder / KEY_FOLDER).mkdir(mode=0o700, exist_ok=True)
        files.replace(folder / KEY_FOLDER / "keys.psk", f"{PSK_USER}:{secret}\n")
        files.give(folder, user)

    await asyncio.to_thread(write)
    key = {"qom-type": "tls-creds-psk", "id": KEY, "endpoint": endpoint, "dir": str(folder / KEY_FOLDER)}
    if endpoint == "client":
        key["username"] = PSK_USER
    with contextlib.suppress(QmpError):
        await qmp.call("object-del", {"id": KEY})
    await qmp.call("object-add", key)
    capabilities = [{"capability": name, "state": True} for name in CAPABILITIES]
    await qmp.call("migrate-set-capabilities", {"capabilities": capabilities})


async def _forget_key(qmp: Qmp, folder: Path) -> None:
    for command, arguments in (("migrate-set-parameters", {"tls-creds": ""}), ("object-del", {"id": KEY})):
        with contextlib.suppress(QmpError):
            await qmp.call(command, arguments)
    await asyncio.to_thread(shutil.rmtree, folder / KEY_FOLDER, ignore_errors=True)


def _uri(address: str, port: int) -> str:
    return f"tcp:[{address}]:{port}" if ":" in address else f"tcp:{address}:{port}"


async def _state(qmp: Qmp) -> dict[str, Any]:
    found: dict[str, Any] = await qmp.call("query-migrate")
    return found


@dataclass(slots=True, frozen=True)
class Receiving:
    """One machine's, at the node that it comes to."""

    qmp: Qmp
    folder: Path
    settings: VmSettings
    clock: Clock

    async def receive(self, told: Hardware, wanted: list[Disk], at: Listening) -> None:
        """QEMU was started for it; it waits from now on. Raises LavaLiteError."""
        disks = Disks(self.qmp, self.folder, self.settings, self.clock, runs=False)
        taken: places.Places = {}
        exports = {ROOT: ROOT}
        for disk, name, slot in pairs(told, wanted):
            carried = disk.part != slot.part
            if carried:
                exports[name] = block_name(disk.serial)
            if carried or disk.serial != name:
                taken[disk.serial] = places.Taken(name, "", whole=not carried)
            await disks.insert(disk, name, slot.port)
        await asyncio.to_thread(places.save, self.folder, taken)
        await Resize(self.qmp, self.settings, self.clock, runs=False).cpus(told.cpus_now)
        await _key(self.qmp, self.folder, at.secret, self.settings.vm_user, "server")
        await self.qmp.call("migrate-set-parameters", {"tls-creds": KEY})
        where = {"type": "inet", "data": {"host": at.address, "port": str(at.port + 1)}}
        await self.qmp.call("nbd-server-start", {"addr": where, "tls-creds": KEY})
        for name, node in exports.items():
            export = {"type": "nbd", "id": hand_name(name), "node-name": node, "name": name, "writable": True}
            await self.qmp.call("block-export-add", export)
        await self.qmp.call("migrate-incoming", {"uri": _uri(at.address, at.port)})
        await asyncio.to_thread(save, self.folder, replace(at, waits=True))

    async def arrive(self) -> bool:
        """It runs here from now on, and nowhere else. False where nothing has come, and it has to begin anew."""
        if (await _state(self.qmp)).get("status") != COMPLETED:
            return False
        with contextlib.suppress(QmpError):
            await self.qmp.call("nbd-server-stop")
        if not (await self.qmp.call("query-status"))["running"]:
            await self.qmp.call("cont")
            with contextlib.suppress(QmpError):  # the bridges in between learn where it is now
                await self.qmp.call("announce-self", {"initial": 50, "max": 550, "rounds": 5, "step": 100})
        await _forget_key(self.qmp, self.folder)
        return True


async def arrived(folder: Path) -> None:
    """It was handed over, so its disks hold all; what it took to get here is forgotten. Raises LavaLiteError."""

    def note() -> None:
        taken = places.load(folder)
        places.save(folder, {name: places.Taken(each.place, each.before, whole=True) for name, each in taken.items()})
        shutil.rmtree(folder / KEY_FOLDER, ignore_errors=True)
        (folder / NOTE).unlink(missing_ok=True)

    await asyncio.to_thread(note)


@dataclass(slots=True, frozen=True)
class Sending:
    """One machine's, at the node that it leaves."""

    qmp: Qmp
    folder: Path
    settings: VmSettings
    clock: Clock

    async def send(self, to: Outgoing, wanted: Sequence[Disk], overtaken: Callable[[], bool]) -> None:
        """Returns when it is handed over. Raises LavaLiteError where it is not, and then it runs on here."""
        status = (await self.qmp.call("query-status"))["status"]
        state = (await _state(self.qmp)).get("status", "none")
        if (status, state) == ("postmigrate", COMPLETED):
            return
        try:
            if state not in UNDER_WAY:
                await self.keep()
                if status != "running":
                    raise LavaLiteError(f"the machine does not run ({status}), so it cannot move while it runs")
                await self._begin(to, wanted, overtaken)
            await self._until_handed_over(overtaken)
        except QmpError as error:
            await self.keep()
            raise LavaLiteError(f"the machine cannot move: {error}") from None
        except LavaLiteError:
            await self.keep()
            raise

    async def keep(self) -> None:
        """As if it had never been to go, however far it is: who orders this has not let it run elsewhere."""
        if (await _state(self.qmp)).get("status") in UNDER_WAY:
            await self.qmp.call("migrate_cancel")

        async def over() -> bool:
            return (await _state(self.qmp)).get("status") not in UNDER_WAY

        await until(self.clock, self.settings.vm_resize_seconds, over, "the machine's move does not end")
        jobs = [str(job["id"]) for job in await self._jobs()]
        for node in await self._nodes():
            await self.qmp.yank(node)
        for job in jobs:
            with contextlib.suppress(QmpError):
                await self.qmp.call("job-cancel", {"id": job})
        await self._until_jobs_are_over()
        for job in jobs:
            await self.qmp.call("job-dismiss", {"id": job})
        if (await self.qmp.call("query-status"))["status"] == "postmigrate":
            await self.qmp.call("cont")
        for node in await self._nodes():
            await self.qmp.call("blockdev-del", {"node-name": node})
        await _forget_key(self.qmp, self.folder)

    async def _begin(self, to: Outgoing, wanted: Sequence[Disk], overtaken: Callable[[], bool]) -> None:
        if await self.qmp.call("query-jobs"):
            raise LavaLiteError("a disk of the machine is being moved, and both at once do not go")
        await _key(self.qmp, self.folder, to.secret, self.settings.vm_user, "client")
        taken = await asyncio.to_thread(places.load, self.folder)
        carried = [(ROOT, ROOT, "top")]
        carried += [(places.place_of(d, taken), block_name(d.serial), "full") for d in wanted if d.part in to.carried]
        where = {"type": "inet", "host": to.address, "port": str(to.port + 1)}
        for name, node, sync in carried:
            hand = hand_name(name)
            await self.qmp.call(
                "blockdev-add",
                {"driver": "nbd", "node-name": hand, "server": where, "export": name, "tls-creds": KEY},
            )
            mirror = {"job-id": hand, "device": node, "target": hand, "sync": sync, "copy-mode": "write-blocking",
                      "filter-node-name": f"both-{name}", "auto-dismiss": False}  # fmt: skip
            await self.qmp.call("blockdev-mirror", mirror)
        while not all(job["status"] == READY for job in await self._sound_jobs()):
            self._unless(overtaken)
            await self.clock.sleep(POLL_SECONDS)
        speed = to.bits_per_second // 8 or UNLIMITED
        await self.qmp.call("migrate-set-parameters", {"tls-creds": KEY, "max-bandwidth": speed})
        await self.qmp.call("migrate", {"uri": _uri(to.address, to.port)})

    async def _until_handed_over(self, overtaken: Callable[[], bool]) -> None:
        while (found := await _state(self.qmp)).get("status") != COMPLETED:
            status = found.get("status", "none")
            if status not in UNDER_WAY:
                why = found.get("error-desc") or status
                raise LavaLiteError(f"the machine cannot move: {why}")
            if status == STANDS:
                await self._end_mirrors()
                await self.qmp.call("migrate-continue", {"state": STANDS})
            else:
                await self._sound_jobs()
            self._unless(overtaken)
            await self.clock.sleep(POLL_SECONDS / 4)
        for job in await self._jobs():
            await self.qmp.call("job-dismiss", {"id": job["id"]})

    async def _end_mirrors(self) -> None:
        """The guest stands: when its disks have all, both of each are alike."""
        for job in await self._sound_jobs():
            if job["status"] != OVER:
                await self.qmp.call("block-job-cancel", {"device": job["id"], "force": False})
        await self._until_jobs_are_over()
        await self._sound_jobs()

    async def _sound_jobs(self) -> list[dict[str, Any]]:
        """Raises LavaLiteError where a disk does not get any more what is written, or nobody knows whether it did."""
        jobs = await self._jobs()
        failed = next((job for job in jobs if job.get("error")), None)
        if failed is not None or not any(job["id"] == hand_name(ROOT) for job in jobs):
            why = f"{failed['id'].removeprefix(hand_name(''))}: {failed['error']}" if failed else "it is not copied"
            raise LavaLiteError(f"a disk of the machine cannot move: {why}")
        return jobs

    async def _until_jobs_are_over(self) -> None:
        async def over() -> bool:
            return all(job["status"] == OVER for job in await self._jobs())

        await until(self.clock, self.settings.vm_resize_seconds, over, "the copies of the machine's disks do not end")

    async def _jobs(self) -> list[dict[str, Any]]:
        return [job for job in await self.qmp.call("query-jobs") if job["id"].startswith(hand_name(""))]

    async def _nodes(self) -> list[str]:
        nodes = [str(each["node-name"]) for each in await self.qmp.call("query-named-block-nodes", {"flat": True})]
        return [node for node in nodes if node.startswith(hand_name(""))]

    def _unless(self, overtaken: Callable[[], bool]) -> None:
        if overtaken():
            raise LavaLiteError("the machine has not moved as yet, and something else is ordered now")
