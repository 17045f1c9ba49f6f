"""A node: the agent's real mind (sbatchd.core) with a journal, and an executor that outlives it.

The agent may die between any two actions; what it had not written is lost then. The executor (a keeper) goes on, ends
attempts at their time, at their walltime and at their fence, and remembers how until it is told to forget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sim_network import Network, SimConnection
from sim_world import DriftingClock, World

from lavalite.model.resources import NodeOffer, Resource
from lavalite.sbatchd.actions import Action, Close, Forget, RenewContact, Send, Signal, Start, Write
from lavalite.sbatchd.core import ENDING_SIGNALS, AgentCore
from lavalite.sbatchd.entry import Record, restore
from lavalite.sbatchd.events import BeatDue, Event, FlushDue, FrameReceived, Instant, SessionClosed, SessionOpened
from lavalite.sbatchd.executors import Ended, Known, Listed, Signalled, Started
from lavalite.wire.frames import AnyFrame, Attempt

FLUSH_SECONDS = 0.02
SIGSTOP, SIGCONT = 19, 18


@dataclass(slots=True)
class Kept:
    """What the keeper knows of one attempt. `fence_at` is by the node's own clock."""

    attempt: Attempt
    pid: int
    started_at: float
    contact: float
    state: str = "running"
    exit_code: int | None = None
    reason: str = ""
    ended_at: float = 0.0

    @property
    def task(self) -> str:
        return self.attempt.id.rpartition(".")[0]

    def known(self) -> Known:
        ended = self.state == "ended"
        return Known(
            self.attempt.id,
            self.state,  # type: ignore[arg-type]
            self.pid,
            self.started_at,
            self.exit_code if ended else None,
            self.reason,
            self.ended_at,
        )


