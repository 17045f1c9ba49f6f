"""Two planners in two processes fight for four GPUs, by random calls, and are killed in between."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from groups_local import open_planner

from lavalite.groups import ComputeGroupManager

CALLS = 10_000
CALLS_OF_ONE = 1000
"""So many a process makes, if it is not killed before."""
MOST_SECONDS = 5.0
"""So long one lives, on average twice as long as it takes to be killed."""
HERE = Path(__file__).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Corner:
    """One planner after the other, of one name."""

    def __init__(self, state: Path, folder: Path, name: str, seed: int, counted: Counter[str]) -> None:
        self._arguments = [str(state), str(folder), name]
        self._random = random.Random(seed)
        self._counted = counted
        self.kills = 0

    def fight(self, enough: threading.Event) -> None:
        while not enough.is_set():
            words = [*self._arguments, str(self._random.randrange(2**32)), str(CALLS_OF_ONE)]
            command = [sys.executable, str(HERE / "groups_fighter.py"), *words]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                assert process.stdout and process.stderr
                first = process.stdout.readline()
                if first != "ready\n":
                    self._counted[f"did not start: {first}{process.stderr.read()}"] += 1
                    return
                killer = threading.Timer(self._random.uniform(0, MOST_SECONDS), process.kill)
                killer.start()
                for line in process.stdout:
                    self._counted[line.strip()] += 1
                killer.cancel()
                said = process.stderr.read()
            if process.returncode == -9:
                self.kills += 1
            elif process.returncode:
                self._counted[f"ended with {process.returncode}: {said}"] += 1
                return


async def test_nothing_is_given_twice_and_in_the_end_all_is_free(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    state, folder = tmp_path / "groups.db", tmp_path / "locks"
    folder.mkdir()
    counted: Counter[str] = Counter()
    corners = [Corner(state, folder, name, seed + at, counted) for at, name in enumerate(("red", "blue"))]
    enough = threading.Event()
    threads = [threading.Thread(target=corner.fight, args=(enough,)) for corner in corners]
    async with await open_planner(state) as judge:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 500
        while sum(counted.values()) < CALLS and any(t.is_alive() for t in threads) and time.monotonic() < deadline:
            await look_at(judge)
        enough.set()
        for thread in threads:
            thread.join(60)
        strange = {what for what in counted if what not in ("done", "ready") and not what.startswith("refused ")}
        assert not strange, strange
        assert sum(counted.values()) >= CALLS and counted["done"] > CALLS // 4, counted
        assert all(corner.kills for corner in corners), [corner.kills for corner in corners]
        await everything_is_given_back(judge)


async def look_at(judge: ComputeGroupManager) -> None:
    """The invariant, by what groups say at one moment: nothing is held twice, and what is held is not free."""
    state = await judge.provider.get_resource_state()
    [node] = state["nodes"]
    loads: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for group in state["groups"]:
        gpus = group["resources"]["gpus"]
        for gpu in gpus:
            loads[gpu["id"]] += group["resources"]["gpu_milli"] // len(gpus)
        for name, amount in group["resources"].items():
            if isinstance(amount, int):
                held[name] += amount
    assert all(load <= 1000 for load in loads.values()), loads
    for name, amount in node["resources"].items():
        assert held[name] + node["free"][name] == amount, (name, held[name], node)


async def everything_is_given_back(judge: ComputeGroupManager) -> None:
    """Those that were killed hold nothing; what was made on purpose, and nobody deleted, is deleted here."""
    deadline = time.monotonic() + 30
    while True:
        groups = await judge.list_compute_groups()
        for group in groups:
            assert group.component is None or group.allocation_state == "reserved", group
            if group.allocation_state in ("free", "draining"):
                await judge.delete_compute_group(group.id)
        summary = await judge.get_allocation_summary()
        if not await judge.list_compute_groups():
            break
        assert time.monotonic() < deadline, summary
    assert all(amount["free"] == amount["capacity"] for amount in summary["resources"].values()), summary
