"""What goes over a wire, for bench/attach.py: run on hosts of the lab, by their own Python and nothing else.

python3 traffic.py read ADDRESS PORT BEGIN END        of an NBD export, in sequence: prints bits a second
python3 traffic.py flood ADDRESS PORT BEGIN END KIND  as much as goes, to a port where `sink` listens: prints the same
python3 traffic.py sink PORT END                      takes what comes, and forgets it

BEGIN and END are seconds of CLOCK_MONOTONIC, which containers of one kernel share. What is read counts between them;
a flood begins a second before. KIND is tcp, sixteen streams at once, or udp, which nothing slows down that is lost on
the way. Who is not ready at BEGIN ends with an error.
"""

from __future__ import annotations

import selectors
import socket
import struct
import sys
import threading
import time

REQUEST_BYTES = 256 * 1024
IN_FLIGHT = 16
STREAMS = {"tcp": 16, "udp": 2}
DATAGRAM_BYTES = 1400
DATAGRAMS = 40
UDP_SEGMENT = 103
"""So many in one system call: Linux takes them apart on the way."""
MAGIC, REQUEST, REPLY = 0x49484156454F5054, 0x25609513, 0x67446698


def read(address: str, port: int, begin: float, end: float) -> float:
    """Much is asked for at once, and from the begin of the export again at its end."""
    connection = socket.create_connection((address, port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    size = _negotiate(connection) // REQUEST_BYTES * REQUEST_BYTES
    at = done = 0
    for _ in range(IN_FLIGHT):
        at = _ask(connection, at, size)
    room = memoryview(bytearray(16 + REQUEST_BYTES))
    _check_ready(begin)
    while (now := time.monotonic()) < end:
        _answered(connection, room)
        done += REQUEST_BYTES * (begin <= now)
        at = _ask(connection, at, size)
    # To the end: nbdkit 1.32.5 aborts, with all that it serves, where a client goes in the midst of an answer.
    for _ in range(IN_FLIGHT):
        _answered(connection, room)
    connection.sendall(struct.pack(">IHHQQI", REQUEST, 0, 2, 0, 0, 0))
    return 8 * done / (end - begin)


def _check_ready(begin: float) -> None:
    if time.monotonic() > begin:
        raise SystemExit("late")


def _answered(connection: socket.socket, room: memoryview) -> None:
    _fill(connection, room)
    if struct.unpack(">II", room[:8]) != (REPLY, 0):
        raise SystemExit("the export answered with an error")


def _negotiate(connection: socket.socket) -> int:
    """The size of the default export."""
    _fill(connection, memoryview(bytearray(18)))
    name = b""
    option = struct.pack(">IH", len(name), 0)
    connection.sendall(struct.pack(">IQII", 3, MAGIC, 7, 4 + len(name) + 2) + option)
    size = 0
    while True:
        head = memoryview(bytearray(20))
        _fill(connection, head)
        _, _, kind, length = struct.unpack(">QIII", head)
        said = memoryview(bytearray(length))
        _fill(connection, said)
        if kind == 3 and struct.unpack(">H", said[:2])[0] == 0:
            (size,) = struct.unpack(">Q", said[2:10])
        elif kind == 1:
            return int(size)
        elif kind != 3:
            raise SystemExit(f"the export refuses: {kind:#x}")


def _ask(connection: socket.socket, at: int, size: int) -> int:
    connection.sendall(struct.pack(">IHHQQI", REQUEST, 0, 0, at, at, REQUEST_BYTES))
    return (at + REQUEST_BYTES) % size


def _fill(connection: socket.socket, room: memoryview) -> None:
    while room:
        got = connection.recv_into(room)
        if not got:
            raise SystemExit("the connection broke")
        room = room[got:]


def flood(address: str, port: int, begin: float, end: float, kind: str) -> float:
    sent = [0] * STREAMS[kind]

    def stream(number: int, connection: socket.socket) -> None:
        content = bytes(REQUEST_BYTES if kind == "tcp" else DATAGRAM_BYTES * DATAGRAMS)
        time.sleep(max(0.0, begin - 1 - time.monotonic()))
        while (now := time.monotonic()) < end:
            try:
                sent[number] += connection.send(content) * (begin <= now)
            except ConnectionRefusedError:
                continue

    threads = [threading.Thread(target=stream, args=(number, _connected(address, port, begin, kind)))
               for number in range(STREAMS[kind])]  # fmt: skip
    _check_ready(begin - 1)
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return 8 * sum(sent) / (end - begin)


def _connected(address: str, port: int, begin: float, kind: str) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        if kind == "udp":
            connection.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, DATAGRAM_BYTES)
        try:
            connection.connect((address, port))
            return connection
        except ConnectionRefusedError:
            _check_ready(begin)
            time.sleep(0.1)


def sink(port: int, end: float) -> None:
    ready = selectors.DefaultSelector()
    with socket.create_server(("", port)) as streams, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("", port))
        for each in (streams, datagrams):
            ready.register(each, selectors.EVENT_READ)
        room = bytearray(1024 * 1024)
        while (left := end - time.monotonic()) > 0:
            for key, _ in ready.select(left):
                if key.fileobj is streams:
                    ready.register(streams.accept()[0], selectors.EVENT_READ)
                    continue
                assert isinstance(key.fileobj, socket.socket)
                try:
                    if key.fileobj.recv_into(room) or key.fileobj is datagrams:
                        continue
                except ConnectionResetError:
                    pass
                ready.unregister(key.fileobj)
                key.fileobj.close()


def main(words: list[str]) -> None:
    match words:
        case ["read", address, port, begin, end]:
            print(read(address, int(port), float(begin), float(end)))
        case ["flood", address, port, begin, end, kind]:
            print(flood(address, int(port), float(begin), float(end), kind))
        case ["sink", port, end]:
            sink(int(port), float(end))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
