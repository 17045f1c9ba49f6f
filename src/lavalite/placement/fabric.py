"""The network between nodes: how near they are, which ways lead from one to another, and what is free on them.

A circuit takes its bandwidth of both cards and of every declared link between them, alike in both directions. Ways go
up to a switch that both nodes are below, and down again. Of those with room a circuit goes one of the fewest links,
of these the one with most room, of these the first by name. Without any declared link there is one flat fabric, where
only cards count; with some, nodes from which no link leads are cut off.

Nodes that are linked to the same switches and stand in the same rack are one *group*: ways and distances are found
once for two groups, however many nodes they have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lavalite.model.specs import LinkSpec, NodeCapacity
from lavalite.placement.wiring import Wiring, link_accounts, link_name, with_cards

__all__ = ["Fabric", "Full", "Nearness", "Way", "link_accounts", "with_cards"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Path = tuple[str, ...]
RACK = "rack"
ENDLESS = 2**62
"""More than any bandwidth, and more links than any way has."""
MOST_WAYS = 64
"""Of a switch upwards, and of two groups: the shortest are looked at."""


class Nearness(IntEnum):
    """RACK: the same value of the label `rack`, or a switch to which both are linked."""

    NODE = 0
    RACK = 1
    APART = 2


class Way(NamedTuple):
    """A way between two nodes with room for a circuit: the accounts of its links."""

    links: Path


class Full(NamedTuple):
    """No way has room: what is free of the narrowest link, or of a node's card, on the way with most room.

    `inner`: it is so between all nodes of the two groups. `beyond`: from all of the first one's group to the second.
    """

    account: str
    free: int
    inner: bool = False
    beyond: bool = False


class _Inner(NamedTuple):
    """Between two groups: from this switch over these links to that one."""

    source: str
    links: Path
    to: str


class Fabric:
    """Nodes are known by their place in `nodes`. `cards` is what is free of each one's card: the caller keeps it."""

    def __init__(self, wiring: Wiring, nodes: Sequence[NodeCapacity], cards: Ints) -> None:
        self.cards = cards
        self._wiring = wiring
        self._names = [node.name for node in nodes]
        self._at = {name: at for at, name in enumerate(self._names)}
        self._free = wiring.accounts()
        self.ends: Ints = np.full(len(nodes), ENDLESS, dtype=np.int64)
        """What is free of each node's freest link."""
        self._groups = _Groups(wiring, nodes)
        self.group: Ints = self._groups.of_node
        self._above: dict[str, list[tuple[Path, tuple[str, ...]]]] = {}
        self._ways: dict[tuple[int, int], list[_Inner]] = {}
        self._refused: dict[int, Ints] = {}
        self.linked: Bools = np.array(
            [not wiring.declared or n.name in wiring.uplinks for n in nodes], dtype=np.bool_
        )
        """Whether any link leads from it; all are where none is declared."""
        self._exits: Ints = np.full(len(self._groups), ENDLESS, dtype=np.int64)
        """What is free of the freest link from any switch of each group upwards; ENDLESS where a way may end there
        that comes from below."""
        self._inner = {to for ups in wiring.above.values() for to in ups}
        if wiring.declared:
            for switches in set(self._groups.switches):
                self._set_exits(switches)
            for at in range(len(nodes)):
                self._set_end(at)

    @classmethod
    def between(cls, nodes: Sequence[NodeCapacity], links: Sequence[LinkSpec]) -> Fabric:
        """With nothing taken."""
        wiring = Wiring.of(links, nodes)
        cards = [wiring.with_card(node).amounts.get("network", 0) for node in nodes]
        return cls(wiring, nodes, np.array(cards, dtype=np.int64))

    # --- how far -----------------------------------------------------------------------------------------------

    def nearness(self, first: int, second: int) -> Nearness:
        if first == second:
            return Nearness.NODE
        near = self._groups.near(int(self.group[first]))[self.group[second]]
        return Nearness.RACK if near else Nearness.APART

    def in_rack(self, at: int) -> Bools:
        """Which nodes have the node's value of the label `rack`; none where it has none."""
        found: Bools = self._groups.in_rack(int(self.group[at]))[self.group]
        return found

    def near(self, at: int) -> Bools:
        """Which nodes are in the node's rack, or at a switch of its."""
        found: Bools = self._groups.near(int(self.group[at]))[self.group]
        return found

    def most_near(self, offers: Ints) -> Ints:
        """Of each node, the most that any node offers in its rack, or at a switch of its: itself, too."""
        most = np.zeros(len(self._groups), dtype=np.int64)
        np.maximum.at(most, self.group, offers)
        found: Ints = self._groups.most_near(most)[self.group]
        return found

    def hops(self, at: int) -> Ints:
        """How many declared links the shortest way to each node has; ENDLESS where none leads there."""
        found: Ints = self._groups.hops(int(self.group[at]))[self.group]
        return found

    # --- what is free ------------------------------------------------------------------------------------------

    def open_to(self, at: int, bits_per_second: int) -> Bools:
        """Which nodes are not known to be out of reach of the node with so much bandwidth; `way` says it surely."""
        if min(self.cards[at], self.ends[at]) < bits_per_second:
            return np.zeros(len(self.group), dtype=np.bool_)
        group = int(self.group[at])
        leaves = (self._exits >= bits_per_second) & (self._exits[group] >= bits_per_second)
        open_groups = (self._groups.hops(group) < ENDLESS) & (leaves | self._groups.at_switch(group))
        refused = self._refused.get(group)
        if refused is not None:
            open_groups = open_groups & (refused > bits_per_second)
        found: Bools = open_groups[self.group] & (self.cards >= bits_per_second) & (self.ends >= bits_per_second)
        return found

    def way(self, first: int, second: int, bits_per_second: int) -> Way | Full | None:
        """The way that a circuit between the two would take; None where none leads there."""
        for at in (first, second):
            if self.cards[at] < bits_per_second:
                return Full(self._names[at], max(0, int(self.cards[at])), beyond=at == second)
        if not self._wiring.declared:
            return Way(())
        groups = int(self.group[first]), int(self.group[second])
        best: tuple[int, Path] = (-1, ())
        inner, beyond, links = -1, -1, 0
        for between in self._between(*groups):
            if best[0] >= bits_per_second and len(between.links) > links:
                break
            path = (link_name(self._names[first], between.source), *between.links)
            path += (link_name(self._names[second], between.to),)
            room = min(self._free[link] for link in path)
            within = min((self._free[link] for link in between.links), default=ENDLESS)
            inner, beyond = max(inner, within), max(beyond, min(within, self._free[path[-1]]))
            if room > best[0]:
                best, links = (room, path), len(between.links)
        if not best[1]:
            return None
        if best[0] >= bits_per_second:
            return Way(best[1])
        if inner < bits_per_second:
            self._refuse(*groups, bits_per_second)
        narrowest = min(best[1], key=lambda link: (self._free[link], link))
        free = max(0, self._free[narrowest])
        return Full(narrowest, free, inner=inner < bits_per_second, beyond=beyond < bits_per_second)

    def freest_link(self, at: int) -> tuple[str, int]:
        """Of those that lead from a node that is linked."""
        names = (link_name(self._names[at], switch) for switch in self._wiring.uplinks[self._names[at]])
        return max(((name, self._free[name]) for name in names), key=lambda link: (link[1], link[0]))

    def room(self, links: Sequence[str]) -> int:
        """What is free of the narrowest of these links, as far as they are there; ENDLESS where none is."""
        return min((self._free[link] for link in links if link in self._free), default=ENDLESS)

    def move(self, link: str, bits_per_second: int, sign: int) -> None:
        """Take (sign -1) or give back (sign +1) of a link; one that is no more is let be."""
        if link not in self._free:
            return
        self._free[link] += sign * bits_per_second
        if sign > 0:
            self._refused.clear()
        source = link.split("/", 2)[1]
        if source in self._at:
            self._set_end(self._at[source])
        self._set_exits((source,))

    # --- within -----------------------------------------------------------------------------------------------

    def _set_end(self, at: int) -> None:
        name = self._names[at]
        ups = self._wiring.uplinks.get(name, {})
        self.ends[at] = max((self._free[link_name(name, switch)] for switch in ups), default=0)

    def _set_exits(self, switches: Path) -> None:
        """Of all groups at these switches."""
        for group in sorted({int(group) for switch in switches for group in self._groups.at(switch)}):
            ups = [
                self._free[link_name(switch, above)]
                for switch in self._groups.switches[group]
                for above in self._wiring.above.get(switch, ())
            ]
            if self._inner.isdisjoint(self._groups.switches[group]):
                self._exits[group] = max(ups, default=0)

    def _refuse(self, first: int, second: int, bits_per_second: int) -> None:
        """Remember that no node of the one group has so much to any of the other."""
        for group, other in ((first, second), (second, first)):
            if group not in self._refused:
                self._refused[group] = np.full(len(self._groups), ENDLESS, dtype=np.int64)
            self._refused[group][other] = min(self._refused[group][other], bits_per_second)

    def _between(self, first: int, second: int) -> list[_Inner]:
        """The ways between two groups, those of fewest links first."""
        known = self._ways.get((first, second))
        if known is None:
            found = {
                way
                for source in self._groups.switches[first]
                for to in self._groups.switches[second]
                for way in self._joined(source, to)
            }
            known = sorted(found, key=lambda way: (len(way.links), way))[:MOST_WAYS]
            self._ways[first, second] = known
        return known

    def _joined(self, source: str, to: str) -> list[_Inner]:
        """Up from the one switch and down to the other, over a switch that is the only one in common."""
        downs: dict[str, list[tuple[Path, tuple[str, ...]]]] = {}
        for links, switches in self._ups(to):
            downs.setdefault(switches[-1], []).append((links, switches))
        return [
            _Inner(source, (*links, *reversed(down)), to)
            for links, switches in self._ups(source)
            for down, others in downs.get(switches[-1], ())
            if set(switches[:-1]).isdisjoint(others)
        ]

    def _ups(self, switch: str) -> list[tuple[Path, tuple[str, ...]]]:
        """Ways from the switch upwards: links, and the switches on them; the one of no links first."""
        known = self._above.get(switch)
        if known is None:
            known = [((), (switch,))]
            for links, switches in known:
                known += [
                    ((*links, link_name(switches[-1], above)), (*switches, above))
                    for above in sorted(self._wiring.above.get(switches[-1], ()))
                    if above not in switches
                ][: max(0, MOST_WAYS - len(known))]
            self._above[switch] = known
        return known


