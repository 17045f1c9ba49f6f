"""Sessions between agents and schedulers: frames are delayed, in order while the session lasts, and lost with it.

What was sent in a session that broke may still arrive after the next has begun: it must fall flat.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING

from sim_world import Machine, World

from lavalite.wire.connection import ConnectionLost
from lavalite.wire.frames import AnyFrame

if TYPE_CHECKING:
    from sim_agent import SimAgent


class Network:
    """`trouble`: the share of frames with which a session breaks. `cut`: nodes that reach nobody."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.trouble = 0.0
        self.cut: set[str] = set()
        self.held: list[tuple[SimConnection, str, object, tuple[object, ...]]] = []

    def mend(self, name: str) -> None:
        """The node reaches the others again; what was held is sent once more, in order."""
        self.cut.discard(name)
        held, self.held = self.held, []
        for connection, way, what, words in held:
            connection._pass(way, what, *words)

    def delay(self) -> float:
        return self.world.random.choice([0.0005, 0.001, 0.002, 0.01]) * self.world.random.uniform(0.5, 1.5)


class SimConnection:
    """One session, as the scheduler's side has it; the agent's side is what it is told by `number`."""

    def __init__(self, network: Network, scheduler: Machine, agent: SimAgent, number: int) -> None:
        self.hello = SimpleNamespace(node=agent.name, software_version="simulated")
        self.peer = agent.name
        self._network, self._scheduler, self._agent, self.number = network, scheduler, agent, number
        self._frames: asyncio.Queue[AnyFrame | None] = asyncio.Queue()
        self._broken = self._closed = False
        self._last = {"up": 0.0, "down": 0.0}

    # --- the scheduler's side

    async def receive(self) -> AnyFrame:
        frame = await self._frames.get()
        if frame is None:
            self._closed = True
            raise ConnectionLost("the session is over")
        return frame

    def post(self, *frames: AnyFrame) -> None:
        if self._closed:
            raise ConnectionLost("the session is over")
        for frame in frames:
            self._pass("down", self._agent.hear, self.number, frame)

    async def send(self, frame: AnyFrame) -> None:
        self.post(frame)

    async def close(self, reason: str = "") -> None:
        if not self._closed:
            self._closed = True
            self._frames.put_nowait(None)
            self._pass("down", self._agent.session_over, self.number)

    # --- the agent's side

    def say(self, frame: AnyFrame) -> None:
        self._pass("up", self._scheduler.take, self._frames.put_nowait, frame)

    def leave(self) -> None:
        self._pass("up", self._scheduler.take, self._frames.put_nowait, None)

    def _pass(self, way: str, what: object, *words: object) -> None:
        world, network = self._network.world, self._network
        if self._broken:
            return
        if network.cut & {self._agent.name, self._scheduler.name}:
            # Nobody is told: each finds out by silence. What was sent comes through once the way is open again.
            network.held.append((self, way, what, words))
            return
        if world.random.random() < network.trouble:
            self._break()
            return
        at = max(self._last[way], world.now + network.delay())
        self._last[way] = at
        world.at(at, what, *words)  # type: ignore[arg-type]
        if world.random.random() < network.trouble and way == "down" and words[0] == self.number:
            world.after(world.random.uniform(0.0, 0.5), what, *words)  # type: ignore[arg-type]

    def _break(self) -> None:
        """Each side is told some time later, or much later."""
        world, self._broken = self._network.world, True
        world.tell(f"network: session {self.number} of {self._agent.name} breaks")
        world.after(world.random.uniform(0.01, 3.0), self._scheduler.take, self._frames.put_nowait, None)
        world.after(world.random.uniform(0.01, 3.0), self._agent.session_over, self.number)
