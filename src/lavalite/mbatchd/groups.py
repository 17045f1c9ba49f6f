"""For whom a job counts: the group that it names, if its user is in that, else the user's own group.

The groups are those of the machine that the scheduler runs on, as users are. They are looked up in a thread, since
a directory service may take its time, and remembered for a minute.
"""

from __future__ import annotations

import asyncio
import grp
import os
from collections.abc import Callable

from lavalite.base.errors import Fault
from lavalite.mbatchd.identity import Identity

REMEMBERED_SECONDS = 60.0
MAX_REMEMBERED = 10_000

Names = tuple[str, ...]
"""The user's own group first."""


class Groups:
    """`now` gives seconds, by any clock that does not step."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._found: dict[tuple[str, int], tuple[float, Names]] = {}

    async def of(self, who: Identity) -> Names:
        """The groups that they are in."""
        key, now = (who.user, who.gid), self._now()
        known = self._found.get(key)
        if known is not None and now - known[0] < REMEMBERED_SECONDS:
            return known[1]
        names = await asyncio.to_thread(_names, who.user, who.gid)
        if len(self._found) >= MAX_REMEMBERED:
            self._found.clear()
        self._found[key] = (now, names)
        return names


def chosen(asked: str, mine: Names, who: Identity) -> str | Fault:
    """The group that a job counts for, or why not the one that was asked for. Operators may name any."""
    if not asked:
        return mine[0]
    if asked in mine or who.operator:
        return asked
    hint = f"Name one of {', '.join(mine[:10])}, or none."
    return Fault("not_allowed", f"{who.user} is not in group {asked}", "group", hint)


def _names(user: str, gid: int) -> Names:
    gids = [gid, *sorted(set(os.getgrouplist(user, gid)) - {gid})]
    return tuple(map(_name, gids))


def _name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
