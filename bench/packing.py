"""How much of a cluster's GPUs stays unallocated under each policy when as much is asked for as there is.

python bench/packing.py --trace DIR [--seeds 1,2,3] [--policy NAME …] [--simulated] [--json]

DIR holds openb, Alibaba's public trace "GPU 2023" (github.com/alibaba/clusterdata, cluster-trace-gpu-v2023): files
openb_node_list_all_node.csv and openb_pod_list_default.csv. Its tasks are drawn with a seed, again and again, until
what has arrived asks for 100 % of the GPUs; each is placed when it arrives or never, and none ends. Which models one
allows is left out. That is how the policies of "Beware of Fragmentation" (USENIX ATC'23) are compared.

Beside it stands a bound that no placement can beat: the tasks of each draw as fractions, on all nodes with GPUs put
together into one, with but one of cores and memory looked at besides GPUs.

With --simulated each draw is also run by `lavalite simulate`, whole control plane and all, and each task's node is
compared: a policy that looks ahead goes by all of the trace here and by what has come so far there, others agree.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent))

from figures import Figure, at_least, at_most, noted, report

from lavalite.control.events import Specs
from lavalite.control.workload import workload_of
from lavalite.model.job import Request
from lavalite.model.resources import WHOLE, Device
from lavalite.model.specs import DEFAULT_QUEUE, NodeCapacity, QueueSpec
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Columns, DeviceRow, Workload
from lavalite.placement.ranking import Ranking
from lavalite.placement.registry import POLICIES
from lavalite.simulate.draws import constant
from lavalite.simulate.entries import ScenarioEntry
from lavalite.simulate.run import Simulation
from lavalite.simulate.scenario import NodePlan, Scenario
from lavalite.simulate.traces import Trace, TraceJob

MIB = 1024**2
NODES, TASKS = "openb_node_list_all_node.csv", "openb_pod_list_default.csv"
BEST_TARGET = 5.8
ELSEWHERE = "elsewhere: random 13.2, dot-product 9.3, best-fit 8.1, FGD 5.9, gpu-packing 5.8"


def main() -> int:
    parser = argparse.ArgumentParser(description="Unallocated GPUs under each policy.")
    parser.add_argument("--trace", type=Path, required=True, help="the folder with openb's files")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--policy", action="append", choices=sorted(POLICIES), help="may be repeated; else all")
    parser.add_argument("--simulated", action="store_true", help="compare with what is simulated, task by task")
    parser.add_argument("--json", action="store_true", help="the last line is a list of the figures")
    asked = parser.parse_args()
    missing = [name for name in (NODES, TASKS) if not (asked.trace / name).is_file()]
    if missing:
        print(
            f"{asked.trace}: no {' and no '.join(missing)}. Take them from github.com/alibaba/clusterdata, folder "
            "cluster-trace-gpu-v2023/csv.",
            file=sys.stderr,
        )
        return 2
    nodes, tasks = _read(asked.trace / NODES), [_request(row) for row in _read(asked.trace / TASKS)]
    draws = [draw(tasks, _gpus(nodes), int(seed)) for seed in asked.seeds.split(",")]
    policies = asked.policy or list(POLICIES)
    figures = compare(nodes, tasks, draws, policies)
    if asked.simulated:
        figures += [agreement(nodes, tasks, draws[0], policy) for policy in policies]
    return report(figures, as_json=asked.json)


def compare(
    nodes: list[dict[str, str]], tasks: list[Request], draws: list[list[Request]], policies: list[str]
) -> list[Figure]:
    total = _gpus(nodes)
    bound = mean(100 - 100 * most_allocated(nodes, drawn) / total for drawn in draws)
    workload = Workload(workload_of([(task, 1) for task in tasks]), 1)
    shares = {}
    for policy in policies:
        each = [100 - 100 * allocated(nodes, drawn, workload, policy) / total for drawn in draws]
        shares[policy] = mean(each), ", ".join(f"{share:.2f}" for share in each)
    best = min(shares, key=lambda policy: shares[policy][0])
    return [
        *(
            noted(f"unallocated_percent_{name}", share, "%", f"by seed: {each}")
            for name, (share, each) in shares.items()
        ),
        noted("unallocated_percent_bound", bound, "%", "no placement leaves less"),
        at_most("unallocated_percent_best", shares[best][0], "%", BEST_TARGET, f"{best}; {ELSEWHERE}"),
    ]


def draw(tasks: list[Request], gpu_milli: int, seed: int) -> list[Request]:
    """Tasks of the trace, at random and with repetition, until they ask for that much."""
    rng, drawn, asked = random.Random(seed), [], 0
    while asked < gpu_milli:
        drawn.append(rng.choice(tasks))
        asked += drawn[-1].gpu_milli
    return drawn


def allocated(nodes: list[dict[str, str]], drawn: list[Request], workload: Workload, policy: str) -> int:
    """The milli-GPUs of the tasks that found room, one after the other."""
    chosen = choices(nodes, drawn, workload, policy)
    return sum(request.gpu_milli for request, node in zip(drawn, chosen, strict=True) if node is not None)


def choices(nodes: list[dict[str, str]], drawn: list[Request], workload: Workload, policy: str) -> list[str | None]:
    """The node of each task, one after the other; None where none had room."""
    columns, rankings, last = _columns(nodes), {}, -1
    columns.workload = workload
    chosen: list[str | None] = []
    for request in drawn:
        key = (*request.amounts().items(),)
        if key not in rankings:
            rankings[key] = Ranking(RequestClass(request, {}), POLICIES[policy])
        wanted = rankings[key].wanted
        row = rankings[key].best(columns, last)
        if row >= 0:
            last = row
            columns.take(row, wanted.line, wanted.pick_devices(columns.devices(row)), min(WHOLE, request.gpu_milli))
        chosen.append(columns.names[row] if row >= 0 else None)
    return chosen


def agreement(nodes: list[dict[str, str]], tasks: list[Request], drawn: list[Request], policy: str) -> Figure:
    """How many tasks of a draw get the same node, or none, here and where all of it is simulated, in percent."""
    here = choices(nodes, drawn, Workload(workload_of([(task, 1) for task in tasks]), 1), policy)
    there = simulated(nodes, drawn, policy)
    same = 100 * sum(a == b for a, b in zip(here, there, strict=True)) / len(drawn)
    name, beside = f"simulated_same_percent_{policy}", f"{len(drawn)} tasks"
    if POLICIES[policy].looks_ahead:
        return noted(name, same, "%", f"{beside}; it looks ahead, see --help")
    return at_least(name, same, "%", 100, beside)


def simulated(nodes: list[dict[str, str]], drawn: list[Request], policy: str) -> list[str | None]:
    """The node of each task under `lavalite simulate`, where one comes a second and none ends."""
    queue = QueueSpec(DEFAULT_QUEUE, policy=policy, default=True, planned_starts=0)
    top = ScenarioEntry(events=False, snapshot_every="365d")
    scenario = Scenario("drawn", top, Specs(queues={DEFAULT_QUEUE: queue}))
    for node in nodes:
        devices = tuple(Device(id=f"gpu{at}", model=node["model"]) for at in range(int(node["gpu"])))
        amounts = {"cpu": int(node["cpu_milli"]), "memory": int(node["memory_mib"]) * MIB}
        amounts |= {"gpu": WHOLE * len(devices)} if devices else {}
        capacity = NodeCapacity(node["sn"], {}, amounts, {"gpu": devices} if devices else {})
        scenario.nodes.append(NodePlan(capacity, constant(0)))
    jobs = [TraceJob(f"task-{at}", float(at + 1), request, None) for at, request in enumerate(drawn)]
    scenario.traces.append(Trace(jobs))
    run = Simulation(scenario, lambda line: None, lambda snapshot: None)
    run.run(len(drawn) + 60.0)
    on = dict(run.node_of_each())
    return [on.get(at + 1) for at in range(len(drawn))]


def most_allocated(nodes: list[dict[str, str]], drawn: list[Request]) -> float:
    """The milli-GPUs that could be given out at most, were all nodes with GPUs one and tasks divisible."""
    with_gpus = [node for node in nodes if int(node["gpu"])]
    bounds = [float(_gpus(nodes))]
    for kind, column, unit in (("cpu", "cpu_milli", 1), ("memory", "memory_mib", MIB)):
        left, given = float(sum(int(node[column]) for node in with_gpus) * unit), 0.0
        wanted = [(request.amounts().get(kind, 0), request.gpu_milli) for request in drawn if request.gpu_milli]
        for amount, gpu in sorted(wanted, key=lambda pair: pair[0] / pair[1]):
            part = min(1.0, left / amount) if amount else 1.0
            left, given = left - part * amount, given + part * gpu
        bounds.append(given)
    return min(bounds)


def _columns(nodes: list[dict[str, str]]) -> Columns:
    columns = Columns()
    for node in nodes:
        devices = [DeviceRow(f"gpu{at}", node["model"], 0, WHOLE) for at in range(int(node["gpu"]))]
        has = {
            "cpu": int(node["cpu_milli"]),
            "memory": int(node["memory_mib"]) * MIB,
            "gpu": WHOLE * len(devices),
        }
        columns.set_row(node["sn"], has, has, devices)
    return columns


def _gpus(nodes: list[dict[str, str]]) -> int:
    return sum(int(node["gpu"]) for node in nodes) * WHOLE


def _request(row: dict[str, str]) -> Request:
    gpus = int(row["num_gpu"])
    return Request(
        cpu_milli=int(row["cpu_milli"]),
        memory_bytes=int(row["memory_mib"]) * MIB,
        gpu_milli=int(row["gpu_milli"]) if gpus == 1 else gpus * WHOLE,
    )


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    raise SystemExit(main())
