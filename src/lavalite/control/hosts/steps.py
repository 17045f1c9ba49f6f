"""The step machine: a host goes on when all that its step waits for has been heard of, as its record is at each step.

    EXPORT, ATTACH     a node says that it cannot, or has not within compose_seconds ──► what is new is taken apart
    DETACH, WITHDRAW   waits for every node, but for one that is not connected only let_go_seconds: it owes us its
                       parts from then on, and gets nothing new before it has told what it has (control.hosts.telling)

Where a disk takes the place of another one, ATTACH lasts until all bytes are copied. For that it has, beside
compose_seconds, four times what they take at the bandwidth of the narrower of the two disks' circuits, or at
1 Gbit/s where both are the anchor's own: work goes on meanwhile, over the same circuits. A limit of I/O counts as so
many times 64 KiB a second.

Each step is written before its orders go out, since those go with that write (Outbox.durable).
"""

from __future__ import annotations

from lavalite.control.hosts import commitment, loss
from lavalite.control.hosts.commitment import COMPOSED, COMPOSING, DRAINING, FAILED, RESIZING
from lavalite.control.hosts.orders import VM_PART, Ordered, moved_disk, ordered
from lavalite.control.hosts.telling import fabric_of
from lavalite.control.outbox import Outbox
from lavalite.control.state import ClusterState
from lavalite.model.host import VM, LogicalHost, Step

COPIES = 4
"""So many times what copying a disk takes alone may go by until it is in place."""
BITS_PER_SECOND_WITHIN = 10**9
"""Of a copy that no circuit limits."""
BITS_PER_IO = 64 * 1024 * 8
BOOT_SECONDS = 360.0
"""A virtual machine may take so much longer to attach: its agent gives it `vm_boot_seconds`, 300 as a rule."""
FORWARD = frozenset({Step.EXPORT, Step.ATTACH})
NEXT = {Step.EXPORT: Step.ATTACH, Step.ATTACH: Step.DETACH, Step.DETACH: Step.WITHDRAW}


def look_again(state: ClusterState) -> None:
    """Time alone may have ended a step, or lost a part."""
    for names in state.part_hosts.values():
        state.steps_wanted |= dict.fromkeys(names)


def go_on(state: ClusterState, now: float, out: Outbox) -> None:
    """Every host that something was heard of goes as far as it can."""
    while state.steps_wanted:
        wanted, state.steps_wanted = sorted(state.steps_wanted), {}
        for name in wanted:
            host = state.hosts.get(name)
            if host is None or name in state.flying:
                continue
            if host.under_way:
                _go_on(state, host, now, out)
            else:
                loss.judge(state, host, now, out)


def _go_on(state: ClusterState, host: LogicalHost, now: float, out: Outbox) -> None:
    since = _since(state, host, now)
    told = state.parts_told
    waited_for = [o for o in ordered(host, fabric_of(state)) if o.awaited]
    left = [o for o in waited_for if not o.is_met(told.get(o.node, {}).get(o.order.key))]
    if host.step not in FORWARD:
        # A disk that moves is not given away before its anchor has said with which of the two it goes on.
        stays = "" if moved_disk(host) is None else host.anchor
        held_up = [o for o in left if o.node == stays or not _is_let_go(state, o.node, since, now)]
        if held_up:
            _say(state, host, held_up[0])
            _copy_again(state, host, now)
        else:
            _owe(state, left)
            _next(state, host, now, out)
        return
    for one in left:
        report = told.get(one.node, {}).get(one.order.key)
        if report is not None and one.is_broken(report):
            _unwind(state, host, f"{_named(one)} {report.state}: {report.reason}".rstrip(": "), now)
            return
    if not left:
        _next(state, host, now, out)
    elif now - since >= (most := _most_seconds(state, host)):
        _unwind(state, host, f"{_named(left[0])} was not ready within {int(most)} s", now)


def _most_seconds(state: ClusterState, host: LogicalHost) -> float:
    boot = BOOT_SECONDS if host.executor == VM and host.step is Step.ATTACH else 0.0
    return state.settings.compose_seconds + boot + copy_seconds(host)


def copy_seconds(host: LogicalHost) -> float:
    """How long the host may be at ATTACH on account of a disk that moves."""
    moved = moved_disk(host) if host.step is Step.ATTACH else None
    if moved is None:
        return 0.0
    over = [circuit.bits_per_second for circuit in host.circuits if circuit.id in {part.circuit for part in moved}]
    if over and host.storage_iops:
        over.append(host.storage_iops * BITS_PER_IO)
    return COPIES * moved[0].amount * 8 / max(1, min(over, default=BITS_PER_SECOND_WITHIN))


def _named(one: Ordered) -> str:
    return f"{one.node}: {one.order.role} {one.order.part}"


def _since(state: ClusterState, host: LogicalHost, now: float) -> float:
    """Since when it has been at this step, or we have served: agents are given time to register."""
    before = state.host_steps.get(host.name)
    if before is None or before[:2] != (host.version, host.step.value):
        before = state.host_steps[host.name] = (host.version, host.step.value, now)
    return before[2]


