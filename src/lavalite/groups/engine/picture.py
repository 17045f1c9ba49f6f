"""All records in memory, and what decisions look things up by, kept up by each change.

records ──► groups nodes pools waiting     by id or name
        ──► book, columns                  who holds what, and what is free (stock)
        ──► shelf, neighbours, usage       groups to be taken, where components are, what counts for whom
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavalite.base.errors import InputError
from lavalite.groups.engine.changes import Changes
from lavalite.groups.engine.neighbours import Neighbours
from lavalite.groups.engine.shelf import Shelf, totals
from lavalite.groups.engine.stock import Stock
from lavalite.groups.ledger import Changed
from lavalite.groups.records import (
    GROUPS,
    NODES,
    POOLS,
    WAITING,
    GroupRecord,
    Holder,
    PoolRecord,
    WaitingRecord,
)
from lavalite.groups.requirements import Ask, Requirements, read_ask
from lavalite.model.job import CommitmentRecord
from lavalite.model.resources import GPU, NodeOffer, Stored
from lavalite.placement.classes import NONE

RECORDS: Mapping[str, type[Stored]] = {
    GROUPS: GroupRecord,
    NODES: NodeOffer,
    POOLS: PoolRecord,
    WAITING: WaitingRecord,
}
MOST_WANTED, MOST_SELECTIONS = 1024, 256
WELL: Mapping[str, str] = {}


@dataclass(slots=True, frozen=True)
class Waiter:
    """Who waits for room, and what for."""

    record: WaitingRecord
    ask: Ask


class Picture(Stock):
    """See the module's docstring. `nodes`, `groups`, `pools` and `waiting` are not to be changed from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: dict[str, GroupRecord] = {}
        self.waiting: dict[str, Waiter] = {}
        self.shelf = Shelf()
        self.neighbours = Neighbours()
        self.last_row = NONE
        """Where the last new group went, for policies that take turns."""
        self._by_component: dict[str, dict[str, None]] = {}
        self._by_node: dict[str, dict[str, None]] = {}
        self._by_holder: dict[tuple[str, int, int], dict[str, None]] = {}
        self._unready: dict[str, None] = {}
        self._expiring: list[tuple[float, str]] = []

    # --- changes -----------------------------------------------------------------------------------------------

    def apply(self, changed: Iterable[Changed]) -> list[str]:
        """Take over records as they are now; the keys of those that are not as they were."""
        return [key for key, _ in self._put_all((key, _read(key, value)) for key, value in changed)]

    def take(self, changes: Changes) -> list[tuple[str, Stored | None]]:
        """Take over what a decision answered, once it is durable; what was before, for `put_back`."""
        return self._put_all([*changes.records.items(), *((key, None) for key in changes.deletes)])

    def put_back(self, before: Sequence[tuple[str, Stored | None]]) -> None:
        """As if `take` had never been."""
        self._put_all(reversed(before))

    def _put_all(self, records: Iterable[tuple[str, Stored | None]]) -> list[tuple[str, Stored | None]]:
        before = []
        for key, record in records:
            was = self.record(key)
            if was != record:
                self._put(key, was, record)
                before.append((key, was))
        self._settle()
        return before

    def record(self, key: str) -> Stored | None:
        """The record of that key, None where there is none."""
        folder, _, name = key.partition("/")
        if folder + "/" == GROUPS:
            return self.groups.get(name)
        if folder + "/" == NODES:
            return self.nodes[name].offer if name in self.nodes else None
        if folder + "/" == POOLS:
            return self.pools[name].record if name in self.pools else None
        return self.waiting[name].record if name in self.waiting else None

    def _put(self, key: str, was: Stored | None, record: Stored | None) -> None:
        if isinstance(was, GroupRecord):
            self._remove_group(was)
        if isinstance(record, GroupRecord):
            self._add_group(record, new=was is None)
        elif isinstance(record, NodeOffer) or isinstance(was, NodeOffer):
            self._put_node(key.removeprefix(NODES), record if isinstance(record, NodeOffer) else None)
        elif isinstance(record, PoolRecord) or isinstance(was, PoolRecord):
            self._put_pool(key.removeprefix(POOLS), record if isinstance(record, PoolRecord) else None)
        elif isinstance(record, WaitingRecord) or isinstance(was, WaitingRecord):
            self._put_waiting(key.removeprefix(WAITING), record if isinstance(record, WaitingRecord) else None)

    # --- groups ------------------------------------------------------------------------------------------------

    def _add_group(self, record: GroupRecord, *, new: bool) -> None:
        name, owner = record.id, GROUPS + record.id
        self.groups[name] = record
        commitment = CommitmentRecord.model_construct(
            owner=owner, epoch=(0, 0), shares=record.shares, committed_at=record.made_at
        )
        self.book.restore(commitment)
        self._by_node.setdefault(record.node, {})[name] = None
        if record.component:
            self._by_component.setdefault(record.component, {})[name] = None
        if record.isolation:
            for device in devices_of(record):
                self.parts.setdefault((record.node, device), {})[name] = record.isolation
        if not record.ready:
            self._unready[name] = None
        if ends_with_holder(record):
            self._by_holder.setdefault(holder_key(record.holder), {})[name] = None
        if record.expires_at is not None:
            heapq.heappush(self._expiring, (record.expires_at, GROUPS + name))
        self.usage.add(record, 1)
        self.neighbours.add(record, 1)
        self.shelf.add(record, self.nodes.get(record.node), asked_amounts(record))
        if new and (row := self.columns.row(record.node)) is not None:
            self.last_row = row

    def _remove_group(self, record: GroupRecord) -> None:
        name = record.id
        del self.groups[name]
        self.book.release(GROUPS + name)
        _drop(self._by_node, record.node, name)
        if record.component:
            _drop(self._by_component, record.component, name)
        if record.isolation:
            for device in devices_of(record):
                _drop(self.parts, (record.node, device), name)
        self._unready.pop(name, None)
        if ends_with_holder(record):
            _drop(self._by_holder, holder_key(record.holder), name)
        self.usage.add(record, -1)
        self.neighbours.add(record, -1)
        self.shelf.remove(name)

    def _put_node(self, name: str, offer: NodeOffer | None) -> None:
        super()._put_node(name, offer)
        for group_id in self._by_node.get(name, ()):  # what it holds may be gone, or there again
            self.shelf.remove(group_id)
            record = self.groups[group_id]
            self.shelf.add(record, self.nodes.get(name), asked_amounts(record))

    # --- who waits -----------------------------------------------------------------------------------------------

    def _put_waiting(self, name: str, record: WaitingRecord | None) -> None:
        self.waiting.pop(name, None)
        if record is None:
            return
        try:
            ask = read_ask(record.component, record.resources)
        except InputError:
            return  # it waits for what this release does not know: no room here is such
        self.waiting[name] = Waiter(record, ask)
        heapq.heappush(self._expiring, (record.expires_at, WAITING + name))

    # --- looking --------------------------------------------------------------------------------------------------

    def groups_of(self, component: str) -> Iterator[GroupRecord]:
        """Its groups, reserved ones too, the oldest first."""
        found = (self.groups[name] for name in self._by_component.get(component, ()))
        return iter(sorted(found, key=lambda record: (record.made_at, record.id)))

    def groups_on(self, node: str) -> Iterator[GroupRecord]:
        return (self.groups[name] for name in self._by_node.get(node, ()))

    def nodes_with_groups(self) -> list[str]:
        return list(self._by_node)

    def holders(self) -> dict[tuple[str, int, int], list[str]]:
        """By boot, pid and start the processes that groups end with, and those groups."""
        return {holder: list(names) for holder, names in self._by_holder.items()}

    def unready(self) -> list[str]:
        """Groups of which something is being made, or removed; or was, when who did so died."""
        return list(self._unready)

    def due(self, now: float) -> list[str]:
        """Keys of reservations and waiting asks that have run out."""
        found: dict[str, float] = {}
        while self._expiring and self._expiring[0][0] <= now:
            at, key = heapq.heappop(self._expiring)
            if self._expires_at(key) == at:
                found[key] = at
        for key, at in found.items():  # until they are written away
            heapq.heappush(self._expiring, (at, key))
        return sorted(found)

    def next_due(self) -> float | None:
        """When the next one may run out; seconds since the Unix epoch."""
        return self._expiring[0][0] if self._expiring else None

    def _expires_at(self, key: str) -> float | None:
        record = self.record(key)
        return record.expires_at if isinstance(record, GroupRecord | WaitingRecord) else None

    def fault_of(self, record: GroupRecord) -> str:
        """Why what the group holds is not to be used: a device that has vanished or is sick; empty if nothing is
        wrong."""
        node = self.nodes.get(record.node)
        if node is None:
            return f"node {record.node} is gone."
        for device in devices_of(record):
            if device not in node.gpus:
                return f"GPU {device} has vanished from {record.node}."
            if device in self.health:
                return f"GPU {device} of {record.node} is sick: {self.health[device]}"
        return ""


def devices_of(record: GroupRecord) -> list[str]:
    """The GPUs it holds, or a part of which."""
    return [device for share in record.shares if share.kind == GPU for device in share.devices]


def asked_amounts(record: GroupRecord) -> dict[str, int]:
    """What the group was made for, by kind: of MIG instances as they were asked for, not what they come to."""
    found = totals(record)
    if record.mig_profile:
        found[GPU] = Requirements.model_validate(record.requirements).gpu_count_milli
    return found


def ends_with_holder(record: GroupRecord) -> bool:
    """Whether it is given back when the process that has it ends."""
    return record.lifetime == "process" and record.holder.pid > 0 and record.component != "" and record.ready


def holder_key(holder: Holder) -> tuple[str, int, int]:
    return holder.boot_id, holder.pid, holder.start_ticks


def _read(key: str, value: bytes | None) -> Stored | None:
    folder = key[: key.index("/") + 1]
    return None if value is None else RECORDS[folder].model_validate_json(value)


def _drop(index: dict[Any, dict[str, Any]], key: Any, name: str) -> None:
    names = index[key]
    del names[name]
    if not names:
        del index[key]
