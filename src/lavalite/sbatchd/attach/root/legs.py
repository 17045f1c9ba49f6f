"""What a disk's bytes are on: an export of another node, or a file of this one, as a block device.

another node, kernel with nbd      /dev/nbdX
another node, kernel without nbd   nbdfuse ──► a file ──► /dev/loopX
this node                          STATE/storage/SLUG ──► /dev/loopX

All have blocks of one size: whoever writes past the page cache does not notice when one takes another's place.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.look import is_connected, is_mounted
from lavalite.sbatchd.attach.root import nbd, services
from lavalite.sbatchd.attach.root.handshake import connect
from lavalite.sbatchd.attach.root.mapper import sectors
from lavalite.sbatchd.attach.root.nbd import BLOCK_BYTES
from lavalite.sbatchd.attach.root.request import Request, make_room, run

FUSE_LOST = "its connection to the export broke"


def bring(request: Request, *, mounted: bool) -> str:
    """The block device, which stays where it stands already; larger where its file has become so."""
    if request.order["address"]:
        return _far(request, mounted=mounted)
    make_room(request.storage, request.amount, preallocate=bool(request.more.get("preallocate")))
    device = _loop(request.storage, "--sector-size", str(BLOCK_BYTES))
    if request.storage.stat().st_size // 512 > sectors(device):
        run(["losetup", "--set-capacity", device])
    return device


def found(request: Request, slug: str) -> list[str]:
    """The block devices of a disk of this node, this one or another."""
    far = nbd.find(slug)
    files = (request.storage.with_name(slug), request.folder / f"{slug}.nbd" / "disk")
    return [*([far] if far else []), *(device for file in files for device in _loops(file))]


def is_fuse(request: Request) -> bool:
    return is_mounted(str(_fuse_file(request).parent))


def drop(request: Request) -> None:
    """With the bytes, where they are this node's own. No error where there is none."""
    for device in (*_loops(request.storage), *_loops(_fuse_file(request))):
        run(["losetup", "--detach", device])
    _fuse_away(request)
    nbd.detach(request.slug)
    request.storage.unlink(missing_ok=True)


def _far(request: Request, *, mounted: bool) -> str:
    address, port = str(request.order["address"]), int(request.order["port"])
    fuse = is_fuse(request)
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
        if mounted:
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
    devices = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().strip().removesuffix(" (deleted)") == str(file):
                devices.append(f"/dev/{backing.parents[1].name}")
    return devices


def _loop(file: Path, *options: str) -> str:
    if devices := _loops(file):
        return devices[0]
    if not Path("/dev/loop-control").exists():
        run(["modprobe", "loop"], check=False)
    return run(["losetup", "--find", "--show", *options, str(file)]).strip()
