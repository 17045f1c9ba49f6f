"""Logical hosts: drain them, resume them, and compose what was reserved. What they are stands in the definition."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from lavalite.api import models
from lavalite.mbatchd.answers import PiecesResponse
from lavalite.mbatchd.http import TheScheduler, Who

router = APIRouter(prefix="/v1")


@router.post("/hosts/{name}/drain")
async def drain(scheduler: TheScheduler, who: Who, name: str, dry_run: bool = False) -> models.Host:
    """Nothing new starts on the host; what runs there runs on, and it stays composed."""
    who.demand_operator("drain a logical host")
    return scheduler.reader.host_as(await scheduler.hosts.drain(name, undo=False, dry_run=dry_run))


@router.post("/hosts/{name}/resume")
async def resume(scheduler: TheScheduler, who: Who, name: str, dry_run: bool = False) -> models.Host:
    who.demand_operator("resume a logical host")
    return scheduler.reader.host_as(await scheduler.hosts.drain(name, undo=True, dry_run=dry_run))


@router.post("/hosts/{name}/apply")
async def apply(scheduler: TheScheduler, who: Who, name: str, dry_run: bool = False) -> models.Host:
    """A host that is reserved is composed; one that could not be composed is tried again at once."""
    who.demand_operator("apply a logical host")
    return scheduler.reader.host_as(await scheduler.hosts.apply(name, dry_run=dry_run))


@router.get("/hosts/{name}/console")
async def console(scheduler: TheScheduler, who: Who, name: str) -> StreamingResponse:
    """What the serial console of a virtual machine says, as long as it is read; by one at a time.

    The header LavaLite-Console is the key to type with.
    """
    who.demand_operator("use the console of a logical host")
    key, pieces = await scheduler.consoles.open(name, who)
    answer = PiecesResponse(pieces, "application/octet-stream")
    answer.headers[models.CONSOLE_HEADER] = key
    return answer


@router.post("/hosts/{name}/console/{key}", status_code=204)
async def type_at_console(scheduler: TheScheduler, who: Who, name: str, key: str, typed: models.ConsoleTyped) -> None:
    """Type there; with nothing typed, ask whether it is still open. With `leave` it is closed."""
    who.demand_operator("use the console of a logical host")
    scheduler.consoles.type(name, key, who, typed.data_base64, leave=typed.leave)
