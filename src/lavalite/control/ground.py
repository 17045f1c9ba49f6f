"""All that is held of what there is, and how what a job asks for is found in it: by queue, pool, label and node."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from lavalite.control.actions import PartKey
from lavalite.control.events import PartReported, Specs
from lavalite.control.hosts.places import Places
from lavalite.control.node_state import NodeState
from lavalite.control.settings import Settings
from lavalite.control.tasks import JobState, TaskKey
from lavalite.control.usage import Usage
from lavalite.ledger.book import Book
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.job import JobSpec, Share
from lavalite.model.reservation import Reservation
from lavalite.model.resources import GPU, PLACES
from lavalite.model.selector import Selector
from lavalite.model.specs import DEFAULT_QUEUE, QueueSpec
from lavalite.placement.classes import PartClass, RequestClass
from lavalite.placement.columns import Columns
from lavalite.store.keys import Keys

FORGET_SELECTIONS = 1024
"""Whenever there are so many more selections of nodes, those that nobody uses are forgotten."""


@dataclass(slots=True)
class Dirty:
    """What must be written, by name."""

    jobs: dict[int, None] = field(default_factory=dict)
    gone_jobs: dict[int, JobState] = field(default_factory=dict)
    chunks: dict[tuple[int, int], None] = field(default_factory=dict)
    tasks: dict[TaskKey, None] = field(default_factory=dict)
    nodes: dict[str, None] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    orphans: dict[str, None] = field(default_factory=dict)
    """Keys of what is left of jobs that are gone."""
    reservations: dict[str, None] = field(default_factory=dict)
    fairshare: dict[str, None] = field(default_factory=dict)
    """Queues whose use was settled."""
    definition: bool = False


class Ground:
    """The ground floor of ClusterState. `epoch` is that of the leadership it serves under."""

    def __init__(self, keys: Keys, epoch: tuple[int, int], settings: Settings | None = None) -> None:
        self.keys = keys
        self.epoch = epoch
        self.settings = settings or Settings()
        self.book = Book()
        self.columns = Columns()
        self.nodes: dict[str, NodeState] = {}
        self.hosts: dict[str, LogicalHost] = {}
        self.hosts_version = 0
        """Grows whenever any host changes, so that the shell knows when to tell the agents."""
        self.nodes_version = 0
        """Grows whenever a node comes, offers something else, or is labelled."""
        self.rows_version = 0
        """Grows whenever a node may have begun or ceased to take work, or has another capacity."""
        self.reservations: dict[str, Reservation] = {}
        self.reserved_use: dict[tuple[str, str], dict[str, int]] = {}
        """(reservation, node) → what the reservation's own tasks hold there, per kind."""
        self.unused_since: dict[str, float] = {}
        """Reservation → since when none of its tasks holds anything, so far as we know."""
        self.specs = Specs()
        self.document = b""
        self.usage = Usage()
        """Who holds how much: by queue, pool, user and group."""
        self.claims: dict[tuple[str, str, str], int] = {}
        """(pool, kind, group) → up to where the group claims its own quota back, which others have borrowed."""
        self.now_ms = 0
        """The time of `decide`, in milliseconds."""
        self.parts_told: dict[str, dict[PartKey, PartReported]] = {}
        """What each node told of parts in this session of it, and when that is over until it tells anew."""
        self.part_hosts: dict[str, set[str]] = {}
        """Node → hosts for which something is ordered there."""
        self.parts_stale: set[str] = set()
        """Nodes of which the orders may have changed."""
        self.steps_wanted: dict[str, None] = {}
        """Hosts that may have come to the end of a step, or may have lost or regained a part."""
        self.last_incarnation = 0
        self.places = Places()
        self._links: set[str] = set()
        self._links_stale = True
        self.removals: set[str] = set()
        """Logical hosts that go as soon as nobody uses them."""
        self.schedule_wanted = False
        self.compose_wanted = False
        self._anchored: dict[str, set[str]] = {}
        """Node → names of the logical hosts anchored there."""
        self._stale_rows: set[str] = set()
        self.ends_changed: set[str] = set()
        """Providers of which what ends there, or when, may have changed (control.horizon)."""
        self.keeps_changed = False
        """Whether what is kept for others, or what floats, may have changed: that too keeps some out."""
        self._floating_free: dict[str, int] = {}
        """Of each kind that floats, what was free when that was looked at last."""
        self._pools_stale = True
        self._selections: dict[str, tuple[Selector, bool]] = {}
        """Nodes by labels that jobs demand, under the name that the columns have them by; True: those without."""
        self._labelled: dict[str, dict[str, list[int]]] = {}
        self._labelled_of: tuple[int, int] = (-1, -1)
        self._floating_pools: dict[str, str] = {}
        self._pool_sums: dict[tuple[str, str], int] = {}
        self._pool_sums_of: tuple[int, int, int] = (-1, -1, -1)
        self._specs_version = 0
        self.dirty = Dirty()

    # --- lookups ----------------------------------------------------------------------------------------------

    @property
    def default_queue(self) -> str:
        named = (queue.name for queue in self.specs.queues.values() if queue.default)
        return next(named, next(iter(self.specs.queues), DEFAULT_QUEUE))

    def queue(self, name: str) -> QueueSpec:
        """The queue as defined; with the usual numbers where it is (or was) not defined."""
        return self.specs.queues.get(name) or _usual_queue(name or DEFAULT_QUEUE)

    def pools_of(self, spec: JobSpec) -> dict[str, str]:
        """The pool of each kind asked for: the one named, else the kind's default pool, else none."""
        pools = {}
        for kind in spec.request.amounts():
            named = spec.request.pools.get(kind) or self.default_pool(kind)
            if named:
                pools[kind] = named
        return pools

    def charged_pools(self, spec: JobSpec) -> dict[str, dict[str, int]]:
        """What a task, or all of a job with parts, takes of each pool by itself: not of a logical host's part, nor
        inside a reservation. What may be beside a host's GPUs of other nodes counts as if it were."""
        charged: dict[str, dict[str, int]] = {}
        if spec.parts is not None:
            for piece, tasks in spec.pieces():
                for pool, amounts in self.charged_pools(piece).items():
                    sums = charged.setdefault(pool, {})
                    for kind, amount in amounts.items():
                        sums[kind] = sums.get(kind, 0) + amount * tasks
            return charged
        beside = self.goes_beside(spec)
        if beside or (not spec.host and not spec.reservation):
            amounts = spec.request.amounts()
            for kind, pool in self.pools_of(spec).items():
                if not (beside and kind == GPU):
                    charged.setdefault(pool, {})[kind] = amounts[kind]
        if not spec.host:
            for kind, amount in spec.request.floating.items():
                if amount and (floating := self.floating_pool(kind)):
                    charged.setdefault(floating, {})[kind] = amount
        return charged

    def goes_beside(self, spec: JobSpec) -> bool:
        """Whether its tasks, or those of this part, may be on other nodes than the anchor of the host it names."""
        return is_for_places(spec) and bool(self.places.of(spec.host))

    def floating_pool(self, kind: str) -> str:
        """The pool that a floating kind stands in; empty if in none."""
        return self._floating_pools.get(kind, "")

    def pool_capacity(self, pool: str, kind: str) -> int:
        """What the pool's nodes have of a kind, without what logical hosts have taken of it."""
        version = (self.nodes_version, self.hosts_version, self._specs_version)
        if self._pool_sums_of != version:
            self._pool_sums.clear()
            self._pool_sums_of = version
        if (pool, kind) not in self._pool_sums:
            spec = self.specs.pools[pool]
            members = [n.name for n in self.nodes.values() if spec.has(n.name, n.labels)]
            taken = sum(
                part.amount
                for host in self.hosts.values()
                if host.state is not HostState.PLANNED
                for part in host.parts
                if part.pool == pool and part.kind == kind
            )
            offered = (self.book.capacity(name, kind) for name in members)
            self._pool_sums[pool, kind] = sum(offered) - taken
        return self._pool_sums[pool, kind]

    def default_pool(self, kind: str) -> str:
        """The pool that a kind comes from where none is named; empty if from anywhere."""
        return next((p.name for p in self.specs.pools.values() if p.default and kind in p.kinds), "")

    def request_class(self, spec: JobSpec) -> RequestClass:
        """What the job asks for, ready to be looked for in the columns."""
        pools = {} if spec.reservation else self.pools_of(spec)
        return RequestClass(spec.request, pools, spec.host, self._labels(spec), beside=is_for_places(spec))

    def part_classes(self, spec: JobSpec) -> tuple[PartClass, ...]:
        """The same, part by part; empty where the job has none."""
        if spec.parts is None:
            return ()
        return tuple(PartClass(self.request_class(piece), tasks) for piece, tasks in spec.pieces())

    def _labels(self, spec: JobSpec) -> list[str]:
        """The names under which the columns have the nodes with the labels that the job demands."""
        terms = ((term.selector(), term.anti) for term in spec.affinity if term.demanded)
        return sorted({self.selection(selector, anti) for selector, anti in terms if selector is not None})

    def selection(self, selector: Selector, anti: bool = False) -> str:
        """The name under which the columns have, from now on, the nodes that are selected, or those that are not."""
        name = f"not {selector.spelled()}" if anti else selector.spelled()
        if name not in self._selections:
            self._selections[name] = (selector, anti)
            self.columns.add_pool(name, self._selected(selector, anti))
            self._pools_stale |= len(self._selections) % FORGET_SELECTIONS == 0
        return name

    def _selected(self, selector: Selector, anti: bool) -> list[str]:
        return [node.name for node in self.nodes.values() if selector.matches(node.name, node.labels) != anti]

    def selections_in_use(self) -> set[str]:
        """Those that somebody who waits was looked for by."""
        return set()

    def rows_labelled(self, label: str, value: str) -> list[int]:
        """The rows of nodes that have this value of the label."""
        version = (self.nodes_version, len(self.columns))
        if self._labelled_of != version:
            self._labelled.clear()
            self._labelled_of = version
        if label not in self._labelled:
            values = self._labelled[label] = {}
            for node in self.nodes.values():
                row = self.columns.row(node.name)
                if row is not None:
                    for found in node.labels.get(label, ()):
                        values.setdefault(found, []).append(row)
        return self._labelled[label].get(value, [])

    def node_of(self, provider: str) -> NodeState | None:
        """The node that executes what is placed on a provider: itself, a host's anchor, or where a place is."""
        host = self.hosts.get(provider)
        return self.nodes.get(host.anchor if host else self.places.node(provider))

    def amounts_on(self, provider: str) -> tuple[dict[str, int], dict[str, int]]:
        """What the provider has of each kind for what is placed there, and what of that may be given out; places
        among it. Cores, memory and all but GPUs of a host's place are its node's."""
        capacity, free = self.book.amounts(provider)
        node = self.places.node(provider)
        if node != provider:
            has, left = self.book.amounts(node)
            capacity = {kind: n for kind, n in has.items() if kind != GPU} | capacity
            free = {kind: n for kind, n in left.items() if kind != GPU} | free
        return capacity, free | {PLACES: self.book.free_places(node)}

    def shares_on(self, owner: str, provider: str) -> list[Share]:
        """What of the owner's shares is of what there is for tasks on the provider."""
        return [s for s in self.book.shares(owner) if s.provider == self.places.account(provider, s.kind)]


@lru_cache(maxsize=64)
def _usual_queue(name: str) -> QueueSpec:
    return QueueSpec(name=name)


def is_for_places(spec: JobSpec) -> bool:
    """Whether its tasks, or those of this part, may be beside a host's GPUs of other nodes: of what starts together
    whatever asks for GPUs. Who submits a single task means the anchor."""
    return bool(spec.host and spec.gang is not None and spec.request.gpu_milli)
