"""A doorbell between processes that share one SQLite file.

Each process that watches binds a Unix datagram socket in the folder `FILE.bells`; whoever commits sends a byte to
every socket there. A lost ring costs only time: watchers also look by themselves now and then.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path


class Doorbell:
    """`listen` and `stop` belong to the event loop's thread, `ring` may be called from any."""

    def __init__(self, database: Path) -> None:
        self._folder = database.with_name(database.name + ".bells")
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._socket: socket.socket | None = None

    def listen(self) -> socket.socket | None:
        """A socket that becomes readable when another process rings; None where none can be bound."""
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with self._short_path() as folder:
                ear.bind(f"{folder}/{self._name}")
        except OSError:
            ear.close()
            return None
        self._socket = ear
        return ear

    def drain(self) -> None:
        """Take all rings so far as one."""
        if self._socket is not None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._socket.recv(16)

    def stop(self) -> None:
        """No longer listen."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            with contextlib.suppress(OSError):
                (self._folder / self._name).unlink()

    def ring(self) -> None:
        """Tell every other process that listens. Never waits, never fails."""
        try:
            names = [name for name in os.listdir(self._folder) if name != self._name]  # noqa: PTH208
        except OSError:
            return
        if not names:
            return
        with (
            contextlib.suppress(OSError),
            self._short_path() as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as hand,
        ):
            for name in names:
                self._ring_one(hand, f"{folder}/{name}")

    @staticmethod
    def _ring_one(hand: socket.socket, address: str) -> None:
        try:
            hand.sendto(b"!", address)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(address)  # noqa: PTH108  (its owner was killed; nobody listens on it again)
        except OSError:
            pass  # a full queue rings already

    @contextlib.contextmanager
    def _short_path(self) -> Iterator[str]:
        """The folder under a name that fits the 107 bytes of a socket address, however deep it lies."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{folder}"
        finally:
            os.close(folder)
