"""What groups are sure of in a pool, what they may borrow, and what they lend: quota in the sense of Kueue.

For a kind of a pool that has quotas, let for each group G of the pool

    nominal(G)     what it is sure of        kept(G) = nominal(G) - lend(G), which it never lends; in no cohort: all
    used(G)        what its tasks hold

A task of group T is placed only where, with it,

    used(T) - nominal(T), over all pools of the cohort where that is positive   ≤ borrow(T)        (in no cohort: 0)
    Σ max(used(G), kept(G)) over all groups                                     ≤ what the pool has for tasks

The second is the pool's own sum: what is used and what is kept for owners is there. A group that waits while others
have borrowed what is its own *claims* it: so much more counts as kept for it, until it has it (control.reclaim).

What counts is what commitments hold (control.usage); a logical host's part of the pool is not there for tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lavalite.control import limits
from lavalite.control.state import ClusterState
from lavalite.control.usage import Scope
from lavalite.model.job import JobSpec
from lavalite.model.resources import GPU
from lavalite.model.specs import PoolSpec, Quota

NO_QUOTA = Quota(0, 0, 0)
UNLIMITED = 2**62


@dataclass(slots=True, frozen=True)
class Standing:
    """A group in a pool, by one kind: amounts in the kind's unit. `room` is what the pool's sum leaves to it."""

    pool: str
    kind: str
    group: str
    nominal: int
    borrow: int
    """What it may borrow here, beside what it has borrowed elsewhere in the cohort."""
    used: int
    room: int

    @property
    def left(self) -> int:
        """How much more it may take."""
        return max(0, min(self.nominal + self.borrow - self.used, self.room))

    @property
    def borrowed(self) -> int:
        return max(0, self.used - self.nominal)


def charges(state: ClusterState, spec: JobSpec) -> Iterator[tuple[str, str, int]]:
    """(pool, kind, amount of one task, or of all of a job with parts) for all that quotas say anything of."""
    if not any(pool.quota for pool in state.specs.pools.values()):
        return
    for name, amounts in state.charged_pools(spec).items():
        pool = state.specs.pools.get(name)
        if pool is not None and pool.quota:
            for kind, amount in amounts.items():
                if amount and any(kind in quota for quota in pool.quota.values()):
                    yield name, kind, amount


def standing(state: ClusterState, pool: str, kind: str, group: str) -> Standing:
    """Where the group stands. The kind has quotas in the pool."""
    spec = state.specs.pools[pool]
    used = used_by(state, pool, kind, group)
    kept_for_others = 0
    for other, quota in spec.quota.items():
        if other != group and kind in quota:
            kept_for_others += max(0, kept(state, spec, kind, other) - used_by(state, pool, kind, other))
    total = state.usage.of(Scope("pool", pool)).get(kind, 0)
    room = state.pool_capacity(pool, kind) - total - kept_for_others
    # What it claims back is its own once those have ended that were stopped for it: until then it is held twice.
    own = never_lent(spec, kind, group) - used
    nominal = quota_of(spec, kind, group).nominal
    return Standing(pool, kind, group, nominal, _borrow(state, spec, kind, group), used, max(room, own))


def quota_of(spec: PoolSpec, kind: str, group: str) -> Quota:
    return spec.quota.get(group, {}).get(kind, NO_QUOTA)


def used_by(state: ClusterState, pool: str, kind: str, group: str) -> int:
    return state.usage.of(Scope("pool", pool, "group", group)).get(kind, 0)


def kept(state: ClusterState, spec: PoolSpec, kind: str, group: str) -> int:
    """What nobody else may use of what is the group's own; with what it claims back."""
    claimed = min(quota_of(spec, kind, group).nominal, state.claims.get((spec.name, kind, group), 0))
    return max(never_lent(spec, kind, group), claimed)


def never_lent(spec: PoolSpec, kind: str, group: str) -> int:
    """What of its own a group never lends to others."""
    quota = quota_of(spec, kind, group)
    return quota.nominal - ((quota.nominal if quota.lend is None else quota.lend) if spec.cohort else 0)


def _borrow(state: ClusterState, spec: PoolSpec, kind: str, group: str) -> int:
    """What the group may have beyond its own, of this pool."""
    most, elsewhere, known = 0, 0, False
    for pool in state.specs.pools.values() if spec.cohort else ():
        if pool.cohort != spec.cohort:
            continue
        quota = pool.quota.get(group, {}).get(kind)
        if quota is not None:
            known = True
            most = UNLIMITED if quota.borrow is None else min(UNLIMITED, most + quota.borrow)
        if pool.name != spec.name:
            nominal = quota.nominal if quota is not None else 0
            elsewhere += max(0, used_by(state, pool.name, kind, group) - nominal)
    return max(0, most - elsewhere) if known else 0


