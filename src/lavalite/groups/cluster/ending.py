"""Jobs that are told to end, or to stand still: waited for until they do."""

from __future__ import annotations

from lavalite.api.client import Client
from lavalite.api.models import Job
from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError, UnknownNameError, UnreachableError
from lavalite.groups.cluster import shapes
from lavalite.groups.cluster.calls import Calls
from lavalite.groups.errors import UnknownGroupError

FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.005, 0.25
STOP_GRACE_SECONDS = 10.0
"""Of a job that says none itself: the scheduler's own."""
MARGIN_SECONDS = 30.0
"""How much longer than its grace an end may take, or a signal, until that is told to be amiss."""


async def until_ended(calls: Calls, clock: Clock, job: Job) -> None:
    """Raises UnreachableError where its node does not answer, and LavaLiteError where it does not end."""
    grace_seconds = STOP_GRACE_SECONDS if job.grace_seconds is None else job.grace_seconds
    until, pause_seconds = clock.monotonic() + grace_seconds + MARGIN_SECONDS, FIRST_PAUSE_SECONDS
    while True:
        try:
            now = await calls(Client.job, job.id)
        except UnknownNameError:
            return  # it has ended, and is forgotten
        if now.state in shapes.ENDED:
            return
        if now.state == "unknown":
            message = f"node {' '.join(now.nodes)} does not answer: job {job.id} ends as soon as it does"
            raise UnreachableError(message, hint=f"If it never will: lavalite cancel {job.id} --force.")
        if clock.monotonic() > until:
            raise LavaLiteError(f"job {job.id} was told to end and has not ended yet", code="not_ended")
        await clock.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, MOST_PAUSE_SECONDS)


async def stand(calls: Calls, clock: Clock, job: Job, *, still: bool) -> None:
    """Suspend a job, or let it go on. Raises UnknownGroupError where it has ended, and UnreachableError."""
    until, pause_seconds = clock.monotonic() + MARGIN_SECONDS, FIRST_PAUSE_SECONDS
    before, wanted = ("running", "suspended") if still else ("suspended", "running")
    while job.state != wanted:
        if job.state in shapes.ENDED:
            raise UnknownGroupError(shapes.id_of(job))
        if job.state == before:  # one that does not run yet hears no signals
            await calls(Client.suspend if still else Client.resume, job.id)
        if clock.monotonic() > until:
            raise UnreachableError(f"node {' '.join(job.nodes)} has not answered for {MARGIN_SECONDS:g} s")
        await clock.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, MOST_PAUSE_SECONDS)
        job = await calls(Client.job, job.id)
