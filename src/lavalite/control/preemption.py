"""Preemption: a job of a queue that may do so has tasks of queues of lower priority stopped, where it then starts.

    no room for a job ──► the fewest tasks whose end makes room for it beside all that is kept for others
                              ├── none: it waits, and is looked at again when anything was taken or freed
                              └── they are told to end, and that room is kept for it as a planned start until then

Among as few: of the lowest queue priority, then of the lowest job priority, then the youngest. What stops already
counts as gone. Nobody is stopped in vain: limits, quotas, reservations and planned starts are held against it first.
That there are no fewer is sure for one and two tasks on a node; beyond that none of them could be left out.

A gang counts as all of its tasks, since they end as one. What floats (licences) is never preempted for.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, combinations, islice

from lavalite.control import gangs, parking, seating
from lavalite.control.ahead import lasts_until
from lavalite.control.demand import WaitingClass
from lavalite.control.find_start import planned
from lavalite.control.outbox import Outbox
from lavalite.control.plan import PlannedStart
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState, TaskKey, TaskRun
from lavalite.control.vacated import STUCK_SECONDS, Vacated, provider_of, stops
from lavalite.control.wishes import Ending, preempt
from lavalite.model.resources import CPU, PLACES
from lavalite.model.specs import Preemption
from lavalite.model.task import TaskState

PREEMPTED = "preempted"
"""How the reason begins with which an attempt has ended that was preempted."""
MAX_LOOKED_AT = 4096
"""Tasks of lower queues that one search looks at."""
MAX_PROVIDERS = 64
"""So many of the nodes that could be vacated are compared with each other."""
MAX_PAIRED = 32
"""Of so many tasks of a node each two are tried."""
FEW_PAIRED = 8
MAX_TASKS = 64
"""So many tasks of an array are preempted for at a time."""
AGAIN_SECONDS = 1.0
"""For so long nobody is looked for again for who found none."""
MAX_LOOKED_AGAIN = 8
"""So many of those have their turn again in a tick."""


@dataclass(slots=True, frozen=True)
class _Unit:
    """What ends together: a task, or all of a gang. `rank` is the least for who is to go first."""

    runs: tuple[TaskRun, ...]
    rank: tuple[int, int, float, TaskKey]


@dataclass(slots=True, frozen=True)
class _Choice:
    """Who is to end, and where the job's tasks then go: so many of each part on each provider."""

    units: tuple[_Unit, ...]
    seats: tuple[dict[str, int], ...]


def go_on(state: ClusterState, job: JobState, now: float) -> bool:
    """Whether room is being made for the job since a pass before: then that is kept for it in this one too."""
    start = state.plan.before(job.id)
    if start is None or not _stands(state, start, now):
        return False
    state.plan.take_before(job.id)
    state.plan.add(start)
    return True


def make_room(
    state: ClusterState, waiting: WaitingClass, job: JobState, wanted: int, now: float, out: Outbox
) -> bool:
    """Have others stopped for up to so many tasks of the job, which has no room; whether that makes room for any."""
    rule = state.queue(waiting.queue).preemption
    if rule is None or not wanted or job.asks.reservation or not _is_due(state, waiting, now):
        return False
    if not state.plan.searches_left:
        state.plan_wanted = True
        return False
    state.plan.searches_left -= 1
    found = _Search(state, waiting, job, rule, now).choose(min(wanted, MAX_TASKS))
    if found is None:
        state.without_victims[waiting.shape] = (now, state.book.changes + state.moves)
        return False
    state.without_victims.pop(waiting.shape, None)
    why = f"{PREEMPTED} for job {job.id} of queue {waiting.queue}"
    grace_seconds = state.settings.stop_grace_seconds if rule.grace_seconds is None else float(rule.grace_seconds)
    ending = Ending(rule.signal, grace_seconds)
    for run in (run for unit in found.units for run in unit.runs):
        if rule.mode == "suspend":
            parking.suspend(state, run, why, now, out)
        else:
            preempt(state, run, why, ending, now, out, cancel=rule.mode == "cancel")
    _keep(state, waiting, job, found, now)
    return True


def waited_for(state: ClusterState, job: JobState, now: float) -> list[TaskRun]:
    """The tasks whose end a job waits for that they were preempted for, or that it counts on."""
    start = state.plan.starts.get(job.id)
    return [] if start is None else sorted(_alive(state, start), key=lambda run: run.key)


def look_again(state: ClusterState, now: float) -> None:
    """Give some a turn who found nobody to preempt, and sleep, when anything has been taken or freed since."""
    gone = [shape for shape in state.without_victims if shape not in state.order.shapes(shape[0])]
    for shape in gone:
        del state.without_victims[shape]
    due = [s for s, (at, changes) in state.without_victims.items() if _may_differ(state, at, changes, now)]
    for shape in due[:MAX_LOOKED_AGAIN]:
        state.asleep.forget(shape)
        state.schedule_wanted = True


