"""The folder of a virtual machine, STATE/vms/NAME-INCARNATION/: all that it has on this node.

launch.json    what begin.py starts, and the amounts
root.qcow2     what the guest has changed of its image          seed.iso     its first instructions
disk-….raw     a disk of this node                              disk-….key/  the key to another node's
disks.json     which disk has taken the place of which
console.log    what it said; qemu.log, what QEMU said           qmp, console, guest    sockets
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from lavalite.base.errors import InputError, LavaLiteError
from lavalite.sbatchd.vm.command import (
    OVERLAY,
    PSK_USER,
    SEED,
    Machine,
    disk_file,
    key_folder,
    qemu_command,
)
from lavalite.sbatchd.vm.images import Image
from lavalite.sbatchd.vm.seed import documents, write_seed
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import Disk

LAUNCH, LOG = "launch.json", "qemu.log"
GONE = ".gone-"
IMG_SECONDS = 60.0


def prepare(machine: Machine, settings: VmSettings) -> None:
    """All that is there before QEMU starts; what is there already stays. Raises LavaLiteError and OSError."""
    folder = machine.folder
    folder.parent.mkdir(mode=0o711, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    launch = {
        "tap": machine.name.tap,
        "bridge": settings.vm_bridge,
        "user": settings.vm_user,
        "command": qemu_command(settings.qemu_path, machine),
    }
    replace(folder / LAUNCH, json.dumps(launch, indent=1))
    if not (folder / OVERLAY).exists():
        _overlay(settings.qemu_img_path, machine.image, folder / OVERLAY)
    write_seed(folder / SEED, documents(machine.name, machine.wanted))
    for name in ("qmp", "console", "guest", "pid"):
        (folder / name).unlink(missing_ok=True)
    give(folder, settings.vm_user)


def prepare_disk(folder: Path, disk: Disk, user: str) -> None:
    """The file of a local disk, as long as it is to be and no shorter than it was; the key of an encrypted export."""
    if not disk.address:
        path = folder / disk_file(disk.serial)
        with path.open("ab") as file:
            if file.tell() < disk.bytes:
                file.truncate(disk.bytes)
        path.chmod(0o600)
    elif disk.secret:
        keys = folder / key_folder(disk.serial)
        keys.mkdir(mode=0o700, exist_ok=True)
        replace(keys / "keys.psk", f"{PSK_USER}:{disk.secret}\n")
    give(folder, user)


def forget_disk(folder: Path, serial: str) -> None:
    """Its file and its key; no error where there is none."""
    (folder / disk_file(serial)).unlink(missing_ok=True)
    shutil.rmtree(folder / key_folder(serial), ignore_errors=True)


def local_disks(folder: Path) -> set[str]:
    """Serials of the disks that have a file or a key here."""
    return {path.stem for pattern in ("disk-*.raw", "*.key") for path in folder.glob(pattern)}


def remove(folder: Path) -> None:
    """All of it, or after a crash the rest of it. Raises OSError."""
    gone = folder.with_name(GONE + folder.name)
    if gone.exists():
        shutil.rmtree(gone)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone)


def give(folder: Path, user: str) -> None:
    """To whom QEMU runs as. Raises InputError where there is nobody of that name."""
    if not user:
        return
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        hint = "Make that user, or leave vm_user empty."
        raise InputError(f"there is no user {user}", field="vm_user", hint=hint) from None
    for path in (folder, *folder.rglob("*")):
        os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def replace(path: Path, text: str) -> None:
    """Whole or not at all, and read by nobody else."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def last_line(log: Path) -> str:
    """The last thing that QEMU said, fit for a sentence."""
    try:
        lines = log.read_bytes()[-4096:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    spoken = [line for line in lines if line.strip()]
    return "".join(c for c in spoken[-1] if c.isprintable())[:200] if spoken else ""


def _overlay(program: Path, image: Image, target: Path) -> None:
    """What the guest writes goes here; the image stays as it is."""
    fresh = target.with_name(f".{target.name}.new")
    command = [
        str(program),
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        image.format,
        "-b",
        str(image.disk.absolute()),
        str(fresh),
    ]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=IMG_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LavaLiteError(f"{program} cannot be run ({error})", hint="Install Debian's qemu-utils.") from None
    if done.returncode:
        raise LavaLiteError(f"no disk can be made over {image.disk}: {done.stderr.strip()[:200]}")
    fresh.replace(target)
