"""The kernel's NBD client, spoken to over netlink (include/uapi/linux/nbd-netlink.h).

A device carries the part's slug as its backend identifier, so that it is found again after any crash and never
mistaken for somebody else's; `nbd-client` of Debian 12 cannot give one. The
handshake is made here, and the kernel takes the socket over.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.root.handshake import connect, negotiate, read
from lavalite.sbatchd.attach.root.request import run

CONNECT, DISCONNECT, RECONFIGURE = 1, 2, 3
IO_SECONDS = 30
"""After so long without an answer a connection counts as dead, and so long it may be replaced before I/O fails."""
GONE_SECONDS = 10.0
BLOCK_BYTES = 4096
HEAD_BYTES = 4096
REMEMBERED = Path("/run/lavalite-nbd")
"""What each device holds, by slug: for as long as this machine runs, as the devices are."""


def is_usable() -> bool:
    """Whether this kernel has nbd; its module is loaded if there is one."""
    if not Path("/sys/module/nbd").exists():
        try:
            run(["modprobe", "nbd"], check=False)
        except LavaLiteError:
            return False
    return Path("/sys/module/nbd").exists()


def find(slug: str) -> str:
    """The device of a part, `/dev/nbd3`; empty where it has none."""
    for file in Path("/sys/block").glob("nbd*/backend"):
        if _read(file) == slug:
            return f"/dev/{file.parent.name}"
    return ""


def attach(slug: str, address: str, port: int, *, connected: bool) -> str:
    """The device of the export there. One that stands stays; if it is not `connected`, it gets a new connection.

    Raises LavaLiteError, also where what is exported there now is not what the device held: its node may have been
    made anew, or given the port to something else.
    """
    device = find(slug)
    if device and connected:
        return device
    with connect(address, port) as connection:
        size, flags = negotiate(connection, f"the export at {address}:{port}")
        attributes: list[list[Any]] = [
            ["NBD_ATTR_SOCKETS", {"attrs": [["NBD_SOCK_ITEM", {"attrs": [["NBD_SOCK_FD", connection.fileno()]]}]]}],
            ["NBD_ATTR_BACKEND_IDENTIFIER", slug],
        ]
        if device:
            _check_same(slug, read(connection, HEAD_BYTES, f"the export at {address}:{port}"), f"{address}:{port}")
            _command(RECONFIGURE, [["NBD_ATTR_INDEX", _index(device)], *attributes])
            return device
        _command(CONNECT, [
            ["NBD_ATTR_SIZE_BYTES", size],
            ["NBD_ATTR_BLOCK_SIZE_BYTES", BLOCK_BYTES if size % BLOCK_BYTES == 0 else 512],
            ["NBD_ATTR_TIMEOUT", IO_SECONDS],
            ["NBD_ATTR_DEAD_CONN_TIMEOUT", IO_SECONDS],
            ["NBD_ATTR_SERVER_FLAGS", flags],
            ["NBD_ATTR_CLIENT_FLAGS", 0],
            *attributes,
        ])  # fmt: skip
    device = find(slug)
    if not device:
        raise LavaLiteError("the kernel connected an NBD device and does not say which", hint="It needs Linux 5.14.")
    return device


def remember(slug: str) -> None:
    """What a device holds, now that it has a file system or is swap. Nothing where there is none; of what does not
    answer just now, what was known before.
    """
    if device := find(slug):
        with contextlib.suppress(OSError):
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                held = identity(os.pread(descriptor, HEAD_BYTES, 0))
            finally:
                os.close(descriptor)
            REMEMBERED.mkdir(mode=0o700, exist_ok=True)
            (REMEMBERED / slug).write_text(held)


def identity(head: bytes) -> str:
    """Of a file system ext4, or of swap, by its first 4096 bytes; empty where they are neither's."""
    if head[1080:1082] == b"\x53\xef":
        return f"ext4 {head[1128:1144].hex()}"
    return f"swap {head[1036:1052].hex()}" if head[4086:4096] == b"SWAPSPACE2" else ""


def _check_same(slug: str, head: bytes, where: str) -> None:
    held = _read(REMEMBERED / slug)
    if held and identity(head) != held:
        raise LavaLiteError(f"what is exported at {where} is another thing than was attached, which is lost")


def detach(slug: str) -> None:
    """No error where there is none. Raises LavaLiteError."""
    (REMEMBERED / slug).unlink(missing_ok=True)
    device = find(slug)
    if not device:
        return
    _command(DISCONNECT, [["NBD_ATTR_INDEX", _index(device)]])
    deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + GONE_SECONDS
    while find(slug):
        if time.clock_gettime(time.CLOCK_BOOTTIME) > deadline:
            raise LavaLiteError(f"{device} does not end", hint="Something has it open still.")
        time.sleep(0.05)


def _index(device: str) -> int:
    return int(device.removeprefix("/dev/nbd"))


def _command(command: int, attributes: list[list[Any]]) -> None:
    # Only here: what attaches nothing new, or has no nbd, need not wait for it.
    from lavalite.sbatchd.attach.root.nbd_netlink import send

    words = {CONNECT: "connect", DISCONNECT: "disconnect", RECONFIGURE: "reconnect"}
    send(command, attributes, words[command])


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