def _is_due(state: ClusterState, waiting: WaitingClass, now: float) -> bool:
    tried = state.without_victims.get(waiting.shape)
    return tried is None or _may_differ(state, *tried, now)


def _may_differ(state: ClusterState, at: float, changes: int, now: float) -> bool:
    return now >= at + AGAIN_SECONDS and changes != state.book.changes + state.moves


def _stands(state: ClusterState, start: PlannedStart, now: float) -> bool:
    """Whether anything is still to end for it, and may be counted on to do so."""
    return bool(start.preempts) and now < start.at + STUCK_SECONDS and any(True for _ in _alive(state, start))


def _alive(state: ClusterState, start: PlannedStart) -> Iterator[TaskRun]:
    for attempt in start.preempts:
        run = state.runs.get(TaskKey(attempt.job, attempt.task))
        if run is not None and run.attempt == attempt.attempt and run.stop_by is not None:
            yield run


def _keep(state: ClusterState, waiting: WaitingClass, job: JobState, found: _Choice, now: float) -> None:
    """Keep for the job what becomes free, and what is free beside it, from when all of that has ended."""
    stopping = (run for key in state.stopping if stops(run := state.runs[key], now))
    ending = [run for run in stopping if any(provider_of(state, run) in seats for seats in found.seats)]
    at = max((lasts_until(state, run, now) for run in ending), default=now)
    if not ending:
        state.keeps_changed = True  # they ended at once: it starts in the next pass
    state.plan.add(planned(state, waiting, job, found.seats, at, now, frozenset(run.id for run in ending)))


