"""How long a planner waits for a compute group: durable, at 8 GPUs and at 10,000, and of a running system.

python bench/groups.py [--allocations 300] [--held 2000] [--processes 16] [--together 1000] [--json]

On one machine without daemons: one planner allocates groups of one GPU, each durable when it is answered, beside
a bare transaction of the same bytes on the same kind of file, in turns; on one node of 8 GPUs, and on 1,250 such,
where so many groups are held already. Then so many processes at once take so many GPUs between them: none may be
given twice, none may be lost. Last, a system is started on this machine (`lavalite up`), and groups of a hundredth
of a core are allocated there, each until it is held; and how long it takes to discover this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench")]

from figures import Figure, at_most, noted, report  # noqa: E402

from lavalite.base.clock import SystemClock  # noqa: E402
from lavalite.groups import ComputeGroupManager, InsufficientResourcesError, connect  # noqa: E402
from lavalite.groups.embedded import LedgerProvider  # noqa: E402
from lavalite.groups.local import LocalComputeResourceProvider  # noqa: E402
from lavalite.groups.store_ledger import StoreLedger  # noqa: E402
from lavalite.model.resources import CPU, GPU, MEMORY, UNITS, WHOLE, Device, NodeOffer, Resource  # noqa: E402
from lavalite.store.base import Compare, Put  # noqa: E402
from lavalite.store.sqlite import SqliteStore  # noqa: E402

GPUS_EACH = 8
ASKED = {"gpu": 1, "cpu": 1, "memory": "1GiB"}
P50_MS, P99_MS, CLUSTER_MS, DISCOVERY_MS = 2.0, 10.0, 20.0, 200.0
BYTES = 700
"""About as many as the record of a group has."""


class Offered(LedgerProvider):
    """Nodes as they are given: no such machine needs to be here."""

    def __init__(self, ledger: StoreLedger, nodes: int) -> None:
        super().__init__(ledger, clock=SystemClock())
        self._offers = [offer(f"n{number:04d}") for number in range(nodes)]

    async def _discover(self) -> list[NodeOffer]:
        return self._offers


def offer(node: str) -> NodeOffer:
    gpus = [
        Device(
            id=f"{node}-g{at}", model="H100", memory_bytes=80 * 2**30, numa_node=at // 4, attributes={"nvlink": "0"}
        )
        for at in range(GPUS_EACH)
    ]
    amounts = {CPU: 64 * WHOLE, MEMORY: 2**40, GPU: len(gpus) * WHOLE}
    resources = [
        Resource(name=f"{node}/{k}", kind=k, amount=a, unit=UNITS[k], owner=node, devices=gpus if k == GPU else [])
        for k, a in amounts.items()
    ]
    return NodeOffer(node=node, boot_id="bench", resources=resources)


async def opened(path: Path, nodes: int) -> ComputeGroupManager:
    store = await SqliteStore.open(path, clock=SystemClock())
    provider = Offered(StoreLedger(store, "bench", clock=SystemClock()), nodes)
    await provider.start()
    return ComputeGroupManager(provider)


def main() -> int:
    parser = argparse.ArgumentParser(description="How long a planner waits for a compute group.")
    parser.add_argument("--allocations", type=int, default=300, help="so many are timed, at each size")
    parser.add_argument("--held", type=int, default=2000, help="so many groups are held already, of 10,000 GPUs")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--together", type=int, default=1000, help="so many GPUs are taken by all processes at once")
    parser.add_argument("--taker", nargs=2, metavar=("FILE", "NODES"), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="the last line is a list of the figures")
    asked = parser.parse_args()
    if asked.taker:
        asyncio.run(take_all(Path(asked.taker[0]), int(asked.taker[1])))
        return 0
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="lava-") as folder:
        for nodes, held in ((1, 0), (10_000 // GPUS_EACH, asked.held)):
            figures += asyncio.run(alone(Path(folder) / f"{nodes}.db", nodes, held, asked.allocations))
        figures += together(Path(folder) / "together.db", asked.processes, asked.together)
        figures += asyncio.run(discovery(Path(folder) / "here.db"))
        figures += running_system(Path(folder), min(100, asked.allocations))
    return report(figures, as_json=asked.json)


async def alone(path: Path, nodes: int, held: int, allocations: int) -> list[Figure]:
    """One planner, nobody else."""
    bare_store = await SqliteStore.open(path.with_suffix(".bare"), clock=SystemClock())
    ours, bare = list[float](), list[float]()
    async with await opened(path, nodes) as manager:
        for number in range(held):
            await manager.allocate_compute_group(f"held-{number % 50}", ASKED)
        taken = []
        revision = 0
        for number in range(allocations):
            began = time.perf_counter()
            written = [Put(f"groups/{number}", b"x" * BYTES), Put("head", b"x" * 800)]
            revision = (await bare_store.txn([Compare.unchanged("head", revision)], written)).revision
            bare.append(time.perf_counter() - began)
            began = time.perf_counter()
            taken.append(await manager.allocate_compute_group("decode", ASKED))
            ours.append(time.perf_counter() - began)
            if len(taken) == min(allocations, GPUS_EACH):  # a node is full: the same again
                for group in taken:
                    await manager.deallocate_compute_group(group.id)
                taken = []
    await bare_store.close()
    gpus = nodes * GPUS_EACH
    peer = f"a bare transaction: p50 {part(bare, 50):.2f} ms, p99 {part(bare, 99):.2f}"
    return [
        at_most(f"allocate_p50_ms, {gpus} GPUs", part(ours, 50), "ms", P50_MS, f"{held} held; {peer}"),
        at_most(f"allocate_p99_ms, {gpus} GPUs", part(ours, 99), "ms", P99_MS),
    ]


def part(seconds: list[float], percent: int) -> float:
    """So many per cent are no longer than this; in milliseconds, by nearest rank."""
    return sorted(seconds)[max(0, -(-len(seconds) * percent // 100) - 1)] * 1000


async def take_all(path: Path, nodes: int) -> None:
    """One of many takers: as many GPUs as it gets, then it says which. It begins when all are ready."""
    async with await opened(path, nodes) as manager:
        print("ready", flush=True)
        sys.stdin.readline()
        got, waits = [], []
        while True:
            began = time.perf_counter()
            try:
                group = await manager.allocate_compute_group("taker", ASKED, {"lifetime": "manual"})
            except InsufficientResourcesError:
                break
            waits.append(time.perf_counter() - began)
            got += [gpu["id"] for gpu in group.resources["gpus"]]
        print(json.dumps({"got": got, "waits": waits}), flush=True)


def together(path: Path, processes: int, gpus: int) -> list[Figure]:
    nodes = max(1, gpus // GPUS_EACH)
    command = [sys.executable, __file__, "--taker", str(path), str(nodes)]
    takers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for taker in takers:
        assert taker.stdout and taker.stdout.readline() == "ready\n"
    began = time.perf_counter()
    said = []
    for taker in takers:
        assert taker.stdin
        taker.stdin.write("go\n")
        taker.stdin.flush()
    for taker in takers:
        out, _ = taker.communicate(timeout=600)
        said.append(json.loads(out))
    seconds = time.perf_counter() - began
    given = Counter(device for one in said for device in one["got"])
    waits = [wait for one in said for wait in one["waits"]]
    double = sum(count - 1 for count in given.values())
    return [
        at_most(f"given twice, {processes} processes", double, "", 0, f"{sum(given.values())} allocations"),
        at_most("not given", nodes * GPUS_EACH - len(given), "", 0, f"of {nodes * GPUS_EACH} GPUs"),
        noted("allocations per second, all together", sum(given.values()) / seconds, "/s"),
        noted("allocate_p50_ms, all together", part(waits, 50), "ms", f"p99 {part(waits, 99):.1f} ms"),
    ]


async def discovery(path: Path) -> list[Figure]:
    times = []
    async with await LocalComputeResourceProvider.open(path) as provider:
        for _ in range(5):
            began = time.perf_counter()
            await provider.discover_resources()
            times.append(time.perf_counter() - began)
    return [at_most("discovery_ms", part(times, 50), "ms", DISCOVERY_MS, "the middle of five, GPUs as there are")]


def running_system(folder: Path, allocations: int) -> list[Figure]:
    command = Path(sys.executable).with_name("lavalite")
    state = tempfile.mkdtemp(prefix="ll-")  # short: sockets have to fit below it
    environment = {**os.environ, "LAVALITE_STATE": f"{state}/s"}
    subprocess.run([command, "up", "--port-base", "0"], env=environment, check=True, capture_output=True, timeout=120)
    os.environ["LAVALITE_STATE"] = f"{state}/s"
    try:
        times = asyncio.run(_of_a_system(allocations))
    finally:
        subprocess.run([command, "down", "--purge"], env=environment, check=False, capture_output=True, timeout=120)
    peer = f"lavalite up: p99 {part(times, 99):.1f} ms"
    return [at_most("allocate_p50_ms, a running system", part(times, 50), "ms", CLUSTER_MS, peer)]


async def _of_a_system(allocations: int) -> list[float]:
    times = []
    async with await connect("up") as manager:
        for _ in range(allocations):
            began = time.perf_counter()
            group = await manager.allocate_compute_group("decode", {"cpu": 0.01})
            times.append(time.perf_counter() - began)
            await manager.deallocate_compute_group(group.id)
    return times


if __name__ == "__main__":
    sys.exit(main())
