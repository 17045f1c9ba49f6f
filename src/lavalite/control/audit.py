"""Whether stored records keep the law: of a live store at one revision, or of a backup.

    accounts      committed + free = capacity of each resource, and nobody holds a device twice
    tasks         each that holds something has a commitment, and none is without a task
    hosts         each that is composed holds exactly its parts
    alone         nobody holds anything of a node that a task has for itself, unless a restore brought them together
    sums          what queues, pools, users and groups count is what their tasks hold
    numbers       no job has a higher id than the counter knows, nothing was written by a later generation

A crash may leave what the next leader tidies up: commitments of tasks that have ended, chunks of jobs that are gone.
That, and nodes that came back with less than is committed on them, is told and is no fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lavalite.control.events import Specs
from lavalite.control.records import BadRecord, load
from lavalite.control.state import ClusterState
from lavalite.control.supply import host_owner
from lavalite.control.tasks import ASSUMED, LIVE_CODES, STATES
from lavalite.ledger.book import LedgerBroken
from lavalite.model.job import CommitmentRecord, Share
from lavalite.model.resources import PLACES
from lavalite.model.task import JOBS_PER_GENERATION, before_restore
from lavalite.placement.shares import shares_of
from lavalite.store.keys import Keys

MOST_FAULTS = 100
"""More of them say nothing new."""


@dataclass(slots=True)
class Audit:
    """What was found. The law holds where `faults` is empty; `notes` are for people."""

    cluster: str
    generation: int = 0
    records: int = 0
    nodes: int = 0
    hosts: int = 0
    jobs: int = 0
    unfinished_tasks: int = 0
    commitments: int = 0
    accounts: int = 0
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def blame(self, faults: Iterable[str]) -> None:
        self.faults += list(faults)[: MOST_FAULTS - len(self.faults)]


def audit(keys: Keys, records: Mapping[str, bytes], specs: Specs) -> Audit:
    """Look at all records of a cluster. `specs` is what its record `definition` means. Raises nothing."""
    found = Audit(keys.cluster, records=len(records))
    generation = records.get(keys.generation, b"0")
    if not generation.strip().isdigit():
        found.blame(["the record generation is no number"])
        return found
    found.generation = int(generation)
    try:
        state = load(keys, (found.generation, 0), records.items(), specs=specs)
        state.book.check()
        commitments = _commitments(keys, records)
    except (BadRecord, LedgerBroken) as error:
        found.blame([str(error)])
        return found
    except (ValueError, LookupError) as error:  # a key or a chunk that no release of ours writes
        found.blame([f"the records do not fit together ({type(error).__name__}: {error})"])
        return found
    _count(found, state, commitments)
    found.blame(_of_numbers(state, records, found.generation, commitments))
    found.blame(_of_tasks(state, commitments))
    found.blame(_of_hosts(state))
    _look_for_crowds(found, state)
    found.blame(state.sums_faults())
    return found


def _commitments(keys: Keys, records: Mapping[str, bytes]) -> dict[str, CommitmentRecord]:
    """By the owner that stands in the key."""
    prefix = keys.commitment()
    return {
        key.removeprefix(prefix): CommitmentRecord.model_validate_json(value)
        for key, value in records.items()
        if key.startswith(prefix)
    }


def _count(found: Audit, state: ClusterState, commitments: Mapping[str, CommitmentRecord]) -> None:
    found.nodes, found.hosts, found.jobs = len(state.nodes), len(state.hosts), len(state.jobs)
    found.unfinished_tasks, found.commitments = state.unfinished_tasks, len(commitments)
    found.accounts = sum(1 for _ in state.book.accounts())
    if stale := sum(1 for owner in commitments if not state.book.holds(owner)):
        found.notes.append(f"{stale} commitments of what has ended, which the next leader deletes")
    if state.dirty.orphans:
        found.notes.append(f"{len(state.dirty.orphans)} chunks of jobs that are gone, which the next leader deletes")
    for provider, kind in state.book.overcommitted():
        found.notes.append(f"{provider} offers less {kind} than is committed on it")


def _of_numbers(
    state: ClusterState, records: Mapping[str, bytes], generation: int, commitments: Mapping[str, CommitmentRecord]
) -> Iterable[str]:
    given_out = max(int(records.get(state.keys.job_counter, b"0")), generation * JOBS_PER_GENERATION)
    if state.jobs and (highest := max(state.jobs)) > given_out:
        yield f"job {highest} is there, and the counter says that {given_out} was the last"
    for owner, record in commitments.items():
        if record.epoch[0] > generation:
            yield f"commitment {owner} is of generation {record.epoch[0]}, and this is generation {generation}"


def _of_tasks(state: ClusterState, commitments: Mapping[str, CommitmentRecord]) -> Iterable[str]:
    for owner, record in commitments.items():
        if owner != record.owner:
            yield f"commitment {owner} says that it is of {record.owner}"
        elif not owner.startswith("host/"):
            job = state.jobs.get(record.job)
            if owner != f"job/{record.job}/{record.task}" or job is None or job.position_of(record.task) is None:
                yield f"commitment {owner} is of a task that is not there"
    held = Counter(key.job for key in state.runs)
    for job in state.jobs.values():
        if strange := set(job.codes) - STATES.keys():
            yield f"job {job.id} has tasks in states that are not known: {bytes(sorted(strange))!r}"
        live = sum(count for code, count in job.counts.items() if code in LIVE_CODES or code == ASSUMED)
        if live != held[job.id]:
            yield f"job {job.id} has {live} tasks that hold something, and {held[job.id]} commitments"


def _of_hosts(state: ClusterState) -> Iterable[str]:
    for host in state.hosts.values():
        if not host.parts:
            continue
        if _sums(shares_of(host)) != _sums(state.book.shares(host_owner(host.name))):
            yield f"host {host.name} is {host.state.value}, and its commitment does not hold exactly its parts"


def _look_for_crowds(found: Audit, state: ClusterState) -> None:
    """Where somebody has a node for itself and others are there. Attempts of before a restore were adopted as they
    ran, whatever the restored store gave to others there: nobody comes beside them, and it ends as they end."""
    for provider in state.book.crowded():
        there = sorted(state.book.holders(provider, PLACES))
        said = f"{provider} is for one task alone, and these hold something of it: {', '.join(there[:5])}"
        runs = [run for owner in there if (run := state.run_of(owner)) is not None]
        if any(before_restore(run.key.job, state.epoch) for run in runs):
            found.notes.append(f"{said}; since a restore, and until they end")
        else:
            found.blame([said])


def _sums(shares: Iterable[Share]) -> Counter[tuple[str, str]]:
    sums = Counter[tuple[str, str]]()
    for share in shares:
        sums[share.provider, share.kind] += share.amount
    return sums
