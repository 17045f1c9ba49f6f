"""Jobs whose tasks start together or not at all, and end as one: where they go, and what becomes of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from control_world import REFUSES, World, offer, spec
from hypothesis import given
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.control.actions import Effect, SendDispatch
from lavalite.control.admission import admit
from lavalite.control.events import CancelRequested, RequeueRequested, SignalRequested, Specs
from lavalite.control.explain import explain
from lavalite.control.gangs import _seats
from lavalite.control.settings import Settings
from lavalite.control.views import job as job_view
from lavalite.model.job import Array, Gang, JobSpec
from lavalite.model.specs import PoolSpec, QueueSpec


def world(*cores: int, **settings: Any) -> World:
    """A node for each number of cores; the first two are in rack r1, the next two in r2, and so on."""
    made = World(Settings(**settings))
    for number, cpu in enumerate(cores):
        made.connect(f"n{number}", offer(f"n{number}", cpu=cpu, rack=f"r{number // 2}"))
    made.settle()
    return made


def gang(tasks: int, of: Gang | None = None, **fields: Any) -> JobSpec:
    return spec(array=Array(first=1, last=tasks), gang=of or Gang(), **fields)


def letters(w: World, job: int) -> str:
    return bytes(w.state.jobs[job].codes).decode()


def tell(w: World) -> None:
    for _ in range(3):
        w.settle()
        for name in w.agents:
            w.report(name)
    w.settle()


def where(w: World, job: int) -> dict[str, int]:
    return dict(Counter(run.node for key, run in w.state.runs.items() if key.job == job))


@pytest.mark.parametrize(
    ("cores", "tasks", "asked", "nodes"),
    [
        # as few nodes as can be: 4 on the roomiest; then 4 of 4 and the last 2 where 2 are left, not where 3 are
        ([2, 4, 3], 4, Gang(), {"n1": 4}),
        ([4, 3, 2], 6, Gang(), {"n0": 4, "n2": 2}),
        # at most 2 on a node: 3 nodes for 6
        ([4, 4, 4], 6, Gang(tasks_per_node=2), {"n0": 2, "n1": 2, "n2": 2}),
        # 3 nodes at least: one each for the second and the third, the rest on the first
        ([4, 4, 4], 4, Gang(nodes_least=3), {"n0": 2, "n1": 1, "n2": 1}),
        # 2 nodes at most, and three would be needed: 4 + 3 < 8
        ([4, 3, 3], 8, Gang(nodes_most=2), {}),
        ([4, 3, 3], 8, Gang(), {"n0": 4, "n1": 3, "n2": 1}),
        # 3 nodes at least, and there are two with room
        ([4, 0, 4], 4, Gang(nodes_least=3), {}),
        # one rack: r0 has 2 + 2, r1 has 3 + 2: 5 fit into r1 alone, 4 into both and go where it is tighter
        ([2, 2, 3, 2], 5, Gang(within="rack"), {"n2": 3, "n3": 2}),
        ([3, 2, 2, 2], 4, Gang(within="rack"), {"n2": 2, "n3": 2}),
        ([2, 2, 3, 2], 6, Gang(within="rack"), {}),
        # a label that no node has
        ([4, 4], 2, Gang(within="row"), {}),
        # all together: 9 of 9
        ([4, 3, 2], 9, Gang(), {"n0": 4, "n1": 3, "n2": 2}),
        ([4, 3, 2], 10, Gang(), {}),
    ],
)
def test_where_it_goes(cores: list[int], tasks: int, asked: Gang, nodes: dict[str, int]) -> None:
    w = world(*(cpu or 1 for cpu in cores))
    for number, cpu in enumerate(cores):
        if not cpu:  # a node that is full
            w.submit(spec(cpu_milli=1000, command=["other"]))
            assert next(iter(w.state.runs.values())).node == f"n{number}"
    job = w.submit(gang(tasks, asked))
    w.settle()
    assert where(w, job) == nodes
    assert letters(w, job) == ("C" if nodes else "P") * tasks
    w.check()


@given(
    st.dictionaries(st.integers(0, 9), st.integers(1, 5), max_size=8), st.integers(1, 12), st.integers(1, 4),
    st.none() | st.integers(1, 6),
)  # fmt: skip
def test_seats_are_found_whenever_there_are_some(
    room: dict[int, int], wanted: int, least: int, most: int | None
) -> None:
    """Against the sums: with so many nodes, at most the roomiest take so many, and each takes one at least."""
    least = min(least, wanted)
    most = most if most is None or most >= least else least
    seats = _seats(Gang(nodes_least=least, nodes_most=most), wanted, "", room).seats
    roomiest = sorted(room.values(), reverse=True)
    possible = any(
        count <= wanted <= sum(roomiest[:count])
        for count in range(least, min(len(room), most or len(room)) + 1)
    )  # fmt: skip
    assert bool(seats) == possible
    if seats:
        assert sum(seats.values()) == wanted
        assert all(1 <= tasks <= room[row] for row, tasks in seats.items())
        assert least <= len(seats) <= (most or len(seats))


def test_all_or_nothing_and_what_is_said_meanwhile() -> None:
    w = world(4, 2)
    first = w.submit(spec(cpu_milli=3000))
    tell(w)
    job = w.submit(gang(4))
    later = w.submit(spec(cpu_milli=1000))
    tell(w)
    assert (letters(w, job), letters(w, later)) == ("PPPP", "R")  # others go on meanwhile
    told = explain(w.state, w.state.jobs[job], w.now)
    assert told.sentence == "Its 4 tasks start together, and 2 of 4 fit now."
    for attempt in [a for a in w.running() if a.job in (first, later)]:
        w.finish(attempt)
    tell(w)
    assert letters(w, job) == "RRRR"
    w.check()


def test_what_is_said_of_a_span_and_a_rack() -> None:
    w = world(2, 2, 2, 1)
    job = w.state.jobs[w.submit(gang(5, Gang(tasks_per_node=3, nodes_least=2, nodes_most=4, within="rack")))]
    assert explain(w.state, job, w.now).sentence == (
        "Its 5 tasks start together (at most 3 on a node, on 2 nodes at least, on 4 nodes at most, all within one "
        "rack), and 4 of 5 fit now within rack r0, where most do."
    )


def test_gpus_are_given_out_once() -> None:
    w = World()
    w.connect("n0", offer("n0", cpu=8, gpus=4))
    w.settle()
    job = w.submit(gang(4, gpu_milli=1000, cpu_milli=1000))
    tell(w)
    assert letters(w, job) == "RRRR"
    devices = [d for owner in w.state.book.owners() for s in w.state.book.shares(owner) for d in s.devices]
    assert sorted(devices) == [f"n0-gpu{n}" for n in range(4)]


def test_nothing_goes_out_before_all_of_it_is_durable() -> None:
    """Five commitments in transactions of two: the agents hear nothing until the third is written."""
    w = world(3, 2, max_txn_operations=2)
    job = w.submit(gang(5))
    while len(w.pipeline) > 1:
        w.write()
        assert not w.running()
    assert letters(w, job) == "CCCCA"
    w.write()
    assert len(w.running()) == 5


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_one_transaction_that_is_not_written_takes_the_others_back(lost: int) -> None:
    w = world(3, 2, max_txn_operations=2)
    job = w.submit(gang(5))
    while w.pipeline and not any("commitments" in key for key in w.pipeline[0].puts):
        w.write()
    for number in range(3):
        w.write(unwind=number == lost)
        w.check()
        assert not w.running()
    tell(w)
    w.advance(1)
    tell(w)
    assert letters(w, job) == "RRRRR"
    assert len({attempt.attempt for attempt in w.running()}) == 1
    assert not w.state.jobs[job].charges


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_a_leader_lost_in_the_middle_starts_nothing_of_half_a_gang(written: int) -> None:
    w = world(3, 2, max_txn_operations=2)
    job = w.submit(gang(5))
    while w.pipeline and not any("commitments" in key for key in w.pipeline[0].puts):
        w.write()
    for _ in range(written):
        w.write()
    w.change_leader()
    for name in w.agents:
        w.connect(name)
        w.check()
    for _ in range(3):
        tell(w)
        w.advance(1)
    assert letters(w, job) == "RRRRR"
    assert len({attempt.attempt for attempt in w.running()}) == 1


def test_a_node_that_comes_back_while_it_is_committed_is_told_nothing_yet() -> None:
    w = world(3, 2, max_txn_operations=2)
    w.submit(gang(5))
    while len(w.pipeline) > 1:
        w.write()
    w.disconnect("n0")
    w.connect("n0")
    assert not w.running()
    w.settle()
    assert len(w.running()) == 5


def test_one_that_fails_begins_anew_with_all_others() -> None:
    w = world(3, 2)
    job = w.submit(gang(5, retries=1))
    tell(w)
    first, *others = sorted(w.running())
    w.finish(first, 1)
    assert {stop.id for stop in w.stops} == set()
    tell(w)
    assert {stop.id for stop in w.stops} == set(others)
    assert letters(w, job) == "WWWWW"
    assert w.state.jobs[job].charges == {0: 1}
    w.advance(2)
    tell(w)
    assert sorted(a.attempt for a in w.running()) == [2] * 5
    w.finish(sorted(w.running())[1], 1)  # another one, and no retry is left for any
    tell(w)
    assert letters(w, job) == "FFFFF"
    assert job_view(w.state, w.state.jobs[job])["state"] == "failed"
    assert not w.running()
    w.check()


def test_all_that_fail_at_once_cost_one_retry() -> None:
    w = world(4)
    job = w.submit(gang(4, retries=1))
    tell(w)
    for attempt in w.running():
        w._note_end(w.agents["n0"], attempt, 1, "exit")
    w.report("n0")
    tell(w)
    assert sum(w.state.jobs[job].charges.values()) == 1
    w.advance(2)
    tell(w)
    assert letters(w, job) == "RRRR"


def test_one_that_ends_well_while_the_others_begin_anew_begins_anew_too() -> None:
    w = world(2)
    job = w.submit(gang(2, retries=1))
    tell(w)
    first, second = sorted(w.running())
    w._note_end(w.agents["n0"], first, 1, "exit")
    w._note_end(w.agents["n0"], second, 0, "exit")
    w.report("n0")
    tell(w)
    assert letters(w, job) == "WW"


def test_once_one_has_ended_well_a_failure_is_final() -> None:
    w = world(3)
    job = w.submit(gang(3, retries=5))
    tell(w)
    first, second, _ = sorted(w.running())
    w.finish(first)
    tell(w)
    w.finish(second, 1)
    tell(w)
    assert letters(w, job) == "DFF"
    assert job_view(w.state, w.state.jobs[job])["state"] == "failed"
    w.check()


def test_a_start_that_is_refused_requeues_all() -> None:
    w = world(2, 2)
    w.agents["n1"].known.add(REFUSES)
    job = w.submit(gang(4, retries=1))
    tell(w)
    assert letters(w, job) == "WWWW" and not w.running()
    w.agents["n1"].known.discard(REFUSES)
    w.advance(2)
    tell(w)
    assert letters(w, job) == "RRRR"


def test_a_lost_node_takes_all_of_a_rerunnable_gang_with_it() -> None:
    w = world(2, 2, 2)
    w.apply(Specs(queues={"q": QueueSpec("q", fence_after_seconds=100, lost_after_seconds=110)}))
    job = w.submit(gang(4, rerunnable=True))
    tell(w)
    w.disconnect("n1")
    w.advance(105)
    tell(w)
    assert sorted(letters(w, job)) == ["R", "R", "U", "U"]
    w.advance(10)
    tell(w)
    w.advance(5)
    tell(w)
    assert letters(w, job) == "RRRR" and where(w, job) == {"n0": 2, "n2": 2}
    assert not w.state.jobs[job].charges
    w.check()


@pytest.mark.parametrize("tasks", [None, (1,)])
def test_what_is_wished_of_one_is_wished_of_all(tasks: tuple[int, ...] | None) -> None:
    w = world(3)
    job = w.submit(gang(3))
    tell(w)
    w.feed(SignalRequested(job, "suspend", tasks))
    tell(w)
    assert letters(w, job) == "SSS"
    w.feed(SignalRequested(job, "resume", tasks))
    w.feed(RequeueRequested(job, tasks))
    tell(w)
    w.advance(2)
    tell(w)
    assert letters(w, job) == "RRR" and {a.attempt for a in w.running()} == {2}
    w.feed(CancelRequested(job, tasks))
    tell(w)
    assert letters(w, job) == "XXX"


def test_each_task_is_told_where_all_are() -> None:
    w = world(2, 1)
    w.submit(gang(3))
    told, carry_out = [], w.carry_out

    def look(effect: Effect) -> None:
        if isinstance(effect, SendDispatch):
            told.extend(start.environment["LAVALITE_NODES"] for start in effect.attempts)
        carry_out(effect)

    w.carry_out = look  # type: ignore[method-assign]
    w.settle()
    assert told == ["n0:2 n1:1"] * 3


def test_a_gang_of_more_tasks_than_a_pass_places_is_placed_in_one_of_its_own() -> None:
    w = world(8, max_placements=2)
    others = [w.submit(spec()) for _ in range(3)]
    job = w.submit(gang(5))
    w.advance(0)
    tell(w)
    assert letters(w, job) == "RRRRR"
    assert [letters(w, other) for other in others] == ["R"] * 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"array": Array(first=1, last=257)}, "257 tasks are to start together, and a gang has at most 256"),
        ({"array": Array(first=1, last=3), "gang": Gang(nodes_least=4)}, "3 tasks cannot be on 4 nodes"),
        (
            {"array": Array(first=1, last=9), "gang": Gang(tasks_per_node=4, nodes_most=2)},
            "2 nodes with 4 tasks each do not take 9 tasks",
        ),
    ],
)
def test_what_can_never_be_placed_is_no_job(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        JobSpec(**{"command": ["true"], "gang": Gang()} | fields)


def test_nodes_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="at least 3 nodes and at most 2 exclude each other"):
        Gang(nodes_least=3, nodes_most=2)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"queue": "few"},
            "queue few lets ada run 2 tasks at a time, and 3 tasks that start together ask for 3 tasks",
        ),
        ({"floating": {"matlab": 1}}, "3 matlab asked at once, the floating pools have 2"),
    ],
)
def test_what_limits_never_let_start_is_refused(asked: dict[str, Any], said: str) -> None:
    w = world(4)
    pools = {"licences": PoolSpec("licences", floating={"matlab": 2})}
    w.apply(Specs(pools, {"few": QueueSpec("few", tasks_per_user=2), "q": QueueSpec("q", default=True)}))
    with pytest.raises(InputError, match=said):
        admit(w.state, gang(3, **asked), w.now)
