"""Logical hosts: from what the definition asks for to what holds its parts.

    asked for ──► PLANNED ──► COMPOSING ──► COMPOSED ◄──► RESIZING
                   │   ▲ no room, or unwound    └──► DRAINING ──► gone, once nobody uses it
                   └───┘ (the reason stands in the host)

Composing is one commitment (control.hosts.commitment). From then on the host offers what it took, and jobs on it
debit the host alone. Where agents have something to do for it, the record says at which step it is, and
control.hosts.steps goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lavalite.control.events import DefinitionApplied, HostDrained, HostReserved
from lavalite.control.hosts import moves
from lavalite.control.hosts.commitment import (
    COMPOSED,
    COMPOSING,
    DRAINING,
    FAILED,
    NOWHERE,
    PLANNED,
    RESERVED,
    RESIZING,
    as_asked,
    begun,
    change,
    commit,
    give_up,
    may_become,
    removed,
    resized,
    take_apart,
)
from lavalite.control.hosts.growth import grown_spec
from lavalite.control.hosts.orders import ordered
from lavalite.control.outbox import Outbox
from lavalite.control.reservations import kept_shares
from lavalite.control.state import ClusterState
from lavalite.model.host import LogicalHost, Step
from lavalite.model.job import Share
from lavalite.model.specs import HostSpec, LinkSpec, NodeCapacity, PoolSpec
from lavalite.placement.columns import state_reason
from lavalite.placement.compose import nearer, plan_hosts
from lavalite.placement.reasons import Reason, Refusal

MOST_LOOKED_AT = 8
"""Of hosts with far parts, in one look whether they may come near."""
Planner = Callable[[Sequence[HostSpec]], dict[str, LogicalHost | Refusal]]
PAUSE_SECONDS_PER_NODE = 0.0005
"""Between two plans of what nobody just asked for: each looks at all nodes, and while something waits, one is due
each second, and at any event."""
SOON_SEEN_NODES = 500
"""So many are looked at without a pause."""
RAN_OUT = -1.0
"""`reserved_until` of a host whose reservation ran out: it is not planned until it is applied."""


def applied(state: ClusterState, event: DefinitionApplied) -> None:
    """Take the definition over. With `purge`, hosts it has no more are to go; those that hold nothing go anyway."""
    before = state.specs.hosts
    state.set_definition(event.document, event.specs)
    state.compose_at = 0.0
    for name in state.hosts.keys() - event.specs.hosts.keys():
        extra = state.hosts[name]
        if event.purge or extra.state is PLANNED or (extra.state is FAILED and not extra.parts):
            removed(state, name)
    for name, spec in event.specs.hosts.items():
        if until := event.reserve.get(name, 0.0):
            reserved(state, HostReserved(name, until))
        elif name in event.reserve or before.get(name) != spec:
            tried_anew(state, name)


def tried_anew(state: ClusterState, name: str) -> None:
    """What could not be composed or resized is not waited with any longer; what is reserved is composed."""
    host = state.hosts.get(name)
    if host is None:
        return
    if host.retry_at or host.reserved_until:
        change(state, host, retry_at=0.0, reserved_until=0.0)
    state.compose_wanted, state.compose_at = True, 0.0


def reserved(state: ClusterState, event: HostReserved) -> None:
    """What is planned for the host next is held until then, and nothing is done about it yet.

    One that is reserved already is planned anew; one that holds anything else is not touched.
    """
    host = state.hosts.get(event.host) or LogicalHost(name=event.host, state=PLANNED, anchor="", parts=[])
    if event.host in state.flying:
        if any(b.composed.state is RESERVED for b in state.batches.values() if b.host == host.name and b.composed):
            change(state, host, reserved_until=event.until)
    elif host.state is RESERVED or not host.parts:
        give_up(state, host, PLANNED, "", reserved_until=event.until)
        state.compose_at = 0.0


def drained(state: ClusterState, event: HostDrained) -> None:
    """Nothing new is to start on the host, or it may again; a record that is being written is told as well."""
    host = state.hosts.get(event.host)
    if host is None or host.drained is not event.undo:
        return
    change(state, host, drained=not event.undo)


def look_again(state: ClusterState, now: float) -> None:
    """Hosts that wait for room, or for their last user to go, are looked at once a tick."""
    for host in list(state.hosts.values()):
        if 0 < host.reserved_until <= now and host.name not in state.flying:
            give_up(state, host, PLANNED, "its reservation ran out: apply it", reserved_until=RAN_OUT)
    if now >= state.reanchor_at and any(_could_be_nearer(state, s, now) for s in state.specs.hosts.values()):
        state.compose_wanted = True
    if state.removals or any(_waits(h, now) for h in state.hosts.values()):
        state.compose_wanted = True


def _waits(host: LogicalHost, now: float) -> bool:
    if host.state is FAILED:
        return not host.parts and host.retry_at <= now
    if host.state is PLANNED:
        return host.reserved_until != RAN_OUT
    return host.state is COMPOSED and bool(host.reason) and host.retry_at <= now


def compose(state: ClusterState, now: float, out: Outbox) -> None:
    """Let go what is to go, then plan and commit what is asked for and not there, or not so."""
    state.compose_wanted = False
    state.compose_at = now + max(0, len(state.nodes) - SOON_SEEN_NODES) * PAUSE_SECONDS_PER_NODE
    state.refresh_links()
    for name in sorted(state.removals):
        _let_go(state, name)
    wanted = [s for s in state.specs.hosts.values() if _is_open(state, s, now)]
    specs = [grown_spec(s, state.hosts.get(s.name)) for s in wanted]
    plans = planner(state, now)(specs) if specs else {}
    state.compose_wanted = False
    for spec in specs:
        plan, host = plans[spec.name], state.hosts.get(spec.name)
        if isinstance(plan, Refusal) and host is not None and host.state is RESERVED:
            give_up(state, host, PLANNED, plan.sentence())  # as it is asked for now it has to be somewhere else
        elif isinstance(plan, Refusal):
            _wait(state, spec, plan.sentence())
        elif host is not None and host.state is COMPOSED and spec.executor != host.executor:
            _wait(state, spec, f"it is run as {host.executor}; remove it first, to have it run as {spec.executor}")
        elif plan != _bare(host):
            _commit(state, spec, plan, now, out)
        elif host is not None and host.state is RESERVED:
            # What is held for it is what it takes; its record says so from now on.
            state.set_host(begun(as_asked(host, spec, host, state.last_incarnation, now, state.epoch[0])))
        elif host is not None:
            _keep(state, spec, host)
    if now >= state.reanchor_at:
        _bring_near(state, now, out)


def _let_go(state: ClusterState, name: str) -> None:
    """Of what is to go: what holds nothing is forgotten, what nobody uses is taken apart."""
    host = state.hosts.get(name)
    if host is None:
        state.removals.discard(name)
    elif moves.is_copying(host) and name not in state.flying and not state.host_in_use(name):
        take_apart(state, host.model_copy(update={"state": DRAINING}), "to be removed")
    elif name in state.flying or host.step in (Step.DETACH, Step.WITHDRAW) or host.state is RESIZING:
        return
    elif host.state is COMPOSED:
        removed(state, name)
    elif state.host_in_use(name):
        return
    elif host.state in (COMPOSING, DRAINING, FAILED) and ordered(host, NOWHERE):
        take_apart(state, host.model_copy(update={"state": DRAINING}), "to be removed")
    else:
        state.remove_host(name)


def planner(
    state: ClusterState, now: float, pools: list[PoolSpec] | None = None, links: Sequence[LinkSpec] | None = None
) -> Planner:
    """What would become of hosts, with these pools and links or those that there are, without doing anything.

    It holds copies of all that it looks at, so that a long plan may be made in another thread.
    """
    there = _what_is_there(state, now)
    known = list(state.specs.pools.values()) if pools is None else pools
    wired = state.specs.links if links is None else links
    return lambda specs: plan_hosts(specs, there.nodes, known, there.existing, there.taken, there.closed, links=wired)


class _There(NamedTuple):
    nodes: list[NodeCapacity]
    existing: dict[str, LogicalHost]
    taken: list[Share]
    closed: dict[str, Reason]


def _what_is_there(state: ClusterState, now: float) -> _There:
    nodes = [node.capacity() for node in state.nodes.values()]
    rows = {node.name: state.node_row_state(node, now) for node in state.nodes.values()}
    closed: dict[str, Reason] = {
        name: reason for name, row in rows.items() if (reason := state_reason(row)) is not None
    }
    closed |= {node.name: Reason.HELD for node in state.nodes.values() if node.owes_parts and node.name not in closed}
    existing = {name: _bare(host) or host for name, host in state.hosts.items() if host.parts}
    taken = [share for key in state.runs for share in state.book.shares(key.owner)]
    kept, without_gpus = kept_shares(state, now)
    closed |= {name: Reason.HELD for name in without_gpus if name not in closed}
    closed |= {run.node: Reason.NOT_SHARED for run in state.runs.values() if run.exclusive and run.node not in closed}
    return _There(nodes, existing, taken + kept, closed)


def _bring_near(state: ClusterState, now: float, out: Outbox) -> None:
    """Parts of other nodes come to their anchor, or into its rack, where room has appeared there: one host at a look.

    New near parts first, then the far ones leave, like any other change of a host. A disk is copied while it is in
    use, and takes the old one's place under the same device. GPUs are moved only while nobody uses the host.
    """
    state.reanchor_at = now + state.settings.reanchor_seconds
    far = [spec for spec in state.specs.hosts.values() if _could_be_nearer(state, spec, now)]
    if not far:
        return
    there = _what_is_there(state, now)
    for spec in far[:MOST_LOOKED_AT]:
        host, pools = there.existing[spec.name], list(state.specs.pools.values())
        wish, links, kinds = grown_spec(spec, host), state.specs.links, moves.movable(state, host)
        plan = nearer(wish, host, there.nodes, pools, there.existing, there.taken, there.closed, links, kinds=kinds)
        if plan is not None:
            _commit(state, wish, plan, now, out)
            return  # the next one is planned beside it, at the next look


def _could_be_nearer(state: ClusterState, spec: HostSpec, now: float) -> bool:
    host = state.hosts.get(spec.name)
    if host is None or host.state is not COMPOSED or host.degraded or not _is_open(state, spec, now):
        return False
    kinds = moves.movable(state, host)
    return any(host.is_far(part) and part.kind in kinds for part in host.parts)


def _is_open(state: ClusterState, spec: HostSpec, now: float) -> bool:
    """Whether something may be planned for it now: not while a commitment of it is in flight, or while it goes."""
    host = state.hosts.get(spec.name)
    if spec.name in state.removals or spec.name in state.flying:
        return False
    if host is None:
        return True
    if host.reserved_until == RAN_OUT:
        return False
    usual = host.state in (PLANNED, COMPOSED) or (host.state is FAILED and not host.parts)
    return (usual and host.retry_at <= now) or (host.state is RESERVED and not host.reserved_until)


def _bare(host: LogicalHost | None) -> LogicalHost | None:
    """The host as the planner knows it: without what we say about it."""
    return host.model_copy(update={"reason": ""}) if host is not None and host.reason else host


def _wait(state: ClusterState, spec: HostSpec, reason: str) -> None:
    """There is no room for it, or not for how it is asked for now: say so in the host."""
    host = state.hosts.get(spec.name)
    if host is None:
        host = LogicalHost(name=spec.name, state=PLANNED, anchor="", parts=[])
        state.set_host(host)
    waits = PLANNED if host.state is FAILED else host.state
    if host.reason != reason or host.state is not waits:
        state.set_host(host.model_copy(update={"reason": reason, "state": waits}))


def _keep(state: ClusterState, spec: HostSpec, host: LogicalHost) -> None:
    """It is as it is asked for: whatever kept it from that is over."""
    updates: dict[str, object] = {}
    if host.on_loss != spec.on_loss:
        updates["on_loss"] = spec.on_loss
    if (host.reason or host.tries) and not host.degraded:
        updates |= {"reason": "", "tries": 0}
    if updates:
        state.set_host(host.model_copy(update=updates))


def _commit(state: ClusterState, spec: HostSpec, plan: LogicalHost, now: float, out: Outbox) -> None:
    before = state.hosts.get(spec.name)
    if spec.name in state.nodes:
        _wait(state, spec, f"{spec.name} is the name of a node; give the host another one")
        return
    if before is not None and before.state is COMPOSED and not may_become(state, plan):
        _wait(state, spec, "jobs use more of it than it is to have")
        return
    if before is not None and before.state is COMPOSED and (held_back := moves.held_back(state, before, plan)):
        _wait(state, spec, held_back)
        return
    resizing = before is not None and bool(before.parts)
    until = before.reserved_until if before is not None and before.state is PLANNED else 0.0
    if resizing and before is not None and before.state is not RESERVED:
        composed = resized(before, as_asked(plan, spec, before, state.last_incarnation, now, state.epoch[0]))
    else:
        composed = begun(as_asked(plan, spec, before, state.last_incarnation, now, state.epoch[0]))
        if until > now:
            composed = composed.model_copy(update={"state": RESERVED, "step": Step.SETTLED, "reserved_until": until})
    if not commit(state, composed, now, out):
        _wait(state, spec, state.short)
        return
    # Its record is written with the commitment. Until then the plan is only known here, and offers nothing new.
    if resizing and before is not None:
        waits = RESERVED if before.state is RESERVED else RESIZING
        state.set_host(before.model_copy(update={"state": waits}), written=True)
    else:
        unwritten = {"state": COMPOSING, "step": Step.SETTLED}
        state.set_host(composed.model_copy(update=unwritten), written=True)
