"""One logical host that is not there yet, on the best node for it, or why none is.

Of hosts that are asked for alike those that come later learn from the first: between them nothing is given back.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lavalite.model.host import LogicalHost
from lavalite.model.resources import NETWORK
from lavalite.model.specs import HostSpec
from lavalite.placement.anchors import Survey, attachable, circuit_bandwidth, in_order, may_be_far, survey
from lavalite.placement.assemble import assemble
from lavalite.placement.fabric import ENDLESS, Ints
from lavalite.placement.floor import Floor
from lavalite.placement.reasons import FAR_REASONS, Gap, Reason, Refusal


class Newcomers:
    """Hosts that are not there yet, placed one after the other: in between nothing is given back."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._refused: dict[object, Refusal] = {}
        self._gaps: dict[object, _Gaps] = {}

    def place(self, spec: HostSpec) -> LogicalHost | Refusal:
        """The host on the best node; what it takes is taken from then on."""
        shape = _shape(spec)
        known = self._refused.get(shape)
        if known is not None:  # where one found no room, another one like it finds none
            return replace(known, turned_away=dict(known.turned_away), asked=spec.asked())
        found = survey(spec, self._floor, may_be_far(spec), attachable(spec))
        host, gap = self._first(spec, found, self._gaps.setdefault(shape, _Gaps(self._floor)))
        if host is not None:
            return host
        refusal = Refusal(found.counts(), asked=spec.asked(), gap=gap)
        self._nearest(spec, found, refusal)
        self._refused[shape] = refusal
        return refusal

    def _first(self, spec: HostSpec, found: Survey, gaps: _Gaps) -> tuple[LogicalHost | None, Gap | None]:
        """The host on the first node on which all of it is had, else what is in the way at the best of them."""
        best = self._turn_away_narrow(spec, found)
        gaps.turn_away(found)
        rows = in_order(spec, self._floor, found)
        while len(rows):
            row = int(rows[0])
            host = assemble(spec, self._floor, row, found.lacking(row))
            if isinstance(host, LogicalHost):
                return host, None
            found.turn_away(row, host.reason)
            if host.hopeless_from:
                gaps.note(host, row)
                gaps.turn_away(found)
            rows = rows[found.codes[rows] == 0]
            if best is None or _rank(host) < _rank(best):
                best = host
        return None, best

    def _turn_away_narrow(self, spec: HostSpec, found: Survey) -> Gap | None:
        """Nodes that lack something and are linked to nothing, or whose own card or links are too full for a circuit.

        What is in the way at the first of them.
        """
        fabric, first = self._floor.fabric, None
        for kind, amounts in found.far.items():
            asked = circuit_bandwidth(spec, kind)
            card = self._floor.free[NETWORK] - spec.amounts.get(NETWORK, 0)
            lacking = (found.codes == 0) & (amounts > 0)
            for reason, which in (
                (Reason.NO_PATH, lacking & ~fabric.linked),
                (Reason.PATH_FULL, lacking & fabric.linked & (np.minimum(card, fabric.ends) < asked)),
            ):
                rows = np.flatnonzero(which)
                if len(rows) and first is None:
                    first = self._own_gap(spec, kind, reason, int(rows[0]), int(card[rows[0]]))
                found.turn_away(which, reason)
        return first

    def _own_gap(self, spec: HostSpec, kind: str, reason: Reason, row: int, card: int) -> Gap:
        name, asked = self._floor.nodes[row].name, circuit_bandwidth(spec, kind)
        gap = Gap(reason, kind, 0, name, spec.pools.get(kind, ""), bits_per_second=asked)
        if reason is Reason.NO_PATH:
            return gap
        account, free = (name, card) if card < asked else self._floor.fabric.freest_link(row)
        return replace(gap, account=account, free=max(0, free))

    def _nearest(self, spec: HostSpec, found: Survey, refusal: Refusal) -> None:
        """The node that lacks least: of those full now, else of those too small."""
        may = may_be_far(spec)
        must = {kind: least for kind, asked in spec.amounts.items() if (least := asked - may.get(kind, 0)) > 0}
        for reason in (Reason.TOO_FEW_FREE, Reason.MAY_NOT_BE_FAR, Reason.TOO_SMALL):
            rows = found.of(reason)
            if not len(rows):
                continue
            share = np.zeros(len(rows), dtype=np.int64)
            for kind, asked in must.items():
                short = asked - np.maximum(self._floor.has(spec, kind)[rows], 0)
                share += (np.maximum(short, 0) * 1000.0 / asked).astype(np.int64)
            row = int(rows[share.argmin()])
            refusal.nearest = self._floor.nodes[row].name
            refusal.lacks = self._floor.room(row).lacks(replace(spec, amounts=must))
            return


class _Gaps:
    """What none of the nodes that are placed alike (Fabric.group) gets from others: by kind, from how much on."""

    def __init__(self, floor: Floor) -> None:
        self._group = floor.fabric.group
        self._count = int(self._group.max(initial=-1)) + 1
        self._from: dict[tuple[str, Reason], Ints] = {}

    def note(self, gap: Gap, row: int) -> None:
        known = self._from.setdefault((gap.kind, gap.reason), np.full(self._count, ENDLESS, dtype=np.int64))
        known[self._group[row]] = min(known[self._group[row]], gap.hopeless_from)

    def turn_away(self, found: Survey) -> None:
        """All that lack so much."""
        for (kind, reason), least in self._from.items():
            found.turn_away(found.far[kind] >= least[self._group], reason)


def _rank(gap: Gap) -> int:
    return FAR_REASONS.index(gap.reason)


def _shape(spec: HostSpec) -> object:
    """Alike for hosts that are placed alike."""
    mappings = (spec.amounts, spec.pools, spec.far, spec.circuits, spec.special_models)
    asked = tuple(tuple(sorted(mapping.items())) for mapping in mappings)
    gpus = (spec.gpu_model, spec.gpu_memory_bytes, spec.topology)
    return (*asked, *gpus, spec.near, spec.strategy, spec.executor)
