"""What a logical host takes of other nodes than its anchor: whole where one has enough, and each over a circuit.

    take storage ──► take gpu ──► take memory ──► parts and circuits        a gap at any of them: undo, and say it

Nearest first (rack or switch, then fewest links), then nodes that there is a circuit to anyway, then by the host's
strategy. What no single node has enough of, and may be split, is taken of as few as can be: the largest first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lavalite.model.resources import GPU, MEMORY, STORAGE, grain_of, is_special, kinds_in_order
from lavalite.model.specs import HostSpec
from lavalite.placement.anchors import GRAIN_BYTES, circuit_bandwidth, emptiness, per_mille
from lavalite.placement.fabric import ENDLESS, Bools, Full, Ints, Way
from lavalite.placement.floor import Floor
from lavalite.placement.reasons import Gap, Reason

MOST_PARTS = 8
"""Of one kind: what would have to be split further is not taken."""
MOST_LOOKED_AT = 32
"""Ways, until one is found that is full: to say which."""
TAKING_ORDER = (STORAGE, GPU, MEMORY)
"""What cannot be split comes first; what is special, as it is rarest, before GPUs."""


class FarPart(NamedTuple):
    kind: str
    row: int
    amount: int
    devices: list[str]


@dataclass(slots=True)
class Laid:
    """A circuit to a provider: its bandwidth, and the links it is reserved on."""

    bits_per_second: int
    links: tuple[str, ...]


class Remote:
    """All that one host takes of others while it is planned. What is taken is taken on the floor at once."""

    def __init__(self, floor: Floor, spec: HostSpec, anchor: int) -> None:
        self.parts: list[FarPart] = []
        self.circuits: dict[int, Laid] = {}
        self._floor = floor
        self._spec = spec
        self._anchor = anchor

    def take_all(self, lacking: dict[str, int]) -> Gap | None:
        """Take so much of each kind, or nothing more than before, and say what is in the way."""
        parts, circuits = list(self.parts), {row: replace(laid) for row, laid in self.circuits.items()}
        for kind in (STORAGE, *kinds_in_order(filter(is_special, lacking)), *TAKING_ORDER[1:]):
            gap = self._take(kind, lacking[kind]) if kind in lacking else None
            if gap is not None:
                self._back_to(parts, circuits)
                return gap
        return None

    def keep(self, parts: Iterable[FarPart], circuits: dict[int, Laid]) -> None:
        """Take what the host has already, without asking whether there is room."""
        for part in parts:
            self._move(part, -1)
            self.parts.append(part)
        for row, laid in circuits.items():
            self._lay(row, laid)

    def widen(self, row: int, bits_per_second: int) -> Gap | None:
        """Let the circuit that there is to the provider have another bandwidth."""
        laid = self.circuits[row]
        self._floor.move_circuit(self._anchor, row, laid.bits_per_second, laid.links, +1)
        wider = Laid(bits_per_second, laid.links)
        narrow = bits_per_second > laid.bits_per_second and self._room(row, laid.links) < bits_per_second
        if narrow or not laid.bits_per_second:
            way = self._floor.fabric.way(self._anchor, row, bits_per_second)
            if not isinstance(way, Way):
                self._lay(row, laid)
                kind = next(part.kind for part in self.parts if part.row == row)
                gap = Gap(Reason.NO_PATH, kind, 0, self._floor.nodes[self._anchor].name)
                return gap if way is None else self._full(gap, bits_per_second, way)
            wider = Laid(bits_per_second, way.links)
        self._lay(row, wider)
        return None

    def undo(self) -> None:
        """Give everything back."""
        self._back_to([], {})

    # --- one kind ---------------------------------------------------------------------------------------------

    def _take(self, kind: str, amount: int) -> Gap | None:
        before = len(self.parts)
        while amount:
            chosen = self._provider(kind, amount, may_split=len(self.parts) - before < MOST_PARTS - 1)
            if isinstance(chosen, Gap):
                return chosen
            row, given = chosen
            devices: list[str] = []
            if kind == GPU or is_special(kind):
                devices = self._floor.room(row).pick(replace(self._spec, amounts={kind: given}), kind)
            part = FarPart(kind, row, given, devices)
            self._move(part, -1)
            self.parts.append(part)
            amount -= given
        return None

    def _provider(self, kind: str, amount: int, *, may_split: bool) -> tuple[int, int] | Gap:
        """Of which node to take how much, with a circuit laid to it."""
        offers = self._offers(kind)
        others = offers >= amount
        asked = circuit_bandwidth(self._spec, kind)
        tried: list[Full] = []
        row = self._nearest(kind, amount, others & self._span(), asked, tried)
        if row is None and may_split and kind != STORAGE:
            grain = _grain(kind)
            even = offers // grain * grain
            within = self._span() & self._reached(asked)
            if _together(kind, even[within]) >= amount:
                row = self._nearest(kind, amount, within & (even > 0), asked, tried, largest=even)
                amount = min(amount, int(even[row])) if row is not None else amount
        return (row, amount) if row is not None else self._gap(kind, amount, offers, asked, tried)

    def _offers(self, kind: str) -> Ints:
        """How much of the kind each node has for the host, the anchor nothing."""
        offers = np.maximum(self._floor.has(self._spec, kind), 0)
        usable = self._floor.members(self._spec, kind) & self._floor.open
        if kind == GPU or is_special(kind):
            offers = offers // grain_of(kind) * grain_of(kind)
            usable = usable & self._floor.has_model(self._spec, kind)
        offers = np.where(usable, offers, 0)
        offers[self._anchor] = 0
        return offers

    def _span(self) -> Bools:
        """Which nodes are near enough for the host at all, and have a path."""
        reached = self._floor.fabric.hops(self._anchor) < ENDLESS
        return reached & self._floor.fabric.in_rack(self._anchor) if self._spec.near == "rack" else reached

    def _reached(self, asked: int) -> Bools:
        """To which nodes there may be room for a circuit, or is one that is wide enough."""
        found = self._floor.fabric.open_to(self._anchor, asked)
        for row, laid in self.circuits.items():
            more = asked - laid.bits_per_second
            found[row] = more <= 0 or self._room(row, laid.links) >= more
        return found

    def _nearest(
        self, kind: str, amount: int, which: Bools, asked: int, tried: list[Full], largest: Ints | None = None
    ) -> int | None:
        """The best of these nodes that a circuit can be laid to, which then is; `tried` are those that it cannot."""
        rows = np.flatnonzero(which & self._reached(asked))
        if not len(rows):
            return None
        fabric = self._floor.fabric
        far = fabric.hops(self._anchor)[rows] * 4 + np.where(fabric.near(self._anchor)[rows], 0, 2 * ENDLESS // 4)
        far += ~np.isin(rows, list(self.circuits)) if self.circuits else 1
        keys = [self._strategy(kind, amount, rows), far]
        if largest is not None:
            keys.append(-largest[rows])
        while len(rows):
            best = _least(keys)
            if self._reach(int(rows[best]), asked, tried):
                return int(rows[best])
            if tried and tried[-1].inner:
                left = self._reached(asked)[rows]
                left[best] = False
            else:
                left = np.arange(len(rows)) != best
            rows, keys = rows[left], [key[left] for key in keys]
        return None

    def _strategy(self, kind: str, amount: int, rows: Ints) -> Ints:
        """The lower, the better."""
        if self._spec.strategy == "binpack":
            return emptiness(self._floor, rows)
        left = per_mille(self._floor, kind, rows, amount)
        return -left if self._spec.strategy == "spread" else left

    # --- circuits ---------------------------------------------------------------------------------------------

    def _reach(self, row: int, asked: int, tried: list[Full]) -> bool:
        """Have a circuit to the node that is wide enough."""
        laid = self.circuits.get(row)
        if laid is not None:
            if laid.bits_per_second < asked:
                self._floor.move_circuit(self._anchor, row, asked - laid.bits_per_second, laid.links, -1)
                laid.bits_per_second = asked
            return True
        way = self._floor.fabric.way(self._anchor, row, asked)
        if isinstance(way, Full):
            tried.append(way)
        if not isinstance(way, Way):
            return False
        self._lay(row, Laid(asked, way.links))
        return True

    def _room(self, row: int, links: Iterable[str]) -> int:
        """What is free on both cards and on these links."""
        fabric = self._floor.fabric
        return min(int(fabric.cards[self._anchor]), int(fabric.cards[row]), fabric.room(tuple(links)))

    def _lay(self, row: int, laid: Laid) -> None:
        self._floor.move_circuit(self._anchor, row, laid.bits_per_second, laid.links, -1)
        self.circuits[row] = laid

    def _move(self, part: FarPart, sign: int) -> None:
        self._floor.move_at(part.row, part.kind, part.amount, part.devices, sign)

    def _back_to(self, parts: list[FarPart], circuits: dict[int, Laid]) -> None:
        """Parts are only added, and circuits only added or widened: what is more than before is given back."""
        for part in self.parts[len(parts) :]:
            self._move(part, +1)
        for row, laid in self.circuits.items():
            before = circuits[row].bits_per_second if row in circuits else 0
            self._floor.move_circuit(self._anchor, row, laid.bits_per_second - before, laid.links, +1)
        self.parts, self.circuits = parts, circuits

    # --- why not ----------------------------------------------------------------------------------------------

    def _gap(self, kind: str, amount: int, offers: Ints, asked: int, tried: list[Full]) -> Gap:
        """Why so much of the kind cannot be had: what never changes first."""
        floor, anchor = self._floor, self._anchor
        offering = floor.members(self._spec, kind) & (floor.total[kind] > 0)
        # What the anchor itself offers is there for others placed like it, which may fare better.
        mine = max(0, int(floor.has(self._spec, kind)[anchor])) if offering[anchor] else 0
        offering[anchor] = False
        gap = Gap(Reason.NO_PROVIDER, kind, amount, floor.nodes[anchor].name, self._spec.pools.get(kind, ""))
        gap = self._hopeless(gap, max(amount, mine + 1))
        if not offering.any():
            return gap
        if not (offering & (floor.fabric.hops(anchor) < ENDLESS)).any():
            return replace(gap, reason=Reason.NO_PATH)
        offering &= self._span()
        if not offering.any():
            return replace(gap, reason=Reason.NOT_IN_RACK)
        there = np.where(offering, offers, 0)
        most = _together(kind, there)
        if most < amount:
            best = int(there.argmax())
            gap = self._hopeless(gap, max(amount, _together(kind, np.append(there, mine)) + 1))
            return replace(gap, provider=floor.nodes[best].name, lacks=amount - most)
        return self._narrow(gap, there, asked, tried)

    def _narrow(self, gap: Gap, there: Ints, asked: int, tried: list[Full]) -> Gap:
        """What is too narrow of the ways to those that have enough, the nearest first."""
        fabric = self._floor.fabric
        rows = np.flatnonzero(there >= gap.amount) if (there >= gap.amount).any() else np.flatnonzero(there)
        nearest_first = rows[np.argsort(fabric.hops(self._anchor)[rows], kind="stable")]
        ways = (fabric.way(self._anchor, int(row), asked) for row in nearest_first[:MOST_LOOKED_AT])
        full = next((way for way in ways if isinstance(way, Full)), None) or (tried[0] if tried else None)
        if full is None:  # each has room, but not all that would be needed together
            return replace(gap, provider=self._floor.nodes[int(nearest_first[0])].name, hopeless_from=0)
        beyond = full.beyond and all(other.beyond for other in tried)
        return self._full(gap if beyond else replace(gap, hopeless_from=0), asked, full)

    def _hopeless(self, gap: Gap, amount: int) -> Gap:
        """For others placed alike, too, unless it is for what the host has taken already."""
        return replace(gap, hopeless_from=0 if self.parts or self.circuits else amount)

    def _full(self, gap: Gap, asked: int, way: Full) -> Gap:
        found = replace(gap, reason=Reason.PATH_FULL, account=way.account, free=way.free)
        return replace(found, bits_per_second=asked)


def _together(kind: str, offers: Ints) -> int:
    """What may be had of these: of one for storage, else of the largest few."""
    if kind == STORAGE or len(offers) <= 1:
        return int(offers.max(initial=0))
    grain = _grain(kind)
    even = offers // grain * grain
    largest = np.partition(even, -MOST_PARTS)[-MOST_PARTS:] if len(even) > MOST_PARTS else even
    return max(int(offers.max()), int(sum(largest.tolist())))


def _grain(kind: str) -> int:
    return GRAIN_BYTES if kind == MEMORY else grain_of(kind)


def _least(keys: list[Ints]) -> int:
    """Where the last key is least, of these the one before, and so on; the first of all that are alike."""
    left = np.arange(len(keys[0]))
    for key in reversed(keys):
        values = key[left]
        left = left[values == values.min()]
    return int(left[0])
