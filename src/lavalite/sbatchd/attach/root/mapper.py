"""The kernel's device mapper, by dmsetup: a device for a disk, which stays while what lies below it changes.

    linear over one disk ──► mirror over two: the first is copied to the second, what is written goes to both
                         ◄── linear over either of the two

Once everything is copied, the mirror's table says so itself (`nosync`: nothing is to be copied), and that is what
counts from then on: what cannot be written to the first disk counts with the kernel as not copied, too.

A table is loaded beside the one in use, and put in its place by one call: a crash leaves the one or the other. What
failed on one of two disks is held until there is another table, and then done on that, so nothing is lost on the way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.root.request import run

PREFIX = "lavalite-"
REGION_SECTORS = 1024
"""What is copied at once, and what writes to it wait for: 512 KiB, 4 ms at 1 Gbit/s."""
ALIVE = "A"


@dataclass(slots=True, frozen=True)
class Mapped:
    """A device of ours. `disks` are what lies below, as `43:0`: the one that is copied from first. `is_whole`: all
    of it has been copied to the second.
    """

    name: str
    sectors: int
    disks: tuple[str, ...]
    is_whole: bool = False

    @property
    def path(self) -> str:
        return f"/dev/mapper/{self.name}"


@dataclass(slots=True, frozen=True)
class Copied:
    """How far a mirror is, in regions, and whether its two disks answer."""

    done: int
    total: int
    first_lives: bool
    second_lives: bool


def is_usable(target: str = "linear") -> bool:
    """Whether this node can make such devices; the kernel's modules are loaded if there are any."""
    if not Path("/dev/mapper/control").exists() and not _tried("modprobe", "dm-mod"):
        return False
    if target == "linear":
        return _has(target)
    return _has(target) or (_tried("modprobe", f"dm-{target}") and _has(target))


def name_of(slug: str) -> str:
    return f"{PREFIX}{slug}"


def number(device: str) -> str:
    """`43:0`. Raises OSError."""
    found = Path(device).stat().st_rdev
    return f"{os.major(found)}:{os.minor(found)}"


def sectors(device: str) -> int:
    """Of 512 bytes."""
    return int(Path("/sys/class/block", Path(device).name, "size").read_text())


def over(device: str) -> Mapped | None:
    """Our device that lies over that one."""
    return _first(lambda mapped: number(device) in mapped.disks)


def create(name: str, device: str) -> Mapped:
    """Over one disk. Raises LavaLiteError."""
    run(["dmsetup", "create", name], text=_linear(sectors(device), number(device)))
    found = _first(lambda mapped: mapped.name == name)
    if found is None:
        raise LavaLiteError(f"dmsetup made no device {name}, and does not say why")
    return found


def keep(mapped: Mapped, disk: str, size: int = 0) -> None:
    """From now on it lies over that disk alone, a number, with so many sectors or as many as before."""
    _swap(mapped, _linear(size or mapped.sectors, disk))


def mirror(mapped: Mapped, device: str) -> None:
    """Begin to copy to that device."""
    _swap(mapped, _mirror(mapped.sectors, f"core 1 {REGION_SECTORS}", mapped.disks[0], number(device)))


def note_whole(mapped: Mapped) -> None:
    """Of a mirror that has copied everything. What has failed since on either disk is done again, on both."""
    _swap(mapped, _mirror(mapped.sectors, f"core 2 {REGION_SECTORS} nosync", *mapped.disks))


def copied(mapped: Mapped) -> Copied:
    """Of a mirror. `0 131072 mirror 2 43:0 7:1 128/128 1 AA 1 core`"""
    words = run(["dmsetup", "status", mapped.name]).split()
    rest = words[words.index("mirror") + 1 :]
    done, _, total = rest[1 + int(rest[0])].partition("/")
    health = rest[3 + int(rest[0])]
    return Copied(int(done), int(total), health[0] == ALIVE, health[1] == ALIVE)


def remove(mapped: Mapped) -> None:
    """Raises LavaLiteError where something has it open."""
    run(["dmsetup", "remove", "--retry", mapped.name])


def _linear(size: int, disk: str) -> str:
    return f"0 {size} linear {disk} 0\n"


def _mirror(size: int, log: str, first: str, second: str) -> str:
    return f"0 {size} mirror {log} 2 {first} 0 {second} 0 1 handle_errors\n"


def _swap(mapped: Mapped, table: str) -> None:
    run(["dmsetup", "load", mapped.name], text=table)
    # Without the file system being frozen: nothing it holds has to be written first. And what is under way is begun
    # anew on the new table, not failed. Nobody is waited for: udev may want to read what does not answer.
    run(["dmsetup", "resume", "--noudevsync", "--nolockfs", "--noflush", mapped.name])


def _first(wanted: Callable[[Mapped], bool]) -> Mapped | None:
    if not Path("/dev/mapper/control").exists():
        return None
    try:
        lines = run(["dmsetup", "table"], check=False).splitlines()
    except LavaLiteError:
        return None  # without the program there is none of ours
    found = (_read(line) for line in lines if line.startswith(PREFIX))
    return next((mapped for mapped in found if mapped is not None and wanted(mapped)), None)


def _read(line: str) -> Mapped | None:
    """`lavalite-x: 0 131072 linear 43:0 0`, or `… mirror core 1 1024 2 43:0 0 7:1 0 1 handle_errors`."""
    name, _, table = line.partition(": ")
    words = table.split()
    if len(words) < 4:
        return None
    size, kind, rest = int(words[1]), words[2], words[3:]
    if kind == "linear":
        return Mapped(name, size, (rest[0],))
    if kind != "mirror":
        return None
    after = 2 + int(rest[1])
    count = int(rest[after])
    return Mapped(name, size, tuple(rest[after + 1 : after + 1 + 2 * count : 2]), "nosync" in rest[2:after])


def _has(target: str) -> bool:
    try:
        said = run(["dmsetup", "targets"], check=False)
    except LavaLiteError:
        return False
    return any(line.split()[:1] == [target] for line in said.splitlines())


def _tried(*command: str) -> bool:
    try:
        run(command, check=False)
    except LavaLiteError:
        return False
    return True
