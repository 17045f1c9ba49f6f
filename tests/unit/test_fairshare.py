"""Whose turn it is: queue, share of group and user, job's priority, submission; kept, and told, as numbers."""

from __future__ import annotations

import random

import pytest
from control_world import KEYS, World, offer, spec
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lavalite.control.decay import ONE, accrued, decayed, factor
from lavalite.control.events import CancelRequested, Specs
from lavalite.control.explain import explain
from lavalite.control.fairshare import FairQueue, rate_of
from lavalite.control.settings import Settings
from lavalite.model.job import Array
from lavalite.model.specs import Fairshare, QueueSpec
from lavalite.model.task import AttemptId

HOUR = 3600
GIB = 1024**3


def fair_world(
    shares: Fairshare, *, cpu: int = 8, queues: dict[str, QueueSpec] | None = None, **limits: int
) -> World:
    world = World(Settings(max_txn_operations=128, **limits))  # type: ignore[arg-type]
    named = queues or {"normal": QueueSpec("normal", default=True, fairshare=shares)}
    world.apply(Specs(queues=named))
    world.connect("n1", offer("n1", cpu=cpu))
    world.settle()
    return world


def ran(world: World) -> dict[str, int]:
    """Running tasks by user."""
    counts: dict[str, int] = {}
    for attempt in world.running():
        user = world.state.jobs[attempt.job].spec.user
        counts[user] = counts.get(user, 0) + 1
    return counts


def many(world: World, user: str, tasks: int, group: str = "", **fields: object) -> int:
    return world.submit(spec(user=user, group=group or user, array=Array(first=1, last=tasks), **fields))


# --- decay in whole numbers ----------------------------------------------------------------------------------------


@given(st.integers(0, 10**9), st.integers(1, 10**7))
def test_a_factor_is_the_power_of_two_that_it_stands_for(elapsed: int, half_life: int) -> None:
    # Each of the 40 steps rounds down by less than one unit of 2^-64, and so does the first.
    exact = 2 ** -(elapsed / half_life)
    assert factor(elapsed, half_life) / ONE == pytest.approx(exact, rel=1e-9, abs=41 / ONE)


def test_use_halves_and_accrues_by_the_half_life() -> None:
    assert [decayed(1000, hours, 1) for hours in (0, 1, 2, 10)] == [1000, 500, 250, 0]
    assert decayed(1000, 1, 2) == 707  # 1000 / √2
    # Held for ever, a rate comes to rate × half-life / ln 2: 1000 × 60 / 0.693 = 86561
    assert accrued(1000, 60_000, 60) == 86_561
    assert accrued(1000, 60, 60) == 43_280  # half of it, after one half-life
    assert accrued(1000, 1, 10**6) == 999  # and at first as good as nothing decays


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 64)), min_size=1, max_size=40),
    st.sampled_from([60, HOUR, 7 * 86400]),
)
def test_settling_often_or_once_comes_to_the_same(steps: list[tuple[int, int]], half_life: int) -> None:
    """Use in between is what the integral says, but for rounding down and what settling takes as spread evenly."""
    often = FairQueue(Fairshare(half_life), 1000, 1000)
    exact, now, rate = 0.0, 1000, 0
    for milliseconds, cores in steps:
        often.let_go("g", "u", rate)
        often.hold("g", "u", cores * 1000)
        rate = cores * 1000
        now += milliseconds
        often.advance(now)
        kept = 2 ** (-milliseconds / (half_life * 1000))
        exact = exact * kept + rate * milliseconds * (1 + kept) / 2
    spread = often.settle_ms / (half_life * 1000)
    assert often.used("g", "u") == pytest.approx(exact, rel=2 * spread, abs=50_000)
    assert often.used("g") == often.used("g", "u")


# --- what counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amounts", "milli"),
    [
        ({"cpu": 2000}, 2000),
        ({"cpu": 1000, "memory": 64 * GIB}, 16_000),  # 64 GiB at 4 GiB a core
        ({"cpu": 4000, "gpu": 2000}, 16_000),  # 2 GPUs at 8 cores
        ({"cpu": 1000, "gpu": 500}, 4000),  # half a GPU
        ({"storage": GIB}, 1),  # never nothing
    ],
)
def test_a_task_counts_as_the_largest_of_its_parts(amounts: dict[str, int], milli: int) -> None:
    assert rate_of(amounts) == milli


def test_an_idle_cluster_is_shared_at_once() -> None:
    """ada came first and asks for all; 12 slots by groups 2 : 1 are 8 and 4."""
    w = fair_world(Fairshare(HOUR, groups={"research": 2}), cpu=12)
    w.state.schedule_wanted = False
    for agent in w.agents:
        w.disconnect(agent)
    many(w, "ada", 50, "research")
    many(w, "tom", 50, "teaching")
    w.connect("n1")
    w.settle()
    assert ran(w) == {"ada": 8, "tom": 4}


