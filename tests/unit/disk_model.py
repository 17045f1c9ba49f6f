"""What is on disks, in memory: each holds so much of what was ever written to its host's device, and must hold all.

A device is on an anchor, over one disk or over two of which one takes the other's place. It is written to all the
time. Whatever becomes of it, no disk is taken for the host's that lacks anything, and none goes that alone has it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Leg = tuple[str, int]
"""A part and the incarnation of its host."""


@dataclass
class Disks:
    """Of all nodes. `written`: how often each host, by name and incarnation, has been written to."""

    holds: dict[Leg, int] = field(default_factory=dict)
    written: dict[tuple[str, int], int] = field(default_factory=dict)


@dataclass
class Devices:
    """Of one anchor, by host and incarnation: the disks below each, and which of them do not answer."""

    disks: Disks = field(default_factory=Disks)
    legs: dict[tuple[str, int], list[Leg]] = field(default_factory=dict)
    broken: set[Leg] = field(default_factory=set)

    def write(self) -> None:
        for host, legs in self.legs.items():
            if usable := [leg for leg in legs if leg not in self.broken]:
                self.disks.written[host] = self.disks.written.get(host, 0) + 1
                self.disks.holds |= dict.fromkeys(usable, self.disks.written[host])

    def attach(self, host: tuple[str, int], part: str, mirrors: str) -> str:
        """Why not, or nothing."""
        leg, old = (part, host[1]), (mirrors, host[1])
        legs, written = self.legs.get(host, []), self.disks.written.get(host, 0)
        if leg in legs:
            if legs == [leg]:
                self.broken.discard(leg)
            return "" if leg not in self.broken else "it broke"
        if not legs:
            if mirrors and old in self.disks.holds and self.disks.holds.get(leg) != written:
                return "what it is to be a copy of is not there"
            assert self.disks.holds.setdefault(leg, written) == written or not written, (
                f"{leg} lacks what was written"
            )
            self.legs[host] = [leg]
        elif legs != [old]:
            return f"{host} has {legs} already"
        elif old in self.broken:
            return "what it is to be a copy of cannot be read"
        else:
            self.legs[host] = [old, leg]
            self.disks.holds[leg] = written
        self.broken.discard(leg)
        return ""

    def detach(self, host: tuple[str, int], part: str, *, heir: str) -> str:
        """Why not, or nothing. `heir` is the part that is to go on without it."""
        leg, legs = (part, host[1]), self.legs.get(host, [])
        if leg not in legs:
            return ""
        if heir and (heir, host[1]) not in legs:
            return f"{heir} does not hold what it holds"
        self.legs[host] = [other for other in legs if other != leg]
        if not self.legs[host]:
            del self.legs[host]
        return ""

    def lose(self, part: str) -> None:
        """It does not answer any more; the other one of two goes on without it."""
        for host, legs in self.legs.items():
            for leg in [leg for leg in legs if leg[0] == part]:
                if len(legs) == 1:
                    self.broken.add(leg)
                else:
                    self.legs[host] = [other for other in legs if other != leg]

    def wipe(self, leg: Leg) -> None:
        """The bytes are given back."""
        used = [host for host, legs in self.legs.items() if leg in legs]
        assert not used, f"{leg} is taken from under {used}"
        self.disks.holds.pop(leg, None)
