"""A disk of another node comes near, or becomes larger, while it is written to: nothing that was written is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from control_world import GIB, World, spec
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
    steps,
    whole,
)

from lavalite.control.actions import PartOrdered
from lavalite.control.settings import Settings
from lavalite.model.host import VM, VmAsk
from lavalite.model.specs import HostSpec

AMOUNTS = {"cpu": 4000, "memory": 6 * GIB, "storage": TIB}
FAR_DISK = ["circuit h/circuit/n3", "disk h/storage/n3"]


def wanted(**fields: object) -> HostSpec:
    """CPU and memory of n1, and a disk that only n3 has."""
    return asked(**{"amounts": AMOUNTS, **fields})


def composed(settings: Settings | None = None, **fields: object) -> World:
    w = far_world(wanted(**fields), settings=settings, cores_of_n3=1)
    settle(w)
    assert host(w).state == "composed" and host(w).anchor == "n1"
    for name in NODES:
        w.agents[name].parts.eager = False
    return w


def comes_home(w: World) -> None:
    room_appears(w, "n1")
    settle(w)
    w.advance(61)


def grows(w: World) -> None:
    define(w, wanted(amounts={**AMOUNTS, "storage": 3 * TIB}))


def until_step(w: World, step: str) -> None:
    """One write or order at a time, until the host is there."""
    for _ in range(200):
        if host(w).step == step:
            return
        assert w.write() or any(one_order(w, name) for name in NODES), host(w)
    raise AssertionError(host(w))


def disk_orders(w: World) -> list[PartOrdered]:
    return [order for order in w.agents["n1"].parts.orders.values() if order.role == "disk"]


def test_a_disk_comes_to_its_anchor_while_a_job_uses_it() -> None:
    w = composed()
    w.submit(spec(host="h", cpu_milli=1000))
    settle(w)
    comes_home(w)
    until_step(w, "attach")
    w.settle()
    new, old = sorted(disk_orders(w), key=lambda order: order.part)
    assert (old.part, old.mirrors) == ("h/storage/n3", "") and (new.part, new.mirrors) == ("h/storage/n1", old.part)
    assert new.want == old.want == "present"
    assert w.state.book.committed("n1", "storage") == w.state.book.committed("n3", "storage") == TIB  # both are held
    settle(w)
    assert host(w).state == "composed" and not host(w).circuits and len(w.running()) == 1
    assert roles(w, "n1") == ["disk h/storage/n1"] and roles(w, "n3") == []
    assert w.state.book.committed("n3", "storage") == 0
    assert [order.mirrors for order in disk_orders(w)] == [""]
    whole(w, "h")
    check(w)
    w.advance(61)
    assert not w.pipeline  # and there it stays


def test_a_disk_of_another_node_grows_by_moving_to_a_larger_one() -> None:
    w = composed()
    grows(w)
    settle(w)
    assert host(w).state == "composed" and host(w).amount("storage") == 3 * TIB
    assert roles(w, "n1") == ["circuit h/circuit/n3", "disk h/storage/n3.2"]
    assert roles(w, "n3") == ["circuit h/circuit/n3", "export h/storage/n3.2"]
    assert w.state.book.committed("n3", "storage") == 3 * TIB
    whole(w, "h")
    check(w)
    define(w, wanted(amounts={**AMOUNTS, "storage": 2 * TIB}))
    settle(w)
    assert "does not shrink" in host(w).reason and host(w).amount("storage") == 3 * TIB
    whole(w, "h")


@pytest.mark.parametrize("fault", ["disk", "export"])
def test_a_disk_that_cannot_be_copied_stays_where_it_is(fault: str) -> None:
    w = composed()
    parts = w.agents["n1" if fault == "disk" else "n3"].parts
    parts.failing = {"h/storage/n3.2"}
    grows(w)
    settle(w)
    assert host(w).state == "composed" and "no room on the disk" in host(w).reason and host(w).retry_at > w.now
    assert roles(w, "n1") == FAR_DISK
    whole(w, "h")
    check(w)
    parts.failing = set()
    w.advance(31)
    settle(w)
    assert host(w).amount("storage") == 3 * TIB and host(w).reason == ""
    whole(w, "h")


def test_a_copy_that_breaks_when_the_other_disk_is_to_go_is_made_again_from_that() -> None:
    w = composed()
    comes_home(w)
    until_step(w, "detach")
    w.settle()
    parts = w.agents["n1"].parts
    parts.lose("h/storage/n1")
    parts.failing = {"h/storage/n1"}
    settle(w)
    assert host(w).step == "detach" and "does not hold what it holds" in host(w).reason
    assert parts.devices.legs == {("h", host(w).incarnation): [("h/storage/n3", host(w).incarnation)]}
    parts.failing = set()
    w.advance(31)
    settle(w)
    assert host(w).state == "composed" and roles(w, "n1") == ["disk h/storage/n1"] and host(w).reason == ""
    whole(w, "h")
    check(w)


def test_an_old_disk_that_breaks_once_it_is_copied_is_no_loss() -> None:
    w = composed()
    comes_home(w)
    until_step(w, "detach")
    w.agents["n1"].parts.lose("h/storage/n3")
    settle(w)
    assert host(w).state == "composed" and roles(w, "n1") == ["disk h/storage/n1"]
    whole(w, "h")


def test_an_old_disk_that_breaks_before_it_is_copied_is_a_lost_part() -> None:
    w = composed()
    comes_home(w)
    until_step(w, "attach")
    w.agents["n1"].parts.lose("h/storage/n3")
    w.agents["n1"].parts.failing = {"h/storage/n3"}
    settle(w)
    assert host(w).state != "composed" and "h/storage/n3" in host(w).reason


def test_a_disk_without_the_device_mapper_stays_and_a_larger_one_is_refused_with_that_reason() -> None:
    w = far_world(cores_of_n3=1)
    w.agents["n1"].parts.device_name = "/dev/nbd0"
    define(w, wanted())
    settle(w)
    comes_home(w)
    settle(w)
    assert roles(w, "n1") == FAR_DISK and host(w).reason == ""
    w = far_world(cores_of_n3=1)
    w.agents["n1"].parts.device_name = "/dev/nbd0"
    define(w, wanted())
    settle(w)
    grows(w)
    settle(w)
    assert (host(w).state, host(w).amount("storage")) == ("composed", TIB)
    assert host(w).reason.startswith("n1 has its disk without the device mapper")


def test_a_copy_may_take_as_long_as_its_bytes_do_on_the_way() -> None:
    w = composed()
    comes_home(w)
    until_step(w, "attach")
    w.settle()
    # 1 TiB by a circuit of 1 Gbit/s takes 2^43 / 10^9 = 8796 s, and may take four times that, and two minutes.
    w.advance(4 * 8796 + 110)
    w.settle()
    assert (host(w).step, host(w).was is not None) == ("attach", True)
    w.advance(20)
    settle(w)
    assert host(w).state == "composed" and "was not ready within 35304 s" in host(w).reason
    assert roles(w, "n1") == FAR_DISK
    whole(w, "h")


@pytest.mark.parametrize("step", ["attach", "detach"])
def test_a_host_that_is_to_go_does_not_wait_for_a_copy(step: str) -> None:
    w = composed()
    comes_home(w)
    until_step(w, step)
    w.agents["n1"].parts.failing = {"h/storage/n1"}
    define(w, purge=True)
    settle(w)
    assert "h" not in w.state.hosts
    nothing_is_left(w, "h")
    check(w)


def test_an_anchor_that_is_away_when_its_disk_is_to_go_is_waited_for() -> None:
    w = composed()
    comes_home(w)
    until_step(w, "detach")
    w.disconnect("n1")
    w.advance(250)
    settle(w)
    assert host(w).step == "detach" and roles(w, "n3") == ["circuit h/circuit/n3", "export h/storage/n3"]
    w.connect("n1")
    settle(w)
    assert host(w).state == "composed" and roles(w, "n3") == []
    whole(w, "h")


def test_one_disk_begins_to_move_at_a_look() -> None:
    w = far_world(*(asked(n, amounts={**AMOUNTS, "memory": GIB}) for n in "ab"), cores_of_n3=1)
    settle(w)
    for name in NODES:
        w.agents[name].parts.eager = False
    assert {host(w, name).anchor for name in "ab"} == {"n1"}
    comes_home(w)
    w.settle()
    assert sorted(host(w, name).state for name in "ab") == ["composed", "resizing"]
    w.advance(61)
    settle(w)
    assert roles(w, "n1") == ["disk a/storage/n1", "disk b/storage/n1"] and roles(w, "n3") == []


def test_a_disk_of_a_virtual_machine_says_at_attach_whose_place_it_takes() -> None:
    w = composed(executor=VM, vm=VmAsk(image="debian"))
    comes_home(w)
    said: list[dict[str, str]] = []
    for _ in range(200):
        order = next(o for o in w.agents["n1"].parts.orders.values() if o.role == "vm")
        disks = {disk["part"]: disk.get("mirrors", "") for disk in order.vm["disks"]}
        said += [disks] if not said or said[-1] != disks else []
        if not w.write() and not any(one_order(w, name) for name in NODES):
            break
    old, new = "h/storage/n3", "h/storage/n1"
    assert said == [{old: ""}, {old: "", new: old}, {new: ""}]
    assert host(w).state == "composed"
    whole(w, "h")


# --- leaders and nodes that die -----------------------------------------------------------------------------------


def broken(w: World) -> None:
    w.agents["n1"].parts.failing = {"h/storage/n1"}
    comes_home(w)


CHANGES: dict[str, Callable[[World], None]] = {"home": comes_home, "grow": grows, "fail": broken}


@pytest.mark.parametrize("dies", ["leader", "anchor", "provider"])
@pytest.mark.parametrize("change", CHANGES)
def test_whoever_dies_at_any_moment_nothing_is_lost(change: str, dies: str) -> None:
    w = composed()
    CHANGES[change](w)
    total = steps(w)
    assert total > 10
    for at in range(total + 1):
        w = composed()
        CHANGES[change](w)
        for _ in range(at):
            assert w.write() or any(one_order(w, name) for name in NODES)
        check(w)
        asked_for = w.specs
        if dies == "leader":
            w.change_leader()
        else:
            victim = "n1" if dies == "anchor" else "n3"
            w.reboot(victim)
            w.agents[victim].parts.reboot()
        for name in NODES:
            if not w.agents[name].connected:
                w.connect(name)
        w.apply(asked_for)
        for _ in range(4):
            settle(w)
            w.advance(40)
        settle(w)
        check(w)
        assert host(w).state == "composed" and not host(w).under_way, f"{dies} died at {at}: {host(w)}"
        whole(w, "h")
        if change != "fail":
            assert roles(w, "n1")[-1] != FAR_DISK[-1]
        define(w, purge=True)
        settle(w)
        nothing_is_left(w, "h")
