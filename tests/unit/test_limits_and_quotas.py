"""How much users, groups, queues and pools may hold, and what groups borrow, lend and get back. Sums in comments."""

from __future__ import annotations

from collections import Counter

import pytest
from control_world import World, offer, spec

from lavalite.base.errors import InputError
from lavalite.control import quotas
from lavalite.control.admission import admit
from lavalite.control.events import HoldRequested, ReleaseRequested, Specs
from lavalite.control.explain import explain
from lavalite.control.usage import Scope
from lavalite.ledger.book import LedgerBroken
from lavalite.model.job import Array
from lavalite.model.reservation import Reservation
from lavalite.model.selector import Selector
from lavalite.model.specs import Limits, PoolSpec, QueueSpec, Quota
from lavalite.model.task import TaskState

GIB = 1024**3
NORMAL = {"normal": QueueSpec("normal", default=True)}


def pool(name: str, nodes: str, quota: dict[str, Quota] | None = None, **fields: object) -> PoolSpec:
    """A pool of GPUs; quotas in milli-GPUs."""
    by_kind = {group: {"gpu": found} for group, found in (quota or {}).items()}
    return PoolSpec(name, Selector.parse(nodes), ("gpu",), default=True, quota=by_kind, **fields)  # type: ignore[arg-type]


def quota(nominal: int, borrow: int | None = 0, lend: int | None = None) -> Quota:
    """In whole GPUs."""
    return Quota(nominal * 1000, None if borrow is None else borrow * 1000, None if lend is None else lend * 1000)


def cluster(*pools: PoolSpec, gpus: int = 8, nodes: int = 1, queues: dict[str, QueueSpec] | None = None) -> World:
    world = World()
    world.apply(Specs({p.name: p for p in pools}, queues or NORMAL))
    for n in range(1, nodes + 1):
        world.connect(f"n{n}", offer(f"n{n}", cpu=64, memory=256 * GIB, gpus=gpus))
    world.settle()
    return world


def gpus(world: World, group: str, tasks: int, **fields: object) -> int:
    """A job of so many tasks of one GPU each."""
    given = {"gpu_milli": 1000, "rerunnable": True, "user": group, **fields}
    job = world.submit(spec(group=group, array=Array(first=1, last=tasks), **given))
    world.settle()
    return job


def held(world: World, kind: str = "gpu") -> dict[str, int]:
    """What each group holds, in whole units."""
    sums: Counter[str] = Counter()
    for key, run in world.state.runs.items():
        assert not run.assumed
        job = world.state.jobs[key.job]
        sums[job.spec.group] += sum(s.amount for s in world.state.book.shares(key.owner) if s.kind == kind)
    return {group: amount // 1000 for group, amount in sums.items()}


def why(world: World, job: int) -> str:
    return explain(world.state, world.state.jobs[job], world.now).sentence


def let_end(world: World) -> None:
    """What was told to stop has stopped, and what waited for a while may start again."""
    world.settle()
    for name in world.agents:
        world.report(name)
    world.settle()
    world.advance(2)
    world.settle()


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "request_", "started"),
    [
        (Limits(whole={"tasks": 3}), {}, {"ada": 3, "bob": 0}),  # 3 of the queue, and ada came first
        (Limits(whole={"cpu": 5000}), {"cpu_milli": 2000}, {"ada": 2, "bob": 0}),  # 2 × 2 + 2 > 5
        (Limits(per_user={"tasks": 2}), {}, {"ada": 2, "bob": 2}),
        (Limits(per_user={"cpu": 3000}), {"cpu_milli": 1500}, {"ada": 2, "bob": 2}),  # 2 × 1.5 = 3
        (Limits(per_user={"memory": 7 * GIB}), {"memory_bytes": 2 * GIB}, {"ada": 3, "bob": 3}),  # 3 × 2 ≤ 7
        (Limits(per_user={"gpu": 1000}), {"gpu_milli": 500}, {"ada": 2, "bob": 2}),  # two halves of one
        (Limits(per_user={"gpu": 1000}), {}, {"ada": 5, "bob": 5}),  # who asks for none is not limited by it
        (Limits(per_group={"tasks": 4}), {}, {"ada": 4, "bob": 0}),  # both are of research
        (Limits(per_user={"tasks": 2}, users={"bob": {"tasks": 4}}), {}, {"ada": 2, "bob": 4}),
        (Limits(users={"ada": {"tasks": 0}}), {}, {"ada": 0, "bob": 5}),
        (Limits(per_group={"tasks": 4}, groups={"research": {"cpu": 3000}}), {}, {"ada": 3, "bob": 0}),
        (Limits(per_user={"tasks": 3}, whole={"tasks": 4}), {}, {"ada": 3, "bob": 1}),  # the least of all decides
        (Limits(per_user={"matlab": 2}), {"floating": {"matlab": 1}}, {"ada": 2, "bob": 2}),
    ],
)
@pytest.mark.parametrize("place", ["queue", "pool"])
def test_limits_of_queues_and_pools(
    place: str, limits: Limits, request_: dict[str, object], started: dict[str, int]
) -> None:
    kinds = ("cpu", "memory", "gpu")
    of_pool = limits if place == "pool" else Limits()
    pools = {
        "all": PoolSpec("all", Selector.parse("*"), kinds, True, limits=of_pool),
        "licences": PoolSpec("licences", floating={"matlab": 50}, limits=of_pool),
    }
    w = World()
    w.apply(
        Specs(pools, {"normal": QueueSpec("normal", default=True, limits=limits if place == "queue" else Limits())})
    )
    w.connect("n1", offer("n1", cpu=64, memory=256 * GIB, gpus=8))
    for user in started:
        w.submit(spec(user=user, group="research", array=Array(first=1, last=5), **request_))
    w.settle()
    ran = Counter(w.state.jobs[key.job].spec.user for key in w.state.runs)
    assert {user: ran[user] for user in started} == started
    w.check()


