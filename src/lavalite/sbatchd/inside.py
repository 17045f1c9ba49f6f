"""The agent's Unix socket, for what runs inside the logical hosts of this node: it may ask for more, or give back.

    application ── HostAsk ──► who is it? ── HostAsk ──► leader
                ◄─ HostAnswer ───────────── HostAnswer ◄─┘

Who asks is known by the credentials that the kernel gives: a user speaks for his own attempts that run here, root for
every host that is anchored here. What may be had the leader decides.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from lavalite import __version__
from lavalite.base.errors import LavaLiteError, RefusedError, UnreachableError
from lavalite.sbatchd.entry import Entry
from lavalite.wire.connection import Connection
from lavalite.wire.frames import AnyFrame, Bye, Hello, HostAnswer, HostAsk, Refused, Welcome

ANSWER_SECONDS = 90.0
SOCKET_NAME = "inside.sock"
"""In the agent's state folder, which everybody may pass through."""
MOST_ASKED = 100
"""At a time. Who opens more connections waits for nobody else's answer."""
Tell = Callable[[AnyFrame], bool]
"""To the leader; False where there is no session."""


class InsideDesk:
    """`greet` and `serve` of the frame server on the socket; `answered` takes what the leader says."""

    def __init__(self, node: str, find: Callable[[str], Entry | None], tell: Tell, own_uid: int) -> None:
        """`find`: an attempt of the journal by its id."""
        self._node, self._find, self._tell, self._own_uid = node, find, tell, own_uid
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[HostAnswer]] = {}

    async def greet(self, hello: Hello, _connection: Connection) -> Welcome | Refused:
        if hello.role != "local":
            return Refused(code="wrong_role", message="this socket is for programs of this machine")
        return Welcome(software_version=__version__, node=self._node)

    async def serve(self, connection: Connection) -> None:
        while not isinstance(frame := await connection.receive(), Bye):
            try:
                if not isinstance(frame, HostAsk):
                    raise RefusedError(f"{frame.type!r} is not answered here", code="unexpected_frame")
                answer: AnyFrame = await self._ask(frame, connection.peer_uid)
            except LavaLiteError as error:
                answer = Refused(code=error.code, message=str(error))
            await connection.send(answer)

    def answered(self, answer: HostAnswer) -> None:
        future = self._waiting.get(answer.seq)
        if future is not None and not future.done():
            future.set_result(answer)

    async def _ask(self, ask: HostAsk, uid: int | None) -> HostAnswer:
        self._demand_rights(ask, uid)
        if len(self._waiting) >= MOST_ASKED:
            raise RefusedError("too many ask at once", code="too_many", hint="Ask again in a moment.")
        number = next(self._numbers)
        future: asyncio.Future[HostAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            if not self._tell(ask.model_copy(update={"seq": number})):
                raise UnreachableError("nobody leads as yet", code="no_leader", hint="Ask again in a moment.")
            async with asyncio.timeout(ANSWER_SECONDS):
                return await future
        except TimeoutError:
            message = f"no answer came within {ANSWER_SECONDS:g} s: the leader may have changed"
            raise UnreachableError(message, code="no_answer", hint="Look how much it has, and ask again.") from None
        finally:
            del self._waiting[number]

    def _demand_rights(self, ask: HostAsk, uid: int | None) -> None:
        """Raises RefusedError."""
        if ask.attempt:
            entry = self._find(ask.attempt)
            owner = self._own_uid if entry is not None and entry.uid < 0 else entry.uid if entry is not None else None
            # Nobody is told which attempts of others there are.
            if entry is None or entry.final or uid is None or uid not in (0, owner):
                raise RefusedError("this is no attempt of yours that runs here", code="not_yours")
        elif uid != 0:
            hint = "Ask from inside a job, or as root."
            raise RefusedError("who asks is in no job", code="not_inside", hint=hint)
        elif not ask.host:
            raise RefusedError("no host is named", code="no_host")
