"""The body around `decide` in virtual time: a store, a leader, a network and agents, with one queue of what is due.

    what is due ──► Events ──► decide ──► Commit, Persist ──► the store, some milliseconds later ──► effects
         ▲                                Effect ──► the network, some milliseconds later ──► agents ──┐
         └──────────────────────────────────────── reports, ends ◄─────────────────────────────────────┘

Time passes only from one thing that is due to the next. While nothing waits, runs or is out of order, no ticks pass.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

from lavalite.control.actions import (
    Acknowledge,
    Action,
    AttemptStart,
    CloseSession,
    Commit,
    Effect,
    Persist,
    SendDispatch,
    SendParts,
    SendStop,
    Wake,
)
from lavalite.control.decide import decide
from lavalite.control.events import (
    AttemptReported,
    CommitConfirmed,
    DefinitionApplied,
    Event,
    Loaded,
    NodeDisconnected,
    NodeReported,
    NodesBeat,
    Specs,
    Tick,
)
from lavalite.control.records import load
from lavalite.control.settings import Settings
from lavalite.control.state import ClusterState
from lavalite.control.tasks import TaskKey
from lavalite.model.resources import NodeOffer
from lavalite.model.task import AttemptId
from lavalite.simulate.agents import SIGKILL_CODE, SIGTERM_CODE, SimulatedAgent
from lavalite.store.keys import Keys

EPOCH_SECONDS = 1_704_067_200.0
"""What the wall clock says at the start: 2024-01-01 00:00 UTC, a Monday."""
KEYS = Keys("simulated")
RECONNECT_SECONDS = 1.0
LONGEST_TICK_SECONDS = 300.0
SIGCONT, SIGSTOP = 18, 19
Work = Callable[[AttemptId], tuple[float | None, int]]
"""How long an attempt runs (None: without end), and the exit code that it ends with."""


class Watcher(Protocol):
    """Who is told what happens, in seconds since the start."""

    def assigned(self, now: float, key: TaskKey, attempt: int, node: str) -> None: ...
    def started(self, now: float, attempt: AttemptId, node: str) -> None: ...
    def stopped(self, now: float, attempt: AttemptId, node: str, reason: str) -> None: ...
    def concluded(self, now: float, attempt: AttemptId, node: str, reason: str, after: str) -> None: ...
    def connected(self, now: float, node: str) -> None: ...
    def led(self, now: float, text: str) -> None: ...
    def ticked(self, now: float) -> None: ...


class SimulatedCluster:
    """`now` is in seconds since the start. `store_seconds`: a transaction; `network_seconds`: a message, one way."""

    def __init__(
        self,
        specs: Specs,
        settings: Settings,
        watcher: Watcher,
        work: Work,
        *,
        tick_seconds: float = 1.0,
        store_seconds: float = 0.002,
        network_seconds: float = 0.001,
    ) -> None:
        self.now = 0.0
        self.specs, self.settings, self.watcher, self.work = specs, settings, watcher, work
        self.tick_seconds, self.store_seconds, self.network_seconds = tick_seconds, store_seconds, network_seconds
        self.agents: dict[str, SimulatedAgent] = {}
        self.epoch = (0, 1)
        self.leads = True
        self.store_up = True
        self.loses_message: Callable[[], bool] = lambda: False
        """Whether the next message is lost."""
        self.store: dict[str, bytes] = {}
        self.state = ClusterState(KEYS, self.epoch, settings)
        self.cut: set[str] = set()
        """Agents of which nothing arrives."""
        self._pipeline: deque[Commit | Persist] = deque()
        self._writing = False
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self._sessions = count(1)
        self._tick_gap = 0.0
        """So long after the one before the next tick comes; 0 while none is to come."""
        self._tick_number = 0
        self._beaten_at = 0.0
        self._here: tuple[str, ...] | None = None
        """Agents that beat; None where that has to be found out anew."""
        self._all_here = False
        self._wakes: set[float] = set()
        self.feed(Loaded())
        self.feed(DefinitionApplied(b"{}", specs))

    # --- what is due --------------------------------------------------------------------------------------------

    def at(self, time: float, what: Callable[..., None], *words: Any) -> None:
        heapq.heappush(self._due, (max(time, self.now), next(self._numbers), what, words))

    def after(self, seconds: float, what: Callable[..., None], *words: Any) -> None:
        self.at(self.now + seconds, what, *words)

    @property
    def next_due(self) -> float | None:
        return self._due[0][0] if self._due else None

    def step(self) -> None:
        """Let time pass to what is due next, and do it."""
        self.now, _, what, words = heapq.heappop(self._due)
        what(*words)

    # --- the leader ---------------------------------------------------------------------------------------------

    @property
    def wall(self) -> float:
        return EPOCH_SECONDS + self.now

    def feed(self, event: Event) -> None:
        """Let control decide, and carry out what it says. Without a leader nobody hears of it."""
        if not self.leads:
            return
        self.beat()
        if self._tick_gap != self.tick_seconds:
            self._tick_in(self.tick_seconds)
        self._carry_out(decide(self.state, event, self.wall))

    def _tick_in(self, seconds: float) -> None:
        """Instead of the tick that was to come next."""
        self._tick_gap, self._tick_number = seconds, self._tick_number + 1
        self.after(seconds, self._tick, self._tick_number)

    def _tick(self, number: int) -> None:
        """While all is in order and ticks bring nothing about they come ever less often; and not at all where nothing
        waits."""
        if number != self._tick_number:
            return
        gap, self._tick_gap = self._tick_gap, 0.0
        waiting = self.state.unfinished_tasks - len(self.state.runs)
        if not self.leads or (self.in_order and not waiting and not self._pipeline):
            return
        self.beat()
        actions = decide(self.state, Tick(), self.wall)
        self._carry_out(actions)
        self.watcher.ticked(self.now)
        calm = self.in_order and all(isinstance(action, Wake) and action.at > self.wall for action in actions)
        self._tick_in(min(2 * gap, LONGEST_TICK_SECONDS) if calm else self.tick_seconds)

    @property
    def in_order(self) -> bool:
        """Whether all agents beat, to a leader that can write."""
        return self.leads and self.store_up and self._here is not None and self._all_here

    def beat(self) -> None:
        """Let all beat that can, if it is time for that."""
        if self.leads and (self._here is None or self.now - self._beaten_at >= self.settings.beat_seconds):
            self._beaten_at = self.now
            if self._here is None:
                self._here = tuple(a.name for a in self.agents.values() if a.session and a.cut_at is None)
                self._all_here = len(self._here) == len(self.agents)
            self._carry_out(decide(self.state, NodesBeat(self._here), self.wall))

    def _wake(self, at: float) -> None:
        self._wakes.discard(at)
        if self.leads:
            self._carry_out(decide(self.state, Tick(), self.wall))

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Commit | Persist):
                self._pipeline.append(action)
            else:
                self._effect(action)
        self._write()

    def lose_leader(self, takeover_seconds: float) -> None:
        """It dies with what it had not written; another one reads the store after so long."""
        if not self.leads:
            return
        self.leads = self._writing = False
        self._here = None
        self._pipeline.clear()
        self._wakes.clear()
        for agent in self.agents.values():
            agent.session = 0
            self.schedule_fences(agent)
        self.watcher.led(self.now, "the leader is lost")
        self.after(takeover_seconds, self._take_over)

    def _take_over(self) -> None:
        if not self.store_up:
            self.after(RECONNECT_SECONDS, self._take_over)
            return
        self.epoch = (self.epoch[0], self.epoch[1] + 1)
        self.state = load(KEYS, self.epoch, self.store.items(), specs=self.specs, settings=self.settings)
        self.leads = True
        self.watcher.led(self.now, f"another leader serves, epoch {self.epoch[1]}")
        self.feed(Loaded())
        for agent in self.agents.values():
            self.after(RECONNECT_SECONDS, self.connect, agent)

    # --- the store ----------------------------------------------------------------------------------------------

    def set_store(self, up: bool) -> None:
        self.store_up = up
        self._write()

    def _write(self) -> None:
        if self._pipeline and not self._writing and self.store_up:
            self._writing = True
            self.after(self.store_seconds, self._written, self.epoch, len(self._pipeline))

    def _written(self, epoch: tuple[int, int], number: int) -> None:
        """The first so many of what is queued are durable."""
        if epoch != self.epoch or not self.leads:
            return
        if not self.store_up:
            self._writing = False
            return
        for _ in range(number):
            action = self._pipeline.popleft()
            for key in action.deletes:
                self.store.pop(key, None)
            self.store.update(action.puts)
            if isinstance(action, Commit):
                for record in action.records:
                    if record.job:
                        self.watcher.assigned(self.now, TaskKey(record.job, record.task), record.attempt, record.node)
                self.feed(CommitConfirmed(action.batch_id))
            else:
                for effect in action.then:
                    self._effect(effect)
        self._writing = False
        self._write()

    # --- the network --------------------------------------------------------------------------------------------

    def _effect(self, effect: Effect) -> None:
        if isinstance(effect, Wake):
            if effect.at not in self._wakes:
                self._wakes.add(effect.at)
                self.at(effect.at - EPOCH_SECONDS, self._wake, effect.at)
            return
        agent = self.agents.get(effect.node)
        if agent is None:
            return
        if isinstance(effect, CloseSession):
            self._break(agent)
        elif agent.session:
            if isinstance(effect, SendStop):
                self.watcher.stopped(self.now, effect.id, agent.name, effect.reason)
            if self.loses_message():
                self._break(agent)
            else:
                self.after(self.network_seconds, self._arrives, agent, agent.session, effect)

    def _arrives(self, agent: SimulatedAgent, session: int, effect: Effect) -> None:
        if agent.session != session or agent.cut_at is not None:
            return
        if isinstance(effect, SendDispatch):
            for start in effect.attempts:
                self._start(agent, start)
        elif isinstance(effect, SendParts):
            self.after(self.network_seconds, self.feed, agent.carried_out(effect.orders))
        elif isinstance(effect, Acknowledge):
            agent.acknowledged(effect.seq)
        elif isinstance(effect, SendStop) and effect.id in agent.running:
            if effect.signal in (SIGCONT, SIGSTOP):
                self._stand_still(agent, effect.id, effect.signal == SIGSTOP)
            else:
                agent.end(effect.id, self.now, SIGTERM_CODE, "stop")
        self._report(agent)

    def _report(self, agent: SimulatedAgent) -> None:
        """Have told what is not acknowledged, if anything is that was not told."""
        untold = any(seq == 0 for seq, _ in agent.unacked.values())
        if agent.session and agent.cut_at is None and untold and not agent.report_due:
            agent.report_due = True
            self.after(0.0, self._send_report, agent)

    def _send_report(self, agent: SimulatedAgent) -> None:
        agent.report_due = False
        if not agent.session or agent.cut_at is not None:
            return
        if self.loses_message():
            self._break(agent)
            return
        told = NodeReported(agent.name, agent.seq + 1, agent.report(EPOCH_SECONDS))
        self.after(self.network_seconds, self._reported, agent, agent.session, told)

    def _reported(self, agent: SimulatedAgent, session: int, told: NodeReported) -> None:
        if agent.session == session:
            self._feed_reports(agent, told, told.attempts)

    def _feed_reports(self, agent: SimulatedAgent, event: Event, reports: tuple[AttemptReported, ...]) -> None:
        """Feed what an agent tells of attempts; who watches is told of those that are over by it."""
        over = [report for report in reports if report.state in ("ended", "refused")]
        runs = [(report, self.state.runs.get(TaskKey(report.id.job, report.id.task))) for report in over]
        ours = [(told, run.preempted) for told, run in runs if run is not None and run.attempt == told.id.attempt]
        self.feed(event)
        for report, preempted in ours:
            job = self.state.jobs.get(report.id.job)
            position = job.position_of(report.id.task) if job is not None else None
            if job is not None and position is not None:
                why = "preempted" if preempted and report.exit_code else report.reason
                self.watcher.concluded(self.now, report.id, agent.name, why, job.state_of(position).value)

    # --- agents -------------------------------------------------------------------------------------------------

    def join(self, name: str, offer: NodeOffer) -> SimulatedAgent:
        """A node comes for the first time."""
        agent = self.agents[name] = SimulatedAgent(name, offer, f"{name}-journal")
        self.connect(agent)
        return agent

    def connect(self, agent: SimulatedAgent) -> None:
        """A session begins, unless there is one, or it cannot be now."""
        if agent.session or agent.cut_at is not None or not self.leads:
            return
        agent.session, self._here = next(self._sessions), None
        told = agent.registration(EPOCH_SECONDS)
        self._feed_reports(agent, told, told.attempts)
        self.watcher.connected(self.now, agent.name)
        agent.unacked = {attempt: (0, report) for attempt, (_, report) in agent.unacked.items()}
        self._report(agent)

    def _break(self, agent: SimulatedAgent) -> None:
        """A session ends. What was not acknowledged is told in the next."""
        agent.session, self._here = 0, None
        self.feed(NodeDisconnected(agent.name))
        self.after(RECONNECT_SECONDS, self.connect, agent)

    def cut_off(self, agent: SimulatedAgent) -> None:
        """Nothing it says arrives, nor anything said to it. That is for the leader to find out."""
        if agent.cut_at is None:
            agent.cut_at, self._here = self.now, None
            self.cut.add(agent.name)
            self.schedule_fences(agent)
            self.feed(Tick())

    def mend(self, agent: SimulatedAgent) -> None:
        """It is heard of again, in a new session."""
        if agent.cut_at is not None:
            agent.cut_at, agent.session, self._here = None, 0, None
            self.cut.discard(agent.name)
            self.after(RECONNECT_SECONDS, self.connect, agent)

    def schedule_fences(self, agent: SimulatedAgent) -> None:
        """What is rerunnable stops by itself when its leader was not heard of for so long."""
        for seconds in sorted({r.fence_after_seconds for r in agent.running.values() if r.fence_after_seconds}):
            self.after(seconds, self._fence, agent, self.now)

    def _fence(self, agent: SimulatedAgent, since: float) -> None:
        if agent.cut_at != since and (agent.session or self.leads):
            return
        for attempt, running in list(agent.running.items()):
            if 0 < running.fence_after_seconds <= self.now - since:
                agent.end(attempt, self.now, SIGKILL_CODE, "fence")

    def slow_down(self, agent: SimulatedAgent, factor: float) -> None:
        for attempt, running in agent.running.items():
            running.pass_to(self.now, agent.factor)
            self._foresee(agent, attempt, factor)
        agent.factor = factor

    def _start(self, agent: SimulatedAgent, start: AttemptStart) -> None:
        if start.journal_id != agent.journal_id or agent.knows(start.id):
            return
        agent.start(start, self.now, *self.work(start.id))
        self.watcher.started(self.now, start.id, agent.name)
        self._foresee(agent, start.id, agent.factor)

    def _stand_still(self, agent: SimulatedAgent, attempt: AttemptId, still: bool) -> None:
        running = agent.running[attempt]
        running.pass_to(self.now, agent.factor)
        running.suspended = still
        agent.note(attempt, "suspended" if still else "resumed", self.now)
        self._foresee(agent, attempt, agent.factor)

    def _foresee(self, agent: SimulatedAgent, attempt: AttemptId, factor: float) -> None:
        running = agent.running[attempt]
        ends_at = running.ends_at(factor)
        if ends_at is not None:
            self.at(ends_at, self._over, agent, attempt, running.turn, agent.boots)

    def _over(self, agent: SimulatedAgent, attempt: AttemptId, turn: int, boots: int) -> None:
        running = agent.running.get(attempt)
        if running is None or running.turn != turn or agent.boots != boots:
            return
        if running.is_too_late(self.now, agent.factor):
            agent.end(attempt, self.now, SIGTERM_CODE, "walltime")
        else:
            agent.end(attempt, self.now, running.exit_code, "exit")
        self._report(agent)
