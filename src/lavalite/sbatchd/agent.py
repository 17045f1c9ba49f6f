"""The agent's body: one task takes events from one queue, asks the core, and carries the actions out in order.

    session ──► queue ───┐                                       ┌──► journal (durable before what follows)
    timers ──► queue ────┼──► core.handle ──► actions of all ────┼──► executor
    executor ──► heard ──┘                                       └──► session

One consumer is what keeps the order: a journal write ends before the start that it promises, and a list of the
executor is judged before anything new is started.

All that has happened by then is taken together, and all that this is to leave in the journal goes there in one write,
before anything else of it is carried out. What became of attempts is not urgent: it is told after FLUSH_SECONDS at
the latest, and until then waits for company. A crash loses nothing by that, since the executor remembers it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Protocol

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError, UnreachableError
from lavalite.sbatchd.actions import (
    Action,
    ApplyHosts,
    ApplyParts,
    Close,
    CloseStream,
    Forget,
    OpenConsole,
    OpenStream,
    PassOn,
    RenewContact,
    Send,
    ShowParts,
    Signal,
    Start,
    TypeIn,
    Write,
)
from lavalite.sbatchd.consoles import Connect, Consoles, none_here
from lavalite.sbatchd.core import AgentCore
from lavalite.sbatchd.entry import Record
from lavalite.sbatchd.events import BeatDue, Event, FlushDue, Instant
from lavalite.sbatchd.executors import Executor, ExecutorEvent
from lavalite.sbatchd.journal import Journal
from lavalite.sbatchd.launch import Launcher
from lavalite.sbatchd.output import OutputStreams, prune
from lavalite.wire.connection import Connection
from lavalite.wire.frames import (
    AnyFrame,
    HostAnswer,
    HostHere,
    HostsApplied,
    Output,
    PartOrder,
    PartsApplied,
    PartState,
)

PRUNE_SECONDS = 3600.0
EXECUTOR_RETRY_SECONDS = 1.0
FLUSH_SECONDS = 0.02
"""Reports of so much time are written, and travel, together."""
MOST_WAITING_EVENTS = 1000
MOST_EVENTS_AT_ONCE = 100
ApplyHostsHere = Callable[[list[HostHere]], Awaitable[dict[str, int]]]
"""Make these logical hosts, and no others, enterable on this node: the versions that are, by name."""

log = structlog.get_logger(__name__)


async def no_hosts(hosts: list[HostHere]) -> dict[str, int]:
    return {}


class Parts(Protocol):
    """What this node has of other nodes' hosts and for them (sbatchd.attach). All returns at once."""

    tell: Callable[[list[PartState]], None]

    def order(self, orders: list[PartOrder]) -> None: ...

    def show(self) -> None: ...


class _Errand(Enum):
    """What goes through the queue and is not the core's business."""

    RECONNECT = auto()
    """The executor's connection broke."""
    STOP = auto()


