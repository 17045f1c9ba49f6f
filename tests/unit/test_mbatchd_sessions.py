"""The agents' sessions, over connections that only write down what is posted: who is let in, and what comes when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from control_world import offer

from lavalite.base.clock import ManualClock
from lavalite.base.errors import RefusedError
from lavalite.control.events import Event, NodeBeat, NodeDisconnected, NodeRegistered
from lavalite.mbatchd.sessions import AgentSessions
from lavalite.wire.codec import FrameError
from lavalite.wire.connection import ConnectionLost
from lavalite.wire.frames import (
    AnyFrame,
    Beat,
    BeatAck,
    Bye,
    Hello,
    HostsHere,
    Refused,
    Register,
    Registered,
    Welcome,
)
from lavalite.wire.tokens import AUDIENCE_MBATCHD, NodeKey, TrustBundle, TrustEntry, issue_token

EPOCH = (0, 7)
KEY = NodeKey.generate()
HOSTS = HostsHere(epoch=EPOCH, hosts=[])


class Peer:
    """A connection whose agent sends `says`, and then waits until the connection is closed."""

    def __init__(self, *says: AnyFrame) -> None:
        self.hello = SimpleNamespace(node="n1", software_version="1")
        self.peer, self.reason = "n1:1", ""
        self.says, self.got = list(says), list[AnyFrame]()
        self.closed, self.heard = asyncio.Event(), asyncio.Event()
        self.too_long = False

    async def receive(self) -> AnyFrame:
        if self.says:
            return self.says.pop(0)
        await self.closed.wait()
        raise ConnectionLost("it was closed")

    def post(self, *frames: AnyFrame) -> None:
        if self.too_long:
            raise FrameError("a frame is too long")
        self.got += frames
        self.heard.set()

    async def send(self, frame: AnyFrame) -> None:
        self.post(frame)

    async def close(self, reason: str = "") -> None:
        self.reason = reason
        self.closed.set()


class Desk:
    """Sessions, and what control does about each event."""

    def __init__(self, **roles: Any) -> None:
        self.entries = {n: TrustEntry(public=[KEY.public], role=r) for n, r in ({"n1": "worker"} | roles).items()}
        self.bundle = TrustBundle({**self.entries, "c1": TrustEntry(public=[KEY.public], role="candidate")})
        self.events: list[Event] = []
        self.react: Callable[[Event], object] = lambda event: None
        lead = SimpleNamespace(lead=SimpleNamespace(epoch=EPOCH), check=lambda: None, holds=lambda: True)
        self.sessions = AgentSessions("test", "c1", lead, self.bundle, ManualClock(), self, 2.0)  # type: ignore[arg-type]

    def apply(self, event: Event) -> None:
        self.events.append(event)
        self.react(event)

    async def serve(self, peer: Peer) -> None:
        async with asyncio.timeout(60):
            await self.sessions.serve(peer)  # type: ignore[arg-type]


def register(**fields: Any) -> Register:
    return Register(**({"boot_id": "b", "journal_id": "j", "offer": offer("n1")} | fields))


@pytest.mark.parametrize(("role", "let_in"), [("worker", True), ("candidate", True), ("submit", False)])
async def test_only_nodes_that_do_work_may_be_agents(role: str, let_in: bool) -> None:
    desk = Desk(n1=role)
    token, _ = issue_token(KEY, "c1", "n1", AUDIENCE_MBATCHD, EPOCH, ManualClock().now())
    hello = Hello(software_version="1", cluster="test", node="n1", role="agent", token=token)
    answer = await desk.sessions.greet(hello, Peer())  # type: ignore[arg-type]
    assert isinstance(answer, Welcome if let_in else Refused)
    if isinstance(answer, Refused):
        assert answer.code == "wrong_role" and "submit node" in answer.message


async def test_a_node_that_is_taken_out_of_the_bundle_loses_its_session() -> None:
    desk, peer = Desk(), Peer(register(), Beat(seq=1, sent=1.0), Beat(seq=2, sent=2.0))
    desk.react = lambda event: isinstance(event, NodeBeat) and desk.bundle._entries.pop("n1")
    with pytest.raises(RefusedError, match="not trusted"):
        await desk.serve(peer)
    assert [frame.seq for frame in peer.got if isinstance(frame, BeatAck)] == [1], "its fence is not renewed any more"
    assert [type(event) for event in desk.events] == [NodeRegistered, NodeBeat, NodeDisconnected]


async def test_what_follows_from_a_registration_comes_after_registered() -> None:
    desk, peer = Desk(), Peer(register(highest_epoch=(9, 9)), Bye())
    desk.react = lambda event: isinstance(event, NodeRegistered) and desk.sessions.post("n1", HOSTS, *[HOSTS] * 9)
    await desk.serve(peer)
    await asyncio.sleep(0)
    assert [frame.type for frame in peer.got] == ["registered"] + 10 * ["hosts_here"]


async def test_whom_control_turns_away_is_never_told_registered() -> None:
    desk, peer = Desk(), Peer(register())

    def turn_away(event: Event) -> None:
        if isinstance(event, NodeRegistered):
            desk.sessions.close("n1", "that is the name of a logical host")
            assert not desk.sessions.post("n1", HOSTS)

    desk.react = turn_away
    with pytest.raises(ConnectionLost):
        await desk.serve(peer)
    assert not any(isinstance(frame, Registered | HostsHere) for frame in peer.got)
    assert "logical host" in peer.reason


@pytest.mark.parametrize("frames", [1, 9])
async def test_a_session_that_misses_a_frame_is_ended(frames: int) -> None:
    desk, peer = Desk(), Peer(register())
    serving = asyncio.create_task(desk.serve(peer))
    async with asyncio.timeout(60):
        await peer.heard.wait()
    peer.too_long = True
    desk.sessions.post("n1", *frames * [HOSTS])
    with pytest.raises(ConnectionLost):
        await serving
    assert isinstance(desk.events[-1], NodeDisconnected) and not desk.sessions.connected("n1")


async def test_an_agent_that_does_not_want_us_says_why() -> None:
    desk = Desk()
    await desk.serve(Peer(Bye(reason="epoch (0, 7) is behind (0, 8)")))
    assert desk.events == []