def test_what_ends_makes_room_under_a_limit() -> None:
    w = World()
    w.apply(Specs(queues={"normal": QueueSpec("normal", default=True, limits=Limits(per_user={"cpu": 2000}))}))
    w.connect("n1", offer("n1", cpu=8))
    w.submit(spec(array=Array(first=1, last=3)))
    w.settle()
    assert len(w.running()) == 2
    w.finish(w.running()[0])
    w.settle()
    assert len(w.running()) == 2 and w.state.usage.of(Scope("queue", "normal", "user", "ada"))["cpu"] == 2000
    w.finish(w.running()[0])
    w.finish(w.running()[0])
    w.settle()
    assert w.state.usage.of(Scope("queue", "normal")) == {}


def test_a_limit_is_named_with_who_holds_what_it_allows() -> None:
    w = cluster(pool("gpus", "*", limits=Limits(per_group={"gpu": 4000})), gpus=8)
    first = gpus(w, "research", 3, user="ada")
    second = gpus(w, "research", 1, user="bob")
    third = gpus(w, "research", 1, user="cyd")
    assert why(w, third) == (
        "Pool gpus lets group research hold 4 gpu at a time, and a task asks for 1 gpu; "
        f"held by job {first} of ada (3 gpu), job {second} of bob (1 gpu)."
    )
    w.finish(w.running()[0])
    w.settle()
    assert third in {key.job for key in w.state.runs}


def test_one_limited_user_holds_up_nobody_else() -> None:
    w = World()
    w.apply(Specs(queues={"normal": QueueSpec("normal", default=True, limits=Limits(per_user={"tasks": 1}))}))
    w.connect("n1", offer("n1", cpu=8))
    for user in ("ada", "ada", "ada", "bob", "cyd"):
        w.submit(spec(user=user))
    w.settle()
    assert sorted(w.state.jobs[key.job].spec.user for key in w.state.runs) == ["ada", "bob", "cyd"]
    # Who was held back is not forgotten when those behind them are through.
    for ended, left in ((1, ["ada"]), (2, ["ada"])):
        for attempt in w.running():
            w.finish(attempt)
        w.settle()
        assert [w.state.jobs[key.job].spec.user for key in w.state.runs] == left, ended


def test_a_task_that_is_over_a_limit_by_itself_is_not_let_in() -> None:
    w = cluster(pool("gpus", "*", limits=Limits(per_user={"gpu": 2000})))
    with pytest.raises(InputError) as caught:
        admit(w.state, spec(gpu_milli=3000, group="research"), w.now)
    assert [(f.code, f.message) for f in caught.value.faults] == [
        ("over_limit", "pool gpus lets ada hold 2 gpu at a time, and one task asks for 3 gpu")
    ]


