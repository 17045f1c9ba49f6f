"""Reservations: what is kept is there when it is wanted, whatever else comes; and nothing more is kept than that."""

from __future__ import annotations

from typing import Any

import pytest
from control_world import GIB, KEYS, World, offer, spec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_control_jobs import run_all, states, world

from lavalite.base.errors import InputError, UnknownNameError
from lavalite.control.admission import admit
from lavalite.control.events import DefinitionApplied, ReservationEnded, ReservationMade, SignalRequested, Specs
from lavalite.control.explain import explain
from lavalite.control.reservations import Asked, choose_nodes, kept_on, margin_seconds
from lavalite.model.job import Array
from lavalite.model.reservation import Reservation
from lavalite.model.resources import GPU, WHOLE
from lavalite.model.selector import Selector
from lavalite.model.specs import HostSpec, PoolSpec, QueueSpec
from lavalite.model.task import AttemptId, TaskState
from lavalite.placement.reasons import Reason, Refusal

SECOND_CORE = {"cpu": 1000}
STORED = (
    b'{"name":"r","owner":"ada","users":["bob"],"pool":"gpus","amounts":{"cpu":2000,"gpu":1000},'
    b'"nodes":["n1","n2"],"start":1000.0,"end":4600.0,"timeout_seconds":900,"made_at":990.5,"from_later":1}'
)
"""As the first release wrote it, with a field that it did not know."""


def reserve(
    w: World, name: str = "r", *, start: float = 0, seconds: float = 1000, count: int = 1, **more: Any
) -> Any:
    """Made if it fits, else the Refusal. Amounts are in `amounts`; `start` counts from now."""
    amounts, pool = more.pop("amounts", SECOND_CORE), more.pop("pool", "")
    begin = w.now + start
    nodes = choose_nodes(w.state, Asked(amounts, count, pool, begin, begin + seconds), w.now)
    if isinstance(nodes, Refusal):
        return nodes
    fields: dict[str, Any] = {"owner": "ada", "amounts": amounts, "nodes": nodes, "pool": pool} | more
    made = Reservation(name=name, start=begin, end=begin + seconds, **fields)
    w.feed(ReservationMade(made))
    w.settle()
    return made


def submit(w: World, tasks: int = 1, **fields: Any) -> int:
    job = w.submit(spec(array=Array(first=0, last=tasks - 1), **fields))
    told(w)
    return job


def told(w: World) -> None:
    """Everything written, and everything that agents know told."""
    w.settle()
    for name in w.agents:
        w.report(name)
    w.settle()


def test_others_run_beside_it_and_its_own_run_in_it() -> None:
    w = world(offer("n1", cpu=4))
    reserve(w, amounts={"cpu": 3000})
    others, own = submit(w, 4, user="bob"), submit(w, 4, user="ada", reservation="r")
    assert states(w, others) == "RPPP"
    assert [a.job for a in w.running()].count(own) == 3
    run_all(w)
    w.check()


def test_it_says_who_holds_what_and_until_when() -> None:
    w = world(offer("n1", cpu=2))
    reserve(w, amounts={"cpu": 2000}, seconds=300)
    job = submit(w, user="bob")
    why = explain(w.state, w.state.jobs[job], w.now)
    assert why.sentence == "There is room, but it is held by reservation r (for another 300 s)."
    assert why.filters == {"held": 1} and why.held_by == ["reservation r (for another 300 s)"]


def test_what_ends_before_it_begins_may_use_it_until_then_and_nothing_else() -> None:
    w = world(offer("n1", cpu=2))
    reserve(w, start=1000, amounts={"cpu": 2000})
    spare = int(1000 - margin_seconds(w.state))
    long, endless = submit(w, walltime_seconds=spare + 1), submit(w)
    short = submit(w, walltime_seconds=spare)
    assert [a.job for a in w.running()] == [short], (long, endless)
    assert "held by reservation r" in explain(w.state, w.state.jobs[long], w.now).sentence


def test_a_queues_walltime_counts_as_well() -> None:
    w = world(offer("n1", cpu=1))
    w.apply(Specs(queues={"short": QueueSpec("short", walltime_seconds=60), "long": QueueSpec("long")}))
    reserve(w, start=1000)
    submit(w, queue="long")
    short = submit(w, queue="short")
    assert [a.job for a in w.running()] == [short]


