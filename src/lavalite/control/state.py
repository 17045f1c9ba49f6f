"""ClusterState: the single source of truth in memory. Everything changes through its methods.

Each method keeps four things in step: the tasks' states (by the table in model.task, or IllegalTransition), the
book of what is committed, what waits to be placed, and the set of records that must be written. control.records
yields those, so that no reconciler can forget to make a change durable.

Capacity is given back in memory at once, before that is durable. That is safe because writes are carried out in
order: whoever is given it is written later (ledger.committer).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lavalite.control.events import AttemptReported, Specs
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
from lavalite.ledger.book import FLOATING, Book
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.job import CommitmentRecord, DependencyKind, JobRecord, JobSpec, Share, TaskChunk
from lavalite.model.resources import GPU, NodeOffer
from lavalite.model.specs import DEFAULT_QUEUE, QueueSpec
from lavalite.model.task import CHUNK_TASKS, AttemptId, TaskState
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import GONE, Columns, DeviceRow
from lavalite.placement.columns import READY as ROW_READY
from lavalite.placement.reasons import Reason
from lavalite.store.keys import Keys


@dataclass(slots=True, eq=False)
class NodeState:
    """One node. `heard_at`: when its agent's session was last heard of, or since when we serve."""

    name: str
    offer: NodeOffer
    journal_id: str = ""
    drained: bool = False
    drain_reason: str = ""
    connected: bool = False
    registered: bool = False
    """Whether its agent has told its journal to us, rather than to a predecessor."""
    heard_at: float = 0.0
    lim_silent: bool = False
    runs: dict[TaskKey, TaskRun] = field(default_factory=dict)

    @property
    def boot_id(self) -> str:
        return self.offer.boot_id


@dataclass(slots=True, eq=False)
class WaitingClass:
    """Jobs that ask for the same in the same queue. `jobs` is sorted: (-priority, id)."""

    key: tuple[Any, ...]
    queue: str
    policy: str
    user: str
    """Of whom, where the queue limits what each user may have; else empty."""
    wanted: RequestClass
    jobs: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """What a Commit that has not been answered is about: tasks, or a logical host and what it becomes."""

    tasks: tuple[TaskKey, ...] = ()
    host: str = ""
    composed: LogicalHost | None = None


@dataclass(slots=True)
class Dirty:
    """What must be written, by name."""

    jobs: dict[int, None] = field(default_factory=dict)
    gone_jobs: dict[int, JobState] = field(default_factory=dict)
    chunks: dict[tuple[int, int], None] = field(default_factory=dict)
    tasks: dict[TaskKey, None] = field(default_factory=dict)
    nodes: dict[str, None] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    definition: bool = False


