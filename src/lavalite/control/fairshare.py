"""Who comes first in a queue: those who have used least of their share, lately.

    use of a group or user = what it has used, each second of it halved once per half-life
                             + what it holds now, as if that had been held for a while already
    order                  = (use of the group / its share, use of the user / its share), the least first

So groups share the queue by their shares, and within a group its users do. That what is held counts at once keeps one
user from taking all of an idle cluster in one pass; soon what was really used outweighs it.

All is in milli-core-milliseconds, whole numbers. A task counts as the largest of its cores, its memory at 4 GiB a
core, and its GPUs at 8 cores each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lavalite.control.decay import accrued, decayed
from lavalite.model.resources import CPU, GPU, MEMORY
from lavalite.model.specs import Fairshare

CORES_PER_GPU = 8
BYTES_PER_CORE = 4 * 1024**3
MOST_AHEAD_MS = 3_600_000
"""What is held counts as if it had been held for so long already; less where the half-life is short."""
SETTLE_MOST_MS = 60_000
"""After so long at most, use is added up and decayed, and stored."""
FORGOTTEN = 1_000_000
"""Use of less than a core-second is none."""

Holder = tuple[str, str]
"""(group, user); the user is empty for the group as a whole."""


def rate_of(amounts: Mapping[str, int]) -> int:
    """What a task uses up, in milli-cores."""
    memory = amounts.get(MEMORY, 0) * 1000 // BYTES_PER_CORE
    return max(1, amounts.get(CPU, 0), memory, amounts.get(GPU, 0) * CORES_PER_GPU)


@dataclass(slots=True)
class Meter:
    """`used` is as of when the queue was settled last; what `rate` came to since then, up to `at`, is in `since`."""

    used: int = 0
    rate: int = 0
    since: int = 0
    at: int = 0

    def catch_up(self, now_ms: int) -> None:
        self.since += self.rate * (now_ms - self.at)
        self.at = now_ms


@dataclass(slots=True)
class FairQueue:
    """The shares of one queue. Times are in milliseconds and never go back; `settled_at` is 0 before it begins."""

    spec: Fairshare
    settled_at: int
    now: int
    meters: dict[Holder, Meter] = field(default_factory=dict)
    lowered: set[Holder] = field(default_factory=set)
    """Whose use may have become less; cleared by whoever keeps an order by it."""
    settlements: int = 0
    """Grows whenever all use has decayed."""
    half_life_ms: int = 0
    ahead_ms: int = 0
    settle_ms: int = 0

    def __post_init__(self) -> None:
        self.half_life_ms = self.spec.half_life_seconds * 1000
        self.ahead_ms = min(MOST_AHEAD_MS, self.half_life_ms // 10)
        self.settle_ms = max(1000, min(SETTLE_MOST_MS, self.half_life_ms // 60))

    def advance(self, now_ms: int) -> bool:
        """Let time pass; whether all was settled anew, which is when it should be stored."""
        if not self.settled_at:  # nothing was stored: it begins now
            self.settled_at = now_ms
            self.meters = {holder: Meter(rate=meter.rate, at=now_ms) for holder, meter in self.meters.items()}
        self.now = max(self.now, now_ms)
        if self.now - self.settled_at < self.settle_ms:
            return False
        was_used = bool(self.meters)
        self.settle()
        return was_used

    def settle(self) -> None:
        """Add up and decay all use; forget those who have none left."""
        elapsed, half_life = self.now - self.settled_at, self.half_life_ms
        if not elapsed:
            return
        for holder, meter in list(self.meters.items()):
            meter.catch_up(self.now)
            # Most hold as much for all of the time; what came and went in between is taken as spread over it.
            mean = max(0, meter.since) // elapsed
            meter.used = decayed(meter.used, elapsed, half_life) + accrued(mean, elapsed, half_life)
            meter.since = 0
            if not meter.rate and meter.used < FORGOTTEN:
                del self.meters[holder]
        self.settled_at = self.now
        self.settlements += 1

    def redefine(self, spec: Fairshare) -> None:
        """Other shares, or another half-life from now on."""
        if spec != self.spec:
            self.settle()
            self.spec = spec
            self.settlements += 1
            self.__post_init__()

    # --- what is held ---------------------------------------------------------------------------------------------

    def hold(self, group: str, user: str, rate: int, since_ms: int | None = None) -> None:
        """A task holds something from now on, or has since then."""
        start = self.now
        if since_ms is not None:
            # As stored, `now` is when it was settled last, and some began a little later.
            start = min(max(since_ms, self.settled_at), max(self.now, self.settled_at + 2 * SETTLE_MOST_MS))
        for holder in ((group, ""), (group, user)):
            meter = self._meter(holder)
            meter.rate += rate
            meter.since += rate * (self.now - start)

    def let_go(self, group: str, user: str, rate: int) -> None:
        for holder in ((group, ""), (group, user)):
            meter = self._meter(holder)
            meter.rate -= rate
            self.lowered.add(holder)

    def _meter(self, holder: Holder) -> Meter:
        meter = self.meters.get(holder)
        if meter is None:
            meter = self.meters[holder] = Meter(at=self.now)
        meter.catch_up(self.now)
        return meter

    # --- looking ----------------------------------------------------------------------------------------------------

    def share(self, group: str, user: str = "") -> int:
        shares, name = (self.spec.users, user) if user else (self.spec.groups, group)
        return shares.get(name, 1)

    def used(self, group: str, user: str = "") -> int:
        """What counts of it by now, without what is held ahead of time."""
        meter = self.meters.get((group, user))
        return meter.used + meter.since + meter.rate * (self.now - meter.at) if meter else 0

    def held(self, group: str, user: str = "") -> int:
        """What it holds now, in milli-cores."""
        meter = self.meters.get((group, user))
        return meter.rate if meter else 0

    def standing(self, group: str, user: str = "") -> int:
        """The less, the sooner it is its turn."""
        meter = self.meters.get((group, user))
        if meter is None:
            return 0
        shares, name = (self.spec.users, user) if user else (self.spec.groups, group)
        use = meter.used + meter.since + meter.rate * (self.now - meter.at + self.ahead_ms)
        return use // shares.get(name, 1)

    def holders(self) -> Iterator[Holder]:
        """Groups and users of whom anything is known or said, in the order of their names."""
        named = {(group, "") for group in self.spec.groups}
        return iter(sorted(self.meters.keys() | named))

    # --- as stored --------------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Settled use by group and user; what is held is in the commitments."""
        used: dict[str, dict[str, int]] = {}
        for (group, user), meter in sorted(self.meters.items()):
            if meter.used:
                used.setdefault(group, {})[user] = meter.used
        return json.dumps({"settled_at_ms": self.settled_at, "used": used}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, spec: Fairshare, stored: bytes) -> FairQueue:
        """As it was stored; what came later and has ended since is not known. Raises what bad JSON makes it raise."""
        record = json.loads(stored)
        settled_at = int(record["settled_at_ms"])
        found = cls(spec, settled_at, settled_at)
        for group, users in record["used"].items():
            for user, used in users.items():
                found.meters[group, user] = Meter(int(used), at=settled_at)
        return found
