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
from lavalite.placement.columns import GONE, Bools, Columns, Ints
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
    if _one_could(columns, wanted):
        return None
    answer = _count(_looked_at(columns, wanted), list(_never(columns, wanted)))
    if answer is not None:
        _nearest(columns, wanted, answer, of_capacity=True)
    return answer


def _one_could(columns: Columns, wanted: RequestClass) -> bool:
    """Whether a node that takes work would do if it were idle, as far as a quick look can tell: each submit asks."""
    if wanted.host or (wanted.gpu is not None and wanted.gpu.together):
        return False
    could = wanted.eligible(columns) & columns.ready & ~columns.is_host
    for kind, amount in wanted.needs.items():
        could &= columns.capacity(kind) >= amount
    if wanted.gpu is not None:
        could &= _of_model(columns, wanted) >= _gpus_needed(wanted)
    return bool(could.any())


def _never(columns: Columns, wanted: RequestClass) -> Iterator[Filter]:
    named = wanted.host and not wanted.beside
    yield (Reason.NO_SUCH_HOST if named else Reason.NOT_IN_POOL), ~wanted.in_pools(columns)
    yield Reason.NOT_LABELLED, ~wanted.eligible(columns)
    small = np.zeros(len(columns), dtype=np.bool_)
    lacks = small.copy()
    for kind, amount in wanted.needs.items():
        lacks |= columns.capacity(kind) == 0
        small |= columns.capacity(kind) < amount
    yield Reason.NO_KIND, lacks
    if wanted.gpu is not None:
        of_model = _of_model(columns, wanted)
        yield Reason.NO_MIG if wanted.gpu.mig else Reason.NO_MODEL, of_model == 0
        small |= of_model < _gpus_needed(wanted)
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


def _of_model(columns: Columns, wanted: RequestClass) -> Ints:
    """How many devices of each row are what is asked for, free or not."""
    assert wanted.gpu is not None
    accepted = columns.accepted(wanted.gpu)[columns.device_sorts(None)]
    counted: Ints = np.add.reduce(accepted, axis=1, dtype=np.int64)
    return counted


def _gpus_needed(wanted: RequestClass) -> int:
    return max(1, wanted.amounts[GPU] // WHOLE)


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
    """The rows that there are: all nodes, or those of the one host that the request names."""
    present = np.array([state != GONE for state in columns.states], dtype=np.bool_)
    return present & (wanted.of_host(columns) if wanted.host else ~columns.is_host)


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
    open_to_it = wanted.eligible(columns) & _looked_at(columns, wanted)
    for _, turned_away in also:
        open_to_it &= ~turned_away
    if wanted.beside and not of_capacity:
        # Of a host's few rows those that could never take it say nothing of what it waits for.
        could = np.logical_and.reduce([columns.capacity(kind) >= amount for kind, amount in wanted.needs.items()])
        open_to_it &= could if (open_to_it & could & columns.ready).any() else True
    rows = np.flatnonzero(open_to_it if of_capacity else open_to_it & columns.ready)
    short = {
        kind: np.maximum(0, amount - _has(columns, wanted, kind, of_capacity=of_capacity)[rows])
        for kind, amount in wanted.needs.items()
    }
    # Once they have gone who are in the way, all of it is free.
    free = columns.free(PLACES)[rows]
    in_the_way = np.where(short.pop(PLACES) > 0, np.where(free > 0, ALL_PLACES - free, 1), 0)
    share = np.zeros(len(rows), dtype=np.int64)
    for kind, lack in short.items():
        share += lack * 100 // wanted.amounts[kind]
    lacking = np.logical_or.reduce([lack > 0 for lack in short.values()]) if short else share > 0
    near = np.flatnonzero(lacking | (in_the_way > 0))
    if not len(near):
        return
    least = near[np.lexsort((near, np.where(in_the_way > 0, 0, share)[near], in_the_way[near]))[0]]
    answer.nearest, answer.taken = columns.names[int(rows[least])], bool(in_the_way[least])
    answer.lacks = {} if answer.taken else {kind: int(lack[least]) for kind, lack in short.items() if lack[least]}


def _has(columns: Columns, wanted: RequestClass, kind: str, *, of_capacity: bool) -> Ints:
    """What each row has of a kind for one task, all told or free."""
    has = columns.capacity(kind) if of_capacity else columns.free(kind)
    if kind == GPU and wanted.gpu is not None and not wanted.gpu.part:
        matching = _of_model(columns, wanted) if of_capacity else columns.gpus(wanted.gpu)
        return np.minimum(has, matching * WHOLE)
    return has