def _is_let_go(state: ClusterState, node: str, since: float, now: float) -> bool:
    found = state.nodes.get(node)
    away = found is None or not (found.connected and found.registered)
    return away and now - since >= state.settings.let_go_seconds


def _owe(state: ClusterState, left: list[Ordered]) -> None:
    for one in left:
        if (node := state.nodes.get(one.node)) is not None:
            state.set_owing(node, True)


def _say(state: ClusterState, host: LogicalHost, one: Ordered) -> None:
    """A node says that it cannot let go: people see it, and the node is asked again now and then."""
    report = state.parts_told.get(one.node, {}).get(one.order.key)
    goes_forward = host.state is DRAINING or host.was is not None
    if report is not None and one.is_broken(report) and goes_forward:
        reason = f"{_named(one)}: {report.reason}"
        if host.reason != reason:
            state.set_host(host.model_copy(update={"reason": reason}))


def _copy_again(state: ClusterState, host: LogicalHost, now: float) -> None:
    """A disk broke that took another one's place, just when that one was to go, which therefore stays as yet: it is
    ordered once more, by a higher version.
    """
    moved = moved_disk(host)
    if moved is None or now - state.reattached.get(host.name, float("-inf")) < state.settings.reattach_seconds:
        return
    for one in ordered(host, fabric_of(state)):
        report = state.parts_told.get(one.node, {}).get(one.order.key)
        machine = one.order.role == VM_PART and one.order.want == "present"
        again = machine if host.executor == VM else one.order.mirrors
        if again and report is not None and one.is_broken(report):
            state.reattached[host.name] = now
            # What was said of it since, this one call may have changed.
            state.set_host(state.hosts[host.name].model_copy(update={"version": host.version + 1}))
            return


def _next(state: ClusterState, host: LogicalHost, now: float, out: Outbox) -> None:
    composing_is_done = host.step is Step.ATTACH and host.state is COMPOSING
    if composing_is_done:
        done = {"state": COMPOSED, "step": Step.SETTLED, "tries": 0, "retry_at": 0.0, "reason": ""}
        _composed(state, host.model_copy(update=done))
    elif host.step is not Step.WITHDRAW:
        state.set_host(host.model_copy(update={"step": NEXT[host.step]}))
    elif host.state is RESIZING:
        _resized(state, host, now, out)
    elif host.name in state.removals or host.state is DRAINING:
        state.host_steps.pop(host.name, None)
        state.remove_host(host.name)
    else:
        _failed(state, host, now)


def _composed(state: ClusterState, host: LogicalHost) -> None:
    state.set_host(host)
    state.compose_wanted = True
    if host.name in state.removals:
        commitment.removed(state, host.name)


def _resized(state: ClusterState, host: LogicalHost, now: float, out: Outbox) -> None:
    """It holds what it has become, in one transaction with its record."""
    after = host.becomes or host.holding
    went_well = host.was is not None
    ids = {part.id for part in after.parts}
    settled: dict[str, object] = {
        "state": COMPOSED,
        "step": Step.SETTLED,
        "version": host.version + 1,  # what its anchor said of the one that was resized is not of this one
        "parts": after.parts,
        "circuits": after.circuits,
        "pools": after.pools,
        "was": None,
        "becomes": None,
        "leaving": [],
        "degraded": [part for part in host.degraded if part in ids],
    }
    if went_well:
        settled |= {"reason": "", "tries": 0, "retry_at": 0.0}
    commitment.commit(state, host.model_copy(update=settled), now, out, less=True)


def _unwind(state: ClusterState, host: LogicalHost, reason: str, now: float) -> None:
    """What is new leaves again; a host that was composed is then as it was."""
    if host.state is COMPOSING:
        commitment.take_apart(state, host, reason)
        return
    before = host.was or host.holding
    stays = {part.id for part in before.parts} | {circuit.id for circuit in before.circuits}
    leaving = [p.id for p in host.parts if p.id not in stays] + [c.id for c in host.circuits if c.id not in stays]
    change = {"step": Step.DETACH, "version": host.version + 1, "leaving": leaving, "was": None, "becomes": before}
    again = {"reason": reason, "tries": host.tries + 1, "retry_at": _retry_at(state, host, now)}
    state.set_host(host.model_copy(update={**change, **again}))


def _failed(state: ClusterState, host: LogicalHost, now: float) -> None:
    """Nothing of it is left; it is tried again after a while."""
    state.host_steps.pop(host.name, None)
    again = {"tries": host.tries + 1, "retry_at": _retry_at(state, host, now)}
    commitment.give_up(state, host, FAILED, host.reason, **again)


def _retry_at(state: ClusterState, host: LogicalHost, now: float) -> float:
    settings = state.settings
    doubled: float = settings.host_backoff_first_seconds * 2 ** min(host.tries, 16)
    return now + min(doubled, settings.host_backoff_most_seconds)
