"""Plans hosts with parts of other nodes in the plainest way, for tests of what becomes of the plans.

The anchor is the first node with the cores; memory and storage that it lacks come from the first other node that has
them, over a circuit. What is there stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lavalite.model.host import Circuit, HostState, LogicalHost, Part
from lavalite.model.job import Share
from lavalite.model.resources import CPU, GPU, MEMORY, NETWORK, STORAGE
from lavalite.model.specs import HostSpec, NodeCapacity
from lavalite.placement.reasons import Reason, Refusal
from lavalite.placement.shares import shares_of

GBIT = 10**9


def plan_far(
    specs: Sequence[HostSpec],
    nodes: Sequence[NodeCapacity],
    pools: Any,
    existing: Mapping[str, LogicalHost],
    taken: Iterable[Share] = (),
    closed: Mapping[str, Reason] | None = None,
    links: Any = (),
) -> dict[str, LogicalHost | Refusal]:
    free = {node.name: dict(node.amounts) for node in nodes}
    for share in [*taken, *(s for host in existing.values() for s in shares_of(host))]:
        _move(free, share, -1)
    plans: dict[str, LogicalHost | Refusal] = {}
    for spec in specs:
        before = existing.get(spec.name)
        if before is not None and all(before.amount(k) == n for k, n in spec.amounts.items()):
            plans[spec.name] = before
            continue
        for share in shares_of(before) if before else ():
            _move(free, share, +1)
        plan = _planned(spec, free, before, closed or {})
        for share in shares_of(plan or before) if plan or before else ():
            _move(free, share, -1)
        plans[spec.name] = plan or Refusal({Reason.TOO_FEW_FREE: len(free)}, asked=spec.asked())
    return plans


def _move(free: dict[str, dict[str, int]], share: Share, sign: int) -> None:
    if share.provider in free:
        free[share.provider][share.kind] = free[share.provider].get(share.kind, 0) + sign * share.amount


def _planned(
    spec: HostSpec, free: dict[str, dict[str, int]], before: LogicalHost | None, closed: Mapping[str, Reason]
) -> LogicalHost | None:
    anchors = [before.anchor] if before else [name for name in sorted(free) if name not in closed]
    for anchor in anchors:
        if anchor not in free or free[anchor].get(CPU, 0) < spec.amounts[CPU]:
            continue
        parts = [_part(spec.name, CPU, spec.amounts[CPU], anchor)]
        if all(_spread(spec, kind, anchor, free, parts, closed) for kind in (MEMORY, STORAGE, GPU)):
            far = sorted({part.provider for part in parts} - {anchor})
            held = {c.provider: c for c in before.circuits} if before else {}
            circuits = [
                held.get(n) or Circuit(id=f"{spec.name}/{n}", anchor=anchor, provider=n, bits_per_second=GBIT)
                for n in far
            ]
            made = [
                p.model_copy(update={"circuit": f"{spec.name}/{p.provider}" if p.provider in far else ""})
                for p in parts
            ]
            if any(free[n].get(NETWORK, 0) < GBIT for n in far) or free[anchor].get(NETWORK, 0) < GBIT * len(far):
                continue
            if before:
                change = {"parts": made, "circuits": circuits, "version": before.version + 1}
                return before.model_copy(update=change)
            return LogicalHost(name=spec.name, state=HostState.PLANNED, anchor=anchor, parts=made, circuits=circuits)
    return None


def _spread(
    spec: HostSpec,
    kind: str,
    anchor: str,
    free: dict[str, dict[str, int]],
    parts: list[Part],
    closed: Mapping[str, Reason],
) -> bool:
    wanted = spec.amounts.get(kind, 0)
    others = [name for name in sorted(free) if name != anchor and name not in closed]
    for node in (anchor, *others):
        near = min(wanted, max(0, free[node].get(kind, 0)))
        if near < wanted and kind != MEMORY and (node == anchor or kind == STORAGE):
            continue  # a disk is never divided
        if near and kind != GPU:
            parts.append(_part(spec.name, kind, near, node))
            wanted -= near
    return not wanted


def _part(host: str, kind: str, amount: int, node: str) -> Part:
    return Part(id=f"{host}/{kind}/{node}", kind=kind, amount=amount, provider=node)
