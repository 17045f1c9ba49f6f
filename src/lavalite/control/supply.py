"""What there is: nodes, logical hosts, the definition, the book of what is committed, the columns over it all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from lavalite.control.actions import PartKey
from lavalite.control.events import PartReported, Specs
from lavalite.control.hosts.holding import beside, nodes_beside, offered
from lavalite.control.hosts.places import Places
from lavalite.control.settings import Settings
from lavalite.control.tasks import JobState, TaskKey, TaskRun
from lavalite.control.usage import Usage
from lavalite.ledger.book import FLOATING, Book
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.job import JobSpec, Share
from lavalite.model.node import Drain
from lavalite.model.reservation import Reservation
from lavalite.model.resources import GPU, NETWORK, PLACES, NodeOffer
from lavalite.model.selector import Selector
from lavalite.model.specs import DEFAULT_QUEUE, NodeCapacity, QueueSpec
from lavalite.placement.classes import PartClass, RequestClass
from lavalite.placement.closeness import near_of
from lavalite.placement.columns import GONE, Columns, DeviceRow
from lavalite.placement.columns import READY as ROW_READY
from lavalite.placement.fabric import link_accounts, with_cards
from lavalite.placement.reasons import Reason
from lavalite.store.keys import Keys

FORGET_SELECTIONS = 1024
"""Whenever there are so many more selections of nodes, those that nobody uses are forgotten."""
UNPACKED_OFFERS = 1024
"""Offers of so many nodes are at hand."""


@dataclass(slots=True, eq=False)
class NodeState:
    """One node. `heard_at`: when its agent's session was last heard of, or since when we serve."""

    name: str
    packed: bytes
    """What it offers, as `unpacked_offer` takes it: a tenth of what the model weighs."""
    boot_id: str
    told_labels: dict[str, list[str]]
    """By its LIM. These and the boot id are the offer's; all nodes are looked through for them."""
    journal_id: str = ""
    drain: Drain | None = None
    operator_labels: dict[str, list[str]] = field(default_factory=dict)
    """What people gave it. They are not changed in place."""
    connected: bool = False
    registered: bool = False
    """Whether its agent has told its journal to us, rather than to a predecessor."""
    heard_at: float = 0.0
    generation: int = 0
    """In which its agent told its journal last."""
    lim_silent: bool = False
    fabric_address: str = ""
    """Where other nodes reach what it exports."""
    owes_parts: bool = False
    """Whether it was let go while it may have had parts of hosts: nothing is composed there until it has told."""
    doubtful: bool = False
    """Whether it may have something of which its agent can never tell what became of it (`TaskRun.lost_since`)."""
    runs: dict[TaskKey, TaskRun] = field(default_factory=dict)
    _capacity: NodeCapacity | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, offer: NodeOffer) -> NodeState:
        return cls(offer.node, _packed(offer), offer.boot_id, offer.labels)

    @property
    def offer(self) -> NodeOffer:
        """Not to be changed in place."""
        return unpacked_offer(self.packed)

    def set_offer(self, offer: NodeOffer) -> None:
        self.packed, self.boot_id, self.told_labels = _packed(offer), offer.boot_id, offer.labels
        self._capacity = None

    @property
    def labels(self) -> dict[str, list[str]]:
        """What selectors go by: what people gave it, over what its LIM tells."""
        return self.told_labels | self.operator_labels if self.operator_labels else self.told_labels

    def set_labels(self, labels: dict[str, list[str]]) -> None:
        """What people say of it."""
        self.operator_labels, self._capacity = labels, None

    def capacity(self) -> NodeCapacity:
        """The node as planning sees it: kept, since every plan sees all nodes. Not to be changed in place."""
        if self._capacity is None:
            self._capacity = NodeCapacity.from_offer(NodeOffer.model_validate_json(self.packed), self.labels)
        return self._capacity


def _packed(offer: NodeOffer) -> bytes:
    return offer.model_dump_json(exclude_defaults=True).encode()


@lru_cache(UNPACKED_OFFERS)
def unpacked_offer(packed: bytes) -> NodeOffer:
    """An offer out of its JSON, in which all that is as by default may be left out."""
    return NodeOffer.model_validate_json(packed)


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


