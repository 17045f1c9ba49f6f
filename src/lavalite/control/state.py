"""ClusterState: the single source of truth in memory. Everything changes through its methods.

Each method keeps four things in step: the tasks' states (by the table in model.task, or IllegalTransition), the
book of what is committed, what waits to be placed, and the set of records that must be written. control.records
yields those, so that no reconciler can forget to make a change durable.

Capacity is given back in memory at once, before that is durable. That is safe because writes are carried out in
order: whoever is given it is written later (ledger.committer).

    Supply         nodes, hosts, definition, book, columns               control.supply
    Demand         jobs, dependencies, classes that wait, wakes          control.demand
    ClusterState   tasks that hold something; every transition           here
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from lavalite.control.actions import PartOrdered
from lavalite.control.decisions import Decisions
from lavalite.control.demand import Cancel, Demand
from lavalite.control.events import AttemptReported, Specs
from lavalite.control.fairshare import FairQueue, rate_of
from lavalite.control.horizon import Horizon
from lavalite.control.settings import Settings
from lavalite.control.tasks import (
    ASSUMED,
    CODES,
    READY,
    WAITING,
    End,
    IllegalTransition,
    JobState,
    TaskKey,
    TaskRun,
    commitment_of,
)
from lavalite.ledger.book import FLOATING
from lavalite.model.affinity import Subject
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.job import CommitmentRecord, JobRecord, Share, TaskChunk
from lavalite.model.reservation import Reservation
from lavalite.model.resources import CPU
from lavalite.model.task import CHUNK_TASKS, AttemptId, TaskState
from lavalite.store.keys import Keys


@dataclass(slots=True)
class Batch:
    """What a Commit that has not been answered is about: tasks, or a logical host and what it becomes."""

    tasks: tuple[TaskKey, ...] = ()
    host: str = ""
    composed: LogicalHost | None = None
    changed: bool = False
    """Whether `composed` is not what was written any more."""


class ClusterState(Demand):
    """See the module's docstring. `epoch` is that of the leadership it serves under; times are those of `decide`."""

    def __init__(self, keys: Keys, epoch: tuple[int, int], settings: Settings | None = None) -> None:
        super().__init__(keys, epoch, settings)
        self.runs: dict[TaskKey, TaskRun] = {}
        self.batches: dict[int, Batch] = {}
        self.flying: set[str] = set()
        """Logical hosts of which a Commit has not been answered: their records are not touched meanwhile."""
        self.host_steps: dict[str, tuple[int, str, float]] = {}
        """Host → the version and the step that it is at, and since when, so far as we know."""
        self.orders_sent: dict[str, tuple[PartOrdered, ...]] = {}
        """Node → what is ordered of it, as its agent was told in this session."""
        self.parts_asked: set[str] = set()
        """Nodes that may have parts that no record knows: they are told what they are to have, be it nothing."""
        self.parts_asked_at = 0.0
        """When those that could not let go of something were asked again."""
        self.reattached: dict[str, float] = {}
        """Host → when it was last tried to attach what it lost."""
        self.short = ""
        """What kept the last host from being committed."""
        self.compose_at = 0.0
        """Before then hosts are not planned again, but for what people ask (composer.PAUSE_SECONDS_PER_NODE)."""
        self.reanchor_at = 0.0
        self.quarantine: dict[tuple[str, AttemptId], AttemptReported] = {}
        self.stopping: dict[TaskKey, None] = {}
        """Tasks whose agents were told to end them, or to suspend them for others."""
        self.parked: dict[TaskKey, None] = {}
        """Tasks that are suspended for others (control.parking)."""
        self.moves = 0
        """How often a task went from one live state to another."""
        self.turns: dict[str, int] = {}
        """Queue → the row that it was given last, for policies that take turns."""
        self.decisions = Decisions()
        self.refused_by_book = 0
        """Placements that the book refused. Columns and book say the same, so this stays 0."""
        self.horizon = Horizon()
        self.plan_wanted = False
        """Whether planned starts are left to look for, by the last pass."""
        self.service_started_at = 0.0
        self._last_batch_id = 0

    def run_of(self, owner: str) -> TaskRun | None:
        """The task that a commitment of this name is of; None if it is nobody's."""
        kind, _, rest = owner.partition("/")
        job, _, task = rest.partition("/")
        return self.runs.get(TaskKey(int(job), int(task))) if kind == "job" else None

    def next_batch(self, batch: Batch) -> int:
        """Remember what a Commit is about, until it is answered."""
        self._last_batch_id += 1
        self.batches[self._last_batch_id] = batch
        if batch.host:
            self.flying.add(batch.host)
        return self._last_batch_id

    def landed(self, batch_id: int) -> Batch:
        """The Commit is answered."""
        batch = self.batches.pop(batch_id)
        self.flying.discard(batch.host)
        return batch

    # --- taking over what is stored (control.records) -----------------------------------------------------------

    def restore_specs(self, specs: Specs) -> None:
        """What the stored definition means. Nothing of it has to be written."""
        self._set_specs(specs)

    def restore_hosts(self, hosts: Iterable[LogicalHost]) -> None:
        for host in hosts:
            self.set_host(host, written=True)
            if host.state is HostState.DRAINING:
                self.removals.add(host.name)

    def restore_reservations(self, reservations: Iterable[Reservation]) -> None:
        for reservation in reservations:
            self.reservations[reservation.name] = reservation

    def restore_fairshare(self, stored: Mapping[str, bytes]) -> None:
        """What was used of each queue, before what is held now is restored. What cannot be read is forgotten."""
        for name, value in stored.items():
            if name not in self.fair:
                self.dirty.fairshare[name] = None
                continue
            with suppress(ValueError, LookupError, TypeError, AttributeError):
                self.fair[name] = FairQueue.decode(self.fair[name].spec, value)

    def restore_jobs(self, jobs: Iterable[JobRecord], chunks: dict[int, list[tuple[int, TaskChunk]]]) -> None:
        """Jobs in the order of their ids, each with its chunks by number."""
        for record in jobs:
            job = self._admit(record)
            for number, chunk in chunks.get(job.id, ()):
                job.load_chunk(number, chunk)
            for position, at in job.wakes.items():
                heapq.heappush(self._wakes, (at, job.id, position))

    def heard_out(self, name: str) -> None:
        """When all have told what they started, what is over in quarantine was not waited for."""
        super().heard_out(name)
        if self.quarantine and not self.untold:
            alive = ((place, r) for place, r in self.quarantine.items() if r.state not in ("ended", "refused"))
            self.quarantine = dict(alive)

    def restore_run(self, run: TaskRun, record: CommitmentRecord) -> None:
        """A durable commitment and the task that holds it."""
        job = self.jobs[run.key.job]
        self.book.restore(record)
        self._hold(job, run)
        job.no_wake(run.position)
        job.set_code(run.position, CODES[run.state])
        if run.started_at is not None:
            job.started_at = min(job.started_at or run.started_at, run.started_at)

    def settle_all(self) -> None:
        """After everything is restored: what has ended, what waits for what, what waits to be placed."""
        done = [job for job in self.jobs.values() if not job.unfinished]
        self.finished = {job.id: job.ended_at or 0.0 for job in sorted(done, key=lambda j: j.ended_at or 0.0)}
        for job in done:
            self.component_left(job)
        self.refresh_links()
        for job in self.jobs.values():
            if job.asks.affinity and job.unfinished:
                self.neighbours.watch(job)
        if self.neighbours.watched:
            self.neighbours.recount(self._held_where())
        for job in self.jobs.values():
            self.unfinished_tasks += job.unfinished
            self.unfinished_jobs[job.user] += bool(job.unfinished)
            if job.cancelling and job.unfinished:
                self.cancels[job.id] = Cancel()
            self.look_for_dependencies(job)
            self.settle_waiting(job)
            self.gang_moved(job)

    # --- tasks: each method is one transition of the table ------------------------------------------------------

    def assume(self, run: TaskRun, shares: list[Share]) -> CommitmentRecord | None:
        """Place a ready task, in memory; says what to store. None if the book refuses: nothing has changed then."""
        job, record = self.jobs[run.key.job], commitment_of(run, shares)
        if self.book.assume(record) is not None:
            self.refused_by_book += 1
            return None
        self._hold(job, run)
        job.set_code(run.position, ASSUMED)
        self.settle_waiting(job)
        return record

    def adopt(self, run: TaskRun, record: CommitmentRecord) -> None:
        """A pending task was started before the store was restored to a time before that: it holds what it holds."""
        job = self.jobs[run.key.job]
        self.book.restore(record)
        self._hold(job, run)
        job.no_wake(run.position)
        job.move(run.position, TaskState.COMMITTED)
        self.dirty.tasks[run.key] = None
        self.settle_waiting(job)

    def confirm(self, run: TaskRun) -> None:
        """PENDING → COMMITTED: the commitment is durable."""
        self.book.confirm(run.key.owner)
        run.assumed = False
        self.jobs[run.key.job].move(run.position, TaskState.COMMITTED)

    def unwind(self, run: TaskRun) -> None:
        """The commitment did not become durable: the task is as ready as before."""
        job = self.jobs[run.key.job]
        self._let_go(job, run)
        self.book.unwind(run.key.owner)
        job.set_code(run.position, READY)
        self.settle_waiting(job)
        self.gang_moved(job)
        self.schedule_wanted = True

    def move_run(self, run: TaskRun, after: TaskState, started_at: float | None = None) -> None:
        """From one live state to another."""
        job = self.jobs[run.key.job]
        job.move(run.position, after)
        run.state = after
        self.moves += 1
        run.resume_sent &= after is not TaskState.RUNNING
        if started_at is not None and run.started_at is None:
            run.started_at = started_at
            job.started_at = min(job.started_at or started_at, started_at)
        providers = {share.provider for share in self.book.shares(run.key.owner)}
        self.ends_changed |= providers
        if self.plan and not providers.isdisjoint((*self.plan.providers(), FLOATING)):
            self.schedule_wanted = self.keeps_changed = True  # its end is another one, beside what is kept there
        self.dirty.tasks[run.key] = None
        self._task_moved(job, run.position)

    def mark(
        self,
        run: TaskRun,
        *,
        cancel: bool = False,
        requeue: bool = False,
        suspend: bool = False,
        preempted: str = "",
    ) -> None:
        """Remember what is wanted of a live task, durably unless its commitment is not durable itself."""
        run.cancel_requested |= cancel
        run.requeue_requested |= requeue
        run.suspend_requested |= suspend
        run.preempted = run.preempted or preempted
        if not run.assumed:
            self.dirty.tasks[run.key] = None

    def told_to_stop(self, run: TaskRun, by: float) -> None:
        """Its agent is told to end it, and has done so by then."""
        run.stop_by = by
        self.stopping[run.key] = None
        self.ends_changed |= {share.provider for share in self.book.shares(run.key.owner)}

    def park(self, run: TaskRun) -> None:
        """It stands still for another one: its CPU is free."""
        job, shares = self.jobs[run.key.job], self.book.shares(run.key.owner)
        job.tried.preemptions[run.position] = job.preemptions.get(run.position, 0) + 1
        self.dirty.chunks[job.id, run.position // CHUNK_TASKS] = None
        run.stop_by, run.parked = None, tuple(share for share in shares if share.kind == CPU)
        self._exchange(job, run, [share for share in shares if share.kind != CPU])
        self.schedule_wanted = True

    def unpark(self, run: TaskRun) -> None:
        """It has its CPU again, which is free, and may go on."""
        taken, run.parked = run.parked, ()
        run.suspend_requested, run.resume_sent, run.preempted = False, True, ""
        self._exchange(self.jobs[run.key.job], run, [*taken, *self.book.shares(run.key.owner)])

    def _exchange(self, job: JobState, run: TaskRun, shares: list[Share]) -> None:
        """It holds these from now on."""
        self._let_go(job, run)
        self.book.exchange(run.key.owner, shares)
        self._hold(job, run, since_ms=self.now_ms)
        self.dirty.tasks[run.key] = None

    def finish(self, run: TaskRun, after: TaskState, end: End) -> None:
        """From a live state to a final one; what the task held is free."""
        job = self._end_attempt(run)
        job.move(run.position, after)
        job.note_attempt(run.position, run.attempt)
        self._ended(job, run.position, _why(run, after, end))

    def retry(self, run: TaskRun, wake_at: float, end: End, *, charged: bool) -> None:
        """From a live state back to PENDING, to be tried again at `wake_at`; what the task held is free."""
        job = self._end_attempt(run)
        job.move(run.position, TaskState.PENDING)
        job.note_attempt(run.position, run.attempt)
        job.note_end(run.position, _why(run, TaskState.PENDING, end))
        if charged:
            job.tried.charges[run.position] = job.charges.get(run.position, 0) + 1
        self._back_off(job, run.position, wake_at)
        self.settle_waiting(job)
        self.gang_moved(job)

    def cancel_pending(self, job: JobState, position: int, end: End) -> None:
        """PENDING → CANCELLED, for a task that holds nothing."""
        if job.codes[position] == ASSUMED:
            raise IllegalTransition(f"task {job.id}.{job.indices[position]} is being committed")
        job.no_wake(position)
        job.move(position, TaskState.CANCELLED)
        self._ended(job, position, end)

    def _end_attempt(self, run: TaskRun) -> JobState:
        job = self.jobs[run.key.job]
        if run.preempted and not run.suspend_requested:
            job.tried.preemptions[run.position] = job.preemptions.get(run.position, 0) + 1
        self._let_go(job, run)
        self.book.release(run.key.owner)
        self.dirty.tasks[run.key] = None
        self.dirty.chunks[job.id, run.position // CHUNK_TASKS] = None
        self.schedule_wanted = True
        return job

    def _ended(self, job: JobState, position: int, end: End) -> None:
        job.note_end(position, end)
        self.unfinished_tasks -= 1
        self.dirty.chunks[job.id, position // CHUNK_TASKS] = None
        self.settle_waiting(job)
        self.gang_moved(job)
        self._task_moved(job, position)
        if not job.unfinished:
            self.finished[job.id] = job.ended_at or 0.0
            self.unfinished_jobs[job.user] -= 1
            if not self.unfinished_jobs[job.user]:
                del self.unfinished_jobs[job.user]
            if job.asks.affinity:
                self.neighbours.unwatch(job)
            self._job_ended(job)

    def _back_off(self, job: JobState, position: int, wake_at: float) -> None:
        job.tried.wakes[position] = wake_at
        job.set_code(position, WAITING)
        heapq.heappush(self._wakes, (wake_at, job.id, position))

    def _hold(self, job: JobState, run: TaskRun, since_ms: int | None = None) -> None:
        """The task holds what the book has for it, and counts for that, since it was committed or since then."""
        self.runs[run.key] = run
        if run.parked:
            self.parked[run.key] = None
        shares = self.book.shares(run.key.owner)
        self.usage.add(job, run.key, shares)
        if job.queue in self.fair:
            since = int(run.committed_at * 1000) if since_ms is None else since_ms
            self.fair[job.queue].hold(job.spec.group, job.spec.user, _rate(shares), since)
        self._note_reserved_use(job, run, +1)
        self._note_neighbour(job, run, +1)
        node = self.nodes.get(run.node)
        if node is not None:
            node.runs[run.key] = run

    def _let_go(self, job: JobState, run: TaskRun) -> None:
        """Call it before the book gives back what the task holds."""
        del self.runs[run.key]
        self.stopping.pop(run.key, None)
        self.parked.pop(run.key, None)
        shares = self.book.shares(run.key.owner)
        self.usage.remove(job, run.key, shares)
        if job.queue in self.fair:
            self.fair[job.queue].let_go(job.spec.group, job.spec.user, _rate(shares))
        self._note_reserved_use(job, run, -1)
        self._note_neighbour(job, run, -1)
        node = self.nodes.get(run.node)
        if node is not None:
            node.runs.pop(run.key, None)

    def sums_faults(self) -> Iterator[str]:
        """Where what queues, pools, users and groups count is not what their tasks hold: a bug. Adds up anew."""
        held = [(self.jobs[key.job], key, self.book.shares(key.owner)) for key in self.runs]
        yield from self.usage.faults(held)
        yield from self.neighbours.faults(self._held_where())
        rates: dict[tuple[str, str, str], int] = {}
        for job, _, shares in held:
            for user in ("", job.spec.user):
                holder = (job.queue, job.spec.group, user)
                rates[holder] = rates.get(holder, 0) + _rate(shares)
        for queue, fair in self.fair.items():
            counted = {(queue, *holder): meter.rate for holder, meter in fair.meters.items() if meter.rate}
            if counted != {holder: rate for holder, rate in rates.items() if holder[0] == queue}:
                yield f"the shares of queue {queue} count {counted}, and its tasks hold {rates}"

    def _count_anew(self, queue: str) -> None:
        for key, run in self.runs.items():
            job = self.jobs[key.job]
            if job.queue == queue:
                rate = _rate(self.book.shares(key.owner))
                self.fair[queue].hold(job.spec.group, job.spec.user, rate, int(run.committed_at * 1000))

    def _note_neighbour(self, job: JobState, run: TaskRun, tasks: int) -> None:
        """Whoever is to be near to the job, or apart from it, has other places open."""
        if self.neighbours.concerns(job):
            woken = self.neighbours.move(job, run.node, tasks)
            for shape in woken or ():
                self.asleep.forget(shape)
            self.schedule_wanted |= woken is not None

    def _held_where(self) -> Iterator[tuple[JobState, str]]:
        return ((self.jobs[key.job], run.node) for key, run in self.runs.items())

    def _count_neighbours(self, subjects: set[Subject]) -> None:
        self.neighbours.recount(self._held_where(), only=subjects)

    def _note_reserved_use(self, job: JobState, run: TaskRun, sign: int) -> None:
        """What the task takes of its reservation, or gives back."""
        if not job.spec.reservation:
            return
        place = (job.spec.reservation, run.node)
        used = self.reserved_use.setdefault(place, {})
        for kind, amount in job.spec.at(run.position).request.amounts().items():
            used[kind] = used.get(kind, 0) + sign * amount
        if not any(used.values()):
            del self.reserved_use[place]


def _why(run: TaskRun, after: TaskState, end: End) -> End:
    """What ended since it was preempted says so."""
    told = run.preempted and not run.suspend_requested and after is not TaskState.SUCCEEDED
    return end._replace(reason=run.preempted) if told else end


def _rate(shares: Iterable[Share]) -> int:
    amounts: dict[str, int] = {}
    for share in shares:
        amounts[share.kind] = amounts.get(share.kind, 0) + share.amount
    return rate_of(amounts)
