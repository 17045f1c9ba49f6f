"""What is asked for: jobs, what they depend on, and those that wait, class by class."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lavalite.control import dependencies
from lavalite.control.events import Specs
from lavalite.control.fairshare import FairQueue
from lavalite.control.neighbours import Neighbours, subjects_of
from lavalite.control.order import Order
from lavalite.control.plan import Plan
from lavalite.control.settings import Settings
from lavalite.control.supply import Supply
from lavalite.control.tasks import BLOCKED, NONE_UNMET, READY, WAITING, IllegalTransition, JobState
from lavalite.model.affinity import Subject
from lavalite.model.job import JobRecord
from lavalite.model.reservation import Reservation
from lavalite.model.task import before_restore
from lavalite.placement.asleep import Sleepers
from lavalite.placement.classes import PartClass, RequestClass
from lavalite.placement.ranking import Ranking
from lavalite.placement.registry import Rankings
from lavalite.store.keys import Keys

MAY_START, SHOULD_HAVE_STARTED = -1, -2
"""In place of a task's position, what a time means for a whole job."""


@dataclass(slots=True, eq=False)
class WaitingClass:
    """Jobs that ask for the same in the same queue. `jobs` is sorted: (-priority, id)."""

    key: tuple[Any, ...]
    queue: str
    policy: str
    group: str
    user: str
    """Of whom, where queue or pools count users or groups apart; else both are empty."""
    wanted: RequestClass
    shape: tuple[Any, ...]
    """What it has in common with the classes of other users that ask for the same; they share `wanted`."""
    parts: tuple[PartClass, ...] = ()
    """What its jobs ask for where that differs by part; `wanted` is the first one's then."""
    jobs: list[tuple[int, int]] = field(default_factory=list)
    planned: int = 0
    """So many of its first jobs had no room in this pass, and have a planned start; it is the next one's turn."""

    @property
    def each(self) -> list[RequestClass]:
        """All that its tasks ask for, part by part."""
        return [part.wanted for part in self.parts] or [self.wanted]

    @property
    def first(self) -> tuple[int, int] | None:
        """The job whose turn it is; None if there is none."""
        return self.jobs[self.planned] if self.planned < len(self.jobs) else None

    def add(self, place: tuple[int, int]) -> None:
        """Another job waits. One that comes before those that this pass has planned has its turn in the next."""
        insort(self.jobs, place)
        self.planned += place < self.jobs[self.planned] if self.planned else 0

    def remove(self, place: tuple[int, int]) -> None:
        at = bisect_left(self.jobs, place)
        del self.jobs[at]
        self.planned -= at < self.planned


@dataclass(slots=True)
class Cancel:
    """Of a whole job: the tasks before `position` have been dealt with. With `force`, UNKNOWN ones are given up.

    With `waiting` only what holds nothing ends, and `why` says why.
    """

    position: int = 0
    force: bool = False
    by: str = ""
    waiting: bool = False
    why: str = "cancelled before it started"


