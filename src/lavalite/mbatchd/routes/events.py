"""What changes, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from lavalite.api import models
from lavalite.mbatchd.answers import PiecesResponse, server_sent
from lavalite.mbatchd.changes import Told
from lavalite.mbatchd.http import TheScheduler, Who
from lavalite.mbatchd.paging import words

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


@router.get("/events/recent")
async def recent(
    scheduler: TheScheduler,
    who: Who,
    since: str = "",
    kind: str = "",
    name: str = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    wait_seconds: Annotated[float, Query(ge=0, le=60)] = 0,
) -> models.ChangePage:
    """What changed after the cursor `since` (`now`: from now on), waited for where there is nothing yet.

    `kind` may name several, separated by commas.
    """
    kinds = words(kind)

    def wanted(change: Told) -> bool:
        return (not kinds or change.kind in kinds) and name in ("", change.name)

    return await scheduler.changes.recent(since, wanted, limit, wait_seconds)
