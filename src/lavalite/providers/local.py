"""This machine as a provider: what its cores, memory, disks, network cards and GPUs offer, right now.

What may be used counts, not what is built in: the CPUs in our affinity mask, the cgroup's quota and memory limit.
Everything is read below a `root` folder, so that a recorded tree can stand in for a machine. Blocking: call it in
a worker thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from lavalite.model.resources import (
    CPU,
    DEVICE,
    GPU,
    MEMORY,
    NETWORK,
    STORAGE,
    UNITS,
    WHOLE,
    Device,
    NodeOffer,
    Resource,
)
from lavalite.providers.cgroup import cpu_quota_milli, memory_limit_bytes
from lavalite.providers.nvml import find_gpus
from lavalite.providers.special import Asked, find_special
from lavalite.providers.sysfs import (
    Tree,
    find_cores,
    find_network_cards,
    nearest_bridges,
    numa_memory_bytes,
    total_memory_bytes,
)

RESERVE_SHARE = 32
RESERVE_LEAST_BYTES, RESERVE_MOST_BYTES = 256 << 20, 4 << 30
"""Of memory, 1/32 is kept for the system and our daemons, within these bounds."""

Warn = Callable[[str], None]
NOTHING_SPECIAL: Mapping[str, Asked] = {}


def _log_warning(sentence: str) -> None:
    structlog.get_logger(__name__).warning("discovery", reason=sentence)


def discover(
    node: str,
    labels: Mapping[str, Sequence[str]],
    now: float,
    *,
    storage_path: Path,
    previous: NodeOffer | None = None,
    root: Path = Path("/"),
    gpus: Callable[[Warn], list[Device]] | None = None,
    special: Mapping[str, Asked] = NOTHING_SPECIAL,
    warn: Warn = _log_warning,
) -> NodeOffer:
    """What this node offers. Blocking, for some 10 ms (NVML: up to a second).

    Versions are those of `previous` where nothing changed. What changed gets a higher one, at least `now` (seconds
    since the Unix epoch), so that versions grow even if `previous` was lost with the disk. What cannot be read is
    not offered, and `warn` is told a sentence. `special`: by kind, where devices that an operator named are.
    """
    tree = Tree(root, warn)
    found = [
        _cpu(node, tree),
        _memory(node, tree),
        _storage(node, storage_path, warn),
        _network(node, tree),
        _gpu(node, _placed((gpus or find_gpus)(warn), tree)),
        *(_resource(node, k, len(devices), devices, {}) for k, devices in find_special(special, root, warn).items()),
    ]
    offer = NodeOffer(
        node=node,
        boot_id=tree.text("proc/sys/kernel/random/boot_id"),
        labels={key: list(values) for key, values in sorted(labels.items())},
        resources=[resource for resource in found if resource is not None and resource.amount > 0],
    )
    return with_versions(offer, previous, int(now))


def with_versions(offer: NodeOffer, previous: NodeOffer | None, floor: int) -> NodeOffer:
    """`offer` with the versions of `previous` where nothing changed, and higher ones elsewhere."""
    before = {r.name: r for r in previous.resources} if previous is not None and previous.node == offer.node else {}
    resources = []
    for resource in offer.resources:
        old = before.get(resource.name)
        same = old is not None and old.model_copy(update={"version": 1}) == resource.model_copy(update={"version": 1})
        version = old.version if old is not None else 0
        resources.append(resource.model_copy(update={"version": version if same else max(version + 1, floor, 1)}))
    versioned = offer.model_copy(update={"resources": resources})
    if previous is None or previous.node != offer.node:
        return versioned.model_copy(update={"version": max(floor, 1)})
    kept = versioned.model_copy(update={"version": previous.version})
    return kept if kept == previous else kept.model_copy(update={"version": max(previous.version + 1, floor)})


def _resource(node: str, kind: str, amount: int, devices: list[Device], attributes: dict[str, str]) -> Resource:
    return Resource(
        name=f"{node}/{kind}",
        kind=kind,
        amount=amount,
        unit=UNITS.get(kind, DEVICE),
        owner=node,
        devices=devices,
        attributes=attributes,
    )


def _cpu(node: str, tree: Tree) -> Resource:
    cores = find_cores(tree)
    quota = cpu_quota_milli(tree)
    amount = len(cores) * WHOLE if quota is None else min(quota, len(cores) * WHOLE)
    return _resource(node, CPU, amount, cores, {"model": tree.cpu_model(), "architecture": os.uname().machine})


def _memory(node: str, tree: Tree) -> Resource:
    total = total_memory_bytes(tree)
    limit = memory_limit_bytes(tree)
    usable = total if limit is None else min(total, limit)
    reserve = min(max(usable // RESERVE_SHARE, RESERVE_LEAST_BYTES), RESERVE_MOST_BYTES)
    numa = {f"numa{number}_bytes": str(size) for number, size in numa_memory_bytes(tree).items()}
    return _resource(node, MEMORY, max(0, usable - reserve), [], {"total_bytes": str(total), **numa})


def _storage(node: str, path: Path, warn: Warn) -> Resource | None:
    """The size of the file system that `path` is on: how full it is at the moment is no capacity.

    A folder that nobody has made yet will be on that of the nearest one above it.
    """
    nearest = next((folder for folder in (path, *path.parents) if os.path.exists(folder)), path)  # noqa: PTH110 - never raises
    try:
        found = os.statvfs(nearest)
    except OSError as error:
        warn(f"storage {path} is not offered: {error.strerror}")
        return None
    return _resource(node, STORAGE, found.f_blocks * found.f_frsize, [], {"path": str(path)})


def _network(node: str, tree: Tree) -> Resource:
    cards = find_network_cards(tree)
    return _resource(node, NETWORK, sum(int(card.attributes["speed_bits"]) for card in cards), cards, {})


def _gpu(node: str, gpus: list[Device]) -> Resource:
    return _resource(node, GPU, WHOLE * len(gpus), gpus, {})


def _placed(gpus: list[Device], tree: Tree) -> list[Device]:
    """With the NUMA node that each one's PCI address is on, and the PCIe bridge that brings it nearest to another."""
    folders = [f"sys/bus/pci/devices/{gpu.pci_address}" for gpu in gpus]
    bridges = nearest_bridges([tree.root / folder for folder in folders])
    return [
        gpu.model_copy(
            update={
                "numa_node": tree.number(f"{folder}/numa_node", -1),
                "attributes": gpu.attributes | ({"pcie": bridge} if bridge else {}),
            }
        )
        for gpu, folder, bridge in zip(gpus, folders, bridges, strict=True)
    ]
