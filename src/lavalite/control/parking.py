"""Tasks that are suspended for others: their CPU comes free, what else they hold they keep, and they go on later.

    told to stop ──► its agent says suspended: parked, its CPU is given back ──► room is back: the CPU is taken,
                                                                                 and once that is durable, it goes on

Those that are parked come before what waits in queues of the same priority or of a lower one, and behind the rest.
A person's wishes are heard as of any other task, but for suspend and resume.
"""

from __future__ import annotations

import math
from signal import SIGCONT, SIGSTOP

from lavalite.control import limits, quotas
from lavalite.control.actions import SendStop
from lavalite.control.ahead import ahead_of
from lavalite.control.outbox import Outbox
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState, TaskRun
from lavalite.model.job import Share
from lavalite.model.resources import CPU
from lavalite.model.task import TaskState

REASON = "suspend"
STOPS_WITHIN_SECONDS = 10.0
"""By then its processes have stopped."""


def suspend(state: ClusterState, run: TaskRun, why: str, now: float, out: Outbox) -> None:
    """Have a running task stopped in place for another one."""
    state.mark(run, suspend=True, preempted=why)
    _send(state, run, SIGSTOP, out)
    state.told_to_stop(run, now + STOPS_WITHIN_SECONDS)


def settle(state: ClusterState, run: TaskRun, out: Outbox) -> None:
    """Its agent told how it is: what stands still gives back its CPU; what should, and runs, is told again."""
    if not run.suspend_requested:
        return
    if run.state is TaskState.SUSPENDED and not run.parked:
        state.park(run)
    elif run.state is TaskState.RUNNING and run.parked:
        _send(state, run, SIGSTOP, out)


def again(state: ClusterState, run: TaskRun, out: Outbox) -> None:
    """What its agent may have missed while it was away."""
    if run.suspend_requested and run.state is TaskState.RUNNING:
        _send(state, run, SIGSTOP, out)
    elif run.resume_sent and run.state is TaskState.SUSPENDED:
        _send(state, run, SIGCONT, out)


def go_on(state: ClusterState, now: float, out: Outbox, least: float = -math.inf) -> None:
    """Let those go on again for whom there is room, of queues of so high a priority at least."""
    for run in sorted((state.runs[key] for key in state.parked), key=lambda run: _order(state, run)):
        if _order(state, run)[0] > -least:
            return
        asked = run.cancel_requested or run.requeue_requested
        if asked or run.state is not TaskState.SUSPENDED or not _has_room(state, run, now):
            continue
        state.unpark(run)
        state.refresh_columns(now)
        _send(state, run, SIGCONT, out)


def of(state: ClusterState, job: JobState) -> list[TaskRun]:
    """Tasks of the job that are suspended for others."""
    return [state.runs[key] for key in state.parked if key.job == job.id]


def _order(state: ClusterState, run: TaskRun) -> tuple[float, int, int, int]:
    job = state.jobs[run.key.job]
    return -state.queue(job.queue).priority, -job.asks.priority, job.id, run.key.task


def _has_room(state: ClusterState, run: TaskRun, now: float) -> bool:
    """Whether its CPU is free beside what is kept for others, and its limits and quotas let it have that."""
    node = state.nodes.get(run.node)
    if node is None or not node.connected or state.book.shortage(run.parked) is not None:
        return False
    job = state.jobs[run.key.job]
    spec = job.spec.at(run.position)
    if any(
        limit.kind == CPU and limit.used(state) + limit.each > limit.most
        for limit in limits.applying(state, spec, job.queue)
    ):
        return False
    for pool, kind, each in quotas.charges(state, spec):
        if kind == CPU and quotas.standing(state, pool, kind, spec.group).left < each:
            return False
    return all(_free_always(state, share, now) >= share.amount for share in run.parked)


def _free_always(state: ClusterState, share: Share, now: float) -> int:
    """The least that is free there from now on, beside what is kept."""
    points = ahead_of(state, share.provider, now).points(now)
    free = state.book.free(share.provider, CPU)
    return min(free + p.released.get(CPU, 0) - p.kept.get(CPU, 0) for p in points)


def _send(state: ClusterState, run: TaskRun, signal: int, out: Outbox) -> None:
    node = state.nodes.get(run.node)
    if node is not None and node.connected and run.journal_id == node.journal_id:
        out.durable.append(SendStop(node.name, run.id, int(signal), reason=REASON))
