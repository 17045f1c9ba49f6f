"""A job on a logical host with processes beside its GPUs of another node: real daemons and processes, played GPUs.

NVML is a module that tells of GPUs, and circuits are entries of a set; all else is as it is: LIMs, a scheduler,
agents that start processes. n1 is the host's anchor and has one GPU, n2 has two.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cluster import LimProcess, until
from part_nodes import World, running_node
from whole import Whole

from lavalite.api.models import DefinitionPut, Submit
from lavalite.base.errors import LavaLiteError
from lavalite.model.job import JobSpec
from lavalite.sbatchd.process import ProcessExecutor

pytestmark = pytest.mark.asyncio(loop_scope="module")
GPUS = {"n1": "G1a", "n2": "G2a,G2b"}
POOLS = """
cluster: test
pools:
  anchors: {nodes: n1, kinds: [cpu, memory]}
  gpus: {nodes: "n1,n2", kinds: [gpu]}
"""
HOST = """
logical_hosts:
  h:
    cpu: 1
    memory: 64MiB
    gpu: 3
    pools: {cpu: anchors, memory: anchors, gpu: gpus}
    far: {gpu: 2, circuit: 1Mbit/s}
    on_loss: fail
"""
CIRCUIT = {("n1", "circuit", "h/circuit/n2"), ("n2", "circuit", "h/circuit/n2")}


class Site:
    def __init__(self, cluster: Whole, world: World, leader: LimProcess) -> None:
        self.cluster, self.world, self.leader = cluster, world, leader

    def define(self, text: str) -> None:
        with self.cluster.client(self.leader) as client:
            client.put_definition(DefinitionPut(text=text, purge=True))

    async def composed(self) -> None:
        self.define(POOLS + HOST)
        await until(lambda: self._host_is("composed"), 60, "the host is composed")

    async def gone(self) -> None:
        """And nothing of it is left: no circuit, nothing held."""
        self.define(POOLS)

        async def look() -> bool:
            with self.cluster.client(self.leader) as client:
                held = [a.committed for node in client.nodes() for a in node.resources.values()]
                return not list(client.hosts()) and not any(held) and not self.world.all()

        await until(look, 60, "nothing is left of the host")

    async def _host_is(self, state: str) -> bool:
        with self.cluster.client(self.leader) as client:
            return any(host.name == "h" and host.state == state for host in client.hosts())

    def submit(self, near: str, far: str, *, gpus: int = 2) -> int:
        """A process on the anchor, with its GPU, and one beside the others; each runs its shell text."""
        parts = [
            {"name": name, "request": {"cpu_milli": 100, "gpu_milli": count * 1000}, "command": ["sh", "-c", text]}
            for name, text, count in (("near", near, 1), ("far", far, gpus))
        ]
        spec = JobSpec.model_validate({"command": ["true"], "host": "h", "parts": parts})
        with self.cluster.client(self.leader) as client:
            return client.submit([Submit(spec=spec)]).ids[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: Any) -> AsyncIterator[Site]:
    folder, world = tmp_path_factory.mktemp("launch"), World()
    store = {"kind": "sqlite", "path": str(folder / "store.db")}
    cluster = Whole(folder / "c", {"n1": 5}, ("n2",), store=store)
    cluster.agents.clear()  # they are played, but for the processes that they start
    played = Path(__file__).parent / "fake_gpus"
    for node, gpus in GPUS.items():
        cluster.lims[node].before = ("env", f"PYTHONPATH={played}", f"FAKE_GPUS={gpus}")
    with cluster.running():
        async with contextlib.AsyncExitStack() as nodes:
            for node in GPUS:
                keeper = folder / node / "keeper"
                keeper.mkdir(parents=True)
                executor = ProcessExecutor(keeper, keeper_idle_seconds=1.0)
                await nodes.enter_async_context(running_node(cluster.lims[node], world, folder / node, executor))
            yield Site(cluster, world, await cluster.serving(nodes=2))


@pytest_asyncio.fixture(loop_scope="module")
async def site(running: Site) -> AsyncIterator[Site]:
    await running.composed()
    yield running
    await running.gone()


async def test_a_process_is_on_the_anchor_and_one_beside_the_far_gpus(site: Site, tmp_path: Path) -> None:
    go, told = tmp_path / "go", [tmp_path / "near", tmp_path / "far"]
    words = [f"env > {file}.new && mv {file}.new {file}; until [ -e {go} ]; do sleep 0.1; done" for file in told]
    number = site.submit(*words)
    try:
        await until(lambda: _all_there(told), 60, "both have started")
        near, far = (dict(line.split("=", 1) for line in file.read_text().splitlines()) for file in told)
        assert [near[name] for name in ("LAVALITE_HOST", "LAVALITE_GPUS", "LAVALITE_PART")] == ["h", "G1a", "near"]
        assert [far[name] for name in ("LAVALITE_HOST", "LAVALITE_GPUS", "LAVALITE_PART")] == ["h", "G2a,G2b", "far"]
        assert far["LAVALITE_GPU_NODES"] == "n2:G2a,G2b" and far["CUDA_VISIBLE_DEVICES"] == "G2a,G2b"
        assert near["LAVALITE_NODES"] == far["LAVALITE_NODES"] == "n1:1 n2:1"
        tasks = site.cluster.tasks(site.leader, number)
        assert [(task.state, task.node) for task in tasks] == [("running", "n1"), ("running", "n2")]
        with site.cluster.client(site.leader) as client:
            n2 = client.node("n2").resources
            assert (n2["cpu"].committed, n2["gpu"].committed) == (100, 2000)
            waits = site.submit("true", "true")
            why = client.explain(waits).parts[1]
            assert [why[name] for name in ("nearest", "lacks", "held_by")] == [
                "h@n2",
                {"gpu": 2000},
                [f"job {number} (2 gpu)"],
            ]
            client.cancel(waits)
    finally:
        go.touch()
    assert (await site.cluster.ended(site.leader, number)).state == "succeeded"


async def test_what_asks_for_more_than_the_anchor_has_is_told_to_ask_by_parts(site: Site) -> None:
    spec = JobSpec.model_validate({"command": ["true"], "host": "h", "request": {"gpu_milli": 2000}})
    with site.cluster.client(site.leader) as client:
        try:
            client.submit([Submit(spec=spec)])
        except LavaLiteError as error:
            assert "ask by --part, a task for each node" in str(error.fault.hint), error.fault
        else:
            raise AssertionError("it was let in")


async def test_when_the_host_loses_the_part_the_process_there_is_ended_and_all_of_its_job(
    site: Site, tmp_path: Path
) -> None:
    pids = [tmp_path / "near", tmp_path / "far"]
    words = [f"echo $$ > {file}.new && mv {file}.new {file}; exec sleep 1000" for file in pids]
    number = site.submit(*words)
    await until(lambda: _all_there(pids), 60, "both have started")
    running = [int(file.read_text()) for file in pids]
    site.world.broken.add(("n2", "circuit"))
    try:
        assert (await site.cluster.ended(site.leader, number)).state == "failed"
    finally:
        site.world.broken.clear()
    ends = site.cluster.tasks(site.leader, number)
    assert any("its logical host lost a part" in (task.reason or "") for task in ends), ends
    for pid in running:
        await until(lambda pid=pid: _is_gone(pid), 30, f"{pid} has ended")


async def _all_there(files: list[Path]) -> bool:
    return all(file.exists() for file in files)


async def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
