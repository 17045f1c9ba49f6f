"""The leader is killed at each step of composing, resizing and releasing a host: in the end it is whole or gone.

Real LIMs, real schedulers, a real etcd and the agents' real core and records; what is attached is played.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from cluster import LimProcess, until
from etcd_server import EtcdServer
from part_nodes import Gate, World, running_node
from patience import PATIENCE_SECONDS
from whole import Whole

from lavalite.api.models import DefinitionPut, Host

pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]
GIB = 2**30
LESS = 2**28
"""So much below what the anchor has, that no rounding keeps any far memory."""
POOLS = """
cluster: test
pools:
  cores: {nodes: n1, kinds: [cpu], default: true}
  ram: {nodes: "n1,n3", kinds: [memory], default: true}
  flash: {nodes: n2, kinds: [storage], default: true}
links:
  - {from: {site: lab}, to: switch, bandwidth: 10Gbit/s}
"""
DISK = {
    ("n1", "circuit", "a/circuit/n2"),
    ("n1", "disk", "a/storage/n2"),
    ("n2", "circuit", "a/circuit/n2"),
    ("n2", "export", "a/storage/n2"),
}
LARGER = {(node, role, "a/storage/n2.2" if role in ("disk", "export") else part) for node, role, part in DISK}
FAR = {
    ("n1", "circuit", "a/circuit/n3"),
    ("n1", "swap", "a/memory/n3"),
    ("n3", "circuit", "a/circuit/n3"),
    ("n3", "export", "a/memory/n3"),
}
Parts = set[tuple[str, str, str]]


class Site:
    """Three candidates that are nodes too. n1 has the host's CPU, n2 its disk; of n3 is memory that n1 has not."""

    def __init__(self, cluster: Whole, world: World, leader: LimProcess) -> None:
        self.cluster, self.world, self.leader = cluster, world, leader
        with cluster.client(leader) as client:
            self.near_bytes = client.node("n1").resources["memory"].capacity

    def host(self) -> Host | None:
        with self.cluster.client(self.leader) as client:
            return next((host for host in client.hosts() if host.name == "a"), None)

    def ask(self, far_bytes: int | None, storage: str = "1GiB") -> None:
        """A host with so much far memory, and such a disk; None takes it away."""
        text = POOLS
        if far_bytes is not None:
            memory = f"{self.near_bytes + far_bytes}"
            text += f"logical_hosts:\n  a: {{cpu: 1, memory: {memory}B, far: {{memory: 50%, circuit: 100Mbit/s}}, "
            text += f"storage: {{size: {storage}, circuit: 100Mbit/s}}}}\n"
        with self.cluster.client(self.leader) as client:
            client.put_definition(DefinitionPut(text=text, purge=True))

    async def settled(self, state: str, parts: Parts) -> None:
        """The host is so, those parts and no others stand, and no more is held than that."""
        holds = [parts >= FAR, any(part.startswith("a/storage/") for _, _, part in parts)]

        async def look() -> bool:
            host = self.host()
            with self.cluster.client(self.leader) as client:
                of = [client.node(node).resources[kind] for node, kind in (("n3", "memory"), ("n2", "storage"))]
            held = [amounts.committed > 0 for amounts in of]
            return (host.state if host else "gone", set(self.world.all()), held) == (state, parts, holds)

        try:
            await until(look, 60, f"the host is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.host()}, {self.world.all()}") from None
        assert len(self.world.all()) == len(parts)

    async def kill_leader_at(self, gate: Gate, *, opened_first: bool) -> None:
        """The leader and its scheduler, at once, while somebody stands at the gate. Another candidate leads then."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await gate.reached.wait()
        except TimeoutError:
            raise AssertionError(f"nobody came to {gate}: {self.host()}, {self.world.all()}") from None
        old = self.leader
        before = (await old.leader()).epoch
        assert before is not None
        os.kill(self.cluster.scheduler_pid(old), signal.SIGKILL)
        old.kill()
        if opened_first:
            gate.opened.set()
        self.leader = await self.cluster.serving(above=before, nodes=2)
        gate.opened.set()
        old.start()
        self.leader = await self.cluster.serving(above=before, nodes=3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder, world = tmp_path_factory.mktemp("site"), World()
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        store = {"kind": "etcd", "endpoints": server.endpoints}
        # Of one priority: who comes back does not take the leadership back, and a case is over sooner.
        cluster = Whole(folder / "c", {"n1": 5, "n2": 5, "n3": 5}, store=store, labels={"site": "lab"})
        cluster.agents.clear()  # they are played
        with cluster.running():
            async with contextlib.AsyncExitStack() as nodes:
                for node in ("n1", "n2", "n3"):
                    await nodes.enter_async_context(running_node(cluster.lims[node], world, folder / node))
                leader = await cluster.serving(nodes=3)
                yield Site(cluster, world, leader)


@pytest_asyncio.fixture(loop_scope="module")
async def site(running: Site) -> AsyncIterator[Site]:
    """With no host, and nothing of one left."""
    running.world.gate = None
    running.ask(None)
    await running.settled("gone", set())
    yield running


@pytest.mark.parametrize("fails", [False, True], ids=["goes-on", "fails"])
@pytest.mark.parametrize("role", ["circuit", "export", "disk", "swap"])
async def test_composing(site: Site, role: str, fails: bool) -> None:
    gate = site.world.gate = Gate("make", role, fails)
    site.ask(GIB)
    await site.kill_leader_at(gate, opened_first=role in ("export", "swap"))
    await site.settled("failed" if fails else "composed", set() if fails else DISK | FAR)


@pytest.mark.parametrize("fails", [False, True], ids=["goes-on", "fails"])
@pytest.mark.parametrize("role", ["export", "swap"])
async def test_growing(site: Site, role: str, fails: bool) -> None:
    site.ask(0)
    await site.settled("composed", DISK)
    gate = site.world.gate = Gate("make", role, fails)
    site.ask(GIB)
    await site.kill_leader_at(gate, opened_first=role == "swap")
    await site.settled("composed", DISK if fails else DISK | FAR)
    host = site.host()
    assert host is not None and bool(host.reason) == fails, host


@pytest.mark.parametrize("fails", [False, True], ids=["goes-on", "fails"])
@pytest.mark.parametrize("role", ["export", "disk"])
async def test_a_larger_disk_takes_the_place_of_one(site: Site, role: str, fails: bool) -> None:
    site.ask(0)
    await site.settled("composed", DISK)
    gate = site.world.gate = Gate("make", role, fails)
    site.ask(0, "2GiB")
    await site.kill_leader_at(gate, opened_first=role == "disk")
    await site.settled("composed", DISK if fails else LARGER)
    host = site.host()
    assert host is not None and bool(host.reason) == fails, host


@pytest.mark.parametrize("role", ["disk", "export"])
async def test_the_disk_goes_whose_place_is_taken(site: Site, role: str) -> None:
    site.ask(0)
    await site.settled("composed", DISK)
    gate = site.world.gate = Gate("remove", role)
    site.ask(0, "2GiB")
    await site.kill_leader_at(gate, opened_first=role == "export")
    await site.settled("composed", LARGER)


@pytest.mark.parametrize("role", ["swap", "export", "circuit"])
async def test_shrinking(site: Site, role: str) -> None:
    site.ask(GIB)
    await site.settled("composed", DISK | FAR)
    gate = site.world.gate = Gate("remove", role)
    site.ask(-LESS)
    await site.kill_leader_at(gate, opened_first=role == "export")
    await site.settled("composed", DISK)


@pytest.mark.parametrize("role", ["disk", "export", "circuit"])
async def test_releasing(site: Site, role: str) -> None:
    site.ask(GIB)
    await site.settled("composed", DISK | FAR)
    gate = site.world.gate = Gate("remove", role)
    site.ask(None)
    await site.kill_leader_at(gate, opened_first=role == "export")
    await site.settled("gone", set())
