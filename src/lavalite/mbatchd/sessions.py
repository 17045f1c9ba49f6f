"""The agents' connections: one session a node, from Register to the end of the connection.

    Hello ─► token verified ─► Welcome ─► Register ─► Registered ─► beats, reports, output ◄─► dispatches, stops

Only nodes that the trust bundle has as candidates or workers may be agents, and only as long as it does. Registered,
which renews the node's fence, comes once control has taken the registration, and before all that follows from it.
A new session of a node ends the old one. What an agent sends becomes events for control; nothing is decided here.
Everything that acts (a dispatch, an acknowledged beat) checks first that we still lead.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from lavalite import __version__
from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError, RefusedError
from lavalite.control.events import (
    AttemptReported,
    Event,
    NodeBeat,
    NodeDisconnected,
    NodeRegistered,
    NodeReported,
    PartReported,
    PartsReported,
)
from lavalite.mbatchd.leadership import Leadership
from lavalite.mbatchd.output import OutputStreams
from lavalite.model.resources import NodeOffer
from lavalite.model.task import AttemptId
from lavalite.wire.connection import Connection
from lavalite.wire.frames import (
    MAX_REASON_CHARACTERS,
    AnyFrame,
    AttemptReport,
    Beat,
    BeatAck,
    Bye,
    Hello,
    HostAsk,
    HostsApplied,
    Output,
    PartsApplied,
    PartState,
    Refused,
    Register,
    Registered,
    Report,
    Welcome,
)
from lavalite.wire.tokens import AUDIENCE_MBATCHD, TrustBundle, verify

REGISTER_SECONDS = 10.0
MAX_OFFER_BYTES = 512 * 1024
"""A store takes records of a mebibyte and a half; a node of eight GPUs and 256 cores offers some 20 KiB."""
MAX_FRAMES_AT_ONCE = 4
"""Of dispatches: many would overrun what a connection lets wait, and their node would never hear of them."""
MAX_NAME_CHARACTERS = 128
"""Of a journal or a boot: both are stored, the journal's with each commitment."""

MAX_PART_CHARACTERS = 512

AGENT_ROLES = frozenset({"candidate", "worker"})

log = structlog.get_logger(__name__)


class EventSink(Protocol):
    """Whoever turns events into actions."""

    def apply(self, event: Event) -> object: ...


