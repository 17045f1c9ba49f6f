"""Whether KVM works here. It is there and hangs on some machines that are virtual ones themselves, so it is tried."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from lavalite.base.errors import InputError
from lavalite.sbatchd.vm.settings import AUTO, KVM, TCG, VmSettings

PROBE_SECONDS = 5.0
SPOKEN = b"SeaBIOS"
"""The first word of QEMU's firmware on its debugging port: the guest's CPU has run."""


async def accelerator(settings: VmSettings) -> str:
    """KVM or TCG. Raises InputError where KVM must be and does not work."""
    if settings.vm_accelerator == TCG:
        return TCG
    why = await why_no_kvm(settings.qemu_path)
    if why and settings.vm_accelerator != AUTO:
        hint = "Mend that, or write `auto` or `tcg`."
        raise InputError(f"KVM does not work here: {why}", field="vm_accelerator", hint=hint)
    return TCG if why else KVM


async def why_no_kvm(qemu: Path, device: Path = Path("/dev/kvm")) -> str:
    """Empty where it works: a machine with nothing but its firmware said its first word."""
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} cannot be opened"
    command = [str(qemu), "-accel", "kvm", "-machine", "q35", "-m", "32", "-nodefaults", "-no-user-config",
               "-display", "none", "-chardev", "stdio,id=said",
               "-device", "isa-debugcon,iobase=0x402,chardev=said"]  # fmt: skip
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        probe = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=pipe, stderr=nothing)
    except OSError as error:
        return f"{qemu}: {error.strerror}"
    assert probe.stdout
    said = b""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            while SPOKEN not in said and (more := await probe.stdout.read(4096)):
                said = said[-len(SPOKEN) :] + more
    except TimeoutError:
        return f"a guest did not run within {PROBE_SECONDS:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            probe.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROBE_SECONDS):
                await probe.wait()
    return "" if SPOKEN in said else "QEMU ended at once"
