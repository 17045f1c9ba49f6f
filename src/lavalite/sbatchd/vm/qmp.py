"""QEMU's own protocol. Only this file imports qemu.qmp."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError, UnreachableError

CALL_SECONDS = 20.0
POLL_SECONDS = 0.2
PERIPHERAL = "/machine/peripheral"
"""Where QEMU has the devices that were plugged, by their ids."""
# It says at length what is raised anyway.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class QmpError(LavaLiteError):
    """QEMU says no, in a sentence of its own."""

    default_code = "qemu"


class Qmp:
    """A conversation with one QEMU. Calls raise QmpError and UnreachableError."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def call(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise QmpError(str(error)) from None
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            raise _unreachable(f"{command}: {str(error) or type(error).__name__}") from None

    async def yank(self, node: str) -> None:
        """Whatever waits for an export that is away fails at once; no error where there is nothing to tear."""
        with contextlib.suppress(QmpError):
            await self.call("yank", {"instances": [{"type": "block-node", "node-name": node}]})

    async def names(self, path: str) -> set[str]:
        """What QEMU has below one of its own paths."""
        return {each["name"] for each in await self.call("qom-list", {"path": path})}


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Qmp]:
    """To the socket at `path`. QEMU speaks to one at a time: who comes second waits. Raises UnreachableError."""
    client = QMPClient("lavalite")
    try:
        async with asyncio.timeout(CALL_SECONDS):
            await client.connect(await asyncio.to_thread(connect_unix, path))
    except (QMPError, OSError, EOFError, TimeoutError) as error:
        raise _unreachable(str(error) or type(error).__name__) from None
    try:
        yield Qmp(client)
    finally:
        with contextlib.suppress(QMPError, OSError, EOFError):
            await client.disconnect()


async def ask_back(qmp: Qmp, device: str) -> None:
    """The guest is asked to let go of a device. To be asked twice is no error."""
    with contextlib.suppress(QmpError):
        await qmp.call("device_del", {"id": device})


async def until(clock: Clock, seconds: float, done: Callable[[], Awaitable[bool]], why: str) -> None:
    """Raises LavaLiteError with `why` where it is not done by then."""
    deadline = clock.monotonic() + seconds
    while not await done():
        if clock.monotonic() > deadline:
            raise LavaLiteError(f"{why} within {seconds:.0f} s")
        await clock.sleep(POLL_SECONDS)


def connect_unix(path: Path) -> socket.socket:
    """Connected, however long the path is: the kernel takes 107 characters, so it is named by a descriptor.

    Raises OSError.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.settimeout(CALL_SECONDS)
        found.connect(f"/proc/self/fd/{folder}/{path.name}")
        found.setblocking(False)
        return found
    except BaseException:
        found.close()
        raise
    finally:
        os.close(folder)


def _unreachable(why: str) -> UnreachableError:
    return UnreachableError(f"QEMU does not answer ({why})", code="qemu")
