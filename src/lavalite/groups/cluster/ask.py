"""What is asked for, as the job that is the group, or as the reservation that keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lavalite.api.models import MAX_RESERVED_SECONDS, NodeResources, Reservation, ReservationPut
from lavalite.groups.errors import InsufficientResourcesError
from lavalite.groups.requirements import Ask, Run
from lavalite.model.affinity import Affinity
from lavalite.model.job import MAX_GRACE_SECONDS, Backoff, JobSpec
from lavalite.model.request import Request
from lavalite.model.resources import CPU, GPU, MEMORY, STORAGE, WHOLE
from lavalite.model.selector import Selector
from lavalite.providers.base import NotOfferedError

HOLDER = "LAVALITE_HOLDS_FOR"
"""Set by the command of a job that only holds what its caller uses: so it is told from a component's own."""
HOLDER_GRACE_SECONDS = 2
RESTARTS = 100
RESTART_BACKOFF = Backoff(first_seconds=1, factor=2, most_seconds=30)
PATIENCE_SECONDS = 60
"""A planner that dies while it waits leaves a job that waits: that goes so long after it should have gone."""
KEPT = frozenset({CPU, MEMORY, GPU, STORAGE})
"""What a reservation can keep."""


def job_of(ask: Ask, pool_kinds: Iterable[str], queue: str, kept: Reservation | None = None) -> JobSpec:
    """The job that is the group. `pool_kinds` are those of the pool that is named; `kept` is what it is to be in."""
    request = ask.request
    if kept is not None:
        request = _as_it_is(request, kept)
        pool_kinds = request.amounts() if kept.pool and not ask.constraints.pool else pool_kinds
    pool = ask.constraints.pool or (kept.pool if kept is not None else "")
    pools = {kind: pool for kind in pool_kinds if kind in request.amounts()} if pool else {}
    run = ask.run
    common: dict[str, Any] = {
        "name": ask.component,
        "component": ask.component,
        "queue": queue,
        "reservation": kept.name if kept is not None else "",
        "request": request.model_copy(update={"pools": pools}),
        "policy": ask.policy,
        "affinity": affinity_of(ask),
        "priority": ask.constraints.priority,
        "group": ask.constraints.team,
        "start_within_seconds": ask.constraints.wait + PATIENCE_SECONDS,
    }
    return JobSpec(**common, **(_running(run) if run is not None else _holding(ask.component)))


def _running(run: Run) -> dict[str, Any]:
    """Its process is started again when it fails, and elsewhere when its node is lost."""
    return {
        "command": run.command,
        "environment": run.environment,
        "grace_seconds": min(run.drain_seconds, MAX_GRACE_SECONDS),
        "retries": RESTARTS,
        "retry_on": [],
        "backoff": RESTART_BACKOFF,
        "rerunnable": True,
    }


def _holding(component: str) -> dict[str, Any]:
    """The caller's processes are on that node and nowhere else, so that nothing is tried again."""
    return {
        "command": ["env", f"{HOLDER}={component}", "sleep", "infinity"],
        "grace_seconds": HOLDER_GRACE_SECONDS,
        "retries": 0,
        "rerunnable": False,
    }


def is_holder(command: list[str]) -> bool:
    """Whether this is the command of a job that only holds."""
    return command[:1] == ["env"] and len(command) > 1 and command[1].startswith(f"{HOLDER}=")


def _as_it_is(request: Request, kept: Reservation) -> Request:
    """A group is taken as it is: with all that it has. Raises InsufficientResourcesError where it has too little."""
    short = sorted(kind for kind, amount in request.amounts().items() if amount > kept.amounts.get(kind, 0))
    if short:
        message = f"compute group {kept.name} has less {', '.join(short)} than is asked for"
        raise InsufficientResourcesError(message, reasons={"too_small": 1}, hint="Ask for less, or name another.")
    fields = {CPU: "cpu_milli", MEMORY: "memory_bytes", GPU: "gpu_milli", STORAGE: "storage_bytes"}
    return request.model_copy(update={fields[kind]: amount for kind, amount in kept.amounts.items()})


