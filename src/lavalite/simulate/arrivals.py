"""Jobs as they come: of entries, drawn; of traces, as recorded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

from lavalite.model.job import Array, JobSpec, Request
from lavalite.simulate.draws import Draw, source_of
from lavalite.simulate.entries import JobsEntry
from lavalite.simulate.scenario import Scenario
from lavalite.simulate.traces import Trace, TraceJob

COMMAND = ["simulated"]


class JobPlan(Protocol):
    """Jobs that come one after the other, numbered from 0."""

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> JobSpec:
        """Of the job that comes now."""
        ...

    @property
    def after(self) -> list[str]:
        """Entries whose jobs must have succeeded before."""
        ...

    def first_at(self) -> float: ...
    def next_after(self, number: int, now: float) -> float | None:
        """When the next one comes; None if this was the last."""
        ...

    def work(self, number: int, task: int, attempt: int) -> tuple[float | None, int]:
        """How long an attempt runs (None: for ever), and how it ends."""
        ...


def plans_of(scenario: Scenario) -> Iterator[JobPlan]:
    for name, entry in scenario.jobs.items():
        yield Entered(name, entry, scenario.top.seed)
    for trace in scenario.traces:
        if trace.jobs:
            yield Traced(trace)


class Entered:
    """An entry of `jobs`."""

    def __init__(self, name: str, entry: JobsEntry, seed: int) -> None:
        self.name, self._entry, self._seed = name, entry, seed
        self._arrivals = source_of(seed, "jobs", name)

    @property
    def after(self) -> list[str]:
        return self._entry.after

    @cached_property
    def spec(self) -> JobSpec:
        entry = self._entry
        gpu = entry.gpu
        pools = dict(entry.pools) | ({"gpu": gpu.pool} if gpu is not None and gpu.pool else {})
        request = Request(
            cpu_milli=entry.cpu,
            memory_bytes=entry.memory,
            gpu_milli=gpu.count if gpu is not None else 0,
            gpu_model=gpu.model if gpu is not None else "",
            gpu_memory_bytes=gpu.memory if gpu is not None else 0,
            gpu_topology=gpu.topology if gpu is not None else "",
            storage_bytes=entry.storage,
            network_bits_per_second=entry.network,
            floating=entry.floating,
            pools=pools,
        )
        gang = entry.placed_together()
        return JobSpec(
            name=self.name,
            command=COMMAND,
            array=Array(first=0, last=entry.tasks - 1) if entry.tasks > 1 else None,
            gang=gang,
            queue=entry.queue,
            host=entry.host,
            request=request,
            policy=entry.policy,
            priority=entry.priority,
            walltime_seconds=entry.walltime,
            retries=entry.retries,
            rerunnable=entry.rerunnable,
            group=entry.group,
            user=entry.user,
        )

    def first_at(self) -> float:
        return float(self._entry.at)

    def next_after(self, number: int, now: float) -> float | None:
        entry = self._entry
        if entry.count is not None and number + 1 >= entry.count:
            return None
        if entry.every is None:
            return now if entry.count is not None else None
        return now + entry.every.seconds(self._arrivals)

    def work(self, number: int, task: int, attempt: int) -> tuple[float | None, int]:
        entry, names = self._entry, (self.name, number, task, attempt)
        fails = bool(entry.fails) and source_of(self._seed, "fails", *names).random() * 1000 < entry.fails
        return _seconds(entry.runs, self._seed, names), int(fails)


def _seconds(runs: Draw | None, seed: int, names: tuple[object, ...]) -> float | None:
    if runs is None:
        return None
    return runs.first if runs.kind == "constant" else runs.seconds(source_of(seed, "runs", *names))


class Traced:
    """A trace."""

    def __init__(self, trace: Trace) -> None:
        self._jobs, self._queue = trace.jobs, trace.queue
        self._now = 0

    @property
    def _job(self) -> TraceJob:
        return self._jobs[self._now]

    @property
    def name(self) -> str:
        return self._job.name

    @property
    def after(self) -> list[str]:
        return []

    @property
    def spec(self) -> JobSpec:
        job = self._job
        return JobSpec(
            name=job.name,
            command=COMMAND,
            array=Array(first=0, last=job.tasks - 1) if job.tasks > 1 else None,
            gang=job.gang,
            queue=self._queue,
            request=job.request,
            walltime_seconds=job.walltime_seconds,
            rerunnable=True,
            user=job.user,
        )

    def first_at(self) -> float:
        return self._jobs[0].at

    def next_after(self, number: int, now: float) -> float | None:
        self._now = number + 1
        return self._jobs[self._now].at if self._now < len(self._jobs) else None

    def work(self, number: int, task: int, attempt: int) -> tuple[float | None, int]:
        return self._jobs[number].runs, 0
