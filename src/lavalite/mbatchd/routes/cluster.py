"""What there is: status, pools, queues, hosts, commitments."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lavalite.api import models
from lavalite.mbatchd.http import TheScheduler, Who
from lavalite.mbatchd.paging import paged, words

router = APIRouter(prefix="/v1")

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/status")
async def status(scheduler: TheScheduler, who: Who) -> models.Status:
    return await scheduler.reader.status()


@router.get("/pools")
async def pools(scheduler: TheScheduler, who: Who, limit: Limit = 1000, cursor: str = "") -> models.Page[models.Pool]:
    return paged(scheduler.reader.pools(), lambda p: p.name, limit, cursor)


@router.get("/pools/{name}")
async def pool(scheduler: TheScheduler, who: Who, name: str) -> models.Pool:
    return scheduler.reader.pool(name)


@router.get("/queues")
async def queues(
    scheduler: TheScheduler, who: Who, limit: Limit = 1000, cursor: str = ""
) -> models.Page[models.Queue]:
    return paged(scheduler.reader.queues(), lambda q: q.name, limit, cursor)


@router.get("/queues/{name}")
async def queue(scheduler: TheScheduler, who: Who, name: str) -> models.Queue:
    return scheduler.reader.queue(name)


@router.get("/hosts")
async def hosts(
    scheduler: TheScheduler, who: Who, limit: Limit = 1000, cursor: str = "", state: str = ""
) -> models.Page[models.Host]:
    """`state` may name several, separated by commas."""
    states = words(state)
    return paged(
        scheduler.reader.hosts(), lambda h: h.name, limit, cursor, keep=lambda h: not states or h.state in states
    )


@router.get("/hosts/{name}")
async def host(scheduler: TheScheduler, who: Who, name: str) -> models.Host:
    return scheduler.reader.host(name)


@router.get("/commitments")
async def commitments(
    scheduler: TheScheduler, who: Who, limit: Limit = 1000, cursor: str = ""
) -> models.Page[models.Commitment]:
    return scheduler.reader.commitments(limit, cursor)


@router.get("/quarantine")
async def quarantine(
    scheduler: TheScheduler, who: Who, limit: Limit = 1000, cursor: str = ""
) -> models.Page[models.Quarantined]:
    return paged(sorted(scheduler.reader.quarantine(), key=_place), _place, limit, cursor)


def _place(found: models.Quarantined) -> str:
    return f"{found.node} {found.attempt}"
