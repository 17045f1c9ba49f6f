"""What /v1 answers, as NODE, GROUP and pool of lavalite.providers.base.

job, one task of a component                 reservation that is a compute group
pending, never placed    no group yet        nobody in it        free; reserved for a component, or with a time-out
pending, tried before    failed: restarts    drained             draining
committed, running       allocated           a job in it         as that job, under the reservation's name
told to end              draining
suspended, only holds    draining
unknown                  failed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavalite.api.models import Job, NodeDevice, NodeResources, Pool, Reservation
from lavalite.groups.cluster.ask import is_holder
from lavalite.groups.views import ALLOCATED, DRAINING, FAILED, FREE, RESERVED
from lavalite.model.job import GROUP_VARIABLE, compute_group_id
from lavalite.model.request import Request
from lavalite.model.resources import GPU, UNITS, WHOLE
from lavalite.model.task import TaskState

ENDED = frozenset({"succeeded", "failed", "cancelled"})
PLACED = frozenset({"committed", "running", "suspended", "unknown"})
NAMES = {
    "cpu": "cpu_milli",
    "memory": "memory_bytes",
    "gpu": "gpu_milli",
    "storage": "storage_bytes",
    "network": "network_bits_per_second",
}
"""Of a kind, its name with the unit. What an operator named himself keeps its name."""

Shape = dict[str, Any]
Devices = Mapping[str, NodeDevice]


def amounts(by_kind: Mapping[str, int]) -> dict[str, int]:
    """The five kinds, be it 0, and others as they are."""
    return {NAMES[kind]: by_kind.get(kind, 0) for kind in UNITS} | {
        kind: amount for kind, amount in by_kind.items() if kind not in NAMES
    }


def node(found: NodeResources) -> Shape:
    """Free is what nobody holds, and no reservation keeps."""
    total = {kind: each.capacity for kind, each in found.resources.items()}
    return {
        "id": found.node,
        "resources": amounts(total),
        "free": amounts({kind: each.free - each.kept for kind, each in found.resources.items()}),
        "gpus": [_gpu_of_node(device) for device in found.devices if device.kind == GPU],
        "labels": found.labels,
        "utilization": {
            f"{kind}_committed": min(1.0, each.committed / each.capacity)
            for kind, each in found.resources.items()
            if each.capacity
        },
        "state": found.state,
    }


def _gpu_of_node(device: NodeDevice) -> Shape:
    """One that is sick or has vanished is not offered by its node: what is listed is well."""
    committed = {"gpu_committed": 1 - device.free_milli / WHOLE}
    return gpu(device) | {"free_milli": device.free_milli, "health": "ok", "utilization": committed}


def gpu(device: NodeDevice) -> Shape:
    return device.model_dump(exclude={"kind", "free_milli"})


def id_of(job: Job) -> str:
    return compute_group_id(job.id, job.reservation)


def is_group(job: Job) -> bool:
    """Whether it holds something, or did and will again; one that was never placed is no group yet."""
    return job.state in PLACED or (job.state == TaskState.PENDING and job.attempts > 0)


def group_of_job(job: Job, devices: Devices, kept: Reservation | None = None) -> Shape:
    """`kept` is the reservation that it is in, if any."""
    holds = job.state in PLACED
    request = Request.model_validate(job.request)
    state, reason = _state_of(job)
    gpus = [gpu(devices[name]) if name in devices else {"id": name} for name in job.gpus]
    return {
        "id": id_of(job),
        "node": job.nodes[0] if job.nodes else "",
        "resources": amounts(request.amounts() if holds else {}) | {"gpus": gpus},
        "topology": {"level": job.gpu_topology, "numa_nodes": numa_nodes(gpus)},
        "utilization": {},
        "state": state,
        "component": job.component,
        "pool": next(iter(request.pools.values()), kept.pool if kept is not None else ""),
        "expires_at": None,
        "environment": {
            GROUP_VARIABLE: id_of(job),
            "LAVALITE_GPUS": ",".join(job.gpus),
            "CUDA_VISIBLE_DEVICES": ",".join(job.gpus),
        },
        "reason": reason,
        "busy": holds and not is_holder(job.command),
    }


def numa_nodes(gpus: list[Shape]) -> list[int]:
    return sorted({each["numa_node"] for each in gpus if each.get("numa_node", -1) >= 0})


def _state_of(job: Job) -> tuple[str, str]:
    """(state, why)."""
    if job.told_to_end:
        return DRAINING, "it was told to end"
    if job.state == TaskState.PENDING:
        return FAILED, job.why or f"its process has ended {job.attempts} times, and is started again"
    if job.state == TaskState.UNKNOWN:
        return FAILED, "its node does not answer"
    if job.state == TaskState.SUSPENDED:
        if is_holder(job.command):
            return DRAINING, ""
        return ALLOCATED, "its process stands still: it was suspended"
    return ALLOCATED, ""


def group_of_reservation(kept: Reservation) -> Shape:
    """One that nobody is in."""
    reserved = bool(kept.component) or kept.timeout_seconds is not None
    return {
        "id": kept.name,
        "node": kept.nodes[0] if kept.nodes else "",
        "resources": amounts(kept.amounts) | {"gpus": []},
        "topology": {},
        "utilization": {},
        "state": DRAINING if kept.drained else RESERVED if reserved else FREE,
        "component": kept.component or None,
        "pool": kept.pool,
        "expires_at": None if kept.timeout_seconds is None else kept.start + kept.timeout_seconds,
        "environment": {},
        "reason": "",
        "busy": False,
    }


def pool(found: Pool) -> Shape:
    used = {kind: each.committed for kind, each in found.resources.items()}
    return {
        "name": found.name,
        "kinds": found.kinds,
        "nodes": found.nodes,
        "quota": [use.model_dump() for use in found.quota],
        "used": amounts(used),
        "resources": {kind: each.model_dump() for kind, each in found.resources.items()},
    }
