"""How long a plan of many logical hosts takes, and how near it comes to the best there is.

python bench/compose.py [--nodes 10000] [--hosts 1000] [--cases 200] [--json]

The large plan is of hosts that take storage from other nodes, some of them memory and GPUs too, in racks whose links
are declared. The small ones are compared with the optimum that an exact solver (HiGHS) finds: first the hosts that
are placed, then what their circuits take, in bits a second times links.

Nothing of it waits or does I/O, so its seconds are those of CPU; on a machine that does other things they are more.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from figures import Figure, at_most, noted, report

from lavalite.model.host import LogicalHost
from lavalite.model.resources import Device
from lavalite.model.selector import Selector
from lavalite.model.specs import STRATEGIES, HostSpec, LinkSpec, NodeCapacity, PoolSpec
from lavalite.placement.compose import plan_hosts

GIB, TIB, GBIT = 2**30, 2**40, 10**9
SEED = 7
RACK_NODES = 40
PLAN_SECONDS = 5
GAP_PERCENT = 2


def main() -> int:
    parser = argparse.ArgumentParser(description="Plans of logical hosts: seconds, and the gap to the optimum.")
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--hosts", type=int, default=1_000)
    parser.add_argument("--cases", type=int, default=200, help="small cases that are solved exactly")
    parser.add_argument("--json", action="store_true", help="the last line is a list of the figures")
    asked = parser.parse_args()
    figures = plan_figures(asked.nodes, asked.hosts)
    if find_spec("highspy") is None:
        print("the gap to the optimum is not measured: no highspy; pip install 'lavalite[optimum]'", file=sys.stderr)
        return report(figures, as_json=asked.json)
    return report(figures + gap_figures(asked.cases), as_json=asked.json)


def plan_figures(count: int, hosts: int) -> list[Figure]:
    rng = random.Random(SEED)
    nodes, links, pools = datacentre(count, rng), wiring(count), pools_of()
    specs = wishes(hosts, rng)
    began = time.process_time()
    plan = plan_hosts(specs, nodes, pools, links=links)
    seconds = time.process_time() - began
    placed = [host for host in plan.values() if isinstance(host, LogicalHost)]
    far = Counter(kind for host in placed for kind in {part.kind for part in host.parts if host.is_far(part)})
    existing = {host.name: host for host in placed}
    began = time.process_time()
    again = plan_hosts(specs, nodes, pools, existing, links=links)
    replan = time.process_time() - began
    assert all(again[name] == host for name, host in existing.items()), "a plan that was made is not kept"
    words = ", ".join(f"{number} with far {kind}" for kind, number in sorted(far.items()))
    return [
        at_most("plan_seconds", seconds, "s", PLAN_SECONDS, f"{hosts} hosts over {count} nodes"),
        noted("hosts_placed", len(placed), "", words),
        noted("replan_seconds", replan, "s", "all of them there already"),
    ]


def gap_figures(cases: int) -> list[Figure]:
    """Hosts that more could be placed; and of those cases where as many are, what the circuits take too much."""
    from optimum import best, case, ours

    ideal, real, ideal_network, real_network, worse = 0, 0, 0, 0, []
    for seed in range(cases):
        found = case(seed)
        (most, network), (placed, taken) = best(found), ours(found)
        assert (placed, -taken) <= (most, -network), f"case {seed}: better than what was proved to be best"
        ideal, real = ideal + most, real + placed
        if placed == most:
            ideal_network, real_network = ideal_network + network, real_network + taken
        if (placed, taken) != (most, network):
            worse.append(seed)
    hosts = 100 * (ideal - real) / max(ideal, 1)
    network = 100 * (real_network - ideal_network) / max(ideal_network, 1)
    words = f"{cases} cases, {len(worse)} of them not the best" + (f": seeds {worse}" if worse else "")
    return [
        at_most("gap_to_optimum_percent", max(hosts, network), "%", GAP_PERCENT, words),
        noted("gap_in_hosts_percent", hosts, "%", f"{real} of {ideal}"),
        noted("gap_in_circuits_percent", network, "%", f"{real_network} of {ideal_network} Gbit/s times links"),
    ]


def datacentre(count: int, rng: random.Random) -> list[NodeCapacity]:
    """Racks of 40: in each two nodes of storage, with hardly a core, four of GPUs, the rest of cores and memory."""
    nodes = []
    for number in range(count):
        rack, place = divmod(number, RACK_NODES)
        amounts = {"cpu": rng.choice([32, 64]) * 1000, "memory": rng.choice([128, 256]) * GIB, "network": 25 * GBIT}
        devices: dict[str, tuple[Device, ...]] = {}
        if place < 2:
            amounts |= {"storage": 60 * TIB, "cpu": 1000}
        elif place < 6:
            amounts["gpu"] = 8000
            devices["gpu"] = tuple(
                Device(id=f"gpu{n}", model=rng.choice(["A100", "H100"]), memory_bytes=80 * GIB, numa_node=n // 4)
                for n in range(8)
            )
        devices["cpu"] = tuple(Device(id=f"core{n}", numa_node=n % 2) for n in range(amounts["cpu"] // 1000))
        nodes.append(NodeCapacity(f"n{number}", {"group": ["all"], "rack": [f"r{rack}"]}, amounts, devices))
    return nodes


def wiring(count: int) -> list[LinkSpec]:
    """Nodes to the switch of their rack, racks to two spines, and the spines to the core."""
    links = [LinkSpec("core", 3200 * GBIT, switch=spine) for spine in ("spine1", "spine2")]
    for rack in range(-(-count // RACK_NODES)):
        links.append(LinkSpec(f"r{rack}", 25 * GBIT, Selector({"rack": (f"r{rack}",)})))
        links += [LinkSpec(spine, 200 * GBIT, switch=f"r{rack}") for spine in ("spine1", "spine2")]
    return links


def pools_of() -> list[PoolSpec]:
    everywhere = Selector.parse("*")
    return [PoolSpec("general", everywhere, ("cpu", "memory", "gpu")), PoolSpec("flash", everywhere, ("storage",))]


def wishes(count: int, rng: random.Random) -> list[HostSpec]:
    """Each with storage of another node; every fourth larger than its node's memory, every eighth with GPUs."""
    specs = []
    for number in range(count):
        amounts = {
            "cpu": rng.randrange(2, 33) * 1000,
            "memory": rng.randrange(4, 120) * GIB,
            "storage": rng.randrange(100, 4000) * GIB,
        }
        far: dict[str, int] = {}
        if number % 4 == 0:
            amounts["memory"] = rng.randrange(260, 384) * GIB
            far["memory"] = amounts["memory"] // 2
        if number % 8 == 1:
            amounts["gpu"] = rng.choice([1, 2, 4]) * 1000
        if number % 16 == 1:
            amounts["gpu"] = 12_000
            far["gpu"] = 8000
        specs.append(
            HostSpec(
                f"h{number}",
                amounts,
                pools={kind: "flash" if kind == "storage" else "general" for kind in amounts},
                near=rng.choice(["any", "any", "rack"]),
                far=far,
                strategy=rng.choice(["near", *STRATEGIES]),
                circuits={"storage": rng.choice([1, 2, 5]) * GBIT, "memory": 10 * GBIT},
            )
        )
    return specs


if __name__ == "__main__":
    raise SystemExit(main())
