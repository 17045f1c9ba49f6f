"""How NBD begins: the `newstyle` negotiation with NBD_OPT_GO, for the default export, and a look at its first bytes.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import socket
import struct

from lavalite.base.errors import LavaLiteError

CONNECT_SECONDS = 10.0
MAGIC, OPTION_MAGIC, REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPTION_GO, REPLY_ACK, REPLY_INFO, INFO_EXPORT = 7, 1, 3, 0
LONGEST_REPLY_BYTES = 4096
REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, READ = 0x25609513, 0x67446698, 0


def connect(address: str, port: int) -> socket.socket:
    try:
        connection = socket.create_connection((address, port), CONNECT_SECONDS)
    except OSError as error:
        raise LavaLiteError(
            f"the export at {address}:{port} does not answer ({error.strerror or error})",
            hint="It serves its one consumer alone, at the address that its node knows.",
        ) from None
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def negotiate(connection: socket.socket, what: str) -> tuple[int, int]:
    """Size in bytes, and transmission flags, of the default export. The socket is blocking from then on."""
    try:
        greeting = _exactly(connection, 18)
        if greeting[:8] != MAGIC or greeting[8:16] != OPTION_MAGIC:
            raise LavaLiteError(f"{what} does not speak NBD")
        connection.sendall(struct.pack(">I", FIXED_NEWSTYLE | NO_ZEROES))
        connection.sendall(OPTION_MAGIC + struct.pack(">IIIH", OPTION_GO, 6, 0, 0))
        found: tuple[int, int] | None = None
        while True:
            magic, _, kind, length = struct.unpack(">QIII", _exactly(connection, 20))
            if magic != REPLY_MAGIC or length > LONGEST_REPLY_BYTES:
                raise LavaLiteError(f"{what} does not speak NBD")
            said = _exactly(connection, length)
            if kind == REPLY_INFO and struct.unpack(">H", said[:2])[0] == INFO_EXPORT:
                size, flags = struct.unpack(">QH", said[2:12])
                found = size, flags
            elif kind == REPLY_ACK and found:
                connection.settimeout(None)
                return found
            elif kind != REPLY_INFO:
                words = said.decode(errors="replace")[:100]
                raise LavaLiteError(f"{what} refuses ({kind & 0x7FFFFFFF}: {words or 'no reason given'})")
    except (OSError, struct.error) as error:
        raise LavaLiteError(f"{what} broke off ({error})") from None


def read(connection: socket.socket, count: int, what: str) -> bytes:
    """The first bytes of the export, of a connection that was negotiated and does nothing else yet."""
    connection.settimeout(CONNECT_SECONDS)
    try:
        connection.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 0, 0, count))
        magic, error, _ = struct.unpack(">IIQ", _exactly(connection, 16))
        if magic != SIMPLE_REPLY_MAGIC or error:
            raise LavaLiteError(f"{what} cannot be read (error {error})")
        return _exactly(connection, count)
    except (OSError, struct.error) as error:
        raise LavaLiteError(f"{what} broke off ({error})") from None
    finally:
        connection.settimeout(None)


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        more = connection.recv(count - len(content))
        if not more:
            raise OSError("it closed the connection")
        content += more
    return content
