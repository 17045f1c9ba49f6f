"""The desk of one process: a ledger, the picture of it, and that one thing at a time is decided here.

    decide on the picture ──► commit ──► take it over
            ▲                   │ others were quicker
            └── sync ◄──────────┘

What is decided without a look at the ledger can only be too late, and then the commit says so. What is refused, or
raises, is decided once more on a picture that is current.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.groups.engine.changes import Changes, Refused
from lavalite.groups.engine.picture import Picture
from lavalite.groups.errors import ConflictingAllocationError
from lavalite.groups.ledger import GroupLedger

TRY_SECONDS = 30.0
FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.001, 0.1
LOOK_SECONDS = 5.0
"""So often it is looked whether anything has changed, while somebody wants to know, though nobody said so."""
RETRY_SECONDS, LEAST_SECONDS = 1.0, 0.001

Answer = TypeVar("Answer", Changes, Refused, Changes | Refused)
Listener = Callable[[list[str]], None]


class Desk:
    """See the module's docstring."""

    def __init__(self, ledger: GroupLedger, clock: Clock, expire: Callable[[], Awaitable[None]]) -> None:
        """`expire` writes that what has run out is no more."""
        self.ledger = ledger
        self._expire = expire
        self.clock = clock
        self.picture = Picture()
        self._turn = asyncio.Lock()
        self._listeners: dict[Listener, None] = {}
        self._looking: asyncio.Task[None] | None = None

    async def carry_out(self, decide: Callable[[Picture, float], Answer]) -> Answer:
        """What `decide` answers on a current picture, once it is durable; it may be asked several times.

        Raises what it raises, ConflictingAllocationError where others were quicker for long, UnreachableError.
        """
        deadline, pause_seconds = self.clock.monotonic() + TRY_SECONDS, 0.0
        async with self._turn:
            is_current = False
            while True:
                try:
                    answer = decide(self.picture, self.clock.now())
                except LavaLiteError:
                    if is_current:
                        raise
                else:
                    if isinstance(answer, Changes):
                        if not answer or await self.ledger.commit(answer.puts, answer.deletes):
                            self._tell(key for key, _ in self.picture.take(answer))
                            return answer
                        if self.clock.monotonic() > deadline:
                            raise ConflictingAllocationError(
                                f"others were quicker for {TRY_SECONDS:g} seconds", hint="Try again in a while."
                            )
                        # Of those who were too late at once, not all come back at once.
                        await self.clock.sleep(pause_seconds * random.random())  # noqa: S311 - no secret
                        pause_seconds = min(max(FIRST_PAUSE_SECONDS, 2 * pause_seconds), MOST_PAUSE_SECONDS)
                    elif is_current:
                        return answer
                await self._sync()
                is_current = True

    async def sync(self) -> None:
        """Bring the picture up to date. Raises UnreachableError."""
        async with self._turn:
            await self._sync()

    async def _sync(self) -> None:
        self._tell(self.picture.apply(await self.ledger.sync()))

    # --- who wants to know ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """The listener is told the keys of what has changed, by whomever, as soon as this process knows of it."""
        self._listeners[listener] = None
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="lavalite-groups-look")
        try:
            yield
        finally:
            del self._listeners[listener]
            if not self._listeners and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def tell(self, keys: Iterable[str]) -> None:
        """Something of these is not as it was, which no record says."""
        self._tell(keys)

    def _tell(self, keys: Iterable[str]) -> None:
        if self._listeners and (changed := list(keys)):
            for listener in list(self._listeners):
                listener(changed)

    async def _look(self) -> None:
        """As long as anybody listens, follow what others write."""
        while True:
            try:
                await self.sync()
                await self._expire()
                due = self.picture.next_due()
                pause_seconds = LOOK_SECONDS if due is None else min(LOOK_SECONDS, due - self.clock.now())
                await self.ledger.wait(max(LEAST_SECONDS, pause_seconds))
            except LavaLiteError:
                await self.clock.sleep(RETRY_SECONDS)  # whoever asks for something meets the same, and says so

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
            self._looking = None
        await self.ledger.close()