def test_what_no_pool_is_named_for_does_not_slip_past_its_quota() -> None:
    limited = PoolSpec("gpus", Selector.parse("*"), ("gpu",), quota={"r": {"gpu": quota(2)}})  # not the default
    w = cluster(limited)
    with pytest.raises(InputError) as caught:
        admit(w.state, spec(gpu_milli=1000, group="r"), w.now)
    assert caught.value.faults[0].hint == "Name one: --pool gpu=gpus."
    job = gpus(w, "r", 1)  # one that was let in before the pool had a quota
    assert held(w) == {}
    assert why(w, job) == (
        "It names no pool for gpu, which pools count by user or group: submit it with --pool gpu=gpus."
    )


# --- quotas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quotas_", "cohort", "asked", "held_"),
    [
        # A pool of 8 GPUs. In no cohort each has its own, and no more.
        ({"a": quota(5), "b": quota(3)}, "", [("a", 9), ("b", 9)], {"a": 5, "b": 3}),
        # a may borrow 2 of b's 3: 5 + 2.
        ({"a": quota(5, 2), "b": quota(3)}, "site", [("a", 9)], {"a": 7}),
        # b lends 1 at most: 5 + 1, also where a may borrow 3. 2 are kept for b.
        ({"a": quota(5, 3), "b": quota(3, 0, 1)}, "site", [("a", 9), ("b", 0)], {"a": 6}),
        ({"a": quota(5, 3), "b": quota(3, 0, 1)}, "site", [("a", 9), ("b", 2)], {"a": 6, "b": 2}),
        # Without a limit, all that is not used and not kept.
        ({"a": quota(2, None), "b": quota(3, 0, 0)}, "site", [("a", 9)], {"a": 5}),
        # What is nobody's own may be borrowed: 8 - (2 + 3) = 3, and b's 3.
        ({"a": quota(2, None), "b": quota(3)}, "site", [("a", 9)], {"a": 8}),
        # Two borrowers, one lender, first come first served: b 2 + 1 of c's 4; a 2 + 3.
        ({"a": quota(2, 3), "b": quota(2, 3), "c": quota(4)}, "site", [("a", 9), ("b", 9)], {"a": 5, "b": 3}),
        # Whoever stands in no quota has nothing there.
        ({"a": quota(2, 3)}, "site", [("x", 2), ("a", 1)], {"a": 1}),
    ],
)
def test_quotas_of_one_pool(
    quotas_: dict[str, Quota], cohort: str, asked: list[tuple[str, int]], held_: dict[str, int]
) -> None:
    w = cluster(pool("gpus", "*", quotas_, cohort=cohort))
    for group, tasks in asked:
        if tasks:
            gpus(w, group, tasks, rerunnable=False)
    assert held(w) == held_
    w.check()


def test_what_is_borrowed_counts_over_all_pools_of_the_cohort() -> None:
    """a has 2 in east and may borrow 3 in all: 2 + 2 in east leave 1 for west, where it has nothing of its own."""
    east = pool("east", "n1", {"a": quota(2, 3), "b": quota(2)}, cohort="site")
    west = PoolSpec("west", Selector.parse("n2"), ("gpu",), quota={"c": {"gpu": quota(4)}}, cohort="site")
    w = cluster(east, west, gpus=4, nodes=2)
    gpus(w, "a", 4)
    job = w.submit(
        spec(
            user="a",
            group="a",
            array=Array(first=1, last=4),
            request=spec(gpu_milli=1000).request.model_copy(update={"pools": {"gpu": "west"}}),
        )
    )
    w.settle()
    by_pool = Counter(s.pool for key in w.state.runs for s in w.state.book.shares(key.owner) if s.kind == "gpu")
    assert by_pool == {"east": 4, "west": 1}
    assert why(w, job).startswith(
        "Quota: group a holds 1 gpu of pool west, 0 gpu are its own and it may borrow 1 gpu"
    )
    w.check()


def test_a_logical_host_takes_its_part_out_of_what_is_lent() -> None:
    w = cluster(pool("gpus", "*", {"a": quota(2, None), "b": quota(2, 0, 0)}, cohort="site"), gpus=4)
    assert w.state.pool_capacity("gpus", "gpu") == 4000
    assert quotas.standing(w.state, "gpus", "gpu", "a").left == 2000  # 4 - 2 that are kept for b


