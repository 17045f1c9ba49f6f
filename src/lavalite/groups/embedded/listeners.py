"""What is told to who watches: each change, as a value of lavalite.providers.base."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lavalite.base.errors import BusyError
from lavalite.groups.engine import views
from lavalite.groups.engine.picture import Picture
from lavalite.groups.records import GROUPS, NODES, POOLS, GroupRecord

MOST_UNREAD = 10_000
GONE = "gone"


class Told:
    """The changes that one listener has not read yet."""

    def __init__(self, picture: Picture, environment: Callable[[GroupRecord], dict[str, str]]) -> None:
        self._picture = picture
        self._environment = environment
        self._unread: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._behind = False

    def listen(self, keys: list[str]) -> None:
        """These have changed; they are told as they are now."""
        for key in keys:
            if self._unread.qsize() >= MOST_UNREAD:
                self._behind = True
                return
            if (change := self._change(key)) is not None:
                self._unread.put_nowait(change)

    async def next(self) -> dict[str, Any]:
        """Raises BusyError for who does not keep up: after that there are gaps."""
        if self._behind and self._unread.empty():
            hint = "Look at all there is, and watch anew."
            raise BusyError(f"more than {MOST_UNREAD} changes were not read", hint=hint)
        return await self._unread.get()

    def _change(self, key: str) -> dict[str, Any] | None:
        name, picture = key.partition("/")[2], self._picture
        if key.startswith(GROUPS):
            record = picture.groups.get(name)
            if record is None:
                return _told("group", name, GONE)
            group = views.group_view(picture, record, self._environment(record))
            return {"kind": "group", "id": name, "state": group["state"], "group": group}
        if key.startswith(NODES):
            node = picture.nodes.get(name)
            return _told("node", name, GONE if node is None else node.closed or "ready")
        if key.startswith(POOLS):
            return _told("pool", name, "there" if name in picture.pools else GONE)
        return None


def _told(kind: str, name: str, state: str) -> dict[str, Any]:
    return {"kind": kind, "id": name, "state": state, "group": None}
