"""Which nodes a logical host may be anchored on, what each would lack of it, and in which order they are tried.

The CPU is where the anchor is, and so is the network. Of memory and devices so much may come from other nodes as the
host says (`far`), of storage all or nothing, unless it is to be near: node. What there is here is taken first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lavalite.model.host import BARE
from lavalite.model.resources import GPU, KINDS, MEMORY, STORAGE, WHOLE, grain_of, is_special, kinds_in_order
from lavalite.model.specs import CIRCUIT_BITS_PER_SECOND, HostSpec
from lavalite.placement.fabric import Bools, Ints
from lavalite.placement.floor import Floor
from lavalite.placement.reasons import Reason

GRAIN_BYTES = 2**20
"""Memory is split between nodes at whole MiB, as far as it goes."""
_CODES = tuple(Reason)
_CODE = {reason: code for code, reason in enumerate(_CODES, 1)}


def may_be_far(spec: HostSpec) -> dict[str, int]:
    """How much of each kind may come from other nodes."""
    if spec.near == "node":
        return {}
    asked = spec.amounts
    gpus = 0 if spec.topology else min(spec.far.get(GPU, 0), asked.get(GPU, 0)) // WHOLE * WHOLE
    far = {STORAGE: asked.get(STORAGE, 0), MEMORY: min(spec.far.get(MEMORY, 0), asked.get(MEMORY, 0)), GPU: gpus}
    far |= {kind: min(amount, asked.get(kind, 0)) for kind, amount in spec.far.items() if is_special(kind)}
    return {kind: amount for kind, amount in far.items() if amount}


def attachable(spec: HostSpec) -> frozenset[str]:
    """The kinds that the host means to have from other nodes where it must, be they allowed to be so far or not."""
    may = (MEMORY, GPU, *filter(is_special, spec.far))
    kinds = {kind for kind in may if spec.far.get(kind) and spec.amounts.get(kind)}
    return frozenset(kinds | ({STORAGE} if spec.amounts.get(STORAGE) else set()))


def circuit_bandwidth(spec: HostSpec, kind: str) -> int:
    """Of a circuit over which something of the kind comes, in bits a second."""
    return spec.circuits.get(kind, CIRCUIT_BITS_PER_SECOND)


@dataclass(slots=True)
class Survey:
    """By row: why the node cannot be the anchor (a code of `reason_of`, 0 for none), and what would come from it
    and from others of those kinds that may be far.
    """

    codes: Ints
    local: dict[str, Ints] = field(default_factory=dict)
    far: dict[str, Ints] = field(default_factory=dict)

    def turn_away(self, which: Bools | int, reason: Reason) -> None:
        """Say so of those that nothing was said of before."""
        known = self.codes[which]
        self.codes[which] = np.where(known == 0, _CODE[reason], known)

    def reason(self, row: int) -> Reason | None:
        code = int(self.codes[row])
        return _CODES[code - 1] if code else None

    def of(self, reason: Reason) -> Ints:
        """The rows that were turned away for it."""
        return np.flatnonzero(self.codes == _CODE[reason])

    def counts(self) -> dict[Reason, int]:
        counted = np.bincount(self.codes, minlength=len(_CODES) + 1).tolist()
        return {_CODES[code - 1]: count for code, count in enumerate(counted) if code and count}

    def lacking(self, row: int) -> dict[str, int]:
        """What would have to come from other nodes."""
        return {kind: int(amounts[row]) for kind, amounts in self.far.items() if amounts[row]}


def survey(
    spec: HostSpec, floor: Floor, may: Mapping[str, int], split: frozenset[str], *, growing: bool = True
) -> Survey:
    """Look at every node. `may` is how much of a kind may be far, `split` the kinds of which any might be."""
    found = Survey(np.zeros(len(floor.nodes), dtype=np.int64))
    whole = {kind: amount for kind, amount in spec.amounts.items() if kind not in split}
    for kind in whole:
        found.turn_away(~floor.members(spec, kind), Reason.NOT_IN_POOL)
    for kind in whole:
        found.turn_away(floor.total[kind] == 0, Reason.NO_KIND)
    for kind in whole:
        if spec.model_of(kind) or (kind == GPU and spec.gpu_memory_bytes):
            found.turn_away(~floor.has_model(spec, kind), Reason.NO_MODEL)
    for kind, amount in whole.items():
        found.turn_away(floor.has(spec, kind, empty=True) < amount, Reason.TOO_SMALL)
    if growing:
        for name, reason in floor.closed.items():
            if name in floor.rows:
                found.turn_away(floor.rows[name], reason)
    for kind, amount in whole.items():
        found.turn_away(floor.has(spec, kind) < amount, Reason.TOO_FEW_FREE)
    for kind in kinds_in_order(split):
        if kind in spec.amounts:
            _split(spec, floor, kind, may.get(kind, 0), found)
    if MEMORY in found.far and spec.executor == BARE:
        found.turn_away((found.far[MEMORY] > 0) & floor.swaps(spec.name), Reason.FAR_MEMORY_TAKEN)
    return found


def _split(spec: HostSpec, floor: Floor, kind: str, may: int, found: Survey) -> None:
    """How much of the kind each node would give itself, and how much others."""
    asked = spec.amounts[kind]
    here = np.where(floor.members(spec, kind), np.maximum(floor.has(spec, kind), 0), 0)
    if spec.model_of(kind) or (kind == GPU and spec.gpu_memory_bytes):
        here = np.where(floor.has_model(spec, kind), here, 0)
    if kind == STORAGE:
        local = np.where(here >= asked, asked, 0)
    elif kind == MEMORY:
        even = here // GRAIN_BYTES * GRAIN_BYTES
        local = np.where(here >= asked, asked, np.where(asked - even <= may, even, here))
    else:
        grain = grain_of(kind)
        local = np.where(here >= asked, asked, here // grain * grain)
    far: Ints = asked - local
    found.turn_away(far > may, Reason.MAY_NOT_BE_FAR)
    found.local[kind], found.far[kind] = local, far


def in_order(spec: HostSpec, floor: Floor, found: Survey) -> Ints:
    """The rows that could be the anchor, the best first: by the host's strategy, and of equals the first by name."""
    rows = np.flatnonzero(found.codes == 0)
    if not len(rows):
        return rows
    parts: Ints = np.zeros(len(rows), dtype=np.int64)
    share = np.zeros(len(rows))
    for kind, amounts in found.far.items():
        parts += amounts[rows] > 0
        share += amounts[rows] / spec.amounts[kind]
    if spec.strategy == "near":
        if parts.min() == 0:
            rows = rows[np.flatnonzero(parts == 0)]
            best = int(leftover(spec, floor, found, rows).argmin())
            return rows[best : best + 1]
        keys = [leftover(spec, floor, found, rows), _apart(spec, floor, found)[rows], share, parts]
    elif spec.strategy == "binpack":
        keys = [share, parts, emptiness(floor, rows)]
    else:
        keys = [share, parts, -least_left(spec, floor, found, rows)]
    if spec.near == "rack":  # those that find nothing in their rack would only be tried in vain
        keys.append(_apart(spec, floor, found)[rows])
    ordered: Ints = rows[np.lexsort(keys)]
    return ordered


