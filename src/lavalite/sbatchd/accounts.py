"""Users of this node: name, home and groups by uid, as the system's databases tell them."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from typing import Any

from lavalite.base.clock import Clock

KEPT_SECONDS = 30.0
"""So long counts what was looked up: of all that it takes to start an attempt, that is a large part."""
MOST_KEPT = 1000


@dataclass(slots=True, frozen=True)
class Account:
    """A user. One that the databases do not know has their number for a name, and no group."""

    name: str
    home: str
    gid: int | None


class Accounts:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._accounts: dict[int, tuple[float, Account]] = {}
        self._groups: dict[tuple[int, int], tuple[float, list[int]]] = {}

    def of(self, uid: int) -> Account:
        kept, now = self._accounts.get(uid), self._clock.boottime()
        if kept is None or now - kept[0] > KEPT_SECONDS:
            _make_room(self._accounts)
            kept = self._accounts[uid] = now, _look_up(uid)
        return kept[1]

    def groups(self, uid: int, gid: int) -> list[int]:
        """All groups of the user's processes, `gid` among them."""
        kept, now = self._groups.get((uid, gid)), self._clock.boottime()
        if kept is None or now - kept[0] > KEPT_SECONDS:
            account = self.of(uid)
            _make_room(self._groups)
            known = [] if account.gid is None else os.getgrouplist(account.name, gid)
            kept = self._groups[uid, gid] = now, known
        return kept[1]


def _make_room(kept: dict[Any, Any]) -> None:
    if len(kept) >= MOST_KEPT:
        kept.clear()


def _look_up(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(str(uid), "/", None)
    return Account(entry.pw_name, entry.pw_dir, entry.pw_gid)