def allowed(state: ClusterState, spec: JobSpec, most: int) -> int:
    """How many more tasks of the job all quotas let start, at most so many."""
    if unnamed(state, spec) or too_much_in_all(state, spec):
        return 0
    for pool, kind, each in charges(state, spec):
        most = min(most, standing(state, pool, kind, spec.group).left // each * spec.tasks_counted)
    return most


def too_much_in_all(state: ClusterState, spec: JobSpec, *, ever: bool = False) -> str:
    """The kind of which a job with parts would borrow more of several pools of a cohort than its group may of all of
    them, now, or `ever`: were nothing held by anybody. Empty if there is none."""
    if spec.parts is None:
        return ""
    asked = {(pool, kind): each for pool, kind, each in charges(state, spec)}
    for cohort, kind in dict.fromkeys((state.specs.pools[pool].cohort, kind) for pool, kind in asked):
        most, borrowed = 0, 0
        for pool in state.specs.pools.values() if cohort else ():
            if pool.cohort != cohort:
                continue
            quota = quota_of(pool, kind, spec.group)
            most = UNLIMITED if quota.borrow is None else min(UNLIMITED, most + quota.borrow)
            used = 0 if ever else used_by(state, pool.name, kind, spec.group)
            borrowed += max(0, used + asked.get((pool.name, kind), 0) - quota.nominal)
        if borrowed > most:
            return kind
    return ""


def unnamed(state: ClusterState, spec: JobSpec) -> dict[str, list[str]]:
    """Kinds that the job names no pool for, while pools count who takes them: else it took what nobody counts."""
    if spec.reservation:
        return {}
    if not any(pool.limits or pool.quota for pool in state.specs.pools.values()):
        return {}
    pieces = [piece for piece, _ in spec.pieces() if not spec.host or state.goes_beside(piece)]
    named = [
        (kind, state.pools_of(piece))
        for piece in pieces
        for kind in piece.request.amounts()
        if not (spec.host and kind == GPU)
    ]
    return {
        kind: pools
        for kind, pools_named in named
        if kind not in pools_named and (pools := [p.name for p in state.specs.pools.values() if _counts(p, kind)])
    }


def _counts(pool: PoolSpec, kind: str) -> bool:
    return kind in pool.kinds and bool(pool.limits or any(kind in quota for quota in pool.quota.values()))


def outside(state: ClusterState, spec: JobSpec) -> list[tuple[str, str]]:
    """(pool, kind) that have quotas, none of which could ever be this group's, not even borrowed."""
    return [
        (pool, kind) for pool, kind, each in charges(state, spec) if most_ever(state, pool, kind, spec.group) < each
    ]


def most_ever(state: ClusterState, pool: str, kind: str, group: str) -> int:
    """What the group could hold there at most, were nothing held by anybody."""
    spec, most = state.specs.pools[pool], 0
    for other in state.specs.pools.values() if spec.cohort else ():
        if other.cohort == spec.cohort and (quota := other.quota.get(group, {}).get(kind)) is not None:
            most = UNLIMITED if quota.borrow is None else min(UNLIMITED, most + quota.borrow)
    return quota_of(spec, kind, group).nominal + most


def sentences(state: ClusterState, spec: JobSpec) -> list[str]:
    """Which quotas keep every task of the job back, and who holds what they allow."""
    told = []
    for kind, pools in unnamed(state, spec).items():
        named = " or ".join(f"--pool {kind}={pool}" for pool in pools)
        told.append(f"It names no pool for {kind}, which pools count by user or group: submit it with {named}.")
    for pool, kind, each in charges(state, spec):
        found = standing(state, pool, kind, spec.group)
        if found.left >= each:
            continue
        told.append(_sentence(state, found, each))
    if not told and (kind := too_much_in_all(state, spec)):
        told.append(f"Quota: group {spec.group} may not borrow as much {kind} as its parts ask for together.")
    return told


def _sentence(state: ClusterState, found: Standing, each: int) -> str:
    held = f"group {found.group} holds {limits.text(found.kind, found.used)} of pool {found.pool}"
    own = limits.text(found.kind, found.nominal)
    who = ", ".join(limits.holders(state, Scope("pool", found.pool, "group", found.group), found.kind))
    if found.nominal + found.borrow - found.used < each:
        words = f"Quota: {held}, {own} are its own and it may borrow {limits.text(found.kind, found.borrow)}"
        return f"{words}{'; held by ' if who else ''}{who}."
    lenders = _borrowers(state, found)
    if found.used + each <= found.nominal:
        return f"Quota: {held}, {own} are its own, and some of that is lent to {lenders}."
    return f"Quota: {held}, {own} are its own, and nothing is left to borrow: {lenders or 'it is kept for them'}."


def _borrowers(state: ClusterState, found: Standing) -> str:
    """`group students (4 gpu)`, each that has more of the pool than its own."""
    spec, words = state.specs.pools[found.pool], []
    for group in state.usage.groups_in(found.pool):
        more = used_by(state, found.pool, found.kind, group) - quota_of(spec, found.kind, group).nominal
        if group != found.group and more > 0:
            words.append(f"group {group} ({limits.text(found.kind, more)})")
    return ", ".join(words)
