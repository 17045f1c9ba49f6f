"""What people want of jobs that are there: cancel, requeue, suspend, resume.

    cancel      waits: CANCELLED now       lives: stopped, CANCELLED when its agent says so
    requeue     lives: stopped, PENDING when its agent says so
    suspend, resume    a signal; the state follows when the agent reports it

What is stopped has its job's `grace_seconds` to end in, if that says any. A job that was to start within some time,
and of which nothing was placed by then, is cancelled as if by a person.

A whole job of many tasks is cancelled a chunk at a time, so that others have their turn in between. That it is to be
cancelled is durable with the first of them, and from then on nothing of it starts; a new leader goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

from lavalite.control.actions import SendStop, Wake
from lavalite.control.demand import Cancel
from lavalite.control.events import CancelRequested, RequeueRequested, SignalRequested
from lavalite.control.outbox import Outbox
from lavalite.control.state import ClusterState
from lavalite.control.tasks import ASSUMED, FINAL_CODES, LIVE_CODES, End, JobState, TaskKey, TaskRun
from lavalite.model.task import TaskState

REASON_STOP, REASON_REQUEUE, REASON_PREEMPT = "stop", "requeue", "preempt"


@dataclass(slots=True, frozen=True)
class Ending:
    """How a task is told to end: by which signal, and after how long by KILL."""

    signal: int
    grace_seconds: float


def cancelled(state: ClusterState, event: CancelRequested, now: float, out: Outbox) -> None:
    """What holds nothing ends now, the rest when its agent says so; with `force`, UNKNOWN tasks end now too."""
    job = state.jobs[event.job]
    if event.tasks is not None and not job.is_gang:
        cancel = Cancel(0, event.force, event.by, event.waiting)
        _cancel(state, job, _positions(job, event.tasks), cancel, now, out)
        return
    if len(job.codes) > state.settings.max_cancels and not event.waiting:
        state.set_cancelling(job)
    before = state.cancels.get(job.id)
    force, by = (True, before.by) if before is not None and before.force else (event.force, event.by)
    waiting = event.waiting and (before is None or before.waiting)
    state.cancels[job.id] = Cancel(0, force, by, waiting)
    _cancel_some(state, job, now, out)


def give_up(state: ClusterState, now: float, out: Outbox) -> None:
    """End jobs of which nothing has been placed for as long as they were to wait at most."""
    impatient, state.impatient = state.impatient, {}
    for job_id in impatient:
        job = state.jobs.get(job_id)
        if job is None or not job.unfinished or job.id in state.cancels:
            continue
        if job.unfinished < len(job.codes) or job.attempts or any(True for _ in job.holding()):
            continue
        if len(job.codes) > state.settings.max_cancels:
            state.set_cancelling(job)
        why = f"nothing of it was placed within {job.spec.start_within_seconds} s"
        state.cancels[job.id] = Cancel(why=why)
        _cancel_some(state, job, now, out)


def go_on_cancelling(state: ClusterState, now: float, out: Outbox) -> None:
    """Some more of a job that is being cancelled, if there is one."""
    for job_id in state.cancels:
        _cancel_some(state, state.jobs[job_id], now, out)
        return


def _cancel_some(state: ClusterState, job: JobState, now: float, out: Outbox) -> None:
    """The next `max_cancels` tasks of the job; a Wake asks for the rest."""
    cancel, most = state.cancels[job.id], state.settings.max_cancels
    first = job.next_unfinished(cancel.position)
    if first is not None:
        cancel.position = (first // most + 1) * most
        _cancel(state, job, range(first, min(cancel.position, len(job.codes))), cancel, now, out)
    if first is None or cancel.position >= len(job.codes):
        del state.cancels[job.id]
    if state.cancels:
        out.at_once.append(Wake(now))


def _cancel(
    state: ClusterState, job: JobState, positions: Iterable[int], cancel: Cancel, now: float, out: Outbox
) -> None:
    never_ran = End(None, cancel.why, "", None, now)
    for position in positions:
        code = job.codes[position]
        if code in FINAL_CODES:
            continue
        if code not in LIVE_CODES and code != ASSUMED:
            state.cancel_pending(job, position, never_ran)
            continue
        if cancel.waiting:
            continue
        run = state.runs[TaskKey(job.id, job.indices[position])]
        if run.state is TaskState.UNKNOWN and cancel.force:
            end = End(None, f"given up by {cancel.by or 'an operator'}", run.node, run.started_at, now)
            state.finish(run, TaskState.CANCELLED, end)
            continue
        state.mark(run, cancel=True)
        if not _settle_unsent(state, run, now):
            _stop_when_durable(state, run, REASON_STOP, now, out)


def _settle_unsent(state: ClusterState, run: TaskRun, now: float) -> bool:
    """End at once what its agent surely has not heard of: it waits, committed, for its node to come back."""
    if run.assumed or run.maybe_sent or run.state is not TaskState.COMMITTED:
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
    if job.is_gang and any(job.counts.get(code) for code in FINAL_CODES):
        return  # some of it has ended for good, and a gang begins anew as a whole or not at all
    for run in _runs(state, job, event.tasks):
        end_run(state, run, REASON_REQUEUE, now, out, requeue=True)


def end_run(
    state: ClusterState, run: TaskRun, reason: str, now: float, out: Outbox, *, requeue: bool = False
) -> None:
    """Have a live task stopped. With `requeue` it goes back to PENDING; else it ends as one that failed."""
    if requeue:
        state.mark(run, requeue=True)
    if not _settle_unsent(state, run, now):
        _stop_when_durable(state, run, reason, now, out)


def preempt(
    state: ClusterState, run: TaskRun, why: str, ending: Ending, now: float, out: Outbox, *, cancel: bool
) -> None:
    """Have a live task stopped for another one: it goes back to PENDING, or ends as one that was cancelled."""
    state.mark(run, cancel=cancel, requeue=not cancel, preempted=why)
    if not _settle_unsent(state, run, now):
        _stop_when_durable(state, run, REASON_PREEMPT, now, out, ending)


def signalled(state: ClusterState, event: SignalRequested, out: Outbox) -> None:
    """Stop in place, or let go on. The state follows when the agent reports it."""
    suspend = event.action == "suspend"
    wanted, number = (TaskState.RUNNING, SIGSTOP) if suspend else (TaskState.SUSPENDED, SIGCONT)
    for run in _runs(state, state.jobs[event.job], event.tasks):
        if run.state is wanted and not run.suspend_requested:  # those go on by themselves
            out.at_once.append(SendStop(run.node, run.id, int(number), reason=event.action))


def stop_again(state: ClusterState, run: TaskRun, now: float, out: Outbox) -> None:
    """A wish that its agent may have missed while it was away."""
    if run.cancel_requested or run.requeue_requested:
        _stop_when_durable(state, run, REASON_STOP if run.cancel_requested else REASON_REQUEUE, now, out)


def _stop_when_durable(
    state: ClusterState, run: TaskRun, reason: str, now: float, out: Outbox, ending: Ending | None = None
) -> None:
    node = state.nodes.get(run.node)
    if not run.assumed and node is not None and node.connected and run.journal_id == node.journal_id:
        ending = ending or _ending(state, run)
        out.durable.append(SendStop(node.name, run.id, ending.signal, ending.grace_seconds, reason))
        state.told_to_stop(run, now + ending.grace_seconds)


def _ending(state: ClusterState, run: TaskRun) -> Ending:
    """With the grace that its job says, else as the settings do; of none it is ended by force at once."""
    own = state.jobs[run.key.job].spec.grace_seconds
    if own == 0:
        return Ending(int(SIGKILL), 0.0)
    return Ending(int(SIGTERM), state.settings.stop_grace_seconds if own is None else float(own))


def _runs(state: ClusterState, job: JobState, tasks: tuple[int, ...] | None) -> Iterator[TaskRun]:
    """What holds something, of all tasks or of these."""
    everything = tasks is None or job.is_gang
    for position in job.holding() if everything else _positions(job, tasks or ()):
        run = state.runs.get(TaskKey(job.id, job.indices[position]))
        if run is not None:
            yield run


def _positions(job: JobState, tasks: tuple[int, ...]) -> Iterator[int]:
    return (position for index in tasks if (position := job.position_of(index)) is not None)
