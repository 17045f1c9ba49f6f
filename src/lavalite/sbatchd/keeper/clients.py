"""The socket: lines of JSON come in, answers and events go out, once what they tell is durable."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lavalite.sbatchd.keeper.files import SOCKET_NAME

MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_UNSENT_BYTES = 8 * 1024 * 1024

Message = dict[str, Any]


class Client:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.unread = b""
        self.unsent = b""


class Clients:
    """`obey` is given each request, and its answer goes back. What is said waits until `flush`."""

    def __init__(self, selector: selectors.BaseSelector, obey: Callable[[Message], Message]) -> None:
        self._selector = selector
        self._obey = obey
        self._connected: dict[int, Client] = {}
        self._outbox: list[tuple[Client | None, Message]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __len__(self) -> int:
        return len(self._connected)

    def listen(self) -> None:
        """In the current folder: a Unix socket's path is at most 107 bytes long, a folder's may be longer."""
        with contextlib.suppress(FileNotFoundError):
            Path(SOCKET_NAME).unlink()
        self._listener.bind(SOCKET_NAME)
        self._listener.listen(16)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def tell_all(self, message: Message) -> None:
        """Everybody who is connected when it is durable."""
        self._outbox.append((None, message))

    def flush(self) -> None:
        """Send what was said."""
        for to, message in self._outbox:
            line = json.dumps(message).encode() + b"\n"
            for client in [to] if to else list(self._connected.values()):
                client.unsent += line
        self._outbox.clear()
        for client in list(self._connected.values()):
            if client.unsent:
                self._push(client)

    def leave_all(self) -> None:
        for client in list(self._connected.values()):
            self._leave(client)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it is gone again, or there are no descriptors left just now
            return
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            connection.close()
            return
        connection.setblocking(False)
        client = Client(connection)
        self._connected[connection.fileno()] = client
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear(client))

    def _leave(self, client: Client) -> None:
        if self._connected.pop(client.socket.fileno(), None):
            self._selector.unregister(client.socket)
            client.socket.close()

    def _hear(self, client: Client) -> None:
        """The socket became readable (or writable, while something is unsent)."""
        if client.unsent:
            self._push(client)
        try:
            heard = client.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        client.unread += heard
        *lines, client.unread = client.unread.split(b"\n")
        for line in lines:
            if answer := self._answer(line):
                self._outbox.append((client, answer))
        if not heard or len(client.unread) > MAX_LINE_BYTES:
            self._leave(client)

    def _answer(self, line: bytes) -> Message | None:
        """None where it went well, and the client wants to hear only if it did not."""
        request: Message = {}
        try:
            request |= json.loads(line)
            answer = self._obey(request)
        except Exception as error:
            # A request that is wrong must not end what runs.
            answer = {"error": f"{type(error).__name__}: {error}"}
        if request.get("quiet") and "error" not in answer:
            return None
        return {"reply": request.get("n"), "op": request.get("op", ""), "id": request.get("id", "")} | answer

    def _push(self, client: Client) -> None:
        try:
            client.unsent = client.unsent[client.socket.send(client.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._leave(client)
            return
        if len(client.unsent) > MAX_UNSENT_BYTES:
            self._leave(client)
            return
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        key = self._selector.get_key(client.socket)
        if key.events != interest:
            self._selector.modify(client.socket, interest, key.data)
