"""A candidate: the real election (lim.core) over the store, and while it leads the real scheduler: control, the
committer behind its fence, the shell around control, and the sessions of agents."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sim_network import SimConnection
from sim_store import Client, Server
from sim_world import Machine, World

from lavalite.base.errors import FencedError, LavaLiteError
from lavalite.base.steady import SteadyTime
from lavalite.control.events import DefinitionApplied, Loaded, Specs
from lavalite.control.records import load
from lavalite.control.settings import Settings
from lavalite.ledger.committer import Committer
from lavalite.ledger.fence import Fence, take_writer
from lavalite.lim.config import LimConfig
from lavalite.lim.core import Election, Timing
from lavalite.lim.leader_store import LeaderStore
from lavalite.lim.steps import (
    Campaign,
    Drain,
    Event,
    Extend,
    Lead,
    ReadLeader,
    Renew,
    Revoke,
    SchedulerStopped,
    StepDown,
    Tick,
)
from lavalite.mbatchd.service import Service
from lavalite.mbatchd.sessions import AgentSessions
from lavalite.store.base import range_all
from lavalite.store.keys import Keys
from lavalite.store.open import StoreConfig

KEYS = Keys("sim")
TTL_SECONDS = 5
AGAIN_SECONDS = 0.5


@dataclass(slots=True)
class Led:
    epoch: tuple[int, int]


class Leash:
    """What the LIM lets its scheduler do: to act until a deadline, by its own clock."""

    def __init__(self, machine: Machine, epoch: tuple[int, int], deadline: float) -> None:
        self._machine = machine
        self.lead = Led(epoch)
        self.deadline = deadline
        self.lost = asyncio.Event()

    def holds(self) -> bool:
        return not self.lost.is_set() and self._machine.clock.boottime() < self.deadline

    def check(self) -> None:
        if not self.holds():
            self.lost.set()
            raise FencedError("the leadership was not renewed in time")

    async def watch(self) -> None:
        while not self.lost.is_set():
            left = self.deadline - self._machine.clock.boottime()
            if left <= 0:
                self.lost.set()
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, 0.5)):
                    await self.lost.wait()


class Unfenced(Fence):
    """A planted bug: writes are let through whatever stands in the store."""

    def compares(self) -> list[Any]:
        return []


class Trusting:
    """A trust bundle in which every node is a worker."""

    def role(self, node: str) -> str:
        return "worker"


class Scheduler:
    """One mbatchd, from its start to its end."""

    def __init__(self, candidate: Candidate, epoch: tuple[int, int], deadline: float, nonce: str) -> None:
        self.candidate, self.epoch, self.nonce = candidate, epoch, nonce
        self.leash = Leash(candidate.machine, epoch, deadline)
        self.client = Client(candidate.server, candidate.machine, TTL_SECONDS, epoch)
        self.service: Service | None = None
        self.sessions: AgentSessions | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._main = asyncio.get_running_loop().create_task(self._run())

    @property
    def serves(self) -> bool:
        return self.sessions is not None and not self._main.done()

    async def _run(self) -> None:
        committer: Committer | None = None
        try:
            fence = await take_writer(self.client, KEYS, self.epoch[1], self.epoch, self.nonce)
            records, _ = await range_all(self.client, KEYS.root)
            self.leash.check()
            if self.candidate.bug == "no-compare":
                fields = {name: getattr(fence, name) for name in Fence.__slots__}
                fence = Unfenced(**fields)
            stored = {record.key: record.value for record in records}
            specs = self.candidate.specs if KEYS.definition in stored else Specs()
            state = load(KEYS, self.epoch, stored.items(), specs=specs, settings=self.candidate.settings)
            if self.candidate.bug == "frees-nothing":
                state.book.release = lambda owner: None  # type: ignore[method-assign]
            clock = self.candidate.machine.clock
            committer = Committer(self.client, fence, clock, may_continue=self.leash.holds)
            committer.start()
            service = Service(state, committer, SteadyTime(clock), self.epoch, "sim")
            sessions = AgentSessions("sim", self.candidate.name, self.leash, Trusting(), clock, service, 1.0)  # type: ignore[arg-type]
            service.connect(sessions.post, sessions.close)
            if KEYS.definition not in stored:
                service.apply(DefinitionApplied(b"{}", self.candidate.specs))
            service.apply(Loaded())
            self.service, self.sessions = service, sessions
            self.candidate.world.tell(f"{self.candidate.name}: serves, epoch {self.epoch}")
            waits = [service.run(), self.leash.watch(), committer.fenced.wait(), service.failed.wait()]
            self._tasks = {asyncio.create_task(wait) for wait in waits}
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if service.failed.is_set():
                self.candidate.faults.append(f"{self.candidate.name}: an event could not be taken")
        except LavaLiteError as error:
            self.candidate.world.tell(f"{self.candidate.name}: scheduler ends: {error}")
        finally:
            self.client.gone = True
            self.sessions = None
            self.leash.lost.set()
            for task in self._tasks:
                task.cancel()
            if committer is not None:
                await committer.close()
            self.candidate.scheduler_over(self)

    def adopt(self, connection: SimConnection) -> None:
        """Serve an agent's session."""
        assert self.sessions is not None
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: SimConnection) -> None:
        assert self.sessions is not None
        with contextlib.suppress(LavaLiteError):
            await self.sessions.serve(connection)  # type: ignore[arg-type]
        await connection.close()

    def kill(self) -> None:
        self.client.gone = True
        self._main.cancel()


