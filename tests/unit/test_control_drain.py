"""A node that is to be free by a deadline, and labels that a person gives to one."""

from __future__ import annotations

from control_world import World, offer, spec
from hypothesis import given
from hypothesis import strategies as st
from pytest import mark, raises

from lavalite.base.errors import InputError
from lavalite.control import views
from lavalite.control.drain import REASON_DRAINED, drain_of
from lavalite.control.events import DrainRequested, LabelsSet, ResumeRequested, Specs
from lavalite.model.job import JobSpec
from lavalite.model.labels import changed_labels
from lavalite.model.node import Drain
from lavalite.model.selector import Selector
from lavalite.model.specs import PoolSpec


def two_nodes() -> World:
    w = World()
    w.connect("n1", offer("n1"))
    w.feed(DrainRequested("n1"))
    w.connect("n2", offer("n2"))
    w.feed(ResumeRequested("n1"))
    return w


def on_n1(w: World, job: JobSpec) -> int:
    """The job's number, once it runs on n1."""
    w.feed(DrainRequested("n2"))
    number = w.submit(job)
    w.settle()
    w.report("n1")
    w.settle()
    w.feed(ResumeRequested("n2"))
    return number


def state_of(w: World, job: int) -> str:
    return w.state.jobs[job].state.value


def pass_time(w: World, seconds: float) -> None:
    w.advance(seconds)
    w.settle()
    for name, agent in w.agents.items():
        if agent.connected:
            w.report(name)
    w.settle()


def test_until_the_deadline_what_runs_runs_on_and_then_it_is_ended() -> None:
    w = two_nodes()
    again, once = on_n1(w, spec(rerunnable=True)), on_n1(w, spec())
    w.feed(DrainRequested("n1", "new disk", deadline_seconds=60))
    for _ in range(59):
        pass_time(w, 1)
    assert len(w.state.nodes["n1"].runs) == 2 and not w.stops
    pass_time(w, 1)
    assert {stop.reason for stop in w.stops} == {REASON_DRAINED}
    assert not w.state.nodes["n1"].runs
    assert (state_of(w, again), state_of(w, once)) == ("pending", "failed")
    pass_time(w, 5)
    assert state_of(w, again) == "running" and len(w.state.nodes["n2"].runs) == 1
    assert w.state.jobs[again].charges == {}
    w.check()


def test_what_may_be_retried_is_tried_again_and_charged() -> None:
    w = two_nodes()
    job = on_n1(w, spec(retries=1))
    w.feed(DrainRequested("n1", deadline_seconds=0))
    pass_time(w, 1)
    pass_time(w, 5)
    assert state_of(w, job) == "running" and w.state.jobs[job].charges == {0: 1}


def test_a_new_leader_goes_on_with_the_deadline() -> None:
    w = two_nodes()
    job = on_n1(w, spec(rerunnable=True))
    w.feed(DrainRequested("n1", "new disk", deadline_seconds=60))
    w.feed(LabelsSet("n1", {"disk": ["new"]}))
    w.settle()
    w.advance(50)
    w.change_leader()
    kept = w.state.nodes["n1"]
    assert kept.drain == Drain("new disk", 60, 1060.0) and kept.labels == {"disk": ["new"]}
    w.connect("n1")
    w.connect("n2")
    pass_time(w, 9)
    assert state_of(w, job) == "running" and not w.stops
    pass_time(w, 1)
    assert state_of(w, job) == "pending"
    w.check()


def test_an_order_that_was_lost_is_given_again() -> None:
    w = two_nodes()
    on_n1(w, spec())
    w.agents["n1"].connected = False  # the connection is dead, and nobody has noticed
    w.feed(DrainRequested("n1", deadline_seconds=0))
    w.advance(1)
    w.settle()
    assert len(w.stops) == 1
    w.advance(5)
    w.settle()
    assert len(w.stops) == 1
    w.connect("n1")
    w.settle()
    pass_time(w, 25)
    pass_time(w, 1)
    assert len(w.stops) == 2 and not w.state.nodes["n1"].runs


