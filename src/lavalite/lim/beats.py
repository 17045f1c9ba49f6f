"""The member's side of one conversation with the leading LIM: a token, then beats; and tokens for others here."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError, RefusedError, UnreachableError
from lavalite.lim.discovery import OwnOffer
from lavalite.lim.identity import Identity
from lavalite.lim.membership import Pulse
from lavalite.lim.view import View
from lavalite.wire.connection import Connection
from lavalite.wire.frames import BeatAck, Exchange, Granted, Hello, Leader, Refused
from lavalite.wire.tokens import AUDIENCE_LIM, MAX_TOKEN_SECONDS

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 3.0
RENEW_TOKEN_SECONDS = MAX_TOKEN_SECONDS / 2


class LeaderLine:
    """Opens connections to whichever LIM leads."""

    def __init__(self, view: View, identity: Identity, hello: Hello, ssl_context: ssl.SSLContext | None) -> None:
        self._view, self._identity = view, identity
        self._hello, self._ssl_context = hello, ssl_context

    def leader(self) -> Leader:
        return self._view.leader()

    def doubt(self) -> None:
        self._view.doubt()

    async def open(self) -> Connection:
        """Raises UnreachableError, RefusedError."""
        address = self._view.leader().lim_address
        if not address:
            raise UnreachableError("nobody leads at the moment", code="no_leader", hint="Try again in a moment.")
        connection, _ = await Connection.open(
            address, self._hello, timeout_seconds=CONNECT_SECONDS, ssl_context=self._ssl_context
        )
        return connection

    async def token(self, connection: Connection, audience: str, subject: str = "") -> Granted:
        """Exchange this node's word for a token; nothing else is under way on `connection`. Raises LavaLiteError."""
        await connection.send(Exchange(assertion=self._identity.assertion(audience, subject), audience=audience))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                answer = await connection.receive()
        except TimeoutError:
            raise UnreachableError("the leading LIM gave no answer in time") from None
        if isinstance(answer, Granted):
            return answer
        if isinstance(answer, Refused):
            raise RefusedError(answer.message, code=answer.code)
        raise RefusedError("the leading LIM gave no token")

    async def fetch_token(self, audience: str, subject: str = "") -> Granted:
        """A token over a connection of its own. Raises LavaLiteError."""
        connection = await self.open()
        try:
            return await self.token(connection, audience, subject)
        finally:
            await connection.close()


class Beater:
    """Beats to whoever leads, this LIM itself included."""

    def __init__(self, line: LeaderLine, offer: OwnOffer, beat_seconds: float, clock: Clock) -> None:
        self._line, self._offer, self._clock = line, offer, clock
        self._beat_seconds = beat_seconds
        self.pulse = Pulse(beat_seconds)
        self._known_version = 0

    async def run(self) -> None:
        complaint = ""
        while True:
            try:
                if self._line.leader().lim_address:
                    await self._converse()
            except LavaLiteError as error:
                self.pulse.disconnected()
                self.pulse.unsent()
                if str(error) != complaint:
                    log.info("no beats", reason=str(error))
                complaint = str(error)
                self._line.doubt()
            await self._clock.sleep(self._beat_seconds)

    async def _converse(self) -> None:
        """Beat until the leader changes or the connection ends."""
        epoch = self._line.leader().epoch
        connection = await self._line.open()
        listening = None
        try:
            await self._line.token(connection, AUDIENCE_LIM)
            granted_at = self._clock.boottime()
            self._known_version = 0
            listening = asyncio.create_task(self._listen(connection))
            while self._line.leader().epoch == epoch:
                if self._clock.boottime() - granted_at > RENEW_TOKEN_SECONDS:
                    return  # a new conversation, with a new token
                offer = self._offer.current
                await connection.send(self.pulse.beat(self._clock.boottime(), offer, self._known_version))
                self._known_version = offer.version
                await asyncio.wait({listening}, timeout=self._beat_seconds)
                if listening.done():
                    listening.result()
                    return
        finally:
            if listening is not None:
                listening.cancel()
                with contextlib.suppress(asyncio.CancelledError, LavaLiteError):
                    await listening
            self.pulse.disconnected()
            await connection.close()

    async def _listen(self, connection: Connection) -> None:
        while True:
            match await connection.receive():
                case BeatAck() as ack:
                    self.pulse.acked(ack, self._clock.boottime())
                    if ack.want_offer:
                        self._known_version = 0
                case Refused(code=code, message=message):
                    raise RefusedError(message, code=code)
                case other:
                    raise RefusedError(f"the leading LIM ended the beats ({other.type})", code="no_beats")
