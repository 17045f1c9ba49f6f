"""What there is, and how it changes: nodes, the definition, logical hosts, and the columns over it all."""

from __future__ import annotations

from collections.abc import Iterable

from lavalite.control.events import Specs
from lavalite.control.ground import Ground
from lavalite.control.hosts.holding import beside, nodes_beside, offered
from lavalite.control.node_state import NodeState
from lavalite.ledger.book import FLOATING
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.node import Drain
from lavalite.model.resources import GPU, NETWORK, PLACES, NodeOffer
from lavalite.placement.closeness import near_of
from lavalite.placement.columns import GONE, DeviceRow
from lavalite.placement.columns import READY as ROW_READY
from lavalite.placement.fabric import link_accounts, with_cards
from lavalite.placement.reasons import Reason


class Supply(Ground):
    """Nodes and hosts come, change and go by these methods alone."""

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
