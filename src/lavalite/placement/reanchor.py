"""Where a virtual machine goes of which the disk is another node's, and has no room at home: where all of it has.

It goes with all that it has: nothing of it is another node's afterwards. Until it is there both nodes hold it, and a
circuit between them carries it.
"""

from __future__ import annotations

from dataclasses import replace

from lavalite.model.host import VM, Circuit, LogicalHost, Part
from lavalite.model.resources import GPU, MEMORY, STORAGE
from lavalite.model.specs import HostSpec
from lavalite.placement.anchors import circuit_bandwidth, in_order, survey
from lavalite.placement.assemble import assemble, circuit_id
from lavalite.placement.fabric import Way
from lavalite.placement.floor import Floor
from lavalite.placement.reasons import Reason
from lavalite.placement.resize import is_as_asked


def whole_elsewhere(spec: HostSpec, host: LogicalHost, floor: Floor) -> LogicalHost | None:
    """The host on another anchor that has all of it, with the circuit between the two; None where there is none.

    `floor` holds what the host holds, and afterwards what it is to have as well.
    """
    if spec.executor != VM or host.anchor not in floor.rows or not is_as_asked(spec, host, floor):
        return None
    if not any(host.is_far(part) and part.kind == STORAGE for part in host.parts):
        return None
    if any(part.kind == GPU or (part.kind == MEMORY and host.is_far(part)) for part in host.parts):
        return None
    home, bits = floor.rows[host.anchor], circuit_bandwidth(spec, STORAGE)
    wish = replace(spec, near="node", far={})
    found = survey(wish, floor, {}, frozenset())
    found.turn_away(home, Reason.TOO_FEW_FREE)
    rows = in_order(wish, floor, found)
    while len(rows):
        row = int(rows[0])
        way = floor.fabric.way(home, row, bits)
        after = assemble(wish, floor, row, {}) if isinstance(way, Way) else None
        if isinstance(way, Way) and isinstance(after, LogicalHost):
            known = next((each for each in host.circuits if each.provider == after.anchor), None)
            circuit = known or _circuit(spec, host, after.anchor, bits, way, floor)
            parts = _apart(host, after.parts)
            changed = {"anchor": after.anchor, "parts": parts, "circuits": [circuit], "pools": after.pools}
            return host.model_copy(update={**changed, "version": host.version + 1})
        found.turn_away(row, Reason.NO_PATH)
        rows = in_order(wish, floor, found)
    return None


def _circuit(spec: HostSpec, host: LogicalHost, to: str, bits: int, way: Way, floor: Floor) -> Circuit:
    floor.move_circuit(floor.rows[host.anchor], floor.rows[to], bits, way.links, -1)
    links = list(way.links)
    return Circuit(id=circuit_id(spec.name, to), anchor=host.anchor, provider=to, bits_per_second=bits, links=links)


def _apart(host: LogicalHost, parts: list[Part]) -> list[Part]:
    """Parts are named after their nodes; what the host has of that one already keeps its name."""
    taken, found = {part.id for part in host.parts}, []
    for part in parts:
        name, number = part.id, 2
        while name in taken:
            name, number = f"{part.id}.{number}", number + 1
        taken.add(name)
        found.append(part.model_copy(update={"id": name}))
    return found
