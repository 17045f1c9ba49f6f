"""Devices of kinds that an operator named, found by their paths.

Each path that exists is a device, and stands for itself: nothing is opened, and nothing asked of it. Two paths to one
device are one device, of the kind that is named first: else it would be given out twice.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lavalite.model.resources import Device

Asked = tuple[Sequence[str], str]
"""Paths, in which `*` and `?` stand for parts of names; and the model of what is there."""


def find_special(asked: Mapping[str, Asked], root: Path, warn: Callable[[str], None]) -> dict[str, list[Device]]:
    """The devices of each kind, in the order of their paths. Their ids are the paths, without `root`."""
    found: dict[str, list[Device]] = {}
    owner: dict[object, str] = {}
    base = glob.escape(str(root)).rstrip("/")
    for kind, (patterns, model) in asked.items():
        devices = found.setdefault(kind, [])
        paths = [path for pattern in patterns for path in sorted(glob.glob(f"{base}/{pattern.lstrip('/')}"))]  # noqa: PTH207
        for path in dict.fromkeys(paths):
            name = "/" + os.path.relpath(path, root)
            if "," in name or ";" in name or not name.isprintable():
                warn(f"{kind} {name!r} is not offered: no device is called that")
            elif (thing := _identity(path)) is None:
                warn(f"{kind} {name} is not offered: it cannot be looked at")
            elif thing in owner:
                warn(f"{kind} {name} is not offered: it is {owner[thing]} already")
            else:
                owner[thing] = f"{kind} {name}"
                devices.append(Device(id=name, model=model, numa_node=_numa_node(root, path)))
    return found


def _identity(path: str) -> object:
    """What two paths to the same device have in common; None of what is gone by now."""
    try:
        known = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    if stat.S_ISCHR(known.st_mode) or stat.S_ISBLK(known.st_mode):
        return stat.S_IFMT(known.st_mode), known.st_rdev
    return os.path.realpath(path)


def _numa_node(root: Path, path: str) -> int:
    """That of the device's card, where the kernel knows it."""
    try:
        known = os.stat(path)  # noqa: PTH116
        family = "block" if stat.S_ISBLK(known.st_mode) else "char"
        number = f"{os.major(known.st_rdev)}:{os.minor(known.st_rdev)}"
        return int((root / f"sys/dev/{family}/{number}/device/numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return -1
