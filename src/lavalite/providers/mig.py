"""MIG: what a GPU in MIG mode can be divided into, and instances that are made and removed on demand.

The mode of a GPU is never changed: that is its operator's. A MIG instance, as people know it, is a GPU instance with
one compute instance that has all of it. Blocking: call it in a worker thread, and one at a time for each GPU.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lavalite.base.errors import InputError, LavaLiteError, RefusedError
from lavalite.model.resources import WHOLE
from lavalite.providers.nvml_calls import LOST, asked, opened, text

OFFERED = re.compile(r"\d+g\.\d+gb")
"""Profiles without `+me`, `+gfx` and the like: of those there are few, for who asks for them by hand."""

GPU_GONE = "gpu_gone"
"""The code of an error that says that the GPU is lost, and its instances with it."""


@dataclass(slots=True, frozen=True)
class MigProfile:
    """`milli` is the part of the GPU that an instance takes: of its slices or of its memory, whichever is more.
    `left`: so many more can be made now, if no others are."""

    name: str
    number: int
    milli: int
    left: int


@dataclass(slots=True, frozen=True)
class MigInstance:
    """`id` is its UUID, `profile` as `1g.10gb`."""

    id: str
    profile: str
    memory_bytes: int
    gpu_instance: int = 0
    compute_instance: int = 0


def mig_profiles(nvml: Any, gpu: Any) -> list[MigProfile]:
    """What can be made of it, the smallest first. Raises NVMLError if the GPU is lost."""
    memory_bytes = int(nvml.nvmlDeviceGetMemoryInfo(gpu).total)
    infos = []
    for number in range(getattr(nvml, "NVML_GPU_INSTANCE_PROFILE_COUNT", 0)):
        info = asked(nvml, "nvmlDeviceGetGpuInstanceProfileInfo", gpu, number)
        if info is not None:
            infos.append((_profile_name(text(info.name)), info))
    slices = max((info.sliceCount for _, info in infos), default=1)
    found = []
    for name, info in infos:
        if OFFERED.fullmatch(name):
            of_slices = WHOLE * info.sliceCount // slices
            of_memory = WHOLE * (info.memorySizeMB << 20) // memory_bytes if memory_bytes else 0
            left = asked(nvml, "nvmlDeviceGetGpuInstanceRemainingCapacity", gpu, info.id) or 0
            found.append(MigProfile(name, info.id, min(WHOLE, max(of_slices, of_memory)), left))
    return sorted(found, key=lambda profile: (profile.milli, profile.name))


def describe(profiles: Sequence[MigProfile]) -> str:
    """`1g.10gb:142,2g.20gb:285`, as a device's attribute `mig_profiles` has it."""
    return ",".join(f"{profile.name}:{profile.milli}" for profile in profiles)


