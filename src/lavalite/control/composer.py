"""Logical hosts: from what the definition asks for to what holds its parts.

    asked for ──► PLANNED ──► COMPOSING ──► COMPOSED ◄──► RESIZING
                   │   ▲ no room, or unwound    └──► DRAINING ──► gone, once nobody uses it
                   └───┘ (the reason stands in the host)

Composing is one commitment: every part on every provider, and the host's own record, in one transaction. From then on
the host offers what it took, and jobs on it debit the host alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lavalite.control.events import DefinitionApplied
from lavalite.control.outbox import Outbox
from lavalite.control.reservations import kept_shares
from lavalite.control.state import Batch, ClusterState
from lavalite.control.supply import host_owner
from lavalite.ledger.book import Shortage
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.job import CommitmentRecord, Share
from lavalite.model.specs import HostSpec, PoolSpec
from lavalite.placement.columns import state_reason
from lavalite.placement.compose import plan_hosts
from lavalite.placement.reasons import Reason, Refusal

PLANNED, COMPOSING, COMPOSED, RESIZING, DRAINING = (
    HostState.PLANNED,
    HostState.COMPOSING,
    HostState.COMPOSED,
    HostState.RESIZING,
    HostState.DRAINING,
)
Planner = Callable[[Sequence[HostSpec]], dict[str, LogicalHost | Refusal]]
HOLDING = frozenset({COMPOSING, COMPOSED, RESIZING, DRAINING})


def applied(state: ClusterState, event: DefinitionApplied) -> None:
    """Take the definition over. With `purge`, hosts it has no more are to go; those that hold nothing go anyway."""
    state.set_definition(event.document, event.specs)
    for name in state.hosts.keys() - event.specs.hosts.keys():
        if event.purge or state.hosts[name].state is PLANNED:
            removed(state, name)


def removed(state: ClusterState, name: str) -> None:
    """The host is to go; nothing new starts on it."""
    host = state.hosts.get(name)
    if host is None:
        return
    state.removals.add(name)
    state.compose_wanted = True
    if host.state is COMPOSED:
        state.set_host(host.model_copy(update={"state": DRAINING, "reason": "to be removed"}))


def look_again(state: ClusterState) -> None:
    """Hosts that wait for room, or for their last user to go, are looked at once a tick."""
    if state.removals or any(h.state is PLANNED or h.reason for h in state.hosts.values()):
        state.compose_wanted = True


def compose(state: ClusterState, now: float, out: Outbox) -> None:
    """Let go what is to go, then plan and commit what is asked for and not there, or not so."""
    state.compose_wanted = False
    for name in sorted(state.removals):
        host = state.hosts.get(name)
        if host is None:
            state.removals.discard(name)
        elif host.state in (PLANNED, DRAINING, HostState.FAILED) and not state.host_in_use(name):
            state.remove_host(name)
    specs = [s for s in state.specs.hosts.values() if _is_open(state, s)]
    plans = planner(state, now)(specs) if specs else {}
    state.compose_wanted = False
    for spec in specs:
        plan = plans[spec.name]
        if isinstance(plan, Refusal):
            _wait(state, spec, plan.sentence())
        elif plan != _bare(state.hosts.get(spec.name)):
            _commit(state, spec, plan, now, out)
        elif state.hosts[spec.name].reason:
            state.set_host(plan)


def planner(state: ClusterState, now: float, pools: list[PoolSpec] | None = None) -> Planner:
    """What would become of hosts, with these pools or those that there are, without doing anything.

    It holds copies of all that it looks at, so that a long plan may be made in another thread.
    """
    nodes = [node.capacity() for node in state.nodes.values()]
    rows = {node.name: state.node_row_state(node, now) for node in state.nodes.values()}
    closed: dict[str, Reason] = {
        name: reason for name, row in rows.items() if (reason := state_reason(row)) is not None
    }
    existing = {name: _bare(host) or host for name, host in state.hosts.items() if host.state in HOLDING}
    taken = [share for key in state.runs for share in state.book.shares(key.owner)]
    kept, without_gpus = kept_shares(state, now)
    closed |= {name: Reason.HELD for name in without_gpus if name not in closed}
    closed |= {run.node: Reason.NOT_SHARED for run in state.runs.values() if run.exclusive and run.node not in closed}
    taken += kept
    known = list(state.specs.pools.values()) if pools is None else pools
    return lambda specs: plan_hosts(specs, nodes, known, existing, taken, closed)


def _is_open(state: ClusterState, spec: HostSpec) -> bool:
    """Whether something may be planned for it now: not while a commitment of it is in flight, or while it goes."""
    host = state.hosts.get(spec.name)
    return spec.name not in state.removals and (host is None or host.state in (PLANNED, COMPOSED))


def _bare(host: LogicalHost | None) -> LogicalHost | None:
    """The host as the planner knows it: without what we say about it."""
    return host.model_copy(update={"reason": ""}) if host is not None and host.reason else host


def _wait(state: ClusterState, spec: HostSpec, reason: str) -> None:
    """There is no room for it, or not for how it is asked for now: say so in the host."""
    host = state.hosts.get(spec.name)
    if host is None:
        host = LogicalHost(name=spec.name, state=PLANNED, anchor="", parts=[])
        state.set_host(host)
    if host.reason != reason:
        state.set_host(host.model_copy(update={"reason": reason}))


def _commit(state: ClusterState, spec: HostSpec, plan: LogicalHost, now: float, out: Outbox) -> None:
    before = state.hosts.get(spec.name)
    if spec.name in state.nodes:
        _wait(state, spec, f"{spec.name} is the name of a node; give the host another one")
        return
    if before is not None and before.state is COMPOSED and not _may_become(state, plan):
        _wait(state, spec, "jobs use more of it than it is to have")
        return
    record = CommitmentRecord(
        owner=host_owner(spec.name),
        epoch=state.epoch,
        shares=[
            Share(provider=p.provider, kind=p.kind, amount=p.amount, devices=p.devices, pool=p.pool)
            for p in plan.parts
        ],
        committed_at=now,
        node=plan.anchor,
    )
    resizing = state.book.holds(record.owner)
    short = _take(state, record)
    if short is not None:
        _wait(state, spec, short.sentence())
        return
    composed = plan.model_copy(update={"state": COMPOSED, "reason": ""})
    # Its record is written with the commitment. Until then the plan is only known here, and offers nothing new.
    if resizing and before is not None:
        state.set_host(before.model_copy(update={"state": RESIZING}), written=True)
    else:
        state.set_host(composed.model_copy(update={"state": COMPOSING}), written=True)
    beside = {state.keys.host(spec.name): composed.model_dump_json().encode()}
    # A resize is tried until it is done: what it gives back may have been given away by then.
    out.commit(state, Batch(host=spec.name, composed=composed), [record], beside, retry=resizing)


def _may_become(state: ClusterState, plan: LogicalHost) -> bool:
    """Whether what jobs hold of the host is still part of it afterwards."""
    for kind in state.book.kinds(plan.name):
        parts = [part for part in plan.parts if part.kind == kind]
        devices = {device for part in parts for device in part.devices}
        used = {d for d, free in state.book.device_free(plan.name, kind).items() if free < 1000}
        if state.book.committed(plan.name, kind) > sum(part.amount for part in parts) or used - devices:
            return False
    return True


def _take(state: ClusterState, record: CommitmentRecord) -> Shortage | None:
    """Assume the host's commitment, instead of the one it has where it has one."""
    if not state.book.holds(record.owner):
        return state.book.assume(record)
    before = record.model_copy(update={"shares": list(state.book.shares(record.owner))})
    state.book.release(record.owner)
    short = state.book.assume(record)
    if short is not None:
        state.book.restore(before)
    return short


def confirmed(state: ClusterState, batch_id: int) -> None:
    """The host holds its parts."""
    batch = state.batches.pop(batch_id)
    state.book.confirm(host_owner(batch.host))
    assert batch.composed is not None, "every batch of a host says what it becomes"
    state.set_host(batch.composed, written=True)
    # Once for all that are in flight: thousands of hosts are composed together, and each look plans them all.
    state.compose_wanted |= not any(other.host for other in state.batches.values())
    if batch.host in state.removals:
        removed(state, batch.host)


def unwound(state: ClusterState, batch_id: int) -> None:
    """Nothing was written: the host waits as before."""
    batch = state.batches.pop(batch_id)
    state.book.unwind(host_owner(batch.host))
    state.set_host(LogicalHost(name=batch.host, state=PLANNED, anchor="", parts=[]))
    state.compose_wanted = True
