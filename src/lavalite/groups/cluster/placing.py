"""From a job that is submitted to one that has its place, or to the reason why it has none: all or nothing."""

from __future__ import annotations

import asyncio
import uuid

from lavalite.api.client import Client
from lavalite.api.models import Explanation, Job, Submit, Submitted
from lavalite.base.clock import Clock
from lavalite.base.errors import InputError, LavaLiteError
from lavalite.groups.cluster.calls import Calls
from lavalite.groups.cluster.shapes import ENDED, is_group
from lavalite.groups.errors import InsufficientResourcesError
from lavalite.model.job import JobSpec

NEVER = frozenset({"never_fits", "over_limit", "no_quota"})
"""What the API says of a job that could not run here whatever was free."""
FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.002, 0.5
SOON_SECONDS = 20.0
"""For so long one is waited for that may start in a moment; the API says whether it may."""


async def place(calls: Calls, clock: Clock, spec: JobSpec, wait_seconds: float) -> Job:
    """Submit the job, and answer with it once it has its place; after `wait_seconds` it is taken back.

    Whoever is cancelled meanwhile leaves nothing behind. Raises InsufficientResourcesError, and InputError for what
    is wrong with it.
    """
    # The key makes it one job however often it is asked for: while the leader moves, an answer may be lost.
    ask = Submit(spec=spec, key=uuid.uuid4().hex)
    submitting = asyncio.ensure_future(calls(Client.submit, [ask]))
    try:
        submitted = await asyncio.shield(submitting)
        return await _placed(calls, clock, submitted.ids[0], wait_seconds)
    except InputError as error:
        raise _refused(error) from None
    except asyncio.CancelledError:
        await asyncio.shield(_take_back(calls, submitting))
        raise


async def _take_back(calls: Calls, submitting: asyncio.Future[Submitted]) -> None:
    try:
        for job_id in (await submitting).ids:
            await calls(Client.cancel, job_id)
    except LavaLiteError:
        return  # it was not let in, or goes by itself when it has waited for too long


async def _placed(calls: Calls, clock: Clock, job_id: int, wait_seconds: float) -> Job:
    began, pause_seconds = clock.monotonic(), FIRST_PAUSE_SECONDS
    while True:
        job = await calls(Client.job, job_id)
        if is_group(job):
            return job
        if job.state in ENDED:
            raise _ended(job)
        told = await calls(Client.explain, job_id)
        waited = clock.monotonic() - began
        if waited >= (max(wait_seconds, SOON_SECONDS) if told.soon else wait_seconds):
            job = await calls(Client.cancel, job_id, waiting=True)
            if is_group(job):
                return job  # it was placed in that moment
            raise _no_room(told)
        await clock.sleep(min(pause_seconds, max(FIRST_PAUSE_SECONDS, wait_seconds - waited)))
        pause_seconds = min(2 * pause_seconds, MOST_PAUSE_SECONDS)


def _refused(error: InputError) -> LavaLiteError:
    """What was not let in: either nothing has it and nothing ever will, or what is asked for makes no sense."""
    if error.faults and all(fault.code in NEVER for fault in error.faults):
        first = error.faults[0]
        return InsufficientResourcesError(
            first.message, reasons={first.code: len(error.faults)}, ever=False, hint=first.hint
        )
    return error


def refused_reservation(error: InputError) -> LavaLiteError:
    """The same of a reservation that was not made."""
    if error.fault.code in ("does_not_fit", "never_fits"):
        ever = error.fault.code == "does_not_fit"
        return InsufficientResourcesError(error.fault.message, reasons={error.fault.code: 1}, ever=ever)
    return error


def _no_room(told: Explanation) -> InsufficientResourcesError:
    sentence = told.sentence.rstrip(".") or "there is no room for it"
    reasons = told.filters or {"waits": max(1, told.nodes)}
    return InsufficientResourcesError(sentence, reasons=reasons, hint="Wait for room with constraints wait.")


def _ended(job: Job) -> LavaLiteError:
    """It is over before it was seen to hold anything."""
    if job.state == "cancelled":
        return InsufficientResourcesError(f"job {job.id} was cancelled while it waited", reasons={"cancelled": 1})
    how = f"{job.state} (exit code {job.exit_code})"
    hint = f"See lavalite logs {job.id}."
    return LavaLiteError(f"the process of the group {how} at once", code="ended_early", hint=hint)
