"""Who asks: by the credentials of a Unix socket, or by a bearer token that a LIM gave out.

Everyone who is somebody may read and submit, and may end what is theirs. Root and the user that mbatchd runs as
are operators: they may change the definition and end what is others'.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from lavalite.base.clock import Clock
from lavalite.base.errors import RefusedError
from lavalite.wire.frames import EpochPair
from lavalite.wire.tokens import AUDIENCE_API, Person, TrustBundle, verify

MAX_NAMES = 10_000
IDLE_SECONDS = 30.0
"""A connection on which no request has begun for so long is closed."""

_CREDENTIALS = struct.Struct("3i")


class NotAuthenticated(RefusedError):
    default_code = "not_authenticated"


class NotAllowed(RefusedError):
    default_code = "not_allowed"


@dataclass(slots=True, frozen=True)
class Identity:
    """A person, as the system knows them."""

    user: str
    uid: int
    gid: int
    operator: bool

    def demand_operator(self, what: str) -> None:
        if not self.operator:
            raise NotAllowed(
                f"{self.user} may not {what}", hint="Ask as root or as the user that the scheduler runs as."
            )

    def demand_owner(self, owner: str, what: str) -> None:
        if not self.operator and owner != self.user:
            raise NotAllowed(f"{self.user} may not {what}: it belongs to {owner}")


class PeerAwareProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which also tells who is on the other end of a Unix socket.

    The kernel's answer is put where an ASGI application finds the client: ("unix:UID:GID", PID). A TCP client's
    address never has that form.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # uvicorn only counts the idle time after a first answer; the first byte of a request ends this.
        self.timeout_keep_alive_task = self.loop.call_later(IDLE_SECONDS, self.timeout_keep_alive_handler)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, gid = _CREDENTIALS.unpack(raw)
            self.client = (f"unix:{uid}:{gid}", pid)


class Doorman:
    """Says who a request comes from."""

    def __init__(self, bundle: TrustBundle, epoch: EpochPair, clock: Clock) -> None:
        self._bundle = bundle
        self._epoch = epoch
        self._clock = clock
        self._names: dict[int, str] = {}

    async def identify(self, request: Request) -> Identity:
        """Raises NotAuthenticated."""
        client = request.client
        if client is not None and client.host.startswith("unix:"):
            _, uid, gid = client.host.split(":")
            return self._identity(await self._user_name(int(uid)), int(uid), int(gid))
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise NotAuthenticated(
                "this request says not who it comes from",
                hint="Send a bearer token (LAVALITE_TOKEN), or use the Unix socket on a node.",
            )
        try:
            claims = verify(
                token.strip(),
                self._bundle,
                subject=None,
                audience=AUDIENCE_API,
                epoch=self._epoch,
                now=self._clock.now(),
            )
        except RefusedError as error:
            raise NotAuthenticated(error.fault.message, hint="Ask for a new token.") from error
        person = Person.parse(claims.subject)
        if person is None:
            raise NotAuthenticated("this token was not made for a person")
        return self._identity(person.name, person.uid, person.gid)

    async def _user_name(self, uid: int) -> str:
        """Looked up once, and in a thread: a directory service may take its time, and the scheduler has none."""
        if uid not in self._names:
            if len(self._names) >= MAX_NAMES:
                self._names.clear()
            self._names[uid] = await asyncio.to_thread(_user_name, uid)
        return self._names[uid]

    @staticmethod
    def _identity(user: str, uid: int, gid: int) -> Identity:
        return Identity(user, uid, gid, operator=uid in (0, os.geteuid()))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
