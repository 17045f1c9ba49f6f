"""Serial consoles of virtual machines for people far from their anchors, through the anchors' sessions.

    open ──► the anchor's agent connects ──► what the machine says, in pieces, as long as somebody reads
    type ──► the same agent, by the key that open gave

Output of attempts is streamed in the same way (mbatchd.output): who is too slow to read is cut off.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from lavalite.base.errors import BusyError, ConflictError, InputError, UnknownNameError
from lavalite.mbatchd.identity import Identity
from lavalite.mbatchd.service import Service
from lavalite.mbatchd.sessions import AgentSessions
from lavalite.model.host import VM, HostState, LogicalHost
from lavalite.wire.frames import AnyFrame, CancelRead, Console, Typed

OPEN_SECONDS = 10.0
MAX_WAITING_BYTES = 1024 * 1024
"""While an agent has so much yet to take, nothing is typed: its session would end by that."""
KNOWS_CONSOLE = "console"
"""What an agent says in its Register that it knows."""
HAS_MACHINE = (HostState.COMPOSED, HostState.RESIZING, HostState.DRAINING)

log = structlog.get_logger(__name__)


@dataclass(slots=True, frozen=True)
class _Open:
    host: str
    user: str
    node: str
    number: int


class ConsoleDesk:
    """Who may is asked before (routes.hosts)."""

    def __init__(self, service: Service, sessions: AgentSessions) -> None:
        self._service, self._sessions = service, sessions
        self._open: dict[str, _Open] = {}

    async def open(self, name: str, who: Identity) -> tuple[str, AsyncGenerator[bytes, None]]:
        """The key to type with, and what the machine says from now on. Raises LavaLiteError where there is none."""
        host = self._host(name)
        key = secrets.token_urlsafe(16)
        pieces = self._pieces(host, key, who.user)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await anext(pieces, b"")  # empty: the agent has connected
        except TimeoutError:
            message = f"{host.anchor}, the anchor of {name}, does not answer"
            raise ConflictError(message, code="anchor_silent", hint="Try again in a moment.") from None
        log.info("a console is opened", host=name, user=who.user, anchor=host.anchor)
        return key, pieces

    def type(self, name: str, key: str, who: Identity, data_base64: str, *, leave: bool) -> None:
        """Raises ConflictError once the console is closed, BusyError while the anchor is behind."""
        found = self._open.get(key)
        if found is None or (found.host, found.user) != (name, who.user):
            raise ConflictError(f"this console of {name} is closed", code="console_closed", hint="Open it again.")
        try:
            base64.b64decode(data_base64, validate=True)
        except (binascii.Error, ValueError):
            raise InputError("what is typed comes in base64", field="data_base64") from None
        if data_base64 and self._sessions.waiting_bytes(found.node) > MAX_WAITING_BYTES:
            raise BusyError(f"{found.node}, the anchor of {name}, is behind", hint="Try again in a moment.")
        epoch = self._service.epoch
        if data_base64:
            self._sessions.post(found.node, Typed(epoch=epoch, stream_id=found.number, data_base64=data_base64))
        if leave:
            self._sessions.post(found.node, CancelRead(epoch=epoch, stream_id=found.number))
            self._sessions.output.finish(found.number)

    async def _pieces(self, host: LogicalHost, key: str, user: str) -> AsyncGenerator[bytes, None]:
        def ask(number: int) -> AnyFrame:
            self._open[key] = _Open(host.name, user, host.anchor, number)
            return Console(epoch=self._service.epoch, stream_id=number, host=host.name)

        what, epoch = f"the console of {host.name}", self._service.epoch
        try:
            async with aclosing(self._sessions.output.stream(host.anchor, epoch, ask, what, reader=user)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._open.pop(key, None)

    def _host(self, name: str) -> LogicalHost:
        """One whose machine can be reached now."""
        host = self._service.state.hosts.get(name)
        if host is None:
            raise UnknownNameError(f"there is no host {name}", field="host", hint="See lavalite hosts.")
        if host.executor != VM:
            hint = "Ansible enters it through its anchor, and jobs run on it: lavalite submit --host."
            raise ConflictError(f"{name} is no virtual machine, and has no console", code="no_console", hint=hint)
        if host.state not in HAS_MACHINE:
            hint = host.reason or "See lavalite hosts."
            raise ConflictError(f"{name} is {host.state.value}: no machine runs", code="not_composed", hint=hint)
        if not self._sessions.connected(host.anchor):
            message = f"{host.anchor}, the anchor of {name}, is not connected"
            raise ConflictError(message, code="anchor_silent", hint="Try again when it is back.")
        if KNOWS_CONSOLE not in self._sessions.knows.get(host.anchor, ()):
            message = f"{host.anchor}, the anchor of {name}, runs a release that has no consoles for afar"
            raise ConflictError(message, code="no_console", hint="Upgrade its sbatchd.")
        return host
