"""Keeps mbatchd running while this LIM leads, and makes sure that it is gone before the lease can end.

    start() ─► RUNNING ── ended by itself ──► waits 0.2, 0.4 … 10 s ──► RUNNING …      each early, bad end is told
                  │ stop(kill_at)
                  ▼
               asked to end ── kill_at ──► killed ──► gone (only then may another be started)

How a program is started and killed is program.py's business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.lim.program import End, Program

log = structlog.get_logger(__name__)

KILL_AGAIN_SECONDS = 1.0


class Backoff:
    """0.2 s, doubled after each early end, 10 s at most; from the start again after one that ran long enough.

    One that ended well, such as after a SIGTERM by a person, did not fail, unless it did so at once.
    """

    FIRST_SECONDS, MOST_SECONDS, HEALTHY_SECONDS, AT_ONCE_SECONDS = 0.2, 10.0, 30.0, 2.0

    def __init__(self) -> None:
        self.failures = 0
        """Early ends since the last good one."""

    def after(self, ran_seconds: float, *, well: bool = False) -> float:
        """Seconds to wait after a program that ran for `ran_seconds`."""
        if ran_seconds >= (self.AT_ONCE_SECONDS if well else self.HEALTHY_SECONDS):
            self.failures = 0
            return self.FIRST_SECONDS
        self.failures += 1
        delay: float = self.FIRST_SECONDS * 2 ** min(self.failures - 1, 10)
        return min(delay, self.MOST_SECONDS)


class Supervisor:
    """One program, kept running between `start()` and `stop()`."""

    def __init__(self, program: Program, clock: Clock) -> None:
        self._program = program
        self._clock = clock
        self.tell_failures: Callable[[int], None] = lambda times: None
        """Called after each early end with how many there were in a row."""
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self.starts = 0

    def start(self) -> None:
        """Keep it running from now on. Does nothing where it already is kept."""
        if self._task is None:
            self._stopping.clear()
            self._task = asyncio.create_task(self._keep(), name="supervise mbatchd")

    async def stop(self, kill_at: float) -> None:
        """Ask it to end, kill it at `kill_at` (CLOCK_BOOTTIME), and return when it is gone.

        May be called while an earlier call waits: the earlier `kill_at` then wins.
        """
        task = self._task
        if task is None:
            return
        self._stopping.set()
        await self._ask_to_end()
        await asyncio.wait({task}, timeout=max(0.0, kill_at - self._clock.boottime()))
        while not task.done():
            with contextlib.suppress(LavaLiteError):
                await self._program.kill()
            await asyncio.wait({task}, timeout=KILL_AGAIN_SECONDS)
        self._task = None
        task.result()

    async def clear(self) -> None:
        """Wait until what an earlier LIM of this node left running is gone; end it if it does not by itself."""
        await self._program.clear()

    async def _ask_to_end(self) -> None:
        try:
            await self._program.terminate()
        except LavaLiteError as error:
            log.warning("mbatchd cannot be asked to end", reason=str(error))

    async def _keep(self) -> None:
        backoff = Backoff()
        while True:
            began = self._clock.boottime()
            end = await self._run_once()
            if self._stopping.is_set():
                return
            delay = backoff.after(self._clock.boottime() - began, well=end.well)
            log.warning("mbatchd ended", reason=end.reason, next_start_seconds=delay)
            if backoff.failures:
                self.tell_failures(backoff.failures)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return

    async def _run_once(self) -> End:
        """Start it, wait until it is gone, and say how it ended."""
        try:
            await self._program.start()
        except LavaLiteError as error:
            return End(str(error))
        self.starts += 1
        if self._stopping.is_set():
            await self._ask_to_end()
        return await self._program.ended()
