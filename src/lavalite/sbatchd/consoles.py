"""Serial consoles of this node's virtual machines, used from afar: bytes both ways between the leader and a socket.

    Console ─► connected ─► an empty Output ─► what the machine says, as Outputs ─► Output(ended)
    Typed   ─► at most MAX_WAITING pieces, that the machine has not taken yet ─► the socket
    CancelRead, or the end of the session: the socket is closed

QEMU serves one at a time, and so is one of each machine here. What is said waits for a leader that is behind.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from lavalite.base.errors import LavaLiteError
from lavalite.wire.frames import Console, Output, Typed

CHUNK_BYTES = 4096
MAX_WAITING = 64
MAX_CONSOLES = 16
LINGER_SECONDS = 5.0

Connect = Callable[[str], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""To the console of a logical host's machine. Raises LavaLiteError, OSError."""


async def none_here(host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    raise LavaLiteError("this node runs no virtual machines", code="no_console")


@dataclass(slots=True)
class _Open:
    host: str
    typed: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING))
    task: asyncio.Task[None] | None = None
    writer: asyncio.StreamWriter | None = None
    error: str = ""


class Consoles:
    """Those of one session with a leader, by the number of their stream."""

    def __init__(self, send: Callable[[Output], Awaitable[None]], connect: Connect) -> None:
        self._send, self._connect = send, connect
        self._open: dict[int, _Open] = {}

    def open(self, ask: Console) -> None:
        """Answered by Outputs."""
        number = ask.stream_id
        if number in self._open:
            return
        one = _Open(ask.host)
        if any(other.host == ask.host for other in self._open.values()):
            one.error = "somebody uses it from afar already, and it is used by one at a time"
        elif len(self._open) >= MAX_CONSOLES:
            one.error = f"{MAX_CONSOLES} consoles of this node are used already"
        self._open[number] = one
        one.task = asyncio.create_task(self._serve(number, one))
        one.task.add_done_callback(lambda _: self._open.pop(number, None))

    def type(self, typed: Typed) -> None:
        """For a console that is closed by now, nothing is done."""
        one = self._open.get(typed.stream_id)
        if one is None or one.error:
            return
        try:
            one.typed.put_nowait(base64.b64decode(typed.data_base64, validate=True))
        except asyncio.QueueFull:
            self._break(one, "its machine does not take what is typed")
        except binascii.Error:
            self._break(one, "what was typed is no base64")

    def cancel(self, stream_id: int) -> None:
        one = self._open.get(stream_id)
        if one is not None and one.task is not None:
            one.task.cancel()

    async def close(self) -> None:
        tasks = [one.task for one in self._open.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _break(one: _Open, why: str) -> None:
        one.error = why
        if one.writer is not None:
            one.writer.transport.abort()

    async def _serve(self, number: int, one: _Open) -> None:
        offset = 0
        with contextlib.suppress(LavaLiteError):  # the session is gone, and the console with it
            if not one.error:
                try:
                    offset = await self._carry(number, one)
                except LavaLiteError as error:
                    one.error = error.fault.message
                except OSError as error:
                    one.error = one.error or f"it cannot be reached: {error.strerror or error}"
            one.host = ""  # whoever hears that it is over may come at once
            await self._send(Output(stream_id=number, offset=offset, ended=True, error=one.error))

    async def _carry(self, number: int, one: _Open) -> int:
        """Until the machine closes it; how many bytes it has said."""
        reader, one.writer = await self._connect(one.host)
        if one.error:
            one.writer.transport.abort()
        typing = asyncio.create_task(self._type(one, one.writer))
        offset = 0
        try:
            await self._send(Output(stream_id=number, offset=0))
            while said := await reader.read(CHUNK_BYTES):
                data = base64.b64encode(said).decode()
                await self._send(Output(stream_id=number, offset=offset, data_base64=data))
                offset += len(said)
        finally:
            typing.cancel()
            if not one.error:  # what was typed before it was left still goes there, where it is taken at once
                while not one.typed.empty():
                    one.writer.write(one.typed.get_nowait())
            one.writer.close()
            asyncio.get_running_loop().call_later(LINGER_SECONDS, one.writer.transport.abort)
        return offset

    @staticmethod
    async def _type(one: _Open, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # who reads is told
            while True:
                writer.write(await one.typed.get())
                await writer.drain()
