"""Nodes that are to be free of work: nothing new at once, and nothing at all once a deadline has passed.

    drain ────► nothing new is placed there; what runs there runs on
    deadline ─► waits for its agent   back to PENDING: it never started
                rerunnable            stopped, and PENDING when its agent says so; charged to no retry
                any other             stopped; another try where retries are left, else FAILED
    resume ───► work is placed there again; what was told to stop stops all the same

A node whose agent is away is left to control.health. The deadline is by the clock of `decide`, and it is stored: a
new leader goes on with it. Orders are given again now and then, so that none of them has to be remembered.
"""

from __future__ import annotations

from lavalite.control.events import DrainRequested
from lavalite.control.node_state import NodeState
from lavalite.control.outbox import Outbox
from lavalite.control.state import ClusterState
from lavalite.control.wishes import end_run
from lavalite.model.node import Drain
from lavalite.model.task import TaskState

AGAIN_AFTER_GRACES = 3
"""So many times the grace of a stop may pass before what still runs is told again."""
REASON_DRAINED = "drained: its node had to be free of work by a deadline"


def drain_of(before: Drain | None, event: DrainRequested, now: float) -> Drain:
    """What a node's drain becomes. What is not said stays as it is; so does a deadline that is asked for again."""
    before = before or Drain()
    reason = before.reason if event.reason is None else event.reason
    if event.no_deadline:
        return Drain(reason)
    if event.deadline_seconds in (None, before.deadline_seconds):
        return Drain(reason, before.deadline_seconds, before.deadline_at)
    return Drain(reason, event.deadline_seconds, now + (event.deadline_seconds or 0))


def clear_nodes(state: ClusterState, now: float, out: Outbox) -> None:
    """End what still runs on nodes whose deadline has passed."""
    for node in state.nodes.values():
        if node.drain is not None and node.runs and node.registered:
            deadline = node.drain.deadline_at
            if deadline is not None and deadline <= now:
                _clear(state, node, now, out)


def _clear(state: ClusterState, node: NodeState, now: float, out: Outbox) -> None:
    again_seconds = AGAIN_AFTER_GRACES * state.settings.stop_grace_seconds
    for run in list(node.runs.values()):
        told_lately = run.told_to_end_at is not None and now - run.told_to_end_at < again_seconds
        if run.assumed or run.cancel_requested or told_lately or run.journal_id != node.journal_id:
            continue
        if state.jobs[run.key.job].spec.rerunnable or not run.maybe_sent:
            end_run(state, run, REASON_DRAINED, now, out, requeue=True)
        elif run.state is not TaskState.COMMITTED:
            end_run(state, run, REASON_DRAINED, now, out)
        else:
            continue  # it may start any moment, and can be told to end then
        run.told_to_end_at = now
