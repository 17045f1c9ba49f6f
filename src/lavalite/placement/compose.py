"""Which node a logical host is on, and which of its parts it takes.

    specs, nodes, what is taken ──► plan_hosts ──► a LogicalHost or a Refusal for each

A host that exists keeps its anchor, and its devices as far as they still suit. New ones are placed largest first, on
the node that they leave fullest. The plan depends on what is asked and what is there, never on the order of either.
All parts of a host are of its anchor; a part names its provider all the same, so that one may come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lavalite.model.host import HostState, LogicalHost, Part
from lavalite.model.job import Share
from lavalite.model.resources import CPU, GPU, KINDS, MEMORY
from lavalite.model.specs import HostSpec, NodeCapacity, PoolSpec
from lavalite.placement.reasons import Reason, Refusal
from lavalite.placement.room import Room, natural

Rooms = dict[str, Room]
Closed = Mapping[str, Reason]
Shape = tuple[tuple[tuple[str, int], ...], str, int, tuple[str, ...]]


class _Verdict(NamedTuple):
    """Why a node turns a host away, or how well it fits (Room.leftover), as of so many moves on the node."""

    moves: int
    reason: Reason | None
    leftover: int


def plan_hosts(
    specs: Sequence[HostSpec],
    nodes: Sequence[NodeCapacity],
    pools: Sequence[PoolSpec],
    existing: Mapping[str, LogicalHost] | None = None,
    taken: Iterable[Share] = (),
    closed: Closed | None = None,
) -> dict[str, LogicalHost | Refusal]:
    """A plan for every spec, by its name and in the order of `specs`.

    `existing` are the hosts that there are (also those that no spec asks for: they hold what they have), `taken`
    what others hold of the nodes, `closed` the nodes that take nothing new, and why (DRAINING, SILENT). A host that
    is as its spec asks comes back equal to what it was; one that changes keeps its state and has a higher version.
    """
    planner = _Planner(nodes, pools, closed or {})
    hosts = existing or {}
    for share in taken:
        planner.move(share.provider, share.kind, share.amount, share.devices, -1)
    for host in hosts.values():
        planner.move_host(host, -1)
    plan: dict[str, LogicalHost | Refusal] = {}
    known = [spec for spec in specs if spec.name in hosts]
    for spec in sorted(known, key=lambda spec: (_grows(spec, hosts[spec.name]), natural(spec.name))):
        plan[spec.name] = planner.again(spec, hosts[spec.name])
    for spec in sorted((spec for spec in specs if spec.name not in hosts), key=_largest_first):
        plan[spec.name] = planner.anew(spec)
    return {spec.name: plan[spec.name] for spec in specs}


class _Planner:
    def __init__(self, nodes: Sequence[NodeCapacity], pools: Sequence[PoolSpec], closed: Closed) -> None:
        self._rooms: Rooms = {n.name: Room(n) for n in sorted(nodes, key=lambda node: natural(node.name))}
        self._members = {
            pool.name: {node.name for node in nodes if pool.has(node.name, node.labels)} for pool in pools
        }
        self._closed = closed
        self._verdicts: dict[Shape, dict[str, _Verdict]] = {}

    def move(self, provider: str, kind: str, amount: int, devices: Sequence[str], sign: int) -> None:
        room = self._rooms.get(provider)
        if room is not None:  # a floating resource, a host's own, or a node that is no more
            room.move(kind, amount, devices, sign)

    def move_host(self, host: LogicalHost, sign: int) -> None:
        if host.state is not HostState.RELEASED:
            for part in host.parts:
                self.move(part.provider, part.kind, part.amount, part.devices, sign)

    def anew(self, spec: HostSpec) -> LogicalHost | Refusal:
        """A host that is not there yet, on the best node; what it takes is taken from then on."""
        best, least = None, 0
        turned_away: dict[Reason, int] = {}
        known = self._verdicts.setdefault(_shape(spec), {})
        for room in self._rooms.values():
            verdict = self._verdict(spec, room, known)
            if verdict.reason is not None:
                turned_away[verdict.reason] = turned_away.get(verdict.reason, 0) + 1
            elif best is None or verdict.leftover < least:  # of equals the first by name
                best, least = room, verdict.leftover
        if best is None:
            refusal = Refusal(turned_away, asked=spec.asked())
            self._nearest(spec, refusal)
            return refusal
        host = self._composed(spec, best)
        self.move_host(host, -1)
        return host

    def again(self, spec: HostSpec, host: LogicalHost) -> LogicalHost | Refusal:
        """A host that is there: as it was if it is what is asked for, else with other parts of its anchor."""
        room = self._rooms.get(host.anchor)
        if self._is_as_asked(spec, host, room):
            return host
        if room is None:
            return Refusal({Reason.SILENT: 1}, asked=spec.asked())
        self.move_host(host, +1)
        reason = self._turned_away(spec, room, growing=_grows(spec, host))
        if reason is not None:
            lacks = room.lacks(spec)
            self.move_host(host, -1)
            return Refusal({reason: 1}, host.anchor if lacks else "", lacks, spec.asked())
        after = self._composed(spec, room, host)
        self.move_host(after, -1)
        return after

    def _is_as_asked(self, spec: HostSpec, host: LogicalHost, room: Room | None) -> bool:
        amounts: dict[str, int] = {}
        for part in host.parts:
            amounts[part.kind] = amounts.get(part.kind, 0) + part.amount
        if amounts != spec.amounts or any(part.pool != spec.pools.get(part.kind, "") for part in host.parts):
            return False
        gpus = {device for part in host.parts if part.kind == GPU for device in part.devices}
        return room is None or room.keeps(spec, gpus)

    def _verdict(self, spec: HostSpec, room: Room, known: dict[str, _Verdict]) -> _Verdict:
        """What becomes of the host on the node. Worked out anew only for nodes that something moved on since."""
        verdict = known.get(room.node.name)
        if verdict is None or verdict.moves != room.moves:
            reason = self._turned_away(spec, room)
            verdict = _Verdict(room.moves, reason, room.leftover(spec) if reason is None else 0)
            known[room.node.name] = verdict
        return verdict

    def _turned_away(self, spec: HostSpec, room: Room, *, growing: bool = True) -> Reason | None:
        """The first reason why the host cannot be on the node: what never changes first."""
        name = room.node.name
        if any(name not in self._members.get(pool, ()) for pool in spec.pools.values()):
            return Reason.NOT_IN_POOL
        if any(not room.node.amounts.get(kind) for kind in spec.amounts):
            return Reason.NO_KIND
        if not room.has_model(spec):
            return Reason.NO_MODEL
        if room.lacks(spec, empty=True):
            return Reason.TOO_SMALL
        if growing and name in self._closed:
            return self._closed[name]
        return Reason.TOO_FEW_FREE if room.lacks(spec) else None

    def _nearest(self, spec: HostSpec, refusal: Refusal) -> None:
        """The node that lacks least: of those full now, else of those too small."""
        known = self._verdicts[_shape(spec)]
        for wanted in (Reason.TOO_FEW_FREE, Reason.TOO_SMALL):
            least = None
            for room in self._rooms.values():
                if wanted not in refusal.turned_away or self._verdict(spec, room, known).reason is not wanted:
                    continue
                lacks = room.lacks(spec)
                share = sum(short * 1000 // spec.amounts[kind] for kind, short in lacks.items())
                if least is None or share < least:
                    least, refusal.nearest, refusal.lacks = share, room.node.name, lacks
            if least is not None:
                return

    def _composed(self, spec: HostSpec, room: Room, before: LogicalHost | None = None) -> LogicalHost:
        """The host with all its parts of this node, where it fits."""
        held = {part.kind: set(part.devices) for part in before.parts} if before else {}
        gpus = room.pick(spec, GPU, held.get(GPU, ())) if GPU in spec.amounts else []
        devices = {GPU: gpus}
        if CPU in spec.amounts:
            devices[CPU] = room.pick(spec, CPU, held.get(CPU, ()), room.numa_nodes(GPU, gpus))
        anchor = room.node.name
        parts = [
            Part(
                id=f"{spec.name}/{kind}/{anchor}",
                kind=kind,
                amount=spec.amounts[kind],
                provider=anchor,
                pool=spec.pools.get(kind, ""),
                devices=devices.get(kind, []),
            )
            for kind in KINDS
            if kind in spec.amounts
        ]
        pools = sorted(set(spec.pools.values()))
        if before is None:
            return LogicalHost(name=spec.name, state=HostState.PLANNED, anchor=anchor, parts=parts, pools=pools)
        return before.model_copy(update={"parts": parts, "pools": pools, "version": before.version + 1})


def _shape(spec: HostSpec) -> Shape:
    """Alike for hosts that every node treats alike."""
    asked, pools = tuple(sorted(spec.amounts.items())), tuple(sorted(set(spec.pools.values())))
    return asked, spec.gpu_model, spec.gpu_memory_bytes, pools


def _grows(spec: HostSpec, host: LogicalHost) -> bool:
    return any(amount > host.amount(kind) for kind, amount in spec.amounts.items())


def _largest_first(spec: HostSpec) -> tuple[object, ...]:
    asked = spec.amounts
    return (-asked.get(GPU, 0), -asked.get(CPU, 0), -asked.get(MEMORY, 0), natural(spec.name))
