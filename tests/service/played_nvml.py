"""NVIDIA's library libnvidia-ml.so as a recording plays it: the module pynvml runs on top of it as it is.

A recording is a JSON file (nvml_recordings/, written by record_nvml.py) of what NVML answered on a machine. Each
answer is a value, or {"error": N} where NVML refused. MIG instances can be made and removed: the file is then written
anew, so that other processes on the same file see them, as they would on the same machine. Whoever changes the file
changes the machine: a GPU falls sick, or vanishes, under the feet of those who use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

RECORDINGS = Path(__file__).parent / "nvml_recordings"
INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, INSUFFICIENT_SIZE, TIMEOUT, IN_USE, NO_RESOURCES = 2, 3, 6, 7, 10, 19, 23
COMPUTE_PROFILES = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4, 8: 5, 6: 6}
"""Slices → the compute instance profile that has them, its number and its id being the same."""


class Says(Exception):
    """A return code other than success."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Recording:
    """A recording in a file, read anew whenever it has changed; or one that is given, and never changes."""

    def __init__(self, source: Path | dict[str, Any]) -> None:
        self.path = source if isinstance(source, Path) else Path(os.devnull)
        self._seen, self._data = (0, 0), {} if isinstance(source, Path) else source

    def read(self) -> dict[str, Any]:
        if self.path == Path(os.devnull):
            return self._data
        found = self.path.stat()
        if (found.st_mtime_ns, found.st_ino) != self._seen:
            self._data, self._seen = json.loads(self.path.read_text()), (found.st_mtime_ns, found.st_ino)
        return self._data

    @contextlib.contextmanager
    def changed(self) -> Iterator[dict[str, Any]]:
        """What is done to it here is there for all processes afterwards; an exception leaves it as it was."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            data = json.loads(self.path.read_text())
            yield data
            draft = self.path.with_suffix(".new")
            draft.write_text(json.dumps(data, indent=1))
            draft.replace(self.path)


class Library:
    """Stands for ctypes.CDLL("libnvidia-ml.so.1"). `fail` may refuse any call: (function, GPU or -1) → code."""

    def __init__(self, recording: Recording, fail: Callable[[str, int], int] | None = None) -> None:
        self._recording, self._fail = recording, fail or (lambda name, gpu: 0)
        self._lock = threading.RLock()
        self._sets: dict[int, dict[int, int]] = {}
        """Event set → GPU → how many of its events have been told, or were there before."""
        self.open = 0
        """How many times it was initialised and not shut down."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(type(self), "_" + name, None) if name.startswith("nvml") else None
        if found is None:
            raise AttributeError(name)
        return partial(self._call, name, found)  # takes attributes, as `restype`

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        with self._lock:
            try:
                if code := self._fail(name, _index(arguments[0]) if name.startswith("nvmlDevice") else -1):
                    return code
                return function(self, *arguments) or 0
            except Says as said:
                return said.code

    # --- the library, the machine -------------------------------------------------------------------------------

    def _nvmlInitWithFlags(self, flags: Any) -> None:
        if code := self._recording.read().get("init_error", 0):
            raise Says(code)
        self.open += 1

    def _nvmlShutdown(self) -> None:
        self.open -= 1

    def _nvmlErrorString(self, code: Any) -> bytes:
        return f"error {_number(code)}".encode()

    def _nvmlSystemGetDriverVersion(self, buffer: Any, size: Any) -> None:
        buffer.value = self._recording.read()["driver"].encode()

    def _nvmlDeviceGetCount_v2(self, count: Any) -> None:
        count._obj.value = len(self._recording.read()["gpus"])

    # --- devices ------------------------------------------------------------------------------------------------

    def _gpu(self, handle: Any) -> dict[str, Any]:
        gpus = self._recording.read()["gpus"]
        at = _index(handle)
        if at >= len(gpus):
            raise Says(INVALID_ARGUMENT)
        return _answered(gpus[at])

    def _answer(self, handle: Any, name: str) -> Any:
        """Of a GPU or a MIG device."""
        gpu = self._gpu(handle)
        if (found := self._mig_device(handle)) is not None:
            return _answered(found.get(name, {"error": NOT_SUPPORTED}))
        return _answered(gpu.get(name, {"error": NOT_SUPPORTED}))

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> None:
        gpus = self._recording.read()["gpus"]
        if not 0 <= _number(index) < len(gpus):
            raise Says(INVALID_ARGUMENT)
        _answered(gpus[_number(index)])
        _point(device, _handle(_number(index)))

    def _nvmlDeviceGetHandleByUUID(self, name: Any, device: Any) -> None:
        wanted = name.value.decode()
        for at, gpu in enumerate(self._recording.read()["gpus"]):
            if gpu.get("uuid") == wanted:
                return _point(device, _handle(at))
            for instance, compute in _mig_devices(gpu):
                if compute["uuid"] == wanted:
                    return _point(device, _handle(at, instance["id"], compute["id"]))
        raise Says(NOT_FOUND)

    def _nvmlDeviceGetName(self, device: Any, buffer: Any, size: Any) -> None:
        buffer.value = self._answer(device, "name").encode()

    def _nvmlDeviceGetUUID(self, device: Any, buffer: Any, size: Any) -> None:
        buffer.value = self._answer(device, "uuid").encode()

    def _nvmlDeviceGetPciInfo_v3(self, device: Any, info: Any) -> None:
        info._obj.busId = self._answer(device, "bus_id").encode()

    def _nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> None:
        for name, value in self._answer(device, "memory").items():
            setattr(memory._obj, name, value)

    def _nvmlDeviceGetCudaComputeCapability(self, device: Any, major: Any, minor: Any) -> None:
        major._obj.value, minor._obj.value = self._answer(device, "compute_capability")

    def _nvmlDeviceGetComputeMode(self, device: Any, mode: Any) -> None:
        mode._obj.value = self._answer(device, "compute_mode")

    def _nvmlDeviceGetUtilizationRates(self, device: Any, rates: Any) -> None:
        rates._obj.gpu, rates._obj.memory = self._answer(device, "utilization")

    def _nvmlDeviceGetTemperature(self, device: Any, sensor: Any, celsius: Any) -> None:
        celsius._obj.value = self._answer(device, "temperature_celsius")

    def _nvmlDeviceGetPowerUsage(self, device: Any, milliwatts: Any) -> None:
        milliwatts._obj.value = self._answer(device, "power_milliwatts")

    def _nvmlDeviceGetEnforcedPowerLimit(self, device: Any, milliwatts: Any) -> None:
        milliwatts._obj.value = self._answer(device, "power_limit_milliwatts")

    def _nvmlDeviceGetTotalEccErrors(self, device: Any, kind: Any, counter: Any, count: Any) -> None:
        if (_number(kind), _number(counter)) != (1, 0):
            raise Says(NOT_SUPPORTED)  # others are not recorded
        count._obj.value = self._answer(device, "ecc_uncorrected_volatile")

    def _nvmlDeviceGetRetiredPagesPendingStatus(self, device: Any, pending: Any) -> None:
        pending._obj.value = self._answer(device, "retired_pages_pending")

    def _nvmlDeviceGetRemappedRows(self, device: Any, *found: Any) -> None:
        for where, value in zip(found, self._answer(device, "remapped_rows"), strict=True):
            where._obj.value = value

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, device: Any, count: Any, found: Any) -> int:
        processes = self._answer(device, "processes")
        room, count._obj.value = count._obj.value, len(processes)
        if room < len(processes):
            return INSUFFICIENT_SIZE
        for at, process in enumerate(processes):
            found[at].pid, found[at].usedGpuMemory = process["pid"], process["used_bytes"]
        return 0

    def _nvmlDeviceGetP2PStatus(self, one: Any, other: Any, index: Any, status: Any) -> None:
        self._gpu(one), self._gpu(other)
        if _number(index) != 2:
            raise Says(NOT_SUPPORTED)  # only NVLink is recorded
        status._obj.value = _answered(self._recording.read()["p2p_nvlink"][_index(one)][_index(other)])

    def _nvmlDeviceGetTopologyCommonAncestor(self, one: Any, other: Any, level: Any) -> None:
        self._gpu(one), self._gpu(other)
        level._obj.value = _answered(self._recording.read()["common_ancestor"][_index(one)][_index(other)])

    # --- events -------------------------------------------------------------------------------------------------

    def _nvmlDeviceGetSupportedEventTypes(self, device: Any, types: Any) -> None:
        types._obj.value = self._answer(device, "event_types")

    def _nvmlEventSetCreate(self, found: Any) -> None:
        number = max(self._sets, default=0) + 1
        self._sets[number] = {}
        _point(found, number << 4)

    def _nvmlDeviceRegisterEvents(self, device: Any, types: Any, events: Any) -> None:
        if _number(types) & ~self._answer(device, "event_types"):
            raise Says(NOT_SUPPORTED)
        self._sets[_address(events) >> 4][_index(device)] = len(self._gpu(device).get("events", []))

    def _nvmlEventSetWait_v2(self, events: Any, data: Any, milliseconds: Any) -> None:
        told = self._sets[_address(events) >> 4]
        for at, number in told.items():
            happened = self._recording.read()["gpus"][at].get("events", [])
            if number < len(happened):
                told[at] += 1
                _point_field(data._obj, "device", _handle(at))
                data._obj.eventType, data._obj.eventData = happened[number]["type"], happened[number]["data"]
                return
        raise Says(TIMEOUT)

    def _nvmlEventSetFree(self, events: Any) -> None:
        del self._sets[_address(events) >> 4]

    # --- MIG ----------------------------------------------------------------------------------------------------

    def _mig_device(self, handle: Any) -> dict[str, Any] | None:
        gpu_instance, compute_instance = _instance_ids(handle)
        if gpu_instance < 0:
            return None
        for instance, compute in _mig_devices(self._gpu(handle)):
            if (instance["id"], compute["id"]) == (gpu_instance, compute_instance):
                return dict(compute)
        raise Says(NOT_FOUND)

    def _nvmlDeviceGetMigMode(self, device: Any, current: Any, pending: Any) -> None:
        current._obj.value, pending._obj.value = self._answer(device, "mig_mode")

    def _nvmlDeviceGetMaxMigDeviceCount(self, device: Any, count: Any) -> None:
        count._obj.value = self._answer(device, "max_mig_devices")

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: Any, found: Any) -> None:
        devices = list(_mig_devices(self._gpu(device)))
        if _number(index) >= len(devices):
            raise Says(NOT_FOUND)
        instance, compute = devices[_number(index)]
        _point(found, _handle(_index(device), instance["id"], compute["id"]))

    def _nvmlDeviceGetGpuInstanceId(self, device: Any, number: Any) -> None:
        self._mig_device(device)
        number._obj.value = _instance_ids(device)[0]

    def _nvmlDeviceGetComputeInstanceId(self, device: Any, number: Any) -> None:
        self._mig_device(device)
        number._obj.value = _instance_ids(device)[1]

    def _nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, device: Any, found: Any) -> None:
        self._mig_device(device)
        _point(found, _handle(_index(device)))

    def _nvmlDeviceGetGpuInstanceProfileInfoV(self, device: Any, number: Any, info: Any) -> None:
        for profile in self._answer(device, "gpu_instance_profiles"):
            if profile["number"] == _number(number):
                found = info._obj
                found.id, found.sliceCount, found.instanceCount = profile["id"], profile["slices"], profile["count"]
                found.memorySizeMB, found.name = profile["memory_megabytes"], profile["name"].encode()
                return
        raise Says(NOT_SUPPORTED)

    def _nvmlDeviceGetGpuInstancePossiblePlacements_v2(
        self, device: Any, profile_id: Any, found: Any, count: Any
    ) -> None:
        profile = _profile(self._gpu(device), _number(profile_id))
        count._obj.value = len(profile["starts"])
        for at, start in enumerate(profile["starts"] if found is not None else ()):
            found[at].start, found[at].size = start, profile["size"]

    def _nvmlDeviceGetGpuInstanceRemainingCapacity(self, device: Any, profile_id: Any, count: Any) -> None:
        gpu = self._gpu(device)
        profile, taken, fit = _profile(gpu, _number(profile_id)), _taken(gpu), 0
        for start in sorted(profile["starts"]):
            if not taken & (places := set(range(start, start + profile["size"]))):
                taken, fit = taken | places, fit + 1
        count._obj.value = fit

    def _nvmlDeviceGetGpuInstances(self, device: Any, profile_id: Any, found: Any, count: Any) -> None:
        gpu = self._gpu(device)
        instances = [i for i in gpu.get("gpu_instances", []) if i["profile_id"] == _number(profile_id)]
        count._obj.value = len(instances)
        for at, instance in enumerate(instances):
            _point_item(found, at, _handle(_index(device), instance["id"]))

    def _nvmlDeviceGetGpuInstanceById(self, device: Any, number: Any, found: Any) -> None:
        _instance(self._gpu(device), _number(number))
        _point(found, _handle(_index(device), _number(number)))

    def _nvmlGpuInstanceGetInfo(self, handle: Any, info: Any) -> None:
        instance = _instance(self._gpu(handle), _instance_ids(handle)[0])
        found = info._obj
        found.id, found.profileId = instance["id"], instance["profile_id"]
        found.placement.start = instance["start"]
        found.placement.size = _profile(self._gpu(handle), instance["profile_id"])["size"]

    def _nvmlDeviceCreateGpuInstance(self, device: Any, profile_id: Any, found: Any) -> None:
        with self._recording.changed() as data:
            gpu = _answered(data["gpus"][_index(device)])
            if gpu["mig_mode"][0] != 1:
                raise Says(NOT_SUPPORTED)
            profile, taken = _profile(gpu, _number(profile_id)), _taken(gpu)
            starts = [s for s in profile["starts"] if not taken & set(range(s, s + profile["size"]))]
            if not starts:
                raise Says(NO_RESOURCES)
            instances = gpu.setdefault("gpu_instances", [])
            number = min(set(range(1, 99)) - {instance["id"] for instance in instances})
            instances.append({"id": number, "profile_id": profile["id"], "start": starts[0], "compute_instances": []})
        _point(found, _handle(_index(device), number))

    def _nvmlGpuInstanceDestroy(self, handle: Any) -> None:
        with self._recording.changed() as data:
            gpu = data["gpus"][_index(handle)]
            instance = _instance(gpu, _instance_ids(handle)[0])
            if instance["compute_instances"]:
                raise Says(IN_USE)
            gpu["gpu_instances"].remove(instance)

    def _nvmlGpuInstanceGetComputeInstanceProfileInfoV(
        self, handle: Any, number: Any, engines: Any, info: Any
    ) -> None:
        gpu = self._gpu(handle)
        slices = _profile(gpu, _instance(gpu, _instance_ids(handle)[0])["profile_id"])["slices"]
        for wanted, profile in COMPUTE_PROFILES.items():
            if profile == _number(number) and wanted <= slices:
                info._obj.id, info._obj.sliceCount, info._obj.instanceCount = profile, wanted, slices // wanted
                return
        raise Says(NOT_SUPPORTED)

    def _nvmlGpuInstanceCreateComputeInstance(self, handle: Any, profile_id: Any, found: Any) -> None:
        with self._recording.changed() as data:
            gpu = data["gpus"][_index(handle)]
            instance = _instance(gpu, _instance_ids(handle)[0])
            profile = _profile(gpu, instance["profile_id"])
            if instance["compute_instances"] or COMPUTE_PROFILES[profile["slices"]] != _number(profile_id):
                raise Says(NO_RESOURCES)
            total = profile["memory_megabytes"] << 20
            instance["compute_instances"].append(
                {
                    "id": 0,
                    "uuid": f"MIG-{uuid.uuid4()}",
                    "name": f"{gpu['name']} {profile['name']}",
                    "memory": {"total": total, "free": total, "used": 0},
                }
            )
        _point(found, _handle(_index(handle), _instance_ids(handle)[0], 0))

    def _nvmlGpuInstanceGetComputeInstanceById(self, handle: Any, number: Any, found: Any) -> None:
        instance = _instance(self._gpu(handle), _instance_ids(handle)[0])
        if _number(number) not in {compute["id"] for compute in instance["compute_instances"]}:
            raise Says(NOT_FOUND)
        _point(found, _handle(_index(handle), instance["id"], _number(number)))

    def _nvmlComputeInstanceDestroy(self, handle: Any) -> None:
        gpu_instance, compute_instance = _instance_ids(handle)
        with self._recording.changed() as data:
            instance = _instance(data["gpus"][_index(handle)], gpu_instance)
            (compute,) = [c for c in instance["compute_instances"] if c["id"] == compute_instance] or [None]
            if compute is None:
                raise Says(NOT_FOUND)
            if compute.get("in_use"):
                raise Says(IN_USE)
            instance["compute_instances"].remove(compute)