class Demand(Supply):
    """The middle floor of ClusterState."""

    def __init__(self, keys: Keys, epoch: tuple[int, int], settings: Settings | None = None) -> None:
        super().__init__(keys, epoch, settings)
        self.jobs: dict[int, JobState] = {}
        self.submit_keys: dict[str, int] = {}
        self.dependents: dict[int, set[int]] = {}
        self.watchers: dict[int, list[tuple[int, int]]] = {}
        """Job id → (job, place of the dependency) of those to which its single tasks matter."""
        self._cursors: dict[tuple[int, int], int] = {}
        """(job, place of the dependency) → how many of the tasks that it names are known to be as needed."""
        self.components: dict[str, dict[int, None]] = {}
        """Whose compute groups there are: jobs that have not ended, by component."""
        self.impatient: dict[int, None] = {}
        """Jobs of which something should have been placed by now, or else they are cancelled."""
        self.finished: dict[int, float] = {}
        """Job id → when it ended, in that order."""
        self.classes: dict[tuple[Any, ...], WaitingClass] = {}
        self.order = Order()
        """Whose turn it is, of all classes."""
        self.fair: dict[str, FairQueue] = {}
        """By queue, those that have fairshare."""
        self.asleep = Sleepers()
        """Shapes that found no room, while nothing was freed that could be enough: they are not looked at."""
        self.neighbours = Neighbours()
        self.looked_at = 0
        """For how many classes room was looked for in the last pass."""
        self.workload_due = 0
        """Up to which job id the workload is known well enough."""
        self._rankings = Rankings()
        self.gangs_moved: set[int] = set()
        """Jobs whose tasks start together, and of which one has ended, or did not start."""
        self.plan = Plan()
        self.without_victims: dict[tuple[Any, ...], tuple[float, int]] = {}
        """Shapes that found nobody to preempt (control.preemption): when, and as of which change."""
        self.unfinished_tasks = 0
        """Of all jobs."""
        self.unfinished_jobs: Counter[str] = Counter()
        """By user."""
        self.cancels: dict[int, Cancel] = {}
        """Jobs that are being cancelled, and how far that is."""
        self.untold: set[str] = set()
        """Nodes whose agents have not told their journals since the store was restored."""
        self.wake_told: float | None = None
        self._wakes: list[tuple[float, int, int]] = []
        self.last_job_id = 0

    def next_job_id(self) -> int:
        """A job id that was never given out. Make a Submitted of it, or let it be lost."""
        self.last_job_id += 1
        return self.last_job_id

    def _set_specs(self, specs: Specs) -> None:
        """What waits is sorted anew: queues, policies and pools may have changed."""
        super()._set_specs(specs)
        self._set_fair()
        self._sort_anew()

    def _sort_anew(self) -> None:
        """Sort all that waits into classes again."""
        self.classes.clear()
        self.order.clear()
        self.asleep.wake_all()
        for job in self.jobs.values():
            job.class_key = ()
            self.settle_waiting(job)

    # --- jobs -------------------------------------------------------------------------------------------------

    def add_job(self, record: JobRecord) -> JobState:
        """Take a job in; all its tasks are PENDING."""
        if record.id in self.jobs:
            raise IllegalTransition(f"job {record.id} exists already")
        if not record.spec.queue:
            # The default may be another one tomorrow; the job stays where it was submitted.
            spec = record.spec.model_copy(update={"queue": self.default_queue})
            record = record.model_copy(update={"spec": spec})
        job = self._admit(record)
        self.look_for_dependencies(job)
        self.unfinished_tasks += job.unfinished
        self.unfinished_jobs[job.user] += bool(job.unfinished)
        self._watch(job)
        self.dirty.jobs[job.id] = None
        self.settle_waiting(job)
        return job

    def _admit(self, record: JobRecord) -> JobState:
        job = JobState.new(record.id, record.spec, record.submitted_at, record.submit_key)
        job.queue = record.spec.queue or self.default_queue
        self.jobs[job.id] = job
        self.last_job_id = max(self.last_job_id, job.id)
        if job.submit_key:
            self.submit_keys[job.submit_key] = job.id
        for place, dependency in enumerate(record.spec.depends):
            self.dependents.setdefault(dependency.job, set()).add(job.id)
            if dependencies.by_task(dependency):
                self.watchers.setdefault(dependency.job, []).append((job.id, place))
        if record.spec.not_before is not None:
            heapq.heappush(self._wakes, (record.spec.not_before, job.id, MAY_START))
            job.sleeping = True
        if record.spec.start_within_seconds is not None:
            until = record.submitted_at + record.spec.start_within_seconds
            heapq.heappush(self._wakes, (until, job.id, SHOULD_HAVE_STARTED))
        if record.spec.component:
            self.components.setdefault(record.spec.component, {})[job.id] = None
        return job

    def remove_job(self, job: JobState) -> None:
        """Forget a finished job altogether."""
        if job.unfinished:
            raise IllegalTransition(f"job {job.id} has not ended")
        del self.jobs[job.id]
        self.finished.pop(job.id, None)
        self.cancels.pop(job.id, None)
        self.submit_keys.pop(job.submit_key, None)
        self.dependents.pop(job.id, None)
        self.watchers.pop(job.id, None)
        for place, dependency in enumerate(job.spec.depends):
            self.dependents.get(dependency.job, set()).discard(job.id)
            self._cursors.pop((job.id, place), None)
            if (job.id, place) in self.watchers.get(dependency.job, ()):
                self.watchers[dependency.job].remove((job.id, place))
        self.dirty.gone_jobs[job.id] = job

    def component_left(self, job: JobState) -> None:
        """The job is nobody's compute group any more: it has ended."""
        component = job.spec.component
        if component and (left := self.components.get(component)) is not None:
            left.pop(job.id, None)
            if not left:
                del self.components[component]

    def set_held(self, job: JobState, held: bool) -> None:
        if job.held != held:
            job.held, job.hold_changed = held, True
            self.dirty.chunks[job.id, 0] = None
            self.settle_waiting(job)

    def set_cancelling(self, job: JobState) -> None:
        """Let nothing more of the job start."""
        if not job.cancelling:
            job.cancelling = True
            self.dirty.chunks[job.id, 0] = None
            self.settle_waiting(job)

    def set_reservation(self, reservation: Reservation) -> None:
        """Add one. Whether it fits was found out before."""
        self.reservations[reservation.name] = reservation
        self.dirty.reservations[reservation.name] = None
        self.ends_changed.update(reservation.nodes)
        self.schedule_wanted = self.keeps_changed = True
        if len(self.reservations) == 1:
            self._sort_anew()

    def set_drained(self, name: str, drained: bool) -> None:
        """Let nothing more start in a reservation, or let it again."""
        reservation = self.reservations[name]
        if reservation.drained != drained:
            self.reservations[name] = reservation.model_copy(update={"drained": drained})
            self.dirty.reservations[name] = None
            self.schedule_wanted = self.keeps_changed = True

    def set_next_time(self, reservation: Reservation) -> None:
        """One that recurs is at its next time: nothing is kept for it any more until that."""
        self.reservations[reservation.name] = reservation
        self.unused_since.pop(reservation.name, None)
        self.dirty.reservations[reservation.name] = None
        self.ends_changed.update(reservation.nodes)
        self.schedule_wanted = self.compose_wanted = self.keeps_changed = True

    def remove_reservation(self, name: str) -> None:
        """Forget one: nothing is kept for it any more. What its tasks hold they go on holding."""
        self.ends_changed.update(self.reservations.pop(name).nodes)
        self.unused_since.pop(name, None)
        self.dirty.reservations[name] = None
        self.schedule_wanted = self.compose_wanted = self.keeps_changed = True
        if not self.reservations:
            self._sort_anew()

    def walltime_seconds(self, job: JobState) -> int | None:
        """After how long its tasks are ended: the job's own limit, and its queue's."""
        limits = [job.asks.walltime_seconds, self.queue(job.queue).walltime_seconds]
        return min((limit for limit in limits if limit is not None), default=None)

    def waits_for_journals(self, job: JobState) -> bool:
        """Whether a node may have started of it what a restored store does not know; nobody else may start that."""
        return bool(self.untold) and before_restore(job.id, self.epoch)

    def heard_out(self, name: str) -> None:
        """A node has told what it started, or will never tell."""
        if name in self.untold:
            self.untold.discard(name)
            if not self.untold:
                for job in self.jobs.values():
                    self.settle_waiting(job)
                    self.gang_moved(job)

    def gang_moved(self, job: JobState) -> None:
        """If it is a gang, what has become of the others is looked at before the decision is over."""
        if job.is_gang:
            self.gangs_moved.add(job.id)

    def _watch(self, job: JobState) -> None:
        """From now on it matters where those are that the job is to be near to, or apart from."""
        if not job.asks.affinity:
            return
        watched, repelled = self.neighbours.watch(job)
        if watched:
            self._count_neighbours(watched)
        for other in self.jobs.values() if repelled else ():
            if other.class_key and not repelled.isdisjoint(subjects_of(other)):
                self._leave_class(other)
                self.settle_waiting(other)

    def _count_neighbours(self, subjects: set[Subject]) -> None:
        """Where those are that are watched since now."""

    def selections_in_use(self) -> set[str]:
        return {name for waiting in self.classes.values() for name in waiting.wanted.labels}

    def settle_waiting(self, job: JobState) -> None:
        """Let the job wait with its class, or no longer, as its tasks, holds and dependencies say."""
        waits = bool(job.startable) and not (job.held or job.cancelling or job.unmet or job.sleeping)
        waits = waits and not self.waits_for_journals(job)
        place = (-job.asks.priority, job.id)
        if waits and not job.class_key:
            found = self._class_of(job)
            job.class_key = found.key
            found.add(place)
            if found.first == place:
                self.order.lower(found, self.fair.get(found.queue))
            if self._comes_before_a_plan(found.queue, place) or (
                found.first == place and self.asleep.is_kept(found.shape)
            ):
                self.asleep.forget(found.shape)
            self.schedule_wanted = True
        elif not waits and job.class_key:
            waiting = self.classes[job.class_key]
            if waiting.first == place and self.asleep.is_kept(waiting.shape):
                self.asleep.forget(waiting.shape)
                self.schedule_wanted = True  # the next one may be over in time
            self._leave_class(job)
            if job.id in self.plan.starts:
                self.schedule_wanted = self.keeps_changed = True  # what was kept for it is there for others

    def _leave_class(self, job: JobState) -> None:
        waiting = self.classes[job.class_key]
        waiting.remove((-job.asks.priority, job.id))
        if not waiting.jobs:
            del self.classes[job.class_key]
            if self.order.discard(waiting):
                self.asleep.forget(waiting.shape)
        job.class_key = ()

    def _comes_before_a_plan(self, queue: str, place: tuple[int, int]) -> bool:
        """Whether a start of the queue is planned for somebody behind the job: then it is its turn to be planned."""
        planned = [self.jobs[s.job] for s in self.plan.starts.values() if s.queue == queue and s.job in self.jobs]
        return any(place < (-job.asks.priority, job.id) for job in planned)

    def _class_of(self, job: JobState) -> WaitingClass:
        queue, asks = self.queue(job.queue), job.asks
        policy = asks.policy or queue.policy
        shape: tuple[Any, ...] = (job.queue, policy, asks.host, asks.request.model_dump_json())
        if asks.gang is not None:
            shape = (*shape, asks.gang.model_dump_json(), len(job.codes))
        for part in asks.parts or ():
            shape = (*shape, part.tasks, part.request.model_dump_json())
        if self.reservations:
            # What is kept for later may be used until then by what ends before: that differs by reservation and end.
            shape = (*shape, asks.reservation, self.walltime_seconds(job))
        elif queue.planned_starts:
            # Likewise of what is kept for planned starts; nearly equal ends are one shape, lest there be many.
            shape = (*shape, about(self.walltime_seconds(job)))
        shape = (*shape, *self.neighbours.mark_of(job))
        group, user = (asks.group, asks.user) if self._counted_apart(job) else ("", "")
        key = (*shape, group, user)
        if key not in self.classes:
            alike = self.order.shapes(job.queue).get(shape)
            parts = self.part_classes(asks)
            wanted = parts[0].wanted if parts else alike.wanted if alike is not None else self.request_class(asks)
            self.classes[key] = WaitingClass(key, job.queue, policy, group, user, wanted, shape, parts)
        return self.classes[key]

    def ranking(self, waiting: WaitingClass) -> Ranking:
        """How the rows rank for the class."""
        return self._rankings.of(waiting.wanted, waiting.policy)

    def waiting_policies(self) -> Iterator[str]:
        """By what those are placed who may have a turn now."""
        for queue in self.order.queues():
            yield from (shape.policy for shape in self.order.awake(queue))

    def let_sleep(self, waiting: WaitingClass, job: JobState, *, floating: bool = False) -> None:
        """Its shape found no room, by a job of it. It is looked at again when something was freed that could be
        enough for it, or when those moved that it is to be near to or apart from.

        What a reservation or a planned start keeps out, or the want of what floats (`floating`), is looked at when
        that has changed as well.
        """
        each = waiting.each
        others = self.reservations or self.plan
        kept = floating or bool(others and (waiting.parts or waiting.wanted.rows_that_fit(self.columns)))
        # Of parts, whatever could be enough for one of them.
        line = each[0].line if len(each) == 1 else np.minimum.reduce([wanted.line for wanted in each])
        self.asleep.sleep(waiting.shape, line, kept=kept)
        self.neighbours.sleeps(job, waiting.shape)

    def _counts_otherwise(self, host: str) -> None:
        super()._counts_otherwise(host)
        if not any(pool.limits or pool.quota for pool in self.specs.pools.values()):
            return
        for waiting in [waiting for waiting in self.classes.values() if waiting.wanted.host == host]:
            for _, number in list(waiting.jobs):
                self._leave_class(self.jobs[number])
                self.settle_waiting(self.jobs[number])

    def _counted_apart(self, job: JobState) -> bool:
        """Whether it matters to anything but the job's own rights whose it is."""
        queue = self.queue(job.queue)
        if queue.fairshare is not None or queue.tasks_per_user is not None or queue.limits:
            return True
        pools = (self.specs.pools.get(name) for name in self.charged_pools(job.asks))
        return any(pool is not None and (pool.limits or pool.quota) for pool in pools)

    # --- fairshare --------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Let time pass for what counts by it."""
        self.now_ms = max(self.now_ms, int(now * 1000))
        for name, fair in self.fair.items():
            if fair.advance(self.now_ms):
                self.dirty.fairshare[name] = None
                self.schedule_wanted |= bool(self.order.shapes(name))

    def _set_fair(self) -> None:
        """Queues have other shares, or have them now, or no more."""
        for name in [name for name in self.fair if self.queue(name).fairshare is None]:
            del self.fair[name]
            self.dirty.fairshare[name] = None
        for name, queue in self.specs.queues.items():
            if queue.fairshare is None:
                continue
            if name in self.fair:
                self.fair[name].redefine(queue.fairshare)
            else:
                self.fair[name] = FairQueue(queue.fairshare, self.now_ms, self.now_ms)
                self._count_anew(name)
            self.dirty.fairshare[name] = None

    def _count_anew(self, queue: str) -> None:
        """What is held by tasks of a queue that has fairshare from now on."""

    # --- dependencies -----------------------------------------------------------------------------------------

    def look_for_dependencies(self, job: JobState) -> None:
        """Work out anew what the job waits for of others."""
        depends = list(enumerate(job.spec.depends))
        unmet = (place for place, d in depends if not d.each and not self._is_met(job, place))
        job.unmet = frozenset(unmet) if depends else NONE_UNMET
        others = [(d, self.jobs.get(d.job)) for _, d in depends if d.each]
        if others:
            dependencies.block(job, others)

    def _is_met(self, job: JobState, place: int) -> bool:
        """Whether a dependency that does not go index by index has come true."""
        dependency = job.spec.depends[place]
        other = self.jobs.get(dependency.job)
        if other is None:
            return False
        if dependency.tasks is None:
            return dependencies.job_is_as_needed(other, dependency.kind)
        missing = dependencies.first_missing(other, dependency, self._cursors.get((job.id, place), 0))
        if missing is not None:
            self._cursors[job.id, place] = missing
        return missing is None

    def _job_ended(self, job: JobState) -> None:
        self.component_left(job)
        for number in self.dependents.get(job.id, ()):
            waiting = self.jobs[number]
            places = [p for p in waiting.unmet if waiting.spec.depends[p].job == job.id]
            self._look_again(waiting, places)

    def _task_moved(self, job: JobState, position: int) -> None:
        """A task has started, or has ended: whoever it matters to looks at that one."""
        for number, place in self.watchers.get(job.id, ()):
            waiting = self.jobs[number]
            dependency = waiting.spec.depends[place]
            if dependency.each:
                self._unblock(waiting, job.indices[position])
            elif place in waiting.unmet and self._waits_for(waiting, place, position):
                self._look_again(waiting, [place])

    def _waits_for(self, job: JobState, place: int, position: int) -> bool:
        """Whether that task of the other job is the one at which it stands: until then nothing can have come true."""
        dependency = job.spec.depends[place]
        if dependency.tasks is None:
            return True
        cursor = self._cursors.get((job.id, place), 0)
        return dependencies.position_at(self.jobs[dependency.job], dependency, cursor) == position

    def _look_again(self, job: JobState, places: list[int]) -> None:
        met = {place for place in places if self._is_met(job, place)}
        if met:
            job.unmet -= met
            self.settle_waiting(job)

    def _unblock(self, job: JobState, index: int) -> None:
        position = job.position_of(index)
        if position is None or job.codes[position] != BLOCKED:
            return
        for dependency in job.spec.depends:
            other = self.jobs.get(dependency.job)
            if dependency.each and (
                other is None or not dependencies.task_is_as_needed(other, dependency.kind, index)
            ):
                return
        job.set_code(position, READY)
        self.settle_waiting(job)
        self.schedule_wanted = True

    # --- wakes ------------------------------------------------------------------------------------------------

    def wake(self, now: float) -> None:
        """Make ready what was backed off, or was not to start before now."""
        while self._wakes and self._wakes[0][0] <= now:
            at, job_id, position = heapq.heappop(self._wakes)
            job = self.jobs.get(job_id)
            if job is None:
                continue
            if position == SHOULD_HAVE_STARTED:
                self.impatient[job_id] = None
                continue
            if position == MAY_START:
                job.sleeping = False
            elif job.codes[position] == WAITING and job.wakes.get(position) == at:
                job.no_wake(position)
                job.set_code(position, READY)
            self.settle_waiting(job)

    @property
    def next_wake(self) -> float | None:
        return self._wakes[0][0] if self._wakes else None


def about(seconds: int | None) -> int | None:
    """A walltime, rounded up to one of four steps a doubling: 3600 s and 4000 s are one, and 5000 s another."""
    if seconds is None:
        return None
    step = 1 << max(0, seconds.bit_length() - 3)
    return -(-seconds // step) * step
