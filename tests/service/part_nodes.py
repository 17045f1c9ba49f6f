"""Nodes whose agents are real but for what they attach: their parts are entries of a set, and can be held up.

The agent's core, its book of parts, its records on disk, its session: all as in sbatchd. Only the roles are played.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster import CLUSTER, LimProcess
from patience import PATIENCE_SECONDS

from lavalite.base.clock import SystemClock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.agent import Agent
from lavalite.sbatchd.attach.attachments import Attachments
from lavalite.sbatchd.attach.roles import Key, Made
from lavalite.sbatchd.core import AgentCore
from lavalite.sbatchd.entry import restore
from lavalite.sbatchd.executors import Launch, Listed, Tell
from lavalite.sbatchd.journal import Journal
from lavalite.sbatchd.keeper.proc import boot_id
from lavalite.sbatchd.launch import Launcher, Policy
from lavalite.sbatchd.session import LocalLim, Session
from lavalite.wire.frames import PartOrder

ROLES = ("circuit", "export", "disk", "swap")


@dataclass
class Gate:
    """Holds up whoever comes to one step, once, until it is opened."""

    verb: str
    role: str
    fails: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class World:
    """All that stands on all nodes, and what must be true of it at every moment."""

    standing: dict[str, dict[Key, PartOrder]] = field(default_factory=dict)
    gate: Gate | None = None

    def all(self) -> list[tuple[str, str, str]]:
        return sorted((node, key.role, key.part) for node, keys in self.standing.items() for key in keys)

    async def pass_gate(self, verb: str, role: str) -> None:
        gate = self.gate
        if gate is None or (gate.verb, gate.role) != (verb, role):
            return
        gate.reached.set()
        await gate.opened.wait()
        if gate.fails:
            raise LavaLiteError("the disk is broken", code="broken")

    def exports(self, order: PartOrder) -> list[str]:
        """The nodes on which there is what a disk or swap is of."""
        return [
            node
            for node, keys in self.standing.items()
            if Key(order.part, "export", order.incarnation) in keys and address(node) == order.address
        ]


def address(node: str) -> str:
    """Of a range for benchmarks: nobody goes there."""
    return f"198.18.0.{node.removeprefix('n')}"


class PlayedRole:
    def __init__(self, node: str, role: str, world: World) -> None:
        self._node, self._role, self._world = node, role, world

    @property
    def _here(self) -> dict[Key, PartOrder]:
        return self._world.standing[self._node]

    async def make(self, order: PartOrder) -> Made:
        key = Key.of(order)
        twins = [other for other in self._here if other[:2] == key[:2] and other != key]
        assert not twins, f"{key} beside {twins}"
        await self._world.pass_gate("make", self._role)
        if self._role in ("disk", "swap"):
            assert self._world.exports(order), f"{order} is attached before it is there"
        if self._role == "disk":
            disks = [k for k in self._here if (k.role, k.incarnation) == ("disk", order.incarnation) and k != key]
            names = [k.part for k in disks if self._here[k].host == order.host]
            assert not order.mirrors or names in ([], [order.mirrors]), f"{order} beside {names}"
            assert order.mirrors or not names or key in self._here, f"{order} is made anew beside {names}"
        self._here[key] = order
        if self._role == "export":
            return Made(address=address(self._node), port=order.port or 1)
        return Made(path="/scratch", device="/dev/mapper/disk") if self._role == "disk" else Made()

    async def remove(self, order: PartOrder) -> None:
        await self._world.pass_gate("remove", self._role)
        if self._role == "export":
            users = [
                key
                for keys in self._world.standing.values()
                for key in keys
                if key.part == order.part and key.role in ("disk", "swap") and key.incarnation == order.incarnation
            ]
            assert not users, f"{order} is taken from under {users}"
        self._here.pop(Key.of(order), None)

    async def check(self, order: PartOrder, made: Made) -> str:
        return ""


class NoExecutor:
    """Of these nodes nobody asks for work."""

    async def connect(self, tell: Tell, lost: object) -> Listed:
        return Listed(())

    async def start(self, launch: Launch) -> None:
        raise AssertionError("nothing is to be started here")

    async def signal(self, attempt: str, signal: int, **more: object) -> None:
        pass

    async def acknowledge(self, attempt: str) -> None:
        pass

    async def list(self) -> Listed:
        return Listed(())

    async def contact(self, sent: float) -> None:
        pass

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def running_node(lim: LimProcess, world: World, folder: Path) -> AsyncIterator[None]:
    """The agent of `lim`'s node, in this process."""
    folder.mkdir(parents=True)
    world.standing.setdefault(lim.node, {})
    clock, journal = SystemClock(), Journal(folder)
    launcher = Launcher(folder, Policy(0, 0, True), clock, grace_seconds=1, enforce_memory=False)
    core = AgentCore(restore(journal.open()), launcher.refusal, launcher.paths)
    roles = {role: PlayedRole(lim.node, role, world) for role in ROLES}
    parts = Attachments(folder / "parts", roles, clock, ports=range(1, 100), usable=lambda port: True)

    async def enterable(hosts: object) -> dict[str, int]:
        return {host.name: host.version for host in hosts}  # type: ignore[attr-defined]

    agent = Agent(
        core,
        journal,
        NoExecutor(),
        launcher,
        clock,
        own_uid=0,
        apply_hosts=enterable,
        parts=parts,  # type: ignore[arg-type]
    )
    session = Session(
        agent,
        LocalLim(lim.folder / "lim.sock", CLUSTER, lim.node),
        clock,
        cluster=CLUSTER,
        node=lim.node,
        boot_id=boot_id(),
        insecure=True,
        fabric_address=address(lim.node),
    )
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work) for work in (agent.run(), parts.run(), session.run())]
        async with asyncio.timeout(PATIENCE_SECONDS):
            await agent.ready.wait()
        try:
            yield
        finally:
            for task in running:
                task.cancel()
    journal.close()
