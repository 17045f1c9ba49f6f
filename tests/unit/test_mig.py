"""MIG instances: devices of a profile, given out whole, and only to who asks for that profile."""

from __future__ import annotations

from typing import Any

import pytest
from control_world import GIB, World, offer, spec, world
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lavalite.base.errors import InputError
from lavalite.control.admission import admit
from lavalite.control.explain import explain
from lavalite.model.job import Array, Request
from lavalite.model.resources import WHOLE, NodeOffer
from lavalite.model.specs import BUILT_IN_POLICIES, HostSpec, NodeCapacity
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Columns, DeviceRow
from lavalite.placement.ranking import Ranking
from lavalite.placement.registry import POLICIES
from lavalite.placement.room import Room

PROFILES = ("", "1g.10gb", "3g.40gb")


def node(name: str, *profiles: str) -> NodeOffer:
    """A node with a GPU, or a MIG instance, for each of the profiles."""
    made = offer(name, gpus=len(profiles), cpu=16)
    devices = made.resources[-1].devices
    made.resources[-1].devices = [
        device.model_copy(update={"attributes": {"mig_profile": profile} if profile else {}})
        for device, profile in zip(devices, profiles, strict=True)
    ]
    return made


def held(w: World, job: int) -> list[str]:
    owners = [key.owner for key in w.state.runs if key.job == job]
    return sorted(device for owner in owners for share in w.state.book.shares(owner) for device in share.devices)


def test_each_gets_what_it_asks_for_and_nothing_else() -> None:
    w = world(node("n1", "", "1g.10gb", "1g.10gb", "3g.40gb"))
    # of four devices one is whole: a second whole one, and a part of one, wait though three are free
    whole = w.submit(spec(gpu_milli=1000, array=Array(first=1, last=2)))
    assert held(w, whole) == ["n1-gpu0"]
    part = w.submit(spec(gpu_milli=500))
    assert held(w, part) == []
    small = w.submit(spec(gpu_milli=1000, gpu_mig="1g.10gb", array=Array(first=1, last=3)))
    assert held(w, small) == ["n1-gpu1", "n1-gpu2"]
    assert held(w, w.submit(spec(gpu_milli=1000, gpu_mig="3g.40gb"))) == ["n1-gpu3"]
    told = explain(w.state, w.state.jobs[small], w.now)
    assert told.asks == "1 gpu, 1 cpu, of MIG profile 1g.10gb"
    assert told.filters == {"too_few_free": 1}


def test_two_instances_of_one_task_are_of_one_profile() -> None:
    w = world(node("n1", "1g.10gb", "3g.40gb", "1g.10gb"))
    assert held(w, w.submit(spec(gpu_milli=2000, gpu_mig="1g.10gb"))) == ["n1-gpu0", "n1-gpu2"]


def test_what_no_node_has_is_refused() -> None:
    w = world(node("n1", "", ""), node("n2", "1g.10gb"))
    with pytest.raises(InputError, match=r"2 have no MIG instances of the profile asked for"):
        admit(w.state, spec(gpu_milli=1000, gpu_mig="2g.20gb"), w.now)
    admit(w.state, spec(gpu_milli=2000), w.now)
    w = world(node("n2", "1g.10gb"))
    with pytest.raises(InputError, match="1 has no device of the model asked for"):
        admit(w.state, spec(gpu_milli=1000), w.now)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"gpu_milli": 500, "gpu_mig": "1g.10gb"}, "1g.10gb is a MIG instance, and such are given out whole"),
        ({"gpu_mig": "1g.10gb"}, "such are given out whole. Say how many: 1, 2, …"),
        ({"gpu_milli": 2000, "gpu_mig": "1g.10gb", "gpu_topology": "numa"}, "numa is between whole GPUs"),
    ],
)
def test_what_makes_no_sense_is_said(asked: dict[str, Any], sentence: str) -> None:
    w = world(node("n1", "1g.10gb", "1g.10gb"))
    with pytest.raises(InputError, match=sentence):
        admit(w.state, spec(**asked), w.now)


@pytest.mark.parametrize("profile", ["1g", "g.10gb", "0g.10gb", "10gb", "1g.10gb; rm"])
def test_a_profile_is_written_as_the_driver_does(profile: str) -> None:
    with pytest.raises(ValidationError, match="gpu_mig"):
        Request(gpu_milli=1000, gpu_mig=profile)
    for good in ("1g.10gb", "7g.141gb", "1g.10gb+me", "1c.3g.40gb"):
        assert Request(gpu_milli=1000, gpu_mig=good).gpu_mig == good


def test_a_logical_host_never_takes_an_instance() -> None:
    devices = tuple(node("n1", "", "1g.10gb").devices("gpu"))
    room = Room(NodeCapacity("n1", amounts={"gpu": 2000}, devices={"gpu": devices}))
    assert room.pick(HostSpec("h", {"gpu": 1000}), "gpu") == ["n1-gpu0"]
    assert room.lacks(HostSpec("h", {"gpu": 2000})) == {"gpu": 1000}


@given(
    rows=st.lists(st.lists(st.sampled_from(PROFILES), max_size=6), min_size=1, max_size=4),
    asked=st.sampled_from(PROFILES),
    count=st.integers(1, 2),
    policy=st.sampled_from(BUILT_IN_POLICIES),
)
def test_a_request_takes_all_of_its_profile_and_no_other(
    rows: list[list[str]], asked: str, count: int, policy: str
) -> None:
    columns = Columns()
    for number, profiles in enumerate(rows):
        devices = [DeviceRow(f"g{at}", "H100", 80 * GIB, WHOLE, mig=profile) for at, profile in enumerate(profiles)]
        amount = {"gpu": WHOLE * len(profiles)}
        columns.set_row(f"n{number}", amount, amount, devices)
    wanted = RequestClass(Request(cpu_milli=0, gpu_milli=count * WHOLE, gpu_mig=asked), {})
    can = [profiles.count(asked) // count for profiles in rows]
    assert wanted.fits(columns).tolist() == can
    runs = Ranking(wanted, POLICIES[policy]).runs(columns, 50)
    assert sum(run.tasks for run in runs) == sum(can)
    for run in runs:
        for _ in range(run.tasks):
            got = wanted.pick_devices(columns.devices(run.row))
            assert [rows[run.row][int(device[1:])] for device in got] == [asked] * count
            columns.take(run.row, wanted.line, got)
