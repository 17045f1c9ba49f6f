"""allocate, create, reserve: an ask becomes a group, or is refused.

the group that it names; else one that has what is asked for; else new room, on the node that the policy prefers
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lavalite.groups.engine.changes import Changes, Refused
from lavalite.groups.engine.explain import in_the_way, refused
from lavalite.groups.engine.find import Room, new_room, open_rows, shares_of, there_already
from lavalite.groups.engine.picture import Picture, asked_amounts
from lavalite.groups.engine.shelf import may_be_of
from lavalite.groups.engine.waiting import seated_ahead
from lavalite.groups.engine.wanted import Wanted
from lavalite.groups.errors import GroupStateError, ReservationError, UnknownGroupError
from lavalite.groups.records import GroupRecord, Holder
from lavalite.groups.requirements import Ask
from lavalite.model.resources import GPU
from lavalite.placement.ranking import PolicyFault
from lavalite.placement.reasons import Reason

State = Literal["free", "reserved", "allocated"]
NOBODY = Holder()


def allocate(
    picture: Picture,
    ask: Ask,
    resources: Mapping[str, Any],
    now: float,
    group_id: str,
    holder: Holder = NOBODY,
    waiter_id: str = "",
) -> Changes | Refused:
    """A group for the component. `group_id` is that of a new one; `resources` is what was asked for, as it was
    written; `waiter_id` who asks, where it has waited: it waits no more then.

    Raises InputError, UnknownGroupError, GroupStateError, ReservationError.
    """
    changes = _decide(picture, ask, resources, now, group_id, "allocated", holder, None, waiter_id)
    if isinstance(changes, Changes) and (mine := picture.waiting.get(waiter_id)) is not None:
        changes.delete(mine.record)
    return changes


def create(
    picture: Picture,
    ask: Ask,
    resources: Mapping[str, Any],
    now: float,
    group_id: str,
    holder: Holder = NOBODY,
) -> Changes | Refused:
    """A new group that is free, until it is deleted. Raises InputError."""
    return _decide(picture, ask, resources, now, group_id, "free", holder, None, "")


def reserve(
    picture: Picture,
    ask: Ask,
    resources: Mapping[str, Any],
    now: float,
    group_id: str,
    timeout_seconds: float,
    holder: Holder = NOBODY,
) -> Changes | Refused:
    """A group that is kept for the component, or for whoever names it, for so long. Raises as `allocate`."""
    return _decide(picture, ask, resources, now, group_id, "reserved", holder, now + timeout_seconds, "")


def _decide(
    picture: Picture,
    ask: Ask,
    resources: Mapping[str, Any],
    now: float,
    group_id: str,
    state: State,
    holder: Holder,
    expires_at: float | None,
    waiter_id: str,
) -> Changes | Refused:
    wanted = picture.wanted(ask)
    requirements = {key: value for key, value in resources.items() if key not in ("constraints", "run")}
    run = ask.run.model_dump() if ask.run is not None else {}
    later: dict[str, Any] = {
        "state": state,
        "component": ask.component,
        "priority": ask.constraints.priority,
        "lifetime": ask.constraints.lifetime,
        "holder": holder,
        "expires_at": expires_at,
        "run": run,
    }
    with seated_ahead(picture, ask, now, waiter_id) as ahead:
        found = _find(picture, ask, wanted, state, now)
        if isinstance(found, GroupRecord):
            return _taken(found, ask, later)
        if isinstance(found, Room):
            changes = Changes()
            changes.put(
                GroupRecord(
                    id=group_id,
                    node=picture.columns.names[found.row],
                    shares=shares_of(picture, wanted, found),
                    team=ask.team,
                    pool=wanted.pools.get(GPU, "") or next(iter(wanted.pools.values()), ""),
                    created=state == "free",
                    requirements=requirements,
                    isolation=found.variant.isolation,
                    mig_profile=found.variant.profile if found.variant.instances else "",
                    made_at=now,
                    **later,
                )
            )
            return changes
    if ahead and _find(picture, ask, wanted, state, now) is not None:
        return in_the_way(picture, ask, ahead)
    if name := ask.constraints.group:
        return Refused(f"Compute group {name} has not what is asked for", {Reason.TOO_SMALL.value: 1}, ever=False)
    return refused(picture, ask, wanted)


def _find(picture: Picture, ask: Ask, wanted: Wanted, state: State, now: float) -> GroupRecord | Room | None:
    if ask.constraints.group:
        return _named(picture, ask, wanted, now)
    try:
        # What is kept for the component already is not what it reserves now: that is for one more.
        mine = state == "allocated"
        record = there_already(picture, ask, wanted, reserved=mine) if state != "free" else None
        return record or new_room(picture, ask, wanted)
    except PolicyFault as fault:
        raise GroupStateError(str(fault).removesuffix("."), hint="Say another strategy.") from fault


def _taken(record: GroupRecord, ask: Ask, later: Mapping[str, Any]) -> Changes:
    """The group changes hands. One that was created keeps what it was made for, and its team."""
    kept = {"team": record.team if record.created else ask.team}
    changes = Changes()
    changes.put(record.model_copy(update={**later, **kept}))
    return changes


def _named(picture: Picture, ask: Ask, wanted: Wanted, now: float) -> GroupRecord | None:
    """The group that the ask names; None where it has too little of anything, or is not where it may be."""
    name = ask.constraints.group
    record = picture.groups.get(name)
    if record is None:
        raise UnknownGroupError(name)
    if record.state == "reserved" and record.expires_at is not None and record.expires_at <= now:
        raise ReservationError(f"the reservation {name} has run out", hint="Reserve it anew.")
    if record.state == "reserved" and record.component and record.component != ask.component:
        raise ReservationError(f"compute group {name} is reserved for {record.component}")
    if record.state not in ("free", "reserved") or not record.ready:
        of = f" of {record.component}" if record.component else ""
        raise GroupStateError(f"compute group {name} is {record.state}{of}", hint="Take another one.")
    if fault := picture.fault_of(record):
        raise GroupStateError(f"compute group {name} has failed: {fault.removesuffix('.')}", hint="Take another one.")
    if not may_be_of([(s.kind, s.pool) for s in record.shares if s.pool], record.team, ask.team, picture.pools):
        whose = f"team {record.team}" if record.team else "no team"
        raise GroupStateError(f"compute group {name} counts for the quota of {whose}, not of {ask.team}")
    has = asked_amounts(record)
    if any(has.get(kind, 0) < amount for kind, amount in wanted.request.amounts().items()):
        return None
    mask = open_rows(picture, ask)
    row = picture.columns.row(record.node)
    elsewhere = ask.constraints.node and ask.constraints.node != record.node
    return record if row is not None and not elsewhere and (mask is None or mask[row]) else None
