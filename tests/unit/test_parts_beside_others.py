"""Jobs with parts beside others: limits, quotas, planned starts, preemption, reservations, and why one waits."""

from __future__ import annotations

import re
from typing import Any

import pytest
from control_world import World
from test_parts import job, letters, part, racks, tell

from lavalite.base.errors import InputError, LavaLiteError
from lavalite.control.admission import admit
from lavalite.control.events import ReleaseRequested, ReservationMade, Specs
from lavalite.control.explain import explain
from lavalite.model.job import Array, JobSpec, Request
from lavalite.model.parts import Part
from lavalite.model.reservation import Reservation
from lavalite.model.resources import PLACES
from lavalite.model.selector import Selector
from lavalite.model.specs import HostSpec, Limits, PoolSpec, Preemption, QueueSpec, Quota

# --- how much -------------------------------------------------------------------------------------------------------


def with_queue(w: World, queue: QueueSpec, *pools: PoolSpec, **more: Any) -> None:
    w.apply(Specs({pool.name: pool for pool in pools}, {queue.name: queue, **more}))


def test_limits_count_all_parts_together() -> None:
    """4 + 2·2 = 8 cores: as many as are allowed while nothing else is held, and one too many beside one core."""
    w = racks((16, 4))
    with_queue(w, QueueSpec(name="batch", limits=Limits(whole={"cpu": 8000})))
    first = w.submit(JobSpec(command=["other"], user="ada", request=Request(cpu_milli=1000)))
    tell(w)
    number = w.submit(job(part("ps", 1, 4), part("w", 2, 2, 1)))
    tell(w)
    assert (letters(w, first), letters(w, number)) == ("R", "PPP")
    assert explain(w.state, w.state.jobs[number], w.now).sentence == (
        "Queue batch lets all together hold 8 cpu at a time, and its 3 tasks together ask for 8 cpu; "
        f"held by job {first} of ada (1 cpu)."
    )
    for attempt in w.running():
        w.finish(attempt)
    tell(w)
    assert letters(w, number) == "RRR"
    with pytest.raises(InputError, match="3 tasks that start together ask for 9 cpu"):
        admit(w.state, job(part("ps", 1, 5), part("w", 2, 2)), w.now)


@pytest.mark.parametrize(("limits", "starts"), [({"tasks": 3}, True), ({"tasks": 2}, False)])
def test_a_limit_of_tasks_counts_each_of_them(limits: dict[str, int], starts: bool) -> None:
    w = racks((16, 4))
    with_queue(w, QueueSpec(name="batch", limits=Limits(whole=limits)))
    number = w.submit(job(part("ps", 1, 4), part("w", 2, 2, 1)))
    tell(w)
    assert (letters(w, number) == "RRR") is starts


def test_licences_are_summed_up_over_the_parts() -> None:
    """1 + 2·2 = 5 of 6 licences; beside two that others hold it is one too many."""
    w = racks((16, 0))
    pool = PoolSpec(name="licences", floating={"matlab": 6})
    with_queue(w, QueueSpec(name="batch"), pool)
    other = w.submit(JobSpec(command=["other"], user="ada", request=Request(floating={"matlab": 2})))
    tell(w)
    spec = job(part("a", 1, 1, floating={"matlab": 1}), part("b", 2, 1, floating={"matlab": 2}))
    number = w.submit(spec)
    tell(w)
    assert (letters(w, other), letters(w, number)) == ("R", "PPP")
    for attempt in w.running():
        w.finish(attempt)
    tell(w)
    assert letters(w, number) == "RRR"
    with pytest.raises(InputError, match="7 matlab asked at once, the floating pools have 6"):
        admit(w.state, job(part("a", 1, 1, floating={"matlab": 1}), part("b", 2, 1, floating={"matlab": 3})), w.now)


def quota_world(borrow: int | None) -> World:
    """8 cores; group a is sure of 8 of them and lends what it does not use, group b may borrow."""
    w = racks((8, 0))
    quota = {"a": {"cpu": Quota(8000, 0, None)}, "b": {"cpu": Quota(0, borrow, None)}}
    pool = PoolSpec("all", Selector.parse("n0"), ("cpu",), default=True, quota=quota, cohort="c")
    with_queue(w, QueueSpec(name="batch"), pool)
    return w