def test_it_is_not_made_where_what_runs_may_still_be_there() -> None:
    w = world(offer("n1", cpu=2))
    endless = submit(w, 2)
    refused = reserve(w, start=1000)
    assert isinstance(refused, Refusal) and refused.turned_away == {Reason.TOO_FEW_FREE: 1}
    assert refused.nearest == "n1" and refused.lacks == {"cpu": 1000}
    for attempt in w.running():
        assert attempt.job == endless
        w.finish(attempt)
    w.settle()
    limited = submit(w, 2, walltime_seconds=600)
    assert isinstance(reserve(w, start=500), Refusal)
    assert isinstance(reserve(w, start=1000), Reservation)
    # One that is stopped does not come nearer to its end.
    w.feed(SignalRequested(limited, "suspend"))
    told(w)
    assert w.state.runs and all(run.state is TaskState.SUSPENDED for run in w.state.runs.values())
    assert isinstance(reserve(w, "again", start=3000), Refusal)


def test_two_at_the_same_time_share_and_two_after_each_other_do_not() -> None:
    w = world(offer("n1", cpu=2))
    assert isinstance(reserve(w, "a", start=1000, amounts={"cpu": 2000}), Reservation)
    assert isinstance(reserve(w, "b", start=1500), Refusal)
    assert isinstance(reserve(w, "c", start=2000, amounts={"cpu": 2000}), Reservation)
    assert isinstance(reserve(w, "d", start=0, seconds=1000, amounts={"cpu": 2000}), Reservation)


def test_of_two_after_each_other_the_second_waits_for_the_stop_of_the_firsts_tasks() -> None:
    w = world(offer("n1", cpu=2))
    reserve(w, "a", seconds=100, amounts={"cpu": 2000})
    reserve(w, "b", start=100, amounts={"cpu": 2000})
    first = submit(w, 2, user="ada", reservation="a")
    second = submit(w, 2, user="ada", reservation="b")
    other = submit(w)
    w.advance(105)
    told(w)
    # They are being stopped since 5 s ago, and hold what they have up to their end: nobody else is given it.
    assert [a.job for a in w.running()] == [first, first]
    for attempt in w.running():
        w.finish(attempt, -15, "walltime")
    told(w)
    assert [a.job for a in w.running()] == [second, second] and states(w, other) == "P"
    w.check()


def test_its_tasks_wait_for_its_start_and_end_with_it() -> None:
    w = world(offer("n1", cpu=2))
    reserve(w, start=100, seconds=50)
    own = submit(w, user="ada", reservation="r")
    assert not w.running() and "begins in 100 s" in explain(w.state, w.state.jobs[own], w.now).sentence
    w.advance(100)
    w.settle()
    assert [a.job for a in w.running()] == [own]
    (run,) = w.state.runs.values()
    assert run.ends_by == 1150
    too_long = submit(w, user="ada", reservation="r", walltime_seconds=51)
    assert "ends in 50 s" in explain(w.state, w.state.jobs[too_long], w.now).sentence


def test_the_node_is_told_to_end_its_tasks_with_it() -> None:
    w = world(offer("n1", cpu=1))
    reserve(w, seconds=50)
    job_id = w.submit(spec(user="ada", reservation="r", walltime_seconds=30))
    limits = []
    keep = w.carry_out

    def carry_out(effect: Any) -> None:
        limits.extend(start.walltime_seconds for start in getattr(effect, "attempts", ()))
        keep(effect)

    w.carry_out = carry_out  # type: ignore[method-assign]
    w.settle()
    w.finish(AttemptId(job_id, 0, 1))
    w.advance(10)
    submit(w, user="ada", reservation="r")
    assert limits == [30, 40]


@pytest.mark.parametrize("how", ["end", "told"])
def test_when_it_is_over_what_was_kept_is_there_for_all(how: str) -> None:
    w = world(offer("n1", cpu=1))
    reserve(w, seconds=50)
    waiting = submit(w)
    assert not w.running() and w.store[KEYS.reservation("r")]
    if how == "end":
        w.advance(50)
    else:
        w.feed(ReservationEnded("r"))
    w.settle()
    assert [a.job for a in w.running()] == [waiting]
    assert KEYS.reservation("r") not in w.store
    late = submit(w, user="ada", reservation="r")
    assert "can never be met" in explain(w.state, w.state.jobs[late], w.now).sentence
    w.check()


