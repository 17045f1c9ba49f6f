"""Why a request does not fit: each row is counted under the first filter that turns it away. For people, so not fast.

not the host or pool asked for → lacks a label → lacks a kind → no such device → too small even when empty
→ no GPUs that are connected as asked                                                       (never)
→ draining → silent → not near, or not apart from, other jobs
→ not empty, and it is to be for itself there → another one is
→ GPUs free, but not together → too little free                                             (not now)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from lavalite.model.resources import ALL_PLACES, GPU, PLACES, WHOLE
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import GONE, READY, Bools, Columns
from lavalite.placement.reasons import Reason, Refusal

Filter = tuple[Reason, Bools]
"""A reason, and the rows that it turns away."""


def refusal(columns: Columns, wanted: RequestClass, also: Sequence[Filter] = ()) -> Refusal | None:
    """Why no row can take one task now; None if one can. `also` are filters that come before what is free."""
    answer = _count(_looked_at(columns, wanted), [*_never(columns, wanted), *_not_now(columns, wanted, also)])
    if answer is not None:
        _nearest(columns, wanted, answer, also)
    return answer


def never_fits(columns: Columns, wanted: RequestClass) -> Refusal | None:
    """Why no row could take one task even if all were idle; None if one could."""
    answer = _count(_looked_at(columns, wanted), list(_never(columns, wanted)))
    if answer is not None:
        _nearest(columns, wanted, answer, of_capacity=True)
    return answer


def _never(columns: Columns, wanted: RequestClass) -> Iterator[Filter]:
    yield (Reason.NO_SUCH_HOST if wanted.host else Reason.NOT_IN_POOL), ~wanted.in_pools(columns)
    yield Reason.NOT_LABELLED, ~wanted.eligible(columns)
    small = np.zeros(len(columns), dtype=np.bool_)
    lacks = small.copy()
    for kind, amount in wanted.needs.items():
        lacks |= columns.capacity(kind) == 0
        small |= columns.capacity(kind) < amount
    yield Reason.NO_KIND, lacks
    if wanted.gpu is not None:
        needed = max(1, wanted.amounts[GPU] // WHOLE)
        of_model = np.array([_matching(columns, wanted, row) for row in range(len(columns))], dtype=np.int64)
        yield Reason.NO_MIG if wanted.gpu.mig else Reason.NO_MODEL, of_model == 0
        small |= of_model < needed
    yield Reason.TOO_SMALL, small
    if wanted.gpu is not None and wanted.gpu.together:
        whole = [[replace(d, free=WHOLE) for d in columns.devices(row)] for row in range(len(columns))]
        yield Reason.NO_TOPOLOGY, np.array([not wanted.gpu_tasks(devices) for devices in whole], dtype=np.bool_)


def _not_now(columns: Columns, wanted: RequestClass, also: Sequence[Filter]) -> Iterator[Filter]:
    states = np.array(columns.states, dtype=object)
    for reason in (Reason.DRAINING, Reason.SILENT, Reason.HELD):
        yield reason, states == reason.value
    yield from also
    places = columns.free(PLACES)
    yield Reason.NOT_EMPTY, places < (ALL_PLACES if wanted.exclusive else 0)
    yield Reason.NOT_SHARED, places == 0
    none = wanted.fits(columns) == 0
    if wanted.gpu is not None and wanted.gpu.together:
        each = wanted.gpu.each
        apart = columns.gpus(wanted.gpu._replace(together="")) >= each
        yield Reason.NOT_TOGETHER, none & apart & (columns.gpus(wanted.gpu) < each)
    yield Reason.TOO_FEW_FREE, none


def _matching(columns: Columns, wanted: RequestClass, row: int) -> int:
    assert wanted.gpu is not None
    return sum(map(wanted.gpu.accepts, columns.devices(row)))


def _count(looked_at: Bools, filters: list[Filter]) -> Refusal | None:
    answer = Refusal()
    left = looked_at.copy()
    for reason, turned_away in filters:
        here = left & turned_away
        if here.any():
            answer.turned_away[reason] = int(here.sum())
        left &= ~here
    return None if left.any() else answer


def _looked_at(columns: Columns, wanted: RequestClass) -> Bools:
    """The rows that there are: all nodes, or the one host that the request names."""
    present = np.array([state != GONE for state in columns.states], dtype=np.bool_)
    return present & (wanted.eligible(columns) if wanted.host else ~columns.is_host)


def _nearest(
    columns: Columns,
    wanted: RequestClass,
    answer: Refusal,
    also: Sequence[Filter] = (),
    *,
    of_capacity: bool = False,
) -> None:
    """The eligible row where the fewest are in the way, and that lacks least, by the sum of the shares of what is
    asked."""
    least: tuple[int, int] | None = None
    open_to_it = wanted.eligible(columns) & _looked_at(columns, wanted)
    for _, turned_away in also:
        open_to_it &= ~turned_away
    for row in np.flatnonzero(open_to_it):
        lacks = _lacks(columns, wanted, int(row), of_capacity=of_capacity)
        if not of_capacity and columns.states[row] != READY:
            continue
        in_the_way = 0
        if PLACES in lacks:  # once they have gone all of it is free
            free = int(columns.free(PLACES)[row])
            in_the_way, lacks = ALL_PLACES - free if free else 1, {}
        share = sum(lack * 100 // wanted.amounts[kind] for kind, lack in lacks.items())
        if (lacks or in_the_way) and (least is None or (in_the_way, share) < least):
            least = (in_the_way, share)
            answer.nearest, answer.lacks, answer.taken = columns.names[int(row)], lacks, in_the_way > 0


def _lacks(columns: Columns, wanted: RequestClass, row: int, *, of_capacity: bool) -> dict[str, int]:
    lacks = {}
    for kind, amount in wanted.needs.items():
        column = columns.capacity(kind) if of_capacity else columns.free(kind)
        have = int(column[row])
        if kind == GPU and wanted.gpu is not None and not wanted.gpu.part:
            matching = _matching(columns, wanted, row) if of_capacity else int(columns.gpus(wanted.gpu)[row])
            have = min(have, matching * WHOLE)
        if have < amount:
            lacks[kind] = amount - have
    return lacks
