"""Nodes come, fall silent, and come back. Judged on the session between agent and mbatchd alone.

    silent for silent_after     nothing new is placed there                             (LIM's silence does this too)
    silent for fence_after      its tasks are UNKNOWN; the node itself stops the rerunnable ones about now
    silent for lost_after       rerunnable tasks go back to PENDING; the others stay UNKNOWN until the node is back
    back, same journal          its reports decide. Committed and not journalled: dispatched again
    back, another journal       what the old one held is lost: at once if the machine was rebooted or the task is not
                                rerunnable, else after lost_after, since the old agent's attempts might still run

Silence counts from the last beat that we acknowledged, or from when we began to serve.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lavalite.control import gangs, parking
from lavalite.control.actions import Acknowledge, CloseSession, SendDispatch
from lavalite.control.events import MembersSeen, NodeBeat, NodeRegistered, NodeReported
from lavalite.control.hosts import telling
from lavalite.control.node_state import NodeState
from lavalite.control.outbox import Outbox
from lavalite.control.reports import Verdict, conclude, reported, when_lost
from lavalite.control.starts import attempt_start
from lavalite.control.state import ClusterState
from lavalite.control.tasks import End, TaskRun
from lavalite.control.wishes import stop_again
from lavalite.model.task import AttemptId, TaskState, before_restore


def registered(state: ClusterState, event: NodeRegistered, now: float, out: Outbox) -> None:
    """An agent tells all that its journal holds."""
    if event.node in state.hosts:
        out.at_once.append(CloseSession(event.node, f"{event.node} is the name of a logical host"))
        return
    before = state.nodes.get(event.node)
    rebooted = before is not None and before.boot_id != event.boot_id
    silent_since = before.heard_at if before is not None else now
    offer = event.offer
    if (offer.node, offer.boot_id) != (event.node, event.boot_id):
        offer = offer.model_copy(update={"node": event.node, "boot_id": event.boot_id})
    node = state.set_node(offer, event.journal_id)
    node.connected = node.registered = True
    node.heard_at = now
    state.touch_node(node)
    for run in _durable_runs(node):
        if run.journal_id != node.journal_id and run.lost_since is None:
            _lose(state, run, silent_since, now, surely_dead=rebooted)
        elif run.journal_id != node.journal_id and rebooted:
            conclude(state, run, when_lost(state, run), _lost_end(run, now), now)
    if state.quarantine:  # it tells anew what it has
        state.quarantine = {p: report for p, report in state.quarantine.items() if p[0] != event.node}
    if event.fabric_address:
        state.set_fabric(node, event.fabric_address)
    telling.registered(state, node, later_generation=node.generation != state.epoch[0])
    if node.generation != state.epoch[0]:
        node.generation = state.epoch[0]
        state.dirty.nodes[node.name] = None
    for report in event.attempts:
        reported(state, node, report, now, out)
    listed = {report.id for report in event.attempts}
    _compare(state, node, listed, silent_since, now, out)
    # What others told may fit, now that it is known what came before it.
    for (other, _), report in list(state.quarantine.items()):
        if other in state.nodes and before_restore(report.id.job, state.epoch):
            reported(state, state.nodes[other], report, now, out)
    state.heard_out(node.name)
    out.durable.append(Acknowledge(node.name, 0))


def _compare(
    state: ClusterState, node: NodeState, listed: set[AttemptId], silent_since: float, now: float, out: Outbox
) -> None:
    """What the store holds on this node's journal against what the journal told."""
    starts = []
    for run in _durable_runs(node):
        if run.journal_id != node.journal_id:
            continue
        if run.id in listed:
            run.lost_since = None  # its journal was gone, and is back
            stop_again(state, run, now, out)
            parking.again(state, run, out)
        elif run.cancel_requested and run.started_at is None:
            end = _lost_end(run, now, "cancelled before it started")
            conclude(state, run, Verdict(TaskState.CANCELLED), end, now)
        elif run.state is TaskState.COMMITTED and gangs.is_broken(state, state.jobs[run.key.job]):
            state.retry(run, now, _lost_end(run, now, gangs.REASON), charged=False)
        elif run.state is TaskState.COMMITTED and not gangs.may_start(state, state.jobs[run.key.job]):
            continue  # it goes out with the others, once all of the gang are durable
        elif run.state is TaskState.COMMITTED:
            # Never journalled, so never started; the journal sees to it that a second dispatch starts it once.
            run.maybe_sent = True
            starts.append(attempt_start(state, run, now))
        elif run.state is TaskState.UNKNOWN and run.started_at is None:
            state.retry(run, now, _lost_end(run, now, "its node was lost before it started"), charged=False)
        else:
            _lose(state, run, silent_since, now, surely_dead=False)
    if starts:
        out.at_once.append(SendDispatch(node.name, tuple(starts)))


def _lose(state: ClusterState, run: TaskRun, since: float, now: float, *, surely_dead: bool) -> None:
    """Its agent cannot tell what became of it, now or ever."""
    if not run.maybe_sent:
        state.retry(run, now, _lost_end(run, now, "its node was set up anew before it started"), charged=False)
        return
    verdict = when_lost(state, run, surely_dead=surely_dead)
    if surely_dead or verdict.after is TaskState.FAILED:
        conclude(state, run, verdict, _lost_end(run, now), now)
        return
    run.lost_since = since
    state.nodes[run.node].doubtful = True
    if run.state is not TaskState.UNKNOWN:
        state.move_run(run, TaskState.UNKNOWN)


