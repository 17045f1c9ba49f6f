"""Write down what NVML answers on this machine, for played_nvml.py: `python record_nvml.py FILE "where, what"`.

It asks with the calls that lavalite.providers asks with, and needs nothing but the module pynvml (nvidia-ml-py). It
changes nothing. Names of processes are not written down, but their numbers are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def record(nvml: Any, about: str) -> dict[str, Any]:
    """The recording. `nvml` is the module pynvml. Raises its NVMLError if NVML does not answer at all."""
    nvml.nvmlInit()
    try:
        driver = nvml.nvmlSystemGetDriverVersion()
        handles = [_answer(nvml, nvml.nvmlDeviceGetHandleByIndex, at) for at in range(nvml.nvmlDeviceGetCount())]
        return {
            "header": {"recorded": True, "about": about},
            "driver": driver,
            "gpus": [_gpu(nvml, handle) if not isinstance(handle, dict) else handle for handle in handles],
            "p2p_nvlink": _pairs(
                nvml,
                handles,
                lambda one, other: nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK),
            ),
            "common_ancestor": _pairs(nvml, handles, nvml.nvmlDeviceGetTopologyCommonAncestor),
        }
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, gpu: Any) -> dict[str, Any]:
    uncorrected, volatile = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    asked: dict[str, Callable[[], Any]] = {
        "name": lambda: nvml.nvmlDeviceGetName(gpu),
        "uuid": lambda: nvml.nvmlDeviceGetUUID(gpu),
        "bus_id": lambda: nvml.nvmlDeviceGetPciInfo(gpu).busId,
        "memory": lambda: _memory(nvml, gpu),
        "compute_capability": lambda: list(nvml.nvmlDeviceGetCudaComputeCapability(gpu)),
        "compute_mode": lambda: nvml.nvmlDeviceGetComputeMode(gpu),
        "utilization": lambda: [(found := nvml.nvmlDeviceGetUtilizationRates(gpu)).gpu, found.memory],
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "power_milliwatts": lambda: nvml.nvmlDeviceGetPowerUsage(gpu),
        "power_limit_milliwatts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu),
        "ecc_uncorrected_volatile": lambda: nvml.nvmlDeviceGetTotalEccErrors(gpu, uncorrected, volatile),
        "retired_pages_pending": lambda: nvml.nvmlDeviceGetRetiredPagesPendingStatus(gpu),
        "remapped_rows": lambda: list(nvml.nvmlDeviceGetRemappedRows(gpu)),
        "event_types": lambda: nvml.nvmlDeviceGetSupportedEventTypes(gpu),
        "processes": lambda: [
            {"pid": process.pid, "used_bytes": process.usedGpuMemory or 0}
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        ],
        "mig_mode": lambda: list(nvml.nvmlDeviceGetMigMode(gpu)),
    }
    found = {name: _answer(nvml, ask) for name, ask in asked.items()}
    if isinstance(found["mig_mode"], list) and found["mig_mode"][0]:
        found["max_mig_devices"] = _answer(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(gpu))
        found["gpu_instance_profiles"] = profiles = _profiles(nvml, gpu)
        found["gpu_instances"] = _instances(nvml, gpu, profiles)
    return found


def _profiles(nvml: Any, gpu: Any) -> list[dict[str, Any]]:
    found = []
    for number in range(nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = nvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number)
        except nvml.NVMLError:
            continue  # not of this GPU
        count = nvml.c_uint()
        nvml.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, info.id, None, nvml.byref(count))
        places = (nvml.c_nvmlGpuInstancePlacement_t * count.value)()
        nvml.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, info.id, places, nvml.byref(count))
        found.append(
            {
                "number": number,
                "id": info.id,
                "name": info.name,
                "slices": info.sliceCount,
                "count": info.instanceCount,
                "memory_megabytes": info.memorySizeMB,
                "size": places[0].size if count.value else 0,
                "starts": [places[at].start for at in range(count.value)],
            }
        )
    return found


def _instances(nvml: Any, gpu: Any, profiles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    computes: dict[int, list[dict[str, Any]]] = {}
    for at in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, at)
        except nvml.NVMLError:
            continue
        computes.setdefault(nvml.nvmlDeviceGetGpuInstanceId(device), []).append(
            {
                "id": nvml.nvmlDeviceGetComputeInstanceId(device),
                "uuid": nvml.nvmlDeviceGetUUID(device),
                "name": nvml.nvmlDeviceGetName(device),
                "memory": _memory(nvml, device),
            }
        )
    found = []
    for profile in profiles:
        count = nvml.c_uint()
        instances = (nvml.c_nvmlGpuInstance_t * max(1, profile["count"]))()
        nvml.nvmlDeviceGetGpuInstances(gpu, profile["id"], instances, nvml.byref(count))
        for at in range(count.value):
            info = nvml.nvmlGpuInstanceGetInfo(instances[at])
            found.append(
                {
                    "id": info.id,
                    "profile_id": info.profileId,
                    "start": info.placement.start,
                    "compute_instances": computes.get(info.id, []),
                }
            )
    return sorted(found, key=lambda instance: int(instance["id"]))


def _memory(nvml: Any, device: Any) -> dict[str, int]:
    found = nvml.nvmlDeviceGetMemoryInfo(device)
    return {"total": found.total, "free": found.free, "used": found.used}


def _pairs(nvml: Any, handles: list[Any], ask: Callable[[Any, Any], Any]) -> list[list[Any]]:
    """For each two GPUs; null where one of them does not answer, or both are the same."""
    silent = [isinstance(handle, dict) for handle in handles]
    numbers = range(len(handles))
    return [
        [None if i == j or silent[i] or silent[j] else _answer(nvml, ask, handles[i], handles[j]) for j in numbers]
        for i in numbers
    ]


def _answer(nvml: Any, ask: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return ask(*arguments)
    except nvml.NVMLError as error:
        return {"error": error.value}


def main() -> None:
    import pynvml

    where = Path(sys.argv[1])
    where.write_text(json.dumps(record(pynvml, " ".join(sys.argv[2:]) or "no more is known of it"), indent=1) + "\n")
    print(f"{where} is written.")


if __name__ == "__main__":
    main()
