"""The one way in: what happened and what time it is, and out come the actions, in order.

    event ──► reconciler, one for each subject ──► what is due ──► scheduler, if anything could start now ──► actions

Everything is decided from (state, event, now) alone. `now` is in seconds since the Unix epoch, by a clock that never
steps: the wall time at the shell's start plus CLOCK_BOOTTIME since then. A stepped clock would declare nodes lost.
"""

from __future__ import annotations

from lavalite.control import drain, gangs, health, planning, preemption, reservations, starts, wishes
from lavalite.control.actions import Action, Wake
from lavalite.control.events import (
    CancelRequested,
    CommitConfirmed,
    CommitUnwound,
    DefinitionApplied,
    DrainRequested,
    Event,
    HoldRequested,
    HostApplied,
    HostDrained,
    HostGrown,
    HostRemoved,
    HostReserved,
    LabelsSet,
    Loaded,
    MembersSeen,
    NodeBeat,
    NodeDisconnected,
    NodeForgotten,
    NodeRegistered,
    NodeReported,
    NodesBeat,
    PartsReported,
    ReleaseRequested,
    RequeueRequested,
    ReservationDrained,
    ReservationEnded,
    ReservationMade,
    ResumeRequested,
    SignalRequested,
    Submitted,
    Tick,
)
from lavalite.control.hosts import commitment, composer, growth, steps, telling
from lavalite.control.outbox import Outbox
from lavalite.control.retention import forget_finished
from lavalite.control.scheduler import schedule
from lavalite.control.state import ClusterState


def decide(state: ClusterState, event: Event, now: float) -> list[Action]:
    """Take in one event. IllegalTransition and LedgerBroken are bugs of ours: then the process must end."""
    out = Outbox()
    state.advance(now)
    _react(state, event, now, out)
    if state.gangs_moved:
        gangs.settle(state, now, out)
    state.wake(now)  # what the event made due as well: else it would wait for the next one
    if state.impatient:
        wishes.give_up(state, now, out)
    steps.go_on(state, now, out)
    if state.compose_wanted and now >= state.compose_at:
        composer.compose(state, now, out)
        steps.go_on(state, now, out)
    telling.tell(state, out)
    if state.schedule_wanted:
        schedule(state, now, out)
    _ask_to_be_woken(state, out)
    return out.actions(state)


def _react(state: ClusterState, event: Event, now: float, out: Outbox) -> None:
    match event:
        case Tick():
            state.wake_told = None  # a Wake is answered by a Tick, and is over then
            health.watch(state, now, out)
            drain.clear_nodes(state, now, out)
            wishes.go_on_cancelling(state, now, out)
            reservations.let_go(state, now)
            planning.go_on(state, now)
            preemption.look_again(state, now)
            steps.look_again(state)
            telling.tell_again(state, now)
            composer.look_again(state, now)
            forget_finished(state, now)
            state.schedule_wanted |= bool(state.claims)  # who claims may want nothing any more
        case NodeBeat():
            health.beat(state, event, now)
        case NodesBeat(names):
            health.all_heard(state, names, now)
        case NodeReported():
            health.reports(state, event, now, out)
        case NodeRegistered():
            health.registered(state, event, now, out)
        case NodeDisconnected(node):
            health.disconnected(state, node)
        case MembersSeen():
            health.members_seen(state, event)
        case CommitConfirmed(batch_id):
            if state.batches[batch_id].host:
                commitment.confirmed(state, batch_id)
            else:
                starts.confirmed(state, event, now, out)
        case CommitUnwound(batch_id):
            if state.batches[batch_id].host:
                commitment.unwound(state, batch_id)
            else:
                starts.unwound(state, event, now)
        case Loaded():
            health.service_began(state, now)
        case DefinitionApplied():
            composer.applied(state, event)
        case HostRemoved(host):
            commitment.removed(state, host)
        case HostGrown(host, amounts):
            growth.grown(state, host, amounts)
        case HostApplied(host):
            composer.tried_anew(state, host)
        case HostReserved():
            composer.reserved(state, event)
        case HostDrained():
            composer.drained(state, event)
        case PartsReported():
            telling.reported(state, event)
        case Submitted(record):
            state.add_job(record)
        case _:
            _obey(state, event, now, out)


def _obey(state: ClusterState, event: Event, now: float, out: Outbox) -> None:
    """What people want of jobs and nodes. One that is gone in the meantime wants nothing any more."""
    match event:
        case CancelRequested(job_id) if job_id in state.jobs:
            wishes.cancelled(state, event, now, out)
        case RequeueRequested(job_id) if job_id in state.jobs:
            wishes.requeued(state, event, now, out)
        case SignalRequested(job_id) if job_id in state.jobs:
            wishes.signalled(state, event, out)
        case HoldRequested(job_id) if job_id in state.jobs:
            state.set_held(state.jobs[job_id], True)
        case ReleaseRequested(job_id) if job_id in state.jobs:
            state.set_held(state.jobs[job_id], False)
        case DrainRequested(name) if (node := state.nodes.get(name)) is not None:
            state.set_drain(node, drain.drain_of(node.drain, event, now))
        case ResumeRequested(name) if (node := state.nodes.get(name)) is not None:
            state.set_drain(node, None)
        case NodeForgotten(name) if name in state.nodes and not state.kept_by(name):
            state.forget_node(name)
            state.heard_out(name)
        case LabelsSet(name, labels) if (node := state.nodes.get(name)) is not None:
            state.set_labels(node, labels)
        case ReservationMade(reservation) if reservation.name not in state.reservations:
            state.set_reservation(reservation)
        case ReservationEnded(name) if name in state.reservations:
            state.remove_reservation(name)
        case ReservationDrained(name, undo) if name in state.reservations:
            state.set_drained(name, not undo)
        case _:
            pass


def _ask_to_be_woken(state: ClusterState, out: Outbox) -> None:
    if state.next_wake is not None and state.next_wake != state.wake_told:
        out.at_once.append(Wake(state.next_wake))
    state.wake_told = state.next_wake
