"""The best plan that there is of a few logical hosts, by an exact solver: to compare ours with.

First as many hosts as can be, then as little as can be of bits a second times links that their circuits take. Hosts
have CPU, memory (some of it may be far) and storage; the network is a tree, where there is one way between two nodes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import highspy

from lavalite.model.host import LogicalHost
from lavalite.model.selector import Selector
from lavalite.model.specs import HostSpec, LinkSpec, NodeCapacity, PoolSpec
from lavalite.placement.compose import plan_hosts
from lavalite.placement.fabric import Fabric, Way, link_accounts

GIB, GBIT = 2**30, 10**9
WORTH = 10_000
"""Of a host, in Gbit/s times links: more than all circuits of a case take."""
SOLVER_SECONDS = 60


@dataclass(slots=True)
class Case:
    """A few nodes in racks, and hosts for them."""

    nodes: list[NodeCapacity]
    links: list[LinkSpec]
    specs: list[HostSpec]
    pools: list[PoolSpec] = field(default_factory=list)


def case(seed: int) -> Case:
    """Six nodes in two or three racks, two of them with much storage, and four to seven hosts."""
    rng = random.Random(seed)
    racks = [f"r{n}" for n in range(rng.choice([2, 3]))]
    nodes = []
    for number in range(6):
        cpu, memory = rng.choice([8, 16]), rng.choice([32, 64])
        amounts = {"cpu": cpu * 1000, "memory": memory * GIB, "network": 25 * GBIT}
        if number % 3 == 0:
            amounts |= {"cpu": 2000, "storage": rng.choice([1000, 2000]) * GIB}
        nodes.append(NodeCapacity(f"n{number}", {"rack": [racks[number % len(racks)]]}, amounts))
    links = [LinkSpec(rack, 25 * GBIT, Selector({"rack": (rack,)})) for rack in racks]
    links += [LinkSpec("core", rng.choice([10, 20, 40]) * GBIT, switch=rack) for rack in racks]
    specs = []
    for number in range(rng.randrange(4, 8)):
        memory = rng.choice([8, 16, 24, 40])
        amounts = {"cpu": rng.randrange(2, 9) * 1000, "memory": memory * GIB}
        if rng.random() < 0.6:
            amounts["storage"] = rng.randrange(1, 8) * 100 * GIB
        far = {"memory": memory * GIB // 2} if rng.random() < 0.5 else {}
        circuits = {"storage": rng.choice([1, 2, 5]) * GBIT, "memory": rng.choice([5, 10]) * GBIT}
        specs.append(HostSpec(f"h{number}", amounts, far=far, circuits=circuits))
    return Case(nodes, links, specs)


def ours(found: Case) -> tuple[int, int]:
    """How many hosts the planner places, and what their circuits take, in Gbit/s times links."""
    plan = plan_hosts(found.specs, found.nodes, found.pools, links=found.links)
    hosts = [host for host in plan.values() if isinstance(host, LogicalHost)]
    return len(hosts), sum(c.bits_per_second // GBIT * len(c.links) for host in hosts for c in host.circuits)


def best(found: Case) -> tuple[int, int]:
    """The same of the best plan. Raises RuntimeError where the solver does not prove it in time."""
    model = _Model(found)
    return model.solve()


class _Model:
    """x: the host is anchored there. local, far: of memory. store: its storage is there. wide: of the circuit."""

    def __init__(self, found: Case) -> None:
        self._case = found
        self._fabric = Fabric.between(found.nodes, found.links)
        self._solver = highspy.Highs()
        self._solver.setOptionValue("output_flag", False)
        self._solver.setOptionValue("time_limit", float(SOLVER_SECONDS))
        self._taken: dict[tuple[str, str], list[object]] = {}
        self._worth: list[object] = []
        self._placed: list[object] = []
        self._swaps: dict[int, list[object]] = {}
        for spec in found.specs:
            self._add_host(spec)
        self._limit()

    def solve(self) -> tuple[int, int]:
        solver = self._solver
        solver.maximize(solver.qsum(self._worth))
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise RuntimeError(f"no optimum: {solver.modelStatusToString(solver.getModelStatus())}")
        hosts = round(sum(solver.val(x) for x in self._placed))
        return hosts, round(hosts * WORTH - solver.getObjectiveValue())

    def _add_host(self, spec: HostSpec) -> None:
        anchors = [self._add_anchor(spec, row) for row in range(len(self._case.nodes))]
        self._solver.addConstr(self._solver.qsum(anchors) <= 1)
        for x in anchors:
            self._worth.append(WORTH * x)
            self._placed.append(x)

    def _add_anchor(self, spec: HostSpec, row: int) -> object:
        solver, name = self._solver, self._case.nodes[row].name
        x = solver.addBinary()
        memory, storage = spec.amounts["memory"] // GIB, spec.amounts.get("storage", 0) // GIB
        self._take(name, "cpu", spec.amounts["cpu"] // 1000 * x)
        local = solver.addVariable(lb=0, ub=memory)
        self._take(name, "memory", 1 * local)
        lent, stored = [1 * local], []
        if storage:
            here = solver.addBinary()
            self._take(name, "storage", storage * here)
            stored.append(1 * here)
        for other in range(len(self._case.nodes)):
            if other != row:
                self._add_circuit(spec, row, other, lent, stored)
        solver.addConstr(solver.qsum(lent) == memory * x)
        if storage:
            solver.addConstr(solver.qsum(stored) == 1 * x)
        solver.addConstr(1 * local >= (memory - spec.far.get("memory", 0) // GIB) * x)
        return x

    def _add_circuit(self, spec: HostSpec, row: int, other: int, lent: list[object], stored: list[object]) -> None:
        solver, names = self._solver, [node.name for node in self._case.nodes]
        way = self._fabric.way(row, other, 0)
        far, storage = spec.far.get("memory", 0) // GIB, spec.amounts.get("storage", 0) // GIB
        if not isinstance(way, Way) or not (far or storage):
            return
        wide = solver.addVariable(lb=0, ub=100)
        if far:
            amount, swaps = solver.addVariable(lb=0, ub=far), solver.addBinary()
            solver.addConstr(1 * amount <= far * swaps)
            solver.addConstr(1 * wide >= spec.circuits["memory"] // GBIT * swaps)
            self._take(names[other], "memory", 1 * amount)
            lent.append(1 * amount)
            self._swaps.setdefault(row, []).append((spec.name, swaps))
        if storage:
            there = solver.addBinary()
            solver.addConstr(1 * wide >= spec.circuits["storage"] // GBIT * there)
            self._take(names[other], "storage", storage * there)
            stored.append(1 * there)
        for account in (names[row], names[other], *way.links):
            self._take(account, "network", 1 * wide)
        self._worth.append(-len(way.links) * wide)

    def _take(self, account: str, kind: str, amount: object) -> None:
        self._taken.setdefault((account, kind), []).append(amount)

    def _limit(self) -> None:
        """Nothing is given out twice; and a bare node carries one host with far memory."""
        solver, unit = self._solver, {"cpu": 1000, "memory": GIB, "storage": GIB, "network": GBIT}
        have = {(node.name, kind): amount for node in self._case.nodes for kind, amount in node.amounts.items()}
        accounts = link_accounts(self._case.links, self._case.nodes)
        have |= {(name, "network"): width for name, width in accounts.items()}
        for (account, kind), amounts in self._taken.items():
            solver.addConstr(solver.qsum(amounts) <= have.get((account, kind), 0) // unit[kind])
        for marked in self._swaps.values():
            hosts = {}
            for name, swaps in marked:  # type: ignore[misc]
                far = hosts.setdefault(name, solver.addBinary())
                solver.addConstr(1 * swaps <= 1 * far)
            solver.addConstr(solver.qsum([1 * far for far in hosts.values()]) <= 1)
