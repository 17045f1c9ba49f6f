"""How a group gets its own back that others have borrowed.

    a task of an owner fits its group's nominal quota, and cannot be placed
        ──► claim: up to there, the quota is kept for it, so that nobody borrows it again
        ──► as many of the borrowers' tasks as it takes are stopped, with grace, and wait again: the newest first,
            only what is rerunnable, only of groups that hold more than their own, and where the task then fits

Nobody loses what is within the nominal quota of its group. Tasks that are not rerunnable are waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from lavalite.control import limits, quotas, seating
from lavalite.control.demand import WaitingClass
from lavalite.control.outbox import Outbox
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState, TaskKey, TaskRun
from lavalite.control.vacated import Vacated, VacatedRow
from lavalite.control.wishes import end_run
from lavalite.model.job import Share

REASON_RECLAIMED = "requeued: it ran on borrowed quota, which its owner needs"
MAX_CLAIMED_TASKS = 64
"""In one pass for one class; the next pass goes on."""
MAX_LOOKED_AT = 4096
"""Tasks of borrowers that one pass looks at for one class."""


@dataclass(slots=True)
class Claims:
    """What one pass found to be claimed: (pool, kind, group) → up to where."""

    found: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def settle(self, state: ClusterState, *, whole: bool) -> bool:
        """They stand until the next pass; whether some ended, so that others may borrow again.

        A pass that did not get to everybody ends none.
        """
        before, state.claims = state.claims, (self.found if whole else state.claims | self.found)
        return any(state.claims.get(place, 0) < level for place, level in before.items())


def claim(state: ClusterState, waiting: WaitingClass, job: JobState, now: float, out: Outbox, claims: Claims) -> None:
    """Claim what the job's group is sure of, for tasks that could not be placed; see to it that it becomes free."""
    charges = list(quotas.charges(state, job.spec))
    if not charges or not limits.allowed(state, job):
        return
    at_once = job.spec.tasks_counted  # so many are counted as one
    wanted = job.ready // at_once if job.is_gang else min(job.ready, MAX_CLAIMED_TASKS)
    for pool, kind, each in charges:
        found = quotas.standing(state, pool, kind, job.spec.group)
        wanted = min(wanted, max(0, found.nominal - found.used) // each)
    if not wanted:
        return
    excess = {(pool, kind, group): n for pool, kind, _ in charges for group, n in _excess(state, pool, kind, job)}
    if not excess:
        return
    vacated = Vacated(state, waiting, job, now)
    room = (
        (lambda: int(bool(seating.seats_in(state, waiting, job, vacated).seats)))
        if waiting.parts
        else vacated.room_of_all
    )
    search = _Search(state, vacated, room, job.spec.group, charges, wanted, excess)
    victims = search.victims()
    if search.enough < (len(job.codes) // at_once if job.is_gang else 1):
        return  # nothing that could be taken back would make room for it
    for pool, kind, each in charges:
        key = (pool, kind, job.spec.group)
        level = quotas.used_by(state, pool, kind, job.spec.group) + each * search.enough
        claims.found[key] = max(claims.found.get(key, 0), level)
    for run in victims:
        end_run(state, run, REASON_RECLAIMED, now, out, requeue=True)


def _excess(state: ClusterState, pool: str, kind: str, job: JobState) -> Iterator[tuple[str, int]]:
    """What other groups hold beyond their own."""
    spec = state.specs.pools[pool]
    for group in state.usage.groups_in(pool):
        more = quotas.used_by(state, pool, kind, group) - quotas.quota_of(spec, kind, group).nominal
        if group != job.spec.group and more > 0:
            yield group, more


@dataclass(slots=True)
class _Search:
    """Which tasks of borrowers are to stop so that `wanted` of the owner's fit. `enough`: how many then do."""

    state: ClusterState
    vacated: Vacated
    by_room: Callable[[], int]
    """For how many there is room."""
    owner: str
    charges: list[tuple[str, str, int]]
    wanted: int
    excess: dict[tuple[str, str, str], int]
    """(pool, kind, group) → what the group still holds beyond its own."""
    freed: dict[tuple[str, str], int] = field(default_factory=dict)
    enough: int = 0

    def victims(self) -> list[TaskRun]:
        """Those to stop. What stops already counts as gone."""
        stopping, others = self._candidates()
        for run in stopping:
            self._take(run)
        self.enough = self._fit()
        chosen: list[TaskRun] = []
        # Room there is, and only the quota is lent: any of them will do.
        self._try([run for run in others if self.by_room() > self.enough], chosen)
        # Else by node, so that nobody is stopped in vain where a task needs more than one of them holds.
        by_node: dict[str, list[TaskRun]] = {}
        told = {run.key for run in chosen}
        for run in others:
            if run.key not in told:
                by_node.setdefault(run.node, []).append(run)
        for runs in by_node.values():
            self._try(runs, chosen)
        return chosen

    def _try(self, runs: list[TaskRun], chosen: list[TaskRun]) -> None:
        """Take them one by one as long as that helps; those at the end that did not are given back."""
        taken: list[TaskRun] = []
        before = self._snapshot()
        for run in runs:
            if self.enough >= self.wanted:
                break
            if self._borrows(run):
                self._take(run)
                taken.append(run)
                if (now_fit := self._fit()) > self.enough:
                    self.enough = now_fit
                    chosen += taken
                    taken, before = [], self._snapshot()
        if taken:
            self.excess, self.freed, vacated = before
            self.vacated.restore(vacated)

    def _candidates(self) -> tuple[list[TaskRun], list[TaskRun]]:
        """(what stops already, what could be stopped), the newest first."""
        found: dict[TaskKey, TaskRun] = {}
        for pool, _, group in self.excess:
            for key in islice(self.state.usage.in_pool(pool, group), MAX_LOOKED_AT):
                found[key] = self.state.runs[key]
        newest = sorted(found.values(), key=lambda run: (-run.committed_at, run.key))
        stopping = [run for run in newest if run.requeue_requested or run.cancel_requested]
        told = {run.key for run in stopping}
        jobs = self.state.jobs
        others = [r for r in newest if r.key not in told and not r.assumed and jobs[r.key.job].spec.rerunnable]
        return stopping, others

    def _borrows(self, run: TaskRun) -> bool:
        """Whether the task's group holds more than its own of what the task holds, without what was taken of it."""
        group = self.state.jobs[run.key.job].spec.group
        return any(self.excess.get((s.pool, s.kind, group), 0) > 0 for s in self._shares(run))

    def _take(self, run: TaskRun) -> None:
        """Look at it all as if the task had ended."""
        group = self.state.jobs[run.key.job].spec.group
        for share in self._shares(run):
            place = (share.pool, share.kind)
            self.freed[place] = self.freed.get(place, 0) + share.amount
            if (*place, group) in self.excess:
                self.excess[*place, group] -= share.amount
        self.vacated.take(run)

    def _shares(self, run: TaskRun) -> list[Share]:
        return [share for share in self.state.book.shares(run.key.owner) if share.provider == run.node]

    def _fit(self) -> int:
        """How many of the owner's tasks would fit, by quota and by room."""
        most = min(self.wanted, self.by_room())
        for pool, kind, each in self.charges:
            room = quotas.standing(self.state, pool, kind, self.owner).room + self.freed.get((pool, kind), 0)
            most = min(most, max(0, room) // each)
        return most

    def _snapshot(self) -> tuple[dict[tuple[str, str, str], int], dict[tuple[str, str], int], dict[str, VacatedRow]]:
        return dict(self.excess), dict(self.freed), self.vacated.snapshot()
