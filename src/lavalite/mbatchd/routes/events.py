"""What changes, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from lavalite.mbatchd.answers import PiecesResponse, server_sent
from lavalite.mbatchd.http import TheScheduler, Who

router = APIRouter(prefix="/v1")


@router.get("/events")
async def events(scheduler: TheScheduler, who: Who) -> StreamingResponse:
    """One event a change. A reader that fell behind is cut off: list again, then follow again."""

    async def body() -> AsyncGenerator[str, None]:
        yield ": LavaLite tells changes here\n\n"
        async with aclosing(scheduler.changes.follow()) as changes:
            async for change in changes:
                # A comment now and then tells both sides that the other is still there.
                yield server_sent(change.kind, change.model_dump()) if change else ": nothing changed\n\n"

    return PiecesResponse(body(), "text/event-stream")
