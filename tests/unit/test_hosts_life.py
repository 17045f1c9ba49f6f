"""Hosts whose parts come from several nodes: composed, resized and taken apart step by step, whatever breaks."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from control_world import GIB, KEYS, World, spec
from far_planner import plan_far
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
    settle,
    steps,
    whole,
    wide_offer,
)

from lavalite.control.events import HostApplied, HostDrained, HostReserved, Specs
from lavalite.control.hosts import composer
from lavalite.control.hosts.telling import strangers
from lavalite.control.settings import Settings
from lavalite.model.host import DEGRADE, VM, LogicalHost, VmAsk, generation_of
from lavalite.model.specs import HostSpec


@pytest.fixture(autouse=True)
def far_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composer, "plan_hosts", plan_far)


def composed(*specs: HostSpec, settings: Settings | None = None) -> World:
    w = far_world(*(specs or (asked(),)), settings=settings)
    settle(w)
    check(w)
    return w


def test_a_host_is_composed_when_every_node_has_its_part() -> None:
    w = far_world(asked(), eager=False)
    # n1 has 8 GiB, so 4 come from n2, over a circuit, and 1 TiB from n3, over another one.
    assert (host(w).state, host(w).step) == ("composing", "export")
    assert {(p.kind, p.amount, p.provider) for p in host(w).parts} == {
        ("cpu", 4000, "n1"),
        ("memory", 8 * GIB, "n1"),
        ("memory", 4 * GIB, "n2"),
        ("storage", TIB, "n3"),
    }
    assert w.state.book.committed("n1", "network") == 2 * 10**9  # both circuits end there
    assert w.state.book.capacity("h", "memory") == 0  # nobody may use it yet
    w.parts_of("n1")
    w.parts_of("n2")
    w.settle()
    assert host(w).step == "export"  # n3 has not said yet that it exports
    w.parts_of("n3")
    assert host(w).step == "attach"
    assert not [o for o in w.agents["n1"].parts.orders.values() if o.role == "disk"]  # the step is not durable yet
    w.settle()
    settle(w)
    assert (host(w).state, host(w).step) == ("composed", "")
    assert roles(w, "n1") == ["circuit h/n2", "circuit h/n3", "disk h/storage/n3", "swap h/memory/n2"]
    assert roles(w, "n2") == ["circuit h/n2", "export h/memory/n2"]
    disk = next(o for o in w.agents["n1"].parts.orders.values() if o.role == "disk")
    exported = next(one for one in w.agents["n3"].parts.present() if one.role == "export")
    assert (disk.address, disk.port) == ("fabric-n3", exported.port)
    assert w.state.book.capacity("h", "memory") == 12 * GIB
    whole(w, "h")
    check(w)


def test_a_host_of_its_anchor_alone_is_composed_at_once() -> None:
    w = far_world(HostSpec("near", {"cpu": 2000, "memory": GIB}))
    assert host(w, "near").state == "composed"
    assert not any(agent.parts.carried_out for agent in w.agents.values())


def test_local_storage_is_attached_on_the_anchor() -> None:
    w = World()
    w.connect("n3", wide_offer("n3", storage=TIB))
    define(w, HostSpec("s", {"cpu": 1000, "storage": TIB}))
    settle(w)
    assert host(w, "s").state == "composed" and roles(w, "n3") == ["disk s/storage/n3"]
    check(w)


@pytest.mark.parametrize("role", ["export", "circuit", "swap", "disk"])
def test_a_part_that_fails_unwinds_the_rest_and_is_tried_again(role: str) -> None:
    w = far_world(asked(), eager=False)
    for agent in w.agents.values():
        agent.parts.failing = {role}
    settle(w)
    assert host(w).state == "failed" and "no room on the disk" in host(w).reason and role in host(w).reason
    nothing_is_left(w, "h")
    check(w)
    before = host(w)
    for agent in w.agents.values():
        agent.parts.failing = set()
    w.advance(10)
    settle(w)
    assert host(w) == before  # 30 s have not passed
    w.advance(25)
    settle(w)
    assert host(w).state == "composed" and host(w).tries == 0
    whole(w, "h")


def test_the_back_off_doubles_and_who_applies_it_need_not_wait() -> None:
    w = far_world(asked(), eager=False)
    w.agents["n3"].parts.failing = {"export"}
    w.disconnect("n3")
    settle(w)
    w.advance(121)  # not ready within compose_seconds; nobody waits for n3 longer than let_go_seconds
    settle(w)
    w.advance(121)
    settle(w)
    assert host(w).state == "failed" and "n3" in host(w).reason
    w.connect("n3")
    settle(w)
    waits = []
    for _ in range(4):
        waits.append(host(w).retry_at - w.now)
        w.now = host(w).retry_at
        w.advance(0)
        settle(w)
    assert waits == [30, 60, 120, 240]
    w.agents["n3"].parts.failing = set()
    w.feed(HostApplied("h"))
    settle(w)
    assert host(w).state == "composed"


def test_a_node_that_says_nothing_is_waited_for_and_its_left_overs_go_when_it_is_back() -> None:
    w = far_world(asked(), eager=False)
    for name in NODES:
        w.parts_of(name)
    w.settle()
    w.disconnect("n2")
    settle(w)  # n1 attaches everything and says so
    assert host(w).state == "composed"
    define(w, purge=True)
    settle(w)
    assert (host(w).state, host(w).step) == ("draining", "withdraw")
    w.advance(119)
    settle(w)
    assert "h" in w.state.hosts
    w.advance(2)
    settle(w)
    assert "h" not in w.state.hosts and roles(w, "n2") and w.state.nodes["n2"].owes_parts
    w.change_leader()  # the next leader knows that n2 may have something
    for name in NODES:
        w.agents[name].parts.eager = False
        w.connect(name)
    define(w, asked())
    w.settle()
    assert not [p for h in w.state.hosts.values() for p in h.parts if p.provider == "n2"]  # it has not told yet
    define(w, purge=True)
    settle(w)
    assert not w.state.nodes["n2"].owes_parts
    nothing_is_left(w, "h")


def test_a_host_grows_while_jobs_run_on_it() -> None:
    w = composed()
    w.submit(spec(cpu_milli=4000, memory_bytes=2 * GIB, host="h"))
    w.settle()
    assert len(w.running()) == 1
    for name in NODES:
        w.agents[name].parts.eager = False
    define(w, asked(amounts={"cpu": 4000, "memory": 14 * GIB, "storage": 2 * TIB}))
    w.settle()
    assert (host(w).state, host(w).step) == ("resizing", "export")
    assert w.state.book.capacity("h", "memory") == 12 * GIB  # until it is there
    assert w.state.book.committed("n2", "memory") == 6 * GIB
    settle(w)
    assert host(w).state == "composed" and w.state.book.capacity("h", "memory") == 14 * GIB
    assert len(w.running()) == 1
    whole(w, "h")
    check(w)


def test_a_host_shrinks_at_once_in_the_book_and_its_far_part_leaves() -> None:
    w = composed()
    for name in NODES:
        w.agents[name].parts.eager = False
    define(w, asked(amounts={"cpu": 4000, "memory": 6 * GIB, "storage": TIB}))
    w.settle()
    assert host(w).leaving == ["h/memory/n2", "h/n2"] and w.state.book.capacity("h", "memory") == 6 * GIB
    assert w.state.book.committed("n2", "memory") == 4 * GIB  # it has not left
    settle(w)
    assert host(w).state == "composed" and roles(w, "n2") == []
    assert w.state.book.committed("n2", "memory") == 0 and w.state.book.committed("n1", "memory") == 6 * GIB
    detached = [o.role for o in w.agents["n1"].parts.carried_out if o.want == "absent"]
    assert detached == ["swap", "circuit"]  # the anchor lets go before anything is withdrawn
    whole(w, "h")
    check(w)


def test_what_jobs_hold_is_not_taken() -> None:
    w = composed()
    w.submit(spec(memory_bytes=10 * GIB, host="h"))
    w.settle()
    define(w, asked(amounts={"cpu": 4000, "memory": 6 * GIB, "storage": TIB}))
    w.settle()
    assert host(w).reason == "jobs use more of it than it is to have" and host(w).state == "composed"


def test_a_resize_that_fails_leaves_the_host_as_it_was() -> None:
    w = composed(asked(amounts={"cpu": 4000, "memory": 8 * GIB, "storage": TIB}))
    before = host(w)
    w.agents["n2"].parts.failing = {"export"}
    define(w, asked())
    settle(w)
    after = host(w)
    assert after.state == "composed" and "no room on the disk" in after.reason
    assert (after.parts, after.circuits) == (before.parts, before.circuits) and after.retry_at > w.now
    assert w.state.book.capacity("h", "memory") == 8 * GIB and roles(w, "n2") == []
    whole(w, "h")
    w.agents["n2"].parts.failing = set()
    w.advance(31)
    settle(w)
    assert host(w).amount("memory") == 12 * GIB and host(w).reason == ""
    whole(w, "h")
    check(w)


def test_removal_waits_for_the_last_job() -> None:
    w = composed()
    job = w.submit(spec(host="h"))
    w.settle()
    define(w, purge=True)
    settle(w)
    assert (host(w).state, host(w).step) == ("draining", "") and roles(w, "n1")
    w.finish(next(a for a in w.running() if a.job == job))
    settle(w)
    w.advance(1)
    settle(w)
    assert "h" not in w.state.hosts
    nothing_is_left(w, "h")
    check(w)


def test_a_host_that_goes_while_it_is_composed_is_taken_apart() -> None:
    w = far_world(asked(), eager=False)
    w.parts_of("n2")
    w.settle()
    define(w, purge=True)
    settle(w)
    assert "h" not in w.state.hosts
    nothing_is_left(w, "h")


def test_one_that_is_removed_and_asked_for_again_is_another_one() -> None:
    w = composed()
    first = host(w).incarnation
    define(w, purge=True)
    settle(w)
    define(w, asked())
    settle(w)
    assert host(w).state == "composed" and host(w).incarnation > first
    assert generation_of(first) == w.epoch[0]
    whole(w, "h")


@pytest.mark.parametrize("rerunnable", [True, False])
def test_a_host_that_loses_a_part_fails_and_its_jobs_as_if_their_node_were_lost(rerunnable: bool) -> None:
    w = composed()
    job = w.submit(spec(host="h", rerunnable=rerunnable))
    w.settle()
    define(w)  # it is not composed again
    w.agents["n1"].parts.lose("h/memory/n2")
    w.parts_of("n1")
    w.settle()
    assert host(w).state == "failed" and "h/memory/n2 is lost" in host(w).reason
    assert roles(w, "n2")  # while a job is being stopped
    for _ in range(3):
        w.report("n1")
        settle(w)
        w.advance(1)
    settle(w)
    assert w.state.jobs[job].state.value == ("pending" if rerunnable else "failed")
    nothing_is_left(w, "h")
    check(w)


@pytest.mark.parametrize("how", ["silent", "less"])
def test_a_provider_that_is_gone_or_has_less_is_a_lost_part(how: str) -> None:
    w = composed()
    if how == "silent":
        w.disconnect("n2")
        w.advance(301)
    else:
        found = w.agents["n2"].offer
        less = [r.model_copy(update={"amount": 3 * GIB}) if r.kind == "memory" else r for r in found.resources]
        w.agents["n2"].offer = found.model_copy(update={"resources": less, "version": 2})
        w.connect("n2")
    w.settle()
    assert host(w).state == "failed" and "n2" in host(w).reason


def test_a_host_goes_on_without_a_part_and_gets_it_back() -> None:
    w = composed(asked(on_loss=DEGRADE))
    w.submit(spec(host="h"))
    w.settle()
    w.agents["n1"].parts.lose("h/memory/n2")
    w.parts_of("n1")
    # An order of a higher version goes out at once; until that is carried out, the part is missed.
    assert host(w).degraded == ["h/memory/n2"] and w.state.book.capacity("h", "memory") == 8 * GIB
    assert "h/memory/n2 is lost" in host(w).reason
    settle(w)
    assert host(w).degraded == [] and host(w).reason == "" and host(w).state == "composed"
    assert w.state.book.capacity("h", "memory") == 12 * GIB and len(w.running()) == 1
    whole(w, "h")
    check(w)


def test_what_cannot_be_attached_again_is_tried_now_and_then() -> None:
    w = composed(asked(on_loss=DEGRADE))
    w.agents["n1"].parts.failing = {"swap"}
    w.agents["n1"].parts.lose("h/memory/n2")
    settle(w)
    versions = []
    for _ in range(7):
        versions.append(host(w).version)
        w.advance(11)
        settle(w)
    assert host(w).degraded == ["h/memory/n2"] and len(set(versions)) == 3  # each 30 s
    w.agents["n1"].parts.failing = set()
    w.advance(31)
    settle(w)
    assert host(w).degraded == []
    whole(w, "h")


def test_a_virtual_machine_is_one_order_on_its_anchor() -> None:
    machine = VmAsk(image="debian", address="198.18.0.9/24", gateway="198.18.0.1", ssh_keys=["ssh-ed25519 AAAA"])
    w = composed(asked(executor=VM, vm=machine, limits={"memory": 16 * GIB}))
    assert roles(w, "n1") == ["circuit h/n2", "circuit h/n3", "vm h/vm"]
    order = next(o for o in w.agents["n1"].parts.orders.values() if o.role == "vm")
    export = {one.part: one for n in ("n2", "n3") for one in w.agents[n].parts.present() if one.role == "export"}
    assert order.vm == {
        "cpu_milli": 4000,
        "cpu_most_milli": 4000,
        "memory_bytes": 8 * GIB,
        "memory_most_bytes": 16 * GIB,
        "image": "debian",
        "network_address": "198.18.0.9/24",
        "gateway": "198.18.0.1",
        "ssh_keys": ["ssh-ed25519 AAAA"],
        "disks": [
            {
                "part": part,
                "kind": kind,
                "bytes": amount,
                "address": f"fabric-{part[-2:]}",
                "port": export[part].port,
                "secret": "5ec4e7",
            }
            for part, kind, amount in (("h/memory/n2", "memory", 4 * GIB), ("h/storage/n3", "storage", TIB))
        ],
    }
    define(w, asked(executor=VM, vm=machine, amounts={"cpu": 4000, "memory": 4 * GIB, "storage": TIB}))
    settle(w)
    order = next(o for o in w.agents["n1"].parts.orders.values() if o.role == "vm")
    assert [disk["kind"] for disk in order.vm["disks"]] == ["storage"] and order.vm["memory_bytes"] == 4 * GIB
    assert host(w).state == "composed" and "5ec4e7" not in "".join(map(repr, w.store.values()))
    define(w, purge=True)
    settle(w)
    nothing_is_left(w, "h")
    check(w)


def test_a_drained_host_stays_and_takes_nothing_new() -> None:
    w = composed()
    w.feed(HostDrained("h"))
    job = w.submit(spec(host="h"))
    settle(w)
    assert not w.running() and host(w).state == "composed"
    w.change_leader()
    for name in NODES:
        w.connect(name)
    settle(w)
    assert host(w).drained and not w.running()
    w.feed(HostDrained("h", undo=True))
    settle(w)
    assert [a.job for a in w.running()] == [job]


def test_a_reservation_is_held_until_it_is_applied_or_runs_out() -> None:
    w = far_world()
    define(w, asked(), reserve={"h": w.now + 100})
    settle(w)
    assert host(w).state == "reserved" and w.state.book.committed("n2", "memory") == 4 * GIB
    assert not any(agent.parts.carried_out for agent in w.agents.values())
    check(w)
    w.change_leader()
    for name in NODES:
        w.connect(name)
    w.advance(99)
    settle(w)
    assert host(w).state == "reserved"
    w.advance(2)
    settle(w)
    assert host(w).state == "planned" and "ran out" in host(w).reason
    nothing_is_left(w, "h")
    w.advance(100)
    settle(w)
    assert host(w).state == "planned"
    w.feed(HostApplied("h"))
    settle(w)
    assert host(w).state == "composed"
    small = asked("g", amounts={"cpu": 1000, "memory": GIB, "storage": TIB})
    define(w, asked(), small, reserve={"g": w.now + 100})
    settle(w)
    assert host(w, "g").state == "reserved"
    w.advance(50)
    w.feed(HostReserved("g", w.now + 100))  # asked for once more, as it is
    settle(w)
    assert host(w, "g").reserved_until == w.now + 100
    larger = asked("g", amounts={"cpu": 2000, "memory": GIB, "storage": TIB})
    define(w, asked(), larger, reserve={"g": w.now + 200})
    settle(w)
    assert host(w, "g").state == "reserved" and host(w, "g").amount("cpu") == 2000
    w.feed(HostApplied("g"))
    settle(w)
    assert host(w, "g").state == "composed"
    check(w)


# --- leaders that die ---------------------------------------------------------------------------------------------


def grown(w: World) -> None:
    define(w, asked(amounts={"cpu": 4000, "memory": 14 * GIB, "storage": 2 * TIB}))


def turned(w: World) -> None:
    """Its far memory goes, and more storage comes."""
    define(w, asked(amounts={"cpu": 2000, "memory": 5 * GIB, "storage": 3 * TIB}))


def gone(w: World) -> None:
    define(w, purge=True)


def failing(w: World) -> None:
    w.agents["n1"].parts.failing = {"disk"}
    define(w, asked("other", amounts={"cpu": 1000, "memory": GIB, "storage": TIB}), asked())


CHANGES: dict[str, Callable[[World], None]] = {
    "compose": lambda w: define(w, asked()),
    "grow": grown,
    "turn": turned,
    "remove": gone,
    "fail": failing,
}


def begun(change: str) -> World:
    w = far_world(*(() if change in ("compose", "fail") else (asked(),)))
    settle(w)
    for name in NODES:
        w.agents[name].parts.eager = False
    CHANGES[change](w)
    return w


@pytest.mark.parametrize("change", CHANGES)
def test_a_leader_that_dies_at_any_moment_leaves_no_half_host(change: str) -> None:
    """Killed after each write and each order, in turn; what is stored passes the audit, and the next one goes on."""
    total = steps(begun(change))
    assert total > 10
    for at in range(total + 1):
        w = begun(change)
        for _ in range(at):
            assert w.write() or any(one_order(w, name) for name in NODES)
        check(w)
        asked_for = w.specs
        w.change_leader()
        check(w)
        for name in NODES:
            w.connect(name)
        w.apply(asked_for, purge=change == "remove")  # whoever asked has heard of no success, and asks again
        settle(w)
        w.advance(1)
        settle(w)
        check(w)
        for name in ("h", "other"):
            found = w.state.hosts.get(name)
            if found is None or found.state == "failed":
                nothing_is_left(w, name)
            else:
                assert found.state == "composed" and found.step == "", f"killed at {at}: {found}"
                whole(w, name)
        assert ("h" in w.state.hosts) == (change != "remove")
        assert change in ("remove", "fail") or host(w).state == "composed"


# --- records ------------------------------------------------------------------------------------------------------


def test_a_record_of_the_last_release_is_read_and_nothing_is_ordered_for_it() -> None:
    w = World()
    w.connect("n3", wide_offer("n3", storage=4 * TIB))
    define(w, HostSpec("s", {"cpu": 1000, "storage": TIB}))
    settle(w)
    new = {
        *("circuits", "incarnation", "step", "leaving", "executor", "vm", "on_loss", "degraded", "was", "becomes"),
        *("most", "storage_iops", "drained", "tries", "retry_at", "reserved_until"),
    }
    stored = json.loads(w.store[KEYS.host("s")])
    assert new <= stored.keys()
    w.store[KEYS.host("s")] = json.dumps({k: v for k, v in stored.items() if k not in new}).encode()
    w.agents["n3"].parts.reboot()
    w.change_leader()
    w.connect("n3")
    settle(w)
    check(w)
    assert host(w, "s").state == "composed" and host(w, "s").incarnation == 0 and roles(w, "n3") == []
    define(w, HostSpec("s", {"cpu": 1000, "storage": 2 * TIB}))
    settle(w)
    assert host(w, "s").state == "composed" and roles(w, "n3") == ["disk s/storage/n3"]


def test_every_state_of_a_record_is_read_back_as_it_was() -> None:
    for change in CHANGES:
        w = begun(change)
        for _ in range(200):
            for key, value in w.store.items():
                if key.startswith(KEYS.host("")):
                    record = LogicalHost.model_validate_json(value)
                    assert record.model_dump_json().encode() == value
            if not w.write() and not any(one_order(w, name) for name in NODES):
                break


def test_parts_of_before_a_restore_are_left_alone_and_those_of_since_then_go() -> None:
    w = far_world()
    saved = dict(w.store)
    define(w, asked())
    settle(w)
    w.specs = Specs()
    w.restore(saved)
    for name in NODES:
        w.connect(name)
    settle(w)
    assert "h" not in w.state.hosts and roles(w, "n2") == ["circuit h/n2", "export h/memory/n2"]
    assert generation_of(w.agents["n2"].parts.present()[0].incarnation) == 0 and w.epoch[0] == 1
    assert [part.part for part in strangers(w.state, "n2")] == ["h/n2", "h/memory/n2"]