def test_unused_for_too_long_it_ends_and_used_it_does_not() -> None:
    w = world(offer("n1", cpu=2))
    reserve(w, "idle", start=20, seconds=1000, timeout_seconds=30)
    reserve(w, "busy", seconds=1000, timeout_seconds=30)
    submit(w, user="ada", reservation="busy")
    for _ in range(49):
        w.advance(1)
    assert sorted(w.state.reservations) == ["busy", "idle"]
    w.advance(1)
    assert sorted(w.state.reservations) == ["busy"]
    for attempt in w.running():
        w.finish(attempt)
    w.advance(29)
    w.advance(1)
    w.advance(30)
    assert not w.state.reservations


def test_whole_gpus_are_kept_from_those_who_take_parts_of_them() -> None:
    w = world(offer("n1", cpu=64, gpus=3))
    reserve(w, amounts={"gpu": 2000})
    parts = submit(w, 10, gpu_milli=400)
    assert len(w.running()) == 2
    submit(w, gpu_milli=1000)
    assert len(w.running()) == 2
    own = submit(w, user="ada", reservation="r", gpu_milli=2000, cpu_milli=0)
    assert [a.job for a in w.running()].count(own) == 1, parts
    w = world(offer("n1", cpu=64, gpus=4))
    reserve(w, amounts={"gpu": 2000})
    submit(w, 10, gpu_milli=600)
    assert len(w.running()) == 2, "a third would fit by its amount, and begin a third GPU"


def test_logical_hosts_are_composed_beside_it() -> None:
    w = world(offer("n1", cpu=4), offer("n2", cpu=2, gpus=2))
    reserve(w, "cores", start=5000, amounts={"cpu": 3000})
    reserve(w, "gpus", start=5000, amounts={"gpu": 1000})
    w.apply(Specs(hosts={"a": HostSpec("a", {"cpu": 2000}), "g": HostSpec("g", {"gpu": 500})}))
    w.settle()
    assert {name: host.state.value for name, host in w.state.hosts.items()} == {"a": "planned", "g": "planned"}
    w.feed(ReservationEnded("cores"))
    w.feed(ReservationEnded("gpus"))
    w.settle()
    assert {host.state.value for host in w.state.hosts.values()} == {"composed"}
    w.check()


def test_nodes_are_of_the_pool_and_each_reason_is_counted() -> None:
    w = world(offer("n1", cpu=1), offer("n2", cpu=4, gpus=1), offer("n3", cpu=4))
    w.apply(Specs(pools={"few": PoolSpec("few", Selector.parse("n[1:2]"), ("cpu", "gpu"))}))
    refused = reserve(w, pool="few", amounts={"cpu": 2000}, count=2)
    assert refused.turned_away == {Reason.TOO_SMALL: 1, Reason.NOT_IN_POOL: 1}
    made = reserve(w, pool="few", amounts={"cpu": 2000})
    assert made.nodes == ["n2"]
    assert reserve(w, "gpu", amounts={"gpu": 1000, "cpu": 1000}).nodes == ["n2"]
    assert reserve(w, "none", amounts={"storage": 1}).turned_away == {Reason.NO_KIND: 3}


def test_a_new_leader_keeps_it_and_knows_what_its_tasks_hold() -> None:
    w = world(offer("n1", cpu=3))
    made = reserve(w, amounts={"cpu": 2000})
    submit(w, user="ada", reservation="r")
    w.change_leader()
    assert w.state.reservations == {"r": made}
    w.connect("n1")
    w.settle()
    others = submit(w, 3)
    assert [a.job for a in w.running()].count(others) == 1
    assert kept_on(w.state, "n1", w.now) == {"cpu": 1000}
    (run,) = [run for run in w.state.runs.values() if run.key.job != others]
    assert run.ends_by == made.end
    w.check()


def test_what_a_job_may_not_say_is_told_before_it_is_let_in() -> None:
    w = world(offer("n1", cpu=4))
    reserve(w, users=["bob"])
    for user in ("ada", "bob"):
        admit(w.state, spec(user=user, reservation="r"), w.now)
    for wrong, message in (
        ({"user": "eve"}, "r is not for eve"),
        ({"user": "ada", "cpu_milli": 2000}, "asks for more cpu than r keeps"),
        ({"user": "ada", "memory_bytes": GIB}, "asks for more memory than r keeps"),
        ({"user": "ada", "walltime_seconds": 1001}, "longer than r lasts"),
    ):
        with pytest.raises(InputError, match=message):
            admit(w.state, spec(reservation="r", **wrong), w.now)
    with pytest.raises(UnknownNameError, match="no reservation s"):
        admit(w.state, spec(user="ada", reservation="s"), w.now)


