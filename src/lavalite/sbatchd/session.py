"""The conversation with the leader: find it through the local LIM, register, listen; begin anew when it breaks."""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from lavalite import __version__
from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError, RefusedError, UnreachableError
from lavalite.model.resources import NodeOffer
from lavalite.sbatchd.agent import Agent
from lavalite.sbatchd.events import FrameReceived, OfferChanged, SessionClosed, SessionOpened
from lavalite.wire.address import parse_address
from lavalite.wire.connection import Connection
from lavalite.wire.frames import (
    AnyFrame,
    AskOffer,
    AskToken,
    Bye,
    Frame,
    Granted,
    Hello,
    Leader,
    Offer,
    Refused,
    WhoLeads,
)

AUDIENCE = "mbatchd"
SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 10.0
LIM_ANSWER_SECONDS = 5.0
OFFER_SECONDS = 30.0

log = structlog.get_logger(__name__)


@dataclass(slots=True, frozen=True)
class Bearings:
    """What the local LIM said: who leads, with which token we may come, and what this node offers."""

    leader: Leader
    token: str
    offer: NodeOffer


class LocalLim:
    """Questions to the LIM of this node, each on a short connection."""

    def __init__(self, socket_path: Path, cluster: str, node: str) -> None:
        self._address = f"unix:{socket_path}"
        self._hello = Hello(software_version=__version__, cluster=cluster, node=node, role="local")

    async def bearings(self) -> Bearings:
        """Raises UnreachableError, RefusedError, ConnectionLost, FrameError."""
        connection, _ = await Connection.open(self._address, self._hello)
        try:
            leader = await _ask(connection, WhoLeads(), Leader)
            if not leader.mbatchd_address or leader.epoch is None:
                raise UnreachableError("nobody leads as yet", code="no_leader")
            granted = await _ask(connection, AskToken(audience=AUDIENCE), Granted)
            offer = await _ask(connection, AskOffer(), Offer)
            return Bearings(leader, granted.token, offer.offer)
        finally:
            await connection.close()

    async def offer(self) -> NodeOffer:
        """Raises as `bearings` does."""
        connection, _ = await Connection.open(self._address, self._hello)
        try:
            return (await _ask(connection, AskOffer(), Offer)).offer
        finally:
            await connection.close()


FrameT = TypeVar("FrameT", bound=Frame)


async def _ask(connection: Connection, question: AnyFrame, answer: type[FrameT]) -> FrameT:
    await connection.send(question)
    try:
        async with asyncio.timeout(LIM_ANSWER_SECONDS):
            frame = await connection.receive()
    except TimeoutError:
        raise UnreachableError("the local LIM does not answer", hint="Look at its log.") from None
    if isinstance(frame, Refused):
        raise RefusedError(frame.message, code=frame.code)
    if not isinstance(frame, answer):
        raise RefusedError(f"the local LIM answered a {question.type} with a {frame.type}", code="unexpected_frame")
    return frame


class Session:
    """Keeps the agent in conversation with whoever leads."""

    def __init__(
        self,
        agent: Agent,
        lim: LocalLim,
        clock: Clock,
        *,
        cluster: str,
        node: str,
        boot_id: str,
        ssl_context: ssl.SSLContext | None = None,
        insecure: bool = False,
        fabric_address: str = "",
        at_address: Callable[[str], None] = lambda address: None,
    ) -> None:
        """`fabric_address`: where other nodes reach this one, if not where the session comes from. `at_address` is
        told of it."""
        self._fabric_address, self._at_address = fabric_address, at_address
        self._agent, self._lim, self._clock = agent, lim, clock
        self._cluster, self._node, self._boot_id = cluster, node, boot_id
        self._ssl_context, self._insecure = ssl_context, insecure
        self._numbers = itertools.count(1)
        self._random = random.Random()  # noqa: S311 - for jitter

    async def run(self) -> None:
        """Until cancelled."""
        await self._agent.ready.wait()
        pause, said = SHORTEST_PAUSE_SECONDS, ""
        while True:
            began = self._clock.boottime()
            try:
                await self._converse()
                why = "the leader closed the session"
            except LavaLiteError as error:
                why = str(error)
            if why != said:
                log.warning("no session", reason=why)
            said = why
            if self._clock.boottime() - began > LONGEST_PAUSE_SECONDS:
                pause = SHORTEST_PAUSE_SECONDS  # it was a good one
            # Jitter over the whole pause: a thousand agents that lose one leader do not come back together.
            await self._clock.sleep(pause * self._random.uniform(0.1, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _converse(self) -> None:
        """One session, from the question who leads to the end of the connection."""
        bearings = await self._lim.bearings()
        known = self._agent.core.highest_epoch
        if known and bearings.leader.epoch and bearings.leader.epoch < known:
            raise RefusedError(
                f"LIM names a leader of epoch {bearings.leader.epoch}, and {known} is known", code="stale"
            )
        hello = Hello(
            software_version=__version__,
            cluster=self._cluster,
            node=self._node,
            role="agent",
            journal_id=self._agent.core.journal_id,
            boot_id=self._boot_id,
            token=bearings.token,
        )
        address = bearings.leader.mbatchd_address
        if not (self._ssl_context or self._insecure or parse_address(address).local):
            raise RefusedError(
                f"the leader is at {address}, and there is no TLS",
                code="insecure",
                hint="Configure tls, or set insecure: true if the network itself is trusted.",
            )
        connection, welcome = await Connection.open(address, hello, ssl_context=self._ssl_context)
        number = next(self._numbers)
        log.info("session", leader=welcome.node, address=address, epoch=welcome.epoch)
        fabric_address = self._fabric_address or connection.local_address
        self._at_address(fabric_address)
        self._agent.attach(connection)
        self._agent.tell(SessionOpened(number, welcome.epoch, self._boot_id, bearings.offer, fabric_address))
        refresh = asyncio.create_task(self._refresh_offer())
        try:
            await self._listen(number, connection)
        finally:
            refresh.cancel()
            self._agent.tell(SessionClosed(number))
            await self._agent.detach()
            await connection.close()

    async def _listen(self, number: int, connection: Connection) -> None:
        while True:
            frame = await connection.receive()
            if isinstance(frame, Bye):
                return
            if isinstance(frame, Refused):
                raise RefusedError(frame.message, code=frame.code)
            self._agent.tell(FrameReceived(number, frame))
            await self._agent.keep_up()

    async def _refresh_offer(self) -> None:
        while True:
            await self._clock.sleep(OFFER_SECONDS)
            try:
                self._agent.tell(OfferChanged(await self._lim.offer()))
            except LavaLiteError as error:
                log.debug("no fresh offer", reason=str(error))
