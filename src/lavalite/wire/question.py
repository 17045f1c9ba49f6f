"""One question to a daemon of this machine, on a connection of its own."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from lavalite import __version__
from lavalite.base.errors import LavaLiteError, RefusedError
from lavalite.wire.connection import Connection
from lavalite.wire.frames import AnyFrame, Frame, Hello, Refused

Answer = TypeVar("Answer", bound=Frame)


async def ask_here(
    socket: str, whom: str, question: AnyFrame, answer: type[Answer], *, timeout_seconds: float = 5
) -> Answer:
    """What the daemon at the Unix socket answers; `whom` is what people call it.

    Raises UnreachableError, RefusedError, and LavaLiteError for a late answer or one that is none.
    """
    hello = Hello(software_version=__version__, cluster="", node="", role="local")
    connection, _ = await Connection.open(f"unix:{socket}", hello, timeout_seconds=timeout_seconds)
    try:
        async with asyncio.timeout(timeout_seconds):
            await connection.send(question)
            frame = await connection.receive()
    except TimeoutError:
        raise LavaLiteError(f"{whom} did not answer within {timeout_seconds:g} s", code="timeout") from None
    finally:
        await connection.close()
    if isinstance(frame, answer):
        return frame
    if isinstance(frame, Refused):
        raise RefusedError(frame.message, code=frame.code)
    raise LavaLiteError(f"{whom} answered with {frame.type!r}, which is no answer to that", code="bad_answer")
