"""Reservations: what is kept for whom, when."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lavalite.api import models
from lavalite.mbatchd.http import TheScheduler, Who
from lavalite.mbatchd.paging import paged, words
from lavalite.model.job import Name

router = APIRouter(prefix="/v1")

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/reservations")
async def reservations(
    scheduler: TheScheduler, who: Who, limit: Limit = 1000, cursor: str = "", state: str = "", group: bool = False
) -> models.Page[models.Reservation]:
    """`state` may name several, separated by commas: planned, active. With `group`, only compute groups."""
    states = words(state)

    def wanted(found: models.Reservation) -> bool:
        return (not states or found.state in states) and (found.group or not group)

    return paged(scheduler.reader.reservations(), lambda r: r.name, limit, cursor, keep=wanted)


@router.get("/reservations/{name}")
async def reservation(scheduler: TheScheduler, who: Who, name: str) -> models.Reservation:
    return scheduler.reader.reservation(name)


@router.put("/reservations/{name}")
async def reserve(
    scheduler: TheScheduler, who: Who, name: Name, ask: models.ReservationPut, dry_run: bool = False
) -> models.ReservationResult:
    """One that is there already as it is asked for is left as it is."""
    who.demand_operator("make a reservation")
    made, changed = await scheduler.reservations.put(name, ask, who, dry_run=dry_run)
    return models.ReservationResult(changed=changed, reservation=scheduler.reader.reserved(made))


@router.post("/reservations/{name}/drain")
async def drain(scheduler: TheScheduler, who: Who, name: str, dry_run: bool = False) -> models.Reservation:
    """Let nothing new start in it. What is kept stays so."""
    return scheduler.reader.reserved(await scheduler.reservations.drain(name, who, False, dry_run=dry_run))


@router.post("/reservations/{name}/resume")
async def resume(scheduler: TheScheduler, who: Who, name: str, dry_run: bool = False) -> models.Reservation:
    return scheduler.reader.reserved(await scheduler.reservations.drain(name, who, True, dry_run=dry_run))


@router.delete("/reservations/{name}")
async def end(scheduler: TheScheduler, who: Who, name: str, dry_run: bool = False) -> models.ReservationResult:
    """Nothing is kept for it any more; what its tasks hold they go on holding."""
    ended = await scheduler.reservations.delete(name, who, dry_run=dry_run)
    return models.ReservationResult(changed=True, reservation=scheduler.reader.reserved(ended))
