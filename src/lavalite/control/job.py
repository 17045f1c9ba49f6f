"""What becomes of tasks: people's wishes and agents' reports, by the table in model.task.

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

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lavalite.control.actions import AttemptStart, SendDispatch, SendStop
from lavalite.control.events import (
    AttemptReported,
    CancelRequested,
    CommitConfirmed,
    CommitUnwound,
    RequeueRequested,
    SignalRequested,
)
from lavalite.control.outbox import Outbox
from lavalite.control.state import ClusterState
from lavalite.control.supply import NodeState
from lavalite.control.tasks import ASSUMED, FINAL_CODES, LIVE_CODES, End, JobState, TaskKey, TaskRun
from lavalite.model.resources import CPU, MEMORY, WHOLE
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

REASON_EXIT, REASON_FENCE, REASON_LOST, REASON_STOP = "exit", "fence", "lost", "stop"


@dataclass(slots=True, frozen=True)
class Verdict:
    """What becomes of a task whose attempt is over: `after`, and for PENDING whether that used up a retry."""

    after: TaskState
    charged: bool = False


# --- commitments --------------------------------------------------------------------------------------------------


def confirmed(state: ClusterState, event: CommitConfirmed, now: float, out: Outbox) -> None:
    """The batch is durable: its tasks are COMMITTED and go to their nodes, unless that was overtaken."""
    starts: dict[str, list[AttemptStart]] = {}
    for key in state.batches.pop(event.batch_id).tasks:
        run = state.runs[key]
        state.confirm(run)
        node = state.nodes.get(run.node)
        if run.cancel_requested:
            state.finish(run, TaskState.CANCELLED, End(None, "cancelled before it started", "", None, now))
        elif run.requeue_requested or node is None or node.journal_id != run.journal_id:
            # Nobody heard of this attempt, and nobody will: it is simply placed anew.
            state.retry(run, now, End(None, "its node was set up anew before it started", run.node), charged=False)
        elif node.connected and node.registered:
            run.maybe_sent = True
            starts.setdefault(node.name, []).append(attempt_start(state, run))
    out.at_once.extend(SendDispatch(node, tuple(attempts)) for node, attempts in starts.items())


def unwound(state: ClusterState, event: CommitUnwound, now: float) -> None:
    """Nothing of the batch was written: its tasks are as pending as before."""
    for key in state.batches.pop(event.batch_id).tasks:
        run = state.runs[key]
        state.unwind(run)
        if run.cancel_requested:
            _cancel_pending(state, state.jobs[key.job], run.position, now)


def attempt_start(state: ClusterState, run: TaskRun) -> AttemptStart:
    """All that the agent needs to start the attempt."""
    job = state.jobs[run.key.job]
    spec, queue = job.spec, state.queue(job.queue)
    limits = [s for s in (spec.walltime_seconds, queue.walltime_seconds) if s is not None]
    devices: dict[str, list[str]] = {}
    for share in state.book.shares(run.key.owner):
        if share.devices:
            devices.setdefault(share.kind, []).extend(share.devices)
    cores = _cores(state, run, spec.host)
    if cores:
        devices.setdefault(CPU, cores)
    amounts = spec.request.amounts()
    return AttemptStart(
        id=run.id,
        journal_id=run.journal_id,
        command=tuple(spec.command),
        cwd=spec.cwd,
        environment=spec.environment,
        stdout_path=_filled_in(spec.stdout_path, run.key),
        stderr_path=_filled_in(spec.stderr_path, run.key),
        user=spec.user,
        uid=spec.uid,
        gid=spec.gid,
        cpu_milli=amounts.get(CPU, 0),
        memory_bytes=amounts.get(MEMORY, 0),
        devices=devices,
        walltime_seconds=min(limits) if limits else None,
        fence_after_seconds=float(run.fence_after_seconds),
        host=spec.host,
    )


def _cores(state: ClusterState, run: TaskRun, host_name: str) -> list[str]:
    """The cores to stay on: the logical host's own, or else those that no logical host has to itself; empty: any."""
    host = state.hosts.get(host_name)
    if host is not None:
        return [d for part in host.parts if part.kind == CPU and part.provider == host.anchor for d in part.devices]
    free = state.book.device_free(run.node, CPU)
    shared = [core for core, amount in free.items() if amount == WHOLE]
    return shared if len(shared) < len(free) else []


def _filled_in(path: str, key: TaskKey) -> str:
    return path.replace("%J", str(key.job)).replace("%I", str(key.task))


# --- agents' reports ------------------------------------------------------------------------------------------------


def reported(state: ClusterState, node: NodeState, report: AttemptReported, now: float, out: Outbox) -> None:
    """One report of one attempt."""
    key = TaskKey(report.id.job, report.id.task)
    run = state.runs.get(key)
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
    """What a report of an end means. Success is success, also where somebody had asked to stop it by then."""
    if report.state == "ended" and report.exit_code == 0 and report.reason in ("", REASON_EXIT):
        return Verdict(TaskState.SUCCEEDED)
    if run.cancel_requested:
        return Verdict(TaskState.CANCELLED)
    if run.requeue_requested:
        return Verdict(PENDING)
    if report.state == "ended" and report.reason in (REASON_FENCE, REASON_LOST):
        return when_lost(state, run)
    return _retry_or(state, run, TaskState.FAILED)


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


