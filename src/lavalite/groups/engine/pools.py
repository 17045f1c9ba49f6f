"""Pools, in the words of pools.yml and with a priority; and what their quotas leave to a team.

For a kind of a pool that has quotas, let for each team T of the pool

    nominal(T)   what it is sure of        kept(T) = nominal(T) - lend(T), which it never lends; in no cohort: all
    used(T)      what its groups hold

T gets more only where, with it,

    used(T) - nominal(T), over all pools of the cohort where that is positive   ≤ borrow(T)        (in no cohort: 0)
    Σ max(used(T), kept(T)) over all teams                                      ≤ what the pool has

as docs/quotas.md says of jobs. What counts is what groups hold, free and reserved ones too: those for their team.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lavalite.base.errors import Fault, InputError
from lavalite.groups.records import GroupRecord, PoolRecord
from lavalite.model.amounts import format_amount
from lavalite.model.job import Share
from lavalite.model.pools_document import read_quota
from lavalite.model.pools_entries import HolderLimits, PoolEntry
from lavalite.model.specs import PoolSpec, Quota
from lavalite.providers.base import NotOfferedError

NO_QUOTA = Quota(0, 0, 0)
UNLIMITED = 2**62
MOST_PRIORITY = 1000


@dataclass(slots=True, frozen=True)
class Pool:
    """Whoever asks of a pool of higher `priority` goes before others, whatever their own priority."""

    record: PoolRecord
    spec: PoolSpec
    priority: int = 0

    @property
    def name(self) -> str:
        return self.record.name

    def counts(self, kind: str) -> bool:
        """Whether it has quotas of the kind."""
        return any(kind in quota for quota in self.spec.quota.values())

    def quota(self, team: str, kind: str) -> Quota:
        return self.spec.quota.get(team, {}).get(kind, NO_QUOTA)

    def kept(self, team: str, kind: str) -> int:
        """What of its own the team never lends."""
        quota = self.quota(team, kind)
        lent = (quota.nominal if quota.lend is None else quota.lend) if self.spec.cohort else 0
        return quota.nominal - lent


def read_pool(record: PoolRecord) -> Pool:
    """Raises InputError with all faults, and NotOfferedError for what only a running system has."""
    entry, faults = dict(record.entry), list[Fault]()
    priority = entry.pop("priority", 0)
    if type(priority) is not int or abs(priority) > MOST_PRIORITY:
        hint = f"Write one from -{MOST_PRIORITY} to {MOST_PRIORITY}."
        faults.append(Fault("bad_input", "it is no whole number", "priority", hint))
    try:
        read = PoolEntry.model_validate(entry)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            context = found.get("ctx") or {}
            at = ".".join(str(step)[:40] for step in found["loc"])
            message = "there is no such key" if found["type"] == "extra_forbidden" else str(found["msg"])
            hint = f"There are {', '.join(PoolEntry.model_fields)}, priority." if "no such key" in message else ""
            faults.append(Fault("bad_input", message, at, str(context.get("hint") or hint)))
        raise InputError(faults=faults) from None
    if read.floating or read.limits != HolderLimits():
        what = "floating" if read.floating else "limits"
        hint = "Leave it out, or run a system (`lavalite up`), which has that."
        raise NotOfferedError(f"pool {record.name}: without a running system pools have no {what}", hint=hint)
    quotas: dict[str, dict[str, Quota]] = {}
    for team, typed in read.quota.items():
        try:
            quotas[team] = read_quota(read, typed)
        except InputError as error:
            faults.append(
                Fault("bad_input", error.fault.message, f"quota.{team}.{error.fault.field}", error.fault.hint)
            )
        for kind, quota in quotas.get(team, {}).items():
            if (quota.lend or 0) > quota.nominal:
                message = f"more {kind} is lent than the {format_amount(kind, quota.nominal)} that is its own"
                faults.append(Fault("bad_input", message, f"quota.{team}.lend"))
            if quota.borrow and not read.cohort:
                hint = "Write cohort: NAME at the pool, and at those it borrows from."
                faults.append(
                    Fault("bad_input", "the pool is in no cohort to borrow from", f"quota.{team}.borrow", hint)
                )
    if faults:
        raise InputError(faults=faults)
    spec = PoolSpec(record.name, read.nodes, tuple(read.kinds), read.default, quota=quotas, cohort=read.cohort)
    return Pool(record, spec, priority)


class Usage:
    """What groups hold of pools: by pool, kind and team. Teams that hold nothing are not in it."""

    def __init__(self) -> None:
        self.used: dict[str, dict[str, dict[str, int]]] = {}

    def add(self, record: GroupRecord, sign: int) -> None:
        for share in record.shares:
            if share.pool:
                self._add(share, record.team, sign)

    def _add(self, share: Share, team: str, sign: int) -> None:
        kinds = self.used.setdefault(share.pool, {})
        teams = kinds.setdefault(share.kind, {})
        left = teams.get(team, 0) + sign * share.amount
        if left:
            teams[team] = left
            return
        teams.pop(team, None)
        if not teams:
            del kinds[share.kind]
        if not kinds:
            del self.used[share.pool]

    def of(self, pool: str, kind: str, team: str) -> int:
        return self.used.get(pool, {}).get(kind, {}).get(team, 0)

    def total(self, pool: str, kind: str) -> int:
        return sum(self.used.get(pool, {}).get(kind, {}).values())


def left_to(pools: Mapping[str, Pool], usage: Usage, pool: Pool, kind: str, team: str, capacity: int) -> int:
    """How much more of the kind, of which the pool has quotas, the team may take. `capacity` is what the pool has."""
    used, kept_for_others = usage.of(pool.name, kind, team), 0
    for other in pool.spec.quota:
        if other != team:
            kept_for_others += max(0, pool.kept(other, kind) - usage.of(pool.name, kind, other))
    room = capacity - usage.total(pool.name, kind) - kept_for_others
    # What it never lends is there for it, whatever others came to hold before there was this quota.
    room = max(room, pool.kept(team, kind) - used)
    return max(0, min(pool.quota(team, kind).nominal + borrow_of(pools, usage, pool, kind, team) - used, room))


def borrow_of(pools: Mapping[str, Pool], usage: Usage, pool: Pool, kind: str, team: str) -> int:
    """What the team may have of the pool beyond its own, beside what it has borrowed elsewhere in the cohort."""
    most, elsewhere, known = 0, 0, False
    for other in pools.values() if pool.spec.cohort else ():
        if other.spec.cohort != pool.spec.cohort:
            continue
        quota = other.spec.quota.get(team, {}).get(kind)
        if quota is not None:
            known = True
            most = UNLIMITED if quota.borrow is None else min(UNLIMITED, most + quota.borrow)
        if other.name != pool.name:
            nominal = quota.nominal if quota is not None else 0
            elsewhere += max(0, usage.of(other.name, kind, team) - nominal)
    return max(0, most - elsewhere) if known else 0


def most_ever(pools: Mapping[str, Pool], pool: Pool, kind: str, team: str, capacity: int) -> int:
    """What the team could have of the kind if nobody held anything."""
    return left_to(pools, Usage(), pool, kind, team, capacity)


def check_fits(pool: Pool, others: Iterable[Pool], capacities: Mapping[str, Mapping[str, int]]) -> None:
    """That the nominal quotas of the pool, or of its cohort, are no more than there is. Raises InputError."""
    cohort = [other for other in others if pool.spec.cohort and other.spec.cohort == pool.spec.cohort]
    together = [pool, *(other for other in cohort if other.name != pool.name)]
    faults = []
    for kind in pool.spec.kinds:
        nominal = sum(quota[kind].nominal for p in together for quota in p.spec.quota.values() if kind in quota)
        has = sum(capacities.get(p.name, {}).get(kind, 0) for p in together)
        if nominal > has:
            message = (
                f"with this the nominal quotas come to {format_amount(kind, nominal)} {kind}, and there is "
                f"{format_amount(kind, has)}"
            )
            faults.append(Fault("bad_input", message, "quota", "Promise less."))
    if faults:
        raise InputError(faults=faults)


def default_pools(pools: Mapping[str, Pool], kinds: Sequence[str]) -> dict[str, str]:
    """The pool of each kind where none is named: the one that is the default for it, if any is."""
    found = {}
    for pool in pools.values():
        if pool.spec.default:
            found.update({kind: pool.name for kind in kinds if kind in pool.spec.kinds})
    return found


def pool_view(pool: Pool, members: Sequence[str], capacity: Mapping[str, int], usage: Usage) -> dict[str, Any]:
    """As get_resource_state answers: amounts by kind in the kind's unit."""
    used = usage.used.get(pool.name, {})
    return {
        **pool.record.entry,
        "name": pool.name,
        "priority": pool.priority,
        "kinds": list(pool.spec.kinds),
        "members": list(members),
        "capacity": dict(capacity),
        "used": {team: {k: t[team] for k, t in used.items() if team in t} for team in sorted(_teams(used))},
    }


def _teams(used: Mapping[str, Mapping[str, int]]) -> set[str]:
    return {team for teams in used.values() for team in teams}
