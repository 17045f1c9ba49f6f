"""Where an ask goes: to a group that is there already, or to new room on the node that its policy prefers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lavalite.base.errors import UnknownNameError
from lavalite.groups.engine.picture import Picture
from lavalite.groups.engine.pools import left_to
from lavalite.groups.engine.shelf import ANYBODY
from lavalite.groups.engine.wanted import Variant, Wanted
from lavalite.groups.records import GroupRecord
from lavalite.groups.requirements import Ask
from lavalite.model.job import Share
from lavalite.model.resources import GPU, is_special
from lavalite.placement.classes import NONE, RequestClass
from lavalite.placement.columns import READY, Bools
from lavalite.placement.ranking import Leaning


class Room(NamedTuple):
    """New room: on that row, had in that way."""

    row: int
    variant: Variant


def there_already(picture: Picture, ask: Ask, wanted: Wanted, *, reserved: bool = True) -> GroupRecord | None:
    """A group that is free, or (`reserved`) the component's own reservation, that has what is asked for, and is where
    it may be."""
    owners = [ask.component, ANYBODY] if ask.component and reserved else [ANYBODY]
    mask: Bools | None = None
    looked = False
    for owner in owners:
        for group_id in picture.shelf.candidates(owner, wanted, ask.team, picture.pools):
            if not looked:
                mask, looked = _allowed(picture, ask, wanted), True
            record = picture.groups[group_id]
            row = picture.columns.row(record.node)
            if row is None or picture.columns.states[row] != READY or (mask is not None and not mask[row]):
                continue
            if not picture.health or not picture.fault_of(record):
                return record
    return None


def new_room(picture: Picture, ask: Ask, wanted: Wanted) -> Room | None:
    """Room that nobody holds; None where there is none now. Raises UnknownNameError for a node that is not there."""
    mask = open_rows(picture, ask)
    for variant in wanted.variants:
        if over_quota(picture, ask, wanted, variant):
            continue
        row = _best(picture, ask, variant.wanted, mask)
        if row >= 0:
            return Room(row, variant)
    return None


def _best(picture: Picture, ask: Ask, wanted: RequestClass, mask: Bools | None) -> int:
    columns = picture.columns
    if ask.constraints.node:
        row = node_row(picture, ask.constraints.node)
        fits = wanted.fitting(columns, np.array([row]))[0] and (mask is None or mask[row])
        return row if fits else NONE
    ranking = picture.rankings.of(wanted, ask.policy)
    if mask is None:
        return ranking.best(columns, picture.last_row)
    runs = ranking.runs(columns, 1, picture.last_row, leaning=Leaning(mask))
    return runs[0].row if runs else NONE


def node_row(picture: Picture, name: str) -> int:
    """Raises UnknownNameError."""
    row = picture.columns.row(name) if name in picture.nodes else None
    if row is None:
        hint = "list_compute_nodes() says which there are."
        raise UnknownNameError(f"there is no node {name[:80]!r}", field="constraints.node", hint=hint)
    return row


def open_rows(picture: Picture, ask: Ask) -> Bools | None:
    """The rows that are near, and apart from, those that the ask names; None for all of them."""
    mask: Bools | None = None
    for is_near, rows in near_and_apart(picture, ask):
        here = rows if is_near else ~rows
        mask = here if mask is None else mask & here
    return mask


def near_and_apart(picture: Picture, ask: Ask) -> list[tuple[bool, Bools]]:
    """For each component that the ask is to be near to (True) or apart from, the rows where that one is."""
    constraints = ask.constraints
    if not constraints.affinity and not constraints.anti_affinity:
        return []
    return picture.neighbours.open_rows(
        picture.columns,
        picture.nodes,
        picture.nodes_version,
        constraints.affinity,
        constraints.anti_affinity,
        constraints.within,
    )


def _allowed(picture: Picture, ask: Ask, wanted: Wanted) -> Bools | None:
    """The rows of groups that are there already and may be taken; None for all of them."""
    mask = open_rows(picture, ask)
    if ask.constraints.node:
        only = np.zeros(len(picture.columns), dtype=np.bool_)
        only[node_row(picture, ask.constraints.node)] = True
        mask = only if mask is None else mask & only
    for selection in wanted.labels:
        here = picture.columns.pool(selection)
        mask = here if mask is None else mask & here
    return mask


# --- quotas -------------------------------------------------------------------------------------------------------


def over_quota(picture: Picture, ask: Ask, wanted: Wanted, variant: Variant) -> str:
    """The first kind of which the team may not have so much of its pool now; empty where all is within quotas."""
    for kind, left in left_of_quotas(picture, ask, wanted):
        if variant.wanted.amounts.get(kind, 0) > left:
            return kind
    return ""


def left_of_quotas(picture: Picture, ask: Ask, wanted: Wanted) -> Iterator[tuple[str, int]]:
    """For each kind that a pool of the ask has quotas of, how much more of it the team may have."""
    for kind, name in wanted.pools.items():
        pool = picture.pools[name]
        if pool.counts(kind):
            capacity = picture.pool_capacity(name, kind)
            yield kind, left_to(picture.pools, picture.usage, pool, kind, ask.team, capacity)


# --- what is taken --------------------------------------------------------------------------------------------------


def shares_of(picture: Picture, wanted: Wanted, room: Room) -> list[Share]:
    """What a group in that room holds, by kind; each is of one node."""
    node, variant = picture.columns.names[room.row], room.variant
    shares = []
    for kind, amount in variant.wanted.amounts.items():
        pool = wanted.pools.get(kind, "")
        if kind == GPU and variant.instances:
            for device, count in _instances(picture, room.row, variant).items():
                load = count * variant.load
                shares.append(Share(provider=node, kind=GPU, amount=load, devices=[device], pool=pool))
            continue
        devices: list[str] = []
        if kind == GPU:
            devices = variant.wanted.pick_devices(picture.columns.devices(room.row))
        elif is_special(kind):
            free = picture.book.device_free(node, kind)
            devices = [device for device, left in free.items() if left > 0][:amount]
        shares.append(Share(provider=node, kind=kind, amount=amount, devices=devices, pool=pool))
    return shares


def _instances(picture: Picture, row: int, variant: Variant) -> dict[str, int]:
    """On which GPUs so many instances are made: the fullest first, so that others stay whole."""
    selector, left = variant.wanted.gpu, variant.instances
    assert selector is not None
    found: dict[str, int] = {}
    for device in sorted(filter(selector.units, picture.columns.devices(row)), key=lambda d: d.free):
        if left:
            found[device.id] = count = min(left, selector.units(device))
            left -= count
    return found