def test_groups_share_first_and_users_within_their_group() -> None:
    """12 slots: research 1 : teaching 1 are 6 and 6; of research's, ada 2 : bob 1 are 4 and 2."""
    w = fair_world(Fairshare(HOUR, users={"ada": 2}), cpu=12)
    w.disconnect("n1")
    for user, group in (("ada", "research"), ("bob", "research"), ("tom", "teaching")):
        many(w, user, 50, group)
    w.connect("n1")
    w.settle()
    assert ran(w) == {"ada": 4, "bob": 2, "tom": 6}


def test_who_has_used_less_goes_first_whatever_the_jobs_priority() -> None:
    w = fair_world(Fairshare(HOUR), cpu=1)
    first = w.submit(spec(user="ada", group="ada"))
    w.settle()
    w.advance(600)
    again = w.submit(spec(user="ada", group="ada", priority=100))
    other = w.submit(spec(user="bob", group="bob"))
    w.finish(w.running()[0])
    w.settle()
    assert [a.job for a in w.running()] == [other]
    told = explain(w.state, w.state.jobs[again], w.now)
    assert told.fairshare["group"] == "ada" and told.fairshare["used_core_seconds"] == pytest.approx(600, rel=0.1)
    assert w.state.jobs[first].unfinished == 0


def test_the_order_within_one_user_is_priority_then_submission() -> None:
    w = fair_world(Fairshare(HOUR), cpu=1)
    running = w.submit(spec(user="ada", group="ada"))
    low, high, late = (w.submit(spec(user="ada", group="ada", priority=p, cpu_milli=1000)) for p in (0, 5, 5))
    started = []
    for _ in range(4):
        w.settle()
        started.append(w.running()[0].job)
        w.finish(w.running()[0])
    assert started == [running, high, late, low]


def test_queues_come_before_shares() -> None:
    urgent = QueueSpec("urgent", 90, fairshare=Fairshare(HOUR))
    normal = QueueSpec("normal", 30, default=True, fairshare=Fairshare(HOUR))
    w = fair_world(Fairshare(), cpu=1, queues={"urgent": urgent, "normal": normal})
    w.submit(spec(user="ada", group="ada", queue="urgent"))
    w.settle()
    w.advance(600)  # ada has used a lot of the urgent queue
    theirs = w.submit(spec(user="bob", group="bob", queue="normal"))
    hers = w.submit(spec(user="ada", group="ada", queue="urgent"))
    w.finish(w.running()[0])
    w.settle()
    assert [a.job for a in w.running()] == [hers]
    assert w.state.jobs[theirs].ready == 1


def test_queues_of_one_priority_take_turns_by_job_not_by_share() -> None:
    """A queue without fairshare neither always wins nor always loses against one that has it."""
    fair, plain = QueueSpec("fair", 30, default=True, fairshare=Fairshare(HOUR)), QueueSpec("plain", 30)
    w = fair_world(Fairshare(), cpu=1, queues={"fair": fair, "plain": plain})
    jobs = [w.submit(spec(user="ada", group="ada", queue=q)) for q in ("fair", "plain", "fair", "plain")]
    started = []
    for _ in jobs:
        w.settle()
        started.append(w.running()[0].job)
        w.finish(w.running()[0])
    assert started == jobs


# --- kept --------------------------------------------------------------------------------------------------------


def test_a_new_leader_knows_what_was_used() -> None:
    w = fair_world(Fairshare(HOUR))
    many(w, "ada", 4)
    w.settle()
    w.advance(1800)
    w.settle()
    before = w.state.fair["normal"]
    w.change_leader()
    after = w.state.fair["normal"]
    assert after.used("ada", "ada") == before.used("ada", "ada") > 0
    assert after.held("ada") == 4000 and list(w.state.sums_faults()) == []
    # What runs goes on to count from when that was stored, not twice and not from its start.
    w.connect("n1")
    w.advance(60)
    assert after.used("ada") == pytest.approx(before.used("ada") + 4000 * 60_000, rel=0.05)


def test_a_leader_that_finds_nothing_stored_begins_at_nothing() -> None:
    w = fair_world(Fairshare(HOUR))
    many(w, "ada", 4)
    w.settle()
    w.store = {key: value for key, value in w.store.items() if "/fairshare/" not in key}
    w.change_leader()
    w.connect("n1")
    w.advance(1)
    fair = w.state.fair["normal"]
    assert fair.used("ada", "ada") == 4000 * 1000  # four cores for the one second of this leader
    assert fair.held("ada", "ada") == 4000


def test_a_record_that_cannot_be_read_keeps_no_leader_from_beginning() -> None:
    w = fair_world(Fairshare(HOUR))
    for bad in (b"", b"[]", b'{"settled_at_ms": "x"}', b'{"settled_at_ms": 1, "used": {"a": 3}}'):
        w.store[KEYS.fairshare("normal")] = bad
        w.change_leader()
        assert w.state.fair["normal"].used("a") == 0


