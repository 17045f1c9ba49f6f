"""The shell of the book: one loop takes what happens, and one task for each thing does the work.

    order ──► queue ──► book ──► records written ──► tasks: role.make, role.remove ──► queue ──► … ──► tell
    timer ──► queue ──► role.check of all that is ready ──► queue

The loop writes before it begins, and never waits for work: an order is heard while another is carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.book import Beside, Book, Work
from lavalite.sbatchd.attach.records import Record, RecordFolder
from lavalite.sbatchd.attach.roles import Key, Made, NotYetError, PartRole
from lavalite.wire.frames import PartOrder, PartState

CHECK_SECONDS = 5.0
MAX_REASON_CHARACTERS = 500

log = structlog.get_logger(__name__)


@dataclass(slots=True, frozen=True)
class _Orders:
    orders: list[PartOrder]


@dataclass(slots=True, frozen=True)
class _Done:
    work: Work
    made: Made | None
    reason: str
    not_yet: bool = False


@dataclass(slots=True, frozen=True)
class _Lost:
    key: Key
    reason: str


class _Show:
    """Tell the picture, changed or not."""


class _CheckDue:
    """Look after what is ready."""


class Attachments:
    """All that this node has for logical hosts. `tell` is called with the whole picture whenever that changes."""

    def __init__(
        self,
        folder: Path,
        roles: Mapping[str, PartRole],
        clock: Clock,
        *,
        ports: Iterable[int] = (),
        usable: Callable[[int], bool] | None = None,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        """`folder`: STATE/parts. `roles`, by name, may be added to until `run`; `usable`: whether a port is free."""
        self._records, self._roles, self._clock = RecordFolder(folder), roles, clock
        self._ports, self._usable = tuple(ports), usable or is_free
        self._check_seconds = check_seconds
        self.tell: Callable[[list[PartState]], None] = lambda picture: None
        self.on_change: Callable[[], None] = lambda: None
        self.book = Book((), self._roles)
        self._queue: asyncio.Queue[_Orders | _Done | _Lost | _Show | _CheckDue] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._checking: set[Key] = set()
        self._alone: dict[Key, asyncio.Lock] = {}
        """A part is not looked after while it is being changed: what is mended then would outlive its removal."""
        self._told: list[PartState] | None = None

    # --- for the agent

    def order(self, orders: list[PartOrder]) -> None:
        """Returns at once. The answer is told."""
        self._queue.put_nowait(_Orders(orders))

    def show(self) -> None:
        """Tell the whole picture again: there is somebody new to tell."""
        self._queue.put_nowait(_Show())

    def listen_at(self, address: str) -> None:
        """Exports that are made from now on listen there."""
        self.book.address = address

    def ports(self, circuit: PartOrder) -> tuple[list[int], list[int]]:
        """As the book says."""
        return self.book.ports(circuit)

    def beside(self, disk: PartOrder) -> Beside:
        """As the book says."""
        return self.book.beside(disk)

    def scratch(self, host: str) -> str:
        """Where the storage of a host is mounted here; empty where it has none."""
        paths = [
            record.made.path
            for record in self.book.records.values()
            if record.order.host == host and record.order.role == "disk" and record.state == "ready"
        ]
        return min((path for path in paths if path), default="")

    async def load(self) -> None:
        """Raises OSError."""
        records = await asyncio.to_thread(self._records.load)
        address, self.book = self.book.address, Book(records, self._roles, self._ports, self._usable)
        self.book.address = address

    async def run(self) -> None:
        """Until it is cancelled; work that was begun is carried to its end all the same, by root's own process."""
        await self.load()
        timer = asyncio.create_task(self._tick())
        try:
            await self._begin()
            while True:
                await self._take(await self._queue.get())
        finally:
            timer.cancel()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(timer, *self._tasks, return_exceptions=True)

    # --- the loop

    async def _take(self, item: _Orders | _Done | _Lost | _Show | _CheckDue) -> None:
        match item:
            case _Orders(orders):
                await self._write(self.book.order(orders))
                self._told = None  # whoever orders is to be answered
            case _Done():
                await self._note(item)
            case _Lost(key, reason):
                if record := self.book.lost(key, reason):
                    log.warning("a part is lost", part=key.part, role=key.role, reason=reason)
                    await self._write([record])
            case _Show():
                self._told = None
            case _CheckDue():
                self.book.retry()
                self._check()
        await self._begin()
        picture = self.book.picture()
        if picture != self._told:
            self._told = picture
            self.tell(picture)
            self.on_change()

    async def _note(self, done: _Done) -> None:
        verb, key = done.work.verb, done.work.record.key
        said = {"part": key.part, "role": key.role, "host": done.work.record.order.host}
        if done.not_yet:
            self.book.not_yet(key)
            log.debug("a part is on its way", **said, reason=done.reason)
            return
        if verb == "make":
            await self._write([self.book.made(key, done.made, done.reason)])
        else:
            # Its record goes first: a new thing of that name must never be found under the old one's.
            if not done.reason:
                await asyncio.to_thread(self._records.forget, key)
                self._alone.pop(key, None)
            await self._write(self.book.removed(key, done.reason))
        if done.reason:
            log.warning(f"a part cannot be {'made' if verb == 'make' else 'removed'}", **said, reason=done.reason)
        else:
            log.info(f"a part is {'made' if verb == 'make' else 'removed'}", **said)

    async def _write(self, records: list[Record]) -> None:
        for record in records:
            await asyncio.to_thread(self._records.write, record)

    async def _begin(self) -> None:
        for work in self.book.work():
            self._spawn(self._carry_out(work))

    async def _carry_out(self, work: Work) -> None:
        made, reason, not_yet, order = None, "", False, work.record.order
        try:
            role = self._roles[order.role]
            async with self._alone.setdefault(work.record.key, asyncio.Lock()):
                if work.verb == "make":
                    made = await role.make(order)
                else:
                    await role.remove(order)
        except LavaLiteError as error:
            reason, not_yet = str(error)[:MAX_REASON_CHARACTERS], isinstance(error, NotYetError)
        except Exception as error:
            # A fault of ours in one part must not take all others' keeper down.
            log.exception("a part", part=order.part, role=order.role)
            reason = f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]
        self._queue.put_nowait(_Done(work, made, reason, not_yet))

    def _check(self) -> None:
        for record in self.book.ready():
            if record.key not in self._checking:
                self._checking.add(record.key)
                self._spawn(self._check_one(record))

    async def _check_one(self, record: Record) -> None:
        try:
            async with self._alone.setdefault(record.key, asyncio.Lock()):
                if record not in self.book.ready():
                    return
                reason = await self._roles[record.order.role].check(record.order, record.made)
        except LavaLiteError as error:
            log.debug("a part cannot be looked at", part=record.order.part, reason=str(error))
        else:
            if reason:
                self._queue.put_nowait(_Lost(record.key, reason[:MAX_REASON_CHARACTERS]))
        finally:
            self._checking.discard(record.key)

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(self._check_seconds)
            self._queue.put_nowait(_CheckDue())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def is_free(port: int) -> bool:
    """Whether nothing on this machine has this TCP port."""
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((anywhere, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
    return True
