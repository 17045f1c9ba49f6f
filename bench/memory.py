"""How much memory mbatchd holds with 10,000 nodes and 100,000 pending jobs, and how much more an array of a million.

python bench/memory.py [--nodes 10000] [--jobs 100000] [--classes 50] [--array 1000000] [--json]

A real LIM starts a real mbatchd, over SQLite. Nodes and jobs lie in its store as another mbatchd leaves them, and it
loads them, as after a fail-over. The nodes' agents are away, so that nothing starts. Then an array of so many tasks
is submitted. The memory is the resident set (VmRSS) of mbatchd's process, once it has settled down.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests/service")]

from cluster import CLUSTER, until  # noqa: E402
from figures import Figure, at_most, noted, report  # noqa: E402
from whole import Whole  # noqa: E402

from lavalite.base.clock import SystemClock  # noqa: E402
from lavalite.base.errors import LavaLiteError  # noqa: E402
from lavalite.model.job import Array, JobRecord, JobSpec, Request  # noqa: E402
from lavalite.model.node import NodeRecord  # noqa: E402
from lavalite.model.resources import NodeOffer, Resource  # noqa: E402
from lavalite.store.base import Put  # noqa: E402
from lavalite.store.keys import Keys  # noqa: E402
from lavalite.store.sqlite import SqliteStore  # noqa: E402

GIB = 1024**3
MIB = 1024**2
SEED = 20260101
RSS_MIB, ARRAY_MIB = 300, 64
SERVING_SECONDS = 300.0
SETTLE_SECONDS = 3.0
CANDIDATE = "ctl"


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory of mbatchd.")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--array", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="the last line is a list of the figures")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lava-") as folder:
        figures = asyncio.run(measured(Path(folder), asked.nodes, asked.jobs, asked.classes, asked.array))
    return report(figures, as_json=asked.json)


async def measured(folder: Path, nodes: int, jobs: int, classes: int, array: int) -> list[Figure]:
    empty = (await _measure(folder / "empty", [], 0))[0]
    puts = [*node_records(nodes), *job_records(jobs, classes)]
    full, more, seconds = await _measure(folder / "full", puts, array)
    return [
        noted("rss_mib of an mbatchd without nodes or jobs", empty, "MiB"),
        at_most("rss_mib", full, "MiB", RSS_MIB, f"{nodes} nodes, {jobs} pending jobs of {classes} classes"),
        noted("bytes per node and per pending job together", (full - empty) * MIB / (nodes + jobs), "B"),
        noted("seconds until it serves", seconds, "s", "LIM's start and election included"),
        at_most("array_extra_mib", more, "MiB", ARRAY_MIB, f"one array of {array} tasks"),
    ]


async def _measure(folder: Path, puts: list[Put], array: int) -> tuple[float, float, float]:
    """(MiB with what lies in the store, MiB more with an array, seconds until mbatchd served)."""
    folder.mkdir()
    store = {"kind": "sqlite", "path": str(folder / "store.db")}
    await _fill(folder / "store.db", puts)
    whole = Whole(folder, {CANDIDATE: 9}, store=store, lease_ttl_seconds=60)
    whole.agents.clear()
    began = time.monotonic()
    with whole.running():
        lim = await whole.lims.leader()

        async def serves() -> bool:
            with contextlib.suppress(LavaLiteError):
                return sum(whole.client(lim).status().jobs.values()) >= sum("/jobs/" in put.key for put in puts)
            return False

        await until(serves, SERVING_SECONDS, "mbatchd serves all jobs")
        seconds, process = time.monotonic() - began, whole.scheduler_pid(lim)
        before = await _settled_mib(process)
        if array:
            whole.submit(lim, ["true"], array=Array(first=1, last=array))
        return before, await _settled_mib(process) - before, seconds


async def _settled_mib(process: int) -> float:
    """The resident set, once some seconds have passed over it: timers and collections are a part of its life."""
    await asyncio.sleep(SETTLE_SECONDS)
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / MIB


async def _fill(path: Path, puts: list[Put]) -> None:
    store = await SqliteStore.open(path, clock=SystemClock())
    try:
        size = store.max_txn_operations
        for first in range(0, len(puts), size):
            await store.txn([], puts[first : first + size])
    finally:
        await store.close()


def node_records(count: int) -> Iterator[Put]:
    keys, rng = Keys(CLUSTER), random.Random(SEED)
    for number in range(count):
        node = f"node{number:05d}"
        amounts = {
            "cpu": (rng.choice([32, 64, 128]) * 1000, "milli-core"),
            "memory": (rng.choice([128, 256, 512]) * GIB, "byte"),
            "storage": (2048 * GIB, "byte"),
            "network": (25 * 10**9, "bit/s"),
        }
        resources = [
            Resource(name=f"{node}/{kind}", kind=kind, amount=amount, unit=unit, owner=node)
            for kind, (amount, unit) in amounts.items()
        ]
        labels = {"rack": [f"r{number // 40}"]}
        offer = NodeOffer(node=node, boot_id=f"boot-{node}", labels=labels, resources=resources)
        record = NodeRecord(offer=offer, journal_id=f"journal-{node}")
        yield Put(keys.resources(node), record.model_dump_json().encode())


def job_records(count: int, classes: int) -> Iterator[Put]:
    """As a user's shell submits them: with a folder, an environment and names of output files."""
    keys, rng = Keys(CLUSTER), random.Random(SEED)
    asked = [Request(cpu_milli=100 * (1 + at), memory_bytes=(1 + at) * GIB) for at in range(classes)]
    for number in range(1, count + 1):
        user = rng.randrange(20)
        spec = JobSpec(
            name=f"step-{number}",
            command=["/usr/local/bin/solve", "--case", str(number)],
            queue="normal",
            request=asked[rng.randrange(classes)],
            cwd=f"/home/user{user}/work",
            environment={"HOME": f"/home/user{user}", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            stdout_path="out-%J.txt",
            user=f"user{user}",
            uid=1000 + user,
            gid=1000 + user,
            group=f"group{user % 4}",
        )
        record = JobRecord(
            id=number, spec=spec, submitted_at=1.7e9 + number, submit_key=f"{1000 + user}:key-{number}"
        )
        yield Put(keys.job(number), record.model_dump_json(exclude_defaults=True).encode())
    yield Put(keys.job_counter, str(count).encode())


if __name__ == "__main__":
    raise SystemExit(main())
