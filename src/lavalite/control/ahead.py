"""What is free on a provider later: what is free now, what ends until then, and what is kept for others.

    amount │        ┌───── capacity            R1, R2 run and end; K is kept, from its start to its end
           │  R1    │ free                     what may run from now on past K's start has, at K's start:
           ├────┐   │
           │ R2 │   ├──────────┐                   free now + what has ended by then − K
           │    └───┤    K     │
           └────────┴──────────┴──► time       Between starts of what is kept, room only grows.

An end is the latest that a task's walltime allows, counted from its commitment: it takes its time to start, and its
stop may take its grace. What has no walltime never ends, nor does what is stopped or not heard of.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lavalite.control.plan import PlannedStart
from lavalite.control.tasks import TaskKey, TaskRun
from lavalite.ledger.book import FLOATING
from lavalite.model.reservation import Reservation
from lavalite.model.resources import CPU, GPU, PLACES, WHOLE
from lavalite.model.task import TaskState
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import DeviceRow, GpuSelector

if TYPE_CHECKING:
    from lavalite.control.state import ClusterState

Devices = tuple[DeviceRow, ...]

WEEK_SECONDS = 8 * 86400.0
"""With a day more: clocks go forward and back."""
MARGIN_SECONDS = 60.0
"""From a placement to the start of its task, at most."""


def margin_seconds(state: ClusterState) -> float:
    """How much longer than its walltime a task may hold its place: it starts late, and its stop takes its grace."""
    return MARGIN_SECONDS + state.settings.stop_grace_seconds


def lasts_until(state: ClusterState, run: TaskRun, now: float) -> float:
    """When the task has surely ended: by its walltime, or since it was told to end; never, if it is suspended or
    nobody hears of it."""
    if run.stop_by is not None:
        return max(run.stop_by, now + 1.0)
    if run.state not in (TaskState.COMMITTED, TaskState.RUNNING):
        return math.inf
    grace_seconds = state.settings.stop_grace_seconds
    walltime = state.walltime_seconds(state.jobs[run.key.job])
    begun = max(run.committed_at + MARGIN_SECONDS, now if run.started_at is None else run.started_at)
    ends = math.inf if walltime is None else begun + walltime
    if run.ends_by is not None:
        ends = min(ends, run.ends_by)
    return max(ends + grace_seconds, now + grace_seconds)


@dataclass(slots=True, frozen=True)
class Release:
    """What a task gives back at a time, per kind, and of which devices how much."""

    at: float
    amounts: dict[str, int]
    devices: dict[str, int]


@dataclass(slots=True, frozen=True)
class Keep:
    """What is kept for somebody from a start up to an end."""

    start: float
    end: float
    amounts: Mapping[str, int]
    gpu: GpuSelector | None = None


@dataclass(slots=True, frozen=True)
class Point:
    """What a time adds to what is free now, and takes from it."""

    at: float
    released: dict[str, int]
    devices: dict[str, int]
    kept: dict[str, int]
    choosy: bool
    """Whether GPUs of a certain sort are kept."""

    def fits(self, wanted: RequestClass, free: Mapping[str, int], devices: Devices) -> int:
        """How many tasks could start then, beside what is kept."""
        most = self._by_amounts(wanted, free)
        if not most or wanted.gpu is None:
            return most
        gpu = wanted.gpu
        able = [d for d in self.devices_then(devices) if gpu.units(d)]
        if self._may_be_of(devices):
            return 0
        whole = max(0, sum(d.free == WHOLE for d in able) - self.whole_kept)
        if not gpu.part:
            if gpu.together:
                # Each that is kept may be of the island of another task.
                return min(most, max(0, wanted.gpu_tasks(able) - self.whole_kept))
            return min(most, whole // (wanted.amounts[GPU] // WHOLE))
        return min(most, sum(gpu.units(d) for d in able if d.free < WHOLE) + whole * (WHOLE // gpu.part))

    def beside(self, wanted: RequestClass, free: Mapping[str, int], devices: Devices) -> int:
        """How many tasks could start now and still be there then, beside what is kept.

        Whole GPUs are kept, whichever are free then; so what matters is which ones the tasks would be given now. Of a
        mixed lot nothing is given where the sort matters.
        """
        most = self._by_amounts(wanted, free)
        if not most or wanted.gpu is None or not self.whole_kept:
            return most
        if self._may_be_of(devices):
            return 0
        taken: dict[str, int] = {}
        for tasks in range(min(most, len(devices) * WHOLE)):
            now = tuple(replace(d, free=d.free - taken.get(d.id, 0)) for d in devices)
            if not wanted.gpu_tasks(now):
                return tasks
            for device in wanted.pick_devices(now):
                taken[device] = taken.get(device, 0) + (wanted.gpu.part or WHOLE)
            then = [d.free - taken.get(d.id, 0) for d in self.devices_then(devices)]
            if sum(left == WHOLE for left in then) < self.whole_kept:
                return tasks
        return most

    def _may_be_of(self, devices: Devices) -> bool:
        """Whether it matters which of a mixed lot are kept; MIG instances are never what whole GPUs are kept by."""
        choosy = self.choosy or (self.whole_kept > 0 and any(d.mig for d in devices))
        return choosy and len({d.sort for d in devices}) > 1

    @property
    def whole_kept(self) -> int:
        return -(-self.kept.get(GPU, 0) // WHOLE)

    def _by_amounts(self, wanted: RequestClass, free: Mapping[str, int]) -> int:
        most = 2**40
        for kind, amount in wanted.needs.items():
            most = min(most, max(0, free[kind] + self.released.get(kind, 0) - self.kept.get(kind, 0)) // amount)
        return most

    def devices_then(self, devices: Devices) -> list[DeviceRow]:
        return [replace(d, free=min(WHOLE, d.free + self.devices.get(d.id, 0))) for d in devices]


class Ahead:
    """One provider, from now on."""

    def __init__(self, releases: list[Release], keeps: list[Keep]) -> None:
        self.releases = sorted(releases, key=lambda release: release.at)
        self.keeps = keeps

    def at(self, time: float) -> Point:
        released: dict[str, int] = {}
        devices: dict[str, int] = {}
        for release in self.releases:
            if release.at > time:
                break
            _add(released, release.amounts)
            _add(devices, release.devices)
        kept: dict[str, int] = {}
        alive = [keep for keep in self.keeps if keep.start <= time < keep.end]
        for keep in alive:
            _add(kept, keep.amounts)
        choosy = any(k.gpu is not None and (k.gpu.model or k.gpu.memory_bytes or k.gpu.mig) for k in alive)
        return Point(time, released, devices, kept, choosy)

    def points(self, now: float, until: float = math.inf) -> list[Point]:
        """Now, and each later start of something that is kept, before `until`: where room can be least."""
        times = {now} | {keep.start for keep in self.keeps if now < keep.start < until}
        return [self.at(time) for time in sorted(times)]

    def times(self, first: float) -> Iterator[float]:
        """When room may become more: at first, and whenever something ends."""
        ends = {r.at for r in self.releases} | {k.end for k in self.keeps}
        yield first
        yield from sorted(time for time in ends if first < time < math.inf)


def ahead_of(state: ClusterState, provider: str, now: float) -> Ahead:
    return Ahead(releases_of(state, provider, now), keeps_of(state, provider, now))


def releases_of(state: ClusterState, provider: str, now: float, without: Container[TaskKey] = ()) -> list[Release]:
    """What the tasks on a provider give back, those that end; the tasks of a reservation to that until it is over.

    Tasks of `without` are left out, as if they had ended.
    """
    node = state.node_of(provider)
    releases = []
    for run in node.runs.values() if node is not None else ():
        if run.key in without:
            continue
        at = lasts_until(state, run, now)
        kept = state.reservations.get(state.jobs[run.key.job].asks.reservation)
        if kept is not None:
            at = max(at, kept.end)
        if at == math.inf:
            continue
        amounts: dict[str, int] = {}
        devices: dict[str, int] = {}
        for share in state.shares_on(run.key.owner, provider):
            if share.kind == CPU or not run.suspend_requested:
                amounts[share.kind] = amounts.get(share.kind, 0) + share.amount
                for device in share.devices if share.kind == GPU else ():
                    devices[device] = devices.get(device, 0) + share.amount // len(share.devices)
        if not run.suspend_requested and (places := state.book.places(run.key.owner, state.places.node(provider))):
            amounts[PLACES] = places
        if amounts:
            releases.append(Release(at, amounts, devices))
    return releases


def keeps_of(state: ClusterState, provider: str, now: float) -> list[Keep]:
    """What is kept there: of reservations what their own tasks do not hold, and planned starts."""
    keeps = [keep for start in state.plan.on(provider) for keep in _planned(start, provider)]
    for other in state.places.beside(provider):
        keeps += [_without_gpus(keep) for start in state.plan.on(other) for keep in _planned(start, other)]
    node = state.places.node(provider)
    begins = [keep.start for keep in keeps] + [r.start for r in state.reservations.values() if node in r.nodes]
    for kept in state.reservations.values():
        if node in kept.nodes and kept.end > now:
            used = state.reserved_use.get((kept.name, node), {})
            left = {kind: max(0, amount - used.get(kind, 0)) for kind, amount in kept.amounts.items()}
            # One place stands for all that its tasks take: it keeps out who is to have the node for itself.
            later = kept.amounts | {PLACES: 1}
            mine = [Keep(kept.start, kept.end, left | {PLACES: 1})]
            mine += [Keep(start, end, later) for start, end in _later(kept, [now, *begins])]
            keeps += mine if node == provider else map(_without_gpus, mine)
    return keeps


def _without_gpus(keep: Keep) -> Keep:
    """What is kept on one row, as others over the same node see it: their GPUs are not its."""
    return Keep(keep.start, keep.end, {kind: n for kind, n in keep.amounts.items() if kind != GPU})


def _later(kept: Reservation, begins: list[float]) -> list[tuple[float, float]]:
    """Times of one that recurs, but its present one: those of a week from each beginning on. More make no difference:
    what recurs does so each week, and of what does not each has a week of its own.
    """
    if not kept.later:
        return []
    found = {span for begin in begins for span in kept.spans(begin, begin + WEEK_SECONDS)}
    return sorted(found - {(kept.start, kept.end)})


def _planned(start: PlannedStart, provider: str) -> Iterator[Keep]:
    for part in start.parts:
        if not (tasks := part.seats.get(provider, 0)):
            continue
        amounts = {kind: amount * tasks for kind, amount in part.amounts.items()}
        if tasks > 1 and part.gpu is not None and part.gpu.part:
            amounts[GPU] = WHOLE * -(-tasks // (WHOLE // part.gpu.part))  # parts of one task are of one device
        yield Keep(start.at, start.until, amounts, part.gpu)


def floating_ahead(state: ClusterState, kinds: Collection[str], now: float) -> Ahead:
    """What floats, of these kinds, as if it were a node."""
    releases = []
    for kind in kinds:
        for owner, held in state.book.holders(FLOATING, kind).items():
            run = state.run_of(owner)
            at = math.inf if run is None else lasts_until(state, run, now)
            if at < math.inf:
                releases.append(Release(at, {kind: held}, {}))
    starts = state.plan.starts.values()
    kept = [Keep(s.at, s.until, s.floating) for s in starts if not s.floating.keys().isdisjoint(kinds)]
    return Ahead(releases, kept)


def floating_room(state: ClusterState, floating: Mapping[str, int], points: Iterable[Point]) -> int:
    """For how many tasks there is enough of what floats, at each of these times."""
    room = 2**40
    for point in points:
        for kind, amount in floating.items():
            left = state.book.free(FLOATING, kind) + point.released.get(kind, 0) - point.kept.get(kind, 0)
            room = min(room, max(0, left) // amount)
    return room


def _add(sums: dict[str, int], more: Mapping[str, int]) -> None:
    for key, amount in more.items():
        sums[key] = sums.get(key, 0) + amount
