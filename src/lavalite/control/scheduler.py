"""What is placed next, and where. Runs whenever something changed that could let a task start.

    control.order ──► the lane whose turn it is ──► limits, quotas ──► policy ──► runs of tasks
          ▲                                             │                │
          ├──── none allowed: the lane is set aside ◄───┘                │
          └──── no room: the shape is left out, with all its lanes ◄─────┴──► control.reclaim, for who owns it

A shape that does not fit is left out of the pass as a whole, however many jobs and users ask for it, and of those
that follow until something is freed that could be enough for it: a pass costs what it places and one look at each
shape that may fit. What comes later in the order may start where what comes first does not fit.
"""

from __future__ import annotations

from lavalite.control import gangs, limits, quotas, reclaim, reservations
from lavalite.control.actions import Wake
from lavalite.control.demand import WaitingClass
from lavalite.control.order import Round, Shape
from lavalite.control.outbox import Outbox
from lavalite.control.state import Batch, ClusterState
from lavalite.control.tasks import JobState, TaskKey, TaskRun, commitment_of
from lavalite.control.usage import Scope
from lavalite.control.workload import look_ahead
from lavalite.ledger.book import FLOATING
from lavalite.model.job import CommitmentRecord, Share
from lavalite.model.resources import GPU
from lavalite.model.specs import TASKS
from lavalite.placement.ranking import PolicyFault, Run

TURN_PART = 32
"""Of what a user holds, so much may be placed more before it is looked anew whose turn it is."""


def schedule(state: ClusterState, now: float, out: Outbox) -> None:
    """Place what fits, at most `max_placements` tasks; a Wake asks for the rest."""
    state.schedule_wanted = False
    state.refresh_columns(now)
    left = state.settings.max_placements
    records: list[CommitmentRecord] = []
    state.asleep.woken(state.columns)
    state.looked_at = 0
    look_ahead(state)
    for queue, fair in state.fair.items():
        state.order.catch_up(queue, fair)
    pass_ = Round.begin(state.order, state.queue, state.asleep)
    claims = reclaim.Claims()
    while left and (turn := pass_.next()) is not None:
        shape, waiting = turn
        job = state.jobs[waiting.jobs[0][1]]
        allowed = _allowed(state, job)
        if job.spec.gang is not None:
            wanted = len(job.codes) if allowed == len(job.codes) else 0
            if wanted > left < state.settings.max_placements:
                left = 0  # it comes first in the next pass
                break
            placed = _place_gang(state, waiting, job, now, records) if wanted else 0
        else:
            most = left if waiting.queue not in state.fair or pass_.alone(shape) else _turn(state, waiting)
            wanted = min(job.ready, left, most, allowed)
            placed = _place(state, waiting, job, wanted, now, records) if wanted else 0
        left = max(0, left - placed)
        if not wanted or placed < wanted:
            reclaim.claim(state, waiting, job, now, out, claims)
        if not wanted:
            pass_.set_aside(shape, waiting)
        elif placed < wanted:
            pass_.close(shape)
        else:
            pass_.changed(shape)
    pass_.end()
    if claims.settle(state, whole=bool(left)) or not left:
        state.schedule_wanted = True
        out.at_once.append(Wake(now))
    limit = state.settings.max_txn_operations
    for first in range(0, len(records), limit):
        part = records[first : first + limit]
        out.commit(state, Batch(tasks=tuple(TaskKey(r.job, r.task) for r in part)), part)


def _turn(state: ClusterState, waiting: WaitingClass) -> int:
    """After so many tasks it may be another one's turn, where others wait in a fair queue: a few per cent at most."""
    held = state.usage.of(Scope("queue", waiting.queue, "user", waiting.user)).get(TASKS, 0)
    return max(1, held // TURN_PART)


def _allowed(state: ClusterState, job: JobState) -> int:
    """How many more tasks limits, quotas and floating resources allow."""
    allowed = min(job.ready, limits.allowed(state, job))
    for kind, amount in job.spec.request.floating.items():
        if amount:
            allowed = min(allowed, state.book.free(FLOATING, kind) // amount)
    return max(0, quotas.allowed(state, job.spec, allowed) if allowed > 0 else 0)


def _place(
    state: ClusterState,
    waiting: WaitingClass,
    job: JobState,
    wanted: int,
    now: float,
    records: list[CommitmentRecord],
) -> int:
    """Place up to so many tasks of the job; how many were."""
    placed, shape = 0, state.order.shape_of(waiting)
    runs = _runs(state, shape, waiting, job, wanted, now)
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
    # Whose own is lent to others claims it anew in every pass.
    if sum(run.tasks for run in runs) < wanted and not shape.fault and not any(quotas.charges(state, job.spec)):
        state.let_sleep(waiting)
    return placed


def _runs(
    state: ClusterState, shape: Shape, waiting: WaitingClass, job: JobState, wanted: int, now: float
) -> list[Run]:
    """Where the policy wants up to so many tasks to go. Nowhere if it does not answer as it must: then the shape says
    why, and it is asked again once any row has changed.
    """
    as_of = (state.columns.generation, state.columns.mark)
    if shape.fault and shape.fault_as_of == as_of:
        return []
    shape.fault, shape.fault_as_of = "", as_of
    state.looked_at += 1
    try:
        bounds = reservations.bounds(state, waiting, job, now)
        return state.ranking(waiting).runs(state.columns, wanted, state.turns.get(waiting.queue, -1), bounds)
    except PolicyFault as fault:
        shape.fault = str(fault)
        return []


def _place_gang(
    state: ClusterState, waiting: WaitingClass, job: JobState, now: float, records: list[CommitmentRecord]
) -> int:
    """Place all tasks of the job, or none."""
    attempt, first = gangs.number_of_attempt(job), len(records)
    for row, tasks in gangs.find_seats(state, waiting, job, now).seats.items():
        for _ in range(tasks):
            record = _place_one(state, waiting, job, state.columns.names[row], row, now)
            if record is None:
                for placed in records[first:]:
                    state.unwind(state.runs[TaskKey(placed.job, placed.task)])
                del records[first:]
                state.refresh_columns(now)
                return 0
            record.attempt = state.runs[TaskKey(record.job, record.task)].attempt = attempt
            records.append(record)
            state.refresh_columns(now)
    return len(records) - first


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
    for kind, amount in floating.items():
        if amount:
            shares.append(Share(provider=FLOATING, kind=kind, amount=amount, pool=state.floating_pool(kind)))
    return shares
