"""Whether NVIDIA's GPUs are well, how much they are used, and by whom: as NVML tells it.

A GPU is sick by what it counts (uncorrectable errors, rows and pages that wait to be taken out, or could not be), by
what it reports (XID errors of its own, not of programs), or since it does not answer. It is well again when its
counters are clean for some looks, as they are after a reset; after a critical XID only when the machine has booted.
All but `judge` and `why_sick` is blocking: call it in a worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lavalite.providers.nvml_calls import asked, opened, text

CLEAN_LOOKS = 3
"""So often it must look well, one look after the other, before it counts as well again."""
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""Faults of a program and not of the GPU, as NVIDIA's own device plugin for Kubernetes takes them."""
MOST_EVENTS = 1000
"""That are read in one look."""


@dataclass(slots=True, frozen=True)
class Counters:
    """None, or False, where the GPU counts no such thing."""

    ecc_uncorrected: int | None = None
    """Since its driver was loaded or it was reset."""
    pages_pending: bool = False
    rows_pending: bool = False
    rows_failed: bool = False


@dataclass(slots=True, frozen=True)
class GpuState:
    """`utilization`: gpu, memory (used of all), power (of its limit), each from 0 to 1, and temperature_celsius; of
    these what the GPU tells. `sick` is empty, or why nothing new should be placed on it."""

    id: str
    utilization: Mapping[str, float] = field(default_factory=dict)
    pids: tuple[int, ...] = ()
    sick: str = ""
    answers: bool = True


@dataclass(slots=True, frozen=True)
class Verdict:
    """`reason` is empty for a GPU that is well; `clean` are the looks since, in which nothing was seen."""

    reason: str = ""
    clean: int = 0
    until_boot: bool = False


WELL = Verdict()


def judge(before: Verdict, seen: str, reported: str) -> Verdict:
    """The next verdict. `seen` is why it looks sick now, `reported` a critical event since the last look."""
    if before.until_boot:
        return before
    if reported:
        return Verdict(reported, until_boot=True)
    if seen:
        return Verdict(seen)
    if before.reason and before.clean + 1 < CLEAN_LOOKS:
        return replace(before, clean=before.clean + 1)
    return WELL


def why_sick(counters: Counters) -> str:
    """The worst that its counters say of it; empty if it is well."""
    if counters.rows_failed:
        return "a row of its memory is broken, and none is left to take its place; have it replaced"
    if counters.ecc_uncorrected:
        return f"{counters.ecc_uncorrected} uncorrectable memory errors since it was reset; reset it when it is idle"
    if counters.rows_pending:
        return "a broken row of its memory waits to be replaced; reset it when it is idle"
    if counters.pages_pending:
        return "a broken page of its memory waits to be taken out; reset it when it is idle"
    return ""


