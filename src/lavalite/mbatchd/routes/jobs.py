"""Jobs: submit, look at, end, hold, and read what they wrote."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from lavalite.api import models
from lavalite.base.errors import UnreachableError
from lavalite.mbatchd.answers import PiecesResponse
from lavalite.mbatchd.http import TheScheduler, Who
from lavalite.mbatchd.paging import words
from lavalite.model.decision import DecisionRecord

router = APIRouter(prefix="/v1")

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/jobs")
async def jobs(
    scheduler: TheScheduler,
    who: Who,
    limit: Limit = 100,
    cursor: str = "",
    state: str = "",
    user: str = "",
    queue: str = "",
    host: str = "",
    name: str = "",
    component: str = "",
    reservation: str = "",
) -> models.Page[models.Job]:
    """Newest last. `state` may name several, separated by commas.

    Of a `component`, or with `*` of any, those that have not ended: no others are looked at.
    """
    wanted = {"user": user, "queue": queue, "host": host, "name": name, "component": component}
    wanted["reservation"] = reservation
    return scheduler.reader.jobs(limit, cursor, set(words(state)), wanted)


@router.post("/jobs", status_code=201)
async def submit(
    scheduler: TheScheduler, who: Who, batch: models.SubmitBatch, dry_run: bool = False
) -> models.Submitted:
    return await scheduler.jobs.submit(batch, who, dry_run=dry_run)


@router.get("/jobs/{job_id}")
async def job(scheduler: TheScheduler, who: Who, job_id: int) -> models.Job:
    return scheduler.reader.job(job_id)


@router.get("/jobs/{job_id}/tasks")
async def tasks(
    scheduler: TheScheduler, who: Who, job_id: int, limit: Limit = 1000, cursor: str = "", state: str = ""
) -> models.Page[models.Task]:
    return scheduler.reader.tasks(job_id, limit, cursor, set(words(state)))


@router.get("/explain/{job_id}")
async def explain(scheduler: TheScheduler, who: Who, job_id: int) -> models.Explanation:
    return scheduler.reader.explain(job_id)


@router.get("/decisions/{job_id}")
async def decision(scheduler: TheScheduler, who: Who, job_id: int, task: int | None = None) -> DecisionRecord:
    """All that the last placement of the task, or of any of the job, went by."""
    return scheduler.reader.decision(job_id, task)


@router.post("/jobs/{job_id}/cancel")
async def cancel(scheduler: TheScheduler, who: Who, job_id: int, ask: models.CancelAsk) -> models.Job:
    await scheduler.jobs.cancel(job_id, ask.tasks, who, force=ask.force, waiting=ask.waiting)
    return scheduler.reader.job(job_id)


@router.post("/jobs/{job_id}/{verb}")
async def act(
    scheduler: TheScheduler, who: Who, job_id: int, verb: Literal["hold", "release", "suspend", "resume", "requeue"]
) -> models.Job:
    await scheduler.jobs.act(job_id, verb, who)
    return scheduler.reader.job(job_id)


@router.get("/jobs/{job_id}/output")
async def output(
    request: Request,
    scheduler: TheScheduler,
    who: Who,
    job_id: int,
    task: int | None = None,
    stream: Literal["stdout", "stderr"] = "stdout",
    offset: Annotated[int, Query(ge=0)] = 0,
    follow: bool = False,
) -> StreamingResponse:
    """The bytes from `offset` on. A failure in the middle ends the connection without its closing chunk."""
    pieces = scheduler.jobs.output(job_id, task, stream, who, offset=offset, follow=follow)
    first = await _first_while_connected(request, pieces)

    async def body() -> AsyncGenerator[bytes, None]:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return PiecesResponse(body(), "application/octet-stream")


async def _first_while_connected(request: Request, pieces: AsyncGenerator[bytes, None]) -> bytes:
    """The first piece, so that what is wrong can be told by a status; it may be long in coming.

    Nothing is waited for on behalf of somebody who has gone: people follow what waits, and lose patience.
    """
    first = asyncio.ensure_future(anext(pieces, b""))
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((first, gone), return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            return first.result()
        raise UnreachableError("whoever asked has gone")
    finally:
        for waiting in (first, gone):
            waiting.cancel()
        await asyncio.gather(first, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
