"""The API's servers: uvicorn over one application, one server for the Unix socket and one for TCP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from lavalite.base.errors import LavaLiteError
from lavalite.mbatchd.identity import PeerAwareProtocol
from lavalite.wire.address import Address, listen_error, parse_address
from lavalite.wire.sockets import bind_unix
from lavalite.wire.tls import TlsConfig

STOP_SECONDS = 3


class _Server(uvicorn.Server):
    """Leaves the process's signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ApiServers:
    """Listens where it is told. `start()` raises LavaLiteError when it cannot."""

    def __init__(self, app: FastAPI, listen: str, socket_path: Path, tls: TlsConfig | None) -> None:
        self._app, self._listen, self._socket_path, self._tls = app, listen, socket_path, tls
        self._servers: list[tuple[_Server, asyncio.Task[None]]] = []
        self._inode: int | None = None
        self.address = listen
        """With the real port, once started."""

    async def start(self) -> None:
        remote = self._bind()
        local = bind_unix(str(self._socket_path), 0o666)
        self._inode = self._socket_path.stat().st_ino
        address = parse_address(self._listen, "api_listen")
        self.address = str(Address(host=address.host, port=remote.getsockname()[1]))
        self._serve(local)
        self._serve(remote, self._tls.api_context() if self._tls else None)
        for server, task in self._servers:
            while not server.started:
                if task.done():
                    await task
                    raise LavaLiteError("the API's server ended before it began", code="api_failed")
                await asyncio.sleep(0.005)

    def _bind(self) -> socket.socket:
        address = parse_address(self._listen, "api_listen")
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
        except OSError as error:
            listener.close()
            raise listen_error(address, error) from None
        return listener

    def _serve(self, listener: socket.socket, context: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            self._app,
            http=PeerAwareProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
            ssl_context_factory=(lambda _config, _default: context) if context else None,
        )
        server = _Server(config)
        self._servers.append((server, asyncio.create_task(server.serve(sockets=[listener]))))

    async def close(self) -> None:
        """Let running requests end, at most STOP_SECONDS; then stop listening."""
        for server, _ in self._servers:
            server.should_exit = True
        await asyncio.gather(*(task for _, task in self._servers), return_exceptions=True)
        with contextlib.suppress(OSError):
            if self._socket_path.stat().st_ino == self._inode:  # not that of who came after us
                self._socket_path.unlink()
