"""What LIM answers over TCP: who leads (anybody), a token for an assertion, and beats with a token.

WhoLeads ──► Leader          any LIM, any peer
Exchange ──► Granted         the leading LIM, a peer whose node the bundle trusts; from then on this connection
Beat ──────► BeatAck         belongs to that node, as long as the token holds
"""

from __future__ import annotations

import asyncio

from lavalite import __version__
from lavalite.base.clock import Clock
from lavalite.base.errors import RefusedError
from lavalite.lim.identity import Identity
from lavalite.lim.membership import Roster
from lavalite.lim.view import View
from lavalite.wire.connection import Connection
from lavalite.wire.frames import (
    Beat,
    BeatAck,
    Bye,
    EpochPair,
    Exchange,
    Granted,
    Hello,
    Leader,
    Refused,
    Welcome,
    WhoLeads,
)
from lavalite.wire.tokens import AUDIENCE_LIM

IDLE_SECONDS = 60.0


class Listener:
    """`greet` and `serve` of the frame server on LIM's port."""

    def __init__(self, cluster: str, node: str, view: View, identity: Identity, roster: Roster, clock: Clock) -> None:
        self._cluster, self._node = cluster, node
        self._view, self._identity, self._roster, self._clock = view, identity, roster, clock

    async def greet(self, hello: Hello, _connection: Connection) -> Welcome | Refused:
        if refusal := refuse_stranger(hello, self._cluster, "lim"):
            return refusal
        return Welcome(software_version=__version__, node=self._node, epoch=self._view.leader().epoch)

    async def serve(self, connection: Connection) -> None:
        """Answer until the peer goes, is silent for a minute, or says what it may not."""
        token = connection.hello.token
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    frame = await connection.receive()
            except TimeoutError:
                return await connection.close("nothing was asked for a minute")
            match frame:
                case WhoLeads():
                    await connection.send(public(self._view.leader()))
                case Exchange():
                    granted = self._identity.exchange(frame.assertion, frame.audience, self._epoch())
                    if frame.audience == AUDIENCE_LIM:
                        token = granted.token
                    await connection.send(granted)
                case Beat():
                    await connection.send(self._hear(connection.hello, token, frame))
                case Bye():
                    return
                case other:
                    raise RefusedError(f"{other.type!r} is not answered here", code="unexpected_frame")

    def _hear(self, hello: Hello, token: str, beat: Beat) -> BeatAck:
        epoch = self._epoch()
        claims = self._identity.claims(token, AUDIENCE_LIM, epoch)
        if claims.subject != hello.node:
            raise RefusedError(f"this token is not {hello.node}'s", code="wrong_subject")
        return self._roster.hear(claims.subject, hello.software_version, beat, epoch, self._clock.boottime())

    def _epoch(self) -> EpochPair:
        """Our own epoch. Raises RefusedError where this LIM does not lead at this moment."""
        return leading_epoch(self._view.leader())


def public(leader: Leader) -> Leader:
    """What other machines may hear: a deadline on our clock would mean nothing to them."""
    return leader.model_copy(update={"deadline": None})


def leading_epoch(leader: Leader) -> EpochPair:
    """Raises RefusedError unless the answering LIM itself leads."""
    if not leader.mine or leader.epoch is None:
        hint = f"{leader.node} does." if leader.node else "Nobody is known to lead."
        raise RefusedError("This LIM does not lead", code="not_leader", hint=hint)
    return leader.epoch


def refuse_stranger(hello: Hello, cluster: str, role: str) -> Refused | None:
    # A person on this machine need not know what the cluster is called; a daemon must.
    if hello.cluster != cluster and (hello.cluster or role != "local"):
        return Refused(code="wrong_cluster", message=f"This is cluster {cluster}, not {hello.cluster[:60]!r}.")
    if hello.role != role:
        return Refused(code="wrong_role", message=f"The role here is {role!r}, not {hello.role!r}.")
    return None


def granted_for(identity: Identity, leader: Leader, audience: str, subject: str) -> Granted | None:
    """A token without asking anybody, where this LIM leads; None where another does. Raises RefusedError."""
    if not leader.mine or leader.epoch is None:
        return None
    return identity.exchange(identity.assertion(audience, subject), audience, leader.epoch)
