"""What the nodes of a cluster offer, after what is none of ours. Pure.

Of what a node has allocatable, what pods of others ask for is gone; ours are in the ledger already. A node that takes
no pods now (cordoned, not ready, tainted) is `closed`: its offer stands, for who is there, and nothing new comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavalite.model import resources as model
from lavalite.model.resources import UNITS, WHOLE, Device, NodeOffer, Resource
from lavalite.providers.kubernetes.devices import InUse, numbered_devices, sliced_devices
from lavalite.providers.kubernetes.usage import CPU, MEMORY, STORAGE, amount, used_by

Json = dict[str, Any]
AMOUNTS = {model.CPU: CPU, model.MEMORY: MEMORY, model.STORAGE: STORAGE}


@dataclass(slots=True, frozen=True)
class Seen:
    """What the API server answered, each as a list of objects. `others` are pods that are none of ours."""

    nodes: Sequence[Json]
    others: Sequence[Json]
    slices: Sequence[Json] = ()
    taken: frozenset[InUse] = frozenset()
    """Devices that claims of others have."""


def offers_of(seen: Seen, held: frozenset[str]) -> list[NodeOffer]:
    """By name. `held`: ids of the devices that our groups hold. Version 1 throughout."""
    used = used_by(seen.others)
    sliced = sliced_devices(seen.slices, seen.taken, held)
    offers = (
        _offer(node, used.get(node["metadata"]["name"], Counter()), sliced.get(node["metadata"]["name"]), held)
        for node in seen.nodes
    )
    return sorted(offers, key=lambda offer: offer.node)


def _offer(node: Json, used: Counter[str], sliced: list[Device] | None, held: frozenset[str]) -> NodeOffer:
    name, status = node["metadata"]["name"], node.get("status") or {}
    allocatable: Mapping[str, str] = status.get("allocatable") or {}
    found = []
    for kind, resource in AMOUNTS.items():
        left = max(0, amount(resource, allocatable.get(resource)) - used[resource])
        found.append(_resource(name, kind, left, []))
    # Where a node has both, they are the same GPUs.
    gpus = sliced if sliced is not None else numbered_devices(node, used, held)
    found.append(_resource(name, model.GPU, WHOLE * len(gpus), gpus))
    labels = {label: [value] for label, value in sorted((node["metadata"].get("labels") or {}).items())}
    offer = NodeOffer(
        node=name,
        boot_id=str((status.get("nodeInfo") or {}).get("bootID", "")),
        labels=labels,
        resources=[resource for resource in found if resource.amount],
    )
    return offer.model_copy(update={"closed": why}) if (why := closed(node)) else offer


def closed(node: Json) -> str:
    """Why no new pod of ours would go there; empty where one would."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    if node["metadata"].get("deletionTimestamp"):
        return "it is being removed"
    if spec.get("unschedulable"):
        return "it is cordoned"
    ready = next((c for c in status.get("conditions") or [] if c.get("type") == "Ready"), None)
    if ready is None or ready.get("status") != "True":
        return f"it is not ready{': ' + ready['message'] if ready and ready.get('message') else ''}"
    for taint in spec.get("taints") or []:
        if taint.get("effect") in ("NoSchedule", "NoExecute"):
            return f"it has the taint {taint.get('key')}:{taint['effect']}"
    return ""


def _resource(node: str, kind: str, value: int, devices: list[Device]) -> Resource:
    return Resource(name=f"{node}/{kind}", kind=kind, amount=value, unit=UNITS[kind], owner=node, devices=devices)
