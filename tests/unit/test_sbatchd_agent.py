"""The agent's body: what it does together, and what must be in the journal by then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lavalite.base.clock import SystemClock
from lavalite.model.resources import NodeOffer
from lavalite.sbatchd.agent import Agent
from lavalite.sbatchd.core import AgentCore
from lavalite.sbatchd.entry import Restored, restore
from lavalite.sbatchd.events import FrameReceived, SessionOpened
from lavalite.sbatchd.executors import Ended, Launch, Listed, Started, Tell
from lavalite.sbatchd.journal import FILE_NAME, Journal
from lavalite.sbatchd.keeper.line_log import decode_line
from lavalite.sbatchd.launch import Launcher, Policy
from lavalite.wire.frames import Attempt, Dispatch, Registered, ReportAck

EPOCH = (1, 5)
NAMES = [f"{job}.0.1" for job in range(1, 21)]
PATIENCE_SECONDS = 30


class Executor:
    """Starts nothing, and notes what the journal's file held whenever something was asked."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.asked: dict[str, dict[str, Restored]] = {"start": {}, "acknowledge": {}}
        self.news = asyncio.Event()
        self.tell: Tell = lambda event: None

    def lines(self) -> list[bytes]:
        return self.journal.read_bytes().splitlines(keepends=True)

    def on_disk(self) -> Restored:
        return restore(record for line in self.lines() for record in decode_line(line) or [])

    async def connect(self, tell: Tell, lost: object) -> Listed:
        self.tell = tell
        return Listed(())

    async def start(self, launch: Launch) -> None:
        self._note("start", launch.id)

    async def acknowledge(self, attempt: str) -> None:
        self._note("acknowledge", attempt)

    def _note(self, what: str, attempt: str) -> None:
        assert attempt not in self.asked[what], f"{what} twice"
        self.asked[what][attempt] = self.on_disk()
        self.news.set()

    async def all_asked(self, what: str) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.asked[what].keys() < set(NAMES):
                self.news.clear()
                await self.news.wait()

    async def signal(self, attempt: str, signal: int, **more: object) -> None:
        pass

    async def list(self) -> Listed:
        return Listed(())

    async def contact(self, sent: float) -> None:
        pass

    async def close(self) -> None:
        pass


class Body:
    def __init__(self, folder: Path) -> None:
        self.executor = Executor(folder / FILE_NAME)
        journal = Journal(folder)
        clock = SystemClock()
        launcher = Launcher(folder, Policy(0, 0, True), clock, grace_seconds=1, enforce_memory=False)
        self.core = AgentCore(restore(journal.open()), launcher.refusal, launcher.paths)
        self.agent = Agent(self.core, journal, self.executor, launcher, clock, own_uid=0)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        run = asyncio.create_task(self.agent.run())
        await self.agent.ready.wait()
        self.agent.tell(SessionOpened(1, EPOCH, "boot", NodeOffer(node="n1", boot_id="boot")))
        self.agent.tell(FrameReceived(1, Registered(epoch=EPOCH, beat_seconds=1000)))
        try:
            yield
        finally:
            self.agent.stop()
            await run

    def dispatch(self) -> None:
        """A frame for each attempt, all of them waiting together."""
        for name in NAMES:
            attempt = Attempt(id=name, journal_id=self.core.journal_id, command=["true"], uid=0, gid=0)
            self.agent.tell(FrameReceived(1, Dispatch(epoch=EPOCH, attempts=[attempt])))

    def end(self) -> None:
        for name in NAMES:
            self.executor.tell(Started(name, 7, 50.0))
            self.executor.tell(Ended(name, 0, "exit", 60.0, 7, 50.0))


@pytest.fixture
def body(tmp_path: Path) -> Body:
    return Body(tmp_path)


async def test_what_waits_together_is_journalled_at_once_and_before_any_of_it_starts(body: Body) -> None:
    async with body.running():
        before = len(body.executor.lines())
        body.dispatch()
        await body.executor.all_asked("start")
        assert len(body.executor.lines()) <= before + 2  # the epoch's, if it was not written by then, and theirs
    for name, on_disk in body.executor.asked["start"].items():
        assert on_disk.entries.keys() == set(NAMES), name


async def test_an_end_is_forgotten_once_it_is_in_the_journal_and_they_go_there_together(body: Body) -> None:
    async with body.running():
        body.dispatch()
        await body.executor.all_asked("start")
        before = len(body.executor.lines())
        body.end()
        await body.executor.all_asked("acknowledge")
        assert len(body.executor.lines()) == before + 1
    for name, on_disk in body.executor.asked["acknowledge"].items():
        assert on_disk.entries[name].state == "ended"


async def test_what_may_be_written_later_is_written_when_it_stops(body: Body) -> None:
    async with body.running():
        body.dispatch()
        await body.executor.all_asked("start")
        body.end()
        await body.executor.all_asked("acknowledge")
        lines = len(body.executor.lines())
        for seq in range(4):
            body.agent.tell(FrameReceived(1, ReportAck(epoch=EPOCH, seq=seq)))
    assert len(body.executor.lines()) == lines + 1
    assert all(entry.settled for entry in body.executor.on_disk().entries.values())
