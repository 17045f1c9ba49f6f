"""Which disk has taken the place of which: durable in the machine's folder, and what follows from it.

The guest knows a disk by the serial of the first one in its place, and finds its file system and its swap by that. So
a disk that has taken a place keeps that serial, also when QEMU is started anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.vm.files import replace
from lavalite.sbatchd.vm.wanted import Disk

PLACES = "disks.json"


@dataclass(slots=True, frozen=True)
class Taken:
    """Of a disk that takes a place: the guest's serial there, the disk before it, whether it holds all of that.

    Nothing is `before` it once it is alone there.
    """

    place: str
    before: str
    whole: bool = False


Places = dict[str, Taken]
"""By the serial of the disk that is, or is to be, in the place."""


def load(folder: Path) -> Places:
    """Raises LavaLiteError."""
    path = folder / PLACES
    try:
        return {name: Taken(**taken) for name, taken in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise LavaLiteError(f"{path} cannot be read ({error})") from None


def save(folder: Path, places: Mapping[str, Taken]) -> None:
    """Whole or not at all. Raises OSError."""
    replace(folder / PLACES, json.dumps({name: asdict(taken) for name, taken in sorted(places.items())}, indent=1))


def place_of(disk: Disk, places: Mapping[str, Taken]) -> str:
    """The serial by which the guest knows it."""
    if taken := places.get(disk.serial):
        return taken.place
    before = places.get(disk.place)
    return before.place if before else disk.place


def follows(disk: Disk, wanted: Iterable[Disk], places: Mapping[str, Taken], behind: Mapping[str, str]) -> bool:
    """Whether another disk is in its place, or is to be there first. `behind`: serials of disks, by the guest's."""
    taken = places.get(disk.serial)
    if disk.serial in behind.values() or not (taken.before if taken else disk.mirrors):
        return False
    return place_of(disk, places) in behind or any(disk.place == other.serial for other in wanted if other != disk)
