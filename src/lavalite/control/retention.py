"""Finished jobs stay for a while: the last so many, and none longer than so long. Then they go, a few a tick."""

from __future__ import annotations

from itertools import islice

from lavalite.control.state import ClusterState


def forget_finished(state: ClusterState, now: float) -> None:
    """Remove what is over its time; never a job that an unfinished one still depends on."""
    settings = state.settings
    too_many = len(state.finished) - settings.keep_finished_jobs
    looked_at = list(islice(state.finished.items(), 10 * settings.max_removals))
    removed = 0
    for place, (job_id, ended_at) in enumerate(looked_at):
        too_old = now - ended_at > settings.keep_finished_seconds
        if removed >= settings.max_removals or not (too_old or place < too_many):
            return
        if not _is_needed(state, job_id):
            state.remove_job(state.jobs[job_id])
            removed += 1


def _is_needed(state: ClusterState, job_id: int) -> bool:
    return any(state.jobs[dependent].unfinished for dependent in state.dependents.get(job_id, ()))