class Candidate:
    """A LIM that campaigns, and the scheduler that it keeps while it leads."""

    def __init__(
        self, world: World, server: Server, name: str, specs: Specs, settings: Settings, priority: int, bug: str
    ) -> None:
        self.world, self.server, self.name = world, server, name
        self.specs, self.settings, self.bug = specs, settings, bug
        self.machine = Machine(world, name)
        self.scheduler: Scheduler | None = None
        self.faults: list[str] = []
        self.on_scheduler: Callable[[], None] = lambda: None
        config = LimConfig.model_construct(
            cluster="sim",
            node=name,
            store=StoreConfig.model_construct(timeout_seconds=1.0),
            lease_ttl_seconds=TTL_SECONDS,
            mbatchd_address=name,
            api_url="",
        )
        self._store = LeaderStore(config, name, self.machine.clock)
        self._store._store = Client(server, self.machine, TTL_SECONDS)
        self._election = Election(Timing(ttl_seconds=TTL_SECONDS, priority=priority), name)
        self._timer: asyncio.TimerHandle | None = None
        self._starts = 0
        self._stopping = False
        self._asking: set[asyncio.Task[None]] = set()
        world.after(world.random.uniform(0, 0.3), self.machine.take, self._handle, Tick())

    def _handle(self, event: Event) -> None:
        now = self.machine.clock.boottime()
        for action in self._election.handle(event, now):
            match action:
                case ReadLeader() | Campaign() | Renew() | Revoke():
                    task = self.machine.loop.create_task(self._ask(action))
                    self._asking.add(task)
                    task.add_done_callback(self._asking.discard)
                case Lead(epoch, deadline):
                    self._stopping = False
                    self._start(epoch, deadline)
                case Extend(_, deadline):
                    if self.scheduler is not None:
                        self.scheduler.leash.deadline = max(self.scheduler.leash.deadline, deadline)
                case Drain() | StepDown():
                    self._stopping = True
                    if self.scheduler is None:
                        self.machine.loop.call_soon(self._handle, SchedulerStopped())
                    else:
                        self.scheduler.leash.lost.set()
        if self._timer is not None:
            self._timer.cancel()
        wake_at = self._election.wake_at
        if wake_at < float("inf"):
            due = max(self.world.now + 1e-6, self.machine.clock.true_time(wake_at) + 1e-6)
            self._timer = self.machine.loop.call_at(due, self._handle, Tick())

    async def _ask(self, action: ReadLeader | Campaign | Renew | Revoke) -> None:
        self._handle(await self._store.ask(action))

    def _start(self, epoch: tuple[int, int], deadline: float) -> None:
        self._starts += 1
        self.scheduler = Scheduler(self, epoch, deadline, f"{self.name}.{self._starts}")

    def scheduler_over(self, over: Scheduler) -> None:
        if self.scheduler is not over:
            return
        self.scheduler = None
        if self._stopping:
            self.machine.loop.call_soon(self._handle, SchedulerStopped())
        else:
            self.machine.loop.call_later(AGAIN_SECONDS, self._start_again, over.epoch)

    def _start_again(self, epoch: tuple[int, int]) -> None:
        now = self.machine.clock.boottime()
        if self.scheduler is None and self._election.leads(now) and self._election.epoch == epoch:
            self._start(epoch, self._election.deadline)

    def crash_scheduler(self) -> None:
        if self.scheduler is not None:
            self.world.tell(f"{self.name}: the scheduler is killed")
            self.scheduler.kill()
