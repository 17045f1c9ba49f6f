"""What sbatchd.conf says of virtual machines."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from lavalite.base.config import Config

AUTO, KVM, TCG = "auto", "kvm", "tcg"


class VmSettings(Config):
    """Fields of sbatchd.conf. Paths are absolute; times in seconds."""

    images_path: Path = Path("/var/lib/lavalite/images")
    """Where the images of virtual machines lie: NAME.qcow2, NAME.raw, or a folder NAME (see images.py)."""
    vm_bridge: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,15}$")
    """The bridge that virtual machines are connected to. Without one this node runs none."""
    vm_accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    """`auto`: KVM where it works, or emulation, which is ten times slower."""
    vm_user: str = Field(default="", pattern=r"^[a-z_]?[a-z0-9_-]{0,31}$")
    """Whom QEMU runs as; empty is sbatchd's own user. A confined sbatchd may not reach the sockets of another."""
    vm_boot_seconds: float = Field(default=300.0, gt=0, le=3600)
    """How long a guest may take until its ssh port answers."""
    vm_stop_seconds: float = Field(default=30.0, ge=0, le=3600)
    """How long a guest may take to shut down before it is switched off."""
    vm_resize_seconds: float = Field(default=60.0, gt=0, le=3600)
    """How long a guest may take to let go of memory, CPUs or a disk."""
    vm_reconnect_seconds: int = Field(default=60, ge=0, le=3600)
    """How long a guest waits for a disk of another node that is away before it is told of an error."""
    qemu_path: Path = Path("/usr/bin/qemu-system-x86_64")
    qemu_img_path: Path = Path("/usr/bin/qemu-img")
