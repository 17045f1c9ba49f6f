"""What there is, as decisions see it: nodes and pools, the book over them, and the columns in which placement looks.

    book      who holds what of each node; owner `groups/ID`
    columns   what is free, one row for each node; pools, and selections of nodes, as masks

What a change touches is looked at again when it is whole (`_settle`), and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from lavalite.base.errors import LavaLiteError
from lavalite.groups.engine.node_state import NodeState
from lavalite.groups.engine.pools import Pool, Usage, read_pool
from lavalite.groups.engine.wanted import Wanted, read_wanted
from lavalite.groups.records import PoolRecord
from lavalite.groups.requirements import Ask
from lavalite.ledger.book import Book
from lavalite.model.resources import GPU, NodeOffer
from lavalite.model.selector import Selector
from lavalite.placement.columns import GONE, READY, Columns
from lavalite.placement.reasons import Reason
from lavalite.placement.registry import Rankings

MOST_WANTED, MOST_SELECTIONS = 1024, 256
WELL: Mapping[str, str] = {}


class Stock:
    """See the module's docstring. Nothing of it is to be changed from outside."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeState] = {}
        self.pools: dict[str, Pool] = {}
        self.book = Book()
        self.columns = Columns()
        self.rankings = Rankings()
        self.usage = Usage()
        self.parts: dict[tuple[str, str], dict[str, str]] = {}
        """By node and GPU, groups that have a part of it, and what keeps them apart."""
        self.health = WELL
        self.nodes_version = 0
        self._wanted: dict[tuple[str, ...], Wanted] = {}
        self._selections: dict[str, Selector] = {}
        self._members: dict[str, list[str]] = {}
        self._on_demand: dict[str, int] = {}
        """Sorts of GPUs that make MIG instances on demand, and how many GPUs there are of each."""
        self._stale_rows: set[str] = set()
        self._selected_anew = False

    # --- changes -----------------------------------------------------------------------------------------------

    def set_health(self, health: Mapping[str, str]) -> list[str]:
        """Which GPUs are sick, by id, and of what: nothing new is placed on them. Answers with nodes that have such
        as have fallen sick, or are well again."""
        sick = {device: why for device, why in health.items() if why}
        otherwise = {d for d in sick.keys() | self.health.keys() if sick.get(d, "") != self.health.get(d, "")}
        self.health = sick
        touched = [node.name for node in self.nodes.values() if otherwise and otherwise & node.gpus.keys()]
        self._stale_rows.update(touched)
        self._settle()
        return touched

    def _put_node(self, name: str, offer: NodeOffer | None) -> None:
        before = self.nodes.pop(name, None)
        for gpu in before.gpus.values() if before is not None else ():
            _count(self._on_demand, gpu.mig if gpu.profiles else "", -1)
        if offer is None:
            self.book.remove_provider(name)
        else:
            node = self.nodes[name] = NodeState(offer)
            for gpu in node.gpus.values():
                _count(self._on_demand, gpu.mig if gpu.profiles else "", 1)
            kinds = offer.kinds()
            for kind in set(self.book.kinds(name)) - set(kinds):
                self.book.set_capacity(name, kind, 0)
            for kind in kinds:
                names = list(dict.fromkeys(device.id for device in offer.devices(kind)))
                amount = offer.amount(kind)
                self.book.set_capacity(name, kind, amount, names if amount else [])
        self.nodes_version += 1
        self._wanted.clear()
        self._stale_rows.add(name)
        if self.pools or self._selections:
            self._selected_anew = True

    def _put_pool(self, name: str, record: PoolRecord | None) -> None:
        self.pools.pop(name, None)
        if record is not None:
            try:
                self.pools[name] = read_pool(record)
            except LavaLiteError:
                # Written by a later release, which knows what this one does not: nothing can be had of it here.
                self.pools[name] = read_pool(PoolRecord(name=name, entry={"nodes": "-", "kinds": ["cpu"]}))
        self._wanted.clear()
        self._selected_anew = True

    # --- rows ----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Bring the rows up to date with book and nodes; only those that something touched."""
        stale = self._stale_rows | self.book.take_touched()
        self._stale_rows = set()
        for name in sorted(stale):
            self._set_row(name)
        if self._selected_anew:
            self._selected_anew = False
            named = {pool.name: pool.spec.selector for pool in self.pools.values()} | self._selections
            self._members = {
                name: [node.name for node in self.nodes.values() if chosen and chosen.matches(node.name, node.labels)]
                for name, chosen in named.items()
            }
            self.columns.set_pools(self._members)

    def _set_row(self, name: str) -> None:
        node = self.nodes.get(name)
        if node is None:
            if self.columns.row(name) is not None:
                self.columns.set_row(name, {}, {}, state=GONE)
            return
        capacity, free = self.book.amounts(name)
        rows = []
        for device, left in self.book.device_free(name, GPU).items():
            parts = self.parts.get((name, device))
            isolation = next(iter(parts.values())) if parts else ""
            rows.append(node.gpus[device].row(0 if device in self.health else left, isolation))
        state = Reason.DRAINING.value if node.closed else READY
        self.columns.set_row(name, capacity, free, rows, state=state)

    # --- looking --------------------------------------------------------------------------------------------------

    def wanted(self, ask: Ask) -> Wanted:
        """What an ask means to placement. Raises InputError."""
        constraints = ask.constraints
        selector = constraints.selector() if constraints.nodes is not None else None
        selection = self._selection(selector) if selector is not None else ""
        key = (ask.requirements.model_dump_json(), constraints.pool, constraints.topology, selection)
        found = self._wanted.get(key)
        if found is None:
            if len(self._wanted) >= MOST_WANTED:
                self._wanted.clear()
            found = self._wanted[key] = read_wanted(ask, self.pools, selection, self._on_demand)
        return found

    def _selection(self, selector: Selector) -> str:
        name = f"nodes {selector.spelled()}"  # with a blank, which no pool has in its name
        if name not in self._selections:
            if len(self._selections) >= MOST_SELECTIONS:
                self._selections.clear()
                self._wanted.clear()
            self._selections[name] = selector
            members = [node.name for node in self.nodes.values() if selector.matches(node.name, node.labels)]
            self._members[name] = members
            self.columns.add_pool(name, members)
        return name

    def members(self, pool: str) -> list[str]:
        """The nodes of a pool."""
        return self._members.get(pool, [])

    def pool_capacity(self, pool: str, kind: str) -> int:
        return int(self.columns.capacity(kind)[self.columns.pool(pool)].sum())


def _count(counts: dict[str, int], name: str, by: int) -> None:
    if name:
        counts[name] = counts.get(name, 0) + by
        if not counts[name]:
            del counts[name]