@pytest.mark.parametrize(("borrow", "starts"), [(7000, True), (6000, False)])
def test_a_quota_is_charged_with_the_sum(borrow: int, starts: bool) -> None:
    """3 + 2·2 = 7 cores are borrowed, or nothing is."""
    w = quota_world(borrow)
    number = w.submit(job(part("x", 1, 3), part("y", 2, 2), group="b"))
    tell(w)
    assert (letters(w, number) == "RRR") is starts
    if not starts:
        with pytest.raises(InputError, match="its tasks together ask for more"):
            admit(w.state, w.state.jobs[number].spec, w.now)


def test_what_is_lent_is_claimed_back_for_all_parts() -> None:
    """b holds 6 of a's 8 cores by tasks of 2; a asks for 3 + 2 = 5: 2 are free, and two tasks of b have to go."""
    w = quota_world(None)
    w.submit(
        JobSpec(
            command=["x"],
            user="bob",
            group="b",
            rerunnable=True,
            array=Array(first=1, last=3),
            request=Request(cpu_milli=2000),
        )
    )
    tell(w)
    number = w.submit(job(part("x", 1, 3), part("y", 1, 2), group="a"))
    tell(w)
    stopped = {one.id for one in w.stops}
    assert len(stopped) == 2
    for attempt in stopped:
        w.finish(attempt, exit_code=-15)
    tell(w)
    assert letters(w, number) == "RR"
    w.check()


# --- when, and for whom others go -----------------------------------------------------------------------------------


def test_a_start_is_planned_for_all_parts_and_kept() -> None:
    """n0 has 4 cores and is taken until 100 s; ps needs 4 there and w 2 on n1: w's seat is kept as well."""
    w = racks((4, 0), (2, 0))
    with_queue(w, QueueSpec(name="batch"))
    first = w.submit(JobSpec(command=["x"], user="ada", request=Request(cpu_milli=4000), walltime_seconds=100))
    tell(w)
    number = w.submit(job(part("ps", 1, 4), part("w", 1, 2), walltime_seconds=50))
    long = w.submit(JobSpec(command=["x"], user="ada", request=Request(cpu_milli=1000), walltime_seconds=1000))
    short = w.submit(JobSpec(command=["x"], user="ada", request=Request(cpu_milli=1000), walltime_seconds=10))
    tell(w)
    start = w.state.plan.starts[number]
    assert [one.seats for one in start.parts] == [{"n0": 1}, {"n1": 1}]
    kept = ({"cpu": 4000, PLACES: 1}, {"cpu": 2000, PLACES: 1})
    assert (start.kept_on("n0"), start.kept_on("n1")) == kept
    assert (letters(w, first), letters(w, long), letters(w, short)) == ("R", "P", "R")
    assert explain(w.state, w.state.jobs[number], w.now).starts == "planned"
    for attempt in w.running():
        w.finish(attempt)
    tell(w)
    assert letters(w, number) == "RR"


def test_others_are_preempted_for_all_parts_together() -> None:
    """4 + 2 cores on two nodes of 4 that others fill with tasks of 2: one of them may stay, and three go."""
    w = racks((4, 0), (4, 0))
    low = QueueSpec(name="low", priority=0)
    high = QueueSpec(name="high", priority=10, preemption=Preemption(mode="cancel"))
    with_queue(w, low, high=high)
    others = w.submit(
        JobSpec(command=["x"], user="bob", queue="low", array=Array(first=1, last=4), request=Request(cpu_milli=2000))
    )
    tell(w)
    number = w.submit(job(part("ps", 1, 4), part("w", 1, 2), queue="high"))
    tell(w)
    stopped = {one.id for one in w.stops}
    assert len(stopped) == 3
    for attempt in stopped:
        w.finish(attempt, exit_code=-15)
    tell(w)
    assert letters(w, number) == "RR"
    assert letters(w, others).count("R") == 1
    w.check()


