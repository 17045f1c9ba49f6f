"""Jobs with parts: tasks that ask for different things, and start together or not at all. The sums are shown."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from control_world import World, offer, world
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lavalite.control.events import CancelRequested
from lavalite.control.starts import attempt_start
from lavalite.control.views import job as job_view
from lavalite.control.views import task as task_view
from lavalite.model.job import TYPED, Gang, JobSpec, Request
from lavalite.model.parts import Part

PS = {"name": "ps", "tasks": 1, "request": {"cpu_milli": 4000}}
WORKER = {"name": "worker", "tasks": 2, "request": {"cpu_milli": 2000, "gpu_milli": 1000}}


def part(name: str, tasks: int, cpu: int = 1, gpus: int = 0, **request: Any) -> Part:
    asked = Request(cpu_milli=cpu * 1000, gpu_milli=gpus * 1000, **request)
    return Part(name=name, tasks=tasks, request=asked)


def job(*parts: Part, **fields: Any) -> JobSpec:
    return JobSpec(**{"command": ["true"], "user": "ada", "parts": list(parts), **fields})


def letters(w: World, number: int) -> str:
    return bytes(w.state.jobs[number].codes).decode()


def tell(w: World) -> None:
    for _ in range(3):
        w.settle()
        for name in w.agents:
            w.report(name)
    w.settle()


def where(w: World, number: int) -> dict[str, dict[str, int]]:
    """Part → node → tasks."""
    found: dict[str, dict[str, int]] = {}
    for key, run in sorted(w.state.runs.items()):
        if key.job == number:
            place, _ = w.state.jobs[number].spec.part_at(run.position)
            assert place is not None
            nodes = found.setdefault(place.name, {})
            nodes[run.node] = nodes.get(run.node, 0) + 1
    return found


def racks(*nodes: tuple[int, int]) -> World:
    """A node for each (cores, GPUs); the first two are in rack r0, the next two in r1, and so on."""
    return world(*(offer(f"n{n}", cpu=cpu, gpus=gpus, rack=f"r{n // 2}") for n, (cpu, gpus) in enumerate(nodes)))


# --- what a job with parts is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "more", "said"),
    [
        ([], {}, "a job with parts has from 2 to 16 of them, and here are none"),
        ([PS], {}, "a job with parts has from 2 to 16 of them, and here is 1"),
        ([{**PS, "name": f"p{n}"} for n in range(17)], {}, "and here are 17"),
        ([PS, {**WORKER, "name": "ps"}], {}, "2 parts have the name ps"),
        ([PS, {**WORKER, "tasks": 256}], {}, "the parts have 257 tasks, .* such a job has at most 256"),
        ([PS, {**WORKER, "tasks": 2**63}], {}, "less than or equal to 9223372036854775807"),
        ([PS, {**WORKER, "tasks": 0}], {}, "greater than or equal to 1"),
        ([PS, {**WORKER, "colour": "red"}], {}, "Extra inputs are not permitted"),
        ([PS, {**WORKER, "request": {"cpus": 1}}], {}, "Extra inputs are not permitted"),
        ([PS, {**WORKER, "request": {"cpu_milli": 0}}], {}, "0 is nothing to ask for"),
        ([PS, {**WORKER, "request": {"cpu_milli": 2**63}}], {}, "less than or equal to 9223372036854775807"),
        ([PS, {**WORKER, "name": "a b"}], {}, "'a b' is no name of a part"),
        ([PS, {**WORKER, "command": []}], {}, "at least 1 item"),
        ([PS, WORKER], {"array": {"first": 1, "last": 3}}, "array and parts exclude each other"),
        ([PS, WORKER], {"request": {"cpu_milli": 2000}}, "request and parts exclude each other"),
        ([PS, WORKER], {"gang": {"nodes_least": 4}}, "3 tasks cannot be on 4 nodes"),
    ],
)  # fmt: skip
def test_what_is_no_job_with_parts(parts: list[Any], more: dict[str, Any], said: str) -> None:
    typed = {"command": ["true"], "parts": parts, **more}
    with pytest.raises(ValidationError, match=said):
        JobSpec.model_validate(typed, extra="forbid", context=TYPED)


def test_indices_go_from_part_to_part_and_it_is_a_gang() -> None:
    spec = job(part("a", 2, 3), part("b", 3, 1), part("c", 1))
    assert (spec.indices(), spec.gang) == (range(6), Gang())
    assert [(found.name, rank) for found, rank in map(spec.part_at, range(6)) if found] == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2), ("c", 0),
    ]  # fmt: skip
    assert spec.part_at(6) == (None, 0)
    assert [spec.at(position).request.cpu_milli for position in range(6)] == [3000, 3000, 1000, 1000, 1000, 1000]
    assert JobSpec.model_validate_json(spec.model_dump_json(exclude_defaults=True)) == spec


def test_a_part_has_the_jobs_command_or_its_own() -> None:
    spec = job(Part(name="a"), Part(name="b", command=["other"]))
    assert [spec.at(position).command for position in (0, 1)] == [["true"], ["other"]]


# --- where it goes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "parts", "gang", "placed"),
    [
        # 4 + 2·2 = 8 cores and 2 GPUs are there, on one node
        ([(8, 2)], [part("ps", 1, 4), part("w", 2, 2, 1)], Gang(), {"ps": {"n0": 1}, "w": {"n0": 2}}),
        # a core is missing: 4 + 2·2 > 7, so none of it starts
        ([(7, 2)], [part("ps", 1, 4), part("w", 2, 2, 1)], Gang(), {}),
        # GPUs are on n0 alone: w takes it (2·2 of 4 cores), and ps is left n1, although n0 was as good for it
        ([(4, 2), (4, 0)], [part("ps", 1, 4), part("w", 2, 2, 1)], Gang(), {"ps": {"n1": 1}, "w": {"n0": 2}}),
        # 3 + 3 do not go with 2: the large ones on a node each, a small one beside one of them
        ([(3, 0), (5, 0)], [part("s", 1, 2), part("l", 2, 3)], Gang(), {"s": {"n1": 1}, "l": {"n1": 1, "n0": 1}}),
        # 5 + 4 + 3 + 3 into 8 and 7: 5 + 3 and 4 + 3
        (
            [(8, 0), (7, 0)], [part("c", 2, 3), part("b", 1, 4), part("a", 1, 5)], Gang(),
            {"a": {"n0": 1}, "b": {"n1": 1}, "c": {"n0": 1, "n1": 1}},
        ),
        # two parts that ask for the same are two parts
        ([(2, 0), (2, 0)], [part("a", 2, 1), part("b", 2, 1)], Gang(), {"a": {"n1": 2}, "b": {"n0": 2}}),
        # one task on a node of all parts together: 3 tasks need 3 nodes
        (
            [(8, 0)] * 3, [part("a", 1, 1), part("b", 2, 1)], Gang(tasks_per_node=1),
            {"a": {"n0": 1}, "b": {"n1": 1, "n2": 1}},
        ),
        ([(8, 0)] * 2, [part("a", 1, 1), part("b", 2, 1)], Gang(tasks_per_node=1), {}),
        # on two nodes at least, on one at most
        ([(8, 0)] * 2, [part("a", 1, 1), part("b", 1, 2)], Gang(nodes_least=2), {"a": {"n0": 1}, "b": {"n1": 1}}),
        ([(4, 0), (8, 0)], [part("a", 1, 4), part("b", 1, 2)], Gang(nodes_most=1), {"a": {"n1": 1}, "b": {"n1": 1}}),
        ([(4, 0), (5, 0)], [part("a", 1, 4), part("b", 1, 2)], Gang(nodes_most=1), {}),
        # in one rack: r0 has room for ps (8) and none for w (no GPU), r1 for both: 4 + 2·2 = 4 + 4
        (
            [(8, 0), (8, 0), (4, 2), (4, 0)], [part("ps", 1, 4), part("w", 2, 2, 1)], Gang(within="rack"),
            {"ps": {"n3": 1}, "w": {"n2": 2}},
        ),
        # each part fits into a rack of its own, and no rack takes both
        ([(8, 0), (1, 0), (2, 2), (2, 0)], [part("ps", 1, 4), part("w", 2, 1, 1)], Gang(within="rack"), {}),
        (
            [(8, 0), (1, 0), (2, 2), (2, 0)], [part("ps", 1, 4), part("w", 2, 1, 1)], Gang(prefer_within="rack"),
            {"ps": {"n0": 1}, "w": {"n2": 2}},
        ),
        (
            [(8, 0), (1, 0), (4, 2), (4, 0)], [part("ps", 1, 4), part("w", 2, 1, 1)], Gang(prefer_within="rack"),
            {"ps": {"n3": 1}, "w": {"n2": 2}},
        ),
    ],
)  # fmt: skip
def test_where_it_goes(
    nodes: list[tuple[int, int]], parts: list[Part], gang: Gang, placed: dict[str, dict[str, int]]
) -> None:
    w = racks(*nodes)
    number = w.submit(job(*parts, gang=gang))
    w.settle()
    assert where(w, number) == placed
    assert letters(w, number) == ("C" if placed else "P") * sum(one.tasks for one in parts)
    w.check()


def naive(nodes: list[list[int]], parts: list[Part], total: list[int]) -> bool:
    """Whether the largest task first, each on the first node with room, seats all of them."""
    left = [list(node) for node in nodes]
    tasks = [[p.request.cpu_milli // 1000, p.request.gpu_milli // 1000] for p in parts for _ in range(p.tasks)]
    tasks.sort(key=lambda asked: -sum(a / max(1, has) for a, has in zip(asked, total, strict=True)))
    for asked in tasks:
        node = next((n for n in left if all(has >= a for has, a in zip(n, asked, strict=True))), None)
        if node is None:
            return False
        node[:] = [has - a for has, a in zip(node, asked, strict=True)]
    return True


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2)), min_size=2, max_size=4),
    st.lists(st.integers(1, 4), max_size=3),
)
def test_all_or_none_and_never_none_where_the_plainest_way_finds_seats(
    nodes: list[tuple[int, int]], asked: list[tuple[int, int, int]], before: list[int]
) -> None:
    w = racks(*nodes)
    for cpu in before:
        w.submit(JobSpec(command=["other"], user="bob", request=Request(cpu_milli=cpu * 1000)))
    w.settle()
    parts = [part(f"p{n}", tasks, cpu, gpus) for n, (tasks, cpu, gpus) in enumerate(asked)]
    free = [[w.state.book.free(f"n{n}", kind) // 1000 for kind in ("cpu", "gpu")] for n in range(len(nodes))]
    total = [sum(cpu for cpu, _ in nodes), sum(gpus for _, gpus in nodes)]
    number = w.submit(job(*parts))
    w.settle()
    held = Counter(run.position for key, run in w.state.runs.items() if key.job == number)
    tasks = sum(one.tasks for one in parts)
    assert set(letters(w, number)) in ({"C"}, {"P"})
    assert sum(held.values()) in (0, tasks)
    if not held:
        assert not naive(free, parts, total), f"{parts} fits on {free}"
    for n, (cpu, gpus) in enumerate(nodes):
        for kind, capacity in (("cpu", cpu), ("gpu", gpus)):
            committed, left = w.state.book.committed(f"n{n}", kind), w.state.book.free(f"n{n}", kind)
            assert committed + left == capacity * 1000 and left >= 0
    devices = [d for owner in w.state.book.owners() for s in w.state.book.shares(owner) for d in s.devices]
    assert len(devices) == len(set(devices))
    w.check()


def test_parts_of_gpus_and_whole_ones_share_a_node() -> None:
    """2 · 0.5 on one GPU, and one whole: a node with two GPUs has just that."""
    w = racks((8, 2))
    halves = Part(name="half", tasks=2, request=Request(cpu_milli=1000, gpu_milli=500))
    number = w.submit(job(halves, part("whole", 1, 1, 1)))
    tell(w)
    assert letters(w, number) == "RRR"
    held = [sorted(d for s in w.state.book.shares(f"job/{number}/{n}") for d in s.devices) for n in range(3)]
    assert held[0] == held[1] != held[2]


# --- what its tasks are told, and how it ends -----------------------------------------------------------------------


def test_each_task_is_told_of_its_part_and_where_all_of_them_are() -> None:
    w = racks((4, 0), (4, 2))
    parts = [part("ps", 1, 4), Part(name="worker", tasks=2, request=Request(gpu_milli=1000), command=["work"])]
    number = w.submit(job(*parts, environment={"A": "b"}))
    tell(w)
    starts = {
        run.key.task: attempt_start(w.state, run, w.now) for run in w.state.runs.values() if run.key.job == number
    }
    assert [starts[n].command for n in range(3)] == [("true",), ("work",), ("work",)]
    assert [starts[n].environment["LAVALITE_PART"] for n in range(3)] == ["ps", "worker", "worker"]
    assert [starts[n].environment["LAVALITE_PART_INDEX"] for n in range(3)] == ["0", "0", "1"]
    for start in starts.values():
        assert start.environment["LAVALITE_NODES"] == "n0:1 n1:2"
        assert start.environment["LAVALITE_NODES_ps"] == "n0:1"
        assert start.environment["LAVALITE_NODES_worker"] == "n1:2"
        assert start.environment["A"] == "b"
    assert [starts[n].cpu_milli for n in range(3)] == [4000, 1000, 1000]
    assert [len(starts[n].devices.get("gpu", [])) for n in range(3)] == [0, 1, 1]


def test_it_ends_as_one() -> None:
    w = racks((8, 2))
    number = w.submit(job(part("ps", 1, 4), part("w", 2, 2, 1)))
    tell(w)
    w.finish(next(a for a in w.running() if a.task == 1), exit_code=3)
    tell(w)
    for attempt in w.running():
        w.finish(attempt, exit_code=-15)
    tell(w)
    assert w.state.jobs[number].state == "failed" and not list(w.state.book.owners())
    w.check()


def test_a_job_that_is_cancelled_gives_all_of_it_back() -> None:
    w = racks((8, 2))
    number = w.submit(job(part("ps", 1, 4), part("w", 2, 2, 1)))
    w.settle()
    w.feed(CancelRequested(number, None, False, "ada"))
    tell(w)
    for attempt in w.running():
        w.finish(attempt, exit_code=-15)
    tell(w)
    assert not list(w.state.book.owners())
    w.check()


def test_a_restored_store_has_the_same_parts() -> None:
    w = racks((8, 2))
    number = w.submit(job(part("ps", 1, 4), part("w", 2, 2, 1)))
    waits = w.submit(job(part("ps", 1, 8), part("w", 1, 8)))
    tell(w)
    before = [task_view(w.state, w.state.jobs[number], n) for n in range(3)], job_view(w.state, w.state.jobs[number])
    w.change_leader()
    tell(w)
    after = [task_view(w.state, w.state.jobs[number], n) for n in range(3)], job_view(w.state, w.state.jobs[number])
    assert before == after
    assert [one["part"] for one in before[0]] == ["ps", "w", "w"]
    assert before[1]["parts"] == [
        {"name": "ps", "tasks": 1, "request": {"cpu_milli": 4000}},
        {"name": "w", "tasks": 2, "request": {"cpu_milli": 2000, "gpu_milli": 1000}},
    ]
    assert letters(w, waits) == "PP"
    w.check()
