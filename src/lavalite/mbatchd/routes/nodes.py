"""Nodes: look at them, drain them, resume them, give them labels, and forget them."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query

from lavalite.api import models
from lavalite.base.errors import InputError
from lavalite.mbatchd.http import TheScheduler, Who
from lavalite.mbatchd.paging import paged, words
from lavalite.model.selector import Selector

router = APIRouter(prefix="/v1")

MAX_DEADLINE_SECONDS = 366 * 86400
Limit = Annotated[int, Query(ge=1, le=1000)]
Deadline = Annotated[int | None, Query(ge=0, le=MAX_DEADLINE_SECONDS)]


@router.get("/nodes")
async def nodes(
    scheduler: TheScheduler, who: Who, limit: Limit = 1000, cursor: str = "", state: str = "", selector: str = ""
) -> models.Page[models.Node]:
    """`state` may name several, separated by commas. `selector` as in pools.yml: `n[01:04]`, or `{"rack": "r1"}`."""
    states, selects = words(state), _selector(selector)

    def wanted(node: models.Node) -> bool:
        return (not states or node.state in states) and (selects is None or selects.matches(node.name, node.labels))

    return paged(scheduler.reader.nodes(), lambda n: n.name, limit, cursor, keep=wanted)


@router.get("/nodes/{name}")
async def node(scheduler: TheScheduler, who: Who, name: str) -> models.Node:
    return scheduler.reader.node(name)


@router.post("/nodes/{name}/drain")
async def drain(
    scheduler: TheScheduler,
    who: Who,
    name: str,
    reason: str | None = None,
    deadline_seconds: Deadline = None,
    no_deadline: bool = False,
    dry_run: bool = False,
) -> models.Node:
    """What is not said stays as an earlier request said it. A deadline counts from when it was asked for first."""
    who.demand_operator("drain a node")
    found = await scheduler.nodes.drain(name, reason, deadline_seconds, no_deadline=no_deadline, dry_run=dry_run)
    return scheduler.reader.shown(found)


@router.post("/nodes/{name}/resume")
async def resume(scheduler: TheScheduler, who: Who, name: str, dry_run: bool = False) -> models.Node:
    who.demand_operator("resume a node")
    return scheduler.reader.shown(await scheduler.nodes.resume(name, dry_run=dry_run))


@router.delete("/nodes/{name}")
async def forget(scheduler: TheScheduler, who: Who, name: str, dry_run: bool = False) -> models.Node:
    """Answers with the node as it was."""
    who.demand_operator("forget a node")
    return scheduler.reader.shown(await scheduler.nodes.forget(name, dry_run=dry_run))


@router.put("/nodes/{name}/labels")
async def label(
    scheduler: TheScheduler, who: Who, name: str, ask: models.LabelsPut, dry_run: bool = False
) -> models.Node:
    who.demand_operator("label a node")
    return scheduler.reader.shown(await scheduler.nodes.label(name, ask, dry_run=dry_run))


def _selector(text: str) -> Selector | None:
    """Raises InputError."""
    if not text:
        return None
    try:
        return Selector.parse(json.loads(text) if text.startswith(("{", '["')) else text)
    except ValueError:
        hint = 'Write {"rack": "r1"}, or n[01:04].'
        raise InputError("this is no selector of nodes", code="bad_selector", field="selector", hint=hint) from None
    except InputError as error:
        raise error.at("selector") from None
