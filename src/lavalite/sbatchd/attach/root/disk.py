"""Storage as a mounted file system, which stays where it is while the disk below it becomes another one.

    block device (legs) ──► /dev/mapper/lavalite-SLUG (mapper) ──► ext4 ──► STATE/hosts-scratch/HOST/SLUG

Without a device mapper the file system lies on the block device, and stays there; so does one that was mounted before
there was one. Device and folder are called by the disk for which they were made, also once that has gone.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.look import is_mounted, mounted_at
from lavalite.sbatchd.attach.root import legs, mapper
from lavalite.sbatchd.attach.root.mapper import Mapped
from lavalite.sbatchd.attach.root.request import Request, alone, run

BUSY_SECONDS = 5.0
"""How long what uses a disk may take to let go before it is named."""
MOUNT_OPTIONS = "nosuid,nodev,noatime,errors=remount-ro"
UNMAPPED = "is without the device mapper, so that no other disk can take its place"


def make(request: Request) -> dict[str, Any]:
    """Ready, or `pending`, why not yet: then it is asked for again."""
    path = _path(request)
    device = legs.bring(request, mounted=is_mounted(str(path)))
    with alone(request.folder):
        if request.more.get("mirrors"):
            return _mirroring(request, device, str(request.more["mirrors"]))
        return _mounted(request, device, path)


def remove(request: Request) -> dict[str, Any]:
    with alone(request.folder):
        mapped = _mapped(legs.found(request, request.slug))
        if not _goes_on(request, mapped):
            for path in (_path(request), *(mounted_at(mapped.path) if mapped else ())):
                _unmount(path)
            if mapped:
                mapper.remove(mapped)
        host = _path(request).parent
        for folder in (*host.glob("*"), host, host.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()  # what is mounted there, or in it, stays
    legs.drop(request)
    return {}


def _path(request: Request) -> Path:
    return request.state_path / "hosts-scratch" / str(request.order["host"]) / request.slug


# --- one disk


def _mounted(request: Request, device: str, path: Path) -> dict[str, Any]:
    mapped = mapper.over(device)
    if mapped is None and not is_mounted(str(path)) and not legs.is_fuse(request) and mapper.is_usable():
        mapped = mapper.create(mapper.name_of(request.slug), device)
    if mapped is not None and len(mapped.disks) > 1:
        # It is one of two that hold the same; whichever is to go says so.
        return _ready(mapped)
    was_small = mapped is not None and mapped.sectors < mapper.sectors(device)
    if mapped is not None and was_small:
        mapper.keep(mapped, mapped.disks[0], mapper.sectors(device))
    on = mapped.path if mapped else device
    if not (paths := mounted_at(mapped.path) if mapped else [path] * is_mounted(str(path))):
        _file_system(on)
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        for folder in (path, path.parent, path.parent.parent):
            folder.chmod(0o755)
        run(["mount", "-t", "ext4", "-o", MOUNT_OPTIONS, on, str(path)])
    elif mapped is not None or not request.order["address"]:
        try:
            run(["resize2fs", on])
        except LavaLiteError:
            # One that has taken another one's place serves as it is, and may grow when it is looked at again.
            if was_small or mapped is None:
                raise
    path = paths[0] if paths else path
    path.chmod(0o1777)
    return {"device": on, "path": str(path)}


def _file_system(device: str) -> None:
    kind = run(["blkid", "--probe", "--output", "value", "--match-tag", "TYPE", device], check=False).strip()
    if kind and kind != "ext4":
        raise LavaLiteError(f"{device} holds {kind}, and not a file system of ours", hint="Release the host.")
    if not kind:
        # Its bytes are zero as yet: nothing has to be cleared, and nothing is cleared later either.
        options = "nodiscard,lazy_itable_init=1,assume_storage_prezeroed=1"
        run(["mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-E", options, device])


# --- one disk in place of another


def _mirroring(request: Request, device: str, old: str) -> dict[str, Any]:
    """What is on the disk of that slug comes onto this one as well, under the same device."""
    mapped = mapper.over(device)
    if mapped is not None:
        return _ready(mapped) if len(mapped.disks) == 1 else _judged(mapped)
    olds = legs.found(request, old)
    mapped = _mapped(olds)
    if mapped is None:
        if is_mounted(str(_path(request).with_name(old))):
            raise LavaLiteError(f"the disk whose place it is to take {UNMAPPED}")
        return {"pending": "the disk whose place it is to take is not there yet"}
    if len(mapped.disks) > 1:
        raise LavaLiteError(f"another disk takes the place of {mapped.path} already")
    if not mapper.is_usable("mirror"):
        raise LavaLiteError(
            "this node's kernel cannot mirror a disk, so that none can take another one's place",
            hint="Load the module dm-mirror.",
        )
    if mapper.sectors(device) < mapped.sectors:
        raise LavaLiteError(f"{device} is smaller than {mapped.path}, whose bytes it is to hold")
    mapper.mirror(mapped, device)
    return {"pending": "it is being copied"}


def _judged(mapped: Mapped) -> dict[str, Any]:
    """How far a mirror is. Where one of its disks broke, it goes on with the other, if that has everything."""
    copied = mapper.copied(mapped)
    if mapped.is_whole and copied.second_lives:
        if not copied.first_lives:
            mapper.keep(mapped, mapped.disks[1])
        return _ready(mapped)
    if not (copied.first_lives and copied.second_lives):
        mapper.keep(mapped, mapped.disks[0])
        which = "the disk that it is a copy of" if copied.second_lives else "it"
        raise LavaLiteError(f"{which} could not be read or written to any more")
    if copied.done < copied.total:
        return {"pending": f"{copied.done} of {copied.total} regions are copied"}
    mapper.note_whole(mapped)
    return _ready(mapped)


def _ready(mapped: Mapped) -> dict[str, Any]:
    paths = mounted_at(mapped.path)
    if not paths:
        raise LavaLiteError(f"{mapped.path} is not mounted any more")
    return {"device": mapped.path, "path": str(paths[0])}


def _goes_on(request: Request, mapped: Mapped | None) -> bool:
    """Whether the device goes on with another disk. Raises LavaLiteError where this one alone has everything."""
    stays = [device for slug in request.more.get("stays", ()) for device in legs.found(request, slug)]
    others = [mapper.number(device) for device in stays]
    if mapped is not None and (kept := [disk for disk in mapped.disks if disk in others]):
        is_copy = kept[0] != mapped.disks[0]
        if is_copy and not (mapped.is_whole and mapper.copied(mapped).second_lives):
            raise LavaLiteError("the disk that takes its place has not everything that it holds")
        mapper.keep(mapped, kept[0], mapper.sectors(stays[others.index(kept[0])]))
        if is_copy:
            with contextlib.suppress(LavaLiteError):
                run(["resize2fs", mapped.path])
        return True
    heir, copy_of = str(request.more.get("heir", "")), str(request.more.get("mirrors", ""))
    if mapped is not None and (heir or copy_of in request.more.get("stays", ())):
        raise LavaLiteError("the disk that stays has not what it holds")
    if not heir:
        return False
    if is_mounted(str(_path(request))):
        raise LavaLiteError(f"it {UNMAPPED}")
    if _mapped(legs.found(request, heir)) is None and not request.more.get("heir_is_ready"):
        raise LavaLiteError("the disk that takes its place is not known to hold what it holds")
    return True


def _mapped(devices: list[str]) -> Mapped | None:
    return next((mapped for device in devices if (mapped := mapper.over(device))), None)


# --- letting go


def _unmount(path: Path) -> None:
    deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + BUSY_SECONDS
    while is_mounted(str(path)):
        try:
            run(["umount", str(path)])
        except LavaLiteError as error:
            if time.clock_gettime(time.CLOCK_BOOTTIME) > deadline:
                users = ", ".join(_users(path)) or str(error)
                raise LavaLiteError(f"{path} is in use ({users})", hint="It goes when they end.") from None
            time.sleep(0.2)


def _users(path: Path) -> list[str]:
    """`pid 17 (dd)` of up to three that have something open there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
            if any(_is_below(link, path) for link in links):
                found.append(f"pid {process.name} ({(process / 'comm').read_text().strip()})")
    return found[:3]


def _is_below(link: Path, path: Path) -> bool:
    try:
        return link.readlink().is_relative_to(path)
    except OSError:
        return False
