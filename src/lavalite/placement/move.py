"""Where the disk of a host goes that is another node's and is to be larger, of another pool, or nearer.

Such a move is a change by itself: one part leaves, one comes, and nothing else of the host is any different but the
circuits that carry the two. Until the copy is done both are held, so there has to be room for both.
"""

from __future__ import annotations

from dataclasses import replace

from lavalite.model.host import LogicalHost, Part
from lavalite.model.resources import NETWORK, STORAGE
from lavalite.model.specs import HostSpec
from lavalite.placement.anchors import may_be_far
from lavalite.placement.assemble import assemble, wanted_bandwidth
from lavalite.placement.floor import Floor
from lavalite.placement.reasons import Gap, Reason, Refusal


def moved(spec: HostSpec, host: LogicalHost, row: int, floor: Floor, disk: Part) -> LogicalHost | Refusal:
    """The host with its disk on the anchor where there is room, else of another node, which may be the same one.

    Here and below `floor` holds nothing of the host, and what it has become where that is not refused.
    """
    if disk.provider not in floor.rows:
        return Refusal({Reason.SILENT: 1}, asked=spec.asked())
    home = moved_home(spec, host, row, floor, disk)
    if home is not None:
        return home
    if STORAGE not in may_be_far(spec):
        return Refusal({Reason.MAY_NOT_BE_FAR: 1}, asked=spec.asked())
    after = _elsewhere(spec, host, row, floor, disk)
    return Refusal({after.reason: 1}, asked=spec.asked(), gap=after) if isinstance(after, Gap) else after


def moved_home(spec: HostSpec, host: LogicalHost, row: int, floor: Floor, disk: Part) -> LogicalHost | None:
    """The host with its disk on the anchor."""
    alone = replace(spec, amounts={STORAGE: spec.amounts[STORAGE]})
    usable = floor.open[row] and floor.members(spec, STORAGE)[row]
    if not usable or floor.room(row).lacks(alone):
        return None
    others = [part for part in host.parts if host.is_far(part) and part.id != disk.id]
    after = assemble(_but_for_the_disk(spec, host), floor, row, {}, host, others)
    return None if isinstance(after, Gap) else after


def moved_into_rack(spec: HostSpec, host: LogicalHost, row: int, floor: Floor, disk: Part) -> LogicalHost | None:
    """The host with its disk on another node of the anchor's rack."""
    after = _elsewhere(replace(spec, near="rack"), host, row, floor, disk)
    return None if isinstance(after, Gap) else after


def _elsewhere(spec: HostSpec, host: LogicalHost, row: int, floor: Floor, disk: Part) -> LogicalHost | Gap:
    wish = _but_for_the_disk(spec, host)
    far = [part for part in host.parts if host.is_far(part)]
    both = assemble(wish, floor, row, {STORAGE: wish.amounts[STORAGE]}, host, far)
    return both if isinstance(both, Gap) else _without(wish, both, floor, disk)


def _but_for_the_disk(spec: HostSpec, host: LogicalHost) -> HostSpec:
    """What the host is, with storage as it is asked for."""
    amounts = {kind: host.amount(kind) for kind in dict.fromkeys(part.kind for part in host.parts)}
    pools = {part.kind: part.pool for part in host.parts if part.pool}
    asked = {STORAGE: spec.pools[STORAGE]} if STORAGE in spec.pools else {}
    return replace(spec, amounts={**amounts, STORAGE: spec.amounts[STORAGE]}, pools={**pools, **asked})


def _without(spec: HostSpec, host: LogicalHost, floor: Floor, disk: Part) -> LogicalHost:
    """Its circuit goes, too, or is as wide as what else comes over it needs."""
    parts = [part for part in host.parts if part.id != disk.id]
    floor.move(disk.provider, STORAGE, disk.amount, (), +1)
    circuits = []
    for circuit in host.circuits:
        kinds = [part.kind for part in parts if part.circuit == circuit.id]
        width = wanted_bandwidth(spec, kinds) if kinds else 0
        for name in (circuit.anchor, circuit.provider, *circuit.links):
            floor.move(name, NETWORK, circuit.bits_per_second - width, (), +1)
        if kinds:
            circuits.append(circuit.model_copy(update={"bits_per_second": width}))
    return host.model_copy(update={"parts": parts, "circuits": circuits})
