"""A host with a kernel of its own: a machine in QEMU. The same verbs as hosts.py has for the others.

Emulated, without KVM: a test machine is often a virtual one itself, and KVM within is absent there, or hangs. The
disk is a whole copy of the image, sparse, in a raw file that QEMU writes to without waiting: what the host wrote is
this machine's from then on, and survives the plug being pulled. What the host's own kernel had not written is lost,
as on a machine of metal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from . import identity, network
from .image import machine_image
from .needs import LabError, why_no_kernel
from .processes import Process
from .state import Host, State

READY_SECONDS = 300.0
CPUS = 2
MEMORY_MIB = 1024
KERNEL_OPTIONS = "console=ttyS0 loglevel=4 net.ifnames=0 mitigations=off systemd.getty_auto=no systemd.show_status=no"


def check(root: Path) -> None:
    """Build what they boot from, before anything waits for it. Raises LabError where that cannot be."""
    if reason := why_no_kernel():
        raise LabError(f"{reason[0].upper()}{reason[1:]}.")
    machine_image(root)


def prepare(state: State, host: Host) -> None:
    """A new disk, and what writes the host's name, address, identity and keys onto it at its first start."""
    disk, image = state.disk(host), machine_image(state.root)
    identity.write(state, host, disk / "identity")
    image.first_steps(disk / "identity", disk / "initramfs.cpio")
    copy = ["cp", "--sparse=always", "--reflink=auto", str(image.disk), str(disk / "disk")]
    subprocess.run(copy, check=True)


def start(state: State, host: Host) -> None:
    """Power on; returns at once, with `host.process` set."""
    disk, image = state.disk(host), machine_image(state.root)
    network.lay_cable(state.name, host.number)
    command = [
        *network.inside(state.name),
        "qemu-system-x86_64",
        *("-name", host.name),
        *("-machine", "q35,sata=off,smbus=off"),
        *("-accel", "tcg,thread=multi"),
        *("-cpu", "Nehalem"),  # newer ones take a third longer to emulate
        *("-smp", str(CPUS)),
        *("-m", str(MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-serial", "stdio"),
        *("-kernel", str(image.kernel)),
        *("-initrd", str(disk / "initramfs.cpio")),
        *("-append", KERNEL_OPTIONS),
        *("-drive", f"file={disk / 'disk'},format=raw,if=virtio,cache=unsafe"),
        *("-netdev", f"tap,id=cable,ifname={network.cable(host.number)},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=cable,romfile=,mac=52:54:00:12:00:{host.number:02x}"),
        *("-device", "virtio-rng-pci"),
    ]
    host.process = Process.spawn(command, os.environ, state.console(host))


def kill(state: State, host: Host) -> None:
    """The plug is pulled."""
    if host.process is not None:
        host.process.kill()
        host.process.reap()
    network.pull_out(state.name, host.number)
    host.process = None


def discard(state: State, host: Host) -> None:
    """The disk goes."""
    shutil.rmtree(state.disk(host), ignore_errors=True)