def reports(state: ClusterState, event: NodeReported, now: float, out: Outbox) -> None:
    """A batch of reports; acknowledged when all that follows from it is durable."""
    node = heard(state, event.node, now)
    if node is None:
        return  # a session that was closed in between; the agent tells it again when it registers
    for report in event.attempts:
        reported(state, node, report, now, out)
    out.durable.append(Acknowledge(node.name, event.seq))


def beat(state: ClusterState, event: NodeBeat, now: float) -> None:
    """The agent is there, perhaps with another offer."""
    node = heard(state, event.node, now)
    if node is not None and event.offer is not None:
        state.set_node(event.offer.model_copy(update={"node": node.name, "boot_id": node.boot_id}))


def heard(state: ClusterState, name: str, now: float) -> NodeState | None:
    """The agent is there; its node, if it has told what it has."""
    node = state.nodes.get(name)
    if node is None or not node.registered:
        return None
    was_silent = now - node.heard_at >= state.settings.silent_after_seconds
    node.heard_at = now
    if was_silent and state.row_is_stale(node, now):
        state.touch_node(node)
    return node


def all_heard(state: ClusterState, names: Iterable[str], now: float) -> None:
    """Many at once, of which hardly one was silent: only rows that take no work are looked at."""
    nodes = state.nodes
    for name in names:
        node = nodes.get(name)
        if node is not None and node.registered:
            node.heard_at = now
    for row in np.flatnonzero(~state.columns.ready):
        node = nodes.get(state.columns.names[row])
        if node is not None and state.row_is_stale(node, now):
            state.touch_node(node)


def disconnected(state: ClusterState, name: str) -> None:
    """The session ended. Nothing is lost by that; silence counts from the last beat."""
    node = state.nodes.get(name)
    if node is not None:
        node.connected = node.registered = False
        state.touch_node(node)


def members_seen(state: ClusterState, event: MembersSeen) -> None:
    """LIM's word only stops new placement, or lets it go on."""
    for name in event.silent | event.alive:
        node = state.nodes.get(name)
        if node is not None and node.lim_silent != (name in event.silent):
            node.lim_silent = name in event.silent
            state.touch_node(node)


def service_began(state: ClusterState, now: float) -> None:
    """A new leader has heard of nobody yet, and holds that against nobody."""
    state.service_started_at = now
    state.schedule_wanted = state.compose_wanted = True
    for node in state.nodes.values():
        node.heard_at = now
        for run in node.runs.values():
            if run.journal_id != node.journal_id:
                run.lost_since, node.doubtful = now, True


def watch(state: ClusterState, now: float, out: Outbox) -> None:
    """What time alone does to nodes and what runs on them."""
    queues = state.specs.queues.values()
    soonest = min([state.queue("").fence_after_seconds, *(queue.fence_after_seconds for queue in queues)])
    fresh_seconds = min(soonest, state.settings.silent_after_seconds)
    for node in state.nodes.values():
        silent_seconds = now - node.heard_at
        if silent_seconds < fresh_seconds and not node.doubtful:
            continue  # thousands of them, at every tick
        if state.row_is_stale(node, now):
            state.touch_node(node)
        for run in _durable_runs(node):
            if silent_seconds >= soonest or run.lost_since is not None:
                _judge(state, node, run, now)
        node.doubtful = any(run.lost_since is not None for run in node.runs.values())
        if node.connected and silent_seconds >= soonest:
            out.at_once.append(CloseSession(node.name, f"nothing was heard of it for {int(silent_seconds)} s"))


def _judge(state: ClusterState, node: NodeState, run: TaskRun, now: float) -> None:
    queue = state.queue(state.jobs[run.key.job].queue)
    gone_seconds = now - (node.heard_at if run.lost_since is None else run.lost_since)
    if gone_seconds >= queue.fence_after_seconds and run.state is not TaskState.UNKNOWN:
        if not run.maybe_sent:
            state.retry(run, now, _lost_end(run, now, "its node was lost before it started"), charged=False)
            return
        state.move_run(run, TaskState.UNKNOWN)
    rerunnable = state.jobs[run.key.job].spec.rerunnable
    # Where the queue was changed since, the node still goes by the fence that it was given with the attempt.
    longer_seconds = max(0, run.fence_after_seconds - queue.fence_after_seconds)
    lost = gone_seconds >= queue.lost_after_seconds + longer_seconds
    if lost and (rerunnable or run.lost_since is not None):
        conclude(state, run, when_lost(state, run, surely_dead=False), _lost_end(run, now), now)


def _lost_end(run: TaskRun, now: float, reason: str = "") -> End:
    return End(None, reason or f"node {run.node} was lost", run.node, run.started_at, now)


def _durable_runs(node: NodeState) -> list[TaskRun]:
    """A list, since what is done to one may take it off the node."""
    return [run for run in node.runs.values() if not run.assumed]