def read_counters(nvml: Any, gpu: Any) -> Counters:
    """Raises NVMLError if the GPU is lost."""
    uncorrected = getattr(nvml, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", 1)
    errors = asked(nvml, "nvmlDeviceGetTotalEccErrors", gpu, uncorrected, getattr(nvml, "NVML_VOLATILE_ECC", 0))
    _, _, rows_pending, rows_failed = asked(nvml, "nvmlDeviceGetRemappedRows", gpu) or (0, 0, 0, 0)
    pages_pending = asked(nvml, "nvmlDeviceGetRetiredPagesPendingStatus", gpu)
    return Counters(errors, bool(pages_pending), bool(rows_pending), bool(rows_failed))


def read_state(nvml: Any, gpu: Any) -> GpuState:
    """Raises NVMLError if it does not even say its UUID, or is lost."""
    gpu_id = text(nvml.nvmlDeviceGetUUID(gpu))
    found: dict[str, float] = {}
    if (rates := asked(nvml, "nvmlDeviceGetUtilizationRates", gpu)) is not None:
        found["gpu"] = rates.gpu / 100
    if (memory := asked(nvml, "nvmlDeviceGetMemoryInfo", gpu)) is not None and memory.total:
        found["memory"] = memory.used / memory.total
    power, limit = (asked(nvml, f"nvmlDeviceGet{what}", gpu) for what in ("PowerUsage", "EnforcedPowerLimit"))
    if power is not None and limit:
        found["power"] = power / limit
    celsius = asked(nvml, "nvmlDeviceGetTemperature", gpu, getattr(nvml, "NVML_TEMPERATURE_GPU", 0))
    if celsius is not None:
        found["temperature_celsius"] = float(celsius)
    processes = asked(nvml, "nvmlDeviceGetComputeRunningProcesses", gpu) or []
    return GpuState(gpu_id, found, tuple(p.pid for p in processes), why_sick(read_counters(nvml, gpu)))


class HealthWatch:
    """Looks at all GPUs, again and again, and remembers what they were sick of. For one thread at a time.

    With `events` it also hears of critical XIDs; NVML then stays open between looks, but for GPUs that are sick:
    these an operator must be able to reset.
    """

    def __init__(self, nvml: Any = None, *, events: bool) -> None:
        self._nvml = nvml
        self._verdicts: dict[str, Verdict] = {}
        self._known: dict[str, int] = {}
        """GPU → the index at which it was seen last."""
        self._ears = _Ears() if events else None

    def look(self, warn: Callable[[str], None]) -> dict[str, GpuState]:
        """By id, all that answer, and those that once did; their `sick` is the verdict."""
        with opened(self._nvml, warn) as nvml:
            found, silent = _states(nvml) if nvml is not None else ({}, {})
            reported = self._ears.heard() if self._ears is not None else {}
            for at, state in found.values():
                self._known[state.id] = at
            for gpu, at in self._known.items():
                if gpu not in found:
                    said = silent.get(at, "it is there no more" if nvml is not None else "NVML does not answer")
                    found[gpu] = at, GpuState(gpu, sick=f"{said}; it may have to be reset", answers=False)
            for gpu, (_, state) in found.items():
                self._verdicts[gpu] = judge(self._verdicts.get(gpu, WELL), state.sick, reported.get(gpu, ""))
            states = {g: replace(state, sick=self._verdicts[g].reason) for g, (_, state) in found.items()}
            if self._ears is not None and nvml is not None:
                self._ears.listen(nvml, [gpu for gpu, state in states.items() if not state.sick])
        return states

    def add(self, sick_until_boot: Mapping[str, str]) -> None:
        """What another watch of this boot has heard: id → reason."""
        for gpu, why in sick_until_boot.items():
            if not self._verdicts.get(gpu, WELL).until_boot:
                self._verdicts[gpu] = Verdict(why, until_boot=True)

    @property
    def sick(self) -> dict[str, str]:
        """Id → reason, as of the last look."""
        return {gpu: verdict.reason for gpu, verdict in self._verdicts.items() if verdict.reason}

    @property
    def sick_until_boot(self) -> dict[str, str]:
        return {gpu: verdict.reason for gpu, verdict in self._verdicts.items() if verdict.until_boot}

    def close(self) -> None:
        if self._ears is not None:
            self._ears.close()


def _states(nvml: Any) -> tuple[dict[str, tuple[int, GpuState]], dict[int, str]]:
    """Id → index and state of those that answer; index → what NVML says of the others."""
    found, silent = {}, {}
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:
        return {}, {}
    for at in range(count):
        try:
            state = read_state(nvml, nvml.nvmlDeviceGetHandleByIndex(at))
            found[state.id] = at, state
        except nvml.NVMLError as error:
            silent[at] = f"NVML says {error}"
    return found, silent


class _Ears:
    """An event set on GPUs that are well. It holds NVML open as long as there is one."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._events: Any = None
        self._of: list[str] = []

    def heard(self) -> dict[str, str]:
        """GPU → the first critical XID since the last time."""
        found: dict[str, str] = {}
        if self._nvml is None:
            return found
        try:
            for _ in range(MOST_EVENTS):
                event = self._nvml.nvmlEventSetWait(self._events, 0)
                if event.eventType == self._nvml.nvmlEventTypeXidCriticalError:
                    gpu, xid = text(self._nvml.nvmlDeviceGetUUID(event.device)), int(event.eventData)
                    if xid not in APPLICATION_XIDS:
                        found.setdefault(gpu, f"its driver reported XID {xid}; it is trusted again after a boot")
        except self._nvml.NVMLError as error:
            if type(error).__name__ != "NVMLError_Timeout":
                self.close()  # one that it listened to is lost, most likely; made anew without that one
        return found

    def listen(self, nvml: Any, gpus: list[str]) -> None:
        """To these from now on."""
        if gpus == self._of and self._nvml is not None:
            return
        self.close()
        if not gpus or not hasattr(nvml, "nvmlEventSetCreate"):
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return
        self._nvml, self._of = nvml, gpus
        try:
            self._events = nvml.nvmlEventSetCreate()
            for gpu in gpus:
                handle, xid = nvml.nvmlDeviceGetHandleByUUID(gpu), nvml.nvmlEventTypeXidCriticalError
                if (asked(nvml, "nvmlDeviceGetSupportedEventTypes", handle) or 0) & xid:
                    nvml.nvmlDeviceRegisterEvents(handle, xid, self._events)
        except nvml.NVMLError:
            self.close()

    def close(self) -> None:
        nvml, events = self._nvml, self._events
        self._nvml, self._events, self._of = None, None, []
        if nvml is None:
            return
        if events is not None:
            asked(nvml, "nvmlEventSetFree", events, lost=False)
        asked(nvml, "nvmlShutdown", lost=False)
