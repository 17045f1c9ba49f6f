"""The only place that reads a clock. Everything else takes `now` or a Clock as an argument."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time as a loop needs it. All values are seconds."""

    def now(self) -> float:
        """Wall time, seconds since the Unix epoch. For records and people, never for deadlines."""
        ...

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC, shared by all processes of one boot; stops while the machine is suspended."""
        ...

    def boottime(self) -> float:
        """CLOCK_BOOTTIME, shared by all processes of one boot; counts suspension. For leases and deadlines."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let `seconds` pass."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that a test moves by hand; sleepers wake when it passes them."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._elapsed = 0.0
        self._start = start
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._start + self._elapsed

    def monotonic(self) -> float:
        return self._elapsed

    def boottime(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._elapsed + seconds, future))
        await future

    def advance(self, seconds: float) -> None:
        """Move time on and wake whoever slept until then."""
        self._elapsed += seconds
        due = [f for at, f in self._sleepers if at <= self._elapsed]
        self._sleepers = [(at, f) for at, f in self._sleepers if at > self._elapsed]
        for future in due:
            if not future.done():
                future.set_result(None)
