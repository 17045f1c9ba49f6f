"""NVML as a machine with as many GPUs as FAKE_GPUS names has it: on the path of a process before the real one."""

import os
from types import SimpleNamespace

NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 2, 0
NAMES = os.environ.get("FAKE_GPUS", "").split(",")


class NVMLError(Exception):
    pass


def nvmlInit() -> None:
    pass


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return len(NAMES)


def nvmlSystemGetDriverVersion() -> str:
    return "570.1"


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetPciInfo(gpu: int) -> SimpleNamespace:
    return SimpleNamespace(busId=f"00000000:0{gpu}:00.0")


def nvmlDeviceGetUUID(gpu: int) -> str:
    return NAMES[gpu]


def nvmlDeviceGetName(gpu: int) -> str:
    return "Test H100"


def nvmlDeviceGetMemoryInfo(gpu: int) -> SimpleNamespace:
    return SimpleNamespace(total=80 * 2**30)


def nvmlDeviceGetP2PStatus(one: int, other: int, index: int) -> int:
    raise NVMLError("not supported")


def nvmlDeviceGetMigMode(gpu: int) -> tuple[int, int]:
    raise NVMLError("not supported")
