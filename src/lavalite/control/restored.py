"""After a restore: attempts that were started when the store, as it is now, did not know of them yet.

    its task is pending              adopted: it holds what its request asks for, and goes on or has ended
    what it holds cannot be said     quarantine, and its job is held: a person decides (GPUs; a host that is gone)
    its task is live                 quarantine; adopted once the attempt before it is known to have ended
    its task has ended               over long since, as far as the store knows

Nothing of a job from before the restore is placed until every node that the store knows has told its journal
(Demand.untold): else it could be started twice.
"""

from __future__ import annotations

from lavalite.control.events import AttemptReported
from lavalite.control.node_state import NodeState
from lavalite.control.state import ClusterState
from lavalite.control.tasks import BLOCKED, FINAL_CODES, READY, WAITING, JobState, TaskKey, TaskRun, commitment_of
from lavalite.ledger.book import FLOATING
from lavalite.model.job import Share
from lavalite.model.resources import GPU
from lavalite.model.task import before_restore


def adopted(state: ClusterState, node: NodeState, report: AttemptReported, now: float) -> TaskRun | None:
    """The run that the report is of, from now on known and committed; None if it is none of ours to adopt."""
    job, position = _task(state, report)
    if job is None or position is None or job.codes[position] not in (READY, WAITING, BLOCKED):
        return None
    if report.id.attempt <= job.attempts_of(position):
        return None
    shares = [] if report.state in ("ended", "refused") else _shares(state, job, position, node)
    if shares is None:
        state.set_held(job, True)
        return None
    run = TaskRun(
        TaskKey(job.id, report.id.task),
        position,
        report.id.attempt,
        node.name,
        node.journal_id,
        min(report.at, now),
        state.epoch,
        assumed=False,
        fence_after_seconds=state.queue(job.queue).fence_after_seconds if job.spec.rerunnable else 0,
        exclusive=job.spec.request.exclusive,
        maybe_sent=True,
    )
    state.quarantine.pop((node.name, report.id), None)
    state.adopt(run, commitment_of(run, shares))
    return run


def may_be_adopted_later(state: ClusterState, report: AttemptReported) -> bool:
    """Whether it is to be remembered that the attempt is over: what came before it is not known yet."""
    job, position = _task(state, report)
    return bool(state.untold) and job is not None and position is not None and job.codes[position] not in FINAL_CODES


def _task(state: ClusterState, report: AttemptReported) -> tuple[JobState | None, int | None]:
    """The job, if it is one of before the restore, and where its task stands."""
    job = state.jobs.get(report.id.job) if before_restore(report.id.job, state.epoch) else None
    return job, job.position_of(report.id.task) if job is not None else None


def _shares(state: ClusterState, job: JobState, position: int, node: NodeState) -> list[Share] | None:
    """What it holds of the node, or of the logical host that it asked for; None where that cannot be said."""
    spec = job.spec.at(position)
    asked, pools = spec.request.amounts(), state.pools_of(spec)
    host = state.hosts.get(spec.host)
    if GPU in asked or spec.request.special or (spec.host and (host is None or host.anchor != node.name)):
        return None
    provider = spec.host or node.name
    shares = [Share(provider=provider, kind=kind, amount=n, pool=pools.get(kind, "")) for kind, n in asked.items()]
    floating = [(kind, amount) for kind, amount in spec.request.floating.items() if amount]
    return shares + [Share(provider=FLOATING, kind=k, amount=n, pool=state.floating_pool(k)) for k, n in floating]
