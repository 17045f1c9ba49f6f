"""What every request passes first: who asks, and how much they may send. Before a byte of the body is read."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lavalite.base.errors import Fault
from lavalite.mbatchd.answers import fault_answer
from lavalite.mbatchd.identity import Doorman, NotAuthenticated

MAX_BODY_BYTES = 32 * 1024 * 1024
DISCARD_BYTES, DISCARD_SECONDS = 1024 * 1024, 1.0
OPEN_PATHS = frozenset({"/status", "/v1/openapi.json"})
"""What anybody may read."""

TOO_LONG = Fault("too_long", f"a request has at most {MAX_BODY_BYTES} bytes", hint="Send it in parts.")


class Gate:
    """ASGI middleware. Whoever is let in stands in `request.state.identity`.

    Parsing costs time that the scheduler has not: nothing is parsed for a stranger, nor beyond MAX_BODY_BYTES,
    whether the request says beforehand how long it is or not.
    """

    def __init__(self, app: ASGIApp, doorman: Doorman) -> None:
        self._app, self._doorman = app, doorman

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if scope["path"] not in OPEN_PATHS:
            try:
                request.state.identity = await self._doorman.identify(request)
            except NotAuthenticated as error:
                await _turn_away(fault_answer(401, [error.fault]), scope, receive, send)
                return
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            await _turn_away(fault_answer(413, [TOO_LONG]), scope, receive, send)
            return
        await self._app(scope, _counted(receive), send)


async def _turn_away(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer, and throw away a little of what is sent: closing with unread bytes would lose the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            left_bytes = DISCARD_BYTES
            while left_bytes > 0:
                message = await receive()
                left_bytes -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
    await answer(scope, receive, send)


def _counted(receive: Receive) -> Receive:
    """`receive`, until it has brought too much."""
    seen_bytes = 0

    async def counted() -> Message:
        nonlocal seen_bytes
        message = await receive()
        seen_bytes += len(message.get("body", b""))
        if seen_bytes > MAX_BODY_BYTES:
            raise HTTPException(413, TOO_LONG.message)
        return message

    return counted
