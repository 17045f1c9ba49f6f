"""To ask again what may be asked twice: where the API server fails, is silent, or wants us to wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from lavalite.base.clock import Clock
from lavalite.base.errors import BusyError, LavaLiteError, UnreachableError

FIRST_SECONDS, MOST_SECONDS = 0.05, 2.0
T = TypeVar("T")


class Pauses:
    """Each longer than the one before; what the server says goes before."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        """For so long in all."""
        self._clock = clock
        self._deadline = clock.monotonic() + seconds
        self._next_seconds = FIRST_SECONDS

    async def after(self, error: LavaLiteError) -> None:
        """Raises the error itself once there has been enough of it."""
        said = error.retry_after_seconds if isinstance(error, BusyError) else 0
        pause_seconds = max(said, self._next_seconds)
        if self._clock.monotonic() + pause_seconds > self._deadline:
            raise error
        await self._clock.sleep(pause_seconds)
        self._next_seconds = min(2 * self._next_seconds, MOST_SECONDS)


async def patiently(clock: Clock, seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """The answer of `call`, which is made again after UnreachableError and BusyError, for so long."""
    pauses = Pauses(clock, seconds)
    while True:
        try:
            return await call()
        except (UnreachableError, BusyError) as error:
            await pauses.after(error)
