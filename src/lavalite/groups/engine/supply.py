"""What there is, and how it is divided: nodes as they are looked at, and pools as they are written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from lavalite.base.errors import ConflictError, Fault, InputError, UnknownNameError
from lavalite.groups.engine.changes import Changes
from lavalite.groups.engine.picture import Picture
from lavalite.groups.engine.pools import check_fits, read_pool
from lavalite.groups.records import PoolRecord
from lavalite.model.job import Name
from lavalite.model.resources import NodeOffer


class _Named(BaseModel):
    name: Name


def put_nodes(picture: Picture, offers: Sequence[NodeOffer]) -> Changes:
    """What nodes offer now; nothing where it is what is known. What groups hold of what is gone stays theirs."""
    changes = Changes()
    for offer in offers:
        known = picture.nodes.get(offer.node)
        if known is None:
            changes.put(offer)
        elif offer.model_copy(update={"version": known.offer.version}) != known.offer:
            changes.put(offer.model_copy(update={"version": known.offer.version + 1}))
    return changes


def drop_nodes(picture: Picture, named: Collection[str], most: int) -> Changes:
    """Up to so many of the nodes that are not named are gone. Groups on them show as failed."""
    changes = Changes()
    for node in picture.nodes.values():
        if node.name not in named and len(changes.deletes) < most:
            changes.delete(node.offer)
    return changes


def put_pool(picture: Picture, name: str, entry: Mapping[str, Any]) -> Changes:
    """Make or change a pool. What is held stays held; a quota that is smaller than that lends no more.

    Raises InputError with all faults, NotOfferedError for what only a running system has.
    """
    try:
        _Named(name=name)
    except ValidationError:
        hint = "Use letters, digits, _, . and -, a letter or digit first, at most 63."
        raise InputError(f"{str(name)[:80]!r} is no name of a pool", field="name", hint=hint) from None
    pool = read_pool(PoolRecord(name=name, entry=dict(entry)))
    faults = []
    for other in picture.pools.values():
        both = sorted(set(other.spec.kinds) & set(pool.spec.kinds))
        if other.name != name and other.spec.default and pool.spec.default and both:
            message = f"pool {other.name} is the default for {', '.join(both)} already"
            faults.append(Fault("bad_input", message, "default", "Let one of them be it."))
    if faults:
        raise InputError(faults=faults)
    if pool.spec.quota:
        capacities = {
            each: {kind: picture.pool_capacity(each, kind) for kind in other.spec.kinds}
            for each, other in picture.pools.items()
        }
        selector = pool.spec.selector
        chosen = [n for n in picture.nodes.values() if selector is not None and selector.matches(n.name, n.labels)]
        capacities[name] = {kind: sum(node.offer.amount(kind) for node in chosen) for kind in pool.spec.kinds}
        check_fits(pool, picture.pools.values(), capacities)
    changes = Changes()
    changes.put(pool.record)
    return changes


def delete_pool(picture: Picture, name: str) -> Changes:
    """Raises UnknownNameError, and ConflictError while groups are of it."""
    pool = picture.pools.get(name)
    if pool is None:
        hint = f"There are {', '.join(sorted(picture.pools))}." if picture.pools else ""
        raise UnknownNameError(f"there is no pool {name[:80]!r}", field="name", hint=hint)
    if used := picture.usage.used.get(name):
        teams = sorted({team or "nobody" for by_team in used.values() for team in by_team})
        raise ConflictError(f"groups of pool {name} are held by {', '.join(teams[:5])}", hint="Give them back first.")
    changes = Changes()
    changes.delete(pool.record)
    return changes
