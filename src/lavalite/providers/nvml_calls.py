"""How NVML is asked: opened and closed, and what it says where a GPU does not have what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

WITHOUT_GPUS = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
"""What NVML says on a machine without NVIDIA's driver: no fault, just no GPUs."""
LOST = ("NVMLError_GpuIsLost", "NVMLError_ResetRequired", "NVMLError_GpuNotFound", "NVMLError_Unknown")
"""What it says of a GPU that nothing can be had of any more, whatever was asked."""


@contextmanager
def opened(nvml: Any, warn: Callable[[str], None]) -> Iterator[Any]:
    """The module pynvml, initialised; None where there is none, or no driver. What is wrong else is told to `warn`.

    `nvml` stands in for the module in tests.
    """
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            yield None
            return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if type(error).__name__ not in WITHOUT_GPUS:
            warn(f"GPUs are not offered: NVML says {error}")
        yield None
        return
    try:
        yield nvml
    finally:
        asked(nvml, "nvmlShutdown", lost=False)


def asked(nvml: Any, name: str, *arguments: Any, lost: bool = True) -> Any:
    """What the function answers; None where this NVML or this GPU does not have that.

    Raises NVMLError if the GPU is lost; not even then without `lost`.
    """
    function = getattr(nvml, name, None)
    if function is None:
        return None
    try:
        return function(*arguments)
    except nvml.NVMLError as error:
        if lost and type(error).__name__ in LOST:
            raise
    except getattr(nvml, "NVMLLibraryMismatchError", ()):
        pass  # a driver that is older than the function
    return None


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
