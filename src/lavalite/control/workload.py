"""What is asked for in general: the requests of the jobs that came last, for policies that look ahead."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from lavalite.control.demand import Demand
from lavalite.model.job import Request
from lavalite.placement.classes import RequestClass, gpu_selector
from lavalite.placement.columns import Workload, WorkloadPart
from lavalite.placement.registry import POLICIES

LAST_JOBS = 2_000
MOST_PARTS = 32
"""Sorts of tasks that are looked at: those that come most often."""
WEIGHTS = 1000
"""The weights of all parts are about this, taken together."""
FEWEST_NEW = 16
"""It is worked out anew when a quarter more jobs came, and so many at least."""


def look_ahead(state: Demand) -> None:
    """Work the workload out anew if a policy of what waits goes by it, and enough jobs came since the last time."""
    if state.last_job_id < state.workload_due or not any(map(_looks_ahead, state.waiting_policies())):
        return
    state.workload_due = state.last_job_id + max(FEWEST_NEW, min(LAST_JOBS, len(state.jobs)) // 4)
    last = islice(reversed(state.jobs.values()), LAST_JOBS)
    asked = [
        (piece.request, n * len(job.indices) // job.spec.tasks_counted)
        for job in last
        for piece, n in job.spec.pieces()
    ]
    parts = workload_of(asked)
    if parts != state.columns.workload.parts:
        state.columns.workload = Workload(parts, state.columns.workload.version + 1)


def workload_of(asked: list[tuple[Request, int]]) -> tuple[WorkloadPart, ...]:
    """The requests that come most often, with how many tasks of each, as parts of a workload."""
    tasks: Counter[tuple[object, ...]] = Counter()
    requests: dict[tuple[object, ...], Request] = {}
    for request, count in asked:
        key = (*request.amounts().items(), gpu_selector(request))
        requests.setdefault(key, request)
        tasks[key] += count
    chosen = sorted(tasks.items(), key=lambda entry: (-entry[1], repr(entry[0])))[:MOST_PARTS]
    total = sum(count for _, count in chosen)
    return tuple(_part(requests[key], max(1, count * WEIGHTS // total)) for key, count in chosen)


def _part(request: Request, weight: int) -> WorkloadPart:
    wanted = RequestClass(request, {})
    return WorkloadPart(tuple(wanted.need[:, 0].tolist()), wanted.gpu, wanted.whole_gpus, weight)


def _looks_ahead(policy: str) -> bool:
    return policy in POLICIES and POLICIES[policy].looks_ahead
