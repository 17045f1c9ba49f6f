"""Connections that carry frames, over TCP (plain or TLS) and Unix sockets alike.

    client  Hello ─────────────► within HELLO_SECONDS, else Refused
            ◄─── Welcome | Refused                                   greet() decides
            ◄──────────────────► frames until one side closes        serve() runs

Limits: a frame by MAX_FRAME_BYTES; what waits to be sent by OUTGOING_LIMIT_BYTES; a peer that takes nothing for
STALL_SECONDS is dropped. What is read ahead is bounded too: the transport pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from lavalite.base.errors import LavaLiteError, RefusedError, UnreachableError
from lavalite.wire.address import Address, listen_error, parse_address
from lavalite.wire.codec import Decoder, FrameError, encode
from lavalite.wire.frames import PROTOCOL_MAX, PROTOCOL_MIN, AnyFrame, Bye, Hello, Refused, Welcome
from lavalite.wire.sockets import bind_unix, peer_credentials, tune_tcp
from lavalite.wire.tls import refusal
from lavalite.wire.tls_server import TlsServer

HELLO_SECONDS = 5.0
STALL_SECONDS = 15.0
CLOSE_SECONDS = 1.0
OUTGOING_LIMIT_BYTES = 16 * 1024 * 1024
READ_BYTES = 256 * 1024
MAX_CONNECTIONS = 16_384

log = structlog.get_logger(__name__)


class ConnectionLost(LavaLiteError):
    """The peer went away, or was dropped for being too slow."""

    default_code = "connection_lost"


class Connection:
    """One connection after, or during, its Hello. One task receives; any number of tasks send."""

    hello: Hello
    welcome: Welcome

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address) -> None:
        self._reader, self._writer, self._decoder = reader, writer, Decoder()
        self._sending, self._why_lost = asyncio.Lock(), ""
        self.peer = str(address)
        self.peer_pid: int | None = None
        self.peer_uid: int | None = None
        self.peer_gid: int | None = None
        if address.path:
            self.peer_pid, self.peer_uid, self.peer_gid = peer_credentials(writer)
            self.peer = f"{address} (uid {self.peer_uid}, pid {self.peer_pid})"
        else:
            tune_tcp(writer)

    @property
    def local_address(self) -> str:
        """This side's IP address; empty for a local socket."""
        name = self._writer.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) else ""

    @classmethod
    async def open(
        cls,
        address: str,
        hello: Hello,
        *,
        timeout_seconds: float = 5,
        ssl_context: ssl.SSLContext | None = None,
    ) -> tuple[Connection, Welcome]:
        """Connect to `HOST:PORT` or `unix:/path` and say hello. `ssl_context` is for TCP only.

        Raises UnreachableError if nobody answers there in time, RefusedError with the peer's code and words, and
        InputError if `address` is none.
        """
        target, connection = parse_address(address), None
        try:
            async with asyncio.timeout(timeout_seconds):
                connection = cls(*await _dial(target, ssl_context), target)
                connection.hello = hello
                await connection.send(hello)
                answer = await connection.receive()
        except TimeoutError:
            reason = f"{address} did not answer within {timeout_seconds:g} s"
        except ssl.SSLError as error:
            reason = f"{address}: TLS failed ({refusal(error)})"
        except OSError as error:
            reason = f"{address} cannot be reached ({error.strerror or error})"
        except ConnectionLost as error:
            reason = f"{address} did not answer as expected ({error.fault.message})"
            if ssl_context is not None:
                # Under TLS 1.3 the peer judges our certificate after our side of the handshake is done.
                reason = f"{address} ended the connection at once: it may not accept our certificate, its log says"
        except FrameError as error:
            reason = f"{address} did not answer as expected ({error.fault.message})"
        else:
            if isinstance(answer, Welcome) and PROTOCOL_MIN <= answer.protocol <= PROTOCOL_MAX:
                connection.welcome = answer
                return connection, answer
            connection._abort("the peer did not welcome us")
            if isinstance(answer, Refused):
                raise RefusedError(answer.message, code=answer.code)
            reason = f"{address} answered with {answer.type!r} where a welcome of this protocol was due"
        finally:
            if connection is not None and not hasattr(connection, "welcome"):
                connection._abort("the conversation did not begin")
        hint = "Check that its daemon runs there, and that both sides use TLS or neither does."
        raise UnreachableError(reason, hint=hint)

    def post(self, *frames: AnyFrame) -> None:
        """Queue frames, return at once. Raises ConnectionLost if closed, or if the peer has fallen too far behind."""
        payload = b"".join(map(encode, frames))
        if self._writer.transport.is_closing():
            raise self._lost()
        if self._writer.transport.get_write_buffer_size() + len(payload) > OUTGOING_LIMIT_BYTES:
            self._abort(f"{OUTGOING_LIMIT_BYTES} bytes wait for a peer that reads too slowly")
            raise self._lost()
        self._writer.write(payload)

    @property
    def waiting_bytes(self) -> int:
        """What was posted and the peer has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    async def send(self, *frames: AnyFrame) -> None:
        """Send frames in order; wait while the peer is behind. Raises ConnectionLost; FrameError for one too long."""
        async with self._sending:  # senders take turns, or together they would overrun the limit
            for frame in frames:
                self.post(frame)
                await self._drain()

    async def receive(self) -> AnyFrame:
        """The next frame. May be cancelled without losing any. Raises ConnectionLost, FrameError.

        Bye and Refused are frames like others: what they end is the caller's to know.
        """
        while (frame := self._decoder.next()) is None:
            try:
                data = await self._reader.read(READ_BYTES)
            except OSError as error:
                raise self._lost(refusal(error)) from None
            if not data:
                raise self._lost()
            self._decoder.feed(data)
        return frame

    async def refuse(self, code: str, message: str) -> None:
        """Say why, and close; wait a moment for the peer to take it."""
        with contextlib.suppress(LavaLiteError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.send(Refused(code=code, message=message))
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                # Closing with unread bytes would reset the connection, and the reason would be lost with it.
                while await self._reader.read(READ_BYTES):
                    pass
        await self.close()

    async def close(self, reason: str = "") -> None:
        """Close; with a reason, say Bye first. Takes a second at most, never raises, may be called twice."""
        if not self._writer.transport.is_closing():
            if reason:
                with contextlib.suppress(LavaLiteError):
                    self.post(Bye(reason=reason))
            self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass
        finally:
            self._writer.transport.abort()

    async def _drain(self) -> None:
        transport = self._writer.transport
        waiting = transport.get_write_buffer_size()
        while True:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    return await self._writer.drain()
            except TimeoutError:
                before, waiting = waiting, transport.get_write_buffer_size()
                if waiting >= before:
                    self._abort(f"the peer has read nothing for {STALL_SECONDS:g} s")
                    raise self._lost() from None
            except OSError as error:
                raise self._lost(error.strerror or str(error)) from None

    def _abort(self, why: str) -> None:
        self._why_lost = self._why_lost or why
        self._writer.transport.abort()

    def _lost(self, why: str = "") -> ConnectionLost:
        return ConnectionLost(f"The connection with {self.peer} is lost: {self._why_lost or why or 'it was closed'}")


Greet = Callable[[Hello, Connection], Awaitable[Welcome | Refused]]
Serve = Callable[[Connection], Awaitable[None]]


class FrameServer:
    """Listens on `HOST:PORT` (port 0: any free one) or `unix:/path`, and runs `serve` for each welcomed connection.

    `greet` answers a Hello whose protocol fits; `serve` talks until it returns, and then the connection is closed.
    An error in either ends that connection alone: a LavaLiteError is told to the peer, anything else is logged. So
    an error that must end the process (FencedError) is for `serve` to report where the process will see it.
    """

    def __init__(
        self,
        address: str,
        greet: Greet,
        serve: Serve,
        *,
        ssl_context: ssl.SSLContext | None = None,
        socket_mode: int = 0o600,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._address = parse_address(address, "listen")
        self._greet, self._serve = greet, serve
        self._ssl_context, self._socket_mode = ssl_context, socket_mode
        self._max_connections = max_connections
        self._server: asyncio.Server | TlsServer | None = None
        self._inode: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where it listens, with the real port once started."""
        return str(self._address)

    async def start(self) -> None:
        """Listen. Raises LavaLiteError: address or socket in use, no permission, no such address."""
        at = self._address
        if at.path:
            listener = bind_unix(at.path, self._socket_mode)
            self._inode = Path(at.path).stat().st_ino
            self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=READ_BYTES)
            return
        try:
            port = await (self._listen_tls(self._ssl_context) if self._ssl_context else self._listen_plain())
        except OSError as error:
            raise listen_error(at, error) from None
        self._address = Address(host=at.host, port=port)

    async def _listen_plain(self) -> int:
        at = self._address
        self._server = await asyncio.start_server(self._accept, at.host, at.port, limit=READ_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def _listen_tls(self, context: ssl.SSLContext) -> int:
        server = TlsServer(context, self._accept, handshake_seconds=HELLO_SECONDS, limit_bytes=READ_BYTES)
        port = await server.start(self._address)
        self._server = server
        return port

    async def close(self) -> None:
        """Stop listening, say Bye to all, and wait until their `serve` has ended. May be called twice."""
        if self._server is None:
            return
        if isinstance(self._server, TlsServer):
            await self._server.close()
        else:
            self._server.close()
        if self._inode is not None:
            file = Path(self._address.path)
            with contextlib.suppress(OSError):
                if file.stat().st_ino == self._inode:
                    file.unlink()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._run(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Not in a finally of the task: one that is cancelled before its first step runs none.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = None
        try:
            peer = writer.get_extra_info("peername")
            if peer is None:
                return  # gone before we looked
            at = self._address if self._address.path else Address(host=peer[0], port=peer[1])
            connection = Connection(reader, writer, at)
            if await self._welcome(connection):
                await self._serve(connection)
            await connection.close()
        except asyncio.CancelledError:
            if connection is not None:
                await connection.close("the daemon is stopping")
            raise
        except ConnectionLost as error:
            log.debug("connection lost", reason=error.fault.message)
        except LavaLiteError as error:
            if connection is not None:
                log.info("connection refused", peer=connection.peer, code=error.code, reason=error.fault.message)
                await connection.refuse(error.code, str(error))
        except Exception:
            # The last wall: whatever one connection brought about, the others go on.
            log.exception("a connection failed", peer=connection.peer if connection else "")
            if connection is not None:
                await connection.refuse("internal", "Something failed here; the daemon's log says what.")

    async def _welcome(self, connection: Connection) -> bool:
        """Hear the Hello and answer it. False: refused, and closed."""
        if len(self._tasks) > self._max_connections:
            raise RefusedError("There are too many connections here.", code="too_many_connections")
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await connection.receive()
        except TimeoutError:
            raise RefusedError(f"No hello came within {HELLO_SECONDS:g} s.", code="no_hello") from None
        if not isinstance(hello, Hello):
            raise RefusedError(f"The first frame must be a hello, not {hello.type!r}.", code="no_hello")
        protocol = min(PROTOCOL_MAX, hello.protocol_max)
        if protocol < max(PROTOCOL_MIN, hello.protocol_min):
            raise RefusedError(
                f"Protocol {hello.protocol_min} to {hello.protocol_max} is not spoken here, but {PROTOCOL_MIN} to "
                f"{PROTOCOL_MAX}.",
                code="protocol",
                hint=f"{hello.software_version[:40]!r} does not fit: bring both sides to the same release.",
            )
        connection.hello = hello
        answer = await self._greet(hello, connection)
        if isinstance(answer, Refused):
            await connection.refuse(answer.code, answer.message)
            return False
        connection.welcome = answer.model_copy(update={"protocol": protocol})
        await connection.send(connection.welcome)
        return True


async def _dial(
    target: Address, ssl_context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if target.path:
        return await asyncio.open_unix_connection(target.path, limit=READ_BYTES)
    return await asyncio.open_connection(target.host, target.port, ssl=ssl_context, limit=READ_BYTES)
