"""The leash that the local LIM holds: we may act until the deadline it last told us, and not a moment longer.

    connect ──► WhoLeads: mine? ──► Ready ──► Deadline, Deadline, Deadline …
                    │ no                          │ none in time, one in the past, or the socket stays closed
                    ▼                             ▼
                 end (1)                       end (0 if asked to, else 1)

A frozen LIM therefore does not leave a scheduler behind, and a frozen scheduler finds out before it acts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from lavalite import __version__
from lavalite.base.clock import Clock
from lavalite.base.errors import FencedError, LavaLiteError, RefusedError, UnreachableError
from lavalite.wire.connection import Connection, ConnectionLost
from lavalite.wire.frames import AskMembers, Bye, Deadline, EpochPair, Hello, Leader, Member, Members, Ready, WhoLeads

log = structlog.get_logger()

RECONNECT_SECONDS = 0.1
ASK_SECONDS = 1.0
ANSWER_SECONDS = 5.0


@dataclass(slots=True)
class Lead:
    """What the LIM said of its leadership."""

    epoch: EpochPair
    leader_key: str
    leader_create_revision: int


class Leadership:
    """Holds the connection to the local LIM. `check()` before anything that acts; `lost` is set when it is over."""

    def __init__(self, socket_path: Path, cluster: str, node: str, clock: Clock) -> None:
        self._address = f"unix:{socket_path}"
        self._hello = Hello(software_version=__version__, cluster=cluster, node=node, role="local")
        self._clock = clock
        self._deadline = 0.0
        self._connection: Connection | None = None
        self._ready: Ready | None = None
        self._lead: Lead | None = None
        self.members: dict[str, Member] = {}
        self.members_changed = asyncio.Event()
        self.lost = asyncio.Event()
        self.reason = ""

    @property
    def lead(self) -> Lead:
        assert self._lead is not None, "take() comes first"
        return self._lead

    async def take(self) -> Lead:
        """Ask the LIM for the leadership that it holds. Raises RefusedError when this node does not lead."""
        connection, _ = await Connection.open(self._address, self._hello)
        await connection.send(WhoLeads())
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await connection.receive()
        except TimeoutError:
            await connection.close()
            raise UnreachableError(f"the LIM at {self._address} does not answer", hint="See its log.") from None
        if not isinstance(answer, Leader) or not answer.mine or answer.epoch is None or answer.deadline is None:
            await connection.close()
            raise RefusedError(
                "the LIM of this node does not lead, so there is nothing to schedule",
                code="not_leader",
                hint="mbatchd is started by the leading LIM, not by hand.",
            )
        self._connection = connection
        self._deadline = answer.deadline
        self._lead = Lead(answer.epoch, answer.leader_key, answer.leader_create_revision)
        return self._lead

    def holds(self) -> bool:
        """Whether we may act now."""
        return not self.lost.is_set() and self._clock.boottime() < self._deadline

    def check(self) -> None:
        """Raise FencedError, and give up for good, when the deadline has passed."""
        if not self.holds():
            self._give_up("the leadership was not renewed in time")
            raise FencedError(f"mbatchd acts no more: {self.reason}")

    async def announce(self, mbatchd_address: str, api_url: str) -> None:
        """Tell the LIM that we serve. Said again after each reconnect."""
        self._ready = Ready(
            epoch=self.lead.epoch,
            version=__version__,
            pid=os.getpid(),
            mbatchd_address=mbatchd_address,
            api_url=api_url,
        )
        if self._connection is not None:
            with contextlib.suppress(ConnectionLost):  # whoever follows finds out, and connects again
                await self._connection.send(self._ready)

    async def close(self) -> None:
        """Let go of the LIM. Ends nothing by itself."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def run(self) -> None:
        """Follow the LIM until the leadership is over."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(t) for t in (self._follow(), self._watch_deadline(), self._ask())]
            await self.lost.wait()
            for task in tasks:
                task.cancel()

    async def _watch_deadline(self) -> None:
        while not self.lost.is_set():
            left = self._deadline - self._clock.boottime()
            if left <= 0:
                self._give_up("the LIM did not renew the deadline")
                return
            await self._clock.sleep(min(left, 0.5))

    async def _ask(self) -> None:
        """Until we serve, the LIM tells no deadline by itself, and a large state takes long to load: so ask."""
        while True:
            await self._clock.sleep(ASK_SECONDS)
            if self._connection is not None:
                try:
                    await self._connection.send(AskMembers() if self._ready else WhoLeads())
                except LavaLiteError:
                    continue

    async def _follow(self) -> None:
        while not self.lost.is_set():
            if self._connection is None:
                await self._reconnect()
                continue
            try:
                frame = await self._connection.receive()
            except LavaLiteError as error:
                log.warning("the LIM's socket was closed", reason=str(error))
                await self._connection.close()
                self._connection = None
                continue
            if isinstance(frame, Deadline):
                self._renew(frame)
            elif isinstance(frame, Leader):
                self._hear_leader(frame)
            elif isinstance(frame, Members):
                self.members = {member.node: member for member in frame.members}
                self.members_changed.set()
            elif isinstance(frame, Bye):
                self._give_up(frame.reason or "the LIM said good-bye")

    def _hear_leader(self, frame: Leader) -> None:
        if not frame.mine or frame.epoch != self.lead.epoch:
            self._give_up("the LIM leads no more, or under another epoch")
        elif frame.deadline is not None:
            self._deadline = max(self._deadline, frame.deadline)

    def _renew(self, frame: Deadline) -> None:
        if frame.epoch != self.lead.epoch:
            self._give_up(f"the LIM leads under epoch {frame.epoch}, we serve {self.lead.epoch}")
        elif frame.deadline <= self._clock.boottime():
            self._give_up("the LIM stepped down")
        else:
            self._deadline = max(self._deadline, frame.deadline)

    async def _reconnect(self) -> None:
        """A LIM that was restarted may lead again under the same lease, or not; the deadline decides meanwhile."""
        await self._clock.sleep(RECONNECT_SECONDS)
        try:
            connection, _ = await Connection.open(self._address, self._hello)
            if self._ready is not None:
                connection.post(self._ready)
            self._connection = connection
        except LavaLiteError as error:
            log.debug("the LIM does not answer", reason=str(error))

    def _give_up(self, reason: str) -> None:
        if not self.lost.is_set():
            self.reason = reason
            log.warning("leadership is over", reason=reason)
            self.lost.set()
