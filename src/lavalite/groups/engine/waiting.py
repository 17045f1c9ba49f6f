"""Who waits for room, in which order, and that nobody overtakes them.

Before an ask is decided, those that wait ahead of it are seated, as far as there is room: in the picture alone, and
only until the ask is decided. What it is given then is what they would leave.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lavalite.base.errors import LavaLiteError
from lavalite.groups.engine.changes import Changes
from lavalite.groups.engine.find import new_room, shares_of, there_already
from lavalite.groups.engine.picture import Picture, Waiter
from lavalite.groups.records import WAITING, GroupRecord, WaitingRecord
from lavalite.groups.requirements import Ask
from lavalite.placement.ranking import PolicyFault

NEWCOMER = chr(0x10FFFF)
"""Of those that came at the same moment, after all who wait."""
Turn = tuple[int, int, float, str]
"""Less is sooner: by priority of the pool, own priority, how long it has waited."""


def turn_of(picture: Picture, ask: Ask, asked_at: float, name: str) -> Turn:
    return (-picture.wanted(ask).priority, -ask.constraints.priority, asked_at, name)


@contextlib.contextmanager
def seated_ahead(picture: Picture, ask: Ask, now: float, waiter_id: str) -> Iterator[int]:
    """How many wait ahead of the ask and could have room now: within, they have it."""
    ahead = _ahead(picture, ask, now, waiter_id)
    undo = []
    seated, hopeless = 0, set[tuple[object, ...]]()
    try:
        for waiter in ahead:
            alike = (waiter.record.component, repr(sorted(waiter.record.resources.items(), key=str)))
            if alike in hopeless:
                continue
            seat = None
            with contextlib.suppress(LavaLiteError, PolicyFault):
                seat = _seat(picture, waiter)
            if seat is None:
                hopeless.add(alike)  # nor has any other that asks for the same
                continue
            undo.append(picture.take(seat))
            seated += 1
        yield seated
    finally:
        for before in reversed(undo):
            picture.put_back(before)


def _ahead(picture: Picture, ask: Ask, now: float, waiter_id: str) -> list[Waiter]:
    if not picture.waiting or (len(picture.waiting) == 1 and waiter_id in picture.waiting):
        return []
    mine = picture.waiting.get(waiter_id)
    asked_at = mine.record.asked_at if mine is not None else now
    turn = turn_of(picture, ask, asked_at, waiter_id or NEWCOMER)
    found = []
    for name, waiter in picture.waiting.items():
        if name == waiter_id or waiter.record.expires_at <= now:
            continue
        with contextlib.suppress(LavaLiteError):  # of a pool that is gone, say: nothing is in its way
            found.append((turn_of(picture, waiter.ask, waiter.record.asked_at, name), waiter))
    return [waiter for other, waiter in sorted(found, key=lambda entry: entry[0]) if other < turn]


def _seat(picture: Picture, waiter: Waiter) -> Changes | None:
    """What the waiter would have now; None if there is nothing for it."""
    changes, ask = Changes(), waiter.ask
    wanted = picture.wanted(ask)
    if name := ask.constraints.group:
        found = picture.groups.get(name)
        record = found if found is not None and found.state == "free" and found.ready else None
    else:
        record = there_already(picture, ask, wanted)
    if record is not None:
        seat = record.model_copy(update={"state": "allocated", "component": ask.component, "expires_at": None})
        changes.put(seat)
        return changes
    room = None if name else new_room(picture, ask, wanted)
    if room is None:
        return None
    changes.put(
        GroupRecord(
            id=f"{WAITING}{waiter.record.id}",
            node=picture.columns.names[room.row],
            shares=shares_of(picture, wanted, room),
            state="allocated",
            component=ask.component,
            team=ask.team,
            isolation=room.variant.isolation,
            mig_profile=room.variant.profile if room.variant.instances else "",
            requirements={k: v for k, v in waiter.record.resources.items() if k not in ("constraints", "run")},
        )
    )
    return changes


def wait(
    picture: Picture, ask: Ask, resources: dict[str, object], now: float, waiter_id: str, expires_at: float
) -> Changes:
    """That it waits, or waits on: its asker prolongs it while it lives."""
    mine, changes = picture.waiting.get(waiter_id), Changes()
    changes.put(
        WaitingRecord(
            id=waiter_id,
            component=ask.component,
            resources=dict(resources),
            priority=ask.constraints.priority,
            asked_at=mine.record.asked_at if mine is not None else now,
            expires_at=expires_at,
        )
    )
    return changes


def give_up(picture: Picture, waiter_id: str) -> Changes:
    """It waits no more."""
    changes = Changes()
    if (mine := picture.waiting.get(waiter_id)) is not None:
        changes.delete(mine.record)
    return changes
