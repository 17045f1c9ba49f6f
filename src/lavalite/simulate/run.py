"""One run of a scenario: nodes join, jobs come, what is to go wrong does, until all is over.

It ends when all jobs have ended and all that happens once is over; at `until`; or when nothing has moved for an hour
and nothing ever will.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, repeat

from lavalite.base.errors import InputError
from lavalite.control.admission import admit
from lavalite.control.events import Specs, Submitted
from lavalite.control.explain import explain
from lavalite.control.settings import Settings
from lavalite.control.tasks import TaskKey
from lavalite.control.views import node_state
from lavalite.control.workload import LAST_JOBS, workload_of
from lavalite.model.job import Dependency, JobRecord, JobSpec, Request
from lavalite.model.resources import DEVICE, UNITS, NodeOffer, Resource
from lavalite.model.specs import NodeCapacity
from lavalite.model.task import AttemptId, TaskState
from lavalite.placement.columns import Workload
from lavalite.simulate.arrivals import JobPlan, plans_of
from lavalite.simulate.cluster import KEYS, SimulatedCluster
from lavalite.simulate.draws import source_of
from lavalite.simulate.faults import Faults
from lavalite.simulate.measures import LiveAttempt, Measures
from lavalite.simulate.report import Report, Snapshot, report_of, snapshot_of
from lavalite.simulate.scenario import Scenario
from lavalite.simulate.story import HEALTH, JOB, RESCHEDULER, SCENARIO, SCHEDULER, Line, Story

STALLED_SECONDS = 3600.0
AGAIN_SECONDS = 1.0
MOST_REASONS = 5
MOST_UNANSWERED = 1000
"""Before it is looked for those that are durable."""
NODE_SAYS = {"ready": "is healthy again", "lost": "is lost", "drained": "is drained"}
LOST_REASONS = ("lost", "fence")


@dataclass(slots=True)
class Placed:
    """A job that was let in."""

    plan: JobPlan
    number: int
    """Of its plan, from 0."""
    name: str
    is_array: bool
    submitted_at: float
    request: Request
    amounts: Mapping[str, int]
    user: str


class Simulation:
    """A scenario under way. `hand_on` is given each line of its story, `show` each snapshot."""

    def __init__(self, scenario: Scenario, hand_on: Callable[[Line], None], show: Callable[[Snapshot], None]) -> None:
        self.scenario, self._show = scenario, show
        self.measures = Measures()
        self.snapshots: list[Snapshot] = []
        self._story = Story(hand_on, every_task=scenario.top.events)
        told = scenario.top.settings
        self.cluster = SimulatedCluster(
            with_policy(scenario.specs, scenario.top.policy),
            Settings(
                beat_seconds=float(told.beat),
                silent_after_seconds=float(told.silent_after),
                stop_grace_seconds=float(told.stop_grace),
            ),
            self,
            self._work,
            tick_seconds=float(told.tick),
            store_seconds=told.store_ms / 1000,
            network_seconds=told.network_ms / 1000,
        )
        self._jobs: dict[int, Placed] = {}
        self._ids: dict[str, list[int]] = {}
        """Of each entry, its jobs."""
        self._unanswered: dict[int, JobSpec] = {}
        """Jobs that may not be durable yet."""
        self._most_unanswered = MOST_UNANSWERED
        self._untold: list[tuple[Placed, JobSpec]] = []
        """Jobs of which no leader knows, since the one that was told is lost."""
        self._telling = False
        self._suspects: dict[str, str] = {}
        """Nodes that may not be well, with what was said of them last."""
        self._coming = 0
        """So many nodes and jobs are yet to come."""
        self.submitted_tasks = 0
        self.joined_at: dict[str, float] = {}
        self._moved_at = 0.0
        self._begin()
        self._faults = Faults(scenario, self.cluster, lambda at, text: self._story.tell(at, SCENARIO, text))

    def _begin(self) -> None:
        scenario, seed = self.scenario, self.scenario.top.seed
        for plan in scenario.nodes:
            at = plan.joins.seconds(source_of(seed, "node", plan.capacity.name))
            self._coming += 1
            self.cluster.at(at, self._join, plan.capacity)
        for jobs in plans_of(scenario):
            self._coming += 1
            self.cluster.at(jobs.first_at(), self._arrive, jobs, 0)
        self.cluster.at(float(scenario.top.snapshot_every), self._snapshot)

    # --- to its end ---------------------------------------------------------------------------------------------

    def run(self, until: float | None = None) -> Report:
        """Let all of it happen, in no time; how it went."""
        while True:
            why = self.over()
            if why is None and self.passes(until):
                why = "until"
            if why is not None:
                return self.report(why)
            self.cluster.step()

    def passes(self, until: float | None) -> bool:
        """Whether nothing is due any more before that time; then that time it is."""
        due = self.cluster.next_due
        if until is None or (due is not None and due <= until):
            return False
        self.cluster.now = max(self.cluster.now, until)
        return True

    def over(self) -> str | None:
        """Why it is over; None while it is not."""
        if self._coming or self._faults.pending or not self.cluster.leads or self._telling:
            return None
        if not self.cluster.state.unfinished_tasks and self.cluster.leads and not self.measures.live:
            return "done"
        idle = not self.measures.live and self.cluster.leads and not self.cluster.cut
        if idle and self.cluster.now - self._moved_at > STALLED_SECONDS:
            return "stalled"
        return None

    def report(self, why: str) -> Report:
        return report_of(self, why)

    # --- what is to come ------------------------------------------------------------------------------------------

    def _join(self, capacity: NodeCapacity) -> None:
        self._coming -= 1
        self._moved_at = self.cluster.now
        self.joined_at[capacity.name] = self.cluster.now
        if self._story.every_task or self.cluster.now:
            self._story.tell(self.cluster.now, SCENARIO, f"{capacity.name} joins")
        self.cluster.join(capacity.name, offer_of(capacity))

    def _arrive(self, jobs: JobPlan, number: int) -> None:
        if not self.cluster.leads:
            self.cluster.after(AGAIN_SECONDS, self._arrive, jobs, number)
            return
        self._submit(jobs, number)
        following = jobs.next_after(number, self.cluster.now)
        if following is None:
            self._coming -= 1
        else:
            self.cluster.at(following, self._arrive, jobs, number + 1)

    def _submit(self, jobs: JobPlan, number: int) -> None:
        spec, state = jobs.spec, self.cluster.state
        if jobs.after:
            ids = [job for entry in jobs.after for job in self._ids.get(entry, ()) if job in state.jobs]
            spec = spec.model_copy(update={"depends": [Dependency(job=job) for job in ids[-1000:]]})
        self._moved_at = self.cluster.now
        try:
            admit(state, spec, self.cluster.wall)
        except InputError as error:
            self.measures.refused += 1
            self._story.tell(self.cluster.now, SCENARIO, f"{jobs.name} is refused: {error.fault.message}")
            return
        placed = Placed(
            jobs,
            number,
            jobs.name,
            spec.array is not None,
            self.cluster.now,
            spec.request,
            spec.request.amounts(),
            spec.user,
        )
        self.submitted_tasks += len(spec.indices())
        self._let_in(placed, spec)

    def _let_in(self, placed: Placed, spec: JobSpec) -> None:
        """It has no answer before it is durable: whoever leads then is told again."""
        job, tasks = self.cluster.state.next_job_id(), len(spec.indices())
        self._jobs[job] = placed
        self._ids.setdefault(placed.name, []).append(job)
        if len(self._unanswered) >= self._most_unanswered:
            self._forget_answered()
            self._most_unanswered = 2 * max(MOST_UNANSWERED, len(self._unanswered))
        self._unanswered[job] = spec
        if self._story.every_task:
            several = f", {tasks} tasks" if tasks > 1 else ""
            self._story.tell(self.cluster.now, SCENARIO, f"job {job} ({placed.name}) is submitted{several}")
        self.cluster.feed(Submitted(JobRecord(id=job, spec=spec, submitted_at=self.cluster.wall)))

    def _forget_answered(self) -> None:
        store = self.cluster.store
        self._unanswered = {j: spec for j, spec in self._unanswered.items() if KEYS.job(j) not in store}

    def _leader_lost(self) -> None:
        """What it had not written has got no answer, and its numbers are given out again."""
        self._forget_answered()
        for job, spec in self._unanswered.items():
            placed = self._jobs.pop(job)
            self._ids[placed.name].remove(job)
            self._untold.append((placed, spec))
        self._unanswered = {}

    def _tell_again(self) -> None:
        """To whoever leads now."""
        self._telling = False
        if self.cluster.leads:
            again, self._untold = self._untold, []
            for placed, spec in again:
                self._let_in(placed, spec)

    def _work(self, attempt: AttemptId) -> tuple[float | None, int]:
        placed = self._jobs[attempt.job]
        return placed.plan.work(placed.number, attempt.task, attempt.attempt)

    # --- what is told of it (cluster.Watcher) -----------------------------------------------------------------------

    def assigned(self, now: float, key: TaskKey, attempt: int, node: str) -> None:
        placed = self._jobs[key.job]
        self._moved_at = now
        self.measures.assigned(key, LiveAttempt(node, attempt, placed.user, placed.amounts, now))
        if self._story.every_task:
            again = f", attempt {attempt}" if attempt > 1 else ""
            self._story.tell(now, SCHEDULER, f"{self._task(key)} Pending → Assigned to {node}{again}")

    def started(self, now: float, attempt: AttemptId, node: str) -> None:
        self.measures.started(attempt, self._jobs[attempt.job].submitted_at, now)
        if self._story.every_task:
            key = TaskKey(attempt.job, attempt.task)
            self._story.tell(now, JOB, f"{self._task(key)} Assigned → Running on {node}")

    def stopped(self, now: float, attempt: AttemptId, node: str, reason: str) -> None:
        if self._story.every_task:
            key = TaskKey(attempt.job, attempt.task)
            self._story.tell(now, SCHEDULER, f"{self._task(key)} on {node} is stopped: {reason}")

    def concluded(self, now: float, attempt: AttemptId, node: str, reason: str, after: str) -> None:
        key = TaskKey(attempt.job, attempt.task)
        found = self.measures.live.get(key)
        if found is None or found.attempt != attempt.attempt:
            return
        self._moved_at = now
        self.measures.released(key, now)
        if after != "pending":
            self.measures.finished(key, found, self._jobs[key.job].submitted_at, after, now)
            if self._story.every_task:
                self._story.tell(now, JOB, f"{self._task(key)} Running → {after.capitalize()} on {node}")
            return
        if reason in LOST_REASONS:
            self._evicted(key, node, now)
        else:
            self.measures.preemptions += reason == "preempted"
            self.measures.retries += reason != "preempted"
            if self._story.every_task:
                why = f" ({reason})" if reason != "exit" else ""
                self._story.tell(now, JOB, f"{self._task(key)} Running → Pending, to be tried again{why}")

    def connected(self, now: float, node: str) -> None:
        self._look_at(node, now)

    def led(self, now: float, text: str) -> None:
        self._moved_at = now
        self._story.tell(now, SCENARIO, text)
        if self.cluster.leads:
            self._telling = True
            self.cluster.after(AGAIN_SECONDS, self._tell_again)
        else:
            self._leader_lost()

    def ticked(self, now: float) -> None:
        for name in self.cluster.cut:
            self._suspects.setdefault(name, "ready")
        for name in sorted(self._suspects):
            self._look_at(name, now)

    def _look_at(self, name: str, now: float) -> None:
        """What has become of the node since it was looked at last, and of what it held."""
        before, node = self._suspects.get(name), self.cluster.state.nodes.get(name)
        if before is None or node is None:
            return
        is_now = node_state(self.cluster.state, node, self.cluster.wall)
        if is_now != before:
            self._suspects[name] = is_now
            said = NODE_SAYS.get(is_now, "is unhealthy")
            silent = self.cluster.wall - node.heard_at
            since = f": no beat for {int(silent)} s" if is_now not in ("ready", "drained") else ""
            self._story.tell(now, HEALTH, f"{name} {said}{since}")
        if is_now == "ready" and name not in self.cluster.cut:
            del self._suspects[name]
        runs = self.cluster.state.runs
        for key, live in [(key, live) for key, live in self.measures.live.items() if live.node == name]:
            run = runs.get(key)
            if run is None or run.attempt != live.attempt:
                self._given_up(key, name, now)

    def _given_up(self, key: TaskKey, node: str, now: float) -> None:
        """Control has concluded by time alone what became of it."""
        job = self.cluster.state.jobs.get(key.job)
        position = job.position_of(key.task) if job is not None else None
        state = job.state_of(position).value if job is not None and position is not None else "failed"
        found = self.measures.released(key, now)
        if state in ("succeeded", "failed", "cancelled"):
            self.measures.finished(key, found, self._jobs[key.job].submitted_at, state, now)
            self._story.tell(now, RESCHEDULER, f"{self._task(key)} is given up with {node}: {state.capitalize()}")
        else:
            self._evicted(key, node, now)

    def _evicted(self, key: TaskKey, node: str, now: float) -> None:
        self._moved_at = now
        self.measures.evictions += 1
        self._story.tell(now, RESCHEDULER, f"{self._task(key)} Evicted from {node} → Pending")

    def _task(self, key: TaskKey) -> str:
        placed = self._jobs[key.job]
        index = f"[{key.task}]" if placed.is_array else ""
        return f"job {key.job}{index} ({placed.name})"

    def node_of_each(self) -> Iterator[tuple[int, str]]:
        """The job and the node of every attempt that holds something now."""
        return ((key.job, live.node) for key, live in self.measures.live.items())

    def waits_so_far(self) -> Iterator[float]:
        """Of each task that has not started yet; else a run that ends early would show those alone who were lucky."""
        begun = Counter(key.job for key in self.measures.begun if key not in self.measures.live)
        for number, job in self.cluster.state.jobs.items():
            waiting = job.by_state().get(TaskState.PENDING, 0) - begun[number]
            yield from repeat(self.cluster.now - self._jobs[number].submitted_at, max(0, waiting))

    def users(self) -> set[str]:
        """Whose jobs were let in, whether they ran or not."""
        return {placed.user for placed in self._jobs.values()}

    def workload(self) -> Workload:
        """What was asked for of late, whether a policy goes by it or not."""
        jobs = islice(reversed(self._jobs.values()), LAST_JOBS)
        asked = [(placed.request, 1) for placed in jobs]
        return Workload(workload_of(asked))

    def why_unfinished(self) -> list[str]:
        """Of the first few that wait, what they wait for."""
        state, said = self.cluster.state, list[str]()
        for number in sorted(state.jobs):
            if len(said) < MOST_REASONS and TaskState.PENDING in state.jobs[number].by_state():
                said.append(explain(state, state.jobs[number], self.cluster.wall).sentence)
        return said

    def _snapshot(self) -> None:
        self.cluster.beat()
        shown = snapshot_of(self)
        self.snapshots.append(shown)
        self._show(shown)
        self.cluster.after(float(self.scenario.top.snapshot_every), self._snapshot)


def with_policy(specs: Specs, policy: str) -> Specs:
    """The same, with that policy in every queue; empty: as they are."""
    if not policy:
        return specs
    return replace(specs, queues={name: replace(queue, policy=policy) for name, queue in specs.queues.items()})


def offer_of(capacity: NodeCapacity) -> NodeOffer:
    """What the node's LIM would find."""
    resources = [
        Resource(
            name=f"{capacity.name}/{kind}",
            kind=kind,
            amount=amount,
            unit=UNITS.get(kind, DEVICE),
            owner=capacity.name,
            devices=list(capacity.devices.get(kind, ())),
        )
        for kind, amount in capacity.amounts.items()
    ]
    return NodeOffer(node=capacity.name, boot_id="boot-1", labels=capacity.labels, resources=resources)
