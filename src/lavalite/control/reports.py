"""What becomes of tasks by what agents report of them, by the table in model.task.

    report      from COMMITTED          from RUNNING, SUSPENDED             from UNKNOWN
    started     RUNNING                 –                                   RUNNING
    suspended   RUNNING, SUSPENDED      SUSPENDED                           SUSPENDED
    resumed     RUNNING                 RUNNING                             RUNNING
    refused     PENDING or FAILED       – (cannot be)                       PENDING or FAILED
    ended       SUCCEEDED, FAILED, CANCELLED, or PENDING for another try; see `_outcome`

Reports are repeated until they are acknowledged, so one that tells nothing new changes nothing. An attempt that the
store does not know is put in quarantine and never killed silently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from signal import SIGTERM

from lavalite.control import gangs, parking, retries
from lavalite.control.actions import SendStop
from lavalite.control.events import AttemptReported
from lavalite.control.node_state import NodeState
from lavalite.control.outbox import Outbox
from lavalite.control.restored import adopted, may_be_adopted_later
from lavalite.control.state import ClusterState
from lavalite.control.tasks import End, TaskKey, TaskRun
from lavalite.model.task import AttemptId, TaskState

PENDING, COMMITTED, RUNNING, SUSPENDED, UNKNOWN = (
    TaskState.PENDING,
    TaskState.COMMITTED,
    TaskState.RUNNING,
    TaskState.SUSPENDED,
    TaskState.UNKNOWN,
)
MAX_QUARANTINED = 10_000
"""So many are shown to people; an agent that makes up more of them does not get to fill our memory."""

REASON_EXIT, REASON_FENCE, REASON_LOST = "exit", "fence", "lost"


@dataclass(slots=True, frozen=True)
class Verdict:
    """What becomes of a task whose attempt is over: `after`, and for PENDING whether that used up a retry."""

    after: TaskState
    charged: bool = False


def reported(state: ClusterState, node: NodeState, report: AttemptReported, now: float, out: Outbox) -> None:
    """One report of one attempt."""
    key = TaskKey(report.id.job, report.id.task)
    run = state.runs.get(key) or adopted(state, node, report, now)
    ours = run is not None and not run.assumed and run.attempt == report.id.attempt
    if run is None or not ours or run.node != node.name or run.journal_id != node.journal_id:
        _stranger(state, node, report, out)
        return
    run.maybe_sent = True
    # By the node's clock, which may be years off: how long a job is remembered must not hang on that.
    report = replace(report, at=min(max(report.at, run.committed_at), now))
    if report.state == "ended":
        _end(state, run, report, now)
    elif report.state == "refused":
        if run.state in (COMMITTED, UNKNOWN):
            _end(state, run, report, now)
    else:
        _alive(state, run, report)
        parking.settle(state, run, out)


def _alive(state: ClusterState, run: TaskRun, report: AttemptReported) -> None:
    if run.state is COMMITTED:
        state.move_run(run, RUNNING, started_at=report.at)
    if report.state == "suspended":
        if run.state in (RUNNING, UNKNOWN):
            state.move_run(run, SUSPENDED, started_at=report.at)
    elif run.state is UNKNOWN or (report.state == "resumed" and run.state is SUSPENDED):
        state.move_run(run, RUNNING, started_at=report.at)


def _end(state: ClusterState, run: TaskRun, report: AttemptReported, now: float) -> None:
    ran = report.state == "ended" and report.reason != REASON_LOST
    if run.state is COMMITTED and ran:
        # It started and ended between two reports.
        state.move_run(run, RUNNING, started_at=report.at)
    end = End(report.exit_code, report.reason or report.state, run.node, run.started_at, report.at)
    conclude(state, run, _outcome(state, run, report), end, now)


def _outcome(state: ClusterState, run: TaskRun, report: AttemptReported) -> Verdict:
    """What a report of an end means. Success is success, also where somebody had asked to stop it by then.

    Where the gang begins anew, all that its tasks did in this attempt counts for nothing.
    """
    if not run.cancel_requested and gangs.begins_anew(state, state.jobs[run.key.job]):
        return Verdict(PENDING)
    if report.state == "ended" and report.exit_code == 0 and report.reason in ("", REASON_EXIT):
        return Verdict(TaskState.SUCCEEDED)
    if run.cancel_requested:
        return Verdict(TaskState.CANCELLED)
    if run.requeue_requested:
        return Verdict(PENDING)
    if report.state == "ended" and report.reason in (REASON_FENCE, REASON_LOST):
        return when_lost(state, run)
    return _retry_or(state, run, TaskState.FAILED, report.exit_code if report.state == "ended" else None)


def when_lost(state: ClusterState, run: TaskRun, *, surely_dead: bool = True) -> Verdict:
    """What becomes of an attempt that did not end by itself.

    Where it may still run somewhere, only what its own node stops by the fence (rerunnable tasks) is tried again.
    """
    job = state.jobs[run.key.job]
    if run.cancel_requested:
        return Verdict(TaskState.CANCELLED)
    if job.spec.rerunnable or (run.requeue_requested and surely_dead):
        return Verdict(PENDING)
    return _retry_or(state, run, TaskState.FAILED) if surely_dead else Verdict(TaskState.FAILED)


def _retry_or(state: ClusterState, run: TaskRun, otherwise: TaskState, exit_code: int | None = None) -> Verdict:
    if retries.allowed(state, state.jobs[run.key.job], run.position, exit_code):
        return Verdict(PENDING, charged=True)
    return Verdict(otherwise)


def conclude(state: ClusterState, run: TaskRun, verdict: Verdict, end: End, now: float) -> None:
    """Carry out a verdict; another try comes after a back-off that grows with each attempt."""
    if verdict.after is PENDING and gangs.has_begun_to_end(state.jobs[run.key.job]):
        verdict = Verdict(TaskState.FAILED)
    if verdict.after is not PENDING:
        state.finish(run, verdict.after, end)
        return
    seconds = retries.backoff_seconds(state, state.jobs[run.key.job], run.attempt)
    state.retry(run, now + seconds, end, charged=verdict.charged)


def _stranger(state: ClusterState, node: NodeState, report: AttemptReported, out: Outbox) -> None:
    """An attempt that nobody here is waiting for: over long since, given up as lost, or never heard of."""
    place = (node.name, report.id)
    over = report.state in ("ended", "refused")
    if _was_ours(state, report.id):
        if not over:
            grace_seconds = state.settings.stop_grace_seconds
            out.at_once.append(SendStop(node.name, report.id, int(SIGTERM), grace_seconds, "given up as lost"))
        return
    if over and not may_be_adopted_later(state, report):
        state.quarantine.pop(place, None)
    elif place in state.quarantine or len(state.quarantine) < MAX_QUARANTINED:
        state.quarantine[place] = report


def _was_ours(state: ClusterState, attempt: AttemptId) -> bool:
    """Whether the store says that this attempt is over."""
    job = state.jobs.get(attempt.job)
    position = job.position_of(attempt.task) if job else None
    if job is None or position is None:
        return False
    return attempt.attempt <= job.attempts_of(position)