def test_a_stored_reservation_is_read_and_written_as_it_is() -> None:
    read = Reservation.model_validate_json(STORED)
    assert (read.amounts, read.nodes, read.end) == ({"cpu": 2000, "gpu": 1000}, ["n1", "n2"], 4600.0)
    assert read.model_dump_json().encode() == STORED


STEP = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from([None, 20, 60, 150, 400]),
        st.integers(1, 3),
        st.sampled_from([0, 400, 1000]),
    ),
    st.tuples(st.just("own"), st.sampled_from(["a", "b", "c"]), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("reserve"), st.sampled_from(["a", "b", "c"]), st.integers(0, 400), st.integers(20, 300)),
    st.tuples(st.just("pass"), st.integers(1, 200), st.just(0), st.just(0)),
    st.tuples(st.just("finish"), st.integers(0, 9), st.just(0), st.just(0)),
    st.tuples(st.just("host"), st.integers(1, 3), st.just(0), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=40))
@example(
    # `a` begins where `c` ends, and a task of `c` is there up to then: its stop takes its grace after that.
    [
        ("reserve", "c", 0, 196),
        ("pass", 191, 0, 0),
        ("submit", None, 2, 0),
        ("reserve", "a", 5, 20),
        ("own", "c", 1, 0),
    ]
)
def test_the_law_what_may_last_past_a_start_leaves_what_is_kept(steps: list[tuple[Any, ...]]) -> None:
    w = world(offer("n1", cpu=4, gpus=2), offer("n2", cpu=3, gpus=1))
    for verb, what, more, last in steps:
        if verb == "submit":
            submit(w, more, walltime_seconds=what, gpu_milli=last)
        elif verb == "own" and what in w.state.reservations:
            submit(w, more, user="ada", reservation=what)
        elif verb == "reserve" and what not in w.state.reservations:
            reserve(
                w, what, start=more, seconds=last, amounts={"cpu": 2000, "gpu": 1000} if last % 2 else SECOND_CORE
            )
        elif verb == "pass":
            pass_time(w, what)
        elif verb == "finish" and w.running():
            w.finish(w.running()[what % len(w.running())])
            w.settle()
        elif verb == "host":
            asked = {"h": HostSpec("h", {"cpu": 1000 * what})}
            w.specs = Specs(hosts=asked)
            w.feed(DefinitionApplied(b"{}", w.specs))
            w.settle()
        w.check()
        for kept in w.state.reservations.values():
            for node in kept.nodes:
                law(w, kept, node)


def law(w: World, kept: Reservation, node: str) -> None:
    """What may last past its start, with all that is kept then, is no more than there is.

    A stop takes its grace. The rest of the margin is there to be used up by a start later than its placement. Only of
    two that follow each other the second one's tasks wait for that grace of the first one's: each has its whole time.
    """
    grace_seconds = w.state.settings.stop_grace_seconds
    lasting = [
        run
        for run in w.state.nodes[node].runs.values()
        if ends(w, run) + grace_seconds > kept.start and (run.ends_by is None or run.ends_by > kept.start)
    ]
    reservations = [r for r in w.state.reservations.values() if node in r.nodes and r.overlaps(kept.start, kept.end)]
    for kind in kept.amounts:
        tasks = sum(s.amount for run in lasting for s in w.state.book.shares(run.key.owner) if s.kind == kind)
        hosts = sum(h.amount(kind) for h in w.state.hosts.values() if h.anchor == node)
        at_once = kept_on(w.state, node, kept.start, kept.start + 0.001).get(kind, 0)
        assert at_once <= sum(r.amounts.get(kind, 0) for r in reservations)
        assert tasks + hosts + at_once <= w.state.book.capacity(node, kind), (kept, node, kind)
    if GPU in kept.amounts:
        loaded = {d for run in lasting for s in w.state.book.shares(run.key.owner) for d in s.devices}
        whole = len(w.state.book.device_free(node, GPU)) - len(loaded)
        assert WHOLE * whole >= kept_on(w.state, node, kept.start, kept.start + 0.001).get(GPU, 0)


def ends(w: World, run: Any) -> float:
    limit = w.state.jobs[run.key.job].spec.walltime_seconds
    began = w.now if run.started_at is None else run.started_at
    return min(float("inf") if limit is None else began + limit, run.ends_by or float("inf"))


def pass_time(w: World, seconds: int) -> None:
    """Second by second; agents say what they have started, and end what has reached its walltime."""
    for _ in range(seconds):
        w.advance(1)
        told(w)
        for run in list(w.state.runs.values()):
            if not run.assumed and ends(w, run) <= w.now:
                w.finish(run.id, -9, "walltime")
        told(w)
