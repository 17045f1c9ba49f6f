"""Planned starts and backfill: each rule with its sums, and the law over random worlds.

A task holds its place for its walltime and 70 s: 60 s in which it may start, and 10 s of grace at its end.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from control_world import GIB, World, offer, spec
from test_control_jobs import world as world_without_plans

from lavalite.control import ahead, reservations
from lavalite.control.ahead import lasts_until, margin_seconds
from lavalite.control.demand import about
from lavalite.control.dormant import DEPTH
from lavalite.control.estimates import MOST_SEARCHES, Estimates
from lavalite.control.events import CancelRequested, DrainRequested, ReservationMade, SignalRequested, Specs, Tick
from lavalite.control.explain import explain
from lavalite.control.settings import Settings
from lavalite.control.tasks import End, TaskKey
from lavalite.model.job import Array, Dependency, Gang, Request
from lavalite.model.parts import Part
from lavalite.model.reservation import Reservation
from lavalite.model.resources import ALL_PLACES, KINDS, PLACES
from lavalite.model.specs import Fairshare, HostSpec, Limits, PoolSpec, QueueSpec
from lavalite.model.task import AttemptId, TaskState

MARGIN = 70
QUEUES = {"normal": QueueSpec("normal", default=True, planned_starts=1)}


def world(*offers: Any, **options: Any) -> World:
    """One queue, which plans the start of its first."""
    made = world_without_plans(*offers, **options)
    easy(made, normal=1)
    return made


def told(w: World) -> None:
    w.settle()
    for name in w.agents:
        w.report(name)
    w.settle()


def submit(w: World, cores: int, seconds: int | None, **fields: Any) -> int:
    job = w.submit(spec(cpu_milli=cores * 1000, walltime_seconds=seconds, **fields))
    told(w)
    return job


def runs(w: World) -> list[int]:
    return sorted({attempt.job for attempt in w.running()})


def planned(w: World, job: int) -> float | None:
    """In how many seconds it is planned to start."""
    start = w.state.plan.starts.get(job)
    return None if start is None else start.at - w.now


def easy(w: World, **queues: int) -> None:
    """Queues, and of how many each plans the starts."""
    specs = {name: QueueSpec(name, default=name == "normal", planned_starts=n) for name, n in queues.items()}
    w.apply(Specs(queues=specs))


def test_what_ends_in_time_starts_before_and_what_does_not_waits() -> None:
    w = world(offer("n1", cpu=4))
    first = submit(w, 3, 100)
    big = submit(w, 4, 50)
    # The first holds its 3 cores up to 100 + 70; 1 is free until then.
    assert planned(w, big) == 170
    long, endless = submit(w, 1, 101), submit(w, 1, None)
    short = submit(w, 1, 96)  # 96 + 70 ≤ 170
    assert runs(w) == [first, short], (long, endless)
    w.advance(50)
    assert planned(w, big) == 120
    for attempt in w.running():
        w.finish(attempt)
    told(w)
    assert runs(w) == [big]
    w.check()


def test_what_fits_beside_it_starts_however_long_it_takes() -> None:
    w = world(offer("n1", cpu=4))
    first = submit(w, 2, 100)
    big = submit(w, 3, 100)
    # At 170 there are 4 cores and 3 are for `big`: 1 is left for who stays, of the 2 that are free now.
    beside, too_much = submit(w, 1, None), submit(w, 1, None)
    assert runs(w) == [first, beside] and planned(w, big) == 170
    short = submit(w, 1, 60)
    assert runs(w) == [first, beside, short], too_much


def test_with_no_backfill_what_fits_starts_whoever_waits() -> None:
    w = world(offer("n1", cpu=4))
    easy(w, normal=0)
    first, big, long = submit(w, 3, 100), submit(w, 4, 50), submit(w, 1, None)
    assert runs(w) == [first, long] and planned(w, big) is None


def test_what_never_ends_is_not_planned_around() -> None:
    w = world(offer("n1", cpu=4))
    endless, big, small = submit(w, 3, None), submit(w, 4, 50), submit(w, 1, None)
    assert runs(w) == [endless, small] and planned(w, big) is None


def test_easy_plans_the_first_of_each_queue_and_conservative_so_many() -> None:
    w = world(offer("n1", cpu=4))
    easy(w, normal=3, other=1)
    submit(w, 4, 100)
    jobs = [submit(w, 4, 30) for _ in range(4)]
    others = [submit(w, 4, 10, queue="other") for _ in range(2)]
    # 100 + 70, and each next one after 30 + 70 more. The other queue is of the same priority: submission decides.
    assert [planned(w, job) for job in jobs] == [170, 270, 370, None]
    assert [planned(w, job) for job in others] == [470, None]


def test_the_node_that_is_free_first_is_planned() -> None:
    w = world(offer("n1", cpu=4), offer("n2", cpu=4), offer("n3", cpu=2))
    submit(w, 4, 300), submit(w, 4, 200), submit(w, 2, 100)
    big = submit(w, 3, 10)
    assert list(w.state.plan.starts[big].seats) == ["n2"] and planned(w, big) == 270


def test_of_an_array_one_task_is_planned() -> None:
    w = world(offer("n1", cpu=4))
    submit(w, 2, 100)
    array = submit(w, 2, 100, array=Array(first=1, last=5))
    assert planned(w, array) == 170 and len(w.running()) == 2


def test_a_planned_start_moves_to_the_front_when_what_is_before_it_ends_early() -> None:
    w = world(offer("n1", cpu=4), offer("n2", cpu=4))
    a, b = submit(w, 4, 1000), submit(w, 4, 500)
    big = submit(w, 4, 10)
    assert planned(w, big) == 570 and list(w.state.plan.starts[big].seats) == ["n2"]
    w.advance(20)
    w.finish(AttemptId(a, 0, 1))
    told(w)
    assert runs(w) == [b, big]


def test_its_node_is_drained_and_another_is_planned() -> None:
    w = world(offer("n1", cpu=4), offer("n2", cpu=4))
    submit(w, 4, 1000), submit(w, 4, 500)
    big = submit(w, 4, 10)
    w.feed(DrainRequested("n2"))
    assert list(w.state.plan.starts[big].seats) == ["n1"] and planned(w, big) == 1070


def test_one_that_is_cancelled_keeps_nothing() -> None:
    w = world(offer("n1", cpu=4))
    first, big, small = submit(w, 3, 100), submit(w, 4, 50), submit(w, 1, None)
    assert runs(w) == [first]
    w.feed(CancelRequested(big))
    told(w)
    assert runs(w) == [first, small] and not w.state.plan


def test_what_is_stopped_may_last_for_ever() -> None:
    w = world(offer("n1", cpu=4))
    first = submit(w, 4, 100)
    w.feed(SignalRequested(first, "suspend"))
    told(w)
    big = submit(w, 4, 50)
    assert planned(w, big) is None
    w.feed(SignalRequested(first, "resume"))
    told(w)
    w.advance(w.state.settings.plan_again_seconds)
    submit(w, 4, 50)
    # Its start counts from its commitment, and what it stood still counts as well.
    assert planned(w, big) == 170 - w.state.settings.plan_again_seconds


def test_it_is_after_a_reservation_where_it_does_not_fit_before() -> None:
    w = world(offer("n1", cpu=4))
    submit(w, 4, 100)
    w.feed(
        ReservationMade(
            Reservation(
                name="r", owner="eve", amounts={"cpu": 2000}, nodes=["n1"], start=w.now + 200, end=w.now + 500
            )
        )
    )
    # 170 + 30 + 70 is past the start at 200, and 2 of 4 cores are kept up to 500.
    long, small = submit(w, 3, 30), submit(w, 2, 30)
    assert planned(w, long) == 500
    easy(w, normal=2)
    told(w)
    assert planned(w, small) == 170


def test_whole_gpus_are_kept_for_it() -> None:
    w = world(offer("n1", cpu=16, gpus=2))
    first = submit(w, 1, 100, gpu_milli=1000)
    two = submit(w, 1, 100, gpu_milli=2000)
    part, short = submit(w, 1, None, gpu_milli=400), submit(w, 1, 90, gpu_milli=400)
    assert planned(w, two) == 170 and runs(w) == [first, short], part


def test_licences_are_planned_and_kept() -> None:
    w = world(offer("n1", cpu=8))
    w.apply(Specs(queues=QUEUES, pools={"licences": PoolSpec("licences", floating={"matlab": 3})}))
    first = submit(w, 1, 100, floating={"matlab": 2})
    all_three = submit(w, 1, 100, floating={"matlab": 3})
    assert planned(w, all_three) == 170
    long, short = submit(w, 1, 200, floating={"matlab": 1}), submit(w, 1, 96, floating={"matlab": 1})
    assert runs(w) == [first, short], long
    # After those 100 + 70 s more it is free for others.
    assert starts(w, long) == ("about", 340, "")


def test_licences_that_come_back_in_time_are_not_missed() -> None:
    w = world(offer("n1", cpu=8))
    w.apply(Specs(queues=QUEUES, pools={"licences": PoolSpec("licences", floating={"matlab": 3})}))
    first, two = submit(w, 1, 100, floating={"matlab": 2}), submit(w, 1, 100, floating={"matlab": 2})
    # At 170 there are 3 again: 2 for who is planned, 1 for who stays.
    beside = submit(w, 1, 900, floating={"matlab": 1})
    assert planned(w, two) == 170 and runs(w) == [first, beside]


def test_a_gang_is_planned_where_all_of_it_fits_and_what_is_behind_leaves_that_free() -> None:
    w = world(offer("n1", cpu=4), offer("n2", cpu=4), offer("n3", cpu=4))
    running = [submit(w, 3, seconds) for seconds in (300, 100, 200)]
    gang = submit(w, 2, 50, array=Array(first=1, last=4), gang=Gang(tasks_per_node=2))
    # 1 core is free on each. n2 has 4 at 100 + 70 and n3 at 200 + 70: then 2 + 2 tasks of 2 cores fit there.
    assert planned(w, gang) == 270 and w.state.plan.starts[gang].seats == {"n2": 2, "n3": 2}
    assert starts(w, gang) == ("planned", 270, "")
    # One that lasts longer does not fit beside it on n2 and n3, and n1 is nobody's; one that is over in time does.
    longs = [submit(w, 1, 400) for _ in range(2)]
    assert runs(w) == [*running, longs[0]]
    assert [run.node for key, run in w.state.runs.items() if key.job == longs[0]] == ["n1"]
    shorts = [submit(w, 1, 150) for _ in range(2)]
    assert runs(w) == [*running, longs[0], *shorts] and planned(w, gang) == 270
    for attempt in w.running():
        if attempt.job != longs[0]:
            w.finish(attempt)
    told(w)
    assert gang in runs(w) and not w.state.plan
    w.check()


def test_a_gang_of_parts_of_gpus_keeps_whole_ones() -> None:
    w = world(offer("n1", cpu=16, gpus=3))
    first = submit(w, 1, 100, gpu_milli=3000)
    gang = submit(w, 1, 100, gpu_milli=600, array=Array(first=1, last=2), gang=Gang())
    # Two parts of 0.6 are of two GPUs; the third is left for who stays.
    assert planned(w, gang) == 170 and runs(w) == [first]
    one, two = submit(w, 1, 10, gpu_milli=1000), submit(w, 1, 10, gpu_milli=2000)
    assert starts(w, one) == ("about", 170, "") and starts(w, two) == ("not before", 340, "")


def test_a_gang_within_a_rack_is_planned_in_the_first_that_has_room() -> None:
    w = world(offer("a1", cpu=2, rack="a"), offer("a2", cpu=2, rack="a"), offer("b1", cpu=2, rack="b"))
    [submit(w, 2, seconds) for seconds in (100, 400, 200)]
    gang = submit(w, 2, 50, array=Array(first=1, last=2), gang=Gang(within="rack"))
    # a1 and b1 are free by 200 + 70, but only a1 and a2 are of one rack: 400 + 70.
    assert planned(w, gang) == 470 and w.state.plan.starts[gang].seats == {"a1": 1, "a2": 1}


def test_a_gang_waits_for_as_many_licences_as_it_has_tasks() -> None:
    w = world(offer("n1", cpu=8))
    w.apply(Specs(queues=QUEUES, pools={"licences": PoolSpec("licences", floating={"matlab": 3})}))
    submit(w, 1, 100, floating={"matlab": 1}), submit(w, 1, 300, floating={"matlab": 1})
    gang = submit(w, 1, 50, floating={"matlab": 1}, array=Array(first=1, last=3), gang=Gang())
    assert planned(w, gang) == 370


def test_a_gang_makes_no_planned_start_later() -> None:
    w = world(offer("n1", cpu=8))
    gang = {"array": Array(first=1, last=2), "gang": Gang()}
    first, big = submit(w, 5, 100), submit(w, 8, 50)
    assert planned(w, big) == 170
    long = submit(w, 1, 200, **gang)
    assert runs(w) == [first], long
    assert explain(w.state, w.state.jobs[long], w.now).sentence == (
        f"There is room, but it is held by job {big} (to start in 170 s)."
    )
    short = submit(w, 1, 90, **gang)
    assert runs(w) == [first, short] and planned(w, big) == 170
    w.check()


def test_what_sleeps_has_its_start_planned_when_its_turn_comes() -> None:
    w = world(offer("n1", cpu=4))
    running = submit(w, 3, 100)
    big, next_one, last = submit(w, 4, 50), submit(w, 3, 30), submit(w, 2, 20)
    waiting = {job: w.state.classes[w.state.jobs[job].class_key].shape for job in (big, next_one, last)}
    # Who is planned is looked at in each pass; the others are not, while nothing is freed.
    assert [job for job, shape in waiting.items() if shape not in w.state.asleep] == [big]
    w.feed(CancelRequested(big))
    told(w)
    # 100 + 70: it is the turn of the first of those that slept, and not of any that is looked at.
    assert [planned(w, job) for job in (next_one, last)] == [170, None] and runs(w) == [running]
    assert waiting[next_one] not in w.state.asleep and waiting[last] in w.state.asleep
    urgent = submit(w, 2, 30, priority=5)
    assert [planned(w, job) for job in (urgent, next_one)] == [170, None]
    assert w.state.classes[w.state.jobs[urgent].class_key].first is not None
    first_again = submit(w, 2, 20, priority=9)  # of the shape of `last`, which sleeps
    assert [planned(w, job) for job in (first_again, urgent)] == [170, None]
    w.check()


def test_what_only_a_planned_start_keeps_out_sleeps_until_that_has_changed() -> None:
    w = world(offer("n1", cpu=4))
    first = submit(w, 3, 100)
    big, long = submit(w, 4, 50), submit(w, 1, 200)
    assert w.state.asleep.is_kept(w.state.classes[w.state.jobs[long].class_key].shape)
    submit(w, 4, 60)
    assert w.state.looked_at == 2, "the new one, and the one that is planned"
    w.feed(CancelRequested(big))
    told(w)
    assert long in runs(w) and first in runs(w)


def test_who_would_be_over_in_time_starts_when_the_one_before_it_goes() -> None:
    w = world(offer("n1", cpu=4))
    submit(w, 3, 1000)
    submit(w, 4, 50)
    long, short = submit(w, 1, 1020), submit(w, 1, 1000)  # of one shape: both may last up to 1024 s
    assert long not in runs(w) and short not in runs(w)
    w.feed(CancelRequested(long))
    told(w)
    assert short in runs(w)


def test_what_a_licence_is_missing_for_sleeps_until_one_is_free() -> None:
    w = world(offer("n1", cpu=8))
    w.apply(Specs(queues=QUEUES, pools={"licences": PoolSpec("licences", floating={"matlab": 1})}))
    first = submit(w, 1, None, floating={"matlab": 1})
    waiting = [submit(w, 1, None, floating={"matlab": 1}, memory_bytes=GIB + n) for n in range(20)]
    submit(w, 1, None)
    assert w.state.looked_at == 1
    w.finish(AttemptId(first, 0, 1))
    told(w)
    assert waiting[0] in runs(w)


def busy(shapes: int) -> World:
    """Full nodes, tasks that end one after the other, and so many requests that wait, no two alike, none planned."""
    w = world(*(offer(f"n{number}", cpu=8) for number in range(8)))
    for number in range(8):
        submit(w, 8, 1000 * (number + 1))
    for number in range(shapes):
        w.submit(spec(cpu_milli=1000 + number, memory_bytes=9 * GIB))  # as much memory as no node has
    settled(w)
    return w


def settled(w: World) -> int:
    """Let all passes run that are asked for; for how many starts they looked, one after the other."""
    searches, most = 0, w.state.settings.max_searches
    for _ in range(1000):
        w.settle()
        if not w.state.schedule_wanted:
            return searches
        w.feed(Tick())
        searches += most - w.state.plan.searches_left
    raise AssertionError("passes without end")


def keys_worked_out(w: World) -> int:
    state = w.state
    return state.order.looked_at() + state.order.dormant("normal").looked_at


@pytest.mark.parametrize("shapes", [20, 400])
def test_a_pass_costs_the_same_however_many_sleep(shapes: int) -> None:
    w = busy(shapes)
    before = keys_worked_out(w)
    w.submit(spec(cpu_milli=8000))
    # The new one is looked at for room and for a start; nobody else has a turn: they had theirs a while ago.
    assert w.state.looked_at == 1 and w.state.settings.max_searches - w.state.plan.searches_left <= 1
    assert keys_worked_out(w) - before < 25


@pytest.mark.parametrize("shapes", [20, 400, 800])
def test_after_a_while_those_that_sleep_have_their_turn_again_a_few_a_pass_and_not_all(shapes: int) -> None:
    w = busy(shapes)
    before = keys_worked_out(w)
    w.advance(w.state.settings.plan_again_seconds)
    w.submit(spec(cpu_milli=1000, memory_bytes=9 * GIB, priority=-1))
    assert not w.state.plan.searches_left and w.state.schedule_wanted, "the next pass goes on"
    most, each = min(shapes, DEPTH), w.state.settings.max_searches
    assert most - each <= settled(w) <= most + each
    assert keys_worked_out(w) - before < 60 * most


def test_while_nothing_ends_no_start_is_looked_for() -> None:
    w = world(offer("n1", cpu=4))
    submit(w, 4, None)
    for number in range(40):
        w.submit(spec(cpu_milli=1000 + number))
        assert w.state.plan.searches_left == w.state.settings.max_searches
    w.advance(w.state.settings.plan_again_seconds)
    assert w.state.plan.searches_left == w.state.settings.max_searches and not w.state.schedule_wanted


def test_a_pass_looks_for_room_for_so_many_and_the_next_goes_on() -> None:
    w = World(Settings(max_looks=10))
    w.connect("n1", offer("n1", cpu=4))
    w.settle()
    w.submit(spec(cpu_milli=4000))
    for number in range(25):
        w.submit(spec(cpu_milli=2000 + number))
    small = w.submit(spec(cpu_milli=500, hold=True))
    w.settle()
    w.apply(Specs(queues=QUEUES))  # everybody is looked at anew
    looks = [w.state.looked_at]
    while w.state.schedule_wanted:
        w.feed(Tick())
        looks.append(w.state.looked_at)
    assert looks == [10, 10, 5] and not w.state.jobs[small].class_key


def test_with_fairshare_the_first_by_use_is_planned() -> None:
    w = world(offer("n1", cpu=4))
    w.apply(Specs(queues={"normal": QueueSpec("normal", default=True, fairshare=Fairshare(3600), planned_starts=1)}))
    running = submit(w, 4, 100, user="ada", group="a")
    ada = submit(w, 4, 50, user="ada", group="a")
    assert planned(w, ada) == 170
    w.advance(50)
    bob = submit(w, 4, 60, user="bob", group="b")
    # bob has used nothing: he is before ada, whoever was planned before.
    assert runs(w) == [running] and [planned(w, job) for job in (bob, ada)] == [120, None]
    # She is next as things are; but with fairshare somebody else may come to be.
    assert starts(w, bob)[0] == "planned" and starts(w, ada)[0] == "about"
    submit(w, 3, 60, user="eve", group="e")
    assert starts(w, ada)[0] == "not before"
    w.check()


def test_what_a_limit_keeps_back_is_not_planned_and_who_is_behind_it_is() -> None:
    w = world(offer("n1", cpu=4))
    queue = QueueSpec("normal", default=True, planned_starts=1, limits=Limits(per_user={"cpu": 4000}))
    w.apply(Specs(queues={"normal": queue}))
    submit(w, 3, 100)
    ada, bob = submit(w, 2, 50), submit(w, 4, 50, user="bob")
    assert [planned(w, job) for job in (ada, bob)] == [None, 170]
    assert starts(w, ada)[::2] == ("unknown", explain(w.state, w.state.jobs[ada], w.now).sentence)


def test_on_a_logical_host_it_is_planned_as_on_a_node() -> None:
    w = world(offer("n1", cpu=4))
    w.apply(Specs(queues=QUEUES, hosts={"h": HostSpec("h", {"cpu": 2000})}))
    told(w)
    first = submit(w, 1, 100, host="h")
    two = submit(w, 2, 100, host="h")
    long, short = submit(w, 1, 200, host="h"), submit(w, 1, 100, host="h")
    assert list(w.state.plan.starts[two].seats) == ["h"] and planned(w, two) == 170
    assert runs(w) == [first, short], long


def test_a_pass_looks_for_few_and_asks_for_the_rest() -> None:
    w = World(Settings(max_searches=2))
    w.connect("n1", offer("n1", cpu=4))
    w.settle()
    easy(w, normal=9)
    submit(w, 4, 100)
    for _ in range(5):
        w.submit(spec(cpu_milli=4000, walltime_seconds=30))
    w.settle()
    assert len(w.state.plan.starts) <= 5
    for _ in range(3):
        w.advance(0)
    assert sorted(start.at - w.now for start in w.state.plan.starts.values()) == [170, 270, 370, 470, 570]
    assert not w.state.schedule_wanted


def test_a_new_leader_plans_the_same() -> None:
    w = world(offer("n1", cpu=4))
    submit(w, 3, 100)
    big = submit(w, 4, 50)
    before = w.state.plan.starts[big].at
    w.advance(5)
    w.change_leader()
    w.connect("n1")
    told(w)
    assert w.state.plan.starts[big].at == before


@pytest.mark.parametrize(("seconds", "step"), [(1, 1), (7, 7), (9, 10), (3600, 4096), (4000, 4096), (4097, 5120)])
def test_walltimes_are_rounded_up_to_steps(seconds: int, step: int) -> None:
    assert about(seconds) == step and about(None) is None


def test_what_only_its_own_planned_start_keeps_is_kept_from_nobody() -> None:
    w = world(offer("n1", cpu=4))
    first, big = submit(w, 3, 100), submit(w, 4, 50)
    w.state.finish(w.state.runs[TaskKey(first, 0)], TaskState.SUCCEEDED, End(0))  # and no pass has run since
    told_now = explain(w.state, w.state.jobs[big], w.now)
    assert told_now.sentence == "It fits now, and starts when those before it in the order have been placed."
    assert told_now.held_by == [] and planned(w, big) == 170 and w.state.plan.on("n1")


# --- the law --------------------------------------------------------------------------------------------------------


def live_through(seed: int, *, steps: int = 120, gangs: bool = False, exclusive: bool = False) -> list[str]:
    """A random world; what was promised in it and not kept. Every task ends by its walltime, many of them before.

    With gangs, a third of the jobs are such; with `exclusive`, as many have a node for themselves.
    """
    chance = random.Random(seed)
    w = World()
    for name, cpu, gpus in (("n1", 4, 2), ("n2", 6, 0), ("n3", 3, 1)):
        w.connect(name, offer(name, cpu=cpu, gpus=gpus))
    queues = {"normal": QueueSpec("normal", 30, default=True, planned_starts=chance.choice([1, 1, 4]))}
    queues["low"] = QueueSpec("low", 20, planned_starts=chance.choice([0, 1, 3]))
    w.apply(Specs(pools={"l": PoolSpec("l", floating={"lic": 3})}, queues=queues))
    w.settle()
    ends: dict[AttemptId, float] = {}
    takes: dict[int, float] = {}
    promised: dict[int, float] = {}
    broken: list[str] = []
    for _ in range(steps):
        if chance.random() < 0.5:
            wall = chance.choice([10, 30, 60, 120, 300, None]) if chance.random() < 0.9 else 900
            job = spec(
                cpu_milli=chance.choice([1, 1, 2, 3, 4, 6]) * 1000,
                memory_bytes=chance.choice([0, GIB]),
                gpu_milli=chance.choice([0, 0, 0, 400, 1000, 2000]),
                floating=chance.choice([{}, {}, {"lic": 1}, {"lic": 2}]),
                queue=chance.choice(["normal", "normal", "low"]),
                walltime_seconds=wall,
                exclusive=exclusive and chance.random() < 0.3,
                **together(chance) if gangs and chance.random() < 0.35 else {},
            )
            if job.gang is not None and chance.random() < 0.5:
                other = Request(cpu_milli=chance.choice([1, 2, 3]) * 1000, gpu_milli=chance.choice([0, 0, 400, 1000]))
                parts = [Part(name="one", tasks=len(job.indices()) - 1, request=job.request)]
                parts.append(Part(name="other", tasks=chance.randint(1, 2), request=other))
                job = job.model_copy(update={"array": None, "request": Request(), "parts": parts})
            number = w.submit(job)
            takes[number] = chance.randint(5, wall) if wall is not None else chance.randint(50, 400)
        told(w)
        look(w, promised, broken)
        w.advance(chance.choice([1, 5, 20]))
        for attempt in w.running():
            ends.setdefault(attempt, w.now + takes[attempt.job])
            started = w.state.runs[attempt[:2]].started_at  # type: ignore[index]
            wall = w.state.jobs[attempt.job].spec.walltime_seconds
            if ends[attempt] <= w.now or (wall is not None and started is not None and started + wall <= w.now):
                w.finish(attempt)
        told(w)
        look(w, promised, broken)
        w.check()
    return broken


def together(chance: random.Random) -> dict[str, Any]:
    return {
        "array": Array(first=1, last=chance.randint(2, 4)),
        "gang": Gang(tasks_per_node=chance.choice([None, 1, 2])),
    }


def look(w: World, promised: dict[int, float], broken: list[str]) -> None:
    """The two halves of the law: of each planned start, and of the one that nobody is before."""
    state = w.state
    for start in state.plan.starts.values():
        for kind, provider in product((*KINDS, PLACES), start.seats):
            here = state.nodes[provider].runs.values()
            last = [run for run in here if lasts_until(state, run, w.now) > start.at]
            shares = (share for run in last for share in state.book.shares(run.key.owner))
            lasting = sum(s.amount for s in shares if s.provider == provider and s.kind == kind)
            capacity = state.book.capacity(provider, kind)
            if kind == PLACES:
                lasting, capacity = sum(ALL_PLACES if run.exclusive else 1 for run in last), ALL_PLACES
            planned_then = sum(
                other.kept_on(provider).get(kind, 0)
                for other in state.plan.on(provider)
                if other.at <= start.at < other.until
            )
            if start.at > w.now and lasting + planned_then > capacity:
                broken.append(f"{kind} for job {start.job} on {provider} is taken")
    waiting = [job for job in state.jobs.values() if job.class_key]
    if waiting:
        first = min(waiting, key=lambda job: (-state.queue(job.queue).priority, job.id))
        start = state.plan.starts.get(first.id)
        at = start.at if start is not None else float("inf")
        if at > max(promised.get(first.id, float("inf")), w.now):
            broken.append(f"job {first.id} was to start at {promised[first.id]}, now it is {at}")
        if first.queue == "normal" and start is not None:
            promised[first.id] = min(at, promised.get(first.id, at))


@pytest.mark.parametrize("seed", range(40))
def test_the_law_nothing_behind_a_planned_start_makes_it_later(seed: int) -> None:
    assert live_through(seed) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_law_holds_for_gangs_as_well(seed: int) -> None:
    assert live_through(seed, gangs=True) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_law_holds_for_those_who_have_a_node_for_themselves(seed: int) -> None:
    assert live_through(seed, exclusive=True, gangs=seed % 2 == 0) == []


def test_the_law_is_broken_where_what_is_kept_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "_outside", lambda *_: 2**40)
    broken = [fault for seed in range(8) for fault in live_through(seed)]
    assert any("was to start" in fault for fault in broken)


def test_the_law_is_broken_where_a_gang_keeps_one_seat_only(monkeypatch: pytest.MonkeyPatch) -> None:
    one = lambda start, _: [ahead.Keep(start.at, start.until, start.parts[0].amounts)]  # noqa: E731
    monkeypatch.setattr(ahead, "_planned", one)
    broken = [fault for seed in range(20) for fault in live_through(seed, gangs=True)]
    assert any("is taken" in fault for fault in broken)


def test_the_margin_is_what_the_sums_here_say() -> None:
    assert margin_seconds(world().state) == MARGIN


# --- when jobs start ------------------------------------------------------------------------------------------------


def starts(w: World, job: int) -> tuple[str, float | None, str]:
    """In how many seconds, and how sure that is."""
    found = Estimates(w.state, w.now).of(w.state.jobs[job])
    assert found is not None, "it waits"
    return found.kind, None if found.at is None else found.at - w.now, found.why


def test_each_job_that_waits_says_when_it_starts() -> None:
    w = world(offer("n1", cpu=4))
    running = submit(w, 3, 100)
    big, next_one, last = submit(w, 4, 50), submit(w, 4, 30), submit(w, 2, 500)
    # big at 100 + 70; it ends 50 + 70 after that; who comes after `next_one` may be later than that.
    assert starts(w, big) == ("planned", 170, "")
    assert starts(w, next_one) == ("about", 290, "")
    assert starts(w, last) == ("not before", 290, "")
    assert Estimates(w.state, w.now).of(w.state.jobs[running]) is None
    told = explain(w.state, w.state.jobs[big], w.now)
    assert (told.starts, told.starts_at) == ("planned", w.now + 170)
    small = submit(w, 1, 900)
    assert explain(w.state, w.state.jobs[small], w.now).sentence == (
        f"There is room, but it is held by job {big} (to start in 170 s)."
    )


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"hold": True}, "It is held."),
        ({"cpu_milli": 9000}, "No node could take it even if it were empty."),
        ({"depends": [Dependency(job=1)]}, "It waits for other jobs."),
        ({}, "Job 1, which holds what it waits for, has no walltime."),
        ({"queue": "few"}, "Queue few lets ada run 1 task at a time; held by job 2 of ada (1 task)."),
    ],
)
def test_what_is_not_known_says_why(fields: dict[str, Any], why: str) -> None:
    w = world(offer("n1", cpu=4))
    w.apply(
        Specs(
            queues={
                "normal": QueueSpec("normal", default=True, planned_starts=1),
                "few": QueueSpec("few", tasks_per_user=1, planned_starts=1),
            }
        )
    )
    submit(w, 3, None), submit(w, 1, None, queue="few")
    job = w.submit(spec(**{"cpu_milli": 4000, "walltime_seconds": 60, **fields}))
    told(w)
    assert starts(w, job) == ("unknown", None, why)


def test_what_is_not_to_start_before_a_time_does_not() -> None:
    w = world(offer("n1", cpu=4))
    later = submit(w, 1, 10, not_before=w.now + 30)
    assert starts(w, later) == ("not before", 30, "")
    w.feed(
        ReservationMade(
            Reservation(
                name="r", owner="ada", amounts={"cpu": 2000}, nodes=["n1"], start=w.now + 200, end=w.now + 500
            )
        )
    )
    assert starts(w, submit(w, 1, 10, reservation="r")) == ("not before", 200, "")


def test_a_list_looks_for_so_many_kinds_of_requests_and_no_more() -> None:
    w = world(offer("n1", cpu=4))
    submit(w, 4, 100)
    jobs = [submit(w, 4, 100, memory_bytes=GIB + n) for n in range(MOST_SEARCHES + 2)]
    estimates = Estimates(w.state, w.now)
    kinds = [estimates.of(w.state.jobs[job]).kind for job in jobs]  # type: ignore[union-attr]
    assert kinds == ["planned", "about", *["not before"] * (MOST_SEARCHES - 1), "unknown"]
