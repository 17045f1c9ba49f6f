"""GPUs of a node, from either of the two ways in which Kubernetes has them. Pure.

A device plugin counts: `nvidia.com/gpu: 8`, and nobody knows before a pod runs which one it gets. We number them,
`NODE/gpu-0`, …; each number stands for one of them. DRA names: each device of a ResourceSlice has attributes, among
them a uuid, by which a claim can ask for this very one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lavalite.model.resources import Device
from lavalite.providers.kubernetes.usage import quantity

Json = dict[str, Any]
PLUGIN_GPU = "nvidia.com/gpu"
_PLUGIN = re.compile(r"nvidia\.com/(gpu|mig-(?P<mig>[0-9]+g\.[0-9]+gb(\.[a-z0-9.]+)?))")
_MIG_PRODUCT = re.compile(r"-MIG-(?P<mig>[0-9]+g\.[0-9]+gb)")
NUMBERED, CLAIMED, DRIVER = "numbered", "claimed", "driver"
"""Attributes: the resource whose number it is; `POOL/DEVICE` of a slice; the DRA driver."""
ROOT = "resource.kubernetes.io/pcieRoot"
ADDRESSES = ("resource.kubernetes.io/pciBusID", "pcieBusID")

InUse = tuple[str, str, str]
"""(driver, pool, device)"""


def numbered_devices(node: Json, used: Counter[str], held: frozenset[str]) -> list[Device]:
    """So many as are allocatable and not used by others.

    `held` are ids of ours: they are offered as long as they are ours, also where the plugin has fewer by now, for
    nobody can tell on which of them it is.
    """
    name, labels = node["metadata"]["name"], node["metadata"].get("labels") or {}
    found = []
    for resource, text in sorted(((node.get("status") or {}).get("allocatable") or {}).items()):
        if (match := _PLUGIN.fullmatch(resource)) is None:
            continue
        base = f"{name}/{resource.partition('/')[2]}-"
        ours = sorted((i for i in held if i.startswith(base) and i.removeprefix(base).isdigit()), key=_number)
        total = max(0, int(quantity(text)) - used[resource])
        spare = (f"{base}{number}" for number in range(total + len(ours)))
        free = [i for i in spare if i not in held][: max(0, total - len(ours))]
        product = labels.get(f"{resource}.product", labels.get(f"{PLUGIN_GPU}.product", ""))
        profile = match["mig"] or (p["mig"] if (p := _MIG_PRODUCT.search(product)) else "")
        mebibytes = labels.get(f"{resource}.memory", "")
        attributes = {NUMBERED: resource} | ({"mig_profile": profile} if profile else {})
        found += [
            Device(
                id=device_id,
                model=_MIG_PRODUCT.sub("", product).replace("-", " "),
                memory_bytes=int(mebibytes) << 20 if mebibytes.isdigit() else 0,
                attributes=attributes,
            )
            for device_id in sorted([*ours, *free], key=_number)
        ]
    return found


def _number(device_id: str) -> int:
    return int(device_id.rpartition("-")[2])


def sliced_devices(slices: Iterable[Json], taken: frozenset[InUse], held: frozenset[str]) -> dict[str, list[Device]]:
    """By node, GPUs of DRA slices that nobody else has a claim on.

    Not offered: pools of which a slice is missing yet, devices without a uuid (no claim could name one), such as a
    driver tainted, and parts that are made of a GPU only once they are claimed: the GPU is offered whole already.
    """
    found: dict[str, list[Device]] = {}
    for (driver, pool), whole in _pools(slices).items():
        for each in whole:
            node = str(each["spec"].get("nodeName") or "")
            for device in (each["spec"].get("devices") or []) if node else []:
                gpu = _gpu(driver, pool, device)
                if gpu is None or (driver, pool, device["name"]) in taken:
                    continue
                if not _tainted(device) or gpu.id in held:
                    found.setdefault(node, []).append(gpu)
    return found


def claimed_devices(claims: Iterable[Json]) -> frozenset[InUse]:
    """What these claims were given."""
    return frozenset(
        (result["driver"], result["pool"], result["device"])
        for claim in claims
        for result in (((claim.get("status") or {}).get("allocation") or {}).get("devices") or {}).get("results")
        or []
        if not result.get("adminAccess")
    )


def _pools(slices: Iterable[Json]) -> dict[tuple[str, str], list[Json]]:
    """Those of the newest generation, where all of them are there."""
    pools: dict[tuple[str, str], dict[int, list[Json]]] = {}
    for each in slices:
        pool = each["spec"]["pool"]
        of = pools.setdefault((each["spec"]["driver"], pool["name"]), {})
        of.setdefault(int(pool.get("generation") or 0), []).append(each)
    newest = {key: generations[max(generations)] for key, generations in pools.items()}
    return {key: of for key, of in newest.items() if len(of) >= int(of[0]["spec"]["pool"]["resourceSliceCount"])}


def _gpu(driver: str, pool: str, device: Json) -> Device | None:
    values = {name.removeprefix(f"{driver}/"): _value(v) for name, v in (device.get("attributes") or {}).items()}
    uuid, kind = values.get("uuid", ""), values.get("type", "gpu")
    if not uuid or kind not in ("gpu", "mig") or (kind == "mig" and device.get("consumesCounters")):
        return None
    memory = ((device.get("capacity") or {}).get("memory") or {}).get("value")
    numa = next((values[name] for name in ("numaNode", "numa") if name in values), "")
    attributes = {DRIVER: driver, CLAIMED: f"{pool}/{device['name']}"}
    attributes |= {"pcie": values[ROOT]} if ROOT in values else {}
    attributes |= {"mig_profile": values.get("profile", "")} if kind == "mig" else {}
    attributes |= {"mig_parent": values["parentUUID"]} if "parentUUID" in values else {}
    return Device(
        id=uuid,
        model=values.get("productName", ""),
        memory_bytes=int(quantity(memory)),
        numa_node=int(numa) if numa.isdigit() else -1,
        pci_address=next((values[name] for name in ADDRESSES if name in values), ""),
        attributes=attributes,
    )


def _value(attribute: Mapping[str, Any]) -> str:
    return str(next((v for v in attribute.values() if v is not None), ""))


def _tainted(device: Json) -> bool:
    return any(taint.get("effect") in ("NoSchedule", "NoExecute") for taint in device.get("taints") or [])
