"""The life of hosts with the plans that are really made: circuits over links, and far memory that comes near."""

from __future__ import annotations

from typing import Any

import pytest
from control_world import GIB, World
from hosts_world import NODES, QUEUES, TIB, check, host, roles, settle, whole, wide_offer

from lavalite.control.events import Specs
from lavalite.control.hosts import composer
from lavalite.model.selector import Selector
from lavalite.model.specs import HostSpec, LinkSpec
from lavalite.placement.compose import plan_hosts

GBIT = 10**9
LINKS = (
    LinkSpec("r1", 10 * GBIT, Selector.parse("n[1:2]")),
    LinkSpec("r2", 10 * GBIT, Selector.parse("n3")),
    LinkSpec("core", 5 * GBIT, switch="r1"),
    LinkSpec("core", 5 * GBIT, switch="r2"),
)
WIDE = HostSpec(
    "h",
    {"cpu": 4000, "memory": 12 * GIB, "storage": TIB},
    far={"memory": 6 * GIB, "storage": TIB},
    circuits={"memory": GBIT, "storage": 2 * GBIT},
)
BESIDE = HostSpec("a", {"cpu": 4000, "memory": 8 * GIB})


def linked(*specs: HostSpec, links: tuple[LinkSpec, ...] = LINKS) -> World:
    w = World()
    w.apply(Specs(queues=QUEUES, hosts={spec.name: spec for spec in specs}, links=links))
    w.connect("n1", wide_offer("n1", cpu=16, memory=16 * GIB))  # no other has the cores
    w.connect("n2", wide_offer("n2", cpu=2))
    w.connect("n3", wide_offer("n3", cpu=2, storage=TIB))
    settle(w)
    return w


def again(w: World, *specs: HostSpec, links: tuple[LinkSpec, ...] = LINKS) -> None:
    w.apply(Specs(queues=QUEUES, hosts={spec.name: spec for spec in specs}, links=links), purge=True)
    settle(w)


def test_circuits_are_held_on_every_link_and_given_back() -> None:
    w = linked(WIDE)
    assert host(w).state == "composed", host(w)
    whole(w, "h")
    # Storage of n3: n1 → r1 → core → r2 → n3, 2 Gbit/s on each of them and on both cards.
    for account in ("n1", "n3", "link/n1/r1", "link/r1/core", "link/r2/core", "link/n3/r2"):
        assert w.state.book.committed(account, "network") == 2 * GBIT, account
    assert w.state.book.capacity("link/r1/core", "network") == 5 * GBIT
    check(w)
    again(w, WIDE, links=(LINKS[0], LINKS[1], LinkSpec("core", 9 * GBIT, switch="r1"), LINKS[3]))
    assert w.state.book.capacity("link/r1/core", "network") == 9 * GBIT
    w.change_leader()
    for name in NODES:
        w.connect(name)
    settle(w)
    assert w.state.book.free("link/r1/core", "network") == 7 * GBIT
    again(w)
    assert w.state.book.committed("link/r1/core", "network") == 0 and "h" not in w.state.hosts
    check(w)


def test_what_waits_is_planned_again_after_a_pause_and_what_is_asked_for_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(composer, "SOON_SEEN_NODES", 0)
    monkeypatch.setattr(composer, "PAUSE_SECONDS_PER_NODE", 10.0)
    plans = []

    def counted(*asked: Any, **more: Any) -> dict[str, Any]:
        plans.append(asked)
        return plan_hosts(*asked, **more)

    monkeypatch.setattr(composer, "plan_hosts", counted)
    w = linked(HostSpec("h", {"cpu": 400_000}))
    w.advance(31)
    before = len(plans)
    for _ in range(29):
        w.advance(1)
        w.connect("n2")
    assert len(plans) - before <= 1, "three nodes: a pause of 30 seconds"
    again(w, HostSpec("h", {"cpu": 1000}))
    assert host(w).state == "composed"


def test_far_memory_comes_near_when_there_is_room() -> None:
    w = linked(BESIDE)
    again(w, BESIDE, WIDE)
    assert host(w).state == "composed" and len({p.provider for p in host(w).parts if p.kind == "memory"}) == 2
    far = next(p.provider for p in host(w).parts if p.kind == "memory" and p.provider != host(w).anchor)
    again(w, WIDE)
    assert "a" not in w.state.hosts
    w.advance(61)
    settle(w)
    assert {p.provider for p in host(w).parts if p.kind == "memory"} == {host(w).anchor}
    assert host(w).state == "composed" and w.state.book.capacity("h", "memory") == 12 * GIB
    assert not [role for role in roles(w, far) if "memory" in role]
    whole(w, "h")
    check(w)