def test_why_it_waits_part_by_part() -> None:
    w = racks((4, 1), (4, 1))
    gpus = Request(cpu_milli=1000, gpu_milli=1000)
    other = w.submit(JobSpec(command=["x"], user="bob", array=Array(first=1, last=2), request=gpus))
    tell(w)
    number = w.submit(job(part("ps", 3, 3), part("w", 1, 1, 1)))
    tell(w)
    told = explain(w.state, w.state.jobs[number], w.now)
    assert told.asks == "3 × ps (3 cpu), 1 × w (1 gpu, 1 cpu)"
    assert [(one["name"], one["fit"], one["tasks"]) for one in told.parts] == [("ps", 2, 3), ("w", 0, 1)]
    assert (told.parts[1]["nearest"], told.parts[1]["lacks"]) == ("n0", {"gpu": 1000})
    assert told.parts[1]["held_by"] == [f"job {other} (1 gpu)"]
    assert told.sentence.startswith("Its 4 tasks start together, and 2 of 4 fit now. Part w: ")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([part("a", 1, 1, pools={"gpu": "nowhere"}), part("b", 1)], "parts.a.request.pools.gpu: there is no pool"),
        ([part("a", 1), part("b", 1, 100)], "parts.b.request: 100 cpu can never be had here"),
        ([part("a", 1), part("b", 1, gpu_model="H100")], "parts.b.request.gpu_milli: a GPU is described"),
        ([part("a", 1), part("b", 1, floating={"matlab": 1})], "parts.b.request.floating.matlab: 1 matlab asked"),
    ],
)  # fmt: skip
def test_what_can_never_be_is_refused_with_the_part_it_is_of(parts: list[Part], said: str) -> None:
    w = racks((8, 1))
    with pytest.raises(LavaLiteError, match=said):
        admit(w.state, job(*parts), w.now)


# --- reservations, logical hosts, restored stores -------------------------------------------------------------------


def test_parts_fit_into_what_a_reservation_keeps() -> None:
    """6 cores are kept on n0: 4 + 2 go into them, and beside 1 that is held there 4 + 2 does not."""
    w = racks((8, 0))
    made = Reservation(name="r", owner="ada", amounts={"cpu": 6000}, nodes=["n0"], start=w.now, end=w.now + 1000)
    w.feed(ReservationMade(made))
    tell(w)
    one = w.submit(JobSpec(command=["x"], user="ada", reservation="r", request=Request(cpu_milli=1000)))
    tell(w)
    number = w.submit(job(part("a", 1, 4), part("b", 1, 2), reservation="r"))
    tell(w)
    assert (letters(w, one), letters(w, number)) == ("R", "PP")
    for attempt in w.running():
        w.finish(attempt)
    tell(w)
    assert letters(w, number) == "RR"
    assert w.state.reserved_use["r", "n0"] == {"cpu": 6000}
    with pytest.raises(InputError, match=re.escape("parts.b.request: a task asks for more cpu than r keeps")):
        admit(w.state, job(part("a", 1, 4), part("b", 1, 7), reservation="r"), w.now)
    w.check()


def test_others_leave_a_reservation_alone_with_all_parts_together() -> None:
    """5 of 8 cores are kept: 2 + 1 of others fit beside it, and 2 + 2 do not, though each of them would."""
    w = racks((8, 0))
    made = Reservation(name="r", owner="bob", amounts={"cpu": 5000}, nodes=["n0"], start=w.now, end=w.now + 1000)
    w.feed(ReservationMade(made))
    tell(w)
    large, small = w.submit(job(part("a", 1, 2), part("b", 1, 2))), w.submit(job(part("a", 1, 2), part("b", 1, 1)))
    tell(w)
    assert (letters(w, large), letters(w, small)) == ("PP", "RR")


def test_parts_run_on_one_logical_host() -> None:
    """4 + 2 of a host's 6 cores; 4 + 3 wait, and say why."""
    w = racks((8, 0))
    w.apply(Specs({}, {}, {"h": HostSpec("h", {"cpu": 6000})}))
    tell(w)
    waits = w.submit(job(part("a", 1, 4), part("b", 1, 3), host="h"))
    number = w.submit(job(part("a", 1, 4), part("b", 1, 2), host="h"))
    tell(w)
    assert (letters(w, waits), letters(w, number)) == ("PP", "RR")
    assert w.state.book.committed("h", "cpu") == 6000
    w.check()


