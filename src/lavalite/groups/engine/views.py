"""What people are shown of a picture, in the shapes of lavalite.providers.base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lavalite.groups.embedded.utilization import Utilization
from lavalite.groups.engine.node_state import GpuState, NodeState
from lavalite.groups.engine.picture import Picture, devices_of
from lavalite.groups.engine.pools import Pool, pool_view
from lavalite.groups.engine.shelf import totals
from lavalite.groups.records import GroupRecord
from lavalite.model.resources import CPU, GPU, MEMORY, NETWORK, STORAGE, kinds_in_order
from lavalite.placement.closeness import shared_level

NAMES = {
    CPU: "cpu_milli",
    MEMORY: "memory_bytes",
    GPU: "gpu_milli",
    STORAGE: "storage_bytes",
    NETWORK: "network_bits_per_second",
}
"""Special kinds are called what they are."""
NOTHING = Utilization()


def group_view(
    picture: Picture,
    record: GroupRecord,
    environment: Mapping[str, str],
    measured: Utilization = NOTHING,
    *,
    busy: bool = False,
) -> dict[str, Any]:
    """GROUP."""
    node = picture.nodes.get(record.node)
    held = devices_of(record)
    gpus = [_gpu(node.gpus[device], measured) if node and device in node.gpus else {"id": device} for device in held]
    known = [node.gpus[device].near for device in held if node and device in node.gpus]
    fault = picture.fault_of(record)
    reason = fault
    if not fault and not record.ready:
        reason = "What it needs is being made, or removed."
    return {
        "id": record.id,
        "node": record.node,
        "resources": {**_named(totals(record)), "gpus": gpus},
        "topology": {"level": shared_level(known) if len(known) == len(held) and held else ""},
        "utilization": _mean([measured.gpus.get(device, {}) for device in held]),
        "state": "failed" if fault else record.state,
        "component": record.component or None,
        "pool": record.pool,
        "team": record.team,
        "created": record.created,
        "isolation": record.isolation,
        "expires_at": record.expires_at,
        "environment": dict(environment),
        "reason": reason,
        "busy": busy,
    }


def node_view(picture: Picture, node: NodeState, measured: Utilization = NOTHING) -> dict[str, Any]:
    """NODE."""
    capacity, free = picture.book.amounts(node.name)
    offered = set(node.offer.kinds())
    left = picture.book.device_free(node.name, GPU)
    return {
        "id": node.name,
        "resources": _named({kind: amount for kind, amount in capacity.items() if kind in offered}),
        "free": _named({kind: amount for kind, amount in free.items() if kind in offered}),
        "gpus": [
            {**_gpu(gpu, measured), "free_milli": max(0, left.get(gpu.id, 0)), "health": _health(picture, gpu)}
            for gpu in node.gpus.values()
        ],
        "labels": {label: list(values) for label, values in node.labels.items()},
        "utilization": dict(measured.nodes.get(node.name, {})),
        "state": node.closed or "ready",
    }


def pools_view(picture: Picture) -> list[dict[str, Any]]:
    """By name."""
    return [one_pool(picture, picture.pools[name]) for name in sorted(picture.pools)]


def one_pool(picture: Picture, pool: Pool) -> dict[str, Any]:
    capacity = {kind: picture.pool_capacity(pool.name, kind) for kind in pool.spec.kinds}
    return pool_view(pool, picture.members(pool.name), capacity, picture.usage)


def _gpu(gpu: GpuState, measured: Utilization) -> dict[str, Any]:
    device = gpu.device
    return {
        "id": device.id,
        "model": device.model,
        "memory_bytes": device.memory_bytes,
        "numa_node": device.numa_node,
        "pci_address": device.pci_address,
        "attributes": dict(device.attributes),
        "utilization": dict(measured.gpus.get(device.id, {})),
    }


def _health(picture: Picture, gpu: GpuState) -> str:
    return picture.health.get(gpu.id) or "ok"


def _named(amounts: Mapping[str, int]) -> dict[str, int]:
    """In the order in which people list kinds; those that are always shown are 0 where there is nothing."""
    shown = {kind: amounts.get(kind, 0) for kind in (CPU, MEMORY, GPU)} | dict(amounts)
    return {NAMES.get(kind, kind): shown[kind] for kind in kinds_in_order(shown)}


def _mean(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of several GPUs, of what is known of all of them."""
    if not measured:
        return {}
    names = set.intersection(*(set(each) for each in measured))
    return {name: sum(each[name] for each in measured) / len(measured) for name in sorted(names)}