def mig_instances(nvml: Any, gpu: Any) -> list[MigInstance]:
    """Those that there are. The profile is the last word of the device's name. Raises NVMLError."""
    found = []
    for at in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        if (device := asked(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", gpu, at)) is None:
            continue  # there is none of this number
        found.append(
            MigInstance(
                text(nvml.nvmlDeviceGetUUID(device)),
                _profile_name(text(nvml.nvmlDeviceGetName(device))),
                int(nvml.nvmlDeviceGetMemoryInfo(device).total),
                asked(nvml, "nvmlDeviceGetGpuInstanceId", device) or 0,
                asked(nvml, "nvmlDeviceGetComputeInstanceId", device) or 0,
            )
        )
    return found


def instances_of(gpu_id: str, nvml: Any = None) -> list[MigInstance]:
    """Those of the GPU with this UUID. Raises LavaLiteError."""
    with _asking(nvml) as found:
        return mig_instances(found, found.nvmlDeviceGetHandleByUUID(gpu_id))


def create_instance(gpu_id: str, profile: str, nvml: Any = None) -> MigInstance:
    """One more of this profile, of the GPU with this UUID. Raises LavaLiteError; then there is none more."""
    with _asking(nvml) as found:
        gpu = found.nvmlDeviceGetHandleByUUID(gpu_id)
        known = {each.name: each for each in mig_profiles(found, gpu)}
        if (wanted := known.get(profile)) is None:
            hint = f"It can make {', '.join(known) or 'none'}."
            raise InputError(f"GPU {gpu_id} makes no MIG instances {profile[:40]!r}", hint=hint)
        if not wanted.left:
            hint = "Others have its slices or its memory; wait until they are given back."
            raise LavaLiteError(f"GPU {gpu_id} has no room for one more MIG instance {profile}", hint=hint)
        gpu_instance = found.nvmlDeviceCreateGpuInstance(gpu, wanted.number)
        try:
            found.nvmlGpuInstanceCreateComputeInstance(gpu_instance, _whole_of(found, gpu_instance))
            number = found.nvmlGpuInstanceGetInfo(gpu_instance).id
            for each in mig_instances(found, gpu):
                if each.gpu_instance == number:
                    return each
            raise LavaLiteError(f"GPU {gpu_id} does not list the MIG instance that was made just now")
        except BaseException:
            _take_back(found, gpu, gpu_instance)
            raise


def destroy_instance(instance_id: str, nvml: Any = None) -> bool:
    """Remove the MIG instance with this UUID; False if there is none. Raises LavaLiteError while it is used."""
    with _asking(nvml) as found:
        for at in range(found.nvmlDeviceGetCount()):
            gpu = asked(found, "nvmlDeviceGetHandleByIndex", at, lost=False)
            if gpu is None or not (asked(found, "nvmlDeviceGetMigMode", gpu, lost=False) or [0])[0]:
                continue
            for each in mig_instances(found, gpu):
                if each.id == instance_id:
                    _destroy(found, gpu, each)
                    return True
    return False


def remove_unfinished(gpu_id: str, profile: str, keep: Collection[str], nvml: Any = None) -> list[str]:
    """Remove what a process that died while it made an instance of this profile may have left on the GPU: instances
    but those with these UUIDs, and GPU instances without a compute instance. Answers with the UUIDs, empty for the
    latter. Raises LavaLiteError.
    """
    removed = []
    with _asking(nvml) as found:
        gpu = found.nvmlDeviceGetHandleByUUID(gpu_id)
        there = mig_instances(found, gpu)
        for each in there:
            if each.profile == profile and each.id not in keep:
                _destroy(found, gpu, each)
                removed.append(each.id)
        number = next((each.number for each in mig_profiles(found, gpu) if each.name == profile), -1)
        whole = {each.gpu_instance for each in there}
        for gpu_instance in _gpu_instances(found, gpu, number):
            if found.nvmlGpuInstanceGetInfo(gpu_instance).id not in whole:
                found.nvmlGpuInstanceDestroy(gpu_instance)
                removed.append("")
    return removed


def _take_back(nvml: Any, gpu: Any, gpu_instance: Any) -> None:
    number = nvml.nvmlGpuInstanceGetInfo(gpu_instance).id
    for each in mig_instances(nvml, gpu):
        if each.gpu_instance == number:
            _destroy(nvml, gpu, each)
            return
    nvml.nvmlGpuInstanceDestroy(gpu_instance)


def _gpu_instances(nvml: Any, gpu: Any, profile: int) -> list[Any]:
    if profile < 0:
        return []
    handles = (nvml.c_nvmlGpuInstance_t * 64)()
    count = nvml.c_uint()
    nvml.nvmlDeviceGetGpuInstances(gpu, profile, handles, nvml.byref(count))
    return [handles[at] for at in range(count.value)]


def _destroy(nvml: Any, gpu: Any, instance: MigInstance) -> None:
    gpu_instance = nvml.nvmlDeviceGetGpuInstanceById(gpu, instance.gpu_instance)
    compute = nvml.nvmlGpuInstanceGetComputeInstanceById(gpu_instance, instance.compute_instance)
    nvml.nvmlComputeInstanceDestroy(compute)
    nvml.nvmlGpuInstanceDestroy(gpu_instance)


def _whole_of(nvml: Any, gpu_instance: Any) -> int:
    """The compute instance profile that has all of the GPU instance."""
    shared, best = nvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED, (0, 0)
    for number in range(nvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        info = asked(nvml, "nvmlGpuInstanceGetComputeInstanceProfileInfo", gpu_instance, number, shared)
        if info is not None:
            best = max(best, (info.sliceCount, info.id))
    return best[1]


def _profile_name(name: str) -> str:
    return name.rpartition("MIG ")[2].lower()


@contextmanager
def _asking(nvml: Any) -> Iterator[Any]:
    """NVML, whose errors are ours, in a sentence."""
    said: list[str] = []
    with opened(nvml, said.append) as found:
        if found is None:
            raise LavaLiteError(said[0] if said else "there is no NVIDIA driver on this machine")
        try:
            yield found
        except found.NVMLError as error:
            if type(error).__name__ == "NVMLError_NoPermission":
                hint = "Run as root, or let root make the instances: they are offered as they are."
                raise RefusedError("MIG instances are made and removed by root only", hint=hint) from None
            if type(error).__name__ == "NVMLError_InUse":
                hint = "End its processes; `nvidia-smi` lists them."
                raise LavaLiteError("a MIG instance is still in use by a process", hint=hint) from None
            code = GPU_GONE if type(error).__name__ in (*LOST, "NVMLError_NotFound") else ""
            raise LavaLiteError(f"the GPU cannot be divided so: NVML says {error}", code=code) from None
