"""The body of the election: carries core.Election's actions out against a store, and brings back what happened.

Every request becomes one task with a deadline of its own, and ends in exactly one event. It holds no policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from lavalite import __version__
from lavalite.base.clock import Clock
from lavalite.base.errors import InputError, LavaLiteError
from lavalite.lim.config import LimConfig
from lavalite.lim.core import Election, State
from lavalite.lim.lockfile import LockFile
from lavalite.lim.steps import (
    Action,
    Campaign,
    CampaignUnknown,
    Drain,
    Elected,
    Epoch,
    Event,
    Extend,
    KeyChanged,
    KeyLost,
    Lead,
    LeaderKey,
    LeaderRead,
    NotElected,
    ReadFailed,
    ReadLeader,
    Renew,
    RenewalFailed,
    Renewed,
    ResignAsked,
    Revoke,
    RevokeEnded,
    SchedulerStopped,
    StepDown,
    Tick,
)
from lavalite.lim.supervise import Supervisor
from lavalite.store.base import Compare, LeaseLost, OutcomeUnknown, Put, Record, Store
from lavalite.store.keys import Keys
from lavalite.store.open import open_store

log = structlog.get_logger(__name__)

T = TypeVar("T")
OPEN_AGAIN_SECONDS = 2.0
LEADING_STATES = (State.LEADING, State.RESIGNING)
SETTLED_STATES = (State.FOLLOWING, State.WAITING)

TellDeadline = Callable[[Epoch, float], None]
"""Called with the epoch and the deadline (CLOCK_BOOTTIME); one in the past says that leadership is over."""


class LeaderValue(BaseModel):
    """What stands in the leader key. The epoch is `generation` and the key's create revision."""

    model_config = ConfigDict(extra="allow")

    node: str
    nonce: str
    generation: int = 0
    lim_address: str = ""
    mbatchd_address: str = ""
    api_url: str = ""
    software_version: str = ""


def leader_key(record: Record | None) -> LeaderKey | None:
    """The leader key's record as the core sees it. What cannot be read is a leader without a name."""
    if record is None:
        return None
    try:
        value = LeaderValue.model_validate_json(record.value)
    except ValidationError:
        return LeaderKey("", "", (0, record.create_revision), record.lease_id)
    return LeaderKey(
        node=value.node,
        nonce=value.nonce,
        epoch=(value.generation, record.create_revision),
        lease_id=record.lease_id,
        lim_address=value.lim_address,
        mbatchd_address=value.mbatchd_address,
        api_url=value.api_url,
    )


def _generation(record: Record | None) -> int:
    """0 in a cluster that was never restored from a backup. Raises LavaLiteError."""
    try:
        return int(record.value) if record else 0
    except ValueError:
        hint = "Restore the cluster's records again: nobody can lead before."
        raise LavaLiteError(f"the record {record.key if record else ''} is no number", hint=hint) from None


