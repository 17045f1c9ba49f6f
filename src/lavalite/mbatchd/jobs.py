"""What people ask of jobs. Everything is durable before it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Literal

from pydantic_core import PydanticSerializationError

from lavalite.api import models
from lavalite.base.errors import ConflictError, Fault, InputError, LavaLiteError
from lavalite.control import events, gangs, parking, views
from lavalite.control.admission import admit, find_job
from lavalite.control.tasks import JobState
from lavalite.mbatchd.groups import Groups, chosen
from lavalite.mbatchd.identity import Identity
from lavalite.mbatchd.output import OutputStreams
from lavalite.mbatchd.pressure import Pressure
from lavalite.mbatchd.service import Service
from lavalite.model.job import GROUP_VARIABLE, JobRecord, JobSpec, compute_group_id
from lavalite.model.task import FINAL, AttemptId

MAX_RECORD_BYTES = 512 * 1024
"""Of one job. A store takes a mebibyte and a half; what it refuses would end the scheduler, not the job."""

MAX_NAMED_TASKS = 10_000
"""Named one by one to be cancelled: it is done at one stroke, and others wait meanwhile."""

TURN_JOBS = 100
"""After so many jobs of a batch, others have their turn on the event loop."""

Verb = Literal["hold", "release", "suspend", "resume", "requeue"]


class JobDesk:
    """Submit, cancel, hold, and read output."""

    def __init__(self, service: Service, output: OutputStreams, pressure: Pressure) -> None:
        self._service, self._output, self._pressure = service, output, pressure
        self._groups = Groups(service.time.now)

    async def submit(self, batch: models.SubmitBatch, who: Identity, *, dry_run: bool) -> models.Submitted:
        """All jobs of the batch are let in, or none. A key that this person has used answers with its job.

        Should the leadership end meanwhile, some may be durable and others not: asked again with the same keys,
        the next leader makes those that are missing.
        """
        faults = []
        specs: list[tuple[str, JobSpec]] = []
        mine = await self._groups.of(who)
        for place, ask in enumerate(batch.jobs):
            key = f"{who.uid}:{ask.key}" if ask.key else ""
            group = chosen(ask.spec.group, mine, who)
            known_group = group if isinstance(group, str) else ""
            whose = {"user": who.user, "uid": who.uid, "gid": who.gid, "group": known_group}
            spec = ask.spec.model_copy(update=whose)
            specs.append((key, spec))
            if key in self._service.state.submit_keys:
                continue  # let in before; whether it could be now is not the question
            if isinstance(group, Fault):
                faults.append(_placed(group, place, len(batch.jobs)))
                continue
            try:
                _demand_storable(spec)
                admit(self._service.state, spec, self._service.time.now())
            except InputError as error:
                faults += [_placed(f, place, len(batch.jobs)) for f in error.faults]
            if place % TURN_JOBS == TURN_JOBS - 1:
                await asyncio.sleep(0)
        if faults:
            raise InputError(faults=faults)
        known = self._service.state.submit_keys
        new = [spec for key, spec in specs if key not in known]
        self._pressure.demand_room(who.user, len(new), sum(len(spec.indices()) for spec in new))
        if dry_run:
            return models.Submitted(ids=[])
        ids, existing = [], []
        for place, (key, spec) in enumerate(specs):
            if key in known:
                ids.append(known[key])
                existing.append(known[key])
                continue
            job_id = self._service.state.next_job_id()
            record = JobRecord(
                id=job_id,
                spec=_told_its_group(job_id, spec),
                submitted_at=self._service.time.now(),
                submit_key=key,
            )
            self._service.apply(events.Submitted(record))
            ids.append(record.id)
            if place % TURN_JOBS == TURN_JOBS - 1:
                await asyncio.sleep(0)
        await self._service.settled()
        return models.Submitted(ids=ids, existing=existing)

    async def cancel(
        self, job_id: int, tasks: list[int] | None, who: Identity, *, force: bool, waiting: bool = False
    ) -> None:
        """End what runs and what waits, or with `waiting` only that. Cancelling what has ended changes nothing."""
        job = self._job(job_id)
        who.demand_owner(job.spec.user, f"cancel job {job_id}")
        if force:
            who.demand_operator("say that a task on a lost node has ended")
        if len(tasks or ()) > MAX_NAMED_TASKS:
            hint = f"Name none to cancel the whole job, or {MAX_NAMED_TASKS} at a time."
            raise InputError("too many tasks are named", code="too_many", field="tasks", hint=hint)
        indices = job.spec.indices()
        if waiting and tasks is None and len(indices) > (most := self._service.state.settings.max_cancels):
            # It is done in one go, so that no new leader takes the rest for tasks that are to end.
            hint = f"Name at most {most} at a time."
            raise InputError(f"job {job_id} has {len(indices)} tasks", code="too_many", field="waiting", hint=hint)
        for task in tasks or ():
            if task not in indices:
                raise InputError(f"job {job_id} has no task {task}", code="unknown_task", field="tasks")
        asked = None if tasks is None else tuple(tasks)
        await self._service.obey(events.CancelRequested(job_id, asked, force, who.user, waiting))
        if force:
            # Durable is that all of it is to be cancelled; what force gives up is so only once that is done.
            while job_id in self._service.state.cancels:
                await self._service.next_event()
            await self._service.settled()

    async def act(self, job_id: int, verb: Verb, who: Identity) -> None:
        job = self._job(job_id)
        who.demand_owner(job.spec.user, f"{verb} job {job_id}")
        if not job.unfinished:
            raise ConflictError(f"job {job_id} has ended", code="job_ended")
        if verb == "requeue" and gangs.has_begun_to_end(job):
            message = f"some tasks of job {job_id} have ended, and they begin anew together or not at all"
            hint = f"Cancel it and submit it again: lavalite cancel {job_id}."
            raise ConflictError(message, code="gang_ended", hint=hint)
        parked = parking.of(self._service.state, job) if verb in ("suspend", "resume") else []
        if parked and len(parked) == sum(1 for _ in job.holding()):
            message = f"job {job_id} is {parked[0].preempted}, and goes on by itself when there is CPU for it again"
            raise ConflictError(message, code="preempted", hint="It may be cancelled or requeued.")
        await self._service.obey(_event(job_id, verb, who.user))

    async def output(
        self,
        job_id: int,
        task: int | None,
        stream: Literal["stdout", "stderr"],
        who: Identity,
        *,
        offset: int,
        follow: bool,
    ) -> AsyncGenerator[bytes, None]:
        """What the latest attempt at a task wrote. With `follow`, waits until it runs and goes on until it ends."""
        job = self._job(job_id)
        who.demand_owner(job.spec.user, f"read the output of job {job_id}")
        index = self._task(job, task)
        attempt, node = await self._attempt(job, index, follow=follow)
        epoch = self._service.epoch
        async with aclosing(
            self._output.read(node, epoch, str(attempt), stream, offset=offset, follow=follow, reader=who.user)
        ) as pieces:
            async for piece in pieces:
                yield piece

    async def _attempt(self, job: JobState, index: int, *, follow: bool) -> tuple[AttemptId, str]:
        """The latest attempt and its node; while there is none, wait for it if `follow` says so."""
        position = job.position_of(index)
        assert position is not None, "the index was looked up before"
        while True:
            view = views.task(self._service.state, job, position)
            if view["attempt"] and view["node"]:
                return AttemptId(job.id, index, view["attempt"]), view["node"]
            if not follow or job.state_of(position) in FINAL:
                raise LavaLiteError(
                    f"task {index} of job {job.id} has not run, it is {view['state']}",
                    code="no_output",
                    hint=f"See why with lavalite explain {job.id}.",
                )
            await self._service.next_event()

    @staticmethod
    def _task(job: JobState, task: int | None) -> int:
        indices = job.spec.indices()
        if task is None:
            if len(indices) > 1:
                raise InputError(
                    f"job {job.id} has {len(indices)} tasks", code="which_task", field="task", hint="Name one."
                )
            return indices[0]
        if task not in indices:
            raise InputError(f"job {job.id} has no task {task}", code="unknown_task", field="task")
        return task

    def _job(self, job_id: int) -> JobState:
        return find_job(self._service.state, job_id)


def _event(job_id: int, verb: Verb, user: str) -> events.Event:
    if verb == "hold":
        return events.HoldRequested(job_id)
    if verb == "release":
        return events.ReleaseRequested(job_id)
    if verb == "requeue":
        return events.RequeueRequested(job_id, by=user)
    return events.SignalRequested(job_id, verb)


def _told_its_group(job_id: int, spec: JobSpec) -> JobSpec:
    """What runs in a compute group is told which: nobody knew its number before."""
    if not spec.component:
        return spec
    group = {GROUP_VARIABLE: compute_group_id(job_id, spec.reservation)}
    return spec.model_copy(update={"environment": spec.environment | group})


def _demand_storable(spec: JobSpec) -> None:
    """Whatever is let in must fit into the store: a record that does not would fail again under each new leader."""
    try:
        size_bytes = len(spec.model_dump_json().encode())
    except PydanticSerializationError:
        hint = "Write it in UTF-8; lone surrogates stand for no character."
        raise InputError("it holds what is no text", field="spec", hint=hint) from None
    if size_bytes > MAX_RECORD_BYTES:
        message = f"it has {size_bytes} bytes as JSON, a job has at most {MAX_RECORD_BYTES}"
        raise InputError(message, code="too_long", field="spec", hint="Put what is long into a file.")


def _placed(fault: Fault, place: int, jobs: int) -> Fault:
    """In a batch, which of the jobs is meant."""
    if jobs == 1:
        return fault
    return replace(fault, field=f"jobs.{place}.{fault.field}" if fault.field else f"jobs.{place}")
