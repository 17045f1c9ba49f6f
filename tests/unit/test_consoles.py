"""Consoles of virtual machines from afar: an agent's end over a Unix socket, and what the scheduler says no to."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from hosts_world import asked, far_world, settle

from lavalite.base.errors import BusyError, ConflictError, InputError, LavaLiteError, UnknownNameError
from lavalite.mbatchd import consoles as desk_of
from lavalite.mbatchd.consoles import ConsoleDesk
from lavalite.mbatchd.identity import Identity
from lavalite.mbatchd.output import OutputStreams
from lavalite.model.host import VM, VmAsk
from lavalite.sbatchd.consoles import MAX_WAITING, Consoles, none_here
from lavalite.wire.frames import CancelRead, Console, Output, Typed

EPOCH = (0, 1)
SECONDS = 30


class Far:
    """An agent's consoles, and the machine that they lead to. `heard` is what that was told."""

    def __init__(self, path: Path) -> None:
        self.path, self.outputs, self.heard = path, asyncio.Queue[Output](), asyncio.Queue[bytes]()
        self.consoles = Consoles(self.outputs.put, self.connect)
        self.writers = asyncio.Queue[asyncio.StreamWriter]()

    async def connect(self, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)

    async def machine(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.writers.put(writer)
        while said := await reader.read(4096):
            await self.heard.put(said)
        await self.heard.put(b"")
        writer.close()

    async def said(self) -> Output:
        async with asyncio.timeout(SECONDS):
            return await self.outputs.get()

    async def met(self) -> asyncio.StreamWriter:
        """The machine's end, once it knows that somebody has come."""
        async with asyncio.timeout(SECONDS):
            return await self.writers.get()

    async def told(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self.heard.get()

    def type(self, number: int, data: bytes) -> None:
        encoded = base64.b64encode(data).decode()
        self.consoles.type(Typed(epoch=EPOCH, stream_id=number, data_base64=encoded))


@pytest_asyncio.fixture
async def far(tmp_path: Path) -> AsyncIterator[Far]:
    found = Far(tmp_path / "console")
    server = await asyncio.start_unix_server(found.machine, found.path)
    yield found
    await found.consoles.close()
    server.close()


def ask(number: int, host: str = "v") -> Console:
    return Console(epoch=EPOCH, stream_id=number, host=host)


async def test_bytes_go_both_ways_and_what_was_typed_last_still_arrives(far: Far) -> None:
    far.consoles.open(ask(7))
    assert await far.said() == Output(stream_id=7, offset=0)
    far.type(7, b"ls\r")
    assert await far.told() == b"ls\r"
    writer = await far.met()
    for text, offset in ((b"\xff\x00", 0), (b"ab", 2)):
        writer.write(text)
        assert await far.said() == Output(stream_id=7, offset=offset, data_base64=base64.b64encode(text).decode())
    far.type(7, b"exit\r")
    far.consoles.cancel(7)
    assert [await far.told(), await far.told()] == [b"exit\r", b""]


async def test_a_machine_that_ends_and_a_session_that_ends(far: Far) -> None:
    far.consoles.open(ask(1))
    assert not (await far.said()).ended
    (await far.met()).close()
    assert await far.said() == Output(stream_id=1, offset=0, ended=True)
    assert await far.told() == b""
    far.consoles.open(ask(2))
    assert not (await far.said()).ended
    await far.consoles.close()
    assert await far.told() == b""


async def test_one_is_there_at_a_time(far: Far) -> None:
    far.consoles.open(ask(1))
    assert not (await far.said()).ended
    far.consoles.open(ask(2))
    refused = await far.said()
    assert (refused.stream_id, refused.ended) == (2, True) and "used by one at a time" in refused.error


async def test_more_than_a_machine_takes_ends_it(far: Far) -> None:
    far.consoles.open(ask(1))
    assert not (await far.said()).ended
    for _ in range(MAX_WAITING + 2):  # and nobody has a turn meanwhile who could take any of it
        far.type(1, b"x")
    ended = await far.said()
    assert ended.ended and ended.error == "its machine does not take what is typed"


async def test_where_there_is_no_machine_one_sentence_says_so(tmp_path: Path) -> None:
    for connect, said in (
        (none_here, "this node runs no virtual machines"),
        (Far(tmp_path / "none").connect, "it cannot be reached: No such file or directory"),
    ):
        outputs = asyncio.Queue[Output]()
        Consoles(outputs.put, connect).open(ask(1))
        async with asyncio.timeout(SECONDS):
            assert await outputs.get() == Output(stream_id=1, offset=0, ended=True, error=said)


# --- the scheduler's end -------------------------------------------------------------------------------------------


class Sessions:
    """With n3 alone, whose agent says nothing by itself."""

    def __init__(self) -> None:
        self.posted: list[Any] = []
        self.knows = {"n3": frozenset({"console"})}
        self.output = OutputStreams(self.post)
        self.gone, self.asked, self.waiting = False, asyncio.Event(), 0

    def waiting_bytes(self, node: str) -> int:
        return self.waiting

    def connected(self, node: str) -> bool:
        return node == "n3" and not self.gone

    def post(self, node: str, *frames: Any) -> bool:
        self.posted += frames
        self.asked.set()
        return not self.gone


def made() -> tuple[ConsoleDesk, Sessions]:
    world = far_world(asked("v", executor=VM, vm=VmAsk(image="x")), asked("bare", amounts={"cpu": 1000}, far={}))
    settle(world)
    assert {host.state.value for host in world.state.hosts.values()} == {"composed"}
    sessions = Sessions()
    service = SimpleNamespace(state=world.state, epoch=EPOCH)
    return ConsoleDesk(service, sessions), sessions  # type: ignore[arg-type]


ADA, BOB = Identity("ada", 0, 0, True), Identity("bob", 1, 1, True)


async def opened(desk: ConsoleDesk, sessions: Sessions) -> tuple[str, Any]:
    opening = asyncio.create_task(desk.open("v", ADA))
    async with asyncio.timeout(SECONDS):
        await asyncio.wait({opening, asyncio.create_task(sessions.asked.wait())}, return_when="FIRST_COMPLETED")
    sessions.output.take("n3", Output(stream_id=1, offset=0))
    return await opening


async def test_keys_are_for_who_opened_and_only_while_it_is_open() -> None:
    desk, sessions = made()
    key, pieces = await opened(desk, sessions)
    desk.type("v", key, ADA, "eA==", leave=False)
    assert sessions.posted[-1] == Typed(epoch=EPOCH, stream_id=1, data_base64="eA==")
    for name, wrong, who in (("v", "key", ADA), ("v", key, BOB), ("bare", key, ADA)):
        with pytest.raises(ConflictError, match="is closed"):
            desk.type(name, wrong, who, "eA==", leave=False)
    sessions.waiting = 2**21
    with pytest.raises(BusyError, match="n3, the anchor of v, is behind"):
        desk.type("v", key, ADA, "eA==", leave=False)
    with pytest.raises(InputError, match="base64"):
        desk.type("v", key, ADA, "no base64", leave=False)
    desk.type("v", key, ADA, "", leave=True)
    assert [piece async for piece in pieces] == []
    assert sessions.posted[-1] == CancelRead(epoch=EPOCH, stream_id=1) and len(sessions.posted) == 3
    with pytest.raises(ConflictError, match="is closed"):
        desk.type("v", key, ADA, "", leave=False)


async def test_who_goes_has_it_closed() -> None:
    desk, sessions = made()
    _, pieces = await opened(desk, sessions)
    await pieces.aclose()
    assert sessions.posted[-1] == CancelRead(epoch=EPOCH, stream_id=1)


async def test_what_cannot_be_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, sessions = made()
    with pytest.raises(UnknownNameError, match="there is no host x"):
        await desk.open("x", ADA)
    with pytest.raises(ConflictError, match="bare is no virtual machine, and has no console"):
        await desk.open("bare", ADA)
    monkeypatch.setattr(desk_of, "OPEN_SECONDS", 0.01)
    with pytest.raises(ConflictError, match="n3, the anchor of v, does not answer"):
        await desk.open("v", ADA)
    assert isinstance(sessions.posted[-1], CancelRead)
    sessions.knows.clear()
    with pytest.raises(ConflictError, match="runs a release that has no consoles"):
        await desk.open("v", ADA)
    sessions.gone = True
    with pytest.raises(ConflictError, match="n3, the anchor of v, is not connected"):
        await desk.open("v", ADA)


async def test_what_the_agent_cannot_do_is_said_with_the_hosts_name() -> None:
    desk, sessions = made()
    opening = asyncio.create_task(desk.open("v", ADA))
    async with asyncio.timeout(SECONDS):
        await asyncio.wait({opening, asyncio.create_task(sessions.asked.wait())}, return_when="FIRST_COMPLETED")
    sessions.output.take("n3", Output(stream_id=1, offset=0, ended=True, error="no virtual machine v runs here"))
    with pytest.raises(LavaLiteError, match="the console of v: no virtual machine v runs here"):
        await opening
