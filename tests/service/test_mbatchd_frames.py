"""The agents' port against peers that err or lie: each is told why and cut off, and a good agent notices nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from api_calls import open_folder, wait_for
from cluster import CLUSTER, LimProcess, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE_SECONDS
from whole import Whole

from lavalite import __version__
from lavalite.base.errors import RefusedError
from lavalite.model.resources import NodeOffer, Resource
from lavalite.wire.codec import Decoder, encode
from lavalite.wire.connection import Connection, ConnectionLost
from lavalite.wire.frames import (
    AnyFrame,
    AskToken,
    AttemptReport,
    Beat,
    BeatAck,
    Bye,
    Dispatch,
    Granted,
    Hello,
    Output,
    Refused,
    Register,
    Registered,
    Report,
    ReportAck,
)


@dataclass
class Port:
    """The leader's port for agents. n1 has a good agent; n2 has none, and the tests play it."""

    cluster: Whole
    leader: LimProcess
    token: str

    @property
    def address(self) -> str:
        return str(self.leader.config["mbatchd_address"])

    def hello(self, **fields: Any) -> Hello:
        usual = {
            "software_version": __version__,
            "cluster": CLUSTER,
            "node": "n2",
            "role": "agent",
            "token": self.token,
        }
        return Hello(**(usual | fields))

    async def raw(self, sent: bytes) -> list[AnyFrame]:
        """What is answered to these bytes, until the port closes the connection."""
        host, number = self.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(number))
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(sent)
                writer.write_eof()
                await writer.drain()
            decoder, heard = Decoder(), []
            async with asyncio.timeout(PATIENCE_SECONDS):
                with contextlib.suppress(ConnectionError):
                    while data := await reader.read(65536):
                        decoder.feed(data)
                        while (frame := decoder.next()) is not None:
                            heard.append(frame)
            return heard
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def session(self, *attempts: AttemptReport) -> AsyncIterator[Connection]:
        """A registered session of n2."""
        connection, _ = await Connection.open(self.address, self.hello())
        try:
            await connection.send(register(*attempts))
            assert isinstance(await connection.receive(), Registered)
            yield connection
        finally:
            await connection.close()

    def registrations(self, node: str) -> int:
        """How often the node's agent has begun a session with this scheduler."""
        lines = [json.loads(line) for line in self.leader.scheduler_log.splitlines() if line.startswith("{")]
        return sum(line.get("event") == "agent registered" and line.get("node") == node for line in lines)


def offer(node: str = "n2", owner: str = "n2") -> NodeOffer:
    cpu = Resource(name=f"{owner}/cpu", kind="cpu", amount=1, unit="milli-core", owner=owner)
    return NodeOffer(node=node, boot_id="b", resources=[cpu])


def register(*attempts: AttemptReport, **fields: Any) -> Register:
    usual: dict[str, Any] = {"boot_id": "b", "journal_id": "j", "offer": offer(), "attempts": list(attempts)}
    return Register(**(usual | fields))


def report(attempt: str, state: str = "started", at: float = 1.0) -> AttemptReport:
    return AttemptReport(id=attempt, state=state, at=at)  # type: ignore[arg-type]


