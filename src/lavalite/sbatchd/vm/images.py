"""The images that virtual machines start from, as an operator lays them down below images_path.

NAME.qcow2, NAME.raw, NAME.img, NAME      a disk that boots by itself
NAME/disk.qcow2, NAME/disk                the same; beside it may lie
NAME/kernel, NAME/initrd, NAME/cmdline    what QEMU starts instead of the disk's own loader
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lavalite.base.errors import InputError

QCOW2_MAGIC = b"QFI\xfb"
CMDLINE = "root=/dev/vda1 ro console=ttyS0"


@dataclass(slots=True, frozen=True)
class Image:
    disk: Path
    format: str
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""


def find_image(images: Path, name: str) -> Image:
    """Raises InputError where there is none of that name."""
    folder = images / name
    choices = [*(images / f"{name}{suffix}" for suffix in (".qcow2", ".raw", ".img", "")),
               folder / "disk.qcow2", folder / "disk"]  # fmt: skip
    disk = next((each for each in choices if each.is_file()), None)
    if disk is None:
        raise InputError(
            f"there is no image {name} below {images}",
            field="vm.image",
            hint=f"Lay it down as {images / name}.qcow2.",
        )
    kernel, initrd, cmdline = folder / "kernel", folder / "initrd", folder / "cmdline"
    try:
        with disk.open("rb") as file:
            kind = "qcow2" if file.read(4) == QCOW2_MAGIC else "raw"
        if not kernel.is_file():
            return Image(disk, kind)
        words = cmdline.read_text(encoding="utf-8").strip() if cmdline.is_file() else CMDLINE
        return Image(disk, kind, kernel, initrd if initrd.is_file() else None, words)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the image {name} cannot be read: {error}", field="vm.image") from None
