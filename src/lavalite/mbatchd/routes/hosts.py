"""Logical hosts: drain them, resume them, and compose what was reserved. What they are stands in the definition."""

from __future__ import annotations

from fastapi import APIRouter

from lavalite.api import models
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
