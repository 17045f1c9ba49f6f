"""Clusters of which hosts take parts of several nodes: what there is, and what holds at any time."""

from __future__ import annotations

from dataclasses import replace

from control_world import GIB, KEYS, World, offer
from disk_model import Disks

from lavalite.control.audit import audit
from lavalite.control.events import DefinitionApplied, Specs
from lavalite.control.hosts.orders import part_ids, vm_part
from lavalite.control.settings import Settings
from lavalite.model.host import LogicalHost
from lavalite.model.resources import WHOLE, NodeOffer, Resource
from lavalite.model.specs import HostSpec, QueueSpec

TIB = 1024 * GIB
NODES = ("n1", "n2", "n3")
QUEUES = {
    "normal": QueueSpec("normal", default=True, fence_after_seconds=100, lost_after_seconds=300, retries=0),
}


def wide_offer(
    node: str, *, cpu: int = 8, memory: int = 8 * GIB, storage: int = 0, network: int = 10 * 10**9
) -> NodeOffer:
    """A node with so many bytes of storage, and a card of so many bits a second, too."""
    made = offer(node, cpu=cpu, memory=memory)
    more = [("storage", storage, "byte"), ("network", network, "bit/s")]
    resources = [
        Resource(name=f"{node}/{kind}", kind=kind, amount=amount, unit=unit, owner=node)
        for kind, amount, unit in more
    ]
    return made.model_copy(update={"resources": [*made.resources, *resources]})


def asked(name: str = "h", **fields: object) -> HostSpec:
    """12 GiB of memory where a node has 8, and a TiB of storage that only n3 has: parts of three nodes."""
    amounts = {"cpu": 4 * WHOLE, "memory": 12 * GIB, "storage": TIB}
    far = {"memory": 8 * GIB, "storage": 3 * TIB}
    return replace(HostSpec(name, amounts, far=far, circuits=dict.fromkeys(far, 10**9)), **fields)


def far_world(*specs: HostSpec, settings: Settings | None = None, eager: bool = True, cores_of_n3: int = 8) -> World:
    """n1 to n3, connected; only n3 has storage."""
    made = World(settings)
    made.apply(Specs(queues=QUEUES, hosts={spec.name: spec for spec in specs}))
    disks = Disks()
    for name in NODES:
        more = {"storage": 4 * TIB, "cpu": cores_of_n3} if name == "n3" else {}
        made.connect(name, wide_offer(name, **more))
        made.agents[name].parts.eager = eager
        made.agents[name].parts.devices.disks = disks
    made.settle()
    return made


def room_appears(world: World, name: str, storage: int = 4 * TIB) -> None:
    """The node offers so much storage from now on."""
    world.agents[name].offer = wide_offer(name, storage=storage).model_copy(update={"version": 2})
    world.connect(name)


def define(world: World, *specs: HostSpec, purge: bool = False, reserve: dict[str, float] | None = None) -> None:
    """From now on these are the hosts that are asked for."""
    world.specs = Specs(queues=QUEUES, hosts={spec.name: spec for spec in specs})
    world.feed(DefinitionApplied(b"{}", world.specs, purge, reserve or {}))


def host(world: World, name: str = "h") -> LogicalHost:
    return world.state.hosts[name]


def roles(world: World, node: str) -> list[str]:
    """`export h/memory/n2`, of what the node has."""
    present = world.agents[node].parts.present()
    return sorted(f"{one.role} {one.part}" for one in present if one.state == "ready")


def settle(world: World, rounds: int = 20) -> None:
    """All writes go through, and all agents carry out what they were told, until nothing happens any more."""
    for _ in range(rounds):
        world.settle()
        for name, agent in world.agents.items():
            if agent.connected:
                world.parts_of(name)
        if not world.pipeline:
            return
    raise AssertionError("orders without end")


def steps(w: World) -> int:
    """One write, or one order of one agent, at a time; how many there are."""
    done = 0
    for done in range(500):
        if w.write():
            continue
        if not any(one_order(w, name) for name in NODES):
            return done
    raise AssertionError("no end")


def one_order(w: World, name: str) -> bool:
    """Whether the agent had one to carry out, or anything to tell."""
    agent = w.agents[name]
    if not agent.connected:
        return False
    before = (len(agent.parts.carried_out), agent.parts.has_news())
    w.parts_of(name, 1)
    return before[1] or len(agent.parts.carried_out) > before[0]


def check(world: World) -> None:
    """What holds between any two events: the laws of control, and of what agents have."""
    world.check()
    assert audit(KEYS, world.store, world.specs).faults == []
    for name, agent in world.agents.items():
        held: dict[str, int] = {}
        of: dict[tuple[str, str], set[int]] = {}
        for one in agent.parts.present():
            order = agent.parts.done[one.key]
            of.setdefault((one.part, one.role), set()).add(one.incarnation)
            if one.role == "export" or (one.role == "disk" and not order.peer):
                held[order.kind] = held.get(order.kind, 0) + order.amount
        assert all(len(incarnations) == 1 for incarnations in of.values()), f"{name} has a part of two hosts"
        for kind, amount in held.items():
            assert amount <= agent.offer.amount(kind), f"{name} has given away {amount} {kind}"


def nothing_is_lost(world: World, name: str) -> None:
    """The host's device is over its one disk, and that holds all that was ever written."""
    found = world.state.hosts[name]
    devices = world.agents[found.anchor].parts.devices
    disks = [(part.id, found.incarnation) for part in found.parts if part.kind == "storage"]
    key = name, found.incarnation
    assert devices.legs.get(key, []) == disks
    assert all(devices.disks.holds[disk] == devices.disks.written.get(key, 0) for disk in disks)


def nothing_is_left(world: World, name: str) -> None:
    """No agent has anything of the host, and the book knows nothing of it."""
    assert not world.state.book.holds(f"host/{name}")
    assert KEYS.commitment(f"host/{name}") not in world.store
    for agent in world.agents.values():
        assert not [one for one in agent.parts.present() if one.host == name], agent.name


def whole(world: World, name: str) -> None:
    """Every agent has exactly what the host's record says."""
    found = world.state.hosts[name]
    there = {one.part for agent in world.agents.values() for one in agent.parts.present() if one.host == name}
    machine = found.executor == "vm"
    far = {p.id for p in found.parts if p.kind in ("storage", "memory") and found.is_far(p)}
    local = {p.id for p in found.parts if p.kind == "storage" and not machine}
    needed = far | local | ({vm_part(found)} if machine else set())
    needed |= {circuit.id for circuit in found.circuits}
    assert there == needed and needed <= part_ids(found)
    for agent in world.agents.values():
        for one in agent.parts.present():
            if one.host == name:
                assert one.incarnation == found.incarnation and one.state == "ready"
    nothing_is_lost(world, name)