def test_who_holds_what_is_lent_is_told() -> None:
    w = cluster(pool("gpus", "*", {"a": quota(2, None), "b": quota(6)}, cohort="site"))
    gpus(w, "a", 8, rerunnable=False)
    job = gpus(w, "b", 1)
    assert why(w, job) == (
        "Quota: group b holds 0 gpu of pool gpus, 6 gpu are its own, and some of that is lent to group a (6 gpu)."
    )


def test_a_group_without_a_quota_is_told_so_when_it_submits() -> None:
    w = cluster(pool("gpus", "*", {"a": quota(2, 1), "b": quota(2)}, cohort="site"))
    with pytest.raises(InputError) as caught:
        admit(w.state, spec(gpu_milli=1000, group="x"), w.now)
    [fault] = caught.value.faults
    assert (fault.code, fault.field) == ("no_quota", "group")
    assert fault.sentence() == (
        "group: group x may have 0 gpu of pool gpus, and one task asks for more. "
        "Ask for less, or submit it for a group that has a quota: a, b."
    )
    admit(w.state, spec(gpu_milli=3000, group="a"), w.now)  # 2 of its own and one that it may borrow
    with pytest.raises(InputError):
        admit(w.state, spec(gpu_milli=4000, group="a"), w.now)


def test_a_quota_that_is_defined_later_stops_nothing_that_runs() -> None:
    w = cluster(pool("gpus", "*"))
    job = gpus(w, "a", 9, rerunnable=False)
    w.apply(Specs({"gpus": pool("gpus", "*", {"a": quota(2), "b": quota(6)})}, NORMAL))
    w.settle()
    gpus(w, "b", 2)
    assert held(w) == {"a": 8} and w.stops == []
    w.finish(w.running()[0])
    w.settle()
    assert held(w) == {"a": 7, "b": 1}
    assert why(w, job).startswith(
        "Quota: group a holds 7 gpu of pool gpus, 2 gpu are its own and it may borrow 0 gpu"
    )
    w.check()


# --- owners get their own back -------------------------------------------------------------------------------------


def test_an_owner_gets_its_own_back_from_the_newest_that_may_run_again() -> None:
    """8 GPUs: a 2 + 6 borrowed. b wants 3 of its 6: the 3 newest of a's that are rerunnable go back to the queue."""
    w = cluster(pool("gpus", "*", {"a": quota(2, None), "b": quota(6)}, cohort="site"))
    old = gpus(w, "a", 3)
    w.advance(5)
    kept_ = gpus(w, "a", 2, rerunnable=False)
    w.advance(5)
    new = gpus(w, "a", 3)
    assert held(w) == {"a": 8}
    job = gpus(w, "b", 3)
    let_end(w)
    assert held(w) == {"a": 5, "b": 3}
    by_job = Counter(key.job for key in w.state.runs)
    assert by_job == {old: 3, kept_: 2, job: 3}
    assert w.state.jobs[new].by_state() == {TaskState.PENDING: 3}
    assert {stop.reason for stop in w.stops} == {"requeued: it ran on borrowed quota, which its owner needs"}
    assert {stop.grace_seconds for stop in w.stops} == {w.settings.stop_grace_seconds}
    w.check()


def test_nobody_is_stopped_for_an_owner_whom_a_reservation_keeps_out() -> None:
    """8 GPUs, a 2 + 6 borrowed; from 1100 on 6 are kept. b's own 3 would have to be back by then: 1000 + 10 + 70."""
    w = cluster(pool("gpus", "*", {"a": quota(2, None), "b": quota(6)}, cohort="site"))
    gpus(w, "a", 8)
    kept = Reservation(name="r", owner="c", amounts={"gpu": 6000}, nodes=["n1"], start=1100.0, end=5000.0)
    w.state.set_reservation(kept)
    gpus(w, "b", 3)
    assert w.stops == []
    gpus(w, "b", 3, walltime_seconds=10)
    assert len(w.stops) == 3
    let_end(w)
    assert held(w) == {"a": 5, "b": 3}


