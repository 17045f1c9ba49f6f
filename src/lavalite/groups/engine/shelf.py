"""Groups that may be taken as they are: free ones, and reservations by whom they are for; sorted by what they have.

There are few sorts, however many groups there are: an ask looks at each sort once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from lavalite.groups.engine.node_state import NodeState
from lavalite.groups.engine.pools import Pool
from lavalite.groups.engine.wanted import Bucket, Wanted
from lavalite.groups.records import GroupRecord
from lavalite.model.resources import GPU, Device, is_special
from lavalite.model.specs import fits_model
from lavalite.placement.closeness import LEVELS, Near

ANYBODY = ""
Ids = dict[str, None]


class Sort(NamedTuple):
    """What groups that are alike have. `gpus` are (model, memory in bytes), `levels` what all its GPUs share."""

    amounts: tuple[tuple[str, int], ...]
    isolation: str
    gpus: tuple[tuple[str, int], ...]
    levels: tuple[str, ...]
    pools: tuple[tuple[str, str], ...]
    team: str


class Shelf:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._sorts: dict[tuple[str, Bucket], dict[Sort, Ids]] = {}
        self._where: dict[str, tuple[tuple[str, Bucket], Sort]] = {}

    def add(self, record: GroupRecord, node: NodeState | None, amounts: Mapping[str, int]) -> None:
        """The group, if it may be taken by an ask that does not name it and all that it holds is there still.

        `amounts` is what it was made for, by kind, as asked for.
        """
        if record.state not in ("free", "reserved") or not record.ready or node is None:
            return
        if record.state == "reserved" and not record.component:
            return  # whoever names it may have it
        held = [device for share in record.shares if share.kind == GPU for device in share.devices]
        if any(device not in node.gpus for device in held):
            return
        gpus = [node.gpus[device] for device in held]
        mig = record.mig_profile or next((gpu.mig for gpu in gpus if gpu.mig), "")
        special = tuple(sorted((kind, amount) for kind, amount in amounts.items() if is_special(kind)))
        bucket = Bucket(amounts.get(GPU, 0), mig if _asks_mig(record) else "", special)
        sort = Sort(
            tuple(sorted(totals(record).items())),
            "mig" if _asks_mig(record) else record.isolation,
            tuple(sorted({(gpu.device.model, gpu.device.memory_bytes) for gpu in gpus})),
            shared_levels([gpu.near for gpu in gpus]),
            tuple(sorted({(share.kind, share.pool) for share in record.shares if share.pool})),
            record.team,
        )
        at = (record.component if record.state == "reserved" else ANYBODY, bucket)
        self._sorts.setdefault(at, {}).setdefault(sort, {})[record.id] = None
        self._where[record.id] = (at, sort)

    def remove(self, group_id: str) -> None:
        """It need not be there."""
        if (found := self._where.pop(group_id, None)) is None:
            return
        at, sort = found
        ids = self._sorts[at][sort]
        del ids[group_id]
        if not ids:
            del self._sorts[at][sort]
            if not self._sorts[at]:
                del self._sorts[at]

    def candidates(self, owner: str, wanted: Wanted, team: str, pools: Mapping[str, Pool]) -> Iterator[str]:
        """Groups that have what is wanted, and not more than is needed: those with the least more first."""
        sorts = self._sorts.get((owner, wanted.bucket))
        if not sorts:
            return
        asked = wanted.request.amounts()
        suitable = [
            (_surplus(sort.amounts, asked), number, sort)
            for number, sort in enumerate(sorts)
            if suits(sort, wanted, team, pools)
        ]
        for _, _, sort in sorted(suitable, key=lambda entry: entry[:2]):
            yield from sorts.get(sort, ())

    def sort_of(self, group_id: str) -> tuple[tuple[str, Bucket], Sort] | None:
        return self._where.get(group_id)

    def ids(self) -> Collection[str]:
        return self._where.keys()


def suits(sort: Sort, wanted: Wanted, team: str, pools: Mapping[str, Pool]) -> bool:
    """Whether a group of the sort has enough of everything that is asked for, and of the right kind."""
    has, request = dict(sort.amounts), wanted.request
    for kind, amount in request.amounts().items():
        if kind != GPU and has.get(kind, 0) < amount:
            return False
    if request.gpu_milli:
        if sort.isolation not in wanted.isolations:
            return False
        of_gpu = (request.gpu_model, request.gpu_memory_bytes)
        if not all(fits_model(Device(id="", model=m, memory_bytes=b), *of_gpu) for m, b in sort.gpus):
            return False
        if request.gpu_topology and request.gpu_topology not in sort.levels:
            return False
    of_pool = dict(sort.pools)
    if any(of_pool.get(kind, "") != pool for kind, pool in wanted.pools.items()):
        return False
    return may_be_of(sort.pools, sort.team, team, pools)


def may_be_of(kinds: Collection[tuple[str, str]], owner: str, team: str, pools: Mapping[str, Pool]) -> bool:
    """Whether a group that counts for the team `owner` may be taken by one of `team`: where there are quotas, only
    if it is the same."""
    counted = any(name in pools and pools[name].counts(kind) for kind, name in kinds)
    return owner == team or not counted


def totals(record: GroupRecord) -> dict[str, int]:
    """What the group holds by kind, in the kind's unit."""
    found: dict[str, int] = {}
    for share in record.shares:
        found[share.kind] = found.get(share.kind, 0) + share.amount
    return found


def shared_levels(places: list[Near]) -> tuple[str, ...]:
    """The levels of which all are on one island."""
    found = []
    for at, level in enumerate(LEVELS):
        islands = {place[at] for place in places}
        if len(islands) == 1 and "" not in islands:
            found.append(level)
    return tuple(found)


def _asks_mig(record: GroupRecord) -> bool:
    """Whether it was made of MIG instances by their profile, and not for a part of a GPU."""
    gpu = record.requirements.get("gpu")
    return isinstance(gpu, Mapping) and bool(gpu.get("mig"))


def _surplus(has: tuple[tuple[str, int], ...], asked: Mapping[str, int]) -> int:
    """By how much it is more than what is asked for, in thousandths of what it has, summed over kinds."""
    return sum((amount - asked.get(kind, 0)) * 1000 // amount for kind, amount in has if kind != GPU and amount)
