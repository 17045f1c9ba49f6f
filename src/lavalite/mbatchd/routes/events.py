"""What changes, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from lavalite.mbatchd.http import TheScheduler, Who, server_sent

router = APIRouter(prefix="/v1")


@router.get("/events")
async def events(scheduler: TheScheduler, who: Who) -> StreamingResponse:
    """One event a change. A reader that fell behind is cut off: list again, then follow again."""

    async def body() -> AsyncIterator[str]:
        yield ": LavaLite tells changes here\n\n"
        async for change in scheduler.changes.follow():
            yield server_sent(change.kind, change.model_dump())

    return StreamingResponse(body(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
