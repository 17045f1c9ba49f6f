"""What is placed next, and where. Runs whenever something changed that could let a task start.

    control.order ──► the lane whose turn it is ──► limits, quotas ──► policy ──► runs of tasks
          ▲                                             │                │
          ├──── none allowed: the lane is set aside ◄───┘                │
          └──── no room: the shape is left out, with all its lanes ◄─────┼──► control.reclaim, for who owns it
                                                                         ├──► control.preemption, for whose queue may
                                                                         └──► control.planning, for who comes first

A shape that does not fit is left out of the pass as a whole, however many jobs and users ask for it, and of those
that follow until something is freed that could be enough for it: a pass costs what it places and one look at each
shape that may fit, of which it takes so many and leaves the rest to the next. What comes later in the order may start
where what comes first does not fit, and where that makes no planned start later. While a queue may still plan a
start, a few of those that sleep have their turn for that alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

from lavalite.control import (
    affinity,
    gangs,
    limits,
    parking,
    planning,
    preemption,
    quotas,
    reclaim,
    reservations,
    seating,
)
from lavalite.control.actions import Wake
from lavalite.control.ahead import floating_ahead, floating_room
from lavalite.control.decisions import Decision, Seen, seen_now
from lavalite.control.demand import WaitingClass
from lavalite.control.find_start import floating_of
from lavalite.control.neighbours import means_itself
from lavalite.control.order import Shape
from lavalite.control.outbox import Outbox
from lavalite.control.round import Round
from lavalite.control.state import Batch, ClusterState
from lavalite.control.tasks import JobState, TaskKey, TaskRun
from lavalite.control.usage import Scope
from lavalite.control.workload import look_ahead
from lavalite.ledger.book import FLOATING
from lavalite.model.job import CommitmentRecord, Share
from lavalite.model.resources import GPU, WHOLE
from lavalite.model.specs import TASKS
from lavalite.placement.classes import RequestClass
from lavalite.placement.ranking import PolicyFault, Run

TURN_PART = 32
"""Of what a user holds, so much may be placed more before it is looked anew whose turn it is."""


def schedule(state: ClusterState, now: float, out: Outbox) -> None:
    """Place what fits, at most `max_placements` tasks; a Wake asks for the rest."""
    state.schedule_wanted = state.plan_wanted = False
    state.refresh_columns(now)
    left = state.settings.max_placements
    records: list[CommitmentRecord] = []
    state.asleep.woken(state.columns)
    if state.keeps_changed:
        state.asleep.wake_kept()
        state.keeps_changed = False
    state.order.moved(state.asleep.take_moved(), state.asleep)
    state.looked_at = looks = 0
    look_ahead(state)
    for queue, fair in state.fair.items():
        state.order.catch_up(queue, fair)
    state.plan.begin(state.settings.max_searches, state.settings.max_roused, now)
    pass_ = Round.begin(state.order, state.queue)
    claims = reclaim.Claims()
    while left and (turn := _next(state, pass_, now)) is not None:
        shape, waiting = turn
        if state.parked:
            parking.go_on(state, now, out, state.queue(waiting.queue).priority)
        job = state.jobs[_first(waiting)]
        allowed = _allowed(state, job)
        lacking = 0
        if waiting.shape in state.asleep:
            most, placed = allowed, 0
        elif job.is_gang:
            most = len(job.codes) if allowed == len(job.codes) else 0
            if most > left < state.settings.max_placements:
                left = 0  # it comes first in the next pass
                break
            fits = most and _floating_room(state, job, now) >= most
            placed = _place_gang(state, waiting, job, now, records) if fits else 0
            lacking = most if fits and not placed else 0
            if most and not placed:
                _let_sleep(state, waiting, job, floating=not fits)
        else:
            turn_most = left if waiting.queue not in state.fair or pass_.alone(shape) else _turn(state, waiting)
            most = min(job.ready, left, turn_most, allowed)
            wanted = min(most, _floating_room(state, job, now))
            placed = _place(state, waiting, job, wanted, now, records) if wanted else 0
            lacking = 0 if shape.fault else wanted - placed
            if placed == wanted < most:
                _let_sleep(state, waiting, job, floating=True)
        left = max(0, left - placed)
        if waiting.shape not in state.asleep and (not most or placed < most):
            reclaim.claim(state, waiting, job, now, out, claims)
        if not most:
            state.plan.take_before(job.id)
            shape.tried = (now, state.rows_version, job.id)
            pass_.set_aside(shape, waiting)
        elif placed == most:
            state.plan.take_before(job.id)
            pass_.placed(shape, waiting)
        else:
            looks += waiting.shape in state.asleep and shape not in pass_.roused
            if looks >= state.settings.max_looks:
                left = 0  # what sleeps now is not looked at in the next pass, which goes on with the others
            if preemption.go_on(state, job, now) or preemption.make_room(state, waiting, job, lacking, now, out):
                state.asleep.forget(waiting.shape)
                pass_.planned_first(shape, waiting)
            else:
                _plan(state, pass_, shape, waiting, job, now)
    pass_.end()
    if state.parked and left:
        parking.go_on(state, now, out)
    if state.plan.end([number for number in state.plan.not_seen() if not left and _waits(state, number)]):
        state.keeps_changed = True
    if claims.settle(state, whole=bool(left)) or not left or state.plan_wanted or state.keeps_changed:
        state.schedule_wanted = True
        out.at_once.append(Wake(now))
    limit = state.settings.max_txn_operations
    for first in range(0, len(records), limit):
        part = records[first : first + limit]
        out.commit(state, Batch(tasks=tuple(TaskKey(r.job, r.task) for r in part)), part)


def _next(state: ClusterState, pass_: Round, now: float) -> tuple[Shape, WaitingClass] | None:
    """Whose turn it is; at the end of those that are awake, who sleeps in a queue that may still plan a start."""
    turn = pass_.next()
    if turn is None:
        for queue in state.order.queues():
            if _may_plan(state, queue):
                _rouse(state, pass_, queue, None, now)
        turn = pass_.next()
    return turn


def _rouse(state: ClusterState, pass_: Round, queue: str, before: Shape | None, now: float) -> bool:
    """Give some a turn that sleep and come before a shape; whether there are such, for this pass or the next."""
    dormant = state.order.dormant(queue)
    if not dormant:
        return False
    dormant.look(now, state.rows_version, state.settings.plan_again_seconds)
    if dormant.first(before) is None or not planning.may_end(state, now):
        return False
    most = min(state.plan.roused_left, state.plan.searches_left)
    if not most:
        state.plan_wanted = True
    state.plan.roused_left -= pass_.rouse(queue, before, most)
    return True


def _first(waiting: WaitingClass) -> int:
    assert waiting.first is not None, "a lane of which all are planned is set aside"
    return waiting.first[1]


def _may_plan(state: ClusterState, queue: str) -> bool:
    return state.plan.of_queue(queue) < state.queue(queue).planned_starts


def _plan(state: ClusterState, pass_: Round, shape: Shape, waiting: WaitingClass, job: JobState, now: float) -> None:
    """There is no room for the job: plan its start if it is the first, or one of the first, that has none."""
    unforeseen = shape.fault or state.neighbours.is_bound(job)
    if unforeseen or not _may_plan(state, waiting.queue) or not planning.may_end(state, now):
        state.plan.take_before(job.id)
        pass_.close(shape)
        return
    # Who was planned before comes before all that sleep, unless the order changes by itself.
    stood = state.plan.stood(job.id)
    if not (stood and waiting.queue not in state.fair) and _rouse(state, pass_, waiting.queue, shape, now):
        if not state.plan_wanted:
            return  # their turn is before
        if not stood:
            pass_.close(shape)
            return
    goes_on = planning.plan(state, waiting, job, now)
    if job.id in state.plan.starts:
        state.asleep.forget(waiting.shape)
    elif not state.plan_wanted:
        shape.tried = (now, state.rows_version, job.id)
    if not goes_on:
        pass_.close(shape)
    else:
        pass_.planned_first(shape, waiting)


def _waits(state: ClusterState, number: int) -> bool:
    return number in state.jobs and bool(state.jobs[number].class_key)


def _turn(state: ClusterState, waiting: WaitingClass) -> int:
    """After so many tasks it may be another one's turn, where others wait in a fair queue: a few per cent at most."""
    held = state.usage.of(Scope("queue", waiting.queue, "user", waiting.user)).get(TASKS, 0)
    return max(1, held // TURN_PART)


def _allowed(state: ClusterState, job: JobState) -> int:
    """How many more tasks limits and quotas allow."""
    allowed = min(job.ready, limits.allowed(state, job))
    return max(0, quotas.allowed(state, job.spec, allowed) if allowed > 0 else 0)


def _floating_room(state: ClusterState, job: JobState, now: float) -> int:
    """For how many more tasks there is enough of what floats, beside what is kept of it."""
    floating = floating_of(job)
    if not floating:
        return job.ready
    points = floating_ahead(state, floating, now).points(now, reservations.would_last_until(state, job, now))
    return min(job.ready, floating_room(state, floating, points) * job.spec.tasks_counted)


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
    at_once = 1 if job.spec.affinity and means_itself(job) else wanted
    while placed < wanted:
        asked = min(at_once, wanted - placed)
        runs, seen = _runs(state, shape, waiting, job, asked, now)
        rows = [run.row for run in runs for _ in range(run.tasks)]
        taken = _place_on(state, waiting, job, rows, now, records)
        placed += taken
        if taken and seen is not None:
            first, last = records[-taken].task, records[-1].task
            state.decisions.add(Decision(job.id, first, last, now, waiting.queue, seen, tuple(runs)))
        if len(rows) < asked:
            if not shape.fault:
                _let_sleep(state, waiting, job)
            break
        if taken < asked:
            break
    return placed


def _place_on(
    state: ClusterState,
    waiting: WaitingClass,
    job: JobState,
    rows: list[int],
    now: float,
    records: list[CommitmentRecord],
) -> int:
    """Place a task of the job on each of the rows, in order; how many were."""
    taken = 0
    for row in rows:
        record = _place_one(state, waiting.wanted, job, job.next_ready(), row, now)
        if record is None:
            break
        records.append(record)
        taken += 1
        state.turns[waiting.queue] = row
        if waiting.wanted.gpu is not None:
            state.refresh_columns(now)  # the next one must not be given the same devices
    state.refresh_columns(now)
    return taken


def _let_sleep(state: ClusterState, waiting: WaitingClass, job: JobState, *, floating: bool = False) -> None:
    """No room; but whose own is lent to others claims it anew in every pass."""
    if not any(quotas.charges(state, job.spec)):
        state.let_sleep(waiting, job, floating=floating)


def _runs(
    state: ClusterState, shape: Shape, waiting: WaitingClass, job: JobState, wanted: int, now: float
) -> tuple[list[Run], Seen | None]:
    """Where the policy wants up to so many tasks to go, and what that goes by.

    Nowhere if it does not answer as it must: then the shape says why, and it is asked again once any row has changed.
    """
    as_of = (state.columns.generation, state.columns.mark)
    if shape.fault and shape.fault_as_of == as_of:
        return [], None
    shape.fault, shape.fault_as_of = "", as_of
    state.looked_at += 1
    try:
        bounds, after = reservations.bounds(state, waiting.wanted, job, now), state.turns.get(waiting.queue, -1)
        leaning = affinity.leaning(state, job)
        seen = seen_now(state.columns, waiting.wanted, waiting.policy, wanted, after, bounds, leaning)
        return state.ranking(waiting).runs(state.columns, wanted, after, bounds, leaning), seen
    except PolicyFault as fault:
        shape.fault = str(fault)
        return [], None


def _place_gang(
    state: ClusterState, waiting: WaitingClass, job: JobState, now: float, records: list[CommitmentRecord]
) -> int:
    """Place all tasks of the job, or none."""
    attempt, first = gangs.number_of_attempt(job), len(records)
    each, places = waiting.each, _positions(waiting, job)
    for part, row, tasks in seating.find(state, waiting, job, now).steps:
        for _ in range(tasks):
            record = _place_one(state, each[part], job, next(places[part]), row, now)
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


def _positions(waiting: WaitingClass, job: JobState) -> list[Iterator[int]]:
    """The tasks of each part of a gang, of which all are ready."""
    ends = (
        list(accumulate((part.tasks for part in waiting.parts), initial=0)) if waiting.parts else [0, len(job.codes)]
    )
    return [iter(range(first, last)) for first, last in pairwise(ends)]


def _place_one(
    state: ClusterState, wanted: RequestClass, job: JobState, position: int, row: int, now: float
) -> CommitmentRecord | None:
    provider = state.columns.names[row]
    node = state.node_of(provider)
    if node is None:
        return None
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
        exclusive=wanted.exclusive,
    )
    return state.assume(run, _shares(state, wanted, job, position, row))


def _shares(state: ClusterState, wanted: RequestClass, job: JobState, position: int, row: int) -> list[Share]:
    provider = state.columns.names[row]
    pools = wanted.pools_beside if provider in state.places else wanted.pools
    shares = [
        Share(
            provider=state.places.account(provider, kind),
            kind=kind,
            amount=amount,
            devices=_devices(state, wanted, row, kind),
            pool=pools.get(kind, ""),
        )
        for kind, amount in wanted.amounts.items()
    ]
    floating = job.spec.at(position).request.floating
    for kind, amount in floating.items():
        if amount:
            shares.append(Share(provider=FLOATING, kind=kind, amount=amount, pool=state.floating_pool(kind)))
    return shares


def _devices(state: ClusterState, wanted: RequestClass, row: int, kind: str) -> list[str]:
    """Those that one task is given by name: GPUs, and of special kinds the first that are free."""
    if kind == GPU:
        return wanted.pick_devices(state.columns.devices(row))
    if kind not in wanted.special:
        return []
    free = state.book.device_free(state.columns.names[row], kind)
    return [device for device, left in free.items() if left == WHOLE][: wanted.special[kind]]