class Supply:
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

    # --- nodes ------------------------------------------------------------------------------------------------

    def set_node(self, offer: NodeOffer, journal_id: str | None = None) -> NodeState:
        """Add a node, or take over what it offers now. None leaves its journal as it is."""
        node = self.nodes.get(offer.node)
        if node is None:
            node = self.nodes[offer.node] = NodeState.of(offer)
            self.dirty.nodes[node.name] = None
            self._pools_stale = self._links_stale = True
            self.nodes_version += 1
            self._set_capacity(node)
        elif node.offer != offer:
            self._pools_stale |= node.told_labels != offer.labels
            self._links_stale = True
            node.set_offer(offer)
            self.nodes_version += 1
            self.dirty.nodes[node.name] = None
            self._set_capacity(node)
        if journal_id is not None and node.journal_id != journal_id:
            node.journal_id = journal_id
            self.dirty.nodes[node.name] = None
        return node

    def kept_by(self, name: str) -> str:
        """Why the node cannot be forgotten now, in words that follow `node NAME `; empty if it can."""
        if self.nodes[name].connected:
            return "is there: its agent is connected"
        holders = self.book.holders(name, PLACES)
        return f"is held: {', '.join(sorted(holders)[:5])}" if holders else ""

    def forget_node(self, name: str) -> None:
        """It offers nothing any more, and is in no list. Nobody may hold anything of it."""
        del self.nodes[name]
        self.book.remove_provider(name)
        self.dirty.nodes[name] = None
        self.nodes_version += 1
        self._stale_rows.add(name)
        self.parts_told.pop(name, None)
        self._pools_stale = self._links_stale = self.schedule_wanted = self.compose_wanted = True

    def set_drain(self, node: NodeState, drain: Drain | None) -> None:
        """None undoes one."""
        if node.drain != drain:
            node.drain = drain
            self.dirty.nodes[node.name] = None
        self.touch_node(node)

    def set_labels(self, node: NodeState, labels: dict[str, list[str]]) -> None:
        """Take over what people say of a node; it may be in other pools by that."""
        if node.operator_labels != labels:
            node.set_labels(labels)
            self.nodes_version += 1
            self.dirty.nodes[node.name] = None
            self._pools_stale = self._links_stale = self.schedule_wanted = self.compose_wanted = True

    def set_fabric(self, node: NodeState, address: str) -> None:
        """Take over where others reach the node's exports; who is to reach them is told, in a higher version."""
        if node.fabric_address == address:
            return
        node.fabric_address = address
        self.dirty.nodes[node.name] = None
        for name in sorted(self.part_hosts.get(node.name, ())):
            host = self.hosts[name]
            self.parts_stale |= nodes_of(host)
            if host.state is HostState.COMPOSED:
                self.set_host(host.model_copy(update={"version": host.version + 1}))

    def set_owing(self, node: NodeState, owes: bool) -> None:
        """Whether it may have parts of hosts that nobody waits for any more."""
        if node.owes_parts != owes:
            node.owes_parts = owes
            self.dirty.nodes[node.name] = None
            self.compose_wanted = True

    def touch_node(self, node: NodeState) -> None:
        """Whether it takes work may have changed: look at its row, and those of hosts anchored on it, again."""
        self._stale_rows.add(node.name)
        for host in self._anchored.get(node.name, ()):
            self._stale_rows |= {host, *self.places.of(host).values()}
        self.rows_version += 1
        self.schedule_wanted = True

    def node_row_state(self, node: NodeState | None, now: float) -> str:
        """READY, or the reason why nothing new is placed there."""
        if node is None:
            return GONE
        if node.drain is not None:
            return Reason.DRAINING
        silent = now - node.heard_at > self.settings.silent_after_seconds
        if not node.connected or not node.registered or node.lim_silent or silent:
            return Reason.SILENT
        return ROW_READY

    def row_is_stale(self, node: NodeState, now: float) -> bool:
        """Whether time alone has changed whether the node takes work."""
        row = self.columns.row(node.name)
        return row is not None and self.columns.states[row] != self.node_row_state(node, now)

    def _set_capacity(self, node: NodeState) -> None:
        offer = node.offer
        kinds = set(offer.kinds())
        for kind in set(self.book.kinds(node.name)) - kinds:
            self.book.set_capacity(node.name, kind, 0)
        for kind in kinds:
            names = list(dict.fromkeys(d.id for d in offer.devices(kind)))
            amount = offer.amount(kind)
            self.book.set_capacity(node.name, kind, amount, names if amount else [])
        self.touch_node(node)
        self.compose_wanted = True

    # --- definition and hosts ---------------------------------------------------------------------------------

    def set_definition(self, document: bytes, specs: Specs) -> None:
        """Take over a definition; what waits is sorted anew. Hosts follow by the composer."""
        self.document, self.dirty.definition = document, True
        self._set_specs(specs)

    def _set_specs(self, specs: Specs) -> None:
        self.specs = specs
        self._specs_version += 1
        self._floating_pools = {kind: pool.name for pool in specs.pools.values() for kind in pool.floating}
        floating = {k: amount for pool in specs.pools.values() for k, amount in pool.floating.items()}
        for kind in (*self.book.kinds(FLOATING), *floating):
            self.book.set_capacity(FLOATING, kind, floating.get(kind, 0))
        self._pools_stale = self._links_stale = self.schedule_wanted = self.compose_wanted = True
        self.ends_changed.update(self.nodes, self.hosts)

    def refresh_links(self) -> None:
        """Bring the accounts of links, and of cards whose speed only the links say, up to date."""
        if not self._links_stale:
            return
        self._links_stale = False
        nodes = [node.capacity() for node in self.nodes.values()] if self.specs.links or self._links else []
        accounts = link_accounts(self.specs.links, nodes)
        for gone in self._links - accounts.keys():
            self.book.set_capacity(gone, NETWORK, 0)
        for name, bits_per_second in accounts.items():
            self.book.set_capacity(name, NETWORK, bits_per_second)
        self._links = set(accounts)
        for before, after in zip(nodes, with_cards(nodes, self.specs.links), strict=True):
            if not before.amounts.get(NETWORK):
                self.book.set_capacity(after.name, NETWORK, after.amounts.get(NETWORK, 0))

    def set_host(self, host: LogicalHost, *, written: bool = False) -> None:
        """Add a logical host or change it; one that is composed or draining offers what it took.

        `written` where its record is written by a Commit.
        """
        self._note_anchor(host)
        self._note_parts(self.hosts.get(host.name), host)
        self.hosts[host.name] = host
        self.hosts_version += 1
        if not written:
            self.dirty.hosts[host.name] = None
        self._set_host_capacity(host)
        self.schedule_wanted = True

    def remove_host(self, name: str) -> None:
        """Forget a host and give back what it took, if it took anything."""
        host = self.hosts.pop(name)
        self._anchored[host.anchor].discard(name)
        self._note_parts(host, None)
        self.hosts_version += 1
        self.removals.discard(name)
        self._set_places(name, ())
        self.book.remove_provider(name)
        if self.book.holds(host_owner(name)):
            self.book.release(host_owner(name))
        self.dirty.hosts[host.name] = None
        self._stale_rows.add(name)
        self.schedule_wanted = self.compose_wanted = True

    def _note_anchor(self, host: LogicalHost) -> None:
        before = self.hosts.get(host.name)
        if before is not None:
            self._anchored[before.anchor].discard(host.name)
        self._anchored.setdefault(host.anchor, set()).add(host.name)

    def _note_parts(self, before: LogicalHost | None, after: LogicalHost | None) -> None:
        """Nodes of the host may be told something else; and the host may be at another step."""
        was, now = (nodes_of(host) if host is not None else set() for host in (before, after))
        for node in was - now:
            self.part_hosts[node].discard(before.name if before is not None else "")
        if after is not None and now:
            for node in now:
                self.part_hosts.setdefault(node, set()).add(after.name)
            self.steps_wanted[after.name] = None
            self.last_incarnation = max(self.last_incarnation, after.incarnation)
        self.parts_stale |= was | now

    def _set_host_capacity(self, host: LogicalHost) -> None:
        found = offered(host) if offers(host) else {}
        for kind in found.keys() | set(self.book.kinds(host.name)):
            amount, devices = found.get(kind, (0, []))
            self.book.set_capacity(host.name, kind, amount, devices if amount else [])
        self._stale_rows.add(host.name)
        self._set_places(host.name, nodes_beside(host))
        for node, place in self.places.of(host.name).items():
            amount, devices = beside(host, node) if offers(host) else (0, [])
            self.book.set_capacity(place, GPU, amount, devices if amount else [])
            self._stale_rows.add(place)

    def _set_places(self, host: str, nodes: Iterable[str]) -> None:
        had_any = bool(self.places.of(host))
        for place in self.places.put(host, nodes):
            self.book.remove_provider(place)
            self._stale_rows.add(place)
        if had_any != bool(self.places.of(host)):
            self._counts_otherwise(host)

    def _counts_otherwise(self, host: str) -> None:
        """What tasks on the host take may count in pools from now on, or no longer."""

    def users_of_host(self, name: str) -> set[str]:
        """Owners of commitments that hold anything of the host."""
        providers = (name, *self.places.of(name).values())
        return {o for p in providers for kind in self.book.kinds(p) for o in self.book.holders(p, kind)}

    def host_in_use(self, name: str) -> bool:
        """Whether anybody holds anything of the host."""
        providers = (name, *self.places.of(name).values())
        return any(self.book.committed(p, kind) for p in providers for kind in self.book.kinds(p))

    # --- columns ----------------------------------------------------------------------------------------------

    def refresh_columns(self, now: float) -> None:
        """Bring the rows up to date with book, nodes and hosts; only those that something touched."""
        stale = self._stale_rows | self.book.take_touched()
        stale |= self.places.over(stale)
        self._stale_rows = set()
        self.ends_changed |= stale
        if FLOATING in stale:
            before = self._floating_free
            self._floating_free = {kind: self.book.free(FLOATING, kind) for kind in self.book.kinds(FLOATING)}
            self.keeps_changed |= any(free > before.get(kind, 0) for kind, free in self._floating_free.items())
        for provider in sorted(stale - {FLOATING}, key=lambda name: (name in self.places, name)):
            host = self.hosts.get(self.places.host(provider))
            if host is None and provider not in self.nodes:
                if self.columns.row(provider) is not None:
                    self.columns.set_row(provider, {}, {}, state=GONE)
                continue
            state = self.node_row_state(self.node_of(provider), now)
            if host is not None and state == ROW_READY:
                state = self.node_row_state(self.nodes.get(host.anchor), now)
            if host is not None and state != GONE and not takes_work(host):
                going = host.drained or host.state is HostState.DRAINING
                state = Reason.DRAINING if going else Reason.HELD
            capacity, free = self.amounts_on(provider)
            devices = self._device_rows(provider)
            self.columns.set_row(provider, capacity, free, devices, state=state, is_host=host is not None)
            if provider in self.places and host is not None:
                self.columns.set_places(host.name, self.places.of(host.name))
        if self._pools_stale:
            used = self.selections_in_use()
            self._selections = {name: found for name, found in self._selections.items() if name in used}
            selected = {name: self._selected(*found) for name, found in self._selections.items()}
            self.columns.set_pools(self.pool_members() | selected)
            self._pools_stale = False

    def pool_members(self) -> dict[str, list[str]]:
        """Node names by pool."""
        return {
            pool.name: [n.name for n in self.nodes.values() if pool.has(n.name, n.labels)]
            for pool in self.specs.pools.values()
        }

    def _device_rows(self, provider: str) -> list[DeviceRow]:
        devices_free = self.book.device_free(provider, GPU)
        if not devices_free:
            return []
        node = self.node_of(provider)
        known = {d.id: d for d in node.offer.devices(GPU)} if node else {}
        rows = []
        for device_id, free in devices_free.items():
            if device_id in known:
                device = known[device_id]
                near, mig = near_of(device), device.mig
                rows.append(DeviceRow(device_id, device.model, device.memory_bytes, free, near, mig))
        return rows


