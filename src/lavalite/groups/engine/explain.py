"""Why an ask does not fit, for people: by the filters of placement, quotas, and what keeps parts of GPUs apart.

It is worked out only where an ask is refused, and looks at all nodes.
"""

from __future__ import annotations

import numpy as np

from lavalite.groups.engine.changes import Refused
from lavalite.groups.engine.find import left_of_quotas, near_and_apart, node_row, open_rows, over_quota
from lavalite.groups.engine.picture import Picture
from lavalite.groups.engine.pools import most_ever
from lavalite.groups.engine.wanted import Variant, Wanted, bare
from lavalite.groups.requirements import Ask
from lavalite.model.amounts import format_amount
from lavalite.model.resources import WHOLE
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import GONE
from lavalite.placement.filters import Filter, refusal
from lavalite.placement.reasons import Reason

NO_ISOLATION = "no_isolation"
WAITING_AHEAD = "waiting_ahead"


def refused(picture: Picture, ask: Ask, wanted: Wanted) -> Refused:
    """Why it does not fit now. It must not."""
    could = [variant for variant in wanted.variants if _could_ever(picture, ask, variant.wanted)]
    kept_apart = wanted.request.gpu_milli % WHOLE and "none" not in wanted.isolations
    if not could and kept_apart and _could_ever(picture, ask, bare(wanted)):
        return _not_apart(picture, ask)
    ever = bool(could)
    for variant in could or wanted.variants[:1]:
        if kind := over_quota(picture, ask, wanted, variant):
            return _beyond_quota(picture, ask, wanted, variant, kind, ever=ever)
    if not wanted.variants:
        count = len(picture.nodes)
        sentence = "No node has GPUs on which such MIG instances can be made"
        return Refused(sentence, {Reason.NO_MIG.value: count}, ever=False)
    shown = (could or list(wanted.variants))[0]
    answer = refusal(picture.columns, shown.wanted, _also(picture, ask))
    if answer is None:
        return Refused("It does not fit on any node now", {Reason.TOO_FEW_FREE.value: len(picture.nodes)}, ever)
    sentence = answer.sentence()
    if shown.isolation:
        sentence = sentence.replace("no device of the model asked for", "no GPU of which such a part is to be had")
    reasons = {reason.value: count for reason, count in answer.turned_away.items()}
    return Refused(sentence, reasons, ever)


def _not_apart(picture: Picture, ask: Ask) -> Refused:
    how = {"auto": "MIG or MPS", "mig": "MIG", "mps": "MPS"}[ask.requirements.isolation]
    return Refused(
        f"No node can keep such a part of a GPU apart from others by {how}",
        {NO_ISOLATION: len(picture.nodes)},
        ever=False,
        hint='Say isolation: "none" to share a GPU with nothing in between, or ask for a whole one.',
    )


def _beyond_quota(picture: Picture, ask: Ask, wanted: Wanted, variant: Variant, kind: str, *, ever: bool) -> Refused:
    pool, asked = picture.pools[wanted.pools[kind]], variant.wanted.amounts[kind]
    left = dict(left_of_quotas(picture, ask, wanted))[kind]
    quota, used = pool.quota(ask.team, kind), picture.usage.of(pool.name, kind, ask.team)
    most = most_ever(picture.pools, pool, kind, ask.team, picture.pool_capacity(pool.name, kind))
    who = f"team {ask.team}" if ask.team else "who names no team"
    if ask.team not in pool.spec.quota and not most:
        sentence = f"{who} has no quota in pool {pool.name}, which is divided: nothing there is theirs"
        hint = f"Say constraints.team; there are {', '.join(sorted(pool.spec.quota))}."
    else:
        words = (format_amount(kind, amount) for amount in (used, quota.nominal, left, asked))
        holds, own, more, need = words
        sentence = (
            f"{who} holds {holds} {kind} of pool {pool.name}, {own} are its own; it may have {more} more, "
            f"and {need} are asked for"
        )
        hint = ""
    count = len(picture.members(pool.name)) or 1
    return Refused(sentence, {Reason.POOL_QUOTA.value: count}, ever and asked <= most, hint)


def _also(picture: Picture, ask: Ask) -> list[Filter]:
    """What the ask says of nodes beside amounts and selections."""
    found: list[Filter] = []
    if ask.constraints.node:
        elsewhere = np.ones(len(picture.columns), dtype=np.bool_)
        elsewhere[node_row(picture, ask.constraints.node)] = False
        found.append((Reason.EXCLUDED, elsewhere))
    for is_near, rows in near_and_apart(picture, ask):
        found.append((Reason.NOT_NEAR, ~rows) if is_near else (Reason.NOT_APART, rows))
    return found


def _could_ever(picture: Picture, ask: Ask, wanted: RequestClass) -> bool:
    """Whether any node would do if nobody held anything of it."""
    columns = picture.columns
    mask = wanted.eligible(columns) & np.array([state != GONE for state in columns.states], dtype=np.bool_)
    for kind, amount in wanted.amounts.items():
        mask &= columns.capacity(kind) >= amount
    if ask.constraints.node:
        here = np.zeros(len(columns), dtype=np.bool_)
        here[node_row(picture, ask.constraints.node)] = True
        mask &= here
    if wanted.gpu is None:
        return bool(mask.any())
    for row in np.flatnonzero(mask):
        idle = [gpu.row(WHOLE, "") for gpu in picture.nodes[columns.names[row]].gpus.values()]
        if wanted.gpu_tasks(idle):
            return True
    return False


def in_the_way(picture: Picture, ask: Ask, ahead: int) -> Refused:
    """There would be room, but others have waited for it."""
    mask = open_rows(picture, ask)
    count = len(picture.nodes) if mask is None else int(mask.sum())
    who = "One that waits is" if ahead == 1 else f"{ahead} that wait are"
    hint = "Wait too (constraints.wait), or ask with a higher priority."
    return Refused(f"{who} to have the room first", {WAITING_AHEAD: max(1, count)}, ever=True, hint=hint)