def leftover(spec: HostSpec, floor: Floor, found: Survey, rows: Ints) -> Ints:
    """Per mille of each asked kind that stays free, summed: less is a better fit. Strands no device if it can."""
    left = np.zeros(len(rows), dtype=np.int64)
    for kind, asked in spec.amounts.items():
        left += per_mille(floor, kind, rows, found.local[kind][rows] if kind in found.local else asked)
    for kind in {GPU, *floor.special} - spec.amounts.keys():
        left += np.where(floor.total[kind][rows] > 0, 1000 * (len(spec.amounts) + 1), 0)
    return left


def emptiness(floor: Floor, rows: Ints) -> Ints:
    """Per mille that is free, on average over all kinds that each node has."""
    free = np.zeros(len(rows), dtype=np.int64)
    kinds = np.zeros(len(rows), dtype=np.int64)
    for kind in KINDS:
        free += per_mille(floor, kind, rows)
        kinds += floor.total[kind][rows] > 0
    return free // np.maximum(kinds, 1)


def least_left(spec: HostSpec, floor: Floor, found: Survey, rows: Ints) -> Ints:
    """Per mille that the host leaves of the kind asked for of which it leaves least."""
    least = np.full(len(rows), 1000, dtype=np.int64)
    for kind, asked in spec.amounts.items():
        taken = found.local[kind][rows] if kind in found.local else asked
        left = per_mille(floor, kind, rows, taken)
        np.minimum(least, np.where(floor.total[kind][rows] > 0, left, least), out=least)
    return least


def per_mille(floor: Floor, kind: str, rows: Ints, taken: Ints | int = 0) -> Ints:
    """Of what each node has of the kind, what is free once so much is taken; 0 where it has none."""
    total = floor.total[kind][rows]
    left = (floor.free[kind][rows] - taken) * 1000.0 / np.maximum(total, 1)
    found: Ints = np.where(total > 0, left, 0).astype(np.int64)
    return found


def _apart(spec: HostSpec, floor: Floor, found: Survey) -> Ints:
    """Of how many kinds no near node has as much as each node lacks, and a card and a link for it."""
    apart = np.zeros(len(floor.nodes), dtype=np.int64)
    for kind, amounts in found.far.items():
        if amounts.any():
            asked = circuit_bandwidth(spec, kind)
            usable = floor.members(spec, kind) & floor.open
            usable &= (floor.fabric.ends >= asked) & (floor.fabric.cards >= asked)
            apart += amounts > floor.fabric.most_near(np.where(usable, floor.has(spec, kind), 0))
    return apart