class _Groups:
    """Nodes that are linked to the same switches and have the same rack, and how far groups are from each other."""

    def __init__(self, wiring: Wiring, nodes: Sequence[NodeCapacity]) -> None:
        known: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
        of_node = []
        for node in nodes:
            ups = tuple(sorted(wiring.uplinks.get(node.name, ())))
            of_node.append(known.setdefault((ups, tuple(sorted(node.labels.get(RACK, ())))), len(known)))
        self.of_node: Ints = np.array(of_node, dtype=np.int64)
        self.switches = [ups for ups, _ in known]
        self._racks = [racks for _, racks in known]
        self._declared = wiring.declared
        self._in_rack = _shared(self._racks)
        self._at_switch = _shared(self.switches)
        self._placed = np.array([bool(ups or racks) for ups, racks in known], dtype=np.bool_)
        self._shared = [g for table in (self._in_rack, self._at_switch) for g in table.values() if len(g) > 1]
        self._ups = [_distances(ups, wiring.above) for ups in self.switches]
        self._columns: dict[str, Ints] = {}
        self._hops: dict[int, Ints] = {}

    def __len__(self) -> int:
        return len(self.switches)

    def in_rack(self, group: int) -> Bools:
        return self._marked(group, (self._racks, self._in_rack))

    def at_switch(self, group: int) -> Bools:
        """Those that share a switch; in a flat fabric all."""
        if not self._declared:
            return np.ones(len(self), dtype=np.bool_)
        return self._marked(group, (self.switches, self._at_switch))

    def at(self, switch: str) -> list[int]:
        return self._at_switch[switch].tolist() if switch in self._at_switch else []

    def near(self, group: int) -> Bools:
        return self._marked(group, (self._racks, self._in_rack), (self.switches, self._at_switch))

    def most_near(self, offers: Ints) -> Ints:
        """Of each group, the most that any that is near offers."""
        found: Ints = np.where(self._placed, offers, 0)
        for groups in self._shared:
            found[groups] = np.maximum(found[groups], offers[groups].max())
        return found

    def hops(self, group: int) -> Ints:
        """Links of the shortest way to each group; 0 in a flat fabric."""
        if not self._declared:
            return np.zeros(len(self), dtype=np.int64)
        known = self._hops.get(group)
        if known is None:
            known = np.full(len(self), ENDLESS, dtype=np.int64)
            for switch, up in self._ups[group].items():
                np.minimum(known, self._column(switch) + up, out=known)
            self._hops[group] = known
        return known

    def _column(self, switch: str) -> Ints:
        """How many links each group is below the switch."""
        if not self._columns:
            for group, ups in enumerate(self._ups):
                for above, up in ups.items():
                    if above not in self._columns:
                        self._columns[above] = np.full(len(self), ENDLESS, dtype=np.int64)
                    self._columns[above][group] = up
        return self._columns[switch]

    def _marked(self, group: int, *tables: tuple[list[tuple[str, ...]], Mapping[str, Ints]]) -> Bools:
        found = np.zeros(len(self), dtype=np.bool_)
        for values, shared in tables:
            for value in values[group]:
                found[shared[value]] = True
        return found


def _shared(values: list[tuple[str, ...]]) -> dict[str, Ints]:
    """The groups that have each value."""
    found: dict[str, list[int]] = {}
    for group, names in enumerate(values):
        for name in names:
            found.setdefault(name, []).append(group)
    return {name: np.array(groups, dtype=np.int64) for name, groups in found.items()}


def _distances(switches: Sequence[str], above: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """How many links up each switch is from a node that is linked to these."""
    found = dict.fromkeys(switches, 1)
    reached = list(switches)
    for switch in reached:
        for up in above.get(switch, ()):
            if up not in found:
                found[up] = found[switch] + 1
                reached.append(up)
    return found
