"""Storage as a mounted file system: an export of another node, or a file of this one.

another node, kernel with nbd      /dev/nbdX ──► ext4 ──► STATE/hosts-scratch/HOST/SLUG
another node, kernel without nbd   nbdfuse ──► a file ──► /dev/loopX ──► ext4 …
this node                          STATE/storage/SLUG ──► /dev/loopX ──► ext4 …
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.look import is_connected, is_mounted
from lavalite.sbatchd.attach.root import nbd, services
from lavalite.sbatchd.attach.root.handshake import connect
from lavalite.sbatchd.attach.root.request import Request, make_room, run

BUSY_SECONDS = 5.0
"""How long what uses a disk may take to let go before it is named."""
MOUNT_OPTIONS = "nosuid,nodev,noatime,errors=remount-ro"
FUSE_LOST = "its connection to the export broke"


def make(request: Request) -> dict[str, Any]:
    path = _path(request)
    if request.order["address"]:
        device = _far_device(request, path)
    else:
        make_room(request.storage, request.amount, preallocate=bool(request.more.get("preallocate")))
        device = _loop(request.storage)
    if is_mounted(str(path)):
        if not request.order["address"]:
            _grow(device)
    else:
        _file_system(device)
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        for folder in (path, path.parent, path.parent.parent):
            folder.chmod(0o755)
        run(["mount", "-t", "ext4", "-o", MOUNT_OPTIONS, device, str(path)])
    path.chmod(0o1777)
    nbd.remember(request.slug)
    return {"device": device, "path": str(path)}


def remove(request: Request) -> dict[str, Any]:
    path = _path(request)
    _unmount(path)
    with contextlib.suppress(OSError):
        path.rmdir()
        path.parent.rmdir()
        path.parent.parent.rmdir()
    for device in (*_loops(request.storage), *_loops(_fuse_file(request))):
        run(["losetup", "--detach", device])
    _fuse_away(request)
    nbd.detach(request.slug)
    request.storage.unlink(missing_ok=True)
    return {}


def _path(request: Request) -> Path:
    return request.state_path / "hosts-scratch" / str(request.order["host"]) / request.slug


# --- block devices


def _far_device(request: Request, path: Path) -> str:
    address, port = str(request.order["address"]), int(request.order["port"])
    fuse = is_mounted(str(_fuse_file(request).parent))
    if request.order["tls"]:
        # Neither the kernel's nbd nor Debian 12's nbdfuse can take a key.
        raise LavaLiteError("an encrypted export cannot be a disk of a bare host", hint="Compose it as a VM.")
    if not fuse and (nbd.find(request.slug) or nbd.is_usable()):
        return nbd.attach(request.slug, address, port, connected=is_connected(address, port))
    if not Path("/dev/fuse").exists():
        raise LavaLiteError(
            "this node cannot attach storage of another node: its kernel has neither nbd nor FUSE",
            hint="Load the module nbd.",
        )
    if fuse and not services.is_up(request):
        if is_mounted(str(path)):
            raise LavaLiteError(FUSE_LOST, code="disk_lost")
        for device in _loops(_fuse_file(request)):
            run(["losetup", "--detach", device])
        _fuse_away(request)
    file = _fuse_file(request)
    if not services.is_up(request):
        connect(address, port).close()  # nbdfuse would wait in silence, and for minutes
        file.parent.mkdir(mode=0o700, exist_ok=True)
        where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        services.start(request, ["nbdfuse", str(file), f"nbd://{where}/"])
    # Size and all are known once it has been connected.
    services.until(request, lambda: is_mounted(str(file.parent)) and file.exists(), "nbdfuse")
    return _loop(file)


def _fuse_file(request: Request) -> Path:
    return request.file("nbd") / "disk"


def _fuse_away(request: Request) -> None:
    folder = _fuse_file(request).parent
    if is_mounted(str(folder)):
        # What it still had to write is written by then: nbdfuse ends with its mount.
        run(["umount", str(folder)], check=False)
        if is_mounted(str(folder)):
            run(["umount", "--lazy", str(folder)], check=False)
    if services.is_up(request):
        services.stop(request)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
    services.stop(request)


def _loops(file: Path) -> list[str]:
    """Loop devices of a file, also where that cannot be reached any more."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().strip().removesuffix(" (deleted)") == str(file):
                found.append(f"/dev/{backing.parents[1].name}")
    return found


def _loop(file: Path) -> str:
    if found := _loops(file):
        return found[0]
    if not Path("/dev/loop-control").exists():
        run(["modprobe", "loop"], check=False)
    return run(["losetup", "--find", "--show", str(file)]).strip()


# --- file systems


def _file_system(device: str) -> None:
    kind = run(["blkid", "--probe", "--output", "value", "--match-tag", "TYPE", device], check=False).strip()
    if kind and kind != "ext4":
        raise LavaLiteError(f"{device} holds {kind}, and not a file system of ours", hint="Release the host.")
    if not kind:
        # Its bytes are zero as yet: nothing has to be cleared, and nothing is cleared later either.
        options = "nodiscard,lazy_itable_init=1,assume_storage_prezeroed=1"
        run(["mkfs.ext4", "-q", "-m", "0", "-E", options, device])


def _grow(device: str) -> None:
    run(["losetup", "--set-capacity", device])
    run(["resize2fs", device])


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
