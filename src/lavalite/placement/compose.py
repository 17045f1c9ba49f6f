"""Which node a logical host is on, and which other nodes some of its parts are of.

    specs, nodes, links, what is taken ──► plan_hosts ──► a LogicalHost or a Refusal for each

    newcomers  a host that is not there yet                             resize   one that is
    anchors    which nodes could be its anchor, the best first          floor    what is free of every node
    remote     what such a node lacks, of others, over circuits         fabric   what is free between them
    assemble   all of it as a host

A host that exists keeps its anchor, and its parts as far as they still suit. New ones are placed largest first. The
plan depends on what is asked and what is there, never on the order of either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from lavalite.model.host import LogicalHost
from lavalite.model.job import Share
from lavalite.model.resources import CPU, GPU, MEMORY, STORAGE, is_special
from lavalite.model.specs import HostSpec, LinkSpec, NodeCapacity, PoolSpec
from lavalite.placement.floor import Closed, Floor
from lavalite.placement.newcomers import Newcomers
from lavalite.placement.reasons import Refusal
from lavalite.placement.resize import again, grows, nearer_parts
from lavalite.placement.room import natural
from lavalite.placement.shares import shares_of

__all__ = ["nearer", "plan_hosts", "shares_of"]

Hosts = Mapping[str, LogicalHost]
Plan = dict[str, LogicalHost | Refusal]
MOST_ORDERS = 16
MOST_LOOKS = 20_000
"""Hosts times nodes, all orders together: a fraction of a second."""


def plan_hosts(
    specs: Sequence[HostSpec],
    nodes: Sequence[NodeCapacity],
    pools: Sequence[PoolSpec],
    existing: Hosts | None = None,
    taken: Iterable[Share] = (),
    closed: Closed | None = None,
    links: Sequence[LinkSpec] = (),
) -> dict[str, LogicalHost | Refusal]:
    """A plan for every spec, by its name and in the order of `specs`.

    `existing` are the hosts that there are (also those that no spec asks for: they hold what they have), `taken`
    what others hold of nodes and links, `closed` the nodes that take nothing new, and why (DRAINING, SILENT). A host
    that is as its spec asks comes back equal to what it was; one that changes keeps its state and has a higher
    version.
    """
    hosts = existing or {}
    floor = _floor(nodes, pools, hosts, taken, closed, links)
    plan: dict[str, LogicalHost | Refusal] = {}
    known = [spec for spec in specs if spec.name in hosts]
    for spec in sorted(known, key=lambda spec: (grows(spec, hosts[spec.name]), natural(spec.name))):
        plan[spec.name] = again(spec, hosts[spec.name], floor)
    plan |= _newcomers([spec for spec in specs if spec.name not in hosts], floor)
    return {spec.name: plan[spec.name] for spec in specs}


def nearer(
    spec: HostSpec,
    host: LogicalHost,
    nodes: Sequence[NodeCapacity],
    pools: Sequence[PoolSpec],
    existing: Hosts,
    taken: Iterable[Share] = (),
    closed: Closed | None = None,
    links: Sequence[LinkSpec] = (),
    *,
    kinds: Collection[str] = (MEMORY, GPU, STORAGE),
) -> LogicalHost | None:
    """The host with parts of other nodes brought to its anchor, or else into its rack, where there is room by now.

    Only those of `kinds` are; storage for itself alone. None where nothing could be nearer, or the host is not what
    the spec asks for. The other arguments are those of `plan_hosts`; the host is one of `existing`.
    """
    return nearer_parts(spec, host, _floor(nodes, pools, existing, taken, closed, links), kinds)


def _floor(
    nodes: Sequence[NodeCapacity],
    pools: Sequence[PoolSpec],
    hosts: Hosts,
    taken: Iterable[Share],
    closed: Closed | None,
    links: Sequence[LinkSpec],
) -> Floor:
    floor = Floor(nodes, pools, closed or {}, links)
    for share in taken:
        floor.move(share.provider, share.kind, share.amount, share.devices, -1)
    for host in hosts.values():
        floor.move_host(host, -1)
    return floor


def _newcomers(specs: Sequence[HostSpec], floor: Floor) -> Plan:
    """The largest first. Where some are refused or need circuits, and it is soon done, other orders are tried: the
    first is taken that places most hosts and, of such, takes least of the network.
    """
    order = sorted(specs, key=_largest_first)
    first = _placed(order, floor)
    tries = min(MOST_ORDERS, MOST_LOOKS // max(1, len(order) * len(floor.nodes)))
    if len(order) < 2 or not tries or _cost(first) == (0, 0):
        return first
    _give_back(first, floor)
    # Whoever has no room alone has none in any order.
    alone = {spec.name: _refused_alone(spec, floor) for spec in order if isinstance(first[spec.name], Refusal)}
    hopeful = [spec for spec in order if not alone.get(spec.name)]
    best = {spec.name: first[spec.name] for spec in hopeful}
    if _cost(best) > (0, 0):
        best = min((best, *_others(hopeful, best, floor, tries)), key=_cost)
    for answer in best.values():
        if isinstance(answer, LogicalHost):
            floor.move_host(answer, -1)
    return best | _placed([spec for spec in order if alone.get(spec.name)], floor)


def _refused_alone(spec: HostSpec, floor: Floor) -> bool:
    plan = _placed([spec], floor)
    _give_back(plan, floor)
    return isinstance(plan[spec.name], Refusal)


def _others(order: list[HostSpec], first: Plan, floor: Floor, tries: int) -> Iterator[Plan]:
    """Plans in other orders: by one kind, then with those first that fared worst in the plan before."""
    orders = [sorted(order, key=lambda spec: -spec.amounts.get(kind, 0)) for kind in (STORAGE, MEMORY, CPU)]
    orders += [_worst_first(order, first), *(_worst_first(by_kind, first) for by_kind in orders)]
    seen = {tuple(spec.name for spec in order)}
    for at in range(tries):
        if at >= len(orders):
            return
        names = tuple(spec.name for spec in orders[at])
        if names in seen:
            continue
        seen.add(names)
        plan = _placed(orders[at], floor)
        _give_back(plan, floor)
        orders.append(_worst_first(orders[at], plan))
        yield plan


def _worst_first(order: list[HostSpec], plan: Plan) -> list[HostSpec]:
    """The refused, then the one that takes most of the network, then as they were."""
    cost = {spec.name: _cost({spec.name: plan[spec.name]}) for spec in order}
    worst = max((cost[spec.name] for spec in order), default=(0, 0))
    return sorted(order, key=lambda spec: cost[spec.name] < max(worst, (0, 1)))


def _placed(order: Sequence[HostSpec], floor: Floor) -> Plan:
    newcomers = Newcomers(floor)
    return {spec.name: newcomers.place(spec) for spec in order}


def _give_back(plan: Plan, floor: Floor) -> None:
    for answer in plan.values():
        if isinstance(answer, LogicalHost):
            floor.move_host(answer, +1)


def _cost(plan: Plan) -> tuple[int, int]:
    """Hosts refused, and bits a second times links of all circuits."""
    hosts = [answer for answer in plan.values() if isinstance(answer, LogicalHost)]
    network = sum(c.bits_per_second * max(1, len(c.links)) for host in hosts for c in host.circuits)
    return len(plan) - len(hosts), network


def _largest_first(spec: HostSpec) -> tuple[object, ...]:
    asked = spec.amounts
    special = sum(amount for kind, amount in asked.items() if is_special(kind))
    return (-special, -asked.get(GPU, 0), -asked.get(CPU, 0), -asked.get(MEMORY, 0), natural(spec.name))