def test_it_is_written_seldom_and_goes_with_its_queue() -> None:
    w = fair_world(Fairshare(HOUR))
    many(w, "ada", 2)
    w.settle()
    written = []
    for _ in range(120):
        w.advance(1)
        written += [1 for action in w.pipeline if KEYS.fairshare("normal") in action.puts]
        w.settle()
    assert sum(written) == 2  # once a minute
    w.apply(Specs(queues={"normal": QueueSpec("normal", default=True)}))
    w.settle()
    assert not [key for key in w.store if "/fairshare/" in key]


def test_shares_that_are_changed_keep_what_was_used() -> None:
    w = fair_world(Fairshare(HOUR))
    many(w, "ada", 4)
    w.settle()
    w.advance(600)
    used = w.state.fair["normal"].used("ada")
    w.apply(Specs(queues={"normal": QueueSpec("normal", default=True, fairshare=Fairshare(60, {"ada": 5}))}))
    assert w.state.fair["normal"].used("ada") == pytest.approx(used, rel=0.01)
    assert w.state.fair["normal"].share("ada") == 5
    w.check()


# --- speed -------------------------------------------------------------------------------------------------------


def test_a_pass_looks_at_whose_turn_it_is_and_not_at_all_who_wait() -> None:
    users = 1500
    w = fair_world(Fairshare(HOUR), cpu=4)
    for n in range(users):
        w.submit(spec(user=f"u{n}", group=f"g{n % 20}"))
    w.settle()
    costs = []
    for _ in range(20):
        before = w.state.order.looked_at()
        w.finish(w.running()[0])
        w.settle()
        costs.append(w.state.order.looked_at() - before)
    assert len(w.running()) == 4
    # Each pass places one task: its user, its group, and those who come to the top. 1,500 users wait.
    assert max(costs) < 150, costs


def test_equal_requests_share_one_column_however_many_users_wait() -> None:
    w = fair_world(Fairshare(HOUR), cpu=1)
    for n in range(50):
        w.submit(spec(user=f"u{n}", group="g"))
    wanted = {id(waiting.wanted) for waiting in w.state.classes.values()}
    assert len(w.state.classes) >= 49 and len(wanted) == 1


# --- the law -----------------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    seed=st.integers(0, 2**32),
    shares=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    users=st.integers(1, 2),
)
def test_use_converges_to_the_shares(seed: int, shares: list[int], users: int) -> None:
    """Within 5 %, of groups and of users in a group, where all always have work, whoever's tasks are long or short.

    Tasks are short against the half-life: what one of them comes to is not all that is remembered of a user. All ask
    for one core: a large task that waits while small ones fit is not what shares are about.
    """
    print(f"seed {seed}, shares {shares}, {users} users each")
    pick = random.Random(seed)
    groups = {f"g{n}": share for n, share in enumerate(shares)}
    people = [(group, f"{group}u{n}", n + 1) for group in groups for n in range(users)]
    longest = {user: pick.choice([600, 900, 1500]) for _, user, _ in people}
    w = fair_world(Fairshare(6 * HOUR, groups, {user: share for _, user, share in people}), cpu=24)
    # One of them had it all to itself for a while, and has paid for that when it is begun to count.
    early = people[pick.randrange(len(people))]
    many(w, early[1], 24, early[0])
    w.settle()
    w.advance(300)
    for group, user, _ in people:
        many(w, user, 2000, group)
    ends: dict[AttemptId, float] = {}
    used: dict[tuple[str, str], int] = {}
    begin = w.now + 6 * HOUR
    for _ in range(12 * 18):  # eighteen hours in steps of five minutes
        for attempt in w.running():
            job = w.state.jobs[attempt.job].spec
            if w.now > begin:
                used[job.group, job.user] = used.get((job.group, job.user), 0) + 1
            if ends.setdefault(attempt, w.now + pick.randrange(300, longest[job.user])) <= w.now:
                w.finish(attempt)
        w.settle()
        w.advance(300)
    total = sum(used.values())
    counted = w.state.fair["normal"]
    assert sum(counted.used(g) for g in groups) == pytest.approx(sum(counted.used(g, u) for g, u, _ in people))
    for group, share in groups.items():
        of_group = sum(n for (g, _), n in used.items() if g == group)
        assert of_group / total == pytest.approx(share / sum(shares), rel=0.05), group
        of_users = sum(s for g, _, s in people if g == group)
        for _, user, mine in (p for p in people if p[0] == group):
            assert used[group, user] / of_group == pytest.approx(mine / of_users, rel=0.05), user
            assert counted.used(group, user) / counted.used(group) == pytest.approx(mine / of_users, rel=0.05), user
    assert all(w.state.jobs[attempt.job].ready for attempt in w.running()), "all always had work"
    w.check()


def test_cancelled_work_leaves_no_use_behind_that_is_still_held() -> None:
    w = fair_world(Fairshare(HOUR))
    job = many(w, "ada", 4)
    w.settle()
    w.feed(CancelRequested(job))
    w.settle()
    w.report("n1")
    w.settle()
    assert w.state.fair["normal"].held("ada") == 0
    w.check()
