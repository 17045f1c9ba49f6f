"""Commitments that became durable, or did not: what is durable goes to its node, with all that the agent needs."""

from __future__ import annotations

from lavalite.control import gangs, numa
from lavalite.control.actions import AttemptStart, SendDispatch
from lavalite.control.events import CommitConfirmed, CommitUnwound
from lavalite.control.hosts.holding import gpu_nodes
from lavalite.control.outbox import Outbox
from lavalite.control.state import ClusterState
from lavalite.control.tasks import End, JobState, TaskKey, TaskRun
from lavalite.control.vacated import provider_of
from lavalite.model.resources import CPU, MEMORY, WHOLE
from lavalite.model.task import TaskState

NODES_VARIABLE = "LAVALITE_NODES"
"""Tells each task of a gang how many of them each node has; followed by the name of a part, how many of that."""
GPU_NODES_VARIABLE = "LAVALITE_GPU_NODES"
"""Tells a task that is beside a host's GPUs of another node where all of these are."""
PART_VARIABLE = "LAVALITE_PART"
"""Tells a task of which part it is; followed by _INDEX, which of that, from 0 on."""


def confirmed(state: ClusterState, event: CommitConfirmed, now: float, out: Outbox) -> None:
    """The batch is durable: its tasks are COMMITTED and go to their nodes, unless that was overtaken."""
    ready: list[TaskRun] = []
    whole: set[int] = set()
    for key in state.batches.pop(event.batch_id).tasks:
        run = state.runs[key]
        state.confirm(run)
        node = state.nodes.get(run.node)
        if run.cancel_requested:
            state.finish(run, TaskState.CANCELLED, End(None, "cancelled before it started", "", None, now))
        elif run.requeue_requested or node is None or node.journal_id != run.journal_id:
            # Nobody heard of this attempt, and nobody will: it is simply placed anew.
            state.retry(run, now, End(None, "its node was set up anew before it started", run.node), charged=False)
        elif state.jobs[key.job].is_gang:
            whole.add(key.job)
        else:
            ready.append(run)
    for job in (state.jobs[number] for number in sorted(whole)):
        if gangs.may_start(state, job):
            ready += [run for run in gangs.runs_of(state, job) if not run.maybe_sent and not run.assumed]
    starts: dict[str, list[AttemptStart]] = {}
    for run in ready:
        node = state.nodes.get(run.node)
        if node is not None and node.connected and node.registered:
            run.maybe_sent = True
            starts.setdefault(node.name, []).append(attempt_start(state, run, now))
    out.at_once.extend(SendDispatch(node, tuple(attempts)) for node, attempts in starts.items())


def unwound(state: ClusterState, event: CommitUnwound, now: float) -> None:
    """Nothing of the batch was written: its tasks are as pending as before."""
    for key in state.batches.pop(event.batch_id).tasks:
        run = state.runs[key]
        state.unwind(run)
        if run.cancel_requested:
            end = End(None, "cancelled before it started", "", None, now)
            state.cancel_pending(state.jobs[key.job], run.position, end)


def attempt_start(state: ClusterState, run: TaskRun, now: float) -> AttemptStart:
    """All that the agent needs to start the attempt."""
    job = state.jobs[run.key.job]
    spec, queue = job.spec.at(run.position), state.queue(job.queue)
    limits = [s for s in (spec.walltime_seconds, queue.walltime_seconds) if s is not None]
    if run.ends_by is not None:
        limits.append(max(1, int(run.ends_by - now)))
    devices: dict[str, list[str]] = {}
    for share in state.book.shares(run.key.owner):
        if share.devices:
            devices.setdefault(share.kind, []).extend(share.devices)
    beside = provider_of(state, run) in state.places
    cores = _cores(state, run, "" if beside else spec.host)
    if cores:
        devices.setdefault(CPU, cores)
    amounts = spec.request.amounts()
    environment = spec.environment
    if beside:
        environment = environment | {GPU_NODES_VARIABLE: _gpu_nodes(state, spec.host)}
    if job.is_gang:
        environment = environment | {NODES_VARIABLE: gangs.nodes_of(state, job)} | _of_parts(state, job, run.position)
    return AttemptStart(
        id=run.id,
        journal_id=run.journal_id,
        command=tuple(spec.command),
        cwd=spec.cwd,
        environment=environment,
        stdout_path=_filled_in(spec.stdout_path, run.key),
        stderr_path=_filled_in(spec.stderr_path, run.key),
        user=spec.user,
        uid=spec.uid,
        gid=spec.gid,
        cpu_milli=amounts.get(CPU, 0),
        memory_bytes=amounts.get(MEMORY, 0),
        devices=devices,
        walltime_seconds=min(limits) if limits else None,
        fence_after_seconds=float(run.fence_after_seconds),
        host=spec.host,
    )


def _gpu_nodes(state: ClusterState, host: str) -> str:
    """`n07:UUID,UUID;n08:UUID`, as whoever is on the host's anchor is told by the agent there."""
    found = gpu_nodes(state.hosts[host]) if host in state.hosts else {}
    return ";".join(f"{node}:{','.join(devices)}" for node, devices in sorted(found.items()))


def _of_parts(state: ClusterState, job: JobState, position: int) -> dict[str, str]:
    """What a task is told of its part, and where the tasks of each part are; nothing where there are none."""
    part, rank = job.spec.part_at(position)
    if part is None:
        return {}
    told, first = {PART_VARIABLE: part.name, f"{PART_VARIABLE}_INDEX": str(rank)}, 0
    for other in job.spec.parts or ():
        told[f"{NODES_VARIABLE}_{other.name}"] = gangs.nodes_of(state, job, range(first, first + other.tasks))
        first += other.tasks
    return told


def _cores(state: ClusterState, run: TaskRun, host_name: str) -> list[str]:
    """The cores to stay on: the logical host's own, or else those that no logical host has to itself, of the NUMA
    nodes that its GPUs are on where there are enough; empty: any.
    """
    host = state.hosts.get(host_name)
    if host is not None:
        return [d for part in host.parts if part.kind == CPU and part.provider == host.anchor for d in part.devices]
    free = state.book.device_free(run.node, CPU)
    shared = [core for core, amount in free.items() if amount == WHOLE]
    near = numa.cores_near(state, run, shared)
    return near or (shared if len(shared) < len(free) else [])


def _filled_in(path: str, key: TaskKey) -> str:
    return path.replace("%J", str(key.job)).replace("%I", str(key.task))