def _retry_or(state: ClusterState, run: TaskRun, otherwise: TaskState) -> Verdict:
    job = state.jobs[run.key.job]
    if job.charges.get(run.position, 0) < job.spec.retries:
        return Verdict(PENDING, charged=True)
    return Verdict(otherwise)


def conclude(state: ClusterState, run: TaskRun, verdict: Verdict, end: End, now: float) -> None:
    """Carry out a verdict; another try comes after a back-off that doubles with each attempt."""
    if verdict.after is not PENDING:
        state.finish(run, verdict.after, end)
        return
    settings = state.settings
    seconds = min(settings.backoff_first_seconds * 2 ** min(run.attempt - 1, 30), settings.backoff_most_seconds)
    state.retry(run, now + seconds, end, charged=verdict.charged)


def _stranger(state: ClusterState, node: NodeState, report: AttemptReported, out: Outbox) -> None:
    """An attempt that nobody here is waiting for: over long since, given up as lost, or never heard of."""
    place = (node.name, report.id)
    over = report.state in ("ended", "refused")
    if _was_ours(state, report.id):
        if not over:
            out.at_once.append(_stop(node.name, report.id, state.settings.stop_grace_seconds, "given up as lost"))
        return
    if over:
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


# --- people's wishes ------------------------------------------------------------------------------------------------


def cancelled(state: ClusterState, event: CancelRequested, now: float, out: Outbox) -> None:
    """What holds nothing ends now, the rest when its agent says so; with `force`, UNKNOWN tasks end now too."""
    job = state.jobs[event.job]
    for position in _positions(job, event.tasks):
        code = job.codes[position]
        if code in FINAL_CODES:
            continue
        if code not in LIVE_CODES and code != ASSUMED:
            _cancel_pending(state, job, position, now)
            continue
        run = state.runs[TaskKey(job.id, job.indices[position])]
        if run.state is UNKNOWN and event.force:
            end = End(None, f"given up by {event.by or 'an operator'}", run.node, run.started_at, now)
            state.finish(run, TaskState.CANCELLED, end)
            continue
        state.mark(run, cancel=True)
        if not _settle_unsent(state, run, now):
            _stop_when_durable(state, run, REASON_STOP, out)


def _settle_unsent(state: ClusterState, run: TaskRun, now: float) -> bool:
    """End at once what its agent surely has not heard of: it waits, committed, for its node to come back."""
    if run.assumed or run.maybe_sent or run.state is not COMMITTED:
        return False
    end = End(None, "cancelled before it started", "", None, now)
    if run.cancel_requested:
        state.finish(run, TaskState.CANCELLED, end)
    else:
        state.retry(run, now, end._replace(reason="requeued before it started"), charged=False)
    return True


def requeued(state: ClusterState, event: RequeueRequested, now: float, out: Outbox) -> None:
    """Live tasks are stopped, and go back to PENDING when their agents say that they have ended."""
    job = state.jobs[event.job]
    for position in _positions(job, event.tasks):
        if job.codes[position] in LIVE_CODES or job.codes[position] == ASSUMED:
            run = state.runs[TaskKey(job.id, job.indices[position])]
            state.mark(run, requeue=True)
            if not _settle_unsent(state, run, now):
                _stop_when_durable(state, run, "requeue", out)


def signalled(state: ClusterState, event: SignalRequested, out: Outbox) -> None:
    """Stop in place, or let go on. The state follows when the agent reports it."""
    job = state.jobs[event.job]
    wanted, number = (RUNNING, signal.SIGSTOP) if event.action == "suspend" else (SUSPENDED, signal.SIGCONT)
    for position in _positions(job, event.tasks):
        if job.state_of(position) is wanted:
            run = state.runs[TaskKey(job.id, job.indices[position])]
            out.at_once.append(SendStop(run.node, run.id, int(number), reason=event.action))


def stop_again(state: ClusterState, run: TaskRun, out: Outbox) -> None:
    """A wish that its agent may have missed while it was away."""
    if run.cancel_requested or run.requeue_requested:
        _stop_when_durable(state, run, REASON_STOP if run.cancel_requested else "requeue", out)


def _stop_when_durable(state: ClusterState, run: TaskRun, reason: str, out: Outbox) -> None:
    node = state.nodes.get(run.node)
    if not run.assumed and node is not None and node.connected and run.journal_id == node.journal_id:
        out.durable.append(_stop(node.name, run.id, state.settings.stop_grace_seconds, reason))


def _stop(node: str, attempt: AttemptId, grace_seconds: float, reason: str) -> SendStop:
    return SendStop(node, attempt, int(signal.SIGTERM), grace_seconds, reason)


def _cancel_pending(state: ClusterState, job: JobState, position: int, now: float) -> None:
    state.cancel_pending(job, position, End(None, "cancelled before it started", "", None, now))


def _positions(job: JobState, tasks: tuple[int, ...] | None) -> Iterator[int]:
    if tasks is None:
        yield from range(len(job.codes))
        return
    for index in tasks:
        position = job.position_of(index)
        if position is not None:
            yield position
