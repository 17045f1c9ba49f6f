"""The last decisions of placement, each with what it takes to see all that it went by.

    a decision ──► who, for whom, under what bounds, and how many changes of rows there were so far    (a few words)
    asked for  ──► the rows as they were then (placement.history) ──► a record that anybody can replay

So a pass writes down little. What is older than the changes that are remembered cannot be seen any more, nor can
what another leader decided.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from lavalite.base.errors import LavaLiteError
from lavalite.model.decision import AskedThen, Chosen, DecisionRecord, DeviceThen, GpuThen, NodeThen
from lavalite.model.resources import ALL_PLACES, KINDS
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import PLACES_AT, Bools, Columns, Workload
from lavalite.placement.history import RowThen
from lavalite.placement.ranking import Bounds, Leaning, Run

if TYPE_CHECKING:
    from lavalite.control.state import ClusterState

MOST_DECISIONS = 2**13


class Seen(NamedTuple):
    """What a decision goes by, before anything is placed by it."""

    wanted: RequestClass
    policy: str
    tasks: int
    after: int
    bounds: Bounds | None
    leaning: Leaning | None
    mark: int
    rows: int
    pools: dict[str, Bools]
    workload: Workload


class Decision(NamedTuple):
    """`first` and `last` are array indices of the tasks that were placed by it."""

    job: int
    first: int
    last: int
    at: float
    queue: str
    seen: Seen
    runs: tuple[Run, ...]


class Decisions:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._last: deque[Decision] = deque(maxlen=MOST_DECISIONS)

    def add(self, decision: Decision) -> None:
        self._last.append(decision)

    def of(self, job: int, task: int | None) -> Decision | None:
        """The last one that placed this task, or (None) any of the job."""
        for decision in reversed(self._last):
            if decision.job == job and (task is None or decision.first <= task <= decision.last):
                return decision
        return None


def seen_now(
    columns: Columns,
    wanted: RequestClass,
    policy: str,
    tasks: int,
    after: int,
    bounds: Bounds | None,
    leaning: Leaning | None,
) -> Seen:
    """What placement is about to go by."""
    return Seen(
        wanted,
        policy,
        tasks,
        after,
        bounds,
        leaning,
        columns.history.mark,
        len(columns),
        columns.pool_masks,
        columns.workload,
    )


def record_of(state: ClusterState, job: int, task: int | None) -> DecisionRecord:
    """The record of the last decision on a task. Raises LavaLiteError where there is none to be had any more."""
    found = state.decisions.of(job, task)
    whom = f"job {job}" if task is None else f"task {task} of job {job}"
    if found is None:
        hint = "Gangs have none; others are kept by this leader for some thousand decisions."
        raise LavaLiteError(f"no decision on {whom} is known here", code="no_decision", hint=hint)
    if not state.columns.history.reaches(found.seen.mark):
        hint = "Ask sooner after it was placed: some ten thousand changes are remembered."
        raise LavaLiteError(f"too much has changed since {whom} was placed", code="no_decision", hint=hint)
    return _record(state, found)


def _record(state: ClusterState, found: Decision) -> DecisionRecord:
    seen, columns = found.seen, state.columns
    pools = seen.wanted.pools
    masks = {name: seen.pools[name] for name in (*pools.values(), *seen.wanted.labels) if name in seen.pools}
    rows = columns.history.rows_at(columns, seen.mark, seen.rows)
    record = DecisionRecord(
        job=found.job,
        first_task=found.first,
        last_task=found.last,
        at=found.at,
        epoch=state.epoch,
        queue=found.queue,
        policy=seen.policy,
        host=seen.wanted.host,
        request=seen.wanted.request,
        pools=pools,
        labels=list(seen.wanted.labels),
        wanted=seen.tasks,
        after=seen.after,
        most=dict(seen.bounds.most) if seen.bounds is not None else None,
        only=seen.bounds is not None and seen.bounds.only,
        workload=[
            AskedThen(
                request=dict(zip(KINDS, part.amounts, strict=True)),
                gpu=GpuThen(*part.gpu) if part.gpu is not None else None,
                whole_gpus=part.whole_gpus,
                weight=part.weight,
            )
            for part in seen.workload.parts
        ],
        nodes=[_node(columns.names[at], row, at, masks, seen.leaning) for at, row in enumerate(rows)],
        chosen=[Chosen(node=columns.names[run.row], tasks=run.tasks) for run in found.runs],
    )
    return record.model_copy(update={"digest": record.computed_digest()})


def _node(name: str, row: RowThen, at: int, masks: dict[str, Bools], leaning: Leaning | None) -> NodeThen:
    opened, met = (leaning.open, leaning.met) if leaning is not None else (None, None)
    places = int(row.free[PLACES_AT])
    return NodeThen(
        name=name,
        state=row.state,
        is_host=row.is_host,
        occupied="" if places == ALL_PLACES else "shared" if places > 0 else "alone",
        free={kind: free for kind, free in zip(KINDS, row.free[:PLACES_AT].tolist(), strict=True) if free}
        | {kind: free for kind, (free, _) in row.special.items() if free},
        capacity={kind: has for kind, has in zip(KINDS, row.capacity[:PLACES_AT].tolist(), strict=True) if has}
        | {kind: has for kind, (_, has) in row.special.items() if has},
        devices=[
            DeviceThen(id=d.id, model=d.model, memory_bytes=d.memory_bytes, free=d.free, near=d.near, mig=d.mig)
            for d in row.devices
        ],
        pools=[name for name, mask in sorted(masks.items()) if mask[at]],
        open=opened is None or bool(opened[at]),
        met=int(met[at]) if met is not None else 0,
    )
