"""Devices of a kind that an operator named, by real daemons: found, given to one job at a time, lost, and back."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cluster import LimProcess, until
from whole import Whole

from lavalite.api.models import DefinitionPut
from lavalite.base.errors import InputError
from lavalite.model.job import Array, Request

pytestmark = pytest.mark.asyncio(loop_scope="module")
POOLS = """
cluster: test
pools:
  general: {nodes: n1, kinds: [cpu, memory], default: true}
  accel: {nodes: n1, kinds: [fpga]}
"""
HOST = "logical_hosts:\n  dsp: {cpu: 0.1, special: {fpga: {count: 1, pool: accel, model: U250}}}\n"
# To make a folder is to take the device: it fails where anybody has it.
TAKE = (
    'held="$HELD/$(basename "$LAVALITE_SPECIAL_FPGA")"; mkdir "$held" && sleep 0.2 && rmdir "$held" && '
    'echo "$LAVALITE_SPECIAL_FPGA"'
)


class Site:
    """One node, with a folder that stands for its devices."""

    def __init__(self, cluster: Whole, lim: LimProcess, devices: Path) -> None:
        self.cluster, self.lim, self.devices = cluster, lim, devices

    def boards(self) -> int:
        with self.cluster.client(self.lim) as client:
            found = client.node("n1").resources.get("fpga")
            return found.capacity if found else 0

    async def run(self, script: str, held: Path, count: int = 1, **fields: object) -> list[str]:
        """What each of so many tasks wrote, all of which succeed."""
        array = Array(first=1, last=count) if count > 1 else None
        fields = {"request": Request(cpu_milli=10, special={"fpga": 1})} | fields
        job = self.cluster.submit(
            self.lim, ["/bin/sh", "-c", script], array=array, environment={"HELD": str(held)}, **fields
        )
        done = await self.cluster.ended(self.lim, job)
        assert done.state == "succeeded", (done, self.output(job, done.tasks))
        return self.output(job, count)

    def output(self, job: int, count: int) -> list[str]:
        with self.cluster.client(self.lim) as client:
            tasks = range(1, count + 1) if count > 1 else [None]
            return [b"".join(client.output(job, task=task)).decode().strip() for task in tasks]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    devices = folder / "dev"
    devices.mkdir()
    for number in range(2):
        (devices / f"xdma{number}").touch()
    cluster = Whole(
        folder / "c",
        {"n1": 5},
        store={"kind": "sqlite", "path": str(folder / "store.db")},
        special={"fpga": {"paths": [f"{devices}/xdma*"], "model": "U250"}},
        discover_seconds=0.5,
    )
    with cluster.running():
        yield Site(cluster, await cluster.serving(), devices)


async def test_two_jobs_never_have_the_same_device(site: Site, tmp_path: Path) -> None:
    assert site.boards() == 2
    wrote = await site.run(TAKE, tmp_path, count=12)
    assert set(wrote) == {f"{site.devices}/xdma0", f"{site.devices}/xdma1"}
    with site.cluster.client(site.lim) as client:
        assert client.node("n1").resources["fpga"].committed == 0


async def test_a_host_has_a_device_and_so_has_what_runs_on_it(site: Site, tmp_path: Path) -> None:
    with site.cluster.client(site.lim) as client:
        with pytest.raises(InputError, match="no node of pool accel has U280"):
            client.plan(DefinitionPut(text=POOLS + HOST.replace("U250", "U280")))
        client.put_definition(DefinitionPut(text=POOLS + HOST))

        async def composed() -> bool:
            return client.host("dsp").state == "composed"

        await until(composed, 20, "the host is there")
        (part,) = [part for part in client.host("dsp").parts if part.kind == "fpga"]
        assert (part.amount, part.pool) == (1, "accel")
        inside = await site.run(TAKE, tmp_path, count=3, host="dsp")
        assert set(inside) == set(part.devices)
        outside = await site.run(TAKE, tmp_path, count=3)
        assert set(outside).isdisjoint(part.devices)
        program = site.lim.folder / "s" / "hosts" / "dsp" / "enter"
        entered = [str(program), "-c", "echo $LAVALITE_SPECIAL_FPGA"]
        done = await asyncio.to_thread(subprocess.run, entered, capture_output=True, text=True, timeout=60)
        assert done.stdout.split() == part.devices
        client.put_definition(DefinitionPut(text=POOLS, purge=True))

        async def gone() -> bool:
            return not list(client.hosts()) and not client.node("n1").resources["fpga"].committed

        await until(gone, 20, "the host is gone")


async def test_a_device_that_vanishes_is_given_to_nobody_until_it_is_back(site: Site, tmp_path: Path) -> None:
    (site.devices / "xdma0").rename(site.devices / "gone")

    async def one() -> bool:
        return site.boards() == 1

    await until(one, 20, "one is left")
    assert set(await site.run(TAKE, tmp_path, count=3)) == {f"{site.devices}/xdma1"}
    (site.devices / "gone").rename(site.devices / "xdma0")

    async def two() -> bool:
        return site.boards() == 2

    await until(two, 20, "both are there again")
