"""Waiting for room: a record that says so, prolonged while its asker lives, and another try at each change."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from lavalite.base.clock import Clock
from lavalite.groups.embedded.desk import Desk
from lavalite.groups.engine import waiting
from lavalite.groups.errors import ConflictingAllocationError, GroupStateError, InsufficientResourcesError
from lavalite.groups.requirements import Ask

LIVES_SECONDS = 30.0
"""So long a waiting ask stands after its asker was heard of last; it is prolonged well before."""
PROLONG_SECONDS = LIVES_SECONDS / 3

Attempt = Callable[[str], Awaitable[dict[str, Any]]]


class Waits:
    """The asks of this process that wait."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    @property
    def _clock(self) -> Clock:
        return self._desk.clock

    async def until_given(self, ask: Ask, resources: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
        """What `attempt` answers once there is room. It is given the id of the waiting record, empty at first.

        Raises InsufficientResourcesError when the ask's `wait` is over, or where there never will be room.
        """
        deadline = self._clock.monotonic() + ask.constraints.wait
        try:
            return await attempt("")
        except (InsufficientResourcesError, GroupStateError) as error:
            if not _worth_waiting(error, ask):
                raise
        waiter_id = f"w{secrets.token_hex(6)}"
        changed = asyncio.Event()
        with self._desk.listening(lambda _: changed.set()):
            try:
                return await self._wait(ask, resources, attempt, waiter_id, deadline, changed)
            finally:
                # It has got what it waited for, and waits no more by that; or it gives up.
                if waiter_id in self._desk.picture.waiting:
                    leaving = self._desk.carry_out(lambda p, _: waiting.give_up(p, waiter_id))
                    await asyncio.shield(asyncio.ensure_future(leaving))

    async def _wait(
        self,
        ask: Ask,
        resources: dict[str, Any],
        attempt: Attempt,
        waiter_id: str,
        deadline: float,
        changed: asyncio.Event,
    ) -> dict[str, Any]:
        heard_at = float("-inf")
        while True:
            if self._clock.monotonic() - heard_at >= PROLONG_SECONDS:
                await self._desk.carry_out(
                    lambda p, now: waiting.wait(p, ask, resources, now, waiter_id, now + LIVES_SECONDS)
                )
                heard_at = self._clock.monotonic()
            changed.clear()
            try:
                return await attempt(waiter_id)
            except (InsufficientResourcesError, GroupStateError) as error:
                left_seconds = deadline - self._clock.monotonic()
                if left_seconds <= 0 or not _worth_waiting(error, ask):
                    raise
            except ConflictingAllocationError:
                if (left_seconds := deadline - self._clock.monotonic()) <= 0:
                    raise
            await self._until(changed, min(left_seconds, heard_at + PROLONG_SECONDS - self._clock.monotonic()))

    async def _until(self, changed: asyncio.Event, seconds: float) -> None:
        """Until anything has changed, or so long."""
        told = asyncio.ensure_future(changed.wait())
        over = asyncio.ensure_future(self._clock.sleep(max(0.0, seconds)))
        try:
            await asyncio.wait({told, over}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (told, over):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(told, over, return_exceptions=True)


def _worth_waiting(error: InsufficientResourcesError | GroupStateError, ask: Ask) -> bool:
    """A group that is somebody's may be free once; what could never be had will not be."""
    return bool(ask.constraints.group) if isinstance(error, GroupStateError) else error.ever
