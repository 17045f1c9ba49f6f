"""What a host holds, in the book and in the store: taken in one transaction with its record, changed, and given back.

new         all its parts and circuits; COMPOSED at once where agents have nothing to do for it, else at EXPORT
changed     at once where agents have nothing to do for that either; else what it was and becomes together, and
            what it becomes when that is done
let go      given back when the last node has let go of it
"""

from __future__ import annotations

from dataclasses import replace

from lavalite.control.hosts.holding import beside, offered, union_of
from lavalite.control.hosts.orders import Fabric, ordered
from lavalite.control.outbox import Outbox
from lavalite.control.state import Batch, ClusterState
from lavalite.control.supply import host_owner
from lavalite.ledger.book import Shortage
from lavalite.model.host import INCARNATIONS_PER_GENERATION, HostState, LogicalHost, Step
from lavalite.model.job import CommitmentRecord
from lavalite.model.resources import GPU, STORAGE, WHOLE
from lavalite.model.specs import HostSpec
from lavalite.placement.shares import shares_of

PLANNED, RESERVED, COMPOSING, COMPOSED, RESIZING, DRAINING, FAILED = (
    HostState.PLANNED,
    HostState.RESERVED,
    HostState.COMPOSING,
    HostState.COMPOSED,
    HostState.RESIZING,
    HostState.DRAINING,
    HostState.FAILED,
)


def as_asked(
    plan: LogicalHost, spec: HostSpec, before: LogicalHost | None, last: int, now: float, generation: int
) -> LogicalHost:
    """The plan with all else that its entry says, and an incarnation of its own."""
    fresh = max(last + 1, generation * INCARNATIONS_PER_GENERATION + int(now * 1000))
    held = before is not None and bool(before.parts)
    return plan.model_copy(
        update={
            "reason": "",
            "executor": spec.executor,
            "vm": spec.vm,
            "on_loss": spec.on_loss,
            "storage_iops": spec.storage_iops if spec.amounts.get(STORAGE) else 0,
            "most": dict(spec.limits),
            "incarnation": before.incarnation if held and before is not None and before.incarnation else fresh,
            "drained": before is not None and before.drained,
            "tries": before.tries if before is not None else 0,
        }
    )


NOWHERE = Fabric(lambda node, key: None, lambda node: "")
"""For who asks what is ordered of nodes, whatever they told."""


def may_become(state: ClusterState, plan: LogicalHost) -> bool:
    """Whether what jobs hold of the host is still part of it afterwards."""
    after = {(plan.name, kind): has for kind, has in offered(plan).items()}
    after |= {(place, GPU): beside(plan, node) for node, place in state.places.of(plan.name).items()}
    for provider in (plan.name, *state.places.of(plan.name).values()):
        for kind in state.book.kinds(provider):
            amount, devices = after.get((provider, kind), (0, []))
            used = {d for d, free in state.book.device_free(provider, kind).items() if free < WHOLE}
            if state.book.committed(provider, kind) > amount or used - set(devices):
                return False
    return True


def begun(host: LogicalHost) -> LogicalHost:
    """A host that is put together from now on; one of which agents have nothing to do is there at once."""
    if host.is_far_reaching:
        return host.model_copy(update={"state": COMPOSING, "step": Step.EXPORT, "reserved_until": 0.0})
    return host.model_copy(update={"state": COMPOSED, "step": Step.SETTLED, "tries": 0, "reserved_until": 0.0})


def resized(before: LogicalHost, after: LogicalHost) -> LogicalHost:
    """What its record says from now on: at once as it is to be, where agents have nothing to do for it."""
    settled = {"state": COMPOSED, "retry_at": 0.0}
    if _content(before.model_copy(update={"state": COMPOSED})) == _content(after.model_copy(update=settled)):
        return after.model_copy(update={**settled, "tries": 0})
    was, becomes = before.holding, after.holding
    both = union_of(was, becomes)
    stays = {part.id for part in becomes.parts} | {circuit.id for circuit in becomes.circuits}
    leaving = [p.id for p in was.parts if p.id not in stays] + [c.id for c in was.circuits if c.id not in stays]
    step = {"state": RESIZING, "step": Step.EXPORT, "leaving": leaving, "was": was, "becomes": becomes}
    return after.model_copy(update={**step, "parts": both.parts, "circuits": both.circuits, "pools": both.pools})