class _Search:
    """Who could be stopped so that tasks of the job fit."""

    def __init__(
        self, state: ClusterState, waiting: WaitingClass, job: JobState, rule: Preemption, now: float
    ) -> None:
        self._state, self._job, self._rule, self._now = state, job, rule, now
        self._waiting, self._queue = waiting, waiting.queue
        self._tried = (MAX_PAIRED, FEW_PAIRED) if waiting.parts else (MAX_LOOKED_AT, MAX_PAIRED)
        """Of so many units each is tried alone, and each two: seats for parts take longer to find."""
        self._only = CPU if rule.mode == "suspend" else ""
        self._vacated = Vacated(state, waiting, job, now)
        self._units: list[_Unit] = []
        self._by_provider: dict[str, list[_Unit]] = {}

    def choose(self, wanted: int) -> _Choice | None:
        """None where nobody, or nobody who may be preempted, would make room for it."""
        self._look()
        stopping = [run for key in self._state.stopping if stops(run := self._state.runs[key], self._now)]
        for run in stopping:
            if self._helps(run):
                self._by_provider.setdefault(provider_of(self._state, run), [])
        self._vacated.take(*stopping)
        return self._for_gang() if self._job.is_gang else self._for_tasks(wanted)

    # --- who may be preempted

    def _look(self) -> None:
        state, told = self._state, set[int]()
        mine = state.queue(self._queue).priority
        below = min(mine, mine if self._rule.below is None else self._rule.below)
        queues = [q for q in state.usage.queues() if state.queue(q).priority < below]
        if self._rule.queues:
            queues = [q for q in queues if q in self._rule.queues]
        queues.sort(key=lambda q: (state.queue(q).priority, q))
        for key in islice((key for q in queues for key in state.usage.in_queue(q)), MAX_LOOKED_AT):
            job = state.jobs[key.job]
            if not job.is_gang:
                runs = [state.runs[key]]
            elif job.id in told:
                continue
            else:
                told.add(job.id)
                runs = gangs.runs_of(state, job)
            if all(self._may_end(job, run) for run in runs) and any(self._helps(run) for run in runs):
                youngest = max(run.committed_at for run in runs)
                rank = (state.queue(job.queue).priority, job.asks.priority, -youngest, key)
                self._units.append(_Unit(tuple(runs), rank))
        self._units.sort(key=lambda unit: unit.rank)
        for unit in self._units:
            for provider in {provider_of(state, run) for run in unit.runs if self._helps(run)}:
                self._by_provider.setdefault(provider, []).append(unit)

    def _may_end(self, job: JobState, run: TaskRun) -> bool:
        most = self._state.queue(job.queue).max_preemptions
        if most is not None and job.preemptions.get(run.position, 0) >= most:
            return False
        if self._rule.mode == "requeue" and (not job.asks.rerunnable or gangs.has_begun_to_end(job)):
            return False
        if run.suspend_requested or (self._only and run.state is not TaskState.RUNNING):
            return False
        node = self._state.nodes.get(run.node)
        reached = node is not None and node.connected and node.journal_id == run.journal_id
        live = not run.assumed and run.state is not TaskState.UNKNOWN
        return live and reached and not (run.cancel_requested or run.requeue_requested or job.asks.reservation)

    def _helps(self, run: TaskRun) -> bool:
        return self._vacated.may_help(provider_of(self._state, run))

    # --- who is

    def _for_gang(self) -> _Choice | None:
        def steps() -> list[gangs.Step]:
            return seating.seats_in(self._state, self._waiting, self._job, self._vacated).steps

        units = self._fewest(self._units, lambda: bool(steps()))
        if units is None:
            return None
        return _Choice(units, seating.by_part(self._waiting, steps(), self._state.columns.names))

    def _for_tasks(self, wanted: int) -> _Choice | None:
        """One task after the other, each where the fewest have to end for it."""
        chosen: list[_Unit] = []
        seats: dict[str, int] = {}
        known: dict[str, tuple[_Unit, ...] | None] = {}
        for _ in range(wanted):
            provider = next((p for p in self._by_provider if self._vacated.room(p) > seats.get(p, 0)), "")
            if not provider:
                best = self._best(seats, chosen, known)
                if best is None:
                    break
                provider, units = best
                self._take(units)
                chosen += units
                for run in (run for unit in units for run in unit.runs):
                    known.pop(provider_of(self._state, run), None)
            seats[provider] = seats.get(provider, 0) + 1
            known.pop(provider, None)
        return _Choice(tuple(chosen), (seats,)) if seats else None

    def _best(
        self, seats: dict[str, int], chosen: list[_Unit], known: dict[str, tuple[_Unit, ...] | None]
    ) -> tuple[str, tuple[_Unit, ...]] | None:
        """Where the fewest have to end for one more task, and who. `known`: by node, who it was before."""
        best: tuple[str, tuple[_Unit, ...]] | None = None
        least: tuple[float, list[tuple[int, int, float, TaskKey]]] = (math.inf, [])
        looked, taken = 0, {id(unit) for unit in chosen}
        for provider, all_units in self._by_provider.items():
            if looked == MAX_PROVIDERS:
                break
            left = [unit for unit in all_units if id(unit) not in taken]
            if provider not in known:
                known[provider] = self._fewest_on(provider, left, seats.get(provider, 0) + 1)
            units = known[provider]
            if units is None:
                continue
            looked += 1
            key = (sum(len(unit.runs) for unit in units), sorted((unit.rank for unit in units), reverse=True))
            if key < least:
                least, best = key, (provider, units)
            if units == (left[0],) and least[0] == 1:
                break  # those that come later have nobody who would go first
        return best

    def _fewest_on(self, provider: str, units: list[_Unit], tasks: int) -> tuple[_Unit, ...] | None:
        before = self._vacated.snapshot()
        least = self._at_least(provider, units, tasks)
        found = self._fewest(units, lambda: self._vacated.room(provider) >= tasks, least) if least else None
        self._vacated.restore(before)
        return found

    def _at_least(self, provider: str, units: list[_Unit], tasks: int) -> int:
        """So many have to end there at least, by what each gives back; 0 where all together are too few."""
        least = 1
        for kind, lacking in self._vacated.lacks(provider, tasks).items():
            given = sorted((self._gives(provider, unit, kind) for unit in units), reverse=True)
            sums = list(accumulate(given))
            if not sums or sums[-1] < lacking:
                return 0
            least = max(least, 1 + bisect_left(sums, lacking))
        return least

    def _gives(self, provider: str, unit: _Unit, kind: str) -> int:
        if self._only and kind != self._only:
            return 0
        if kind == PLACES:
            node = self._state.places.node(provider)
            return sum(self._state.book.places(run.key.owner, node) for run in unit.runs)
        shares = (share for run in unit.runs for share in self._state.shares_on(run.key.owner, provider))
        return sum(share.amount for share in shares if share.kind == kind)

    def _take(self, units: tuple[_Unit, ...]) -> None:
        self._vacated.take(*(run for unit in units for run in unit.runs), only=self._only)

    def _fewest(self, units: list[_Unit], fits: Callable[[], bool], least: int = 1) -> tuple[_Unit, ...] | None:
        """As few as can be told, of `least` at least, in the order of rank, so that it fits; they are taken. None if
        it never does."""
        before = self._vacated.snapshot()

        def would(some: tuple[_Unit, ...]) -> bool:
            self._vacated.restore(before)
            self._take(some)
            return fits()

        first, last = 0, len(units) + 1
        while first < last:  # the fewest of those that go first
            middle = (first + last) // 2
            if middle > len(units) or would(tuple(units[:middle])):
                last = middle
            else:
                first = middle + 1
        if first > len(units):
            return None
        found = tuple(units[:first])
        for unit in reversed(found[:-1]):  # who would be the last to go is let off first
            if len(found) > least:
                fewer = tuple(other for other in found if other is not unit)
                found = fewer if would(fewer) else found
        for number in (1, 2):
            if len(found) > number >= least:
                paired = units[: self._tried[number - 1]]
                found = next((some for some in combinations(paired, number) if would(some)), found)
        would(found)
        return found
