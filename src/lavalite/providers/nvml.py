"""NVIDIA's GPUs, by NVML. The only place that imports it, and only where GPUs are looked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from lavalite.model.resources import Device

WITHOUT_GPUS = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
"""What NVML says on a machine without NVIDIA's driver: no fault, just no GPUs."""


def find_gpus(warn: Callable[[str], None], nvml: Any = None) -> list[Device]:
    """All GPUs that answer. One that does not, or an NVML that fails, is told to `warn`; the others count.

    `nvml` stands in for the module `pynvml` in tests.
    """
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if type(error).__name__ not in WITHOUT_GPUS:
            warn(f"GPUs are not offered: NVML says {error}")
        return []
    try:
        return _all(nvml, warn)
    finally:
        nvml.nvmlShutdown()


def _all(nvml: Any, warn: Callable[[str], None]) -> list[Device]:
    found: list[Device] = []
    try:
        count = nvml.nvmlDeviceGetCount()
        driver = _text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        warn(f"GPUs are not offered: NVML says {error}")
        return found
    handles, instances = [], list[Device]()
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            gpu = _gpu(nvml, handle, index, driver)
            if gpu.attributes["mig"] == "on":
                # Nobody can use it whole: its instances are offered instead.
                instances += _mig_instances(nvml, handle, gpu)
                continue
            found.append(gpu)
            handles.append(handle)
        except nvml.NVMLError as error:
            warn(f"GPU {index} is not offered: NVML says {error}")
    return _with_islands(found, _islands(nvml, handles)) + instances


def _mig_instances(nvml: Any, handle: Any, gpu: Device) -> list[Device]:
    """The MIG instances of a GPU, each as a device of its own. Its profile is the last word of its name."""
    found = []
    for at in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, at)
        except nvml.NVMLError:
            continue  # there is none of this number
        attributes = gpu.attributes | {
            "mig_profile": _text(nvml.nvmlDeviceGetName(instance)).rpartition(" MIG ")[2].lower(),
            "mig_parent": gpu.id,
        }
        memory_bytes = int(nvml.nvmlDeviceGetMemoryInfo(instance).total)
        device_id = _text(nvml.nvmlDeviceGetUUID(instance))
        changed = {"id": device_id, "memory_bytes": memory_bytes, "attributes": attributes}
        found.append(gpu.model_copy(update=changed))
    return found


def _with_islands(gpus: list[Device], islands: list[int]) -> list[Device]:
    """With the number of the NVLink island that each is on, where it is on one."""
    return [
        gpu.model_copy(update={"attributes": gpu.attributes | {"nvlink": str(island)}}) if island >= 0 else gpu
        for gpu, island in zip(gpus, islands, strict=True)
    ]


def _islands(nvml: Any, handles: list[Any]) -> list[int]:
    """For each GPU the place of the first one that it reaches over NVLink, however far; -1 where it reaches none."""
    islands = list(range(len(handles)))
    for at, one in enumerate(handles):
        for before in range(at):
            if islands[before] != islands[at] and _linked(nvml, handles[before], one):
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


def _gpu(nvml: Any, gpu: Any, index: int, driver: str) -> Device:
    domain, _, rest = _text(nvml.nvmlDeviceGetPciInfo(gpu).busId).lower().partition(":")
    return Device(
        id=_text(nvml.nvmlDeviceGetUUID(gpu)),
        model=_text(nvml.nvmlDeviceGetName(gpu)),
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


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