class ClusterState:
    """See the module's docstring. `epoch` is that of the leadership it serves under; times are those of `decide`."""

    def __init__(self, keys: Keys, epoch: tuple[int, int], settings: Settings | None = None) -> None:
        self.keys = keys
        self.epoch = epoch
        self.settings = settings or Settings()
        self.book = Book()
        self.columns = Columns()
        self.nodes: dict[str, NodeState] = {}
        self.hosts: dict[str, LogicalHost] = {}
        self.hosts_version = 0
        """Grows whenever any host changes, so that the shell knows when to tell the agents."""
        self.specs = Specs()
        self.document = b""
        self.jobs: dict[int, JobState] = {}
        self.runs: dict[TaskKey, TaskRun] = {}
        self.batches: dict[int, Batch] = {}
        self.quarantine: dict[tuple[str, AttemptId], AttemptReported] = {}
        self.submit_keys: dict[str, int] = {}
        self.dependents: dict[int, set[int]] = {}
        self.finished: dict[int, float] = {}
        """Job id → when it ended, in that order."""
        self.classes: dict[tuple[Any, ...], WaitingClass] = {}
        self.turns: dict[str, int] = {}
        """Queue → the row that it was given last, for policies that take turns."""
        self.user_tasks: dict[tuple[str, str], int] = {}
        """(queue, user) → tasks that hold something."""
        self.removals: set[str] = set()
        """Logical hosts that go as soon as nobody uses them."""
        self.schedule_wanted = False
        self.compose_wanted = False
        self.wake_told: float | None = None
        self.refused_by_book = 0
        """Placements that the book refused. Columns and book say the same, so this stays 0."""
        self.service_started_at = 0.0
        self._wakes: list[tuple[float, int, int]] = []
        self.last_job_id = 0
        self._last_batch_id = 0
        self._stale_rows: set[str] = set()
        self._pools_stale = True
        self.dirty = Dirty()

    # --- ids and lookups --------------------------------------------------------------------------------------

    def next_job_id(self) -> int:
        """A job id that was never given out. Make a Submitted of it, or let it be lost."""
        self.last_job_id += 1
        return self.last_job_id

    def next_batch(self, batch: Batch) -> int:
        """Remember what a Commit is about, until it is answered."""
        self._last_batch_id += 1
        self.batches[self._last_batch_id] = batch
        return self._last_batch_id

    @property
    def default_queue(self) -> str:
        named = (queue.name for queue in self.specs.queues.values() if queue.default)
        return next(named, next(iter(self.specs.queues), DEFAULT_QUEUE))

    def queue(self, name: str) -> QueueSpec:
        """The queue as defined; with the usual numbers where it is (or was) not defined."""
        return self.specs.queues.get(name) or QueueSpec(name=name or DEFAULT_QUEUE)

    def pools_of(self, spec: JobSpec) -> dict[str, str]:
        """The pool of each kind asked for: the one named, else the kind's default pool, else none."""
        pools = {}
        for kind in spec.request.amounts():
            named = spec.request.pools.get(kind) or self.default_pool(kind)
            if named:
                pools[kind] = named
        return pools

    def default_pool(self, kind: str) -> str:
        """The pool that a kind comes from where none is named; empty if from anywhere."""
        return next((p.name for p in self.specs.pools.values() if p.default and kind in p.kinds), "")

    def request_class(self, spec: JobSpec) -> RequestClass:
        """What the job asks for, ready to be looked for in the columns."""
        return RequestClass(spec.request, self.pools_of(spec), spec.host)

    def node_of(self, provider: str) -> NodeState | None:
        """The node that executes what is placed on a provider: itself, or a host's anchor."""
        host = self.hosts.get(provider)
        return self.nodes.get(host.anchor if host else provider)

    # --- nodes ------------------------------------------------------------------------------------------------

    def set_node(self, offer: NodeOffer, journal_id: str | None = None) -> NodeState:
        """Add a node, or take over what it offers now. None leaves its journal as it is."""
        node = self.nodes.get(offer.node)
        if node is None:
            node = self.nodes[offer.node] = NodeState(offer.node, offer)
            self.dirty.nodes[node.name] = None
            self._pools_stale = True
            self._set_capacity(node)
        elif node.offer != offer:
            self._pools_stale |= node.offer.labels != offer.labels
            node.offer = offer
            self.dirty.nodes[node.name] = None
            self._set_capacity(node)
        if journal_id is not None and node.journal_id != journal_id:
            node.journal_id = journal_id
            self.dirty.nodes[node.name] = None
        return node

    def set_drained(self, node: NodeState, drained: bool, reason: str = "") -> None:
        if (node.drained, node.drain_reason) != (drained, reason):
            node.drained, node.drain_reason = drained, reason
            self.dirty.nodes[node.name] = None
        self.touch_node(node)

    def touch_node(self, node: NodeState) -> None:
        """Whether it takes work may have changed: look at its row, and those of hosts anchored on it, again."""
        self._stale_rows.add(node.name)
        self._stale_rows.update(host.name for host in self.hosts.values() if host.anchor == node.name)
        self.schedule_wanted = True

    def node_row_state(self, node: NodeState | None, now: float) -> str:
        """READY, or the reason why nothing new is placed there."""
        if node is None:
            return GONE
        if node.drained:
            return Reason.DRAINING
        silent = now - node.heard_at > self.settings.silent_after_seconds
        if not node.connected or not node.registered or node.lim_silent or silent:
            return Reason.SILENT
        return ROW_READY

    def row_is_stale(self, node: NodeState, now: float) -> bool:
        """Whether time alone has changed whether the node takes work."""
        row = self.columns.row(node.name)
        return row is not None and self.columns.states[row] != self.node_row_state(node, now)

    def _set_capacity(self, node: NodeState) -> None:
        kinds = {r.kind for r in node.offer.resources}
        for kind in set(self.book.kinds(node.name)) - kinds:
            self.book.set_capacity(node.name, kind, 0)
        for kind in kinds:
            names = list(dict.fromkeys(d.id for d in node.offer.devices(kind)))
            amount = node.offer.amount(kind)
            self.book.set_capacity(node.name, kind, amount, names if amount else [])
        self.touch_node(node)
        self.compose_wanted = True

    # --- definition and hosts ---------------------------------------------------------------------------------

    def set_definition(self, document: bytes, specs: Specs) -> None:
        """Take over a definition; what waits is sorted anew. Hosts follow by the composer."""
        self.document, self.dirty.definition = document, True
        self._set_specs(specs)

    def _set_specs(self, specs: Specs) -> None:
        self.specs = specs
        floating = {k: amount for pool in specs.pools.values() for k, amount in pool.floating.items()}
        for kind in (*self.book.kinds(FLOATING), *floating):
            self.book.set_capacity(FLOATING, kind, floating.get(kind, 0))
        self._pools_stale = self.schedule_wanted = self.compose_wanted = True
        self.classes.clear()
        for job in self.jobs.values():
            job.class_key = ()
            self.settle_waiting(job)

    def set_host(self, host: LogicalHost, *, written: bool = False) -> None:
        """Add a logical host or change it; one that is composed or draining offers what it took.

        `written` where its record is written by a Commit.
        """
        self.hosts[host.name] = host
        self.hosts_version += 1
        if not written:
            self.dirty.hosts[host.name] = None
        self._set_host_capacity(host)
        self.schedule_wanted = True

    def remove_host(self, name: str) -> None:
        """Forget a host and give back what it took, if it took anything."""
        host = self.hosts.pop(name)
        self.hosts_version += 1
        self.removals.discard(name)
        self.book.remove_provider(name)
        if self.book.holds(host_owner(name)):
            self.book.release(host_owner(name))
        self.dirty.hosts[host.name] = None
        self._stale_rows.add(name)
        self.schedule_wanted = self.compose_wanted = True

    def _set_host_capacity(self, host: LogicalHost) -> None:
        offers = host.state in (HostState.COMPOSED, HostState.DRAINING, HostState.RESIZING)
        for kind in {part.kind for part in host.parts} | set(self.book.kinds(host.name)):
            # What is on another node is part of the host, but nothing that a job on its anchor could use.
            local = [p for p in host.parts if p.kind == kind and (p.provider == host.anchor or not p.devices)]
            amount = sum(p.amount for p in local) if offers else 0
            devices = [d for p in local for d in p.devices] if amount else []
            self.book.set_capacity(host.name, kind, amount, devices)
        self._stale_rows.add(host.name)

    def host_in_use(self, name: str) -> bool:
        """Whether anybody holds anything of the host."""
        return any(self.book.committed(name, kind) for kind in self.book.kinds(name))

    # --- taking over what is stored (control.records) -----------------------------------------------------------

    def restore_specs(self, specs: Specs) -> None:
        """What the stored definition means. Nothing of it has to be written."""
        self._set_specs(specs)

    def restore_hosts(self, hosts: Iterable[LogicalHost]) -> None:
        for host in hosts:
            self.set_host(host)
            if host.state is HostState.DRAINING:
                self.removals.add(host.name)

    def restore_jobs(self, jobs: Iterable[JobRecord], chunks: dict[int, list[tuple[int, TaskChunk]]]) -> None:
        """Jobs in the order of their ids, each with its chunks by number."""
        for record in jobs:
            job = self._admit(record)
            for number, chunk in chunks.get(job.id, ()):
                job.load_chunk(number, chunk)
            for position, at in job.wakes.items():
                heapq.heappush(self._wakes, (at, job.id, position))

    def restore_run(self, run: TaskRun, record: CommitmentRecord) -> None:
        """A durable commitment and the task that holds it."""
        job = self.jobs[run.key.job]
        self.book.restore(record)
        self._hold(job, run)
        job.wakes.pop(run.position, None)
        job.set_code(run.position, CODES[run.state])
        if run.started_at is not None:
            job.started_at = min(job.started_at or run.started_at, run.started_at)

    def settle_all(self) -> None:
        """After everything is restored: what has ended, what waits for what, what waits to be placed."""
        for job in self.jobs.values():
            ended = [end.ended_at for end in job.ends.values() if end.ended_at is not None]
            started = [end.started_at for end in job.ends.values() if end.started_at is not None]
            job.ended_at = max(ended, default=None)
            job.started_at = min((*started, *([job.started_at] if job.started_at else [])), default=None)
        done = [job for job in self.jobs.values() if not job.unfinished]
        self.finished = {job.id: job.ended_at or 0.0 for job in sorted(done, key=lambda j: j.ended_at or 0.0)}
        for job in self.jobs.values():
            job.unmet = self._unmet(job)
            self.settle_waiting(job)

    # --- columns ----------------------------------------------------------------------------------------------

    def refresh_columns(self, now: float) -> None:
        """Bring the rows up to date with book, nodes and hosts; only those that something touched."""
        stale = self._stale_rows | self.book.take_touched()
        self._stale_rows = set()
        for provider in sorted(stale - {FLOATING}):
            host = self.hosts.get(provider)
            if host is None and provider not in self.nodes:
                if self.columns.row(provider) is not None:
                    self.columns.set_row(provider, {}, {}, state=GONE)
                continue
            state = self.node_row_state(self.node_of(provider), now)
            if host is not None and host.state is not HostState.COMPOSED and state != GONE:
                state = Reason.DRAINING if host.state is HostState.DRAINING else Reason.HELD
            kinds = self.book.kinds(provider)
            self.columns.set_row(
                provider,
                {kind: self.book.capacity(provider, kind) for kind in kinds},
                {kind: self.book.free(provider, kind) for kind in kinds},
                self._device_rows(provider),
                state=state,
                is_host=host is not None,
            )
        if self._pools_stale:
            self.columns.set_pools(self.pool_members())
            self._pools_stale = False

    def pool_members(self) -> dict[str, list[str]]:
        """Node names by pool."""
        return {
            pool.name: [n.name for n in self.nodes.values() if pool.has(n.name, n.offer.labels)]
            for pool in self.specs.pools.values()
        }

    def _device_rows(self, provider: str) -> list[DeviceRow]:
        node = self.node_of(provider)
        known = {d.id: d for d in node.offer.devices(GPU)} if node else {}
        rows = []
        for device_id, free in self.book.device_free(provider, GPU).items():
            if device_id in known:
                device = known[device_id]
                rows.append(DeviceRow(device_id, device.model, device.memory_bytes, free))
        return rows

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
        for dependency in record.spec.depends:
            self.dependents.setdefault(dependency.job, set()).add(job.id)
        job.unmet = self._unmet(job)
        if record.spec.not_before is not None:
            heapq.heappush(self._wakes, (record.spec.not_before, job.id, -1))
            job.sleeping = True
        return job

    def remove_job(self, job: JobState) -> None:
        """Forget a finished job altogether."""
        if job.unfinished:
            raise IllegalTransition(f"job {job.id} has not ended")
        del self.jobs[job.id]
        self.finished.pop(job.id, None)
        self.submit_keys.pop(job.submit_key, None)
        self.dependents.pop(job.id, None)
        for dependency in job.spec.depends:
            self.dependents.get(dependency.job, set()).discard(job.id)
        self.dirty.gone_jobs[job.id] = job

    def set_held(self, job: JobState, held: bool) -> None:
        if job.held != held:
            job.held, job.hold_changed = held, True
            self.dirty.chunks[job.id, 0] = None
            self.settle_waiting(job)

    def settle_waiting(self, job: JobState) -> None:
        """Let the job wait with its class, or no longer, as its tasks, holds and dependencies say."""
        waits = bool(job.ready) and not job.held and not job.unmet and not job.sleeping
        place = (-job.spec.priority, job.id)
        if waits and not job.class_key:
            found = self._class_of(job)
            job.class_key = found.key
            insort(found.jobs, place)
            self.schedule_wanted = True
        elif not waits and job.class_key:
            waiting = self.classes[job.class_key]
            del waiting.jobs[bisect_left(waiting.jobs, place)]
            if not waiting.jobs:
                del self.classes[job.class_key]
            job.class_key = ()

    def _class_of(self, job: JobState) -> WaitingClass:
        queue = self.queue(job.queue)
        policy = job.spec.policy or queue.policy
        user = job.spec.user if queue.tasks_per_user is not None else ""
        key = (job.queue, policy, user, job.spec.host, job.spec.request.model_dump_json())
        if key not in self.classes:
            self.classes[key] = WaitingClass(key, job.queue, policy, user, self.request_class(job.spec))
        return self.classes[key]

    def _unmet(self, job: JobState) -> set[int]:
        return {d.job for d in job.spec.depends if not self.is_met(d.job, d.kind)}

    def is_met(self, job_id: int, kind: DependencyKind) -> bool:
        """Whether the job has ended as the dependency needs."""
        job = self.jobs.get(job_id)
        if job is None or job.unfinished:
            return False
        succeeded = job.state is TaskState.SUCCEEDED
        return {
            DependencyKind.DONE: succeeded,
            DependencyKind.EXIT: not succeeded,
            DependencyKind.ENDED: True,
        }[kind]

    # --- wakes ------------------------------------------------------------------------------------------------

    def wake(self, now: float) -> None:
        """Make ready what was backed off, or was not to start before now."""
        while self._wakes and self._wakes[0][0] <= now:
            at, job_id, position = heapq.heappop(self._wakes)
            job = self.jobs.get(job_id)
            if job is None:
                continue
            if position < 0:
                job.sleeping = False
            elif job.codes[position] == WAITING and job.wakes.get(position) == at:
                del job.wakes[position]
                job.set_code(position, READY)
            self.settle_waiting(job)

    @property
    def next_wake(self) -> float | None:
        return self._wakes[0][0] if self._wakes else None

    # --- tasks: each method is one transition of the table ------------------------------------------------------

    def assume(self, run: TaskRun, shares: list[Share]) -> bool:
        """Place a ready task, in memory. False if the book refuses; then nothing has changed."""
        job = self.jobs[run.key.job]
        if self.book.assume(commitment_of(run, shares)) is not None:
            self.refused_by_book += 1
            return False
        self._hold(job, run)
        job.set_code(run.position, ASSUMED)
        self.settle_waiting(job)
        return True

    def confirm(self, run: TaskRun) -> None:
        """PENDING → COMMITTED: the commitment is durable."""
        self.book.confirm(run.key.owner)
        run.assumed = False
        self.jobs[run.key.job].move(run.position, TaskState.COMMITTED)

    def unwind(self, run: TaskRun) -> None:
        """The commitment did not become durable: the task is as ready as before."""
        job = self.jobs[run.key.job]
        self.book.unwind(run.key.owner)
        self._let_go(job, run)
        job.set_code(run.position, READY)
        self.settle_waiting(job)
        self.schedule_wanted = True

    def move_run(self, run: TaskRun, after: TaskState, started_at: float | None = None) -> None:
        """From one live state to another."""
        job = self.jobs[run.key.job]
        job.move(run.position, after)
        run.state = after
        if started_at is not None and run.started_at is None:
            run.started_at = started_at
            job.started_at = min(job.started_at or started_at, started_at)
        self.dirty.tasks[run.key] = None

    def mark(self, run: TaskRun, *, cancel: bool = False, requeue: bool = False) -> None:
        """Remember what a person wants of a live task, durably unless its commitment is not durable itself."""
        run.cancel_requested |= cancel
        run.requeue_requested |= requeue
        if not run.assumed:
            self.dirty.tasks[run.key] = None

    def finish(self, run: TaskRun, after: TaskState, end: End) -> None:
        """From a live state to a final one; what the task held is free."""
        job = self._end_attempt(run)
        job.move(run.position, after)
        job.ends[run.position] = end
        self._ended(job, run.position)

    def retry(self, run: TaskRun, wake_at: float, end: End, *, charged: bool) -> None:
        """From a live state back to PENDING, to be tried again at `wake_at`; what the task held is free."""
        job = self._end_attempt(run)
        job.move(run.position, TaskState.PENDING)
        job.ends[run.position] = end
        if charged:
            job.charges[run.position] = job.charges.get(run.position, 0) + 1
        self._back_off(job, run.position, wake_at)
        self.settle_waiting(job)

    def cancel_pending(self, job: JobState, position: int, end: End) -> None:
        """PENDING → CANCELLED, for a task that holds nothing."""
        if job.codes[position] == ASSUMED:
            raise IllegalTransition(f"task {job.id}.{job.indices[position]} is being committed")
        job.wakes.pop(position, None)
        job.move(position, TaskState.CANCELLED)
        job.ends[position] = end
        self._ended(job, position)

    def _end_attempt(self, run: TaskRun) -> JobState:
        job = self.jobs[run.key.job]
        self.book.release(run.key.owner)
        self._let_go(job, run)
        job.attempts[run.position] = run.attempt
        self.dirty.tasks[run.key] = None
        self.dirty.chunks[job.id, run.position // CHUNK_TASKS] = None
        self.schedule_wanted = True
        return job

    def _ended(self, job: JobState, position: int) -> None:
        self.dirty.chunks[job.id, position // CHUNK_TASKS] = None
        ended_at = job.ends[position].ended_at
        if ended_at is not None:
            job.ended_at = max(job.ended_at or ended_at, ended_at)
        self.settle_waiting(job)
        if not job.unfinished:
            self.finished[job.id] = job.ended_at or 0.0
            for dependent in self.dependents.get(job.id, ()):
                waiting = self.jobs[dependent]
                waiting.unmet = self._unmet(waiting)
                self.settle_waiting(waiting)

    def _back_off(self, job: JobState, position: int, wake_at: float) -> None:
        job.wakes[position] = wake_at
        job.set_code(position, WAITING)
        heapq.heappush(self._wakes, (wake_at, job.id, position))

    def _hold(self, job: JobState, run: TaskRun) -> None:
        self.runs[run.key] = run
        user = (job.queue, job.spec.user)
        self.user_tasks[user] = self.user_tasks.get(user, 0) + 1
        node = self.nodes.get(run.node)
        if node is not None:
            node.runs[run.key] = run

    def _let_go(self, job: JobState, run: TaskRun) -> None:
        del self.runs[run.key]
        user = (job.queue, job.spec.user)
        self.user_tasks[user] -= 1
        if not self.user_tasks[user]:
            del self.user_tasks[user]
        node = self.nodes.get(run.node)
        if node is not None:
            node.runs.pop(run.key, None)


def host_owner(name: str) -> str:
    """The name a logical host's commitment goes by."""
    return f"host/{name}"