def test_a_node_whose_agent_is_away_is_not_told_and_cleared_when_it_is_back() -> None:
    w = two_nodes()
    job = on_n1(w, spec())
    w.disconnect("n1")
    w.feed(DrainRequested("n1", deadline_seconds=0))
    pass_time(w, 5)
    assert not w.stops and state_of(w, job) == "running"
    w.connect("n1")
    w.settle()
    pass_time(w, 1)
    assert state_of(w, job) == "failed"


def test_a_resumed_node_has_no_deadline() -> None:
    w = two_nodes()
    job = on_n1(w, spec())
    w.feed(DrainRequested("n1", deadline_seconds=5))
    w.feed(ResumeRequested("n1"))
    pass_time(w, 10)
    assert state_of(w, job) == "running" and w.state.nodes["n1"].drain is None


ASKS = st.builds(
    DrainRequested,
    st.just("n1"),
    reason=st.none() | st.sampled_from(["", "disk", "fan"]),
    deadline_seconds=st.none() | st.integers(0, 5),
    no_deadline=st.booleans(),
)


@given(st.lists(st.tuples(ASKS, st.floats(0, 10)), min_size=1, max_size=6))
def test_asking_again_for_the_same_changes_nothing(asks: list[tuple[DrainRequested, float]]) -> None:
    drain, now = None, 0.0
    for ask, passed in asks:
        now += passed
        drain = drain_of(drain, ask, now)
        assert drain_of(drain, ask, now + 7) == drain
        assert (drain.deadline_at is None) == (drain.deadline_seconds is None)


def test_what_is_not_said_stays() -> None:
    first = drain_of(None, DrainRequested("n1", "disk", 60), 100.0)
    assert first == Drain("disk", 60, 160.0)
    assert drain_of(first, DrainRequested("n1"), 110.0) == first
    assert drain_of(first, DrainRequested("n1", "fan"), 110.0) == Drain("fan", 60, 160.0)
    assert drain_of(first, DrainRequested("n1", deadline_seconds=30), 110.0) == Drain("disk", 30, 140.0)
    assert drain_of(first, DrainRequested("n1", no_deadline=True), 110.0) == Drain("disk")


def test_labels_of_a_person_go_over_those_of_the_node_and_choose_its_pools() -> None:
    w = World()
    w.connect("n1", offer("n1", rack="r1", disk="ssd"))
    pools = {"near": PoolSpec("near", Selector.parse({"rack": "r9"}), ("cpu",))}
    w.apply(Specs(pools=pools))
    assert w.state.pool_members() == {"near": []}
    w.feed(LabelsSet("n1", {"rack": ["r9"], "row": ["a", "b"]}))
    assert w.state.pool_members() == {"near": ["n1"]}
    seen = views.node(w.state, w.state.nodes["n1"], w.now)
    assert seen["labels"] == {"rack": ["r9"], "disk": ["ssd"], "row": ["a", "b"]}
    assert seen["operator_labels"] == {"rack": ["r9"], "row": ["a", "b"]}
    job = w.submit(spec(pools={"cpu": "near"}))
    w.settle()
    assert [attempt.job for attempt in w.running()] == [job]
    w.feed(LabelsSet("n1", {}))
    assert w.state.pool_members() == {"near": []}
    w.check()


def test_labels_change_one_by_one_or_all_at_once() -> None:
    before = {"a": ["1"], "b": ["2"]}
    assert changed_labels(before, {"b": None, "c": ["3", "3"]}) == {"a": ["1"], "c": ["3"]}
    assert changed_labels(before, {"c": ["3"]}, purge=True) == {"c": ["3"]}
    assert changed_labels(before, {}, purge=True) == {}


@mark.parametrize(
    ("change", "said"),
    [
        ({"9a": ["x"]}, "'9a' is no label"),
        ({"group": ["x"]}, "groups are those of the inventory"),
        ({"a": []}, "label a has 0 values"),
        ({"a": [""]}, "label a has a value that is none"),
        ({"a": ["x\ny"]}, "label a has a value that is none"),
        ({f"a{n}": ["x"] for n in range(65)}, "would have 65 labels"),
    ],
)
def test_labels_that_are_none_are_refused(change: dict[str, list[str]], said: str) -> None:
    with raises(InputError, match=said):
        changed_labels({}, change)
