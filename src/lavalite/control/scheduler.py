"""What is placed next, and where. Runs whenever something changed that could let a task start.

    waiting classes ──► heap by (queue priority, job priority, submission) ──► head job ──► policy ──► runs of tasks
                                    ▲                                             │
                                    └──── next job of the class ◄── placed all ───┤
                                          the whole class is left out ◄── no room ┘

A class that does not fit is left out of the pass as a whole, however many jobs are in it, and of those that follow
until something is freed that could be enough for it: a pass costs what it places and one look at each class that may
fit. What comes later in the order may start where what comes first does not fit.
"""

from __future__ import annotations

import heapq

from lavalite.control import reservations
from lavalite.control.actions import Wake
from lavalite.control.demand import WaitingClass
from lavalite.control.outbox import Outbox
from lavalite.control.state import Batch, ClusterState
from lavalite.control.tasks import JobState, TaskKey, TaskRun, commitment_of
from lavalite.control.workload import look_ahead
from lavalite.ledger.book import FLOATING
from lavalite.model.job import CommitmentRecord, Share
from lavalite.model.resources import GPU
from lavalite.placement.ranking import PolicyFault, Run

_Place = tuple[int, int, int, WaitingClass]


def schedule(state: ClusterState, now: float, out: Outbox) -> None:
    """Place what fits, at most `max_placements` tasks; a Wake asks for the rest."""
    state.schedule_wanted = False
    state.refresh_columns(now)
    left = state.settings.max_placements
    records: list[CommitmentRecord] = []
    state.wake_classes()
    state.looked_at = 0
    look_ahead(state)
    order = [place for waiting in state.awake.values() if (place := _head(state, waiting)) is not None]
    heapq.heapify(order)
    while order and left:
        *_, waiting = heapq.heappop(order)
        job = state.jobs[waiting.jobs[0][1]]
        wanted = min(job.ready, left, _allowed(state, waiting, job))
        placed = _place(state, waiting, job, wanted, now, records) if wanted else 0
        left -= placed
        again = _head(state, waiting)
        if placed == wanted and wanted and again is not None:
            heapq.heappush(order, again)
    if not left:
        state.schedule_wanted = True
        out.at_once.append(Wake(now))
    limit = state.settings.max_txn_operations
    for first in range(0, len(records), limit):
        part = records[first : first + limit]
        out.commit(state, Batch(tasks=tuple(TaskKey(r.job, r.task) for r in part)), part)


def _head(state: ClusterState, waiting: WaitingClass) -> _Place | None:
    """Where the first job of the class stands in the order of all; None if none waits."""
    if not waiting.jobs:
        return None
    priority, job_id = waiting.jobs[0]
    return (-state.queue(waiting.queue).priority, priority, job_id, waiting)


def _allowed(state: ClusterState, waiting: WaitingClass, job: JobState) -> int:
    """How many more tasks limits and floating resources allow."""
    allowed = job.ready
    per_user = state.queue(waiting.queue).tasks_per_user
    if per_user is not None:
        allowed = min(allowed, per_user - state.user_tasks.get((waiting.queue, job.spec.user), 0))
    for kind, amount in job.spec.request.floating.items():
        if amount:
            allowed = min(allowed, state.book.free(FLOATING, kind) // amount)
    return max(0, allowed)


def _place(
    state: ClusterState,
    waiting: WaitingClass,
    job: JobState,
    wanted: int,
    now: float,
    records: list[CommitmentRecord],
) -> int:
    """Place up to so many tasks of the job; how many were."""
    placed = 0
    runs = _runs(state, waiting, job, wanted, now)
    for row in (run.row for run in runs for _ in range(run.tasks)):
        record = _place_one(state, waiting, job, state.columns.names[row], row, now)
        if record is None:
            break
        records.append(record)
        placed += 1
        state.turns[waiting.queue] = row
        if waiting.wanted.gpu is not None:
            state.refresh_columns(now)  # the next one must not be given the same devices
    state.refresh_columns(now)
    if sum(run.tasks for run in runs) < wanted and not waiting.fault:
        state.let_sleep(waiting)
    return placed


def _runs(state: ClusterState, waiting: WaitingClass, job: JobState, wanted: int, now: float) -> list[Run]:
    """Where the policy wants up to so many tasks to go. Nowhere if it does not answer as it must: then the class says
    why, and it is asked again once any row has changed.
    """
    as_of = (state.columns.generation, state.columns.mark)
    if waiting.fault and waiting.fault_as_of == as_of:
        return []
    waiting.fault, waiting.fault_as_of = "", as_of
    state.looked_at += 1
    try:
        bounds = reservations.bounds(state, waiting, job, now)
        return state.ranking(waiting).runs(state.columns, wanted, state.turns.get(waiting.queue, -1), bounds)
    except PolicyFault as fault:
        waiting.fault = str(fault)
        return []


def _place_one(
    state: ClusterState, waiting: WaitingClass, job: JobState, provider: str, row: int, now: float
) -> CommitmentRecord | None:
    node = state.node_of(provider)
    if node is None:
        return None
    position = job.next_ready()
    run = TaskRun(
        TaskKey(job.id, job.indices[position]),
        position,
        job.attempts_of(position) + 1,
        node.name,
        node.journal_id,
        now,
        state.epoch,
        fence_after_seconds=state.queue(job.queue).fence_after_seconds if job.spec.rerunnable else 0,
        ends_by=reservations.ends_by(state, job),
    )
    shares = _shares(state, waiting, job, provider, row)
    return commitment_of(run, shares) if state.assume(run, shares) else None


def _shares(state: ClusterState, waiting: WaitingClass, job: JobState, provider: str, row: int) -> list[Share]:
    wanted = waiting.wanted
    shares = [
        Share(
            provider=provider,
            kind=kind,
            amount=amount,
            devices=wanted.pick_devices(state.columns.devices(row)) if kind == GPU else [],
            pool=wanted.pools.get(kind, ""),
        )
        for kind, amount in wanted.amounts.items()
    ]
    floating = job.spec.request.floating
    shares += [Share(provider=FLOATING, kind=kind, amount=amount) for kind, amount in floating.items() if amount]
    return shares