def play(source: Path | dict[str, Any], fail: Callable[[str, int], int] | None = None) -> Library:
    """From now on the module pynvml of this process asks this recording."""
    import pynvml

    library = Library(Recording(source), fail)
    pynvml.nvmlLib = library
    pynvml._nvmlGetFunctionPointer_cache.clear()
    return library


def module(source: Path | dict[str, Any]) -> Any:
    """A copy of the module pynvml that asks this recording, while the one that is imported stays as it is."""
    import pynvml

    name = f"pynvml_played_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(name, pynvml.__file__)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = found = importlib.util.module_from_spec(spec)  # it looks for itself there
    spec.loader.exec_module(found)
    found.nvmlLib = Library(Recording(source))  # type: ignore[attr-defined]
    return found


@contextlib.contextmanager
def playing(source: Path | dict[str, Any], fail: Callable[[str, int], int] | None = None) -> Iterator[Library]:
    """As `play`, until the end of the block; all that was opened must be closed by then."""
    import pynvml

    before = pynvml.nvmlLib
    try:
        yield (library := play(source, fail))
        assert library.open == 0, "NVML was not shut down"
    finally:
        pynvml.nvmlLib = before
        pynvml._nvmlGetFunctionPointer_cache.clear()


def plain_gpus(names: list[str]) -> dict[str, Any]:
    """A recording of healthy GPUs of these UUIDs that have nothing to do with each other."""
    template = json.loads((RECORDINGS / "pcie4.json").read_text())
    gpus = [
        {**template["gpus"][0], "name": "Test H100", "uuid": name, "bus_id": f"00000000:{at:02X}:00.0"}
        | {"memory": {"total": 80 << 30, "free": 80 << 30, "used": 0}}
        for at, name in enumerate(names)
    ]
    none = [[{"error": NOT_SUPPORTED}] * len(names)] * len(names)
    return {**template, "gpus": gpus, "p2p_nvlink": none, "common_ancestor": none}