def test_nobody_is_taken_what_is_its_own() -> None:
    """b asks for more than its 4: only what a has borrowed comes back, and a keeps its own 4."""
    w = cluster(pool("gpus", "*", {"a": quota(4, None), "b": quota(4, None)}, cohort="site"))
    gpus(w, "a", 8)
    gpus(w, "b", 8)
    let_end(w)
    let_end(w)
    assert held(w) == {"a": 4, "b": 4}


def test_what_may_not_run_again_is_waited_for_and_nothing_is_borrowed_meanwhile() -> None:
    w = cluster(pool("gpus", "*", {"a": quota(2, None), "b": quota(6)}, cohort="site"))
    mine = gpus(w, "a", 12, rerunnable=False)
    gpus(w, "b", 1)
    assert held(w) == {"a": 8} and w.stops == []
    w.finish(w.running()[0])
    w.settle()
    assert w.state.jobs[mine].ready, "a still waits, and came first"
    w.check()


def test_nobody_is_stopped_in_vain() -> None:
    """b's task needs 4 GPUs of one node. On each of two nodes a's tasks hold 4, of which one may not run again."""
    w = cluster(pool("gpus", "*", {"a": quota(0, None), "b": quota(8)}, cohort="site"), gpus=4, nodes=2)
    for _ in range(2):
        gpus(w, "a", 1, rerunnable=False)
        gpus(w, "a", 3)
    on = {name: list(w.agents[name].running) for name in w.agents}
    fixed = {name: sum(not w.state.jobs[a.job].spec.rerunnable for a in on[name]) for name in on}
    assert sorted(map(len, on.values())) == [4, 4]
    big = w.submit(spec(user="b", group="b", gpu_milli=4000))
    w.settle()
    if all(fixed.values()):
        assert w.stops == []
    else:  # both that may not run again are on one node: then the other is emptied
        let_end(w)
        assert big in {key.job for key in w.state.runs}
        assert len({stop.node for stop in w.stops}) == 1
    w.check()


def test_who_was_stopped_does_not_take_it_again_before_the_owner() -> None:
    """Of one queue and older: a's tasks would come first, were the quota not claimed."""
    w = cluster(pool("gpus", "*", {"a": quota(0, None), "b": quota(8)}, cohort="site"))
    gpus(w, "a", 20)
    gpus(w, "b", 4)
    for _ in range(6):
        let_end(w)
    assert held(w) == {"a": 4, "b": 4}
    assert w.state.claims == {}


def test_a_claim_ends_with_who_claims() -> None:
    w = cluster(pool("gpus", "*", {"a": quota(0, None), "b": quota(8)}, cohort="site"))
    gpus(w, "a", 9)
    job = gpus(w, "b", 4, hold=True)
    assert w.stops == []
    w.feed(ReleaseRequested(job))
    w.settle()
    assert w.state.claims == {("gpus", "gpu", "b"): 4000}
    w.feed(HoldRequested(job))
    for _ in range(4):
        let_end(w)
    assert w.state.claims == {} and held(w) == {"a": 8}


# --- the sums ------------------------------------------------------------------------------------------------------


def test_a_new_leader_counts_the_same() -> None:
    w = cluster(pool("gpus", "*", {"a": quota(2, 3), "b": quota(3)}, cohort="site"))
    gpus(w, "a", 9)
    gpus(w, "b", 1)
    before = {group: w.state.usage.of(Scope("pool", "gpus", "group", group)) for group in ("a", "b")}
    w.change_leader()
    assert {g: w.state.usage.of(Scope("pool", "gpus", "group", g)) for g in ("a", "b")} == before
    w.check()


def test_sums_that_do_not_add_up_are_found() -> None:
    w = cluster(pool("gpus", "*"))
    job = gpus(w, "a", 2)
    assert list(w.state.sums_faults()) == []
    key = next(iter(w.state.runs))
    shares = w.state.book.shares(key.owner)
    w.state.usage.remove(w.state.jobs[job], key, shares)
    faults = list(w.state.sums_faults())
    assert any("pool gpus counts" in fault and "for group a" in fault for fault in faults), faults
    other = next(k for k in w.state.runs if k != key)
    w.state.usage.remove(w.state.jobs[job], other, w.state.book.shares(other.owner))
    with pytest.raises(LedgerBroken, match="gives back"):
        w.state.usage.remove(w.state.jobs[job], key, shares)
