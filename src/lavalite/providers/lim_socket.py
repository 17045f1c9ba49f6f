"""Questions to the LIM of this machine, over its Unix socket, each on a connection of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from lavalite.wire.frames import AnyFrame, AskToken, Bye, Granted, Leader, Resign, WhoLeads
from lavalite.wire.question import Answer, ask_here


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
    return await ask_here(str(socket), f"LIM at {socket}", question, answer, timeout_seconds=timeout_seconds)
