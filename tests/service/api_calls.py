"""Raw calls of the API over its Unix socket or TCP: what no client of ours would send, also as another user."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from patience import PATIENCE_SECONDS

NOBODY = 65534


def wait_for(condition: Callable[[], Any], seconds: float = 30.0, what: str = "it comes true") -> Any:
    """What `condition` gives as soon as that is true. Raises AssertionError after `seconds`, or our patience."""
    seconds = max(seconds, PATIENCE_SECONDS)
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder with a short name, for the paths of sockets, that other users may enter."""
    path = Path(tempfile.mkdtemp(prefix="lava-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class UnixHttp(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("lavalite", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


def call(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """Status and decoded body. `body` is sent as JSON, or as it is where it is bytes."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    kinds = {"Content-Type": "application/json"} if content is not None else {}
    with contextlib.closing(connection):
        connection.request(method, path, content, {**kinds, **(headers or {})})
        answer = connection.getresponse()
        text = answer.read()
    try:
        return answer.status, json.loads(text) if text else None
    except ValueError:
        return answer.status, text


def as_user(uid: int, ask: Callable[[], tuple[int, Any]]) -> tuple[int, Any]:
    """What `ask` gives in a process of another user. Needs root."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            said = json.dumps(ask())
        except BaseException as error:
            said = json.dumps([0, repr(error)])
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    os.waitpid(child, 0)
    status, answer = json.loads(text)
    return status, answer