@lru_cache(maxsize=64)
def _usual_queue(name: str) -> QueueSpec:
    return QueueSpec(name=name)


def is_for_places(spec: JobSpec) -> bool:
    """Whether its tasks, or those of this part, may be beside a host's GPUs of other nodes: of what starts together
    whatever asks for GPUs. Who submits a single task means the anchor."""
    return bool(spec.host and spec.gang is not None and spec.request.gpu_milli)


def offers(host: LogicalHost) -> bool:
    """Whether jobs may hold anything of it; one that failed has jobs on it that are told to end."""
    usual = (HostState.COMPOSED, HostState.DRAINING, HostState.RESIZING)
    return host.state in usual or (host.state is HostState.FAILED and bool(host.parts))


def takes_work(host: LogicalHost) -> bool:
    """Whether anything new starts on it. What it is to become must be known: jobs could take what is to go."""
    resizing = host.state is HostState.RESIZING and host.becomes is not None
    return (host.state is HostState.COMPOSED or resizing) and not host.drained


def nodes_of(host: LogicalHost) -> set[str]:
    """Nodes that something is ordered of for the host, or may be."""
    if not host.incarnation or not host.parts or not host.is_far_reaching:
        return set()
    ends = {name for circuit in host.circuits for name in (circuit.anchor, circuit.provider)}
    return {host.anchor} | {part.provider for part in host.parts} | ends


def host_owner(name: str) -> str:
    """The name a logical host's commitment goes by."""
    return f"host/{name}"