def _content(host: LogicalHost) -> list[object]:
    """What is ordered for a host that is composed, whatever its version."""
    return [(o.node, replace(o.order, version=0)) for o in ordered(host, NOWHERE)]


def commit(state: ClusterState, composed: LogicalHost, now: float, out: Outbox, *, less: bool = False) -> bool:
    """Commit all that the host holds, and its record. False, and `state.short` says why, where there is not so much.

    `less` than it holds now is there in any case, also where its nodes have come back with less than that.
    """
    record = CommitmentRecord(
        owner=host_owner(composed.name),
        epoch=state.epoch,
        shares=shares_of(composed),
        committed_at=now,
        node=composed.anchor,
    )
    resizing = state.book.holds(record.owner)
    short = None
    if less:
        state.book.release(record.owner)
        state.book.restore(record)
    else:
        short = _take(state, record)
    if short is not None:
        state.short = short.sentence()
        return False
    beside = {state.keys.host(composed.name): composed.model_dump_json().encode()}
    # A resize is tried until it is done: what it gives back may have been given away by then.
    out.commit(state, Batch(host=composed.name, composed=composed), [record], beside, retry=resizing)
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
    batch = state.landed(batch_id)
    state.book.confirm(host_owner(batch.host))
    assert batch.composed is not None, "every batch of a host says what it becomes"
    state.set_host(batch.composed, written=not batch.changed)
    # Once for all that are in flight: thousands of hosts are composed together, and each look plans them all.
    state.compose_wanted |= not state.flying
    if batch.host in state.removals:
        removed(state, batch.host)


def unwound(state: ClusterState, batch_id: int) -> None:
    """Nothing was written: the host waits as before."""
    batch = state.landed(batch_id)
    state.book.unwind(host_owner(batch.host))
    state.set_host(LogicalHost(name=batch.host, state=PLANNED, anchor="", parts=[]))
    state.compose_wanted = True


def removed(state: ClusterState, name: str) -> None:
    """The host is to go; nothing new starts on it."""
    host = state.hosts.get(name)
    if host is None:
        return
    state.removals.add(name)
    state.compose_wanted, state.compose_at = True, 0.0
    if host.state is COMPOSED and name not in state.flying:
        state.set_host(host.model_copy(update={"state": DRAINING, "reason": "to be removed"}))


def change(state: ClusterState, host: LogicalHost, **fields: object) -> None:
    """Something is said of the host that changes nothing it holds; what is being written of it is told as well."""
    for batch in state.batches.values():
        if batch.host == host.name and batch.composed is not None:
            batch.composed, batch.changed = batch.composed.model_copy(update=fields), True
    state.set_host(host.model_copy(update=fields), written=host.name in state.flying)


def take_apart(state: ClusterState, host: LogicalHost, reason: str) -> None:
    """Nobody uses the host any more, and agents have parts of it: from the anchor outwards, they let go of them."""
    leaving = [part.id for part in host.parts] + [circuit.id for circuit in host.circuits]
    change = {"step": Step.DETACH, "version": host.version + 1, "leaving": leaving, "reason": reason}
    state.set_host(host.model_copy(update={**change, "was": None, "becomes": None, "degraded": []}))


def give_up(state: ClusterState, host: LogicalHost, becomes: HostState, reason: str, **fields: object) -> None:
    """The host holds nothing any more."""
    if state.book.holds(host_owner(host.name)):
        state.book.release(host_owner(host.name))
    kept = {"version": host.version, "drained": host.drained, "reason": reason, **fields}
    state.set_host(LogicalHost(name=host.name, state=becomes, anchor="", parts=[]).model_copy(update=kept))
    state.compose_wanted = state.schedule_wanted = True
