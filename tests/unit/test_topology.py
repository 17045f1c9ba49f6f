"""Gangs close together, and GPUs of a node near to each other: what is chosen, what is demanded, what fits."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from control_world import World, offer, spec, world
from hypothesis import given
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.control.admission import admit
from lavalite.control.explain import explain
from lavalite.control.starts import attempt_start
from lavalite.control.views import task as task_view
from lavalite.model.job import Array, Gang, Request
from lavalite.model.resources import WHOLE, Device, NodeOffer
from lavalite.model.specs import BUILT_IN_POLICIES, HostSpec, NodeCapacity
from lavalite.placement.classes import RequestClass
from lavalite.placement.closeness import LEVELS, Near, nearest, shared_level
from lavalite.placement.columns import Columns, DeviceRow
from lavalite.placement.ranking import Ranking
from lavalite.placement.registry import POLICIES
from lavalite.placement.room import Room

PLACES = st.builds(Near, *[st.sampled_from(["", "0", "1", "2"])] * 3)


def islands(*devices: str) -> list[Near]:
    """`0a1`: NVLink island 0, PCIe port a, NUMA node 1; `-` for none."""
    return [Near(*(letter.replace("-", "") for letter in device)) for device in devices]


def picked(places: list[Near], count: int, demanded: str = "") -> list[int]:
    return sorted(nearest(range(len(places)), count, lambda at: places[at], demanded))


@pytest.mark.parametrize(
    ("devices", "count", "chosen"),
    [
        # nothing is known: in order
        (["---", "---", "---"], 2, [0, 1]),
        # pairs on NVLink: 1 and 3 are one; for three, a pair and the next of the same NUMA node
        (["0a0", "1a0", "2b1", "1a0"], 2, [1, 3]),
        (["0a0", "1a0", "2b1", "1a0", "0b1"], 3, [0, 1, 3]),
        # island 0 has three free and island 1 two: two are taken of the smaller one, which fits them just
        (["0a0", "0a0", "0a0", "1b1", "1b1"], 2, [3, 4]),
        # all on one NVSwitch: then behind one port, else on one NUMA node, else on as few as can be
        (["0a0", "0b0", "0c1", "0c1"], 2, [2, 3]),
        (["0a0", "0b1", "0c0"], 2, [0, 2]),
        (["0a0", "0b1", "0c0", "0d1", "0e1"], 4, [0, 1, 3, 4]),
        # NVLink before PCIe, though the pair is on two ports and two NUMA nodes
        (["-a0", "0a0", "0b1", "-b1"], 2, [1, 2]),
        # one alone does not break the large island
        (["0a0", "0a0", "0a0", "1b1"], 1, [3]),
    ],
)
def test_the_nearest_are_picked(devices: list[str], count: int, chosen: list[int]) -> None:
    assert picked(islands(*devices), count) == chosen


@given(places=st.lists(PLACES, min_size=1, max_size=7), data=st.data())
def test_no_others_are_nearer(places: list[Near], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(places)))
    found = picked(places, count)
    assert len(set(found)) == count
    levels = [*LEVELS, ""]
    got = levels.index(shared_level([places[at] for at in found]))
    best = min(levels.index(shared_level(list(some))) for some in combinations(places, count))
    assert got == best


def columns_of(*rows: list[tuple[Near, int]]) -> Columns:
    columns = Columns()
    for number, row in enumerate(rows):
        devices = [DeviceRow(f"g{at}", "A100", 0, free, near) for at, (near, free) in enumerate(row)]
        total = sum(free for _, free in row)
        columns.set_row(f"n{number}", {"cpu": 99_000, "gpu": 1000 * len(row)}, {"cpu": 99_000, "gpu": total}, devices)
    return columns


ROWS = st.lists(st.lists(st.tuples(PLACES, st.sampled_from([1000, 1000, 400])), max_size=6), min_size=1, max_size=4)


@given(rows=ROWS, count=st.integers(2, 3), level=st.sampled_from(LEVELS), policy=st.sampled_from(BUILT_IN_POLICIES))
def test_what_is_demanded_is_had_as_often_as_can_be(
    rows: list[list[tuple[Near, int]]], count: int, level: str, policy: str
) -> None:
    columns = columns_of(*rows)
    wanted = RequestClass(Request(cpu_milli=0, gpu_milli=1000 * count, gpu_topology=level), {})  # type: ignore[arg-type]
    at = LEVELS.index(level)
    can = []
    for row in rows:
        free = Counter(near[at] for near, left in row if left == WHOLE and near[at])
        can.append(sum(found // count for found in free.values()))
    assert wanted.fits(columns).tolist() == can
    assert [wanted.tasks_on(columns, row) for row in range(len(rows))] == can
    runs = Ranking(wanted, POLICIES[policy]).runs(columns, 20)
    assert sum(run.tasks for run in runs) == sum(can)
    for run in runs:
        for _ in range(run.tasks):
            devices = {d.id: d for d in columns.devices(run.row)}
            got = wanted.pick_devices(columns.devices(run.row))
            assert len({devices[one].near[at] for one in got}) == 1 and len(got) == count
            columns.take(run.row, wanted.line, got)
    assert not wanted.rows_that_fit(columns)


# --- through the scheduler ------------------------------------------------------------------------------------------


def node(name: str, *places: str, cpu: int = 8, **labels: str) -> NodeOffer:
    """A node whose GPUs are on these islands, and of whose cores half are on NUMA node 0 and half on 1."""
    made = offer(name, cpu=cpu, gpus=len(places), **labels)
    for resource in made.resources:
        if resource.kind == "gpu":
            resource.devices = [
                device.model_copy(
                    update={
                        "numa_node": int(near.numa) if near.numa else -1,
                        "attributes": {k: v for k, v in (("nvlink", near.nvlink), ("pcie", near.pcie)) if v},
                    }
                )
                for device, near in zip(resource.devices, islands(*places), strict=True)
            ]
        if resource.kind == "cpu":
            resource.devices = [Device(id=str(core), numa_node=core * 2 // cpu) for core in range(cpu)]
    return made


def where(w: World, number: int) -> dict[str, int]:
    return dict(sorted(Counter(run.node for key, run in w.state.runs.items() if key.job == number).items()))


def test_a_task_is_told_what_it_got_and_stays_near_its_gpus() -> None:
    w = world(node("n1", "0a0", "1b1", "0a0", "1b1", cpu=8))
    pair = w.submit(spec(gpu_milli=2000, cpu_milli=3000))
    w.settle()
    told = task_view(w.state, w.state.jobs[pair], 0)
    assert (told["gpus"], told["gpu_topology"]) == (["n1-gpu0", "n1-gpu2"], "nvlink")
    (run,) = w.state.runs.values()
    assert attempt_start(w.state, run, w.now).devices["cpu"] == ["0", "1", "2", "3"]
    # NUMA node 1 has 4 cores, and 5 are asked for by who has GPUs there: it may run on any
    other = w.submit(spec(gpu_milli=2000, cpu_milli=5000))
    run = next(run for key, run in w.state.runs.items() if key.job == other)
    assert "cpu" not in attempt_start(w.state, run, w.now).devices


def test_what_can_never_be_together_is_refused() -> None:
    w = world(node("n1", "0a0", "0a0", "1b1", "1b1"), node("n2", "-a0", "-a0"))
    never = "GPUs together by nvlink can never be had here: 2 nodes: 1 has no GPUs that are connected as asked"
    with pytest.raises(InputError, match=never):
        admit(w.state, spec(gpu_milli=3000, gpu_topology="nvlink"), w.now)


def test_one_alone_leaves_islands_whole_for_who_needs_them() -> None:
    w = world(node("n1", "0a0", "0a0", "1b1", "1b1"))
    for _ in range(2):
        w.submit(spec(gpu_milli=1000))
    taken = {device for key in w.state.runs for share in w.state.book.shares(key.owner) for device in share.devices}
    assert taken == {"n1-gpu0", "n1-gpu1"}  # the second goes where one is taken already
    assert where(w, w.submit(spec(gpu_milli=2000, gpu_topology="nvlink"))) == {"n1": 1}


def test_free_gpus_that_are_not_together_are_counted_apart() -> None:
    w = world(node("n1", "0a0", "0a0", "1b1", "1b1"))
    first, second, third = (w.submit(spec(gpu_milli=1000)) for _ in range(3))
    w.settle()
    for name in w.agents:
        w.report(name)
    held = {
        job: share.devices[0]
        for job in (first, second, third)
        for share in w.state.book.shares(f"job/{job}/0")
        if share.devices
    }
    ended = next(job for job, device in held.items() if device in ("n1-gpu0", "n1-gpu1"))
    waits = w.submit(spec(gpu_milli=2000, gpu_topology="numa"))
    w.finish(next(a for a in w.running() if a.job == ended))
    w.settle()
    # one of each island is free: two GPUs, and not on one NUMA node
    told = explain(w.state, w.state.jobs[waits], w.now)
    assert told.filters == {"not_together": 1} and where(w, waits) == {}
    assert "1 has GPUs free that are not connected as asked" in told.sentence


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"gpu_milli": 1000, "gpu_topology": "nvlink"}, "nvlink is between GPUs, and fewer than two"),
        ({"gpu_topology": "numa"}, "numa is between GPUs, and fewer than two"),
    ],
)
def test_a_topology_of_nothing_is_refused(request_: dict[str, Any], sentence: str) -> None:
    w = world(node("n1", "0a0"))
    with pytest.raises(InputError, match=sentence):
        admit(w.state, spec(**request_), w.now)


@pytest.mark.parametrize(
    ("cores", "tasks", "gang", "nodes"),
    [
        # n0 n1 in switch s0, n2 n3 in s1, n4 n5 in s2. 5 tasks: s0 has 2+2, s1 has 3+3, s2 has 4+4.
        ([2, 2, 3, 3, 4, 4], 5, Gang(prefer_within="switch"), {"n2": 3, "n3": 2}),
        # without the wish it is as few nodes as can be, wherever they are: 4 + 1, and 1 where least is left
        ([2, 2, 3, 3, 4, 4], 5, Gang(), {"n0": 1, "n4": 4}),
        # 9 fit in no switch: s2 and s1, the two largest, take them
        ([2, 2, 3, 3, 4, 4], 9, Gang(prefer_within="switch"), {"n2": 1, "n4": 4, "n5": 4}),
        # rack r0 is s0 and s1, r1 is s2: all of 7 within a rack, and there on as few switches as can be
        ([2, 2, 3, 3, 4, 4], 7, Gang(within="rack", prefer_within="switch"), {"n4": 4, "n5": 3}),
        ([3, 3, 2, 2, 2, 2], 7, Gang(within="rack", prefer_within="switch"), {"n0": 3, "n1": 3, "n2": 1}),
    ],
)
def test_a_gang_is_kept_close(cores: list[int], tasks: int, gang: Gang, nodes: dict[str, int]) -> None:
    w = world(*(offer(f"n{at}", cpu=cpu, switch=f"s{at // 2}", rack=f"r{at // 4}") for at, cpu in enumerate(cores)))
    assert where(w, w.submit(spec(array=Array(first=1, last=tasks), gang=gang))) == nodes


def test_a_logical_host_has_its_gpus_as_connected_as_it_says() -> None:
    devices = tuple(node("n1", "0a0", "1a0", "0b1", "1b1").devices("gpu"))
    room = Room(NodeCapacity("n1", amounts={"gpu": 4000}, devices={"gpu": devices}))
    pair = HostSpec("h", {"gpu": 2000}, topology="nvlink")
    assert room.pick(pair, "gpu") == ["n1-gpu0", "n1-gpu2"]
    assert room.lacks(HostSpec("h", {"gpu": 3000}, topology="nvlink")) == {"gpu": 1000}
    room.move("gpu", 2000, ["n1-gpu0", "n1-gpu1"], -1)
    assert room.lacks(pair) == {"gpu": 1000} and room.lacks(HostSpec("h", {"gpu": 2000}, topology="numa")) == {}
