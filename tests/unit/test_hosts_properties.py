"""Hosts of several nodes, whatever happens in whatever order: in the end each is whole, or nothing of it is left.

agents carry out what they are told late, or cannot, or break it · nodes are cut off, die, and come back · leaders
die at any moment with what they had not written · what is stored passes the audit · no agent has a part of two hosts,
nor has given away more than it has · no order goes out before its step is durable · work runs on · what is written to
a disk stays, also while another one takes its place
"""

from __future__ import annotations

from typing import Any

import pytest
from control_rules import ClusterRules
from control_world import GIB, KEYS, World, spec
from far_planner import plan_far
from hosts_world import (
    NODES,
    TIB,
    asked,
    check,
    define,
    far_world,
    nothing_is_left,
    room_appears,
    settle,
    whole,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from lavalite.control.events import HostApplied, HostDrained, HostReserved
from lavalite.control.hosts import composer
from lavalite.control.settings import Settings
from lavalite.model.host import DEGRADE, FAIL, VM, VmAsk
from lavalite.placement.compose import plan_hosts

HOSTS = ("a", "b")
AMOUNTS = st.fixed_dictionaries(
    {
        "cpu": st.sampled_from([1000, 4000]),
        "memory": st.sampled_from([2 * GIB, 6 * GIB, 10 * GIB]),
        "storage": st.sampled_from([0, TIB, 3 * TIB]),
    }
).map(lambda amounts: {kind: amount for kind, amount in amounts.items() if amount})
SPECS = st.fixed_dictionaries(
    {
        "amounts": AMOUNTS,
        "on_loss": st.sampled_from([FAIL, DEGRADE]),
        "executor": st.sampled_from(["bare", "bare", VM]),
    }
)


class Hosts(ClusterRules):
    """Two hosts at most, over three nodes."""

    @initialize(limit=st.sampled_from([3, 128]), plan=st.sampled_from([plan_far, plan_hosts]))
    def begin(self, limit: int, plan: Any) -> None:
        """With the plans that are really made, and with the plainest, which spread hosts further."""
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(composer, "plan_hosts", plan)
        self.world = far_world(settings=Settings(max_txn_operations=limit), eager=False)
        self.wanted: dict[str, dict[str, Any]] = {}

    def _define(self, *, purge: bool, reserve: dict[str, float] | None = None) -> None:
        specs = [asked(name, **fields, vm=VmAsk(image="x")) for name, fields in self.wanted.items()]
        define(self.world, *specs, purge=purge, reserve=reserve)

    @rule(name=st.sampled_from(HOSTS), fields=SPECS, reserve=st.sampled_from([False, False, False, True]))
    def ask_for(self, name: str, fields: dict[str, Any], reserve: bool) -> None:
        self.wanted[name] = fields
        self._define(purge=False, reserve={name: self.world.now + 50} if reserve else {})

    @rule(name=st.sampled_from(HOSTS), purge=st.booleans())
    def ask_no_more(self, name: str, purge: bool) -> None:
        self.wanted.pop(name, None)
        self._define(purge=purge)

    @rule(name=st.sampled_from(HOSTS), wish=st.sampled_from(["apply", "drain", "resume", "reserve"]))
    def wish(self, name: str, wish: str) -> None:
        wishes = {"apply": HostApplied(name), "reserve": HostReserved(name, self.world.now + 50)}
        self.world.feed(wishes.get(wish) or HostDrained(name, undo=wish == "resume"))

    @rule(name=st.sampled_from(HOSTS), rerunnable=st.booleans())
    def submit(self, name: str, rerunnable: bool) -> None:
        if name in self.world.state.hosts:
            self.world.submit(spec(host=name, memory_bytes=GIB, rerunnable=rerunnable))

    @rule(name=st.sampled_from(NODES), orders=st.integers(0, 4))
    def carry_out(self, name: str, orders: int) -> None:
        self.world.parts_of(name, orders)

    @rule()
    def all_carry_out(self) -> None:
        settle(self.world)

    @rule(
        name=st.sampled_from(NODES),
        what=st.sampled_from(["cut", "dead", "connect", "connect", "reboot"]),
    )
    def node(self, name: str, what: str) -> None:
        agent = self.world.agents[name]
        if what == "cut" and agent.connected:
            self.world.disconnect(name)
        elif what == "dead":
            agent.connected = False  # control has not noticed
        elif what == "connect":
            self.world.connect(name)
        elif what == "reboot":
            self.world.reboot(name)
            agent.parts.reboot()

    @rule(name=st.sampled_from(NODES), role=st.sampled_from(["export", "circuit", "disk", "swap", "vm", ""]))
    def break_things(self, name: str, role: str) -> None:
        """From now on it cannot make one kind of thing; or one that it has breaks."""
        agent = self.world.agents[name]
        agent.parts.failing = {role} if role else set()
        if not role and agent.parts.has:
            agent.parts.lose(min(agent.parts.has)[0])

    @rule(name=st.sampled_from(NODES[:2]))
    def have_room(self, name: str) -> None:
        """For disks, nearer to who has them elsewhere."""
        room_appears(self.world, name)

    @rule()
    def mend(self) -> None:
        for agent in self.world.agents.values():
            agent.parts.failing = set()

    @rule()
    def change_leader(self) -> None:
        self.world.now += 0.01  # no leader comes within a millisecond, which is what incarnations tell apart
        self.world.change_leader()

    @rule()
    @precondition(lambda self: len(self.world.store) > 5)
    def reload(self) -> None:
        """What is stored is what is known, once all writes are through."""
        self.world.settle()
        before = _held(self.world)
        self.change_leader()
        assert _held(self.world) == before

    @invariant()
    def laws(self) -> None:
        if hasattr(self, "world"):
            check(self.world)

    def teardown(self) -> None:
        """Everything comes back and is mended, and everybody who works ends: nothing is left half done."""
        if not hasattr(self, "world"):
            return
        w = self.world
        self.mend()
        for name in HOSTS:
            w.feed(HostApplied(name))
            w.feed(HostDrained(name, undo=True))
        self._define(purge=True)
        for _ in range(30):
            for name in NODES:
                if not w.agents[name].connected:
                    w.connect(name)
                w.report(name)
            settle(w)
            for attempt in w.running():
                w.finish(attempt)
            settle(w)
            w.advance(40)
            check(w)
        for name in HOSTS:
            host = w.state.hosts.get(name)
            assert (host is not None) == (name in self.wanted), f"{name}: {host}"
            if host is None or host.state == "planned":
                assert host is None or host.reason, host
                nothing_is_left(w, name)
                continue
            assert host.state == "composed" and not host.under_way and not host.degraded, host
            whole(w, name)
        assert not any(node.owes_parts for node in w.state.nodes.values())
        assert not [key for key in w.store if key.startswith(KEYS.commitment("job/"))]
        self.patch.undo()


def _held(world: World) -> dict[str, Any]:
    """Hosts that hold something; why one waits is worked out anew."""
    return {n: host.model_dump(exclude={"reason"}) for n, host in world.state.hosts.items() if host.parts}


TestHosts = Hosts.TestCase
TestHosts.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
