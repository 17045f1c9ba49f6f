"""What goes wrong, in the one shape that /v1 says it in; and answers that come in pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog
from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from lavalite.base.errors import Fault, LavaLiteError

log = structlog.get_logger(__name__)


def fault_answer(status: int, faults: list[Fault], headers: dict[str, str] | None = None) -> Response:
    """`{"errors": [...]}`, one entry a fault."""
    body = {
        "errors": [
            {"code": f.code, "message": f.message, "field": f.field, "hint": f.hint, "file": f.file, "line": f.line}
            for f in faults
        ]
    }
    # In ASCII: a message may quote what was sent, and that may be no text.
    return Response(json.dumps(body), status, headers, media_type="application/json")


def server_sent(kind: str, payload: object) -> str:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(payload, separators=(',', ':'))}\n\n"


class PiecesResponse(StreamingResponse):
    """Pieces as they come. Whatever ends the answer, what makes the pieces is ended with it, at once.

    A failure in the middle ends the connection without its closing chunk: the only way that is left to say so.
    """

    def __init__(self, pieces: AsyncGenerator[bytes | str, None], media_type: str) -> None:
        super().__init__(pieces, media_type=media_type, headers={"Cache-Control": "no-store"})
        self._pieces = pieces

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._pieces):
            try:
                await super().stream_response(send)
            except LavaLiteError as error:
                log.info("an answer was broken off", reason=error.fault.message)
