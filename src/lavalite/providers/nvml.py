"""NVIDIA's GPUs, by NVML: which there are, what connects them, and which of them may be offered."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lavalite.model.resources import Device
from lavalite.providers.health import read_counters, why_sick
from lavalite.providers.mig import MigInstance, describe, mig_instances, mig_profiles
from lavalite.providers.nvml_calls import asked, opened, text

MPS_CONTROL = "nvidia-cuda-mps-control"
MPS_COMPUTE_CAPABILITY = (7, 0)
"""From Volta on, MPS limits the memory and the threads of each of its clients."""
PROHIBITED = 2
"""The compute mode in which no program may use the GPU."""

Warn = Callable[[str], None]
Divide = Callable[[str, Sequence[str]], bool]
"""(UUID of a GPU in MIG mode, UUIDs of its instances) → whether it is offered as a device that can be divided."""


def find_gpus(
    warn: Warn,
    nvml: Any = None,
    *,
    sick: Mapping[str, str] | None = None,
    also_sick: bool = False,
    divide: Divide | None = None,
) -> list[Device]:
    """All GPUs that answer and are well. Others, or an NVML that fails, are told to `warn`; the rest counts.

    `sick`: what is known of GPUs beside their counters, id → reason. With `also_sick` these are there too: for who
    knows by other means that nothing may be placed on them. Of a GPU in MIG mode its instances are offered;
    itself instead, with `mig_profiles`, where `divide` says so. `nvml` stands in for the module `pynvml` in tests.
    """
    with opened(nvml, warn) as found:
        return [] if found is None else _all(found, warn, None if also_sick else sick or {}, divide)


def _all(nvml: Any, warn: Warn, sick: Mapping[str, str] | None, divide: Divide | None) -> list[Device]:
    found: list[Device] = []
    try:
        count = nvml.nvmlDeviceGetCount()
        driver = text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        warn(f"GPUs are not offered: NVML says {error}")
        return found
    handles, instances = [], list[Device]()
    mps = shutil.which(MPS_CONTROL) is not None
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            gpu = _gpu(nvml, handle, index, driver)
            if sick is not None and (reason := why_sick(read_counters(nvml, handle)) or sick.get(gpu.id, "")):
                warn(f"GPU {gpu.id} is not offered: {reason}")
            elif gpu.attributes["mig"] == "on":
                # Nobody can use it whole: its instances are offered instead, or what it can be divided into.
                made = mig_instances(nvml, handle)
                if divide is not None and divide(gpu.id, [instance.id for instance in made]):
                    profiles = describe(mig_profiles(nvml, handle))
                    instances.append(_with(gpu, {"mig_profiles": profiles}))
                else:
                    instances += [_instance(gpu, instance) for instance in made]
            else:
                found.append(_with(gpu, {"mps": "yes"}) if mps and _can_share(nvml, handle) else gpu)
                handles.append(handle)
        except nvml.NVMLError as error:
            warn(f"GPU {index} is not offered: NVML says {error}")
    for name, near in (("nvlink", _linked), ("pcie", _switched)):
        islands = _islands(nvml, handles, near)
        found = [
            _with(gpu, {name: str(island)}) if island >= 0 else gpu
            for gpu, island in zip(found, islands, strict=True)
        ]
    return found + instances


def _with(gpu: Device, attributes: dict[str, str]) -> Device:
    return gpu.model_copy(update={"attributes": gpu.attributes | attributes})


def _instance(gpu: Device, instance: MigInstance) -> Device:
    """An instance of the GPU, as a device of its own."""
    attributes = gpu.attributes | {"mig_profile": instance.profile, "mig_parent": gpu.id}
    changed = {"id": instance.id, "memory_bytes": instance.memory_bytes, "attributes": attributes}
    return gpu.model_copy(update=changed)


def _islands(nvml: Any, handles: list[Any], near: Callable[[Any, Any, Any], bool]) -> list[int]:
    """For each GPU the place of the first one that it reaches so, however far; -1 where it reaches none."""
    islands = list(range(len(handles)))
    for at, one in enumerate(handles):
        for before in range(at):
            if islands[before] != islands[at] and near(nvml, handles[before], one):
                first, other = sorted((islands[before], islands[at]))
                islands = [first if island == other else island for island in islands]
    return [island if islands.count(island) > 1 else -1 for island in islands]


def _linked(nvml: Any, one: Any, other: Any) -> bool:
    """Whether the two reach each other over NVLink, directly or by a switch."""
    try:
        status = nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    except nvml.NVMLError:
        return False
    return bool(status == nvml.NVML_P2P_STATUS_OK)


def _switched(nvml: Any, one: Any, other: Any) -> bool:
    """Whether what they send each other passes PCIe switches only, and not the processor.

    /sys knows this better (which switch it is), where it can be seen; in a container it often cannot.
    """
    level = asked(nvml, "nvmlDeviceGetTopologyCommonAncestor", one, other, lost=False)
    return level is not None and bool(level <= nvml.NVML_TOPOLOGY_MULTIPLE)


def _gpu(nvml: Any, gpu: Any, index: int, driver: str) -> Device:
    domain, _, rest = text(nvml.nvmlDeviceGetPciInfo(gpu).busId).lower().partition(":")
    return Device(
        id=text(nvml.nvmlDeviceGetUUID(gpu)),
        model=text(nvml.nvmlDeviceGetName(gpu)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(gpu).total),
        pci_address=f"{domain[-4:]}:{rest}",  # NVML writes eight digits of domain, /sys four
        attributes={"index": str(index), "driver": driver, "mig": _mig(nvml, gpu)},
    )


def _mig(nvml: Any, gpu: Any) -> str:
    """`on`, `off`, or `none` for a GPU that cannot be partitioned."""
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(gpu)
    except nvml.NVMLError:
        return "none"
    return "on" if current else "off"


def _can_share(nvml: Any, gpu: Any) -> bool:
    """Whether programs can share it by MPS, each with its own part."""
    capability = asked(nvml, "nvmlDeviceGetCudaComputeCapability", gpu)
    mode = asked(nvml, "nvmlDeviceGetComputeMode", gpu)
    return capability is not None and tuple(capability) >= MPS_COMPUTE_CAPABILITY and mode != PROHIBITED
