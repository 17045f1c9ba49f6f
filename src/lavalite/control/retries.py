"""Whether a task that failed is tried again, and when: by its job, else its queue, else the settings.

back-off before try n + 1 = max(first, min(most, first × factor^(n - 1)))
"""

from __future__ import annotations

from lavalite.control.demand import Demand
from lavalite.control.tasks import JobState
from lavalite.model.job import Backoff

_ENOUGH = 64
"""The most doublings that are worked out: more is beyond every `most` that can be said."""


_UNSAID = Backoff()


def allowed(state: Demand, job: JobState, position: int, exit_code: int | None) -> bool:
    """Whether a retry is left, and an end with this code is worth one; None where nothing ran or it was lost."""
    queue = state.queue(job.queue)
    limit = queue.retries if job.spec.retries is None else job.spec.retries
    used = job.charges.get(position, 0) if not job.is_gang else sum(job.charges.values())
    if used >= limit:
        return False
    worth = queue.retry_on if job.spec.retry_on is None else job.spec.retry_on
    return not worth or exit_code is None or exit_code in worth


def backoff_seconds(state: Demand, job: JobState, attempt: int) -> float:
    """For how long the task is left alone after that attempt, which counts from 1."""
    own, queue, settings = job.spec.backoff or _UNSAID, state.queue(job.queue), state.settings
    first = _first_of(own.first_seconds, queue.backoff_first_seconds, settings.backoff_first_seconds)
    factor = _first_of(own.factor, queue.backoff_factor, settings.backoff_factor)
    most = _first_of(own.most_seconds, queue.backoff_most_seconds, settings.backoff_most_seconds)
    return max(first, min(first * float(factor) ** min(attempt - 1, _ENOUGH), most))


def _first_of(job: int | None, queue: int | None, settings: float) -> float:
    return next((said for said in (job, queue) if said is not None), settings)
