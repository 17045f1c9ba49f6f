"""What people see of fairshare and quotas: numbers, by queue, pool, group and user."""

from __future__ import annotations

from typing import Any

from lavalite.control import quotas
from lavalite.control.fairshare import FairQueue
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState

View = dict[str, Any]
MILLI_CORE_MILLISECONDS = 1_000_000
"""In a core-second."""


def of_queue(state: ClusterState, queue: str, *, users: bool = True) -> list[View]:
    """Groups and, where asked for, users, as they stand; those who are furthest behind their share first."""
    fair = state.fair.get(queue)
    if fair is None:
        return []
    groups = [group for group, user in fair.holders() if not user]
    total = sum(fair.share(group) for group in groups)
    used = sum(fair.used(group) for group in groups)
    rows = []
    for group in sorted(groups, key=lambda name: (fair.standing(name), name)):
        rows.append(_row(fair, queue, group, "", total, used))
        if users:
            rows += _users(fair, queue, group)
    return rows


def _users(fair: FairQueue, queue: str, group: str) -> list[View]:
    found = [user for of, user in fair.holders() if of == group and user]
    total, used = sum(fair.share(group, user) for user in found), sum(fair.used(group, user) for user in found)
    ordered = sorted(found, key=lambda user: (fair.standing(group, user), user))
    return [_row(fair, queue, group, user, total, used) for user in ordered]


def _row(fair: FairQueue, queue: str, group: str, user: str, total: int, used: int) -> View:
    """`entitled_permille` and `used_permille`: of all the groups, or of all the users of the group."""
    share, mine = fair.share(group, user), fair.used(group, user)
    return {
        "queue": queue,
        "group": group,
        "user": user,
        "share": share,
        "entitled_permille": share * 1000 // total if total else 0,
        "used_permille": mine * 1000 // used if used else 0,
        "used_core_seconds": mine // MILLI_CORE_MILLISECONDS,
        "held_milli": fair.held(group, user),
        "standing": fair.standing(group, user) // MILLI_CORE_MILLISECONDS,
    }


def standing_of(state: ClusterState, job: JobState) -> View:
    """Where the job's group and user stand, and how many groups are before them; empty without fairshare."""
    fair = state.fair.get(job.queue)
    if fair is None:
        return {}
    group, user = job.spec.group, job.spec.user
    mine = fair.standing(group)
    ahead = sum(1 for other, of in fair.holders() if not of and other != group and fair.standing(other) < mine)
    return {
        "queue": job.queue,
        "group": group,
        "user": user,
        "share": fair.share(group),
        "user_share": fair.share(group, user),
        "used_core_seconds": fair.used(group) // MILLI_CORE_MILLISECONDS,
        "user_used_core_seconds": fair.used(group, user) // MILLI_CORE_MILLISECONDS,
        "standing": mine // MILLI_CORE_MILLISECONDS,
        "user_standing": fair.standing(group, user) // MILLI_CORE_MILLISECONDS,
        "groups_ahead": ahead,
    }


def of_pool(state: ClusterState, pool: str) -> list[View]:
    """How each group of a pool stands to its quota, by kind; those too that only borrow."""
    spec = state.specs.pools[pool]
    kinds = sorted({kind for quota in spec.quota.values() for kind in quota})
    rows = []
    for group in sorted({*spec.quota, *(state.usage.groups_in(pool) if spec.quota else ())}):
        for kind in kinds:
            quota = quotas.quota_of(spec, kind, group)
            found = quotas.standing(state, pool, kind, group)
            if group not in spec.quota and not found.used:
                continue
            rows.append(
                {
                    "pool": pool,
                    "group": group,
                    "kind": kind,
                    "nominal": quota.nominal,
                    "borrow": quota.borrow,
                    "lend": quota.lend,
                    "used": found.used,
                    "borrowed": found.borrowed,
                    "left": found.left,
                }
            )
    return rows
