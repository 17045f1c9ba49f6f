"""Finished jobs stay for a while: the last so many, and none longer than so long. Then they go, a few a tick."""

from __future__ import annotations

from itertools import islice

from lavalite.control.state import ClusterState


def forget_finished(state: ClusterState, now: float) -> None:
    """Remove what is over its time; never a job that an unfinished one still depends on."""
    settings = state.settings
    too_many = len(state.finished) - settings.keep_finished_jobs
    over: list[int] = []
    for place, (job_id, ended_at) in enumerate(islice(state.finished.items(), 10 * settings.max_removals)):
        too_old = now - ended_at > settings.keep_finished_seconds
        if len(over) >= settings.max_removals or not (too_old or place < too_many):
            break
        if not _is_needed(state, job_id):
            over.append(job_id)
    for job_id in over:
        state.remove_job(state.jobs[job_id])


def _is_needed(state: ClusterState, job_id: int) -> bool:
    return any(state.jobs[dependent].unfinished for dependent in state.dependents.get(job_id, ()))
