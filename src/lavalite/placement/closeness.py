"""How near GPUs of one node are to each other, and which of them are nearest.

    nvlink    they reach each other over NVLink, directly or by a switch
    pcie      they are behind the same PCIe root port: what they send each other does not pass the processor
    numa      they are on the same NUMA node

Each device is on one island of each level, or on none that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from lavalite.model.resources import Device

LEVELS = ("nvlink", "pcie", "numa")
"""The nearest first."""


class Near(NamedTuple):
    """The island that a device is on, by level; empty where it is on none."""

    nvlink: str = ""
    pcie: str = ""
    numa: str = ""


NOWHERE = Near()

Item = TypeVar("Item")


def near_of(device: Device) -> Near:
    """As the node's agent told."""
    numa = str(device.numa_node) if device.numa_node >= 0 else ""
    return Near(device.attributes.get("nvlink", ""), device.attributes.get("pcie", ""), numa)


def shared_level(places: Sequence[Near]) -> str:
    """The nearest level of which all are on one island; empty if there is none."""
    for at, level in enumerate(LEVELS):
        islands = {place[at] for place in places}
        if len(islands) == 1 and "" not in islands:
            return level
    return ""


def together(places: Sequence[Near], level: str, each: int) -> int:
    """How many times so many of them, each time of one island of the level, can be had at once."""
    at = LEVELS.index(level)
    islands = [place[at] for place in places if place[at]]
    return sum(islands.count(island) // each for island in set(islands))


def largest(places: Sequence[Near], level: str) -> int:
    """How many are on the largest island of the level."""
    at = LEVELS.index(level)
    islands = [place[at] for place in places if place[at]]
    return max(map(islands.count, islands), default=0)


def nearest(items: Sequence[Item], count: int, near: Callable[[Item], Near], demanded: str = "") -> list[Item]:
    """So many of the items that are as near to each other as can be, on the smallest islands that have enough.

    On an island of the `demanded` level there must be enough. Where nothing is known they are taken in their order.
    """
    if count <= 0:
        return []
    if demanded:
        enough = [group for group in _islands(items, LEVELS.index(demanded), near) if len(group) >= count]
        chosen = [nearest(group, count, near) for group in enough]
        ranks = [_rank(group, near) for group in chosen]
        best = min(range(len(chosen)), key=lambda number: (ranks[number], len(enough[number])))
        return chosen[best]
    for at in range(len(LEVELS)):
        fitting = [group for group in _islands(items, at, near) if len(group) >= count]
        if fitting:
            # All of those share this level. Those that share others too are nearer still, the next level first.
            chosen = [_within(group, count, at + 1, near) for group in fitting]
            best = min(range(len(chosen)), key=lambda n: (_rank(chosen[n], near), len(fitting[n])))
            return chosen[best]
    return _filled(items, count, near)


def _within(items: Sequence[Item], count: int, first: int, near: Callable[[Item], Near]) -> list[Item]:
    for at in range(first, len(LEVELS)):
        fitting = [group for group in _islands(items, at, near) if len(group) >= count]
        if fitting:
            return _within(min(fitting, key=len), count, at + 1, near)
    return _filled(items, count, near)


def _filled(items: Sequence[Item], count: int, near: Callable[[Item], Near]) -> list[Item]:
    """From as few islands as can be, the largest first, the widest level first."""
    sizes: list[dict[str, int]] = [{}, {}, {}]
    for item in items:
        for at, island in enumerate(near(item)):
            sizes[at][island] = sizes[at].get(island, 0) + (1 if island else 0)

    def key(item: Item) -> tuple[object, ...]:
        place = near(item)
        return tuple(part for at in (2, 1, 0) for part in (-sizes[at][place[at]], place[at]))

    if count == 1:  # whoever needs one alone leaves the large islands whole
        return [min(items, key=lambda item: tuple(sizes[at][near(item)[at]] for at in range(len(LEVELS))))]
    return sorted(items, key=key)[:count]


def _rank(items: Sequence[Item], near: Callable[[Item], Near]) -> tuple[bool, ...]:
    """By level, whether they are not on one island of it: less is nearer."""
    places = [near(item) for item in items]
    return tuple(len({place[at] for place in places}) != 1 or not places[0][at] for at in range(len(LEVELS)))


def _islands(items: Sequence[Item], at: int, near: Callable[[Item], Near]) -> list[list[Item]]:
    islands: dict[str, list[Item]] = {}
    for item in items:
        if island := near(item)[at]:
            islands.setdefault(island, []).append(item)
    return list(islands.values())