def affinity_of(ask: Ask) -> list[Affinity]:
    """Components are near or apart by their jobs' names; nodes are those that are named or selected."""
    said = ask.constraints
    terms = [Affinity(name=name, within=said.within) for name in said.affinity]
    terms += [Affinity(name=name, within=said.within, anti=True) for name in said.anti_affinity]
    if said.node:
        terms.append(Affinity(nodes=[said.node]))
    if (selector := said.selector()) is not None:
        if selector.patterns:
            terms.append(Affinity(nodes=list(selector.patterns)))
        else:
            terms.append(Affinity(labels={label: list(values) for label, values in selector.labels.items()}))
    return terms


def demand_offered(ask: Ask) -> None:
    """Raises NotOfferedError for what a running system does not do."""
    if 0 < ask.request.gpu_milli < WHOLE and ask.requirements.isolation != "none":
        hint = "Say isolation: none, or ask for an instance: gpu: {count: 1, mig: 1g.10gb}."
        raise NotOfferedError("a running system does not keep parts of a GPU apart", hint=hint)


def demand_keepable(ask: Ask) -> None:
    """Raises NotOfferedError for what no reservation keeps."""
    request = ask.request
    odd = sorted(request.amounts().keys() - KEPT)
    why = ""
    if odd:
        why = f"keeps no {odd[0]}"
    elif request.gpu_milli % WHOLE:
        why = "keeps GPUs whole"
    elif request.gpu_mig:
        why = "keeps whole GPUs, and no MIG instances"
    elif request.gpu_topology:
        why = "keeps GPUs of a node, whichever are free when it is taken, and no topology"
    elif ask.constraints.affinity or ask.constraints.anti_affinity:
        why = "is near no component, and apart from none, before it is taken"
    if why:
        raise NotOfferedError(f"a group of a running system that nobody has yet {why}", hint="Allocate it at once.")


def reservation_of(ask: Ask, nodes: Iterable[NodeResources] | None, timeout_seconds: int | None) -> ReservationPut:
    """`nodes` are given where not all of them have the GPUs that are asked for (`demands_devices`).

    It is asked for as long as can be; one with a time-out ends when it is unused for so long. Raises
    InsufficientResourcesError where no node could have it.
    """
    names = None if nodes is None else [node.node for node in nodes if _has_devices(node, ask)]
    if names is not None and not names:
        message = "no node has such GPUs, and nothing but such"
        raise InsufficientResourcesError(message, reasons={"no_model": 1}, ever=False)
    said, request = ask.constraints, ask.request
    selector: Any = said.node or said.nodes
    return ReservationPut(
        cpu_milli=request.cpu_milli,
        memory_bytes=request.memory_bytes,
        gpu_milli=request.gpu_milli,
        storage_bytes=request.storage_bytes,
        pool=said.pool,
        selector=selector if names is None else names,
        group=True,
        component=ask.component,
        duration_seconds=MAX_RESERVED_SECONDS,
        timeout_seconds=timeout_seconds,
    )


def demands_devices(ask: Ask) -> bool:
    """Whether it matters which GPUs a node has: a reservation keeps any of it."""
    return bool(ask.request.gpu_milli and (ask.request.gpu_model or ask.request.gpu_memory_bytes))


def _has_devices(node: NodeResources, ask: Ask) -> bool:
    said, request, selector = ask.constraints, ask.request, ask.constraints.selector()
    if (said.node and said.node != node.node) or not _is_selected(selector, node):
        return False
    whole = [d for d in node.devices if d.kind == GPU and "mig_profile" not in d.attributes]
    return bool(whole) and all(
        request.gpu_model.lower() in device.model.lower() and device.memory_bytes >= request.gpu_memory_bytes
        for device in whole
    )


def _is_selected(selector: Selector | None, node: NodeResources) -> bool:
    return selector is None or selector.matches(node.node, node.labels)


def may_take(ask: Ask, kept: Reservation) -> bool:
    """Whether this free group is what is asked for: of the same amounts, and open to the component."""
    mine = kept.component == ask.component or (not kept.component and kept.timeout_seconds is None)
    same = kept.amounts == ask.request.amounts() and ask.constraints.pool in ("", kept.pool)
    return mine and same and not kept.drained and not kept.used
