"""Which node is told what of hosts' parts, and what it told. The whole of it each time, whenever it has changed.

A part that is told of and that no record knows is left over from something that was unwound while its node was away,
or from before a restore:

    ordered in this generation of the store      ordered away
    in an earlier one                            left as it is, for a person to look at: its data may be wanted
"""

from __future__ import annotations

from collections.abc import Iterator

from lavalite.control.actions import PartOrdered, SendParts
from lavalite.control.events import PartReported, PartsReported
from lavalite.control.hosts.orders import Fabric, ordered, part_ids
from lavalite.control.node_state import NodeState
from lavalite.control.outbox import Outbox
from lavalite.control.state import ClusterState
from lavalite.model.host import generation_of

MOST_PARTS = 10_000
"""So many are taken from one node; an agent that makes up more does not get to fill our memory."""


def reported(state: ClusterState, event: PartsReported) -> None:
    """All that a node has, anew: hosts that wait for it go on, and anchors may now know where to attach from."""
    node = state.nodes.get(event.node)
    if node is None or not node.registered:
        return  # a session that was closed in between
    before = state.parts_told.get(node.name)
    now = state.parts_told[node.name] = {part.key: part for part in event.parts[:MOST_PARTS]}
    state.set_owing(node, any(_is_stray(state, part) for part in now.values()))
    if before == now:
        return
    state.parts_stale.add(node.name)
    for name in state.part_hosts.get(node.name, ()):
        state.parts_stale.add(state.hosts[name].anchor)
        state.steps_wanted[name] = None


def registered(state: ClusterState, node: NodeState, *, later_generation: bool) -> None:
    """It tells anew what it has, once it is told what it is to have."""
    state.parts_told.pop(node.name, None)
    state.orders_sent.pop(node.name, None)
    state.parts_stale.add(node.name)
    if later_generation or node.owes_parts:
        state.parts_asked.add(node.name)


def tell(state: ClusterState, out: Outbox) -> None:
    """Tell nodes of which the orders have changed. It goes with what is written now: no order before its step."""
    stale, state.parts_stale = sorted(state.parts_stale), set()
    for name in stale:
        node = state.nodes.get(name)
        if node is None or not (node.connected and node.registered):
            state.orders_sent.pop(name, None)
            continue
        orders = tuple(_orders(state, name))
        before = state.orders_sent.get(name)
        # One that has nothing is not told so, unless it may have something all the same.
        if orders != (before or ()) or name in state.parts_asked:
            state.parts_asked.discard(name)
            state.orders_sent[name] = orders
            out.durable.append(SendParts(name, orders))


def tell_again(state: ClusterState, now: float) -> None:
    """Whoever could not let go of something is asked again, now and then."""
    if now < state.parts_asked_at + state.settings.reattach_seconds:
        return
    state.parts_asked_at = now
    for name, told in state.parts_told.items():
        wanted = {order.key: order for order in state.orders_sent.get(name, ()) if order.want == "absent"}
        if any(key in wanted and told[key].state == "failed" for key in told.keys() & wanted.keys()):
            state.orders_sent.pop(name, None)
            state.parts_stale.add(name)


def fabric_of(state: ClusterState) -> Fabric:
    """What is known of nodes, for `ordered`."""
    nodes, told = state.nodes, state.parts_told

    def address(node: str) -> str:
        found = nodes.get(node)
        return found.fabric_address if found is not None else ""

    return Fabric(lambda node, key: told.get(node, {}).get(key), address)


def strangers(state: ClusterState, node: str) -> Iterator[PartReported]:
    """Parts of an earlier generation of the store that no record knows; they stay as they are."""
    for part in state.parts_told.get(node, {}).values():
        if part.state != "gone" and _is_unknown(state, part) and not _is_stray(state, part):
            yield part


def _orders(state: ClusterState, node: str) -> Iterator[PartOrdered]:
    fabric = fabric_of(state)
    for name in sorted(state.part_hosts.get(node, ())):
        for one in ordered(state.hosts[name], fabric):
            if one.node == node and one.whole:
                yield one.order
    for part in state.parts_told.get(node, {}).values():
        if _is_stray(state, part):
            yield PartOrdered(part.part, part.role, part.host, part.incarnation, part.version, "absent")


def _is_stray(state: ClusterState, part: PartReported) -> bool:
    ours = generation_of(part.incarnation) == state.epoch[0]
    return part.state != "gone" and ours and _is_unknown(state, part)


def _is_unknown(state: ClusterState, part: PartReported) -> bool:
    host = state.hosts.get(part.host)
    return host is None or host.incarnation != part.incarnation or part.part not in part_ids(host)