def _mig_devices(gpu: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for instance in gpu.get("gpu_instances", []):
        for compute in instance["compute_instances"]:
            yield instance, compute


def _profile(gpu: dict[str, Any], profile_id: int) -> dict[str, Any]:
    for profile in _answered(gpu.get("gpu_instance_profiles", {"error": NOT_SUPPORTED})):
        if profile["id"] == profile_id:
            found: dict[str, Any] = profile
            return found
    raise Says(INVALID_ARGUMENT)


def _instance(gpu: dict[str, Any], number: int) -> dict[str, Any]:
    for instance in _answered(gpu).get("gpu_instances", []):
        if instance["id"] == number:
            found: dict[str, Any] = instance
            return found
    raise Says(NOT_FOUND)


def _taken(gpu: dict[str, Any]) -> set[int]:
    """The memory slices that instances have."""
    taken = set[int]()
    for instance in gpu.get("gpu_instances", []):
        size = _profile(gpu, instance["profile_id"])["size"]
        taken |= set(range(instance["start"], instance["start"] + size))
    return taken


def _answered(answer: Any) -> Any:
    if isinstance(answer, dict) and set(answer) <= {"error", "about"} and "error" in answer:
        raise Says(answer["error"])
    return answer


def _number(value: Any) -> int:
    return int(getattr(value, "value", value))


def _handle(gpu: int, gpu_instance: int = -1, compute_instance: int = -1) -> int:
    return (gpu + 1) << 32 | (gpu_instance + 1) << 16 | (compute_instance + 1) << 4


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _index(handle: Any) -> int:
    try:
        return (_address(handle) >> 32) - 1
    except (ctypes.ArgumentError, TypeError):
        return -1  # no handle is the first argument


def _instance_ids(handle: Any) -> tuple[int, int]:
    address = _address(handle)
    return (address >> 16 & 0xFFFF) - 1, (address >> 4 & 0xFFF) - 1


def _point(reference: Any, address: int) -> None:
    """Write a handle where the caller wants it."""
    ctypes.memmove(ctypes.byref(reference._obj), ctypes.byref(ctypes.c_void_p(address)), 8)


def _point_field(structure: Any, name: str, address: int) -> None:
    field = getattr(type(structure), name)
    value = ctypes.c_void_p(address)
    ctypes.memmove(ctypes.addressof(structure) + field.offset, ctypes.byref(value), 8)


def _point_item(array: Any, at: int, address: int) -> None:
    ctypes.memmove(ctypes.addressof(array) + 8 * at, ctypes.byref(ctypes.c_void_p(address)), 8)
