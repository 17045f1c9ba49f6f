"""The definition: pools.yml as a whole, and its entries one by one."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Response

from lavalite.api import models
from lavalite.mbatchd.http import TheScheduler, Who

router = APIRouter(prefix="/v1")

Section = Literal["pools", "queues", "hosts"]


@router.get("/definition", response_model=models.Definition)
async def definition(
    scheduler: TheScheduler, who: Who, response: Response, if_none_match: Annotated[str, Header()] = ""
) -> models.Definition | Response:
    current = scheduler.definition.current()
    tag = f'"{current.version}"'
    if if_none_match == tag:
        return Response(status_code=304, headers={"ETag": tag})
    response.headers["ETag"] = tag
    return current


@router.put("/definition")
async def apply(
    scheduler: TheScheduler,
    who: Who,
    ask: models.DefinitionPut,
    dry_run: bool = False,
    if_match: Annotated[str, Header(pattern=r'^$|^"\d{1,18}"$')] = "",
) -> models.DefinitionResult:
    """`If-Match` is the `ETag` that the definition was read with."""
    if not dry_run:
        who.demand_operator("change the definition")
    version = int(if_match.strip('"')) if if_match else None
    return await scheduler.definition.apply(ask, dry_run=dry_run, if_version=version)


@router.post("/plan")
async def plan(scheduler: TheScheduler, who: Who, ask: models.DefinitionPut) -> models.Plan:
    """Where the logical hosts of a document would be, were it applied now."""
    result = await scheduler.definition.apply(ask, dry_run=True)
    return models.Plan(hosts=result.hosts)


@router.put("/{section}/{name}")
async def put_entry(
    scheduler: TheScheduler, who: Who, section: Section, name: str, ask: models.EntryPut, dry_run: bool = False
) -> models.DefinitionResult:
    if not dry_run:
        who.demand_operator(f"change {section}")
    return await scheduler.definition.put_entry(section, name, ask, dry_run=dry_run)


@router.delete("/{section}/{name}")
async def delete_entry(
    scheduler: TheScheduler,
    who: Who,
    section: Section,
    name: str,
    dry_run: bool = False,
    if_version: int | None = None,
) -> models.DefinitionResult:
    if not dry_run:
        who.demand_operator(f"change {section}")
    return await scheduler.definition.delete_entry(section, name, dry_run=dry_run, if_version=if_version)
