"""Whatever is submitted, ends and goes: preemption keeps its laws.

committed + free = capacity · nobody is preempted by an equal or a lower queue · none more often than its limit, and
none that could not be run again · no tasks are stopped for each other without end · who others were preempted for
starts, and for one task no fewer would have done
"""

from __future__ import annotations

from itertools import combinations

from control_rules import ClusterRules
from control_world import World, offer, spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from lavalite.control.events import CancelRequested, ResumeRequested, Specs
from lavalite.control.settings import Settings
from lavalite.control.tasks import TaskKey
from lavalite.model.job import Array, Gang
from lavalite.model.specs import Preemption, QueueSpec
from lavalite.model.task import AttemptId, TaskState

NODES = {"n1": offer("n1", cpu=4, gpus=2), "n2": offer("n2", cpu=2), "n3": offer("n3", cpu=3, gpus=1)}
LIMITS = {"low": 1, "middle": 2, "urgent": None}
PRIORITIES = {"low": 10, "middle": 20, "urgent": 30}
JOBS = st.fixed_dictionaries(
    {
        "queue": st.sampled_from([*PRIORITIES]),
        "cpu_milli": st.sampled_from([500, 1000, 2000, 3000]),
        "gpu_milli": st.sampled_from([0, 0, 0, 500, 1000]),
        "array": st.none() | st.builds(lambda n: Array(first=1, last=n), st.integers(2, 4)),
        "rerunnable": st.sampled_from([True, True, False]),
        "priority": st.integers(-1, 1),
        "walltime_seconds": st.sampled_from([None, None, 100, 600]),
        "exclusive": st.sampled_from([False, False, False, True]),
    }
)


class Preempting(ClusterRules):
    """Three queues, of which the upper two preempt. `mode` is that of both."""

    @initialize(mode=st.sampled_from(["requeue", "cancel", "suspend"]), planned=st.sampled_from([0, 1, 3]))
    def begin(self, mode: str, planned: int) -> None:
        self.mode = mode
        self.world = World(Settings(max_placements=5, keep_finished_jobs=1000))
        rule = Preemption(mode)
        self.queues = {
            name: QueueSpec(
                name,
                priority,
                default=name == "low",
                planned_starts=planned,
                max_preemptions=LIMITS[name],
                preemption=rule if name != "low" else None,
            )
            for name, priority in PRIORITIES.items()
        }
        self.world.apply(Specs(queues=self.queues))
        for name, found in NODES.items():
            self.world.connect(name, found)

    @rule(job=JOBS, gang=st.sampled_from([None, None, None, Gang(), Gang(nodes_least=2)]))
    def submit(self, job: dict[str, object], gang: Gang | None) -> None:
        if gang is not None and isinstance(job["array"], Array):
            job["gang"] = gang
        self.world.submit(spec(**job))

    @rule(name=st.sampled_from([*NODES]))
    def report(self, name: str) -> None:
        self.world.report(name)

    @rule(pick=st.randoms(use_true_random=False))
    def cancel(self, pick) -> None:  # type: ignore[no-untyped-def]
        if self.world.state.jobs:
            self.world.feed(CancelRequested(pick.choice(sorted(self.world.state.jobs))))

    @rule(name=st.sampled_from([*NODES]))
    def lose(self, name: str) -> None:
        if self.world.agents[name].connected:
            self.world.disconnect(name)
        else:
            self.world.connect(name)

    @rule()
    def change_leader(self) -> None:
        self.world.change_leader()
        for name in NODES:
            self.world.connect(name)

    @invariant()
    def laws(self) -> None:
        if not hasattr(self, "world"):
            return
        w = self.world
        w.check()
        for run in w.state.runs.values():
            if run.preempted:
                self._check_victim(run.id, run.preempted)
        for job in w.state.jobs.values():
            limit = LIMITS[job.queue]
            assert limit is None or max(job.preemptions.values(), default=0) <= limit
            assert self.mode != "requeue" or job.spec.rerunnable or not job.preemptions

    def _check_victim(self, attempt: AttemptId, why: str) -> None:
        words = why.split()  # preempted for job 7 of queue urgent
        assert words[:3] == ["preempted", "for", "job"] and words[4:6] == ["of", "queue"]
        victim = self.world.state.jobs[attempt.job]
        assert PRIORITIES[words[6]] > PRIORITIES[victim.queue]

    def teardown(self) -> None:
        """All nodes are back, and nothing new comes: then it comes to rest, and the highest of all has its room."""
        if not hasattr(self, "world"):
            return
        w = self.world
        for name in NODES:
            w.feed(ResumeRequested(name))
            if not w.agents[name].connected:
                w.connect(name)
        for _ in range(12):  # each task is preempted so often at most; then nobody is stopped any more
            self._round()
        before = len(w.stops)
        for _ in range(12):
            self._round()
        assert len(w.stops) == before, "tasks are stopped for each other without end"
        for run in w.state.runs.values():
            assert not run.preempted or run.parked
        self._all_end()

    def _round(self) -> None:
        w = self.world
        w.settle()
        for name in NODES:
            w.report(name)
        w.settle()
        w.advance(30)
        w.settle()
        w.check()

    def _all_end(self) -> None:
        """Everything runs in the end, if only what runs ends."""
        w = self.world
        for _ in range(200):
            if not any(job.unfinished for job in w.state.jobs.values()):
                break
            for attempt in w.running():
                if w.state.runs[TaskKey(*attempt[:2])].state is not TaskState.SUSPENDED:
                    w.finish(attempt)
            self._round()
            w.advance(300)
        left = [job for job in w.state.jobs.values() if job.unfinished]
        assert all(job.spec.gang is not None for job in left), f"{[job.id for job in left]} never ended"


TestPreempting = Preempting.TestCase
TestPreempting.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


# --- one task, against all that could be chosen ---------------------------------------------------------------------


@given(
    nodes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    low=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2)), max_size=9),
    asks=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_the_fewest_are_stopped_and_the_job_starts(nodes: list[int], low: list[tuple[int, int]], asks: int) -> None:
    """`low` are cores and job priorities. All sets of victims are tried: none that is enough has fewer."""
    w = World()
    w.apply(
        Specs(
            queues={
                "low": QueueSpec("low", 10, default=True),
                "urgent": QueueSpec("urgent", 30, preemption=Preemption("requeue")),
            }
        )
    )
    for number, cpu in enumerate(nodes, 1):
        w.connect(f"n{number}", offer(f"n{number}", cpu=cpu, memory=64 * 2**30))
    for cores, priority in low:
        w.now += 1
        w.submit(spec(cpu_milli=cores * 1000, priority=priority, rerunnable=True))
        w.settle()
    held: dict[str, dict[int, int]] = {f"n{number}": {} for number in range(1, len(nodes) + 1)}
    for key, run in w.state.runs.items():
        held[run.node][key.job] = low[key.job - 1][0]
    free = {f"n{n}": cpu - sum(held[f"n{n}"].values()) for n, cpu in enumerate(nodes, 1)}
    enough = [
        len(some)
        for name, tasks in held.items()
        for many in range(len(tasks) + 1)
        for some in combinations(tasks, many)
        if free[name] + sum(tasks[job] for job in some) >= asks
    ]
    urgent = w.submit(spec(queue="urgent", cpu_milli=asks * 1000))
    w.settle()
    fewest = min(enough, default=None)
    assert len(w.stops) <= (fewest or 0) or (fewest is not None and fewest > 2)
    for name in w.agents:
        w.report(name)
    w.settle()
    w.check()
    assert any(attempt.job == urgent for attempt in w.running()) == (fewest is not None)
