"""What people ask of reservations: make one, and end it. Both are durable when they are answered."""

from __future__ import annotations

from datetime import UTC, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from lavalite.api import models
from lavalite.base.errors import ConflictError, Fault, InputError, UnknownNameError
from lavalite.control.events import ReservationDrained, ReservationEnded, ReservationMade
from lavalite.control.reservations import Asked, choose_nodes
from lavalite.mbatchd.identity import Identity
from lavalite.mbatchd.service import Service
from lavalite.model.recurrence import MOST_DAYS, is_on_its_day, starts
from lavalite.model.reservation import Reservation
from lavalite.model.resources import GPU, KINDS, WHOLE
from lavalite.model.selector import Selector
from lavalite.placement.reasons import Reason, Refusal

MAX_RESERVATIONS = 1000
UTC_NAME = "UTC"
NEVER = frozenset({Reason.NOT_IN_POOL, Reason.NO_KIND, Reason.TOO_SMALL})
"""Why a node could not have it even if nobody held anything of it."""
LATE_SECONDS = 60.0
"""So much in the past a start may be, for a request takes its time and clocks differ; it begins now then."""


class ReservationDesk:
    """Makes a reservation whole, or not at all."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def put(
        self, name: str, ask: models.ReservationPut, who: Identity, *, dry_run: bool
    ) -> tuple[Reservation, bool]:
        """(the reservation, whether it was not there before). Raises InputError with the reason why it does not fit.

        One that is there already as it is asked for is left as it is. Raises ConflictError where it differs.
        """
        known = self._service.state.reservations.get(name)
        if known is not None:
            _demand_same(known, ask, who)
            self._demand_selected(known, ask)
            await self._service.settled()
            return known, False
        made = self._planned(name, ask, who)
        if not dry_run:
            await self._service.obey(ReservationMade(made))
        return made, True

    async def drain(self, name: str, who: Identity, undo: bool, *, dry_run: bool) -> Reservation:
        """Let nothing new start in it, or (`undo`) let it again. Raises UnknownNameError."""
        found = self._known(name)
        who.demand_owner(found.owner, f"{'resume' if undo else 'drain'} reservation {name}")
        if not dry_run:
            await self._service.obey(ReservationDrained(name, undo))
        return found.model_copy(update={"drained": not undo})

    async def delete(self, name: str, who: Identity, *, dry_run: bool) -> Reservation:
        """End it. What its tasks hold they go on holding. Raises UnknownNameError."""
        found = self._known(name)
        who.demand_owner(found.owner, f"end reservation {name}")
        if not dry_run:
            await self._service.obey(ReservationEnded(name))
        return found

    def _known(self, name: str) -> Reservation:
        found = self._service.state.reservations.get(name)
        if found is None:
            hint = "It may be over; see lavalite reservations."
            raise UnknownNameError(f"there is no reservation {name}", field="reservation", hint=hint)
        return found

    def _planned(self, name: str, ask: models.ReservationPut, who: Identity) -> Reservation:
        state, now = self._service.state, self._service.time.now()
        start = max(now, ask.start or now)
        zone = zone_of(ask.zone)
        faults = [*_faults(ask, now), *self._pool_faults(ask), *_recurring_faults(ask, zone, start)]
        faults += _group_faults(ask)
        if len(state.reservations) >= MAX_RESERVATIONS:
            faults.append(Fault("too_many", f"there are {MAX_RESERVATIONS} reservations already", "", "End some."))
        if faults:
            raise InputError(faults=faults)
        amounts = ask.amounts()
        until = _until(ask, start)
        later = starts(start, ask.every, zone, until)[1:] if ask.every and zone is not None else []
        end = start + ask.duration_seconds
        asked = Asked(amounts, ask.count, ask.pool, start, end, tuple(later), selector_of(ask))
        nodes = choose_nodes(state, asked, now)
        if isinstance(nodes, Refusal):
            message = f"{nodes.asked} cannot be had at that time: {nodes.sentence()}"
            hint = "Ask for less, or for another time; what runs without a walltime may run for ever."
            never = all(reason in NEVER for reason in nodes.turned_away)
            raise InputError(message, code="never_fits" if never else "does_not_fit", field="amounts", hint=hint)
        return Reservation(
            name=name,
            owner=who.user,
            users=sorted(set(ask.users)),
            pool=ask.pool,
            amounts=amounts,
            nodes=nodes,
            start=start,
            end=asked.end,
            timeout_seconds=ask.timeout_seconds,
            made_at=now,
            every=ask.every,
            zone=(ask.zone or UTC_NAME) if ask.every else "",
            first=start if ask.every else None,
            until=until if ask.every else None,
            later=later,
            group=ask.group,
            component=ask.component,
        )

    def _demand_selected(self, known: Reservation, ask: models.ReservationPut) -> None:
        """One that there is already is on nodes that are asked for now. Raises ConflictError."""
        selector, nodes = selector_of(ask), self._service.state.nodes
        labels = {name: nodes[name].labels if name in nodes else {} for name in known.nodes}
        if selector is not None and not all(selector.matches(name, labels[name]) for name in known.nodes):
            hint = "A reservation is not changed: end it and make it anew, or give this one another name."
            raise ConflictError(
                f"reservation {known.name} is there already, on other nodes", code="exists", hint=hint
            )

    def _pool_faults(self, ask: models.ReservationPut) -> list[Fault]:
        pools = self._service.state.specs.pools
        if not ask.pool:
            return []
        if ask.pool not in pools:
            hint = f"There are {', '.join(sorted(pools)[:20])}." if pools else "There is none yet."
            return [Fault("unknown_name", f"there is no pool {ask.pool}", "pool", hint)]
        missing = sorted(ask.amounts().keys() - set(pools[ask.pool].kinds))
        has = ", ".join(pools[ask.pool].kinds)
        return [Fault("bad_pool", f"pool {ask.pool} has no {kind}", "pool", f"It has {has}.") for kind in missing]


def _faults(ask: models.ReservationPut, now: float) -> list[Fault]:
    faults = []
    amounts = ask.amounts()
    if not amounts:
        hint = f"Give at least one of {', '.join(KINDS)}."
        faults.append(Fault("bad_amount", "nothing is asked for", "amounts", hint))
    if amounts.get(GPU, 0) % WHOLE:
        faults.append(Fault("bad_amount", "GPUs are kept whole", "gpu_milli", "Ask for 1000, 2000, …"))
    if ask.start is not None and ask.start < now - LATE_SECONDS:
        message = f"the start is {round(now - ask.start)} s in the past"
        faults.append(Fault("in_the_past", message, "start", "Leave it out to begin now."))
    return faults


def _group_faults(ask: models.ReservationPut) -> list[Fault]:
    """What a compute group cannot be."""
    if ask.component and not ask.group:
        return [Fault("bad_input", "only a compute group is of a component", "component", "Say group, too.")]
    if ask.group and (ask.count != 1 or ask.every or ask.start is not None):
        message = "a compute group is on one node, from now on, and does not recur"
        return [Fault("bad_input", message, "group", "Leave count, start and every out.")]
    return []


def selector_of(ask: models.ReservationPut) -> Selector | None:
    """Raises InputError."""
    if ask.selector is None:
        return None
    try:
        return Selector.parse(ask.selector)
    except InputError as error:
        raise error.at("selector") from None


def zone_of(name: str) -> tzinfo | None:
    """The rules of a named zone, as this machine has them; None if it has none of that name."""
    if name in ("", UTC_NAME):
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _until(ask: models.ReservationPut, start: float) -> float:
    latest = start + MOST_DAYS * 86400.0
    return latest if ask.until is None else min(ask.until, latest)


def _recurring_faults(ask: models.ReservationPut, zone: tzinfo | None, start: float) -> list[Fault]:
    if not ask.every:
        words = [field for field in ("zone", "until") if getattr(ask, field)]
        hint = "Give every, as day, weekday or week, or leave it out."
        return [Fault("bad_input", f"{field} is for reservations that recur", field, hint) for field in words]
    if zone is None:
        return [Fault("unknown_name", f"there is no zone {ask.zone[:40]}", "zone", "Write it as Europe/Berlin.")]
    faults = []
    if ask.until is not None and ask.until <= start:
        faults.append(Fault("bad_input", "until is not after the start", "until", "Leave it out for a year."))
    if not is_on_its_day(start, ask.every, zone):
        message = "its start is no weekday there"
        faults.append(Fault("bad_input", message, "start", "Begin on a Monday, or ask for every day."))
    most_seconds = (7 * 24 - 1) * 3600 if ask.every == "week" else 23 * 3600
    if ask.duration_seconds > most_seconds:
        message = f"it lasts longer than from one {ask.every} to the next"
        hint = f"At most {most_seconds // 3600} h: clocks may go forward in between."
        faults.append(Fault("bad_input", message, "duration_seconds", hint))
    return faults


def _demand_same(known: Reservation, ask: models.ReservationPut, who: Identity) -> None:
    wanted: dict[str, Any] = {
        "amounts": ask.amounts(),
        "count": ask.count,
        "pool": ask.pool,
        "users": sorted(set(ask.users)),
        "duration_seconds": ask.duration_seconds,
        "timeout_seconds": ask.timeout_seconds,
        "start": known.made_at if ask.start is None else max(ask.start, known.made_at),
        "every": ask.every,
        "group": ask.group,
        "component": ask.component,
    }
    stands: dict[str, Any] = {
        "amounts": known.amounts,
        "count": len(known.nodes),
        "pool": known.pool,
        "users": known.users,
        "duration_seconds": round(known.end - known.start),
        "timeout_seconds": known.timeout_seconds,
        "start": known.start if known.first is None else known.first,
        "every": known.every,
        "group": known.group,
        "component": known.component,
    }
    if ask.every and known.first is not None:
        wanted |= {"zone": ask.zone or UTC_NAME, "until": _until(ask, known.first)}
        stands |= {"zone": known.zone, "until": known.until}
    differing = sorted(field for field in wanted if wanted[field] != stands[field])
    if differing or known.owner != who.user:
        what = f"with another {differing[0]}" if differing else f"and belongs to {known.owner}"
        hint = "A reservation is not changed: end it and make it anew, or give this one another name."
        raise ConflictError(f"reservation {known.name} is there already, {what}", code="exists", hint=hint)