class Agent:
    """Carries out what the core decides. `tell` is for everybody; `attach` and `detach` for the session."""

    def __init__(
        self,
        core: AgentCore,
        journal: Journal,
        executor: Executor,
        launcher: Launcher,
        clock: Clock,
        *,
        own_uid: int,
        apply_hosts: ApplyHostsHere = no_hosts,
        parts: Parts | None = None,
        connect_console: Connect = none_here,
    ) -> None:
        self.core = core
        self._journal, self._executor, self._launcher, self._clock = journal, executor, launcher, clock
        self._own_uid = own_uid
        self._apply_hosts, self._parts, self._connect_console = apply_hosts, parts, connect_console
        if parts:
            parts.tell = self._tell_parts
        self.on_answer: Callable[[HostAnswer], None] = lambda answer: None
        self._events: asyncio.Queue[Event | _Errand] = asyncio.Queue()
        self._heard: list[ExecutorEvent] = []
        """What became of attempts, and is not taken yet."""
        self._later: list[Record] = []
        """For the journal, with whatever must go there next: losing these is harmless."""
        self._connection: Connection | None = None
        self._streams: OutputStreams | None = None
        self._consoles: Consoles | None = None
        self._flush: asyncio.TimerHandle | None = None
        self._beat_waits = self._stopping = self._given_up = False
        self.ready = asyncio.Event()
        """Set once the executor's attempts are known: before that no leader may be told anything."""

    def tell(self, event: Event) -> None:
        self._events.put_nowait(event)

    def post(self, frame: AnyFrame) -> bool:
        """To the leader, who answers to `on_answer`. False where there is no session with one."""
        if self._connection is None or not self.core.registered:
            return False
        try:
            self._connection.post(frame)
        except LavaLiteError:
            return False
        return True

    def stop(self) -> None:
        """End after what is being done: an attempt that is journalled but not yet started would count as lost."""
        self._stopping = True
        self._events.put_nowait(_Errand.STOP)

    async def keep_up(self) -> None:
        """Wait while too many events wait: a leader that sends faster than we can act is held by TCP."""
        while self._events.qsize() > MOST_WAITING_EVENTS:
            await self._clock.sleep(FLUSH_SECONDS)

    def attach(self, connection: Connection) -> None:
        """From here on frames go to this connection."""

        async def send(frame: Output) -> None:
            await connection.send(frame)

        self._connection = connection
        self._streams = OutputStreams(send, self._clock, self._own_uid)
        self._consoles = Consoles(send, self._connect_console)

    async def detach(self) -> None:
        streams, consoles = self._streams, self._consoles
        self._streams = self._consoles = self._connection = None
        if streams and consoles:
            await streams.close()
            await consoles.close()

    async def run(self) -> None:
        """Until `stop`, or until something fails that must end the daemon (the journal's disk)."""
        try:
            async with asyncio.TaskGroup() as tasks:
                timers = [tasks.create_task(self._beat()), tasks.create_task(self._prune())]
                await self._reconnect()
                self.ready.set()
                errand = None
                while not self._given_up and errand is not _Errand.STOP:
                    errand = await self._take(await self._events.get())
                await self._write([])
                for timer in timers:
                    timer.cancel()
        finally:
            if self._flush:
                self._flush.cancel()
            await self._executor.close()

    async def _take(self, first: Event | _Errand) -> _Errand | None:
        """All that waits, up to the next errand: that one is gone on too, and given back."""
        events, errand = self._gathered(first)
        self._beat_waits &= not any(isinstance(event, BeatDue) for event in events)
        await self._handle(events)
        if errand is _Errand.RECONNECT:
            await self._reconnect()
        if self._journal.long:
            self._later.clear()  # they are told by the snapshot too
            await asyncio.to_thread(self._journal.compact, self.core.snapshot())
        if self.core.has_reports:
            self._flush_soon()
        return errand

    def _gathered(self, first: Event | _Errand) -> tuple[list[Event], _Errand | None]:
        events: list[Event] = [*self._heard]
        self._heard.clear()
        event = first
        while not isinstance(event, _Errand):
            events.append(event)
            if self._events.empty() or len(events) >= MOST_EVENTS_AT_ONCE:
                return events, None
            event = self._events.get_nowait()
        return events, event

    def _flush_soon(self) -> None:
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush_due)

    def _flush_due(self) -> None:
        self._flush = None
        self.tell(FlushDue())

    async def _handle(self, events: list[Event]) -> None:
        now = Instant(self._clock.now(), self._clock.boottime())
        actions = [action for event in events for action in self.core.handle(event, now)]
        writes = [action for action in actions if isinstance(action, Write)]
        records = [record for write in writes for record in write.records]
        if any(write.urgent for write in writes) or any(isinstance(event, BeatDue) for event in events):
            await self._write(records)
        else:
            self._later += records
        for action in actions:
            await self._carry_out(action)
        # Said after it is done: who waits for a start waits for no line.
        if starts := [action.attempt.id for action in actions if isinstance(action, Start)]:
            log.info("start", attempts=starts)
        if ended := [action.id for action in actions if isinstance(action, Forget)]:
            log.info("ended", attempts=ended)

    async def _write(self, records: list[Record]) -> None:
        """Durably, behind what was put off until now."""
        records = [*self._later, *records]
        self._later.clear()
        if records:
            await asyncio.to_thread(self._journal.append, records)

    async def _reconnect(self) -> None:
        """Connect to the executor, and judge what it has before anything else happens."""

        def tell(event: ExecutorEvent) -> None:
            self._heard.append(event)
            self._flush_soon()

        while True:
            try:
                listed = await self._executor.connect(tell, lambda: self._events.put_nowait(_Errand.RECONNECT))
                break
            except UnreachableError as error:
                log.error("no executor", reason=str(error))
                if self._stopping:
                    self._given_up = True
                    return
                await self._clock.sleep(EXECUTOR_RETRY_SECONDS)
        await self._handle([listed])

    async def _carry_out(self, action: Action) -> None:
        match action:
            case Start():
                await self._executor.start(self._launcher.launch(action))
            case Signal():
                log.info("signal", attempt=action.id, signal=action.signal, reason=action.reason)
                await self._executor.signal(
                    action.id,
                    action.signal,
                    ending=action.ending,
                    grace_seconds=action.grace_seconds,
                    reason=action.reason,
                )
            case Forget(attempt):
                await self._executor.acknowledge(attempt)
            case RenewContact(sent):
                await self._executor.contact(sent)
            case OpenStream(read, entry):
                if self._streams:
                    with contextlib.suppress(LavaLiteError):
                        await self._streams.open(read, entry)
            case CloseStream(stream_id):
                if self._streams and self._consoles:
                    self._streams.cancel(stream_id)
                    self._consoles.cancel(stream_id)
            case OpenConsole(ask):
                if self._consoles:
                    self._consoles.open(ask)
            case TypeIn(typed):
                if self._consoles:
                    self._consoles.type(typed)
            case PassOn(answer):
                self.on_answer(answer)
            case Send() | Close() | ApplyHosts():
                await self._answer(action)
            case ApplyParts(orders):
                if self._parts:
                    self._parts.order(list(orders))
            case ShowParts():
                if self._parts:
                    self._parts.show()
            case Write():
                pass  # done before all else

    async def _answer(self, action: Send | Close | ApplyHosts) -> None:
        """To the leader. A connection that breaks meanwhile is the session's to notice."""
        connection = self._connection
        if isinstance(action, Close):
            log.warning("session closed", reason=action.reason)
            if connection:
                await connection.close(action.reason)
        elif connection:
            frame = (
                action.frame
                if isinstance(action, Send)
                else HostsApplied(versions=await self._apply_hosts(action.hosts.hosts))
            )
            with contextlib.suppress(LavaLiteError):
                connection.post(frame)

    def _tell_parts(self, picture: list[PartState]) -> None:
        """A picture that does not arrive is told again to whoever registers us next."""
        if self._connection and self.core.registered:
            with contextlib.suppress(LavaLiteError):
                self._connection.post(PartsApplied(parts=picture))

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(self.core.beat_seconds)
            if not self._beat_waits:
                self._beat_waits = True
                self.tell(BeatDue())

    async def _prune(self) -> None:
        while True:
            live = {entry.id for entry in self.core.live()}
            try:
                removed = await asyncio.to_thread(prune, self._launcher.output_folder, live, self._clock.now())
                log.debug("old output removed", files=removed)
            except OSError as error:
                log.warning("old output cannot be removed", reason=str(error))
            await self._clock.sleep(PRUNE_SECONDS)
