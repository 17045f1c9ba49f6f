"""What there is: status, pools, queues, hosts, commitments."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from pydantic_core import to_json

from lavalite.api import models
from lavalite.base.errors import InputError
from lavalite.mbatchd.http import TheScheduler, Who
from lavalite.mbatchd.paging import paged, words
from lavalite.mbatchd.tags import holds

router = APIRouter(prefix="/v1")

Limit = Annotated[int, Query(ge=1, le=1000)]
KnownTag = Annotated[str, Header()]
ALWAYS = frozenset({"name", "state"})
"""Fields of a host that every answer has."""


@router.get("/status")
async def status(scheduler: TheScheduler, who: Who) -> models.Status:
    return await scheduler.reader.status()


@router.get("/pools", response_model=models.Page[models.Pool])
async def pools(
    scheduler: TheScheduler,
    who: Who,
    response: Response,
    limit: Limit = 1000,
    cursor: str = "",
    if_none_match: KnownTag = "",
) -> models.Page[models.Pool] | Response:
    """The `ETag` speaks for the whole collection, on whichever page it stands."""
    tag = scheduler.tags.pools()
    if holds(tag, if_none_match):
        return _unchanged(tag)
    response.headers["ETag"] = tag
    return paged(scheduler.reader.pools(), lambda p: p.name, limit, cursor)


@router.get("/pools/{name}")
async def pool(scheduler: TheScheduler, who: Who, name: str) -> models.Pool:
    return scheduler.reader.pool(name)


@router.get("/resources", response_model=models.Page[models.NodeResources])
async def resources(
    scheduler: TheScheduler,
    who: Who,
    response: Response,
    limit: Limit = 1000,
    cursor: str = "",
    state: str = "",
    if_none_match: KnownTag = "",
) -> models.Page[models.NodeResources] | Response:
    """What each node has, device by device, and what of it is free. `state` as of /v1/nodes.

    The `ETag` speaks for the whole collection, on whichever page it stands.
    """
    tag = scheduler.tags.resources()
    if holds(tag, if_none_match):
        return _unchanged(tag)
    response.headers["ETag"] = tag
    states = words(state)
    found = scheduler.reader.resources(cursor)
    return paged(found, lambda r: r.node, limit, cursor, keep=lambda r: not states or r.state in states)


@router.get("/queues")
async def queues(
    scheduler: TheScheduler, who: Who, limit: Limit = 1000, cursor: str = ""
) -> models.Page[models.Queue]:
    return paged(scheduler.reader.queues(), lambda q: q.name, limit, cursor)


@router.get("/queues/{name}")
async def queue(scheduler: TheScheduler, who: Who, name: str) -> models.Queue:
    return scheduler.reader.queue(name)


@router.get("/hosts", response_model=models.Page[models.Host])
async def hosts(
    scheduler: TheScheduler,
    who: Who,
    limit: Limit = 1000,
    cursor: str = "",
    state: str = "",
    fields: str = "",
    if_none_match: KnownTag = "",
) -> Response:
    """`state` may name several, separated by commas. `fields` likewise: name and state are always there.

    The `ETag` speaks for the whole collection, on whichever page it stands. It changes with what is in use of the
    hosts only where `resources` is asked for.
    """
    wanted = _fields(fields)
    tag = scheduler.tags.hosts(wanted)
    if holds(tag, if_none_match):
        return _unchanged(tag)
    views = scheduler.reader.host_views(cursor, wanted)
    states = words(state)
    page = paged(views, lambda h: str(h["name"]), limit, cursor, keep=lambda h: not states or h["state"] in states)
    # Plain dictionaries, written as they are: models of thousands of hosts would keep the loop for seconds.
    content = to_json({"items": page.items, "next_cursor": page.next_cursor})
    return Response(content, media_type="application/json", headers={"ETag": tag})


def _fields(text: str) -> frozenset[str]:
    """The names in a list of fields; none for all. Raises InputError."""
    named = words(text)
    unknown = sorted(named - models.Host.model_fields.keys())
    if unknown:
        hint = f"There are: {', '.join(models.Host.model_fields)}."
        raise InputError(f"a host has no field {unknown[0]}", field="fields", hint=hint)
    return named | ALWAYS if named else named


def _unchanged(tag: str) -> Response:
    return Response(status_code=304, headers={"ETag": tag})


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
