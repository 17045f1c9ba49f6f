"""Accepts TLS connections, and says which peers were turned away and why.

asyncio's own server forgets handshakes that failed, so a node whose certificate is wrong would be refused in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from lavalite.wire.address import Address
from lavalite.wire.tls import refusal

BACKLOG = 128
REST_SECONDS = 1.0
"""How long nothing is accepted where this process or the machine has no file descriptors left."""
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
MAX_HANDSHAKES = 1024
SILENCE_SECONDS = 60.0
"""A peer that comes again and again is in the log once in that time."""
MAX_REMEMBERED = 1024

OnConnection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]

log = structlog.get_logger(__name__)


class TlsServer:
    """Calls `on_connection` for each peer whose handshake was good, within `handshake_seconds`."""

    def __init__(
        self, context: ssl.SSLContext, on_connection: OnConnection, *, handshake_seconds: float, limit_bytes: int
    ) -> None:
        self._context, self._on_connection = context, on_connection
        self._handshake_seconds, self._limit_bytes = handshake_seconds, limit_bytes
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_HANDSHAKES)
        self._told: dict[tuple[str, str], float] = {}

    async def start(self, at: Address) -> int:
        """Listen on all addresses of a host, on one port, which is returned. Raises OSError."""
        loop, port = asyncio.get_running_loop(), at.port
        found = await loop.getaddrinfo(at.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, kind, protocol, _, place in dict.fromkeys(found):
                listener = socket.socket(family, kind, protocol)
                self._listeners.append(listener)
                listener.setblocking(False)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((place[0], port, *place[2:]))
                listener.listen(BACKLOG)
                port = listener.getsockname()[1]
        except OSError:
            self._close_listeners()
            raise
        for listener in self._listeners:
            self._spawn(self._accept(listener))
        return port

    async def close(self) -> None:
        """Accept no more; handshakes under way end. Connections that were handed over are their owner's."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_listeners()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                accepted, place = await loop.sock_accept(listener)
            except OSError as error:
                self._room.release()
                if error.errno in SHORTAGES:
                    log.error("no connection can be accepted", reason=error.strerror)
                    await asyncio.sleep(REST_SECONDS)
                continue
            except asyncio.CancelledError:
                self._room.release()
                raise
            self._spawn(self._shake(accepted, Address(host=place[0], port=place[1])))

    async def _shake(self, accepted: socket.socket, peer: Address) -> None:
        loop = asyncio.get_running_loop()

        def make_protocol() -> asyncio.StreamReaderProtocol:
            reader = asyncio.StreamReader(limit=self._limit_bytes, loop=loop)
            return asyncio.StreamReaderProtocol(reader, self._on_connection, loop=loop)

        try:
            await loop.connect_accepted_socket(
                make_protocol, accepted, ssl=self._context, ssl_handshake_timeout=self._handshake_seconds
            )
        except OSError as error:  # ssl.SSLError is one, and so is TimeoutError
            self._tell(peer, refusal(error))
            with contextlib.suppress(OSError):
                accepted.close()
        finally:
            self._room.release()

    def _tell(self, peer: Address, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        self._told = {key: when for key, when in self._told.items() if now - when < SILENCE_SECONDS}
        if (peer.host, reason) in self._told or len(self._told) >= MAX_REMEMBERED:
            return
        self._told[peer.host, reason] = now
        log.warning("TLS refused", peer=str(peer), reason=reason)
