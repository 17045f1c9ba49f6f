"""LIM's Unix socket: what the daemons and people of this machine ask it.

anybody                 WhoLeads, AskToken("api")            the token speaks of who the kernel says asks
root and LIM's own uid  AskToken("mbatchd"), AskOffer, AskMembers, Resign
                        Ready (mbatchd), and from then on LIM sends it each new Deadline
"""

from __future__ import annotations

import os

import structlog

from lavalite import __version__
from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError, RefusedError
from lavalite.lim.beats import LeaderLine
from lavalite.lim.discovery import OwnOffer
from lavalite.lim.election import Candidate
from lavalite.lim.identity import Identity
from lavalite.lim.listener import granted_for, leading_epoch, refuse_stranger
from lavalite.lim.membership import Roster
from lavalite.lim.steps import Epoch
from lavalite.lim.view import CandidateView, View
from lavalite.wire.connection import Connection, ConnectionLost
from lavalite.wire.frames import (
    AnyFrame,
    AskMembers,
    AskOffer,
    AskToken,
    Bye,
    Deadline,
    Granted,
    Hello,
    Members,
    Offer,
    Ready,
    Refused,
    Resign,
    Welcome,
    WhoLeads,
)
from lavalite.wire.tokens import AUDIENCE_API, AUDIENCE_MBATCHD

log = structlog.get_logger(__name__)


class Schedulers:
    """The connections on which an mbatchd of this node has said that it serves: one, mostly."""

    def __init__(self) -> None:
        self._connections: dict[Connection, Epoch] = {}

    def add(self, connection: Connection, epoch: Epoch) -> None:
        self._connections[connection] = epoch

    def remove(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    def tell(self, epoch: Epoch, deadline: float) -> None:
        """Send the new deadline to all: one that serves another epoch learns that it is over."""
        for connection in list(self._connections):
            try:
                connection.post(Deadline(epoch=epoch, deadline=deadline))
            except ConnectionLost:
                self.remove(connection)


class LocalDesk:
    """`greet` and `serve` of the frame server on the Unix socket."""

    def __init__(
        self,
        cluster: str,
        node: str,
        *,
        view: View,
        line: LeaderLine,
        identity: Identity,
        offer: OwnOffer,
        roster: Roster,
        schedulers: Schedulers,
        candidate: Candidate | None,
        clock: Clock,
    ) -> None:
        self._cluster, self._node = cluster, node
        self._view, self._line, self._identity = view, line, identity
        self._offer, self._roster, self._clock = offer, roster, clock
        self._schedulers, self._candidate = schedulers, candidate

    async def greet(self, hello: Hello, _connection: Connection) -> Welcome | Refused:
        # Who types a command on this machine need not know what the cluster is called.
        if refusal := refuse_stranger(hello, hello.cluster and self._cluster, "local"):
            return refusal
        return Welcome(software_version=__version__, node=self._node, epoch=self._view.leader().epoch)

    async def serve(self, connection: Connection) -> None:
        """One answer to each question. A refusal answers one question and leaves the connection open."""
        try:
            while not isinstance(frame := await connection.receive(), Bye):
                try:
                    answer = await self._answer(frame, connection)
                except ConnectionLost:
                    answer = Refused(code="no_leader", message="The leading LIM went away. Try again in a moment.")
                except LavaLiteError as error:
                    answer = Refused(code=error.code, message=str(error))
                await connection.send(answer)
        finally:
            self._schedulers.remove(connection)

    async def _answer(self, frame: AnyFrame, connection: Connection) -> AnyFrame:
        match frame:
            case WhoLeads():
                return self._view.leader()
            case AskToken(audience=audience) if audience == AUDIENCE_API:
                return await self._token(audience, self._person(connection))
        self._demand_trusted(frame, connection)
        match frame:
            case AskToken(audience=audience) if audience == AUDIENCE_MBATCHD:
                return await self._token(audience, "")
            case AskOffer():
                return Offer(offer=self._offer.current)
            case AskMembers():
                epoch = leading_epoch(self._view.leader())
                return Members(members=self._roster.members(epoch, self._clock.boottime()))
            case Ready():
                return self._ready(frame, connection)
            case Resign():
                return self._resign()
        raise RefusedError(f"{frame.type!r} is not answered here", code="unexpected_frame")

    async def _token(self, audience: str, subject: str) -> Granted:
        own = granted_for(self._identity, self._view.leader(), audience, subject)
        return own or await self._line.fetch_token(audience, subject)

    def _person(self, connection: Connection) -> str:
        uid, gid = connection.peer_uid, connection.peer_gid
        if uid is None or gid is None:
            raise RefusedError("the kernel does not say who asks", code="unknown_user")
        return self._identity.person(uid, gid)

    def _demand_trusted(self, frame: AnyFrame, connection: Connection) -> None:
        if connection.peer_uid not in (0, os.geteuid()):
            hint = "Ask as root, or as the user that LIM runs as."
            raise RefusedError(f"{frame.type!r} is not answered to uid {connection.peer_uid}", hint=hint)

    def _ready(self, ready: Ready, connection: Connection) -> Deadline:
        leader = self._view.leader()
        epoch = leading_epoch(leader)
        if ready.epoch != epoch or leader.deadline is None:
            raise RefusedError(f"This LIM leads under epoch {epoch}, not {ready.epoch}", code="wrong_epoch")
        log.info("mbatchd is ready", pid=ready.pid, version=ready.version, address=ready.mbatchd_address)
        if isinstance(self._view, CandidateView):
            self._view.ready = ready
        self._schedulers.add(connection, epoch)
        return Deadline(epoch=epoch, deadline=leader.deadline)

    def _resign(self) -> Bye:
        leading_epoch(self._view.leader())
        if self._candidate is not None:
            self._candidate.resign()
        return Bye(reason="handing over")
