"""Hosts of several nodes in the shell: frames to events, effects to frames, and what people are shown."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from control_world import GIB, World
from far_planner import plan_far
from hosts_world import NODES, asked, define, far_world, host, settle
from test_mbatchd_sessions import EPOCH, Desk, Peer, register

from lavalite.api.models import Host
from lavalite.base.errors import RefusedError
from lavalite.cli.cluster import host_columns
from lavalite.cli.output import table
from lavalite.control import views
from lavalite.control.actions import PartOrdered, SendParts
from lavalite.control.events import HostDrained, NodeRegistered, PartsReported
from lavalite.control.hosts import composer
from lavalite.mbatchd.dispatch import frame_of
from lavalite.mbatchd.hosts_here import HostNews
from lavalite.model.host import DEGRADE, VM, VmAsk
from lavalite.wire.frames import Bye, HostsHere, PartOrder, PartsApplied, PartsHere, PartState

READY = PartState(
    part="h/memory/n1", role="export", host="h", incarnation=7, state="ready", port=10809, secret="abcd"
)


async def heard(*frames: Any, **fields: Any) -> list[Any]:
    desk, peer = Desk(), Peer(register(**fields), *frames, Bye())
    peer.peer = "198.18.0.5:40123"
    await desk.serve(peer)
    return list(desk.events)


async def test_what_an_agent_says_of_parts_is_an_event_and_its_secret_is_in_no_words() -> None:
    events = await heard(PartsApplied(parts=[READY.model_copy(update={"reason": "x" * 999})]))
    told = next(event for event in events if isinstance(event, PartsReported))
    part = told.parts[0]
    assert (told.node, part.key, part.port, part.secret) == ("n1", ("h/memory/n1", "export", 7), 10809, "abcd")
    assert len(part.reason) == 200 and "abcd" not in repr(told)


@pytest.mark.parametrize(("said", "is_at"), [("", "198.18.0.5"), ("198.18.7.5", "198.18.7.5")])
async def test_a_node_is_reached_where_it_says_or_where_its_session_comes_from(said: str, is_at: str) -> None:
    events = await heard(fabric_address=said)
    assert next(event for event in events if isinstance(event, NodeRegistered)).fabric_address == is_at


@pytest.mark.parametrize(
    "bad",
    [
        PartsApplied(parts=[READY.model_copy(update={"address": "n2; reboot"})]),
        PartsApplied(parts=[READY.model_copy(update={"path": "/" * 600})]),
    ],
)
async def test_what_is_no_address_or_too_long_ends_the_session(bad: PartsApplied) -> None:
    with pytest.raises(RefusedError):
        await heard(bad)
    with pytest.raises(RefusedError, match="IP address"):
        await heard(fabric_address="$(reboot)")


def test_an_order_is_a_frame_field_by_field() -> None:
    order = PartOrdered(
        *("h/memory/n2", "export", "h", 7, 3, "present", "memory", GIB, "n1", "198.18.0.1"), tls=True, iops=5
    )
    frame = frame_of(SendParts("n2", (order, replace(order, want="absent"))), EPOCH)[0]
    assert isinstance(frame, PartsHere) and len(frame.orders) == 2
    assert all(getattr(frame.orders[0], name) == getattr(order, name) for name in PartOrder.model_fields)


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(composer, "plan_hosts", plan_far)
    w = far_world(asked(on_loss=DEGRADE))
    settle(w)
    return w


def here(w: World) -> Any:
    got: list[HostsHere] = []
    news = HostNews(w.state, EPOCH, lambda node, *frames: got.extend(f for f in frames if node == "n1") or True)
    news.heard(SimpleNamespace())  # type: ignore[arg-type]
    return got[-1].hosts[0]


def test_the_anchor_is_told_how_much_of_the_memory_is_far(composed: World) -> None:
    told = here(composed)
    assert (told.memory_bytes, told.far_memory_bytes) == (12 * GIB, 4 * GIB)
    composed.agents["n1"].parts.failing = {"swap"}
    composed.agents["n1"].parts.lose("h/memory/n2")
    settle(composed)
    told = here(composed)
    assert (told.memory_bytes, told.far_memory_bytes) == (8 * GIB, 0)


def shown(w: World) -> Host:
    return Host.model_validate(views.host(w.state, host(w)))


def test_a_host_is_shown_with_its_parts_circuits_and_what_is_amiss(composed: World) -> None:
    found = shown(composed)
    assert [(c.provider, c.bits_per_second) for c in found.circuits] == [("n2", 10**9), ("n3", 10**9)]
    assert next(p.circuit for p in found.parts if p.provider == "n2") == "h/n2"
    lines = table([found], host_columns([found])).split("\n")
    assert lines[0].split() == ["HOST", "STATE", "CPU", "MEMORY", "GPU", "STORAGE", "ANCHOR", "FROM"]
    row = " ".join(lines[1].split())
    assert row == "h composed 4 8GiB + 4GiB far – 1TiB at n3 n1 n1 n2 n3"
    composed.agents["n1"].parts.failing = {"swap"}
    composed.agents["n1"].parts.lose("h/memory/n2")
    settle(composed)
    composed.feed(HostDrained("h"))
    found = shown(composed)
    said = table([found], host_columns([found])).split("\n")[1]
    assert "degraded, drained: h/memory/n2 is lost: n1: swap" in said


def test_what_is_on_its_way_says_its_step(composed: World) -> None:
    for name in NODES:
        composed.agents[name].parts.eager = False
    define(composed, purge=True)
    composed.settle()
    found = shown(composed)
    assert (found.state, found.step) == ("draining", "detach") and "h/memory/n2" in found.leaving


def test_no_secret_is_shown_or_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composer, "plan_hosts", plan_far)
    w = far_world(asked(executor=VM, vm=VmAsk(image="x")))
    settle(w)
    assert "5ec4e7" in str([agent.parts.told() for agent in w.agents.values()][1][1].secret)
    assert "5ec4e7" not in shown(w).model_dump_json() + repr(w.store) + repr(w.state.parts_told)
    assert "5ec4e7" not in repr(w.state.orders_sent)