async def next_of(connection: Connection, kind: type[AnyFrame]) -> Any:
    """The next frame of a kind; others are passed over."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not isinstance(frame := await connection.receive(), kind):
            pass
        return frame


async def refusal(connection: Connection) -> Refused:
    found: Refused = await next_of(connection, Refused)
    with pytest.raises(ConnectionLost):
        await next_of(connection, Bye)
    return found


@pytest.fixture(scope="module")
def port() -> Iterator[Port]:
    with open_folder() as folder:
        store = {"kind": "sqlite", "path": str(folder / "store.db")}
        with Whole(folder, {"n1": 9, "n2": 1}, store=store).running() as cluster:
            cluster.agents["n2"].stop()
            leader = asyncio.run(cluster.serving(nodes=1))
            assert leader.node == "n1"

            async def ask() -> Granted | None:
                answer = await cluster.lims["n2"].ask(AskToken(audience="mbatchd"))
                return answer if isinstance(answer, Granted) else None

            granted = asyncio.run(until(ask, 10, "n2 is given a token"))
            yield Port(cluster, leader, granted.token)


@pytest.fixture(autouse=True)
def the_good_agent_notices_nothing(port: Port) -> Iterator[None]:
    wait_for(lambda: port.cluster.client(port.leader).node("n1").state == "ready", 20, "n1 is ready")
    sessions, scheduler = port.registrations("n1"), port.cluster.scheduler_pid(port.leader)
    yield
    job = port.cluster.submit(port.leader, ["true"])
    assert asyncio.run(port.cluster.ended(port.leader, job)).nodes == ["n1"]
    assert port.registrations("n1") == sessions
    assert port.cluster.scheduler_pid(port.leader) == scheduler
    assert "Traceback" not in port.leader.scheduler_log


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\xff\xff\xff\xff", "frame_too_long"),
        (b"\0\0\0\0", "bad_frame"),
        (framed(b"no JSON"), "bad_frame"),
        (framed(b'{"type": "dance"}'), "unknown_frame"),
        (framed(b"[" * 100_000), "bad_frame"),
        (framed(b'{"type": "hello"}'), "bad_frame"),
        (b"GET / HTTP/1.1\r\n\r\n", "frame_too_long"),
        (encode(Beat(seq=1, sent=1.0)), "no_hello"),
        (encode(register()), "no_hello"),
    ],
)
async def test_what_is_no_hello_is_refused(port: Port, sent: bytes, code: str) -> None:
    heard = await port.raw(sent)
    assert len(heard) == 1 and isinstance(heard[0], Refused), heard
    assert heard[0].code == code
    assert heard[0].message


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"token": ""}, None),
        ({"token": "v4.public.nonsense"}, None),
        ({"node": "n1"}, None),
        ({"node": "../../etc"}, None),
        ({"cluster": "other"}, "wrong_cluster"),
        ({"role": "lim"}, "wrong_role"),
        ({"role": "local"}, "wrong_role"),
        ({"protocol_min": 99, "protocol_max": 99}, "protocol"),
    ],
)
async def test_a_hello_that_does_not_fit_is_refused(port: Port, fields: dict[str, Any], code: str | None) -> None:
    with pytest.raises(RefusedError) as refused:
        await Connection.open(port.address, port.hello(**fields))
    assert code in (None, refused.value.code)
    assert port.token not in str(refused.value)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (Beat(seq=1, sent=1.0), "not_registered"),
        (register(offer=offer(node="n1")), "not_yours"),
        (register(offer=offer(owner="n1")), "not_yours"),
        (register(report("1.2")), "bad_attempt"),
        (register(report("1.1." + "9" * 5000)), "bad_attempt"),
        (register(report("1.0.1", at=float("nan"))), None),
        (register(offer=offer().model_copy(update={"labels": {"x": ["y" * 1_000_000]}})), "too_long"),
    ],
)
async def test_a_register_that_lies_is_refused(port: Port, frame: AnyFrame, code: str | None) -> None:
    connection, _ = await Connection.open(port.address, port.hello())
    await connection.send(frame)
    refused = await refusal(connection)
    assert code in (None, refused.code), refused
    await connection.close()


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (register(), "unexpected_frame"),
        (Dispatch(epoch=(9, 9), attempts=[]), "unexpected_frame"),
        (Beat(seq=1, sent=1.0, offer=offer(owner="n1")), "not_yours"),
        (Report(seq=1, attempts=[report("x")]), "bad_attempt"),
    ],
)
async def test_a_session_that_goes_astray_is_ended(port: Port, frame: AnyFrame, code: str) -> None:
    async with port.session() as connection:
        await connection.send(frame)
        assert (await refusal(connection)).code == code
    with port.cluster.client(port.leader) as client:
        assert client.node("n2").resources["cpu"].capacity == 1
        assert client.node("n1").resources["cpu"].capacity >= 1000


async def test_a_session_beats_and_reports(port: Port) -> None:
    async with port.session() as connection:
        await connection.send(Beat(seq=7, sent=1.5), Report(seq=3, attempts=[report("999.0.1", "ended")]))
        acked: BeatAck = await next_of(connection, BeatAck)
        assert (acked.seq, acked.sent) == (7, 1.5)
        while (found := await next_of(connection, ReportAck)).seq != 3:
            assert found.seq == 0, "the one for what it registered with"
        # Of a stream that nobody reads, and of hosts that it has not: nothing to end a session for.
        await connection.send(Output(stream_id=77, offset=0, data_base64="?"), Beat(seq=8, sent=1.5))
        assert (await next_of(connection, BeatAck)).seq == 8


async def test_a_second_session_of_a_node_ends_its_first(port: Port) -> None:
    async with port.session() as first, port.session() as second, port.session() as third:
        for old in (first, second):
            assert "another session" in (await next_of(old, Bye)).reason
        await third.send(Beat(seq=1, sent=1.0))
        assert (await next_of(third, BeatAck)).seq == 1


async def test_an_attempt_that_nobody_knows_is_shown_and_not_killed(port: Port) -> None:
    async with port.session(report("123456.0.1")) as connection:
        await connection.send(Report(seq=1, attempts=[report("123457.0.1"), report("123458.0.2")]))
        while (await next_of(connection, ReportAck)).seq != 1:
            pass
        with port.cluster.client(port.leader) as client:
            assert client.status().quarantined == 3
            assert [(q.node, q.attempt, q.state) for q in client.quarantine()] == [
                ("n2", f"{job}", "started") for job in ("123456.0.1", "123457.0.1", "123458.0.2")
            ]
        over = [report(f"{job}", "ended") for job in ("123456.0.1", "123457.0.1", "123458.0.2")]
        await connection.send(Report(seq=2, attempts=over))
        while (await next_of(connection, ReportAck)).seq != 2:
            pass
        with port.cluster.client(port.leader) as client:
            assert (client.status().quarantined, list(client.quarantine())) == (0, [])


async def test_peers_that_say_nothing_keep_nobody_out(port: Port) -> None:
    host, number = port.address.split(":")
    silent = [await asyncio.open_connection(host, int(number)) for _ in range(200)]
    async with port.session() as connection:
        await connection.send(Beat(seq=1, sent=1.0))
        assert (await next_of(connection, BeatAck)).seq == 1
    for _, writer in silent:
        writer.close()


TAGS = ["hello", "register", "report", "beat", "output", "dispatch", "stop", "ready", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["id", "seq", "attempts", "offer", "sent", "epoch", "node", "stream_id", "token", "at"])
NEARLY = st.builds(
    lambda tag, rest: framed(json.dumps({**rest, "type": tag}).encode()),
    st.sampled_from(TAGS),
    st.dictionaries(FIELDS, JSON, max_size=5),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.binary(max_size=200).map(framed) | st.binary(max_size=50) | NEARLY, max_size=4), st.integers(0, 2))
def test_garbage_harms_nobody(port: Port, garbage: list[bytes], polite: int) -> None:
    """Law: whatever is sent, the port answers with frames and closes; politely begun or not."""
    begun = [encode(port.hello()), encode(register())][:polite]
    heard = asyncio.run(port.raw(b"".join([*begun, *garbage])))
    assert all(isinstance(frame.type, str) for frame in heard)
