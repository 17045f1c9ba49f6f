"""A virtual machine goes to another anchor while it runs: whatever fails and whoever dies, never do two run."""

from __future__ import annotations

from typing import Any

import pytest
from control_world import GIB, World
from hosts_world import (
    NODES,
    TIB,
    asked,
    check,
    define,
    far_world,
    host,
    nothing_is_left,
    one_order,
    roles,
    room_appears,
    settle,
    whole,
    wide_offer,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.control.actions import PartOrdered
from lavalite.control.settings import Settings
from lavalite.model.host import VM, VmAsk

AMOUNTS = {"cpu": 4000, "memory": 6 * GIB, "storage": TIB}
STEPS = ["export", "receive", "send", "run", "detach", "withdraw", ""]


def composed(**fields: object) -> World:
    """CPU and memory of n1, and a disk that only n3 has, which has no cores for it."""
    vm = VmAsk(image="debian-12", address="198.19.0.50/24")
    spec, allowed = asked(amounts=AMOUNTS, executor=VM, vm=vm, **fields), Settings(vm_migration=True)
    w = far_world(spec, cores_of_n3=1, settings=allowed)
    settle(w)
    assert host(w).state == "composed" and host(w).anchor == "n1"
    for name in NODES:
        w.agents[name].parts.eager = False
    return w


def cores_appear(w: World) -> None:
    """n3, which has its disk, could have all of it."""
    w.agents["n3"].offer = wide_offer("n3", storage=4 * TIB).model_copy(update={"version": 2})
    w.connect("n3")
    settle(w)
    w.advance(61)


def machine(w: World, node: str) -> PartOrdered | None:
    """What the node has carried out of its machine, where it has it."""
    parts = w.agents[node].parts
    key = ("h/vm", "vm", host(w).incarnation)
    found = parts.has.get(key)
    return parts.done.get(key) if found is not None and found.state == "ready" else None


def running(w: World) -> list[str]:
    """Nodes on which the guest would run."""
    found = {name: machine(w, name) for name in NODES}
    return [n for n, order in found.items() if order and not {"incoming", "outgoing"} & order.vm.keys()]


def one_step(w: World) -> bool:
    done = w.write() or any(one_order(w, name) for name in NODES)
    assert len(running(w)) <= 1, "two run"
    return done


def until_step(w: World, step: str) -> None:
    for _ in range(300):
        if host(w).step == step:
            return
        assert one_step(w), host(w)
    raise AssertionError(host(w))


def is_at(w: World, node: str) -> None:
    assert (host(w).state, host(w).anchor, host(w).moves_to) == ("composed", node, "")
    assert running(w) == [node]
    whole(w, "h")
    check(w)


def test_a_machine_goes_to_where_there_is_room_for_all_of_it() -> None:
    w = composed()
    cores_appear(w)
    seen: list[str] = []
    for _ in range(300):
        if host(w).step not in seen[-1:]:
            seen.append(host(w).step)
        if not one_step(w):
            break
    assert seen[-7:] == STEPS
    is_at(w, "n3")
    assert [(part.kind, part.provider) for part in host(w).parts if w.state.hosts["h"].is_far(part)] == []
    assert roles(w, "n1") == [] and roles(w, "n3") == ["vm h/vm"] and not host(w).circuits
    assert w.state.book.committed("n1", "cpu") == 0 and w.state.book.committed("n3", "storage") == TIB
    w.advance(61)
    settle(w)
    is_at(w, "n3")  # and there it stays


def test_what_each_is_told_when_it_is_handed_over() -> None:
    w = composed()
    cores_appear(w)
    until_step(w, "send")
    w.settle()
    key = ("h/vm", "vm", host(w).incarnation)
    coming, going = machine(w, "n3"), w.agents["n1"].parts.orders[key]
    assert coming and coming.vm["incoming"]["hardware"] == "what it is built of"
    assert [(d["part"], d["mirrors"]) for d in coming.vm["disks"]] == [("h/storage/n3.2", "h/storage/n3")]
    told = w.agents["n3"].parts.has[key]
    outgoing = going.vm["outgoing"]
    assert (outgoing["port"], outgoing["secret"]) == (told.port, told.secret)
    assert outgoing["carried"] == ["h/storage/n3"] and outgoing["bits_per_second"] == 10**9
    assert w.state.book.committed("n1", "memory") == w.state.book.committed("n3", "memory") == 6 * GIB  # both hold it
    settle(w)
    is_at(w, "n3")


@pytest.mark.parametrize("step", ["receive", "send"])
def test_a_move_that_fails_leaves_the_machine_where_it_was(step: str) -> None:
    w = composed()
    cores_appear(w)
    until_step(w, step)
    failing = w.agents["n3" if step == "receive" else "n1"].parts
    failing.failing = {"vm"}
    if step == "send":
        until_step(w, "detach")
        failing.failing = set()  # its guest runs on, and so it says
    settle(w)
    assert "no room on the disk" in host(w).reason and host(w).retry_at > w.now
    is_at(w, "n1")
    assert roles(w, "n3") == ["circuit h/circuit/n3", "export h/storage/n3"]
    failing.failing = set()
    w.advance(700)
    settle(w)
    w.advance(61)
    settle(w)
    is_at(w, "n3")


def test_a_machine_that_does_not_start_where_it_was_handed_over_to_is_waited_for() -> None:
    w = composed()
    cores_appear(w)
    until_step(w, "run")
    w.agents["n3"].parts.failing = {"vm"}
    settle(w)
    w.advance(1000)
    settle(w)
    assert host(w).step == "run" and "no room on the disk" in host(w).reason and running(w) == []
    w.agents["n3"].parts.failing = set()
    w.advance(61)
    settle(w)
    is_at(w, "n3")


def test_a_machine_that_cannot_let_go_of_its_old_disk_is_asked_again() -> None:
    w = composed()
    room_appears(w, "n1")
    settle(w)
    w.advance(61)
    until_step(w, "detach")
    w.agents["n1"].parts.failing = {"vm"}
    settle(w)
    assert host(w).step == "detach" and "no room on the disk" in host(w).reason
    w.agents["n1"].parts.failing = set()
    w.advance(61)
    settle(w)
    is_at(w, "n1")
    assert not host(w).circuits and host(w).reason == ""


def test_an_old_anchor_that_is_away_gives_its_machine_back_when_it_returns() -> None:
    w = composed()
    cores_appear(w)
    until_step(w, "detach")
    w.disconnect("n1")
    for _ in range(3):
        w.advance(121)
        settle(w)
    assert (host(w).state, host(w).anchor) == ("composed", "n3") and machine(w, "n1") is not None
    w.connect("n1")
    settle(w)
    w.advance(61)
    settle(w)
    assert machine(w, "n1") is None
    is_at(w, "n3")


def test_a_host_that_is_removed_on_the_way_leaves_nothing() -> None:
    w = composed()
    cores_appear(w)
    until_step(w, "send")
    define(w, purge=True)
    for _ in range(5):
        settle(w)
        w.advance(61)
    nothing_is_left(w, "h")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_never_do_two_run_and_it_is_somewhere_in_the_end(data: Any) -> None:
    w = composed()
    cores_appear(w)
    for _ in range(data.draw(st.integers(0, 60))):
        what = data.draw(st.sampled_from(["step", "step", "step", "step", "leader", "away", "back", "late", "fails"]))
        name = data.draw(st.sampled_from(NODES))
        if what == "step":
            one_step(w)
        elif what == "leader":
            w.change_leader()
        elif what == "away":
            w.disconnect(name)
        elif what == "back" and not w.agents[name].connected:
            w.connect(name)
        elif what == "late":
            w.advance(data.draw(st.sampled_from([10, 61, 130])))
        elif what == "fails":
            parts = w.agents[name].parts
            parts.failing = set() if parts.failing else {"vm"}
        assert len(running(w)) <= 1, "two run"
    for name in NODES:
        w.agents[name].parts.failing = set()
        if not w.agents[name].connected:
            w.connect(name)
    for _ in range(8):
        settle(w)
        w.advance(200)
    settle(w)
    assert host(w).state == "composed", host(w)
    is_at(w, host(w).anchor)
