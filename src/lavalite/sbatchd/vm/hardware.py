"""What a machine is built of, as far as another QEMU has to be built alike to take over its guest.

The node that it runs on tells it with the machine, the leader hands it on unread, and the node that is to take over
checks it: text from nodes is untrusted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from lavalite.base.config import Config
from lavalite.base.errors import InputError, LavaLiteError
from lavalite.sbatchd.vm import places
from lavalite.sbatchd.vm.command import processors
from lavalite.sbatchd.vm.images import Image
from lavalite.sbatchd.vm.qmp import PERIPHERAL, Qmp
from lavalite.sbatchd.vm.settings import KVM
from lavalite.sbatchd.vm.wanted import CPUS_MOST, DISKS_MOST, MIB, Disk, Wanted

LAUNCH = "launch.json"
SAMPLE_BYTES = MIB
EMULATED = "Nehalem"
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Serial = Annotated[str, StringConstraints(pattern=r"^(disk|swap)-[A-Za-z0-9_.-]{1,15}$")]


class Built(Config):
    """What it was started with. CPUs and memory may have become more since, up to the most."""

    accelerator: Literal["kvm", "tcg"]
    processor: str = Field(max_length=64)
    """Of the node, where the guest sees that; else the one that is emulated."""
    image: Digest
    cpus: int = Field(ge=1, le=CPUS_MOST)
    cpus_most: int = Field(ge=1, le=CPUS_MOST)
    memory_mib: int = Field(ge=1)
    memory_most_mib: int = Field(ge=1)


class Slot(Config):
    """Where a disk is plugged, and of which part its bytes are."""

    part: Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
    port: Annotated[str, StringConstraints(pattern=r"^port[0-9]{1,2}$")]


class Hardware(Config):
    built: Built
    machine: Annotated[str, StringConstraints(pattern=r"^pc-q35-[0-9]{1,2}\.[0-9]{1,2}$")]
    """QEMU's name of it, with the version: a newer QEMU builds an older one's machine as that did."""
    cpus_now: int = Field(ge=1, le=CPUS_MOST)
    disks: dict[Serial, Slot] = Field(max_length=DISKS_MOST)


def built_of(want: Wanted, image: Image, accelerator: str) -> Built:
    """Raises InputError where the image cannot be read."""
    try:
        digest = image_digest(image)
        processor = processor_digest() if accelerator == KVM else EMULATED
    except OSError as error:
        raise InputError(f"the image {image.disk} cannot be read: {error.strerror}", field="vm.image") from None
    return Built.model_validate(
        {
            "accelerator": accelerator,
            "processor": processor,
            "image": digest,
            "cpus": want.cpus,
            "cpus_most": want.cpus_most,
            "memory_mib": want.memory_mib,
            "memory_most_mib": want.memory_most_mib,
        }
    )


def as_built(want: Wanted, built: Built) -> Wanted:
    """What is wanted, but started as the other one was."""
    amounts = {
        "cpu_milli": built.cpus * 1000,
        "cpu_most_milli": built.cpus_most * 1000,
        "memory_bytes": built.memory_mib * MIB,
        "memory_most_bytes": built.memory_most_mib * MIB,
    }
    return want.model_copy(update=amounts)


def image_digest(image: Image) -> str:
    """Of their lengths and both their ends: whoever replaces an image of some gigabytes changes those. OSError."""
    digest = hashlib.sha256(image.cmdline.encode())
    for path in (image.disk, image.kernel, image.initrd):
        if path is not None:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                digest.update(f"\0{size}\0".encode())
                for at in (0, max(size - SAMPLE_BYTES, 0)):
                    file.seek(at)
                    digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def processor_digest(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Of the model and what it can do. Raises OSError."""
    lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()]
    found = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    words = [found.get("model name", ""), *sorted(found.get("flags", "").split())]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


async def hardware_of(qmp: Qmp, folder: Path, disks: list[Disk]) -> str:
    """As JSON, of a machine that has `disks`; empty where it cannot be taken over. Raises LavaLiteError."""
    try:
        built = json.loads(await asyncio.to_thread((folder / LAUNCH).read_text, encoding="utf-8")).get("built")
    except (OSError, ValueError):
        return ""
    if not built:
        return ""  # started by an earlier release
    taken = await asyncio.to_thread(places.load, folder)
    slots = {}
    for disk in disks:
        name = places.place_of(disk, taken)
        if name not in await qmp.names(PERIPHERAL):
            return ""
        bus = await qmp.call("qom-get", {"path": f"{PERIPHERAL}/{name}", "property": "parent_bus"})
        port = str(bus).rpartition("/")[2]
        slots[name] = {"part": disk.part, "port": port}
    kind = str(await qmp.call("qom-get", {"path": "/machine", "property": "type"})).removesuffix("-machine")
    _, present = processors(await qmp.call("query-hotpluggable-cpus"))
    found = {"built": built, "machine": kind, "cpus_now": len(present), "disks": slots}
    return hardware(json.dumps(found)).model_dump_json()


def hardware(text: str) -> Hardware:
    """Raises LavaLiteError."""
    try:
        return Hardware.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise LavaLiteError(f"it is not known what the machine is built of ({where}: {first['msg']})") from None


def pairs(told: Hardware, disks: list[Disk]) -> list[tuple[Disk, str, Slot]]:
    """Each disk that the machine has, as it is ordered here. Raises LavaLiteError where one is not ordered."""
    found = []
    for name, slot in sorted(told.disks.items()):
        match = [disk for disk in disks if slot.part in (disk.part, disk.mirrors)]
        if len(match) != 1:
            raise LavaLiteError(f"the machine has a disk {slot.part}, and nothing is ordered that would be it here")
        found.append((match[0], name, slot))
    return found
