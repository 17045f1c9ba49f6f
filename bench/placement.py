"""How many placements a second the placement room makes, and how that changes with nodes and with waiting jobs.

python bench/placement.py [--nodes 10000] [--classes 50 | --distinct] [--jobs 100000] [--policy best-fit] [--json]
python bench/placement.py --nodes 1000,10000,100000 [--jobs 1000,10000,100000]

Jobs of one task each, of random classes, are placed one after the other by what the scheduler uses: RequestClass,
Rankings and Columns (lavalite.placement). Each choice sees all those before it, and a sample of the choices is worked
out again by a naive reference, row by row in plain Python: one that differs ends the bench. With several numbers of
nodes what is measured is growth: the slope of log cost over log size, in nodes and (by passes of the scheduler
itself, control.scheduler) in jobs that wait.

Nothing of it waits or does I/O, so its seconds are those of CPU; on a machine that does other things they are more.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from figures import Figure, at_least, at_most, noted, report

from lavalite.control.outbox import Outbox
from lavalite.control.scheduler import schedule
from lavalite.control.settings import Settings
from lavalite.control.state import ClusterState
from lavalite.model.job import JobRecord, JobSpec, Request
from lavalite.model.resources import NodeOffer, Resource
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Columns
from lavalite.placement.ranking import Ranking
from lavalite.placement.registry import POLICIES, Rankings
from lavalite.store.keys import Keys

GIB = 1024**3
SEED = 7
SAMPLE = 60
"""Choices that the naive reference works out again."""
GROWTH_JOBS = 4_000
"""Placements by which growth in nodes is measured: as many everywhere, and few enough for the smallest cluster."""
PASS_TASKS = 1_000
TARGETS = {50: 70_000, 500: 26_000}
DISTINCT_TARGET = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description="Placements a second.")
    parser.add_argument("--nodes", type=_numbers, default=[10_000], help="one number, or several: then growth")
    parser.add_argument("--jobs", type=_numbers, help="how many; with several --nodes: how many wait")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--distinct", action="store_true", help="every job asks for something else")
    parser.add_argument("--policy", choices=sorted(POLICIES), default="best-fit")
    parser.add_argument("--json", action="store_true", help="the last line is a list of the figures")
    asked = parser.parse_args()
    if len(asked.nodes) > 1:
        figures = growth(asked.nodes, asked.jobs or [1_000, 10_000, 100_000], asked.classes, asked.policy)
    else:
        jobs = (asked.jobs or [20_000 if asked.distinct else 100_000])[0]
        figures = rate(asked.nodes[0], jobs, 0 if asked.distinct else asked.classes, asked.policy)
    return report(figures, as_json=asked.json)


def rate(nodes: int, jobs: int, classes: int, policy: str) -> list[Figure]:
    """`classes` 0: every job asks for something else."""
    rng = random.Random(SEED)
    columns, asked = fleet(nodes, rng), requests(classes or jobs, rng)
    order = [rng.randrange(classes) for _ in range(jobs)] if classes else list(range(jobs))
    before = [dict(zip(("cpu", "memory", "storage", "network"), row, strict=True)) for row in _free(columns)]
    seconds, chosen = placed(columns, asked, order, policy)
    naive = check(before, [asked[number] for number in order], chosen) if policy == "best-fit" else 0.0
    target = TARGETS.get(classes, DISTINCT_TARGET if not classes else 0)
    each = f"{classes} classes" if classes else "every request distinct"
    measured = jobs / seconds
    peer = f"naive Python in the same run: {naive:.0f}/s" if naive else ""
    return [
        at_least("placements_per_second", measured, "/s", target, peer)
        if target
        else noted("placements_per_second", measured, "/s", peer),
        noted("nodes", nodes, ""),
        noted("jobs", jobs, "", f"{each}, {policy}; {sum(row >= 0 for row in chosen)} were placed"),
    ]


def placed(columns: Columns, asked: list[Request], order: list[int], policy: str) -> tuple[float, list[int]]:
    """Place a task of each request in the order, and say how long that took and where they went; -1: nowhere."""
    known, rankings = Rankings(), dict[int, Ranking]()
    chosen = []
    began = time.process_time()
    for number in order:
        ranking = rankings.get(number)
        if ranking is None:
            ranking = known.of(RequestClass(asked[number], {}), policy)
            if len(asked) < len(order):
                rankings[number] = ranking
        row = ranking.best(columns)
        if row >= 0:
            columns.take(row, ranking.wanted.line)
        chosen.append(row)
    return time.process_time() - began, chosen


def check(free: list[dict[str, int]], asked: list[Request], chosen: list[int]) -> float:
    """Best-fit in its plainest form: the row that is fullest with the task, among equals the first. Says how many
    placements a second that makes.
    """
    seconds, sample = 0.0, 0
    capacity = [dict(row) for row in free]
    every = max(1, len(chosen) // SAMPLE)
    for at, (request, row) in enumerate(zip(asked, chosen, strict=True)):
        amounts = request.amounts()
        if at % every == every - 1:
            began, best = time.process_time(), (-1, -1)
            for number, left in enumerate(free):
                if all(left[kind] >= amount for kind, amount in amounts.items()):
                    has = capacity[number]
                    full = sum((has[k] - left[k] + a) * 100 // has[k] for k, a in amounts.items())
                    best = max(best, (full, -number))
            naive = -best[1] if best[0] >= 0 else -1
            seconds, sample = seconds + time.process_time() - began, sample + 1
            assert naive == row, f"placement {at}: the reference chose row {naive}, the placement room row {row}"
        if row >= 0:
            for kind, amount in amounts.items():
                free[row][kind] -= amount
    return sample / seconds


# --- growth -------------------------------------------------------------------------------------------------------


def growth(nodes: list[int], jobs: list[int], classes: int, policy: str) -> list[Figure]:
    in_nodes = [(size, _cost_with_nodes(size, classes, policy)) for size in nodes]
    in_jobs = [(size, _cost_with_waiting(size, classes)) for size in jobs]
    return [
        *(noted(f"microseconds per placement, {size} nodes", cost * 1e6, "us") for size, cost in in_nodes),
        at_most("growth_exponent_nodes", exponent(in_nodes), "", 0.3),
        *(noted(f"microseconds per placement, {size} jobs wait", cost * 1e6, "us") for size, cost in in_jobs),
        at_most("growth_exponent_jobs", exponent(in_jobs), "", 0.1, "passes of the scheduler, commitments and all"),
    ]


def exponent(costs: list[tuple[int, float]]) -> float:
    """The slope of log cost over log size, by least squares."""
    points = [(math.log(size), math.log(cost)) for size, cost in costs]
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def _cost_with_nodes(nodes: int, classes: int, policy: str) -> float:
    """Seconds for one placement, once each class has looked at all nodes; the best of three rounds."""
    rng = random.Random(SEED)
    columns, asked = fleet(nodes, rng), requests(classes, rng)
    known = Rankings()
    rankings = [known.of(RequestClass(request, {}), policy) for request in asked]
    for ranking in rankings:
        ranking.best(columns)
    took = []
    for _ in range(3):
        order = [rng.randrange(classes) for _ in range(GROWTH_JOBS // 3)]
        began = time.process_time()
        for number in order:
            row = rankings[number].best(columns)
            assert row >= 0, "the smallest cluster is too small"
            columns.take(row, rankings[number].wanted.line)
        took.append((time.process_time() - began) / len(order))
    return min(took)


def _cost_with_waiting(jobs: int, classes: int) -> float:
    """Seconds for one placement by a pass of the scheduler while so many wait; the best of three passes."""
    rng = random.Random(SEED)
    state = ClusterState(Keys("bench"), (0, 1), Settings(max_placements=min(PASS_TASKS, jobs // 4)))
    for number in range(1_000):
        offer = NodeOffer(node=f"n{number}", boot_id="b", resources=_resources(f"n{number}", 64_000, 512 * GIB))
        node = state.set_node(offer, "journal")
        node.connected = node.registered = True
    asked = requests(classes, rng)
    for number in range(1, jobs + 1):
        spec = JobSpec(command=["true"], user="ada", request=asked[rng.randrange(classes)])
        state.add_job(JobRecord(id=number, spec=spec, submitted_at=0.0))
    took = []
    for _ in range(3):
        before, began = len(state.runs), time.process_time()
        schedule(state, 0.0, Outbox())
        took.append((time.process_time() - began) / (len(state.runs) - before))
    return min(took)


# --- what there is and what is asked for --------------------------------------------------------------------------


def fleet(nodes: int, rng: random.Random) -> Columns:
    columns = Columns()
    for number in range(nodes):
        has = {
            "cpu": rng.choice([32, 64, 128]) * 1000,
            "memory": rng.choice([128, 256, 512]) * GIB,
            "storage": 2048 * GIB,
            "network": 25 * 10**9,
        }
        columns.set_row(f"n{number}", has, has)
    return columns


def requests(count: int, rng: random.Random) -> list[Request]:
    """So many, no two alike."""
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        storage = rng.choice([0, 0, 0, 10 * GIB])
        found[rng.randrange(1, 81) * 100, rng.randrange(1, 64 * 256) * GIB // 512, storage] = None
    return [Request(cpu_milli=cpu, memory_bytes=memory, storage_bytes=storage) for cpu, memory, storage in found]


def _free(columns: Columns) -> list[list[int]]:
    kinds = [columns.free(kind).tolist() for kind in ("cpu", "memory", "storage", "network")]
    return [list(row) for row in zip(*kinds, strict=True)]


def _resources(node: str, cpu: int, memory: int) -> list[Resource]:
    return [
        Resource(name=f"{node}/cpu", kind="cpu", amount=cpu, unit="milli-core", owner=node),
        Resource(name=f"{node}/memory", kind="memory", amount=memory, unit="byte", owner=node),
        Resource(name=f"{node}/storage", kind="storage", amount=2048 * GIB, unit="byte", owner=node),
    ]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    raise SystemExit(main())