class Candidate:
    """Takes part in the election until `stop` is set; then hands over, if it leads, and returns."""

    def __init__(
        self,
        config: LimConfig,
        lim_address: str,
        clock: Clock,
        supervisor: Supervisor,
        tell_deadline: TellDeadline,
    ) -> None:
        assert config.store is not None, "candidates have a store"
        self.election = Election(config.timing, secrets.token_hex(8))
        self.keys = Keys(config.cluster)
        call_seconds = config.lease_ttl_seconds / 3
        timeout = min(config.store.timeout_seconds, call_seconds)
        self._store_config = config.store.model_copy(update={"timeout_seconds": timeout})
        self._call_seconds = call_seconds * 1.2  # the store's own deadline comes first; this one is for its faults
        self._ttl_seconds = config.lease_ttl_seconds
        self._value = LeaderValue(
            node=config.node,
            nonce="",
            lim_address=lim_address,
            mbatchd_address=config.mbatchd_address,
            api_url=config.api_url,
            software_version=__version__,
        )
        self._clock = clock
        self._supervisor = supervisor
        self._tell_deadline = tell_deadline
        self._lock = LockFile(config.master_lock_path, config.node)
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._store_answers = True
        self._draining: asyncio.Task[None] | None = None
        self._store: Store

    def leads(self) -> bool:
        """Whether this LIM may act as the leader at this very moment."""
        return self.election.leads(self._clock.boottime())

    def resign(self) -> None:
        """Hand over to another candidate."""
        self._events.put_nowait(ResignAsked())

    async def run(self, stop: asyncio.Event) -> None:
        self._lock.remove()  # of an earlier life
        await self._supervisor.clear()
        store = await self._open(stop)
        if store is None:
            return
        self._store = store
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
            await store.close()

    async def _open(self, stop: asyncio.Event) -> Store | None:
        while not stop.is_set():
            try:
                return await open_store(self._store_config, self._clock)
            except InputError:
                raise
            except LavaLiteError as error:
                self._note_store(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), OPEN_AGAIN_SECONDS)
        return None

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
            case ReadLeader(request):
                tasks.create_task(self._ask(self._read(request)))
            case Campaign(request, nonce):
                tasks.create_task(self._ask(self._try_to_lead(request, nonce)))
            case Renew(request, lease_id, create_revision):
                tasks.create_task(self._ask(self._renew(request, lease_id, create_revision)))
            case Revoke(request, lease_id):
                tasks.create_task(self._ask(self._revoke(request, lease_id)))
            case Lead(epoch, deadline):
                log.info("this LIM leads", epoch=epoch)
                self._lock.write(epoch)
                self._tell_deadline(epoch, deadline)
                self._supervisor.start()
            case Extend(epoch, deadline):
                self._tell_deadline(epoch, deadline)
            case Drain(epoch, until):
                log.info("handing over", epoch=epoch)
                self._draining = tasks.create_task(self._stop_scheduler(until))
            case StepDown(epoch, kill_at, reason):
                log.warning("this LIM leads no more", epoch=epoch, reason=reason)
                self._tell_deadline(epoch, -1.0)
                self._lock.remove()
                if self._draining is not None:
                    self._draining.cancel()
                    self._draining = None
                tasks.create_task(self._stop_scheduler(kill_at))

    async def _ask(self, question: Coroutine[Any, Any, Event]) -> None:
        self._events.put_nowait(await question)

    async def _stop_scheduler(self, kill_at: float) -> None:
        await self._supervisor.stop(kill_at)
        self._events.put_nowait(SchedulerStopped())

    async def _read(self, request: int) -> Event:
        try:
            record = await self._within(self._store.get(self.keys.leader))
        except LavaLiteError as error:
            self._note_store(error)
            return ReadFailed(request)
        self._note_store(None)
        return LeaderRead(request, leader_key(record))

    async def _try_to_lead(self, request: int, nonce: str) -> Event:
        lease_id = 0
        try:
            found = await self._within(self._store.get(self.keys.generation))
            generation = _generation(found)
            sent_at = self._clock.boottime()
            lease_id = await self._within(self._store.lease_grant(self._ttl_seconds))
        except LavaLiteError as error:
            self._note_store(error)
            return NotElected(request, lease_id)
        value = self._value.model_copy(update={"nonce": nonce, "generation": generation})
        compares = [
            Compare.absent(self.keys.leader),
            Compare.unchanged(self.keys.generation, found.mod_revision if found else 0),
        ]
        put = Put(self.keys.leader, value.model_dump_json().encode(), lease_id)
        try:
            result = await self._within(self._store.txn(compares, [put]))
        except OutcomeUnknown as error:
            self._note_store(error)
            return CampaignUnknown(request, sent_at, lease_id)
        except LavaLiteError as error:
            self._note_store(error)
            return NotElected(request, lease_id)
        if not result.succeeded:
            return NotElected(request, lease_id)
        return Elected(request, sent_at, lease_id, (generation, result.revision))

    async def _renew(self, request: int, lease_id: int, create_revision: int) -> Event:
        sent_at = self._clock.boottime()
        try:
            await self._within(self._store.lease_keepalive(lease_id))
            record = await self._within(self._store.get(self.keys.leader))
        except LeaseLost:
            return KeyLost(request)
        except LavaLiteError as error:
            self._note_store(error)
            return RenewalFailed(request)
        self._note_store(None)
        if record is None or record.create_revision != create_revision:
            return KeyLost(request)
        return Renewed(request, sent_at)

    async def _revoke(self, request: int, lease_id: int) -> Event:
        with contextlib.suppress(LavaLiteError):  # it ends by itself then
            await self._within(self._store.lease_revoke(lease_id))
        return RevokeEnded(request)

    async def _within(self, call: Awaitable[T]) -> T:
        """A call of the store that was given up is one whose outcome is not known."""
        try:
            async with asyncio.timeout(self._call_seconds):
                return await call
        except TimeoutError:
            raise OutcomeUnknown(f"the store gave no answer in {self._call_seconds:.1f} s") from None

    async def _watch(self) -> None:
        """A look at the leader key whenever it changes. The core looks from time to time anyway."""
        while True:
            with contextlib.suppress(LavaLiteError):
                page = await self._within(self._store.range(self.keys.leader))
                batches = self._store.watch(self.keys.leader, page.revision + 1)
                async with contextlib.aclosing(batches):
                    async for _ in batches:
                        self._events.put_nowait(KeyChanged())
            await self._clock.sleep(self.election.timing.interval_seconds)

    def _note_store(self, error: LavaLiteError | None) -> None:
        """One sentence when the store stops answering, and one when it answers again."""
        if error is not None and self._store_answers:
            log.warning("the store does not answer; trying again", reason=str(error))
        elif error is None and not self._store_answers:
            log.info("the store answers again")
        self._store_answers = error is None
