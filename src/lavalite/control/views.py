"""The state as people see it: plain dictionaries, field by field what /v1 answers.

Collections are generators in a stable order, so that the API can cut pages from them without building all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from lavalite.control import numa, shares
from lavalite.control import reservations as reservations_of
from lavalite.control.estimates import Estimates
from lavalite.control.explain import explain
from lavalite.control.node_state import NodeState
from lavalite.control.state import ClusterState
from lavalite.control.tasks import End, JobState, TaskKey, TaskRun, commitment_of
from lavalite.ledger.book import FLOATING
from lavalite.model.host import LogicalHost
from lavalite.model.reservation import Reservation
from lavalite.model.resources import GPU, is_special
from lavalite.model.specs import PoolSpec, QueueSpec
from lavalite.model.task import TaskState
from lavalite.placement.columns import READY
from lavalite.placement.reasons import Reason

View = dict[str, Any]

NODES_OF_TASKS = 64
"""So many tasks of an array are looked at to name its nodes: lists of jobs must stay quick."""


def amounts(state: ClusterState, provider: str) -> dict[str, dict[str, int]]:
    """Capacity, committed and free by kind. `free` is 0 where more is committed than there is."""
    return {
        kind: {
            "capacity": state.book.capacity(provider, kind),
            "committed": state.book.committed(provider, kind),
            "free": state.book.free(provider, kind),
        }
        for kind in sorted(state.book.kinds(provider))
    }


# --- nodes ----------------------------------------------------------------------------------------------------------


def nodes(state: ClusterState, now: float) -> Iterator[View]:
    hosts_by_node = _hosts_by_node(state)
    return (node(state, state.nodes[name], now, hosts_by_node) for name in sorted(state.nodes))


def node(
    state: ClusterState, found: NodeState, now: float, hosts_by_node: dict[str, list[str]] | None = None
) -> View:
    """Who shows many nodes looks once at the hosts for all of them."""
    hosts_here = (_hosts_by_node(state) if hosts_by_node is None else hosts_by_node).get(found.name, [])
    return {
        "name": found.name,
        "state": node_state(state, found, now),
        "labels": found.labels,
        "operator_labels": found.operator_labels,
        "drain": asdict(found.drain) if found.drain is not None else None,
        "resources": amounts(state, found.name),
        "gpu_models": sorted({d.model for d in found.offer.devices(GPU) if d.model}),
        "hosts": hosts_here,
        "tasks": len(found.runs),
        "boot_id": found.boot_id,
        "journal_id": found.journal_id,
        "offer_version": found.offer.version,
        "beat_age_seconds": max(0.0, now - found.heard_at) if found.registered else None,
    }


def _hosts_by_node(state: ClusterState) -> dict[str, list[str]]:
    """Names of the logical hosts that have parts on a node, in order."""
    by_node: dict[str, list[str]] = {}
    for name, found in sorted(state.hosts.items()):
        for provider in {part.provider for part in found.parts}:
            by_node.setdefault(provider, []).append(name)
    return by_node


def node_state(state: ClusterState, found: NodeState, now: float) -> str:
    """ready, drained, silent (beats are missing), unknown (no session), lost (no session for lost_after)."""
    row = state.node_row_state(found, now)
    if row == READY:
        return "ready"
    if found.registered:
        return "drained" if row == Reason.DRAINING else "silent"
    return "lost" if now - found.heard_at >= state.queue(state.default_queue).lost_after_seconds else "unknown"


# --- what each node has, device by device ---------------------------------------------------------------------------


def resources(state: ClusterState, now: float, after: str = "") -> Iterator[View]:
    """What nodes have and what of it is free, in the order of their names, from the one after `after` on."""
    names = sorted(name for name in state.nodes if name > after)
    return (resources_of(state, state.nodes[name], now) for name in names)


def resources_of(state: ClusterState, found: NodeState, now: float) -> View:
    """`kept` is what of `free` is for the tasks of reservations alone, now."""
    kept = reservations_of.kept_on(state, found.name, now, now + 1.0) if state.reservations else {}
    sums = amounts(state, found.name)
    offer = found.offer
    return {
        "node": found.name,
        "state": node_state(state, found, now),
        "labels": found.labels,
        "resources": {kind: {**sums[kind], "kept": min(kept.get(kind, 0), sums[kind]["free"])} for kind in sums},
        "devices": [
            {"kind": kind, **device.model_dump(), "free_milli": free[device.id]}
            for kind in sorted(sums)
            if kind == GPU or is_special(kind)
            for free in [state.book.device_free(found.name, kind)]
            for device in offer.devices(kind)
            if device.id in free
        ],
        "version": offer.version,
    }


# --- pools, queues, hosts -------------------------------------------------------------------------------------------


def pools(state: ClusterState) -> Iterator[View]:
    members = state.pool_members()
    return (pool(state, state.specs.pools[name], members[name]) for name in sorted(state.specs.pools))


def pool(state: ClusterState, spec: PoolSpec, members: list[str] | None = None) -> View:
    """`resources` sums up the kinds of the pool over its nodes, or tells of what floats."""
    names = sorted(state.pool_members()[spec.name] if members is None else members)
    sums: dict[str, dict[str, int]] = {}
    providers = [(name, kind) for name in names for kind in spec.kinds]
    for provider, kind in [*providers, *((FLOATING, kind) for kind in spec.floating)]:
        one = sums.setdefault(kind, {"capacity": 0, "committed": 0, "free": 0})
        one["capacity"] += state.book.capacity(provider, kind)
        one["committed"] += state.book.committed(provider, kind)
        one["free"] += state.book.free(provider, kind)
    kinds = [*spec.kinds, *spec.floating]
    return {
        "name": spec.name,
        "kinds": kinds,
        "default": spec.default,
        "nodes": names,
        "resources": sums,
        "quota": shares.of_pool(state, spec.name) if spec.name in state.specs.pools else [],
    }


def queues(state: ClusterState, *, users: bool = False) -> Iterator[View]:
    """With `users`, how they stand in their groups: there may be thousands of them."""
    named = state.specs.queues or {state.default_queue: state.queue(state.default_queue)}
    counts: dict[str, dict[TaskState, int]] = {}
    for found in state.jobs.values():
        if found.unfinished:
            sums = counts.setdefault(found.queue, {})
            for task_state, count in found.by_state().items():
                sums[task_state] = sums.get(task_state, 0) + count
    return (queue(state, named[name], counts.get(name, {}), users=users) for name in sorted(named))


def queue(state: ClusterState, spec: QueueSpec, counts: dict[TaskState, int], *, users: bool = False) -> View:
    return {
        "name": spec.name,
        "priority": spec.priority,
        "policy": spec.policy,
        "default": spec.name == state.default_queue,
        "pending": counts.get(TaskState.PENDING, 0),
        "running": counts.get(TaskState.RUNNING, 0),
        "shares": shares.of_queue(state, spec.name, users=users),
    }


_HOST_FIELDS: dict[str, Callable[[ClusterState, LogicalHost], Any]] = {
    "name": lambda _, found: found.name,
    "state": lambda _, found: found.state.value,
    "anchor": lambda _, found: found.anchor,
    "pools": lambda _, found: found.pools,
    "parts": lambda _, found: [part.model_dump() for part in found.parts],
    "resources": lambda state, found: amounts(state, found.name),
    "reason": lambda _, found: found.reason,
    "circuits": lambda _, found: [circuit.model_dump() for circuit in found.circuits],
    "step": lambda _, found: found.step.value,
    "leaving": lambda _, found: found.leaving,
    "degraded": lambda _, found: found.degraded,
    "drained": lambda _, found: found.drained,
    "executor": lambda _, found: found.executor,
    "address": lambda _, found: found.vm.address.partition("/")[0] if found.vm else "",
    "reserved_until": lambda _, found: found.reserved_until if found.reserved_until > 0 else None,
    "version": lambda _, found: found.version,
}


def hosts(state: ClusterState, after: str = "", fields: Collection[str] = ()) -> Iterator[View]:
    """In the order of their names, from the one after `after` on."""
    names = sorted(name for name in state.hosts if name > after)
    return (host(state, state.hosts[name], fields) for name in names)


def host(state: ClusterState, found: LogicalHost, fields: Collection[str] = ()) -> View:
    """All fields, or those that are named: parts and resources of thousands of hosts take their time."""
    return {name: look(state, found) for name, look in _HOST_FIELDS.items() if not fields or name in fields}


def reservations(state: ClusterState, now: float) -> Iterator[View]:
    return (reservation(state, state.reservations[name], now) for name in sorted(state.reservations))


def reservation(state: ClusterState, found: Reservation, now: float) -> View:
    """`used` is what its own tasks hold, over all its nodes."""
    used: dict[str, int] = {}
    for node in found.nodes:
        for kind, amount in state.reserved_use.get((found.name, node), {}).items():
            used[kind] = used.get(kind, 0) + amount
    return {
        "name": found.name,
        "state": "planned" if now < found.start else "active",
        "owner": found.owner,
        "users": found.users,
        "pool": found.pool,
        "group": found.group,
        "component": found.component,
        "drained": found.drained,
        "amounts": found.amounts,
        "nodes": found.nodes,
        "start": found.start,
        "end": found.end,
        "timeout_seconds": found.timeout_seconds,
        "every": found.every,
        "zone": found.zone,
        "until": found.until,
        "used": {kind: amount for kind, amount in sorted(used.items()) if amount},
    }


# --- jobs and tasks -------------------------------------------------------------------------------------------------


def jobs(state: ClusterState, after: int = 0) -> Iterator[View]:
    """In the order of their ids, from the one after `after` on; without `why`, which is worked out for one job."""
    return (job(state, state.jobs[job_id]) for job_id in list(state.jobs) if job_id > after)


def job(state: ClusterState, found: JobState, now: float | None = None, estimates: Estimates | None = None) -> View:
    """With `now`, also `why` it waits; with estimates, when it will start."""
    estimate = estimates.of(found) if estimates is not None else None
    spec = found.spec
    counts = found.by_state()
    single = found.ends.get(0) if len(found.codes) == 1 else None
    waits = now is not None and TaskState.PENDING in counts
    run = state.runs.get(TaskKey(found.id, found.indices[0])) if len(found.codes) == 1 else None
    live = run if run is not None and not run.assumed else None
    return {
        "id": found.id,
        "name": spec.name,
        "user": spec.user,
        "group": spec.group,
        "queue": found.queue,
        "host": spec.host,
        "reservation": spec.reservation,
        "state": found.state.value,
        "command": spec.command,
        "array": _array(found),
        "tasks": len(found.codes),
        "counts": {task_state.value: count for task_state, count in sorted(counts.items())},
        "submitted_at": found.submitted_at,
        "started_at": found.started_at,
        "ended_at": None if found.unfinished else found.ended_at,
        "exit_code": single.exit_code if single and not found.unfinished else None,
        "nodes": _nodes(state, found),
        "why": explain(state, found, now).sentence if waits and now is not None else "",
        "starts": estimate.kind if estimate is not None else "",
        "starts_at": estimate.at if estimate is not None else None,
        "starts_why": estimate.why if estimate is not None else "",
        "key": found.submit_key,
        "gang": spec.gang.model_dump() if spec.gang is not None else None,
        "affinity": [term.text() for term in spec.affinity],
        "request": spec.request.model_dump(exclude_defaults=True),
        "parts": [part.model_dump(exclude_defaults=True) | {"tasks": part.tasks} for part in spec.parts or ()],
        "depends": [d.text() for d in spec.depends],
        "rerunnable": spec.rerunnable,
        "walltime_seconds": spec.walltime_seconds,
        "grace_seconds": spec.grace_seconds,
        "start_within_seconds": spec.start_within_seconds,
        "component": spec.component,
        "gpus": [gpu.id for gpu in numa.gpus_of(state, live)] if live is not None else [],
        "gpu_topology": numa.level_of(state, live) if live is not None else "",
        "attempts": found.attempts_of(0) if len(found.codes) == 1 else 0,
        "told_to_end": found.cancelling or (live is not None and live.cancel_requested),
        "held": found.held,
        "preemptions": sum(found.preemptions.values()),
    }


def tasks(state: ClusterState, found: JobState, cursor: int = 0, limit: int = 1000) -> list[View]:
    """At most `limit` tasks from the position `cursor` on; the next page begins after so many more."""
    return [task(state, found, p) for p in islice(range(cursor, len(found.codes)), limit)]


def task(state: ClusterState, found: JobState, position: int) -> View:
    index, (part, _) = found.indices[position], found.spec.part_at(position)
    run = state.runs.get(TaskKey(found.id, index))
    end = found.ends.get(position) or End()
    live = run is not None and not run.assumed
    return {
        "job": found.id,
        "index": index,
        "part": part.name if part is not None else "",
        "state": found.state_of(position).value,
        "attempt": run.attempt if run is not None and live else found.attempts_of(position),
        "node": run.node if run is not None and live else end.node,
        "gpus": [gpu.id for gpu in numa.gpus_of(state, run)] if run is not None and live else [],
        "gpu_topology": numa.level_of(state, run) if run is not None and live else "",
        "special": _special(state, run) if run is not None and live else {},
        "exit_code": None if live else end.exit_code,
        "reason": run.preempted if run is not None and live else "" if live else end.reason,
        "preemptions": found.preemptions.get(position, 0),
        "started_at": run.started_at if run is not None and live else end.started_at,
        "ended_at": None if live else end.ended_at,
    }


def _special(state: ClusterState, run: TaskRun) -> dict[str, list[str]]:
    """Its devices of special kinds, by kind."""
    shares = state.book.shares(run.key.owner)
    return {share.kind: share.devices for share in shares if share.devices and is_special(share.kind)}


def commitments(state: ClusterState) -> Iterator[View]:
    """What is durably held, by owner."""
    for key, run in sorted(state.runs.items()):
        if not run.assumed:
            yield commitment_of(run, state.book.shares(key.owner)).model_dump(mode="json")


def quarantine(state: ClusterState) -> Iterator[View]:
    """Attempts that agents run and nobody here knows: for a person to look at. They are never killed silently."""
    for (name, attempt), report in sorted(state.quarantine.items()):
        yield {"node": name, "attempt": str(attempt), "state": report.state, "at": report.at}


def counts(state: ClusterState, now: float) -> dict[str, dict[str, int]]:
    """Nodes, jobs and tasks by state."""
    sums: dict[str, dict[str, int]] = {"nodes": {}, "jobs": {}, "tasks": {}}
    for found_node in state.nodes.values():
        _add(sums["nodes"], node_state(state, found_node, now), 1)
    for found in state.jobs.values():
        _add(sums["jobs"], found.state.value, 1)
        for task_state, count in found.by_state().items():
            _add(sums["tasks"], task_state.value, count)
    return sums


def _add(sums: dict[str, int], name: str, count: int) -> None:
    sums[name] = sums.get(name, 0) + count


def _array(found: JobState) -> str:
    array = found.spec.array
    if array is None:
        return ""
    return array.text()


def _nodes(state: ClusterState, found: JobState) -> list[str]:
    """Nodes on which it runs or, over, ran; of a large array only those of its first tasks."""
    names = set()
    for position in range(min(len(found.codes), NODES_OF_TASKS)):
        run = state.runs.get(TaskKey(found.id, found.indices[position]))
        if run is not None and not run.assumed:
            names.add(run.node)
        elif position in found.ends:
            names.add(found.ends[position].node)
    return sorted(names - {""})
