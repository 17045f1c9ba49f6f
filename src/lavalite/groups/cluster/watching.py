"""Changes of groups, nodes and pools as they happen, by a cursor that no break of the connection makes forget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from lavalite.api.client import Client
from lavalite.api.models import Change, ChangePage
from lavalite.base.clock import Clock
from lavalite.base.errors import UnknownNameError, UnreachableError
from lavalite.groups.cluster.calls import Calls

KINDS = ("group", "reservation", "node", "definition")
WAIT_SECONDS = 5.0
"""One question waits so long: whoever stops listening has its thread back by then."""
AGAIN_SECONDS = 1.0
GONE = "gone"

Told = dict[str, Any]
Look = Callable[[], Awaitable[list[dict[str, Any]]]]
Find = Callable[[Change], Awaitable[dict[str, Any] | None]]


async def changes(calls: Calls, clock: Clock, everything: Look, find: Find) -> AsyncIterator[Told]:
    """`everything` gives all groups, for what was missed; `find` the group that a change is of, None if it is gone.

    Ends only when the caller does. Goes on with the next leader.
    """
    cursor = ""
    known: set[str] = set()
    while True:
        try:
            page = await _next(calls, cursor)
            if page.missed:
                for group in await everything():
                    known.add(group["id"])
                    yield _told_of(group)
            cursor = page.cursor
            for change in page.items:
                if change.kind == "node":
                    yield {"kind": "node", "id": change.name, "state": change.state, "group": None}
                elif change.kind == "definition":
                    yield {"kind": "pool", "id": change.name, "state": change.state, "group": None}
                elif (found := await _found(find, change)) is not None:
                    known.add(found["id"])
                    yield _told_of(found)
                elif (group_id := _id_of(change)) in known:
                    known.discard(group_id)
                    yield {"kind": "group", "id": group_id, "state": GONE, "group": None}
        except UnreachableError:
            await clock.sleep(AGAIN_SECONDS)


async def _next(calls: Calls, cursor: str) -> ChangePage:
    if not cursor:
        return await calls(Client.recent, "now", kinds=KINDS)
    return await calls(Client.recent, cursor, kinds=KINDS, wait_seconds=WAIT_SECONDS)


async def _found(find: Find, change: Change) -> dict[str, Any] | None:
    try:
        return await find(change)
    except UnknownNameError:
        return None


def _id_of(change: Change) -> str:
    return change.name if change.kind == "reservation" else f"job-{change.name}"


def _told_of(group: dict[str, Any]) -> Told:
    return {"kind": "group", "id": group["id"], "state": group["state"], "group": group}
