"""The body of the election: carries core.Election's actions out, and brings back what happened.

Requests to the store become tasks (lim.leader_store). It holds no policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import Callable

import structlog

from lavalite.base.clock import Clock
from lavalite.lim.config import LimConfig
from lavalite.lim.core import Election, State
from lavalite.lim.leader_store import LeaderStore
from lavalite.lim.lockfile import LockFile
from lavalite.lim.steps import (
    Action,
    Campaign,
    Drain,
    Epoch,
    Event,
    Extend,
    KeyChanged,
    Lead,
    ReadLeader,
    Renew,
    ResignAsked,
    Revoke,
    SchedulerFails,
    SchedulerStopped,
    StepDown,
    Tick,
)
from lavalite.lim.supervise import Supervisor
from lavalite.lim.vip import Vip
from lavalite.store.keys import Keys

log = structlog.get_logger(__name__)

SETTLED_STATES = (State.FOLLOWING, State.WAITING)

TellDeadline = Callable[[Epoch, float], None]
"""Called with the epoch and the deadline (CLOCK_BOOTTIME); one in the past says that leadership is over."""


Rivals = Callable[[Epoch, float], bool]
"""Whether another candidate seems to be there, so many seconds into the leadership of an epoch."""


class Candidate:
    """Takes part in the election until `stop` is set; then hands over, if it leads, and returns."""

    def __init__(
        self,
        config: LimConfig,
        lim_address: str,
        clock: Clock,
        supervisor: Supervisor,
        lock: LockFile,
        vip: Vip,
        tell_deadline: TellDeadline,
        rivals: Rivals,
    ) -> None:
        self.election = Election(config.timing, secrets.token_hex(8))
        self.keys = Keys(config.cluster)
        self._store = LeaderStore(config, lim_address, clock)
        self._clock = clock
        self._supervisor = supervisor
        supervisor.tell_failures = self._on_failures
        self._lock, self._vip = lock, vip
        self._tell_deadline, self._rivals = tell_deadline, rivals
        self._led_since = 0.0
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._draining: asyncio.Task[None] | None = None

    def leads(self) -> bool:
        """Whether this LIM may act as the leader at this very moment."""
        return self.election.leads(self._clock.boottime())

    def resign(self) -> None:
        """Hand over to another candidate."""
        led_seconds = self._clock.boottime() - self._led_since
        self._events.put_nowait(ResignAsked(self._rivals(self.election.epoch, led_seconds)))

    def _on_failures(self, times: int) -> None:
        # Only for one that is known to be there: nobody shall wait for a leader because of a guess.
        self._events.put_nowait(SchedulerFails(times, self._rivals(self.election.epoch, math.inf)))

    async def run(self, stop: asyncio.Event) -> None:
        self._lock.remove()  # of an earlier life
        self._vip.drop()
        await self._supervisor.clear()
        if not await self._store.open(stop):
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch())
                stopping = tasks.create_task(self._resign_at(stop))
                await self._campaign_until(stop, tasks)
                watching.cancel()
                stopping.cancel()
        finally:
            # Also when something failed that nobody foresaw: no scheduler without a leader.
            await self._supervisor.stop(self._clock.boottime())
            self._lock.remove()
            await self._vip.close()
            await self._store.close()

    async def _resign_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self.resign()

    async def _campaign_until(self, stop: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        """Feed the core: one event at a time, and a Tick whenever it wants one."""
        while not (stop.is_set() and self.election.state in SETTLED_STATES):
            wait_seconds = self.election.wake_at - self._clock.boottime()
            event = await self._next_event(wait_seconds)
            was = self.election.state
            actions = self.election.handle(event, self._clock.boottime())
            if self.election.state is not was:
                log.info("election", state=self.election.state.value, was=was.value)
            for action in actions:
                self._carry_out(action, tasks)
            if stop.is_set() and self.election.state is State.LEADING:
                self.resign()  # it was elected while it was stopping

    async def _next_event(self, wait_seconds: float) -> Event:
        if self._events.empty() and wait_seconds <= 0:
            return Tick()
        # The loop's timers stand still while the machine is suspended, and deadlines do not: look up often.
        wait_seconds = min(wait_seconds, self.election.timing.interval_seconds)
        try:
            async with asyncio.timeout(max(0.0, wait_seconds)):
                return await self._events.get()
        except TimeoutError:
            return Tick()

    # --- actions ---

    def _carry_out(self, action: Action, tasks: asyncio.TaskGroup) -> None:
        match action:
            case ReadLeader() | Campaign() | Renew() | Revoke():
                tasks.create_task(self._ask(action))
            case Lead(epoch, deadline):
                log.info("this LIM leads", epoch=epoch)
                self._led_since = self._clock.boottime()
                self._lock.write(epoch)
                self._vip.hold(deadline)
                self._tell_deadline(epoch, deadline)
                self._supervisor.start()
            case Extend(epoch, deadline):
                self._vip.hold(deadline)
                self._tell_deadline(epoch, deadline)
            case Drain(epoch, until):
                log.info("handing over", epoch=epoch)
                self._draining = tasks.create_task(self._stop_scheduler(until))
            case StepDown(epoch, kill_at, reason):
                log.warning("this LIM leads no more", epoch=epoch, reason=reason)
                self._tell_deadline(epoch, -1.0)
                self._vip.drop()
                self._lock.remove()
                if self._draining is not None:
                    self._draining.cancel()
                    self._draining = None
                tasks.create_task(self._stop_scheduler(kill_at))

    async def _ask(self, request: ReadLeader | Campaign | Renew | Revoke) -> None:
        self._events.put_nowait(await self._store.ask(request))

    async def _stop_scheduler(self, kill_at: float) -> None:
        await self._supervisor.stop(kill_at)
        self._events.put_nowait(SchedulerStopped())

    async def _watch(self) -> None:
        """A look at the leader key whenever it changes. The core looks from time to time anyway."""
        while True:
            async with contextlib.aclosing(self._store.changes()) as changes:
                async for _ in changes:
                    self._events.put_nowait(KeyChanged())
            await self._clock.sleep(self.election.timing.interval_seconds)
