"""The state as it is stored: what to write after each decision, and how a new leader reads it all back.

take_writes   whatever the state's methods marked as changed, in an order in which a crash loses nothing
load          everything there is, to the same state again; agents then tell what happened meanwhile
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from lavalite.base.errors import LavaLiteError
from lavalite.control.events import Specs
from lavalite.control.ground import Dirty
from lavalite.control.node_state import NodeState
from lavalite.control.settings import Settings
from lavalite.control.state import ClusterState
from lavalite.control.supply import host_owner
from lavalite.control.tasks import FINAL_CODES, JobState, TaskKey, TaskRun, commitment_of
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.job import CommitmentRecord, JobRecord, TaskChunk
from lavalite.model.node import Drain, NodeRecord
from lavalite.model.reservation import Reservation
from lavalite.model.task import CHUNK_TASKS, JOBS_PER_GENERATION
from lavalite.store.keys import Keys

Model = TypeVar("Model", bound=BaseModel)


class BadRecord(LavaLiteError):
    """A stored record cannot be read. Nothing is served on top of half a state."""

    default_code = "bad_record"


def take_writes(state: ClusterState) -> Iterator[tuple[str, bytes | None]]:
    """Everything that changed since this was asked last: key and value, None to delete it.

    What a task became comes before its commitment goes, so that a crash in between loses nothing.
    """
    dirty, state.dirty = state.dirty, Dirty()
    keys = state.keys
    if dirty.definition:
        yield keys.definition, state.document
    for name in dirty.nodes:
        node = state.nodes.get(name)
        yield keys.resources(name), _encode_node(node) if node is not None else None
    for name in dirty.hosts:
        yield from _host(keys, name, state.hosts.get(name))
    for name in dirty.reservations:
        reservation = state.reservations.get(name)
        yield keys.reservation(name), None if reservation is None else reservation.model_dump_json().encode()
    for name in dirty.fairshare:
        yield keys.fairshare(name), state.fair[name].encode() if name in state.fair else None
    if dirty.jobs:
        yield keys.job_counter, str(state.last_job_id).encode()
    for job_id in dirty.jobs:
        yield from _new_job(keys, state.jobs[job_id])
    for job_id, chunk in dirty.chunks:
        if job_id in state.jobs:
            yield keys.task_chunk(job_id, chunk), state.jobs[job_id].encode_chunk(chunk)
    for key in dirty.tasks:
        yield keys.commitment(key.owner), _commitment(state, key)
    for job in dirty.gone_jobs.values():
        yield from _gone_job(keys, job)
    for orphan in dirty.orphans:
        yield orphan, None


def _commitment(state: ClusterState, key: TaskKey) -> bytes | None:
    """The record of a durable commitment; None where it is gone, or assumed: then its Commit writes it."""
    run = state.runs.get(key)
    if run is None or run.assumed:
        return None
    return commitment_of(run, state.book.shares(key.owner)).model_dump_json().encode()


def _host(keys: Keys, name: str, host: LogicalHost | None) -> Iterator[tuple[str, bytes | None]]:
    """A host is stored as it is when nothing is in flight; what it is to become is written by its Commit, later."""
    if host is None or (host.state is HostState.COMPOSING and not host.under_way):
        yield keys.host(name), None
    else:
        in_flight = host.state is HostState.RESIZING and not host.under_way
        stored = host.model_copy(update={"state": HostState.COMPOSED}) if in_flight else host
        yield keys.host(name), stored.model_dump_json().encode()
    if host is None or not _holds(host):
        yield keys.commitment(host_owner(name)), None


def _holds(host: LogicalHost) -> bool:
    """Whether its commitment is written. One that holds nothing may have a stale one, after a crash."""
    written = host.state is not HostState.COMPOSING or host.under_way
    return written and bool(host.parts)


def _encode_node(node: NodeState) -> bytes:
    drain = node.drain or Drain()
    record = NodeRecord(
        offer=node.offer,
        journal_id=node.journal_id,
        drained=node.drain is not None,
        drain_reason=drain.reason,
        drain_deadline_seconds=drain.deadline_seconds,
        drain_deadline_at=drain.deadline_at,
        operator_labels=node.operator_labels,
        generation=node.generation,
        fabric_address=node.fabric_address,
        owes_parts=node.owes_parts,
    )
    return record.model_dump_json().encode()


def _new_job(keys: Keys, job: JobState) -> Iterator[tuple[str, bytes]]:
    record = JobRecord(id=job.id, spec=job.spec, submitted_at=job.submitted_at, submit_key=job.submit_key)
    yield keys.job(job.id), record.model_dump_json(exclude_defaults=True).encode()


def _gone_job(keys: Keys, job: JobState) -> Iterator[tuple[str, None]]:
    """The job first: without its chunks it would be taken for one that is yet to run. `load` finds what is left."""
    yield keys.job(job.id), None
    for chunk in range((len(job.codes) + CHUNK_TASKS - 1) // CHUNK_TASKS):
        yield keys.task_chunk(job.id, chunk), None


# --- reading it back ----------------------------------------------------------------------------------------------


def load(
    keys: Keys,
    epoch: tuple[int, int],
    records: Iterable[tuple[str, bytes]],
    *,
    specs: Specs | None = None,
    settings: Settings | None = None,
) -> ClusterState:
    """The state that the records hold, in whatever order they come. Feed Loaded next.

    `specs` is what the record `definition` means. Raises BadRecord.
    """
    state = ClusterState(keys, epoch, settings)
    found: dict[str, list[tuple[str, bytes]]] = {}
    for key, value in records:
        section, _, rest = key.removeprefix(keys.root).partition("/")
        found.setdefault(section, []).append((rest, value))
    for _, value in found.get("definition", ()):
        state.document = value
    for rest, value in found.get("resources", ()):
        record = _read(NodeRecord, f"resources/{rest}", value)
        node = state.set_node(record.offer, record.journal_id)
        node.drain = record.drain
        node.set_labels(record.operator_labels)
        node.generation, node.owes_parts = record.generation, record.owes_parts
        node.fabric_address = record.fabric_address
        if record.generation < epoch[0]:
            state.untold.add(node.name)
    hosts = [_read(LogicalHost, f"hosts/{rest}", value) for rest, value in found.get("hosts", ())]
    state.restore_hosts(hosts)
    state.restore_specs(specs or Specs())
    kept = found.get("reservations", ())
    state.restore_reservations(_read(Reservation, f"reservations/{rest}", value) for rest, value in kept)
    for _, value in found.get("counters", ()):
        state.last_job_id = max(state.last_job_id, int(value))
    state.last_job_id = max(state.last_job_id, epoch[0] * JOBS_PER_GENERATION)
    # One after the other, since all of them at once would take several times what they weigh in the state. What has
    # been read is let go: its place is taken by what comes of those that follow.
    stored_jobs = sorted(found.pop("jobs", ()), reverse=True)
    jobs = (_read(JobRecord, f"jobs/{rest}", value) for rest, value in _taken_from(stored_jobs))
    chunks = [(rest, _read(TaskChunk, f"tasks/{rest}", value)) for rest, value in found.get("tasks", ())]
    commitments = [
        _read(CommitmentRecord, f"commitments/{rest}", value) for rest, value in found.get("commitments", ())
    ]
    state.dirty = Dirty()
    state.restore_fairshare(dict(found.get("fairshare", ())))
    state.restore_jobs(jobs, _by_position(chunks))
    _find_orphans(state, found)
    for commitment in commitments:
        _restore(state, commitment)
    state.settle_all()
    return state


def _taken_from(stored: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """From the last to the first, each no longer in the list."""
    while stored:
        yield stored.pop()


def _find_orphans(state: ClusterState, found: dict[str, list[tuple[str, bytes]]]) -> None:
    """What a crash left of jobs that were being removed."""
    for rest, _ in found.get("tasks", ()):
        if int(rest.partition("/")[0]) not in state.jobs:
            state.dirty.orphans[f"{state.keys.root}tasks/{rest}"] = None


def _by_position(chunks: list[tuple[str, TaskChunk]]) -> dict[int, list[tuple[int, TaskChunk]]]:
    by_job: dict[int, list[tuple[int, TaskChunk]]] = {}
    for rest, chunk in chunks:
        job_id, _, number = rest.partition("/")
        by_job.setdefault(int(job_id), []).append((int(number), chunk))
    return by_job


def _restore(state: ClusterState, record: CommitmentRecord) -> None:
    """Take a commitment over, unless it is stale: the end of what held it was written before it was deleted."""
    if record.owner.startswith("host/"):
        host = state.hosts.get(record.owner.removeprefix("host/"))
        if host is not None and _holds(host):
            state.book.restore(record)
        else:
            state.dirty.hosts[record.owner.removeprefix("host/")] = None
        return
    key = TaskKey(record.job, record.task)
    job = state.jobs.get(key.job)
    position = job.position_of(key.task) if job else None
    if (
        job is None
        or position is None
        or job.codes[position] in FINAL_CODES
        or record.attempt <= job.attempts_of(position)
    ):
        state.dirty.tasks[key] = None
        return
    run = TaskRun(
        key,
        position,
        record.attempt,
        record.node,
        record.journal_id,
        record.committed_at,
        record.epoch,
        record.state,
        assumed=False,
        started_at=record.started_at,
        fence_after_seconds=record.fence_after_seconds,
        ends_by=record.ends_by,
        exclusive=record.exclusive,
        cancel_requested=record.cancel_requested,
        requeue_requested=record.requeue_requested,
        preempted=record.preempted,
        suspend_requested=record.suspend_requested,
        resume_sent=record.resume_sent,
        parked=tuple(record.parked),
        maybe_sent=True,
    )
    state.restore_run(run, record)


def _read(model: type[Model], name: str, value: bytes) -> Model:
    try:
        return model.model_validate_json(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRecord(
            f"stored record {name} cannot be read: {where}: {first['msg']}",
            hint="Was it written by a newer release? Restore a backup, or start that release again.",
        ) from None