class AgentSessions:
    """Greets agents, keeps their sessions by node name, and turns their frames into events."""

    def __init__(
        self,
        cluster: str,
        node: str,
        leadership: Leadership,
        bundle: TrustBundle,
        clock: Clock,
        sink: EventSink,
        beat_seconds: float,
    ) -> None:
        self._cluster, self._node = cluster, node
        self._leadership, self._bundle, self._clock, self._sink = leadership, bundle, clock, sink
        self._beat_seconds = beat_seconds
        self.on_hosts_applied: Callable[[str, dict[str, int]], None] = lambda node, versions: None
        self.on_host_ask: Callable[[str, HostAsk], None] = lambda node, ask: None
        self._sessions: dict[str, Connection] = {}
        self._early: dict[str, list[tuple[AnyFrame, ...]] | None] = {}
        """By node that is registering: what comes after its Registered; None where control has turned it away."""
        self._errands: set[asyncio.Task[None]] = set()
        self.output = OutputStreams(self.post)
        self.versions: dict[str, str] = {}
        """Software version by node, of the last session."""
        self.knows: dict[str, frozenset[str]] = {}
        """What the agents know beside the frames of the first release, by node, of the last session."""

    def connected(self, node: str) -> bool:
        return node in self._sessions

    def waiting_bytes(self, node: str) -> int:
        """What the node's agent has not taken yet of what was posted."""
        connection = self._sessions.get(node)
        return connection.waiting_bytes if connection is not None else 0

    async def greet(self, hello: Hello, connection: Connection) -> Welcome | Refused:
        """Demand an agent of this cluster with a token for exactly this node and epoch."""
        if hello.cluster != self._cluster:
            return Refused(code="wrong_cluster", message=f"this is cluster {self._cluster}, not {hello.cluster}")
        if hello.role != "agent":
            return Refused(code="wrong_role", message="this port is for agents")
        epoch = self._leadership.lead.epoch
        try:
            claims = verify(
                hello.token,
                self._bundle,
                subject=hello.node,
                audience=AUDIENCE_MBATCHD,
                epoch=epoch,
                now=self._clock.now(),
            )
        except RefusedError as error:
            return Refused(code=error.code, message=error.fault.message)
        if claims.role not in AGENT_ROLES:
            message = f"{hello.node} is a {claims.role} node in the trust bundle: no work is placed on those"
            return Refused(code="wrong_role", message=message)
        return Welcome(software_version=__version__, node=self._node, epoch=epoch)

    async def serve(self, connection: Connection) -> None:
        """One session, from Register to its end."""
        node = connection.hello.node
        try:
            async with asyncio.timeout(REGISTER_SECONDS):
                frame = await connection.receive()
        except TimeoutError:
            raise RefusedError(f"no register came within {REGISTER_SECONDS:g} s", code="not_registered") from None
        if isinstance(frame, Bye):
            log.warning("an agent does not want us", node=node, reason=frame.reason)
            return
        if not isinstance(frame, Register):
            raise RefusedError(
                f"the first frame of a session is a register, not {frame.type!r}", code="not_registered"
            )
        _demand_names(frame)
        _demand_own_offer(node, frame.offer)
        self._replace(node, connection)
        try:
            self._register(connection, frame)
            # What is still in the buffers of a session that was replaced says nothing any more.
            while True:
                received = await connection.receive()
                if self._sessions.get(node) is not connection or not self._take(node, connection, received):
                    return
        finally:
            if self._sessions.get(node) is connection:
                del self._sessions[node]
                self.output.node_gone(node)
                self._sink.apply(NodeDisconnected(node))

    def post(self, node: str, *frames: AnyFrame) -> bool:
        """Queue frames for a node. False when it has no session, and where that ends by this: registering brings up
        what matters again."""
        connection = self._sessions.get(node)
        if connection is None or not self._leadership.holds():
            return False
        if node in self._early:
            early = self._early[node]
            if early is not None:
                early.append(frames)
            return early is not None
        if len(frames) > MAX_FRAMES_AT_ONCE:
            self._run(self._send(node, connection, frames))
            return True
        try:
            connection.post(*frames)
        except LavaLiteError as error:
            self._broke(node, connection, error)
            return False
        return True

    async def _send(self, node: str, connection: Connection, frames: tuple[AnyFrame, ...]) -> None:
        """One by one, as fast as the agent takes them. What is said meanwhile may overtake them: agents bear that."""
        for frame in frames:
            if not self._leadership.holds():
                return
            try:
                await connection.send(frame)
            except LavaLiteError as error:
                self._broke(node, connection, error)
                return

    def _broke(self, node: str, connection: Connection, error: LavaLiteError) -> None:
        """What was not sent is said again when the agent registers: it must not go on as if nothing were missing."""
        log.warning("a frame could not be sent; the session ends", node=node, reason=str(error))
        self._close(connection, "something could not be sent")

    def close(self, node: str, reason: str) -> None:
        """End a node's session; the agent comes back if it can."""
        connection = self._sessions.get(node)
        if node in self._early:
            self._early[node] = None
        if connection is not None:
            self._close(connection, reason)

    def _close(self, connection: Connection, reason: str) -> None:
        self._run(connection.close(reason))

    def _run(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def _replace(self, node: str, connection: Connection) -> None:
        """At one stroke: while the old one is being closed, a third may come."""
        old, self._sessions[node] = self._sessions.get(node), connection
        if old is not None:
            log.warning("a second session of a node ends its first", node=node, peer=connection.peer)
            self.output.node_gone(node)
            self._close(old, "another session of this node began")
        self.versions[node] = connection.hello.software_version

    def _register(self, connection: Connection, frame: Register) -> None:
        node, epoch = connection.hello.node, self._leadership.lead.epoch
        if frame.highest_epoch is not None and frame.highest_epoch > epoch:
            log.warning("an agent knows a later leadership than ours", node=node, epoch=frame.highest_epoch)
        event = NodeRegistered(
            node=node,
            boot_id=frame.boot_id,
            journal_id=frame.journal_id,
            offer=frame.offer,
            attempts=tuple(map(_reported, frame.attempts)),
            fabric_address=_fabric_address(frame, connection),
        )
        self.knows[node] = frozenset(frame.knows)
        self._early[node] = []
        try:
            self._sink.apply(event)
        finally:
            early = self._early.pop(node)
        if early is None:
            return
        self._leadership.check()
        connection.post(Registered(epoch=epoch, beat_seconds=self._beat_seconds))
        log.info("agent registered", node=node, journal=frame.journal_id, attempts=len(frame.attempts))
        for frames in early:
            self.post(node, *frames)

    def _take(self, node: str, connection: Connection, frame: AnyFrame) -> bool:
        """Handle one frame. False ends the session."""
        if isinstance(frame, Beat):
            if self._bundle.role(node) not in AGENT_ROLES:
                raise RefusedError(f"node {node} is not trusted as an agent any more", code="wrong_role")
            if frame.offer is not None:
                _demand_own_offer(node, frame.offer)
            self._leadership.check()
            self._sink.apply(NodeBeat(node, frame.offer))
            connection.post(BeatAck(seq=frame.seq, sent=frame.sent, epoch=self._leadership.lead.epoch))
        elif isinstance(frame, Report):
            self._sink.apply(NodeReported(node, frame.seq, tuple(map(_reported, frame.attempts))))
        elif isinstance(frame, Output):
            self.output.take(node, frame)
        elif isinstance(frame, HostsApplied):
            self.on_hosts_applied(node, frame.versions)
        elif isinstance(frame, PartsApplied):
            self._sink.apply(PartsReported(node, tuple(map(_part, frame.parts))))
        elif isinstance(frame, HostAsk):
            self.on_host_ask(node, frame)
        elif isinstance(frame, Bye):
            return False
        else:
            raise RefusedError(f"an agent does not send {frame.type!r}", code="unexpected_frame")
        return True


def _reported(report: AttemptReport) -> AttemptReported:
    try:
        attempt = AttemptId.parse(report.id)
    except ValueError:
        raise RefusedError("an attempt's id is JOB.TASK.ATTEMPT", code="bad_attempt") from None
    if not math.isfinite(report.at):
        raise RefusedError(f"attempt {attempt} is reported for no time that there is", code="bad_attempt")
    reason = report.reason[:MAX_REASON_CHARACTERS]
    return AttemptReported(attempt, report.state, report.at, report.exit_code, reason)


def _part(found: PartState) -> PartReported:
    """Its text is short by now; of what it names, only what we ordered is ever looked at."""
    names = (found.part, found.role, found.host, found.address, found.secret, found.device, found.path)
    if max(map(len, names)) > MAX_PART_CHARACTERS:
        message = f"no name in a part's state has more than {MAX_PART_CHARACTERS} characters"
        raise RefusedError(message, code="too_long")
    if found.address and not _is_address(found.address):
        raise RefusedError(f"the address of part {found.part} is no IP address", code="bad_address")
    return PartReported(
        part=found.part,
        role=found.role,
        host=found.host,
        incarnation=found.incarnation,
        version=found.version,
        state=found.state,
        reason=found.reason[:MAX_REASON_CHARACTERS],
        address=found.address,
        port=found.port if 0 < found.port < 65536 else 0,
        secret=found.secret,
        device=found.device,
        path=found.path,
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _fabric_address(frame: Register, connection: Connection) -> str:
    """Where others reach the node: as it says, or where its session comes from; nothing over a local socket."""
    if frame.fabric_address:
        if not _is_address(frame.fabric_address):
            raise RefusedError("a fabric address is an IP address", code="bad_address")
        return frame.fabric_address
    host = connection.peer.rpartition(":")[0].strip("[]")
    return host if _is_address(host) else ""


def _demand_names(frame: Register) -> None:
    if max(len(frame.journal_id), len(frame.boot_id)) > MAX_NAME_CHARACTERS:
        message = f"the names of a journal and of a boot have at most {MAX_NAME_CHARACTERS} characters"
        raise RefusedError(message, code="too_long")


def _demand_own_offer(node: str, offer: NodeOffer) -> None:
    """A node speaks for itself alone."""
    if offer.node != node or any(r.owner != node for r in offer.resources):
        raise RefusedError(f"node {node} may offer its own resources only", code="not_yours")
    size_bytes = len(offer.model_dump_json().encode())
    if size_bytes > MAX_OFFER_BYTES:
        raise RefusedError(f"the offer has {size_bytes} bytes, at most {MAX_OFFER_BYTES} are stored", code="too_long")