class SimAgent:
    """`crash_share`: how likely the agent dies before an action. `forgets`: a planted bug."""

    def __init__(
        self,
        world: World,
        network: Network,
        name: str,
        cpu: int,
        runs: Callable[[str], float],
        on_start: Callable[[SimAgent, Kept], None],
    ) -> None:
        self.world, self.network, self.name, self.cpu_milli = world, network, name, cpu * 1000
        self.clock = DriftingClock(world, 1 + world.random.uniform(-0.002, 0.002), world.random.uniform(10, 1e6))
        self.kept: dict[str, Kept] = {}
        self.journal: list[Record] = [{"type": "journal", "id": f"{name}-journal"}]
        self.crash_share = 0.0
        self.forgets = False
        self.boots = 1
        self.connect: Callable[[SimAgent], None] = lambda agent: None
        """Ask for a session with whoever leads."""
        self._runs, self._on_start = runs, on_start
        self._pids = 100
        self._life = 0
        """Grows whenever the agent dies: what was meant for the one before falls flat."""
        self._later: list[Record] = []
        self._connection: SimConnection | None = None
        self._flush_due = False
        self._core: AgentCore | None = None
        world.after(world.random.uniform(0, 0.5), self._live)

    # --- the agent's life

    def _live(self) -> None:
        if self._core is not None:
            return
        self._life += 1
        if self.forgets:
            self.journal = self.journal[:1]
        self._core = AgentCore(restore(self.journal), lambda attempt: "", lambda attempt: ("", ""))
        self.world.tell(f"{self.name}: agent starts")
        self._take(Listed(tuple(kept.known() for kept in self.kept.values())))
        if self._core is not None:
            self._beat(self._life)
        if self._core is not None:
            self.connect(self)

    def die(self) -> None:
        """The agent alone; it is started again."""
        if self._core is None:
            return
        self.world.tell(f"{self.name}: agent dies")
        self._core, self._later, self._flush_due = None, [], False
        self._life += 1
        if self._connection is not None:
            self._connection.leave()
            self._connection = None
        self.world.after(self.world.random.uniform(0.1, 3.0), self._live)

    def reboot(self) -> None:
        """All that runs is gone, and the keeper's memory with it. The journal is on the disk."""
        self.world.tell(f"{self.name}: reboots")
        self.boots += 1
        self.kept = {}
        self.die()

    def _beat(self, life: int) -> None:
        if life == self._life and self._core is not None:
            self._take(BeatDue())
            if self._core is not None:
                self.world.after(self._core.beat_seconds / self.clock.rate, self._beat, life)

    # --- sessions

    def attach(self, connection: SimConnection, epoch: tuple[int, int]) -> None:
        self._connection = connection
        offer = NodeOffer(
            node=self.name,
            boot_id=f"boot-{self.boots}",
            resources=[
                Resource(
                    name=f"{self.name}/cpu", kind="cpu", amount=self.cpu_milli, unit="milli-core", owner=self.name
                )
            ],
        )
        self._take(SessionOpened(connection.number, epoch, offer.boot_id, offer))

    def highest_epoch(self) -> tuple[int, int] | None:
        return self._core.highest_epoch if self._core is not None else None

    def hear(self, number: int, frame: AnyFrame) -> None:
        if self._core is not None:
            self._take(FrameReceived(number, frame))

    def session_over(self, number: int) -> None:
        if self._connection is not None and self._connection.number == number:
            self._connection = None
            if self._core is not None:
                self._take(SessionClosed(number))
                self._connect_soon()

    def _connect_soon(self) -> None:
        self.world.after(self.world.random.uniform(0.1, 1.0), self._connect_again, self._life)

    def _connect_again(self, life: int) -> None:
        if life == self._life and self._core is not None and self._connection is None:
            self.connect(self)

    def connect_failed(self) -> None:
        self._connect_soon()

    # --- events and actions

    def _take(self, event: Event) -> None:
        assert self._core is not None
        life = self._life
        actions = self._core.handle(event, Instant(self.clock.now(), self.clock.boottime()))
        for action in actions:
            if self.crash_share and self.world.random.random() < self.crash_share:
                self.die()
            if life != self._life:
                return
            self._carry_out(action)
        if self._core is not None and self._core.has_reports and not self._flush_due:
            self._flush_due = True
            self.world.after(FLUSH_SECONDS, self._flush, life)

    def _flush(self, life: int) -> None:
        if life == self._life and self._core is not None:
            self._flush_due = False
            self._write([])
            self._take(FlushDue())

    def _write(self, records: list[Record]) -> None:
        self.journal += [*self._later, *records]
        self._later = []

    def _carry_out(self, action: Action) -> None:
        match action:
            case Write(records, urgent):
                if urgent:
                    self._write(list(records))
                else:
                    self._later += records
            case Start():
                self._start(action)
            case Send(frame):
                if self._connection is not None:
                    self._connection.say(frame)
            case Close():
                if self._connection is not None:
                    self._connection.leave()
                    self._connection = None
                    self._connect_soon()
            case Signal():
                self._signal(action)
            case Forget(name):
                self.kept.pop(name, None)
            case RenewContact(sent):
                for kept in self.kept.values():
                    kept.contact = max(kept.contact, sent)
            case _:
                pass

    def _tell(self, event: Any) -> None:
        """The keeper tells; where no agent lives, the next one asks."""
        if self._core is not None:
            self._take(event)

    # --- the keeper

    def _start(self, start: Start) -> None:
        name = start.attempt.id
        if name in self.kept:
            return
        self._pids += 1
        kept = self.kept[name] = Kept(start.attempt, self._pids, self.clock.now(), start.contact)
        self._on_start(self, kept)
        self.world.after(self._runs(name), self._over, kept, 0, "exit", self.boots)
        if start.attempt.walltime_seconds:
            self.world.after(start.attempt.walltime_seconds, self._over, kept, -15, "walltime", self.boots)
        self._watch_fence(kept, self.boots)
        # Not within the action that started it: the agent hears of it as of everything else.
        self.world.after(0.001, self._told, Started(name, kept.pid, kept.started_at), self._life)

    def _told(self, event: Any, life: int) -> None:
        if life == self._life:
            self._tell(event)

    def _watch_fence(self, kept: Kept, boots: int) -> None:
        """Strike, or look again when it would be time as things are."""
        if not kept.attempt.fence_after_seconds or kept.state == "ended" or boots != self.boots:
            return
        at = kept.contact + kept.attempt.fence_after_seconds
        if self.clock.boottime() >= at - 1e-6:
            self._over(kept, -9, "fence", boots)
        else:
            self.world.at(self.clock.true_time(at), self._watch_fence, kept, boots)

    def _over(self, kept: Kept, exit_code: int, reason: str, boots: int) -> None:
        if kept.state == "ended" or boots != self.boots or self.kept.get(kept.attempt.id) is not kept:
            return
        if kept.state == "suspended" and reason == "exit":
            self.world.after(1.0, self._over, kept, exit_code, reason, boots)
            return
        kept.state, kept.exit_code, kept.reason, kept.ended_at = "ended", exit_code, reason, self.clock.now()
        self.world.tell(f"{self.name}: {kept.attempt.id} ends: {reason}")
        self._tell(Ended(kept.attempt.id, exit_code, reason, kept.ended_at, kept.pid, kept.started_at))

    def _signal(self, signal: Signal) -> None:
        kept = self.kept.get(signal.id)
        if kept is None or kept.state == "ended":
            return
        if signal.ending or signal.signal in ENDING_SIGNALS:
            self.world.after(0.01, partial(self._over, kept, -15, signal.reason, self.boots))
        elif signal.signal in (SIGSTOP, SIGCONT):
            kept.state = "suspended" if signal.signal == SIGSTOP else "running"
            told = Signalled(signal.id, suspended=kept.state == "suspended")
            self.world.after(0.001, self._told, told, self._life)
