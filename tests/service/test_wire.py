"""Connections over real sockets: what one peer does wrong, the others do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from lavalite.base.errors import InputError, LavaLiteError, RefusedError, UnreachableError
from lavalite.wire import connection as connection_module
from lavalite.wire.codec import Decoder, FrameError, encode
from lavalite.wire.connection import Connection, ConnectionLost, FrameServer
from lavalite.wire.frames import AnyFrame, Beat, BeatAck, Bye, Hello, Output, Refused, Welcome
from lavalite.wire.tls import TlsConfig

HELLO = Hello(software_version="1", cluster="c", node="n1", role="lim")
WELCOME = Welcome(software_version="1", node="n0", epoch=(1, 2))


async def greet(hello: Hello, _: Connection) -> Welcome | Refused:
    if hello.node == "wrecker":
        raise RuntimeError("greet broke")
    return WELCOME if hello.cluster == "c" else Refused(code="cluster", message="This is cluster c.")


async def echo(connection: Connection) -> None:
    """Answers beats; a beat of 13 breaks it; Bye ends it."""
    while not isinstance(frame := await connection.receive(), Bye):
        assert isinstance(frame, Beat)
        if frame.seq == 13:
            raise RuntimeError("serve broke")
        await connection.send(BeatAck(seq=frame.seq, sent=frame.sent))


@contextlib.asynccontextmanager
async def serving(
    address: str = "127.0.0.1:0", serve: Callable[[Connection], Awaitable[None]] = echo, **options: object
) -> AsyncIterator[FrameServer]:
    server = FrameServer(address, greet, serve, **options)  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def neighbour(server: FrameServer) -> AsyncIterator[None]:
    """A peer that behaves, and whose conversation goes on while the block misbehaves."""
    good, _ = await Connection.open(server.address, HELLO)
    await beat(good, 1)
    yield
    await beat(good, 2)
    await good.close()


async def beat(connection: Connection, seq: int) -> None:
    await connection.send(Beat(seq=seq, sent=0.5))
    assert await connection.receive() == BeatAck(seq=seq, sent=0.5)


async def answer_to(server: FrameServer, *chunks: bytes) -> list[AnyFrame]:
    """All frames that come back for raw bytes, until the server closes."""
    host, port = server.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    with contextlib.suppress(ConnectionError):
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
    decoder = Decoder()
    decoder.feed(await asyncio.wait_for(reader.read(), 60))
    writer.close()
    frames = []
    while (frame := decoder.next()) is not None:
        frames.append(frame)
    return frames


@pytest.fixture(params=["127.0.0.1:0", "[::1]:0", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param.startswith("[") and not _has_ipv6():
        pytest.skip("no IPv6 on this machine")
    return f"unix:{tmp_path}/s" if request.param == "unix" else str(request.param)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_hello_welcome_and_frames_both_ways(address: str) -> None:
    async with serving(address) as server:
        client, welcome = await Connection.open(server.address, HELLO)
        assert welcome == WELCOME == client.welcome and client.hello == HELLO
        for seq in range(3):
            await beat(client, seq)
        await client.close("done")
        await client.close()
        with pytest.raises(ConnectionLost):
            await client.send(Bye())


async def test_frames_of_four_mebibytes_and_many_senders(address: str) -> None:
    big = Output(stream_id=1, offset=0, data_base64="A" * 4_000_000)

    async def pour(connection: Connection) -> None:
        await asyncio.gather(*(connection.send(big) for _ in range(6)))
        await connection.close("poured")

    async with serving(address, pour) as server:
        client, _ = await Connection.open(server.address, HELLO)
        for _ in range(6):
            assert await client.receive() == big
        await client.close()


async def test_the_kernel_says_who_is_on_the_other_end_of_a_unix_socket(tmp_path: Path) -> None:
    seen: list[Connection] = []

    async def look(connection: Connection) -> None:
        seen.append(connection)

    async with serving(f"unix:{tmp_path}/s", look) as server:
        client, _ = await Connection.open(server.address, HELLO)
        with pytest.raises(ConnectionLost):
            await client.receive()
        for end in (client, seen[0]):
            assert (end.peer_pid, end.peer_uid, end.peer_gid) == (os.getpid(), os.geteuid(), os.getegid())
    async with serving(serve=look) as server:
        client, _ = await Connection.open(server.address, HELLO)
        assert client.peer_uid is None and client.peer == server.address
        await client.close()


async def test_a_refusal_comes_with_its_reason(address: str) -> None:
    async with serving(address) as server:
        with pytest.raises(RefusedError, match="This is cluster c") as caught:
            await Connection.open(server.address, HELLO.model_copy(update={"cluster": "d"}))
        assert caught.value.code == "cluster"
        with pytest.raises(RefusedError, match="same release") as caught:
            await Connection.open(server.address, HELLO.model_copy(update={"protocol_min": 7, "protocol_max": 9}))
        assert caught.value.code == "protocol"
        later = HELLO.model_copy(update={"protocol_max": 9})
        client, welcome = await Connection.open(server.address, later)
        assert welcome.protocol == 1
        await client.close()


GOOD_HELLO = encode(HELLO)


@pytest.mark.parametrize(
    ("chunks", "code"),
    [
        ((b"GET / HTTP/1.1\r\n\r\n",), "frame_too_long"),
        ((bytes(4),), "bad_frame"),
        ((b"\0\0\0\2{}",), "unknown_frame"),
        ((encode(Bye()),), "no_hello"),
        ((GOOD_HELLO, b"\0\0\0\3{}}"), "bad_frame"),
        ((GOOD_HELLO, b"\0\0\0\x0e" + b'{"type":"pun"}'), "unknown_frame"),
        ((GOOD_HELLO, b"\xff" * 3_000_000), "frame_too_long"),
        ((GOOD_HELLO, encode(Beat(seq=13, sent=0))), "internal"),
        ((encode(HELLO.model_copy(update={"node": "wrecker"})),), "internal"),
    ],
)
async def test_what_is_wrong_is_refused_with_a_reason_and_harms_nobody(chunks: tuple[bytes, ...], code: str) -> None:
    async with serving() as server, neighbour(server):
        last = (await answer_to(server, *chunks))[-1]
        assert isinstance(last, Refused) and last.code == code
        assert "Traceback" not in last.message and "broke" not in last.message


async def test_who_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server, neighbour(server):
        monkeypatch.setattr(connection_module, "HELLO_SECONDS", 0.05)  # the neighbour's own hello took its time
        for silence in ((), (GOOD_HELLO[:7],)):
            assert [f.code for f in await answer_to(server, *silence) if isinstance(f, Refused)] == ["no_hello"]


async def test_a_peer_that_resets_harms_nobody() -> None:
    async with serving() as server, neighbour(server):
        for sent in (b"", GOOD_HELLO[:3], GOOD_HELLO, GOOD_HELLO + encode(Beat(seq=1, sent=0))):
            host, port = server.address.rsplit(":", 1)
            rude = socket.create_connection((host, int(port)))
            rude.sendall(sent)
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            rude.close()


async def test_too_many_connections_are_refused() -> None:
    async with serving(max_connections=1) as server, neighbour(server):
        with pytest.raises(RefusedError) as caught:
            await Connection.open(server.address, HELLO)
        assert caught.value.code == "too_many_connections"


async def test_a_peer_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(connection_module, "STALL_SECONDS", 0.2)
    lost: asyncio.Queue[str] = asyncio.Queue()
    chunk = Output(stream_id=1, offset=0, data_base64="A" * 1_000_000)

    async def waiting(connection: Connection) -> None:
        try:
            while True:
                await connection.send(chunk)
        except ConnectionLost as error:
            lost.put_nowait(str(error))

    async def hasty(connection: Connection) -> None:
        try:
            while True:
                connection.post(chunk)
        except ConnectionLost as error:
            lost.put_nowait(str(error))

    for serve, why in ((waiting, "has read nothing for 0.2 s"), (hasty, "reads too slowly")):
        async with serving(address, serve) as server:
            client, _ = await Connection.open(server.address, HELLO)
            assert why in await asyncio.wait_for(lost.get(), 60)
            await client.close()


async def test_closing_the_server_says_bye() -> None:
    async with serving() as server:
        client, _ = await Connection.open(server.address, HELLO)
        await beat(client, 1)
        await server.close()
        assert await client.receive() == Bye(reason="the daemon is stopping")
        with pytest.raises(ConnectionLost):
            await client.receive()
        await client.close()
        with pytest.raises(UnreachableError):
            await Connection.open(server.address, HELLO)


async def test_receive_can_be_cancelled_without_losing_a_frame() -> None:
    gate = asyncio.Event()

    async def slow(connection: Connection) -> None:
        await gate.wait()
        await connection.send(Beat(seq=1, sent=0), Beat(seq=2, sent=0))
        await connection.receive()

    async with serving(serve=slow) as server:
        client, _ = await Connection.open(server.address, HELLO)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.receive(), 0.02)
        gate.set()
        assert [(await client.receive()).seq for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
        await client.close()


async def test_nobody_there_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        for address in (f"127.0.0.1:{held.getsockname()[1]}", f"unix:{tmp_path}/none", "does-not-exist.invalid:1"):
            with pytest.raises(UnreachableError) as caught:
                await Connection.open(address, HELLO)
            assert address in str(caught.value) and caught.value.exit_code == 3
        held.listen()  # accepts, and never answers
        with pytest.raises(UnreachableError, match=r"did not answer within 0\.1 s"):
            await Connection.open(f"127.0.0.1:{held.getsockname()[1]}", HELLO, timeout_seconds=0.1)
    with pytest.raises(InputError):
        await Connection.open("nonsense", HELLO)


async def test_a_stranger_that_answers_is_a_sentence() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    stranger = await asyncio.start_server(http, "127.0.0.1", 0)
    with pytest.raises(UnreachableError, match="did not answer as expected"):
        await Connection.open(f"127.0.0.1:{stranger.sockets[0].getsockname()[1]}", HELLO)
    stranger.close()


async def test_an_address_in_use_is_a_sentence(address: str) -> None:
    async with serving(address) as server:
        second = FrameServer(server.address, greet, echo)
        with pytest.raises(LavaLiteError, match="already in use") as caught:
            await second.start()
        assert caught.value.code == "address_in_use"
        await second.close()
        client, _ = await Connection.open(server.address, HELLO)
        await beat(client, 1)
        await client.close()


@pytest.mark.parametrize("mode", [0o600, 0o666])
async def test_a_unix_socket_has_its_mode_and_goes_with_its_server(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s"
    async with serving(f"unix:{path}", socket_mode=mode):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert not path.exists()


LISTEN = """
import socket, sys
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True); input()
"""


@contextlib.contextmanager
def listening_elsewhere(path: Path) -> Iterator[None]:
    """Another process listens there; it is killed afterwards, and leaves its file."""
    with subprocess.Popen([sys.executable, "-c", LISTEN, path], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        other.stdout.readline()
        yield
        other.kill()


async def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening_elsewhere(path), pytest.raises(LavaLiteError, match="already in use"):
        await FrameServer(f"unix:{path}", greet, echo).start()
    assert path.exists()
    async with serving(f"unix:{path}") as server:
        client, _ = await Connection.open(server.address, HELLO)
        await client.close()


async def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(LavaLiteError, match="is not a socket"):
        await FrameServer(f"unix:{path}", greet, echo).start()
    assert path.read_text() == "precious"
    with pytest.raises(LavaLiteError, match="Create"):
        await FrameServer(f"unix:{tmp_path}/no/s", greet, echo).start()


async def test_an_address_of_another_machine_is_a_sentence() -> None:
    with pytest.raises(LavaLiteError, match=r"cannot listen on 192\.0\.2\.1:0"):
        await FrameServer("192.0.2.1:0", greet, echo).start()


# --- TLS ------------------------------------------------------------------------------------------------------


def make_tls(folder: Path) -> TlsConfig:
    """A certificate that is its own authority, for 127.0.0.1."""
    paths = {"certificate_path": f"{folder}/c.pem", "key_path": f"{folder}/k.pem", "ca_path": f"{folder}/c.pem"}
    command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2", "-subj", "/CN=n"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", paths["key_path"], "-out", paths["certificate_path"]]
    subprocess.run(command, check=True, capture_output=True)
    return TlsConfig(**paths)


async def test_tls_both_ways_and_nobody_without_a_certificate(tmp_path: Path) -> None:
    tls = make_tls(tmp_path)
    async with serving(ssl_context=tls.server_context()) as server:
        client, _ = await Connection.open(server.address, HELLO, ssl_context=tls.client_context())
        await beat(client, 1)
        nameless = ssl.create_default_context(cafile=tls.ca_path)
        for context in (None, nameless, ssl.create_default_context()):
            with pytest.raises(UnreachableError):
                await Connection.open(server.address, HELLO, ssl_context=context, timeout_seconds=2)
        await beat(client, 2)
        await client.close()


def test_tls_files_that_do_not_fit_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot load"):
        TlsConfig(ca_path="/none", certificate_path="/none", key_path="/none").server_context()


# --- uvloop ---------------------------------------------------------------------------------------------------


def test_all_of_it_under_uvloop(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def talk() -> None:
        for address in ("127.0.0.1:0", f"unix:{tmp_path}/s"):
            async with serving(address) as server:
                client, _ = await Connection.open(server.address, HELLO)
                await beat(client, 1)
                with pytest.raises(FrameError):
                    await client.send(Bye(reason="x" * 5_000_000))
                await client.send(Beat(seq=13, sent=0))
                refused = await client.receive()
                assert isinstance(refused, Refused) and refused.code == "internal"
                if address.startswith("unix"):
                    assert client.peer_uid == os.geteuid()
                await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(talk())
