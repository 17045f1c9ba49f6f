"""What the kernel is asked of sockets: a Unix socket's file, who is on its other end, TCP's patience."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from lavalite.base.errors import LavaLiteError
from lavalite.wire.address import Address

BACKLOG = 1024


def bind_unix(path: str, mode: int) -> socket.socket:
    """A listening Unix socket with `mode`. A file left by a dead process is replaced; a live one is refused.

    Raises LavaLiteError. There is no moment at which a wider mode could be connected to: before listen(), the
    kernel refuses all.
    """
    address = Address(path=path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _starting_alone(path):
            _remove_stale(address)
            listener.bind(path)
            Path(path).chmod(mode)
            listener.listen(BACKLOG)
    except LavaLiteError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        hint = f"Create {Path(path).parent} and make it writable for this user, or set another path."
        raise LavaLiteError(f"cannot listen on {address}: {reason}", code="cannot_listen", hint=hint) from None
    return listener


@contextlib.contextmanager
def _starting_alone(path: str) -> Iterator[None]:
    """Two daemons that start at once must not both find the old file stale. The lock is ours alone to open (0600)."""
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_stale(address: Address) -> None:
    file = Path(address.path)
    try:
        kind = file.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        hint = "Remove the file, or set another path."
        raise LavaLiteError(f"{file} exists and is not a socket", code="cannot_listen", hint=hint)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        refused = probe.connect_ex(address.path) == errno.ECONNREFUSED
    if not refused:  # connected, or its backlog is full, or it is another user's: somebody lives there
        hint = f"Stop the other daemon (ss -lxp src {file}), or set another path."
        raise LavaLiteError(f"{address} is already in use", code="address_in_use", hint=hint)
    file.unlink(missing_ok=True)


def peer_credentials(writer: asyncio.StreamWriter) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process that opened the other end, as the kernel knows it."""
    size = struct.calcsize("iII")
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, gid = struct.unpack("iII", raw)
    return pid, uid, gid


def tune_tcp(writer: asyncio.StreamWriter) -> None:
    """Small frames leave at once; a peer whose machine vanished is noticed in about half a minute."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
