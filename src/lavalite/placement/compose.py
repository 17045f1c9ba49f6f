"""Which node a logical host is on, and which other nodes some of its parts are of.

    specs, nodes, links, what is taken ──► plan_hosts ──► a LogicalHost or a Refusal for each

    anchors    which nodes could be the anchor, the best first          floor    what is free of every node
    remote     what such a node lacks, of others, over circuits         fabric   what is free between them
    assemble   all of it as a host                                      resize   a host that is there already

A host that exists keeps its anchor, and its parts as far as they still suit. New ones are placed largest first. The
plan depends on what is asked and what is there, never on the order of either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lavalite.model.host import LogicalHost
from lavalite.model.job import Share
from lavalite.model.resources import CPU, GPU, MEMORY, NETWORK
from lavalite.model.specs import HostSpec, LinkSpec, NodeCapacity, PoolSpec
from lavalite.placement.anchors import Survey, attachable, circuit_bandwidth, in_order, may_be_far, survey
from lavalite.placement.assemble import assemble
from lavalite.placement.fabric import ENDLESS, Ints
from lavalite.placement.floor import Closed, Floor
from lavalite.placement.reasons import FAR_REASONS, Gap, Reason, Refusal
from lavalite.placement.resize import again, grows, nearer_parts
from lavalite.placement.room import natural
from lavalite.placement.shares import shares_of

__all__ = ["nearer", "plan_hosts", "shares_of"]

Hosts = Mapping[str, LogicalHost]


def plan_hosts(
    specs: Sequence[HostSpec],
    nodes: Sequence[NodeCapacity],
    pools: Sequence[PoolSpec],
    existing: Hosts | None = None,
    taken: Iterable[Share] = (),
    closed: Closed | None = None,
    links: Sequence[LinkSpec] = (),
) -> dict[str, LogicalHost | Refusal]:
    """A plan for every spec, by its name and in the order of `specs`.

    `existing` are the hosts that there are (also those that no spec asks for: they hold what they have), `taken`
    what others hold of nodes and links, `closed` the nodes that take nothing new, and why (DRAINING, SILENT). A host
    that is as its spec asks comes back equal to what it was; one that changes keeps its state and has a higher
    version.
    """
    hosts = existing or {}
    floor = _floor(nodes, pools, hosts, taken, closed, links)
    plan: dict[str, LogicalHost | Refusal] = {}
    known = [spec for spec in specs if spec.name in hosts]
    for spec in sorted(known, key=lambda spec: (grows(spec, hosts[spec.name]), natural(spec.name))):
        plan[spec.name] = again(spec, hosts[spec.name], floor)
    newcomers = _Newcomers(floor)
    for spec in sorted((spec for spec in specs if spec.name not in hosts), key=_largest_first):
        plan[spec.name] = newcomers.place(spec)
    return {spec.name: plan[spec.name] for spec in specs}


def nearer(
    spec: HostSpec,
    host: LogicalHost,
    nodes: Sequence[NodeCapacity],
    pools: Sequence[PoolSpec],
    existing: Hosts,
    taken: Iterable[Share] = (),
    closed: Closed | None = None,
    links: Sequence[LinkSpec] = (),
) -> LogicalHost | None:
    """The host with parts of other nodes brought to its anchor, or else into its rack, where there is room by now.

    Those are memory and GPUs: storage stays where its bytes are. None where nothing could be nearer, or the host is
    not what the spec asks for. The arguments are those of `plan_hosts`; the host is one of `existing`.
    """
    return nearer_parts(spec, host, _floor(nodes, pools, existing, taken, closed, links))


def _floor(
    nodes: Sequence[NodeCapacity],
    pools: Sequence[PoolSpec],
    hosts: Hosts,
    taken: Iterable[Share],
    closed: Closed | None,
    links: Sequence[LinkSpec],
) -> Floor:
    floor = Floor(nodes, pools, closed or {}, links)
    for share in taken:
        floor.move(share.provider, share.kind, share.amount, share.devices, -1)
    for host in hosts.values():
        floor.move_host(host, -1)
    return floor


class _Newcomers:
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
    mappings = (spec.amounts, spec.pools, spec.far, spec.circuits)
    asked = tuple(tuple(sorted(mapping.items())) for mapping in mappings)
    gpus = (spec.gpu_model, spec.gpu_memory_bytes, spec.topology)
    return (*asked, *gpus, spec.near, spec.strategy, spec.executor)


def _largest_first(spec: HostSpec) -> tuple[object, ...]:
    asked = spec.amounts
    return (-asked.get(GPU, 0), -asked.get(CPU, 0), -asked.get(MEMORY, 0), natural(spec.name))
