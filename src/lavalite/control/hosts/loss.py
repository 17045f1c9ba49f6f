"""A composed host loses a part, and perhaps gets it back.

    lost         an agent says so, or cannot make what it is to have; the part's node is gone for lost_after, or has
                 come back with less than is committed on it
    on_loss      fail     the host fails: its jobs end as if their node were lost, and it is taken apart
                 degrade  it goes on without, and offers so much less: who holds GPUs of another node that it loses
                          ends. It is attached anew when its node has it again

The anchor is no part: while it is away, nothing is known of the host, and it goes on when the anchor is back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lavalite.control.hosts.commitment import COMPOSED, FAILED, take_apart
from lavalite.control.hosts.orders import Ordered, ordered, vm_part
from lavalite.control.hosts.telling import fabric_of
from lavalite.control.node_state import NodeState
from lavalite.control.outbox import Outbox
from lavalite.control.state import ClusterState
from lavalite.control.wishes import end_run
from lavalite.model.host import DEGRADE, LogicalHost, Part
from lavalite.model.resources import GPU
from lavalite.model.task import TaskState

REASON_LOST = "its logical host lost a part"
AGAIN_AFTER_GRACES = 3
"""So many times the grace of a stop may pass before what still runs is told again."""


def judge(state: ClusterState, host: LogicalHost, now: float, out: Outbox) -> None:
    """Look at one host that is not under way."""
    if host.state is FAILED and host.parts:
        _clear(state, host, now, out)
    if host.state is not COMPOSED:
        return
    all_ordered = ordered(host, fabric_of(state))
    lost = dict(_lost(state, host, all_ordered, now))
    if lost and (host.on_loss != DEGRADE or vm_part(host) in lost):
        part, reason = sorted(lost.items())[0]
        state.set_host(host.model_copy(update={"state": FAILED, "reason": f"{part} is lost: {reason}"}))
        return
    still = [p for p in host.degraded if p not in lost and not _is_back(state, host, p, all_ordered)]
    degraded = sorted({*lost, *still})
    if degraded != host.degraded:
        reason = "; ".join(f"{part} is lost: {why}" for part, why in sorted(lost.items()))
        told = reason or (host.reason if degraded else "")
        state.set_host(host.model_copy(update={"degraded": degraded, "reason": told}))
    elif degraded and _may_be_attached(state, host, all_ordered, now):
        state.reattached[host.name] = now
        state.set_host(host.model_copy(update={"version": host.version + 1}))
    if degraded:
        _end(state, _beside_lost(state, host, degraded), now, out)


def _beside_lost(state: ClusterState, host: LogicalHost, degraded: list[str]) -> set[str]:
    """Who holds GPUs of other nodes that are among the lost parts."""
    owners = set()
    for part in host.parts:
        place = state.places.of(host.name).get(part.provider)
        if part.id in degraded and part.devices and place is not None:
            for owner in state.book.holders(place, GPU):
                held = {d for share in state.book.shares(owner) if share.provider == place for d in share.devices}
                owners |= {owner} if held & set(part.devices) else set()
    return owners


def _lost(
    state: ClusterState, host: LogicalHost, all_ordered: list[Ordered], now: float
) -> Iterator[tuple[str, str]]:
    """Parts that are lost, by id, and why."""
    for one in all_ordered:
        report = state.parts_told.get(one.node, {}).get(one.order.key)
        if report is not None and one.is_broken(report):
            for part in _of_order(host, one.order.part):
                yield part, f"{one.node}: {one.order.role} {report.state}: {report.reason}".rstrip(": ")
    lost_after = state.queue(state.default_queue).lost_after_seconds
    for far in filter(host.is_far, host.parts):
        node = state.nodes.get(far.provider)
        if node is None or now - node.heard_at >= lost_after:
            yield far.id, f"{far.provider} is gone"
        elif node.registered and _has_vanished(state, node, far):
            yield far.id, f"{far.provider} has less {far.kind} than is held of it"


def _of_order(host: LogicalHost, ordered_part: str) -> list[str]:
    """The parts that an order is for: those of its circuit, where it is one."""
    over = [part.id for part in host.parts if part.circuit == ordered_part]
    is_circuit = any(circuit.id == ordered_part for circuit in host.circuits)
    return over if is_circuit else [ordered_part]


def _has_vanished(state: ClusterState, node: NodeState, part: Part) -> bool:
    """Whether it is this part that has to give way where the node has less than is committed on it: the youngest."""
    if part.devices:
        return not set(part.devices) <= set(state.book.device_free(node.name, part.kind))
    short = state.book.committed(node.name, part.kind) - state.book.capacity(node.name, part.kind)
    if short <= 0:
        return False
    hosts = [state.hosts[name] for name in state.part_hosts.get(node.name, ())]
    held = [
        (host.incarnation, host.name, other.id, other.amount)
        for host in hosts
        for other in host.parts
        if (other.provider, other.kind) == (node.name, part.kind) and host.is_far(other)
    ]
    for _, _, part_id, amount in sorted(held, reverse=True):
        if short <= 0:
            return False
        if part_id == part.id:
            return True
        short -= amount
    return False


def _is_back(state: ClusterState, host: LogicalHost, part_id: str, all_ordered: list[Ordered]) -> bool:
    """Whether all that is ordered for a part is ready again."""
    mine = [one for one in all_ordered if part_id in _of_order(host, one.order.part)]
    told = state.parts_told
    return all(one.is_met(told.get(one.node, {}).get(one.order.key)) for one in mine)


def _may_be_attached(state: ClusterState, host: LogicalHost, all_ordered: list[Ordered], now: float) -> bool:
    """Whether it is time to try again: an order of a higher version is another try, and all concerned are here."""
    if now - state.reattached.get(host.name, float("-inf")) < state.settings.reattach_seconds:
        return False
    told, broken = state.parts_told, False
    for one in all_ordered:
        if not set(_of_order(host, one.order.part)) & set(host.degraded):
            continue
        node = state.nodes.get(one.node)
        if node is None or not node.registered or node.name not in told:
            return False
        report = told[node.name].get(one.order.key)
        broken |= report is not None and one.is_broken(report)
    return broken


def _clear(state: ClusterState, host: LogicalHost, now: float, out: Outbox) -> None:
    """Have the jobs end that are on a host that failed; then it is taken apart."""
    if not state.host_in_use(host.name):
        take_apart(state, host, host.reason)
        return
    _end(state, state.users_of_host(host.name), now, out)


def _end(state: ClusterState, owners: Iterable[str], now: float, out: Outbox) -> None:
    """Have these end, which are on what is lost, as if their node were."""
    again_seconds = AGAIN_AFTER_GRACES * state.settings.stop_grace_seconds
    for owner in sorted(owners):
        run = state.run_of(owner)
        told_lately = run is not None and run.told_to_end_at is not None and now - run.told_to_end_at < again_seconds
        if run is None or run.assumed or run.cancel_requested or told_lately:
            continue
        if state.jobs[run.key.job].spec.rerunnable or not run.maybe_sent:
            end_run(state, run, REASON_LOST, now, out, requeue=True)
        elif run.state is not TaskState.COMMITTED:
            end_run(state, run, REASON_LOST, now, out)
        else:
            continue  # it may start any moment, and can be told to end then
        run.told_to_end_at = now
