"""Nodes that were taken down for good."""

from __future__ import annotations

from control_world import KEYS, World, offer, spec

from lavalite.control.audit import audit
from lavalite.control.events import NodeForgotten


def world_of_two() -> World:
    world = World()
    world.connect("n1", offer("n1"))
    world.connect("n2", offer("n2"))
    world.settle()
    return world


def test_a_node_that_is_gone_is_forgotten_for_good() -> None:
    world = world_of_two()
    world.disconnect("n2")
    world.feed(NodeForgotten("n2"))
    world.settle()
    assert "n2" not in world.state.nodes and KEYS.resources("n2") not in world.store
    assert {provider for provider, _, _ in world.state.book.accounts()} == {"n1"}
    job = world.submit(spec(cpu_milli=4000))
    world.settle()
    assert [run.node for run in world.state.runs.values() if run.key.job == job] == ["n1"]
    world.check()
    assert audit(KEYS, world.store, world.specs).faults == []
    world.change_leader()
    assert list(world.state.nodes) == ["n1"]


def test_one_that_is_there_or_holds_something_stays() -> None:
    world = world_of_two()
    world.feed(NodeForgotten("n2"))
    assert "is there" in world.state.kept_by("n2")
    world.submit(spec(cpu_milli=4000))
    world.submit(spec(cpu_milli=4000))
    world.settle()
    world.disconnect("n2")
    world.feed(NodeForgotten("n2"))
    assert world.state.kept_by("n2").startswith("is held: job/")
    assert "n2" in world.state.nodes


def test_one_that_comes_back_is_a_node_again() -> None:
    world = world_of_two()
    world.disconnect("n2")
    world.feed(NodeForgotten("n2"))
    world.settle()
    world.connect("n2")
    world.submit(spec(cpu_milli=4000))
    world.submit(spec(cpu_milli=4000))
    world.settle()
    assert {run.node for run in world.state.runs.values()} == {"n1", "n2"}
    world.check()
