"""A store that was put back to what it was: what has been started since is not started again."""

from __future__ import annotations

import pytest
from control_world import KEYS, World, offer, spec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lavalite.control.audit import audit
from lavalite.control.events import NodeForgotten, ReleaseRequested, Specs
from lavalite.control.explain import explain
from lavalite.control.tasks import TaskKey
from lavalite.model.job import Array, Gang
from lavalite.model.specs import QueueSpec
from lavalite.model.task import AttemptId, TaskState

NODES = ("n1", "n2", "n3")


def world_of_two() -> World:
    world = World()
    world.connect("n1", offer("n1", cpu=1, gpus=1))
    world.connect("n2", offer("n2", cpu=1))
    world.settle()
    return world


def test_what_was_started_since_goes_on_and_is_not_started_again() -> None:
    world = world_of_two()
    world.disconnect("n2")
    job = world.submit(spec(hold=True))
    world.settle()
    saved = dict(world.store)
    world.feed(ReleaseRequested(job))
    world.settle()
    assert world.running() == [AttemptId(job, 0, 1)]

    world.restore(saved)
    world.feed(ReleaseRequested(job))
    world.connect("n2")
    world.settle()
    assert world.starts == {AttemptId(job, 0, 1): 1}
    assert "n1 may have started it since" in explain(world.state, world.state.jobs[job], world.now).sentence
    world.connect("n1")
    world.settle()
    assert world.state.jobs[job].state is TaskState.RUNNING and not world.state.quarantine
    world.finish(AttemptId(job, 0, 1))
    world.settle()
    assert world.state.jobs[job].state is TaskState.SUCCEEDED
    assert world.state.book.committed("n1", "cpu") == 0
    world.check()


def test_what_has_ended_since_has_ended() -> None:
    """Also where its end was acknowledged by a leader whose records are forgotten."""
    world = world_of_two()
    job = world.submit(spec())
    world.settle()
    saved = dict(world.store)
    world.finish(AttemptId(job, 0, 1))
    world.settle()
    assert world.state.jobs[job].state is TaskState.SUCCEEDED
    world.restore(saved)
    for node in ("n1", "n2"):
        world.connect(node)
    world.settle()
    assert world.state.jobs[job].state is TaskState.SUCCEEDED
    world.check()


@pytest.mark.parametrize("over", [False, True])
def test_a_later_attempt_is_adopted_once_the_one_before_it_is_known_to_have_ended(over: bool) -> None:
    """Whoever runs it tells first, while the store still has the earlier attempt alive elsewhere."""
    world = world_of_two()
    job = world.submit(spec(retries=1))
    world.settle()
    saved = dict(world.store)
    (first,) = world.running()
    node = world.state.runs[TaskKey(job, 0)].node
    other = "n2" if node == "n1" else "n1"
    world.finish(first, 1)
    world.settle()
    world.disconnect(node)
    world.advance(700)
    world.settle()
    second = AttemptId(job, 0, 2)
    assert world.running() == [second] and second in world.agents[other].running
    if over:
        world.finish(second)
        world.settle()
    world.restore(saved)
    world.connect(other)
    world.settle()
    world.connect(node)
    world.settle()
    assert world.state.jobs[job].state is (TaskState.SUCCEEDED if over else TaskState.RUNNING)
    assert not world.state.quarantine and world.starts[second] == 1
    world.check()


def test_what_holds_devices_that_nobody_can_name_is_left_to_a_person() -> None:
    world = world_of_two()
    saved = dict(world.store)
    job = world.submit(spec(cpu_milli=0, gpu_milli=1000))
    world.settle()
    record = {KEYS.job(job): world.store[KEYS.job(job)], KEYS.job_counter: world.store[KEYS.job_counter]}
    world.restore(saved | record)
    for node in ("n1", "n2"):
        world.connect(node)
    world.settle()
    assert world.state.jobs[job].held and list(world.state.quarantine) == [("n1", AttemptId(job, 0, 1))]
    assert world.running() == [AttemptId(job, 0, 1)] and not world.stops


def test_new_jobs_wait_for_nobody_and_a_node_that_is_gone_can_be_forgotten() -> None:
    world = world_of_two()
    old = world.submit(spec(hold=True))
    world.settle()
    world.restore(dict(world.store))
    world.feed(ReleaseRequested(old))
    world.connect("n1")
    new = world.submit(spec())
    world.settle()
    assert world.running() == [AttemptId(new, 0, 1)]
    world.finish(AttemptId(new, 0, 1))
    world.settle()
    assert world.state.jobs[old].state is TaskState.PENDING
    world.feed(NodeForgotten("n2"))
    world.settle()
    assert world.running() == [AttemptId(old, 0, 1)]


class Restored(RuleBasedStateMachine):
    """Jobs, ends, silent nodes, new leaders and restores of any backup, in any order. No node loses its journal."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.world.apply(Specs(queues={"normal": QueueSpec("normal", 30, default=True)}))
        for name in NODES:
            self.world.connect(name, offer(name, cpu=2))
        self.world.settle()
        self.saved = [dict(self.world.store)]

    @rule(
        n=st.integers(1, 4),
        retries=st.integers(0, 1),
        gang=st.sampled_from([None, None, Gang()]),
        exclusive=st.sampled_from([False, False, True]),
    )
    def submit(self, n: int, retries: int, gang: Gang | None, exclusive: bool) -> None:
        """A gang of which each has a node for itself has at most as many tasks as there are nodes."""
        n = min(n, len(NODES)) if gang is not None and exclusive else n
        self.world.submit(spec(array=Array(first=1, last=n), retries=retries, gang=gang, exclusive=exclusive))

    @rule(n=st.integers(1, 9))
    def write(self, n: int) -> None:
        for _ in range(n):
            self.world.write()

    @rule(pick=st.randoms(use_true_random=False), code=st.sampled_from([0, 0, 1]))
    def finish(self, pick, code: int) -> None:  # type: ignore[no-untyped-def]
        if running := self.world.running():
            self.world.finish(pick.choice(sorted(running)), code)

    @rule(seconds=st.sampled_from([0.5, 5, 60]))
    def advance(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(name=st.sampled_from(NODES))
    def cut(self, name: str) -> None:
        if self.world.agents[name].connected:
            self.world.disconnect(name)

    @rule(name=st.sampled_from(NODES))
    def connect(self, name: str) -> None:
        self.world.connect(name)

    @rule()
    def new_leader(self) -> None:
        self.world.change_leader()

    @rule()
    def back_up(self) -> None:
        self.saved.append(dict(self.world.store))

    @rule(pick=st.randoms(use_true_random=False))
    def restore(self, pick) -> None:  # type: ignore[no-untyped-def]
        self.world.restore(dict(pick.choice(self.saved)))

    @invariant()
    def laws(self) -> None:
        if hasattr(self, "world"):
            self.world.check()
            assert audit(KEYS, self.world.store, self.world.specs).faults == []
            self.world.what_runs_has_not_failed()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        # Six places for all that has been submitted, and some rounds for back-offs.
        for _ in range(20 + sum(job.unfinished for job in world.state.jobs.values())):
            for name in NODES:
                world.connect(name)
            world.settle()
            for attempt in sorted(world.running()):
                world.finish(attempt)
            world.settle()
            world.advance(700)
            if all(not job.unfinished for job in world.state.jobs.values()):
                break
        assert all(not job.unfinished for job in world.state.jobs.values())
        world.check()


TestRestored = Restored.TestCase
TestRestored.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