def test_what_was_started_before_a_restore_holds_what_its_part_asks_for() -> None:
    w = racks((4, 0), (2, 0))
    number = w.submit(job(part("a", 1, 4), part("b", 2, 1), hold=True))
    w.settle()
    saved = dict(w.store)
    w.feed(ReleaseRequested(number))
    tell(w)
    assert letters(w, number) == "RRR"
    w.restore(saved)
    for node in ("n0", "n1"):
        w.connect(node)
    tell(w)
    assert letters(w, number) == "RRR"
    assert [w.state.book.committed(node, "cpu") for node in ("n0", "n1")] == [4000, 2000]
    w.check()


def test_parts_that_are_alike_share_what_is_worked_out_for_them() -> None:
    """Their commands and names are their own; what their parts ask for is not."""
    w = racks((1, 0))
    others = [job(part("a", 1, 4), Part(name="b", command=[str(n)]), name=str(n)) for n in range(3)]
    numbers = [w.submit(one) for one in [*others, job(part("a", 2, 4), part("b", 1, 1))]]
    keys = [w.state.jobs[number].class_key for number in numbers]
    assert keys[0] == keys[1] == keys[2] != keys[3]


@pytest.mark.parametrize(("most", "starts"), [(2, True), (1, False)])
def test_a_pools_limit_of_tasks_counts_those_that_take_of_it(most: int, starts: bool) -> None:
    """Two tasks take GPUs of the pool; the third takes none of it, and does not count."""
    w = racks((8, 4))
    pool = PoolSpec("gpus", Selector.parse("n0"), ("gpu",), default=True, limits=Limits(whole={"tasks": most}))
    with_queue(w, QueueSpec(name="batch"), pool)
    number = w.submit(job(part("ps", 1, 4), part("w", 2, 1, 1)))
    tell(w)
    assert (letters(w, number) == "RRR") is starts
    w.check()


@pytest.mark.parametrize(("borrow", "starts"), [(2000, True), (1000, False)])
def test_what_is_borrowed_counts_over_all_pools_of_the_parts(borrow: int, starts: bool) -> None:
    """One core of each of two pools of a cohort, neither the group's own: 1 + 1 are borrowed."""
    w = racks((4, 0), (4, 0))
    quota = {"a": {"cpu": Quota(0, borrow, None)}, "b": {"cpu": Quota(4000, 0, None)}}
    other = {"b": {"cpu": Quota(4000, 0, None)}}
    east = PoolSpec("east", Selector.parse("n0"), ("cpu",), True, quota=quota, cohort="c")
    west = PoolSpec("west", Selector.parse("n1"), ("cpu",), quota=other, cohort="c")
    with_queue(w, QueueSpec(name="batch"), east, west)
    spec = job(part("x", 1, 1), part("y", 1, 1, pools={"cpu": "west"}), group="a")
    number = w.submit(spec)
    tell(w)
    assert (letters(w, number) == "RR") is starts
    if not starts:
        told = explain(w.state, w.state.jobs[number], w.now).sentence
        assert told == "Quota: group a may not borrow as much cpu as its parts ask for together."
        with pytest.raises(InputError, match="may not borrow as much cpu as all parts ask for together"):
            admit(w.state, spec, w.now)
    w.check()


def test_jobs_of_several_users_with_the_same_parts_wait_side_by_side() -> None:
    """They share a shape, and each lane has what its own parts ask for: a claim or a search goes by those."""
    w = quota_world(None)
    w.submit(JobSpec(command=["x"], user="bob", group="b", rerunnable=True, array=Array(first=1, last=4),
                     request=Request(cpu_milli=2000)))  # fmt: skip
    tell(w)
    numbers = [w.submit(job(part("x", 1, 3), part("y", 1, 2), group="a", user=user)) for user in ("ada", "eve")]
    for _ in range(3):
        tell(w)
        for attempt in {one.id for one in w.stops} & set(w.running()):
            w.finish(attempt, exit_code=-15)
    tell(w)
    assert sorted(letters(w, number) for number in numbers) == ["PP", "RR"]
    w.check()
