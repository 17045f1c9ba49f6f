"""The shell around control: events in, actions carried out in order.

    frame, API call, time ──► apply(event) ──► decide ──► Commit ─► committer ─► CommitConfirmed ─► apply …
                                                     ├──► Persist ─► committer ─► then: effects
                                                     └──► effects at once

One event is taken at a time, on the event loop, to its end: no lock is needed anywhere. `apply` gives back a future
that is done when everything that followed from the event is durable, for callers who must not answer sooner.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from lavalite.base.errors import FencedError
from lavalite.base.steady import SteadyTime
from lavalite.control import actions
from lavalite.control.decide import decide
from lavalite.control.events import CommitConfirmed, CommitUnwound, Event, MembersSeen, NodeRegistered, Tick
from lavalite.control.state import ClusterState
from lavalite.ledger.committer import Committer, Outcome
from lavalite.mbatchd.dispatch import frame_of
from lavalite.mbatchd.document import decode_document
from lavalite.wire.frames import AnyFrame, EpochPair, Member

TICK_SECONDS = 1.0

log = structlog.get_logger(__name__)

Post = Callable[..., bool]
Close = Callable[[str, str], None]


class Service:
    """Holds the state and carries out what control says. `failed` is set when it cannot go on."""

    def __init__(
        self, state: ClusterState, committer: Committer, time: SteadyTime, epoch: EpochPair, cluster: str
    ) -> None:
        self.state = state
        self.epoch = epoch
        self.cluster = cluster
        self.time = time
        self.failed = asyncio.Event()
        self.loop_lag_seconds = 0.0
        self.on_applied: list[Callable[[Event], None]] = []
        self._committer = committer
        self._post: Post = lambda node, *frames: False
        self._close: Close = lambda node, reason: None
        self._events = asyncio.Event()
        self._ending = False
        self._decoded: tuple[bytes, dict[str, Any]] = (b"", decode_document(b"", cluster))
        self._wake_at: float | None = None
        self._acks_of_before: dict[str, int] = {}
        """Node → how many registrations are not past what its earlier sessions told."""
        self._woken = asyncio.Event()

    def connect(self, post: Post, close: Close) -> None:
        """Say how frames reach the agents, and how a session is ended."""
        self._post, self._close = post, close

    @property
    def document(self) -> dict[str, Any]:
        """The definition as it is applied now. Not to be changed in place."""
        if self._decoded[0] != self.state.document:
            self._decoded = (self.state.document, decode_document(self.state.document, self.cluster))
        return self._decoded[1]

    async def next_event(self) -> None:
        """Wait until something happens. Raises FencedError when the scheduler is stopping."""
        if not self._ending:
            await self._events.wait()
        if self._ending:
            raise FencedError("the scheduler is stopping", hint="Ask again.")

    def end(self) -> None:
        """Let nobody wait any more for what is to happen."""
        self._ending = True
        self._events.set()

    def apply(self, event: Event) -> asyncio.Future[None]:
        """Take one event. The future is done when all that follows is durable; it raises FencedError."""
        if isinstance(event, NodeRegistered):
            self._forget_acks(event.node)
        try:
            carried = [self._carry(action) for action in decide(self.state, event, self.time.now())]
            for listener in self.on_applied:
                listener(event)
        except Exception:
            # The state may be half changed. Nothing is served from it; another scheduler loads from the store.
            log.exception("an event could not be taken; the scheduler ends", kind=type(event).__name__)
            self.failed.set()
            raise
        # Whoever waits now is woken; whoever waits from now on waits for the next one.
        self._events.set()
        self._events = asyncio.Event()
        return _all_of([written for written in carried if written is not None])

    async def obey(self, event: Event) -> None:
        """Take what a person asked for, and return when it is durable: also where it was asked before and nothing
        changes by it, but what the first one changed is still on its way to the store. Raises FencedError."""
        await self.apply(event)
        await self.settled()

    def settled(self) -> asyncio.Future[None]:
        """Done when everything that was decided up to now is durable. Raises FencedError."""
        return _all_of([self._committer.submit({})])

    async def run(self) -> None:
        """Let time pass: a Tick every second and at each Wake, until cancelled."""
        next_tick = self.time.now()
        while True:
            due = next_tick if self._wake_at is None else min(next_tick, self._wake_at)
            if (delay := due - self.time.now()) > 0:
                self._woken.clear()
                try:
                    async with asyncio.timeout(delay):
                        await self._woken.wait()
                    continue  # a new wake, perhaps an earlier one
                except TimeoutError:
                    self.loop_lag_seconds = max(0.0, self.time.now() - due)
            now = self.time.now()
            if self._wake_at is not None and self._wake_at <= now:
                self._wake_at = None  # control says the next one in answer to the Tick
            next_tick = now + TICK_SECONDS
            self.apply(Tick())

    def see_members(self, members: Iterable[Member]) -> None:
        """What the leading LIM says of the beats it hears."""
        alive = frozenset(m.node for m in members if m.alive)
        self.apply(MembersSeen(alive, frozenset(m.node for m in members if not m.alive)))

    # --- carrying out ---------------------------------------------------------------------------------------

    def _carry(self, action: actions.Action) -> asyncio.Future[Outcome] | None:
        if isinstance(action, actions.Commit):
            written = self._committer.submit(action.puts, action.deletes, retry=action.retry)
            written.add_done_callback(functools.partial(self._committed, action.batch_id))
            return written
        if isinstance(action, actions.Persist):
            written = self._committer.submit(action.puts, action.deletes)
            if action.then:
                written.add_done_callback(functools.partial(self._persisted, action.then))
            return written
        self._effect(action)
        return None

    def _committed(self, batch_id: int, written: asyncio.Future[Outcome]) -> None:
        if _succeeded(written):
            confirmed = written.result() is Outcome.CONFIRMED
            with contextlib.suppress(Exception):  # told by `failed`; there is nobody above to hear of it
                self.apply(CommitConfirmed(batch_id) if confirmed else CommitUnwound(batch_id))

    def _persisted(self, then: tuple[actions.Effect, ...], written: asyncio.Future[Outcome]) -> None:
        if _succeeded(written):
            for effect in then:
                self._effect(effect)

    def _effect(self, effect: actions.Effect) -> None:
        if isinstance(effect, actions.Wake):
            self._wake_at = effect.at if self._wake_at is None else min(self._wake_at, effect.at)
            self._woken.set()
            return
        if isinstance(effect, actions.Acknowledge) and effect.node in self._acks_of_before:
            return
        if isinstance(effect, actions.CloseSession):
            self._close(effect.node, effect.reason)
            return
        frames: list[AnyFrame] = frame_of(effect, self.epoch)
        self._post(effect.node, *frames)

    def _forget_acks(self, node: str) -> None:
        """A new session counts its reports anew: it must not hear that one of an earlier session is durable.

        All that those told was submitted before this barrier, and the committer is FIFO.
        """
        self._acks_of_before[node] = self._acks_of_before.get(node, 0) + 1
        self._committer.submit({}).add_done_callback(lambda _: self._past_barrier(node))

    def _past_barrier(self, node: str) -> None:
        self._acks_of_before[node] -= 1
        if not self._acks_of_before[node]:
            del self._acks_of_before[node]


def _succeeded(written: asyncio.Future[Outcome]) -> bool:
    return not written.cancelled() and written.exception() is None


def _all_of(futures: list[asyncio.Future[Outcome]]) -> asyncio.Future[None]:
    """Done when all are; fails with the first failure. Never left unretrieved: `fenced` tells of it too."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if not futures:
        done.set_result(None)
        return done
    left = len(futures)

    def settle(future: asyncio.Future[Outcome]) -> None:
        nonlocal left
        left -= 1
        if done.done():
            return
        if not _succeeded(future):
            done.set_exception(FencedError("the leadership ended before this was durable", hint="Ask again."))
            done.exception()
        elif left == 0:
            done.set_result(None)

    for future in futures:
        future.add_done_callback(settle)
    return done
