"""What becomes of a logical host that is there, when something else is asked for, or when far parts could be near.

It keeps its anchor. Parts of other nodes stay as they are as far as they suit: far memory never changes its amount,
but grows by a further part and shrinks by whole parts; storage of another node is moved as a whole (placement.move),
by itself, once all else is as it is to be. What is of the anchor grows first, and shrinks last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from lavalite.model.host import LogicalHost, Part
from lavalite.model.resources import GPU, MEMORY, STORAGE, WHOLE
from lavalite.model.specs import HostSpec
from lavalite.placement.anchors import attachable, may_be_far, survey
from lavalite.placement.assemble import assemble, wanted_bandwidth
from lavalite.placement.fabric import Nearness
from lavalite.placement.floor import Floor
from lavalite.placement.move import moved, moved_home, moved_into_rack
from lavalite.placement.reasons import Gap, Reason, Refusal


def again(spec: HostSpec, host: LogicalHost, floor: Floor) -> LogicalHost | Refusal:
    """The host as it was if it is what is asked for, else with other parts; what it holds is taken on the floor."""
    if is_as_asked(spec, host, floor):
        return host
    row = floor.rows.get(host.anchor)
    if row is None:
        return Refusal({Reason.SILENT: 1}, asked=spec.asked())
    floor.move_host(host, +1)
    after = _changed(spec, host, row, floor)
    if isinstance(after, Refusal):
        floor.move_host(host, -1)
    return after


def nearer_parts(spec: HostSpec, host: LogicalHost, floor: Floor, kinds: Collection[str]) -> LogicalHost | None:
    """The host with parts of other nodes, of these kinds, on its anchor, or else in its rack, as far as there is room
    now; its storage last, and alone. None where there is not. `floor` holds what the host holds, and does afterwards.
    """
    row = floor.rows.get(host.anchor)
    if row is None or not floor.open[row] or not is_as_asked(spec, host, floor):
        return None
    floor.move_host(host, +1)
    may_move = [part for part in host.parts if host.is_far(part) and part.kind in kinds and part.kind != STORAGE]
    found = _at_home(spec, host, row, floor, may_move) or _in_rack(spec, host, row, floor, may_move)
    if found is None and STORAGE in kinds:
        found = _nearer_disk(spec, host, row, floor)
    if found is not None:
        floor.move_host(found, +1)
    floor.move_host(host, -1)
    return found


def grows(spec: HostSpec, host: LogicalHost) -> bool:
    return any(amount > host.amount(kind) for kind, amount in spec.amounts.items())


def is_as_asked(spec: HostSpec, host: LogicalHost, floor: Floor) -> bool:
    """Whether the host is what the spec asks for. What has vanished is not judged."""
    amounts: dict[str, int] = {}
    for part in host.parts:
        amounts[part.kind] = amounts.get(part.kind, 0) + part.amount
    if amounts != spec.amounts or any(part.pool != spec.pools.get(part.kind, "") for part in host.parts):
        return False
    if (host.executor, host.vm, host.on_loss) != (spec.executor, spec.vm, spec.on_loss):
        return False
    for name in {part.provider for part in host.parts if part.kind == GPU}:
        gpus = {device for part in host.parts if (part.kind, part.provider) == (GPU, name) for device in part.devices}
        row = floor.rows.get(name)
        if row is not None and not floor.room(row).keeps(spec, gpus):
            return False
    far = [part for part in host.parts if host.is_far(part)]
    return not far or _far_is_as_asked(spec, host, far, floor)


def _far_is_as_asked(spec: HostSpec, host: LogicalHost, far: Sequence[Part], floor: Floor) -> bool:
    may = may_be_far(spec)
    if any(_sum(far, kind) > may.get(kind, 0) for kind in (MEMORY, GPU, STORAGE)):
        return False
    kinds: dict[str, list[str]] = {}
    for part in far:
        kinds.setdefault(part.provider, []).append(part.kind)
    wanted = {provider: wanted_bandwidth(spec, found) for provider, found in kinds.items()}
    if wanted != {circuit.provider: circuit.bits_per_second for circuit in host.circuits}:
        return False
    return all(_spans(spec, host, part, floor) for part in far)


# --- resizing -----------------------------------------------------------------------------------------------------


def _changed(spec: HostSpec, host: LogicalHost, row: int, floor: Floor) -> LogicalHost | Refusal:
    if (host.executor, host.vm) != (spec.executor, spec.vm):
        return Refusal({Reason.EXECUTOR_STAYS: 1}, asked=spec.asked())
    disk = _unsuited_disk(spec, host, floor)
    if disk is None:
        return _with(spec, host, row, floor, _kept(spec, host, floor))
    if spec.amounts[STORAGE] < disk.amount:
        return Refusal({Reason.STORAGE_STAYS: 1}, asked=spec.asked())
    as_yet = _but_for(spec, disk)
    if is_as_asked(as_yet, host, floor) or not _spans(spec, host, disk, floor):
        return moved(spec, host, row, floor, disk)
    return _with(as_yet, host, row, floor, _kept(as_yet, host, floor))


def _unsuited_disk(spec: HostSpec, host: LogicalHost, floor: Floor) -> Part | None:
    """Storage of another node that is to have another size or pool, or to be nearer than it is."""
    asked = spec.amounts.get(STORAGE, 0)
    disks = (part for part in host.parts if part.kind == STORAGE and host.is_far(part))
    return next((p for p in disks if asked and (p.amount != asked or not _suits(spec, host, p, floor))), None)


def _but_for(spec: HostSpec, disk: Part) -> HostSpec:
    """What is asked for, with the disk as it is."""
    amounts, pools = {**spec.amounts, STORAGE: disk.amount}, {**spec.pools, STORAGE: disk.pool}
    return replace(spec, amounts=amounts, pools=pools)


def _with(spec: HostSpec, host: LogicalHost, row: int, floor: Floor, kept: Sequence[Part]) -> LogicalHost | Refusal:
    """The host with these of its parts of other nodes, and the rest of the anchor or, where it may be, of others."""
    left = {kind: amount for kind, asked in spec.amounts.items() if (amount := asked - _sum(kept, kind)) > 0}
    may = {kind: amount - _sum(kept, kind) for kind, amount in may_be_far(spec).items()}
    split = attachable(spec)
    if any(part.kind == STORAGE and not host.is_far(part) for part in host.parts):
        split -= {STORAGE}  # its bytes are here
    found = survey(replace(spec, amounts=left), floor, may, split, growing=grows(spec, host))
    reason = found.reason(row)
    if reason is not None:
        must = {kind: least for kind in left if (least := left[kind] - may.get(kind, 0) * (kind in split)) > 0}
        lacks = floor.room(row).lacks(replace(spec, amounts=must))
        return Refusal({reason: 1}, host.anchor if lacks else "", lacks, spec.asked())
    after = assemble(spec, floor, row, found.lacking(row), host, kept)
    return Refusal({after.reason: 1}, asked=spec.asked(), gap=after) if isinstance(after, Gap) else after


def _kept(spec: HostSpec, host: LogicalHost, floor: Floor) -> list[Part]:
    """The parts of other nodes that stay."""
    may = may_be_far(spec)
    kept = []
    for kind in (STORAGE, MEMORY, GPU):
        asked = spec.amounts.get(kind, 0)
        far = [p for p in host.parts if p.kind == kind and host.is_far(p) and _suits(spec, host, p, floor)]
        here = sum(part.amount for part in host.parts if part.kind == kind and not host.is_far(part))
        far = _fewer(far, here + _sum(far, kind) - asked)
        while _sum(far, kind) > min(asked, may.get(kind, 0)):
            far = _shorter(far)
        kept += far
    return kept


def _fewer(parts: list[Part], surplus: int) -> list[Part]:
    """Without what is too much: whole parts of memory, of GPUs device by device, the last first."""
    kept = []
    for part in reversed(parts):
        if 0 < part.amount <= surplus:
            surplus -= part.amount
        elif part.kind == GPU and surplus >= WHOLE:
            kept.append(_trimmed(part, surplus // WHOLE))
            surplus %= WHOLE
        else:
            kept.append(part)
    return kept[::-1]


def _shorter(parts: list[Part]) -> list[Part]:
    """By the last part, or the last of its GPUs."""
    last = parts[-1]
    return [*parts[:-1], _trimmed(last, 1)] if last.kind == GPU and len(last.devices) > 1 else parts[:-1]


def _trimmed(part: Part, count: int) -> Part:
    """Without its last GPUs."""
    return part.model_copy(update={"amount": part.amount - count * WHOLE, "devices": part.devices[:-count]})


def _suits(spec: HostSpec, host: LogicalHost, part: Part, floor: Floor) -> bool:
    """Whether a part of another node is of the right pool and model, and near enough."""
    if part.pool != spec.pools.get(part.kind, "") or not _spans(spec, host, part, floor):
        return False
    row = floor.rows.get(part.provider)
    return part.kind != GPU or row is None or floor.room(row).keeps(spec, part.devices)


def _spans(spec: HostSpec, host: LogicalHost, part: Part, floor: Floor) -> bool:
    anchor, provider = floor.rows.get(host.anchor), floor.rows.get(part.provider)
    if spec.near == "any" or anchor is None or provider is None:
        return spec.near != "node"
    return spec.near == "rack" and bool(floor.fabric.in_rack(anchor)[provider])


def _sum(parts: Iterable[Part], kind: str) -> int:
    return sum(part.amount for part in parts if part.kind == kind)


# --- nearer -------------------------------------------------------------------------------------------------------


def _at_home(
    spec: HostSpec, host: LogicalHost, row: int, floor: Floor, may_move: Sequence[Part]
) -> LogicalHost | None:
    """With parts of other nodes on the anchor, the farthest first, as far as there is room."""
    far = [part for part in host.parts if host.is_far(part)]
    kept = list(far)
    for part in sorted(may_move, key=lambda part: -_nearness(host, part, floor)):
        rest = [other for other in kept if other is not part]
        amount = spec.amounts[part.kind] - _sum(rest, part.kind)
        usable = floor.members(spec, part.kind)[row]
        alone = replace(spec, amounts={part.kind: amount})
        if usable and not floor.room(row).lacks(alone) and (part.kind != GPU or floor.has_model(spec)[row]):
            kept = rest
    if len(kept) == len(far):
        return None
    after = _with(spec, host, row, floor, kept)
    return after if isinstance(after, LogicalHost) else None


def _in_rack(
    spec: HostSpec, host: LogicalHost, row: int, floor: Floor, may_move: Sequence[Part]
) -> LogicalHost | None:
    """With the first of its parts from elsewhere for which there is room in the rack."""
    far = [part for part in host.parts if host.is_far(part)]
    for part in may_move:
        if _nearness(host, part, floor) is not Nearness.APART or part.provider not in floor.rows:
            continue
        kept = [other for other in far if other is not part]
        after = assemble(replace(spec, near="rack"), floor, row, {part.kind: part.amount}, host, kept)
        if not isinstance(after, Gap):
            return after
    return None


def _nearer_disk(spec: HostSpec, host: LogicalHost, row: int, floor: Floor) -> LogicalHost | None:
    disk = next((part for part in host.parts if part.kind == STORAGE and host.is_far(part)), None)
    if disk is None or disk.provider not in floor.rows:
        return None
    found = moved_home(spec, host, row, floor, disk)
    if found is None and _nearness(host, disk, floor) is Nearness.APART:
        found = moved_into_rack(spec, host, row, floor, disk)
    return found


def _nearness(host: LogicalHost, part: Part, floor: Floor) -> Nearness:
    provider = floor.rows.get(part.provider)
    return Nearness.APART if provider is None else floor.fabric.nearness(floor.rows[host.anchor], provider)
