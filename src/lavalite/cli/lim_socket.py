"""Questions to the LIM of this machine, over its Unix socket, each on a connection of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

from lavalite import __version__
from lavalite.base.errors import LavaLiteError, RefusedError
from lavalite.wire.connection import Connection
from lavalite.wire.frames import AnyFrame, AskToken, Bye, Frame, Granted, Hello, Leader, Refused, Resign, WhoLeads

Answer = TypeVar("Answer", bound=Frame)


def who_leads(socket: Path) -> Leader:
    """Whom the LIM takes for the leader. Raises UnreachableError."""
    return asyncio.run(_ask(socket, WhoLeads(), Leader))


def api_token(socket: Path) -> str:
    """A token for the API in the name of who asks. Raises UnreachableError, RefusedError."""
    return asyncio.run(_ask(socket, AskToken(audience="api"), Granted)).token


def resign(socket: Path) -> str:
    """Ask the LIM to hand leadership over; what it says to that. Raises RefusedError where it does not lead."""
    return asyncio.run(_ask(socket, Resign(), Bye, timeout_seconds=60)).reason


async def _ask(socket: Path, question: AnyFrame, answer: type[Answer], *, timeout_seconds: float = 5) -> Answer:
    hello = Hello(software_version=__version__, cluster="", node="", role="local")
    connection, _ = await Connection.open(f"unix:{socket}", hello, timeout_seconds=timeout_seconds)
    try:
        async with asyncio.timeout(timeout_seconds):
            await connection.send(question)
            frame = await connection.receive()
    except TimeoutError:
        raise LavaLiteError(f"LIM at {socket} did not answer within {timeout_seconds:g} s", code="timeout") from None
    finally:
        await connection.close()
    if isinstance(frame, answer):
        return frame
    if isinstance(frame, Refused):
        raise RefusedError(frame.message, code=frame.code)
    raise LavaLiteError(
        f"LIM at {socket} answered with {frame.type!r}, which is no answer to that", code="bad_answer"
    )
