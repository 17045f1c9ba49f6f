"""What is kept on nodes for some users during some time, and what that leaves to everybody else.

    asked for ──► planned ──► active (from `start` on) ──► over (at `end`, unused for too long, or when told)

A reservation holds nothing in the book. It is a promise that placement keeps, and that is durable before it is given:
on each of its nodes, so much stays free, from its start on, of whatever may run into its time. Its own tasks take
theirs from it, only within its time, and end with it. The law, at any time, on each of its nodes and for each kind:

    what is committed and may last past its start + what is still kept of it ≤ capacity

Whether a task is over by then is judged by its walltime, with a margin for how long it takes to start and to stop.
A task that is late all the same only makes the reservation's own tasks wait for it. So do, where one begins when
another ends, that one's tasks while they are being stopped: each reservation has all of its time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from lavalite.control.ahead import ahead_of, lasts_until, margin_seconds
from lavalite.control.node_state import NodeState
from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState, TaskKey, TaskRun
from lavalite.model.amounts import format_amount
from lavalite.model.job import Share
from lavalite.model.reservation import Reservation
from lavalite.model.resources import GPU, WHOLE
from lavalite.model.selector import Selector
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import DeviceRow, state_reason
from lavalite.placement.ranking import Bounds
from lavalite.placement.reasons import Reason, Refusal

NOTHING: Mapping[str, int] = {}


@dataclass(slots=True, frozen=True)
class Asked:
    """What is asked for: these amounts on each of `count` nodes of the pool, or of all nodes where none is named."""

    amounts: Mapping[str, int]
    count: int
    pool: str
    start: float
    end: float
    later: tuple[float, ...] = ()
    """When it starts again, where it recurs."""
    selector: Selector | None = None
    """Only nodes that it selects; where absent, any."""

    def spans(self) -> Iterator[tuple[float, float]]:
        yield self.start, self.end
        yield from ((start, start + self.end - self.start) for start in self.later)

    def sentence(self) -> str:
        words = " and ".join(format_amount(kind, amount, named=True) for kind, amount in sorted(self.amounts.items()))
        return f"{words} on {self.count} node{'s'[: self.count != 1]}" + (f" of pool {self.pool}" * bool(self.pool))


class Left(NamedTuple):
    """What is left on a provider, per kind, and its devices."""

    free: Mapping[str, int]
    devices: tuple[DeviceRow, ...]


# --- making one -----------------------------------------------------------------------------------------------------


def choose_nodes(state: ClusterState, asked: Asked, now: float) -> list[str] | Refusal:
    """The nodes with least to spare that have room beside all that is committed or kept at that time; or why not."""
    members = state.pool_members().get(asked.pool, []) if asked.pool else list(state.nodes)
    if (selector := asked.selector) is not None:
        members = [name for name in members if selector.matches(name, state.nodes[name].labels)]
    refusal = Refusal(asked=asked.sentence())
    fitting: list[tuple[int, str]] = []
    least: int | None = None
    for name, node in state.nodes.items():
        reason, lacks, spare = _judged(state, node, asked, now, member=name in members)
        if reason is None:
            fitting.append((spare, name))
            continue
        refusal.turned_away[reason] = refusal.turned_away.get(reason, 0) + 1
        short = sum(lack * 1000 // asked.amounts[kind] for kind, lack in lacks.items())
        if lacks and (least is None or short < least):
            least, refusal.nearest, refusal.lacks = short, name, lacks
    if len(fitting) < asked.count:
        return refusal
    return [name for _, name in sorted(fitting)[: asked.count]]


def _judged(
    state: ClusterState, node: NodeState, asked: Asked, now: float, *, member: bool
) -> tuple[Reason | None, dict[str, int], int]:
    """Why a node cannot have it and what it lacks, or how much would be to spare there, per mille of each kind."""
    if not member:
        return Reason.NOT_IN_POOL, {}, 0
    if any(not state.book.capacity(node.name, kind) for kind in asked.amounts):
        return Reason.NO_KIND, {}, 0
    if any(state.book.capacity(node.name, kind) < amount for kind, amount in asked.amounts.items()):
        return Reason.TOO_SMALL, {}, 0
    closed = state_reason(state.node_row_state(node, now))
    if closed is not None:
        return closed, {}, 0
    if any(run.exclusive and not _is_over_by(state, run, asked.start, now) for run in node.runs.values()):
        return Reason.NOT_SHARED, {}, 0
    room = _room_then(state, node, asked, now)
    lacks = {kind: amount - room[kind] for kind, amount in asked.amounts.items() if room[kind] < amount}
    if lacks:
        return Reason.TOO_FEW_FREE, lacks, 0
    spare = sum((room[k] - a) * 1000 // state.book.capacity(node.name, k) for k, a in asked.amounts.items())
    return None, {}, spare


def _room_then(state: ClusterState, node: NodeState, asked: Asked, now: float) -> dict[str, int]:
    """What is left of each kind beside what may still be held at that time, and what is kept for others then."""
    over = [run for run in node.runs.values() if _is_over_by(state, run, asked.start, now)]
    others = [r for r in state.reservations.values() if node.name in r.nodes]
    together = {frozenset(r.name for r in others if r.overlaps(*span)) for span in asked.spans()} if others else {()}
    room = {}
    for kind in asked.amounts:
        ended = sum(s.amount for run in over for s in _shares_here(state, run.key, node.name, kind))
        room[kind] = state.book.capacity(node.name, kind) - state.book.committed(node.name, kind) + ended
        if kind == GPU:
            room[kind] = min(room[kind], WHOLE * _whole_then(state, node, over))
        left = {r.name: _left_then(state, r, node, kind, over) for r in others}
        most_kept = max(sum(left[name] for name in names) for names in together)
        room[kind] = max(0, room[kind] - most_kept)
    return room


def _left_then(state: ClusterState, kept: Reservation, node: NodeState, kind: str, over: Iterable[TaskRun]) -> int:
    """What is kept of another reservation beside what its own tasks hold past that time."""
    ended = sum(
        state.jobs[run.key.job].spec.at(run.position).request.amounts().get(kind, 0)
        for run in over
        if state.jobs[run.key.job].spec.reservation == kept.name
    )
    return left_of(state, kept, node.name, kind) + ended


def _whole_then(state: ClusterState, node: NodeState, over: Iterable[TaskRun]) -> int:
    instances = {device.id for device in node.offer.devices(GPU) if device.mig}
    free = {d: left for d, left in state.book.device_free(node.name, GPU).items() if d not in instances}
    for run in over:
        for share in _shares_here(state, run.key, node.name, GPU):
            for device in share.devices:
                if device in free:
                    free[device] += share.amount // len(share.devices)
    return sum(left >= WHOLE for left in free.values())


def _shares_here(state: ClusterState, key: TaskKey, node: str, kind: str) -> list[Share]:
    return [s for s in state.book.shares(key.owner) if s.provider == node and s.kind == kind]


def _is_over_by(state: ClusterState, run: TaskRun, at: float, now: float) -> bool:
    """Whether the task has surely ended by then. One that is stopped, or of which nobody hears, may last."""
    return lasts_until(state, run, now) <= at


# --- what it leaves to others ---------------------------------------------------------------------------------------


def left_of(state: ClusterState, kept: Reservation, node: str, kind: str) -> int:
    """What of a reservation on a node its own tasks do not hold."""
    used = state.reserved_use.get((kept.name, node), {})
    return max(0, kept.amounts.get(kind, 0) - used.get(kind, 0))


def kept_on(state: ClusterState, node: str, now: float, until: float = math.inf) -> dict[str, int]:
    """Per kind, what somebody who may hold something up to `until` must leave free there."""
    kept: dict[str, int] = {}
    for reservation in state.reservations.values():
        spans = reservation.spans(now, until) if node in reservation.nodes else iter(())
        starts = [start for start, _ in islice(spans, 2)]
        for kind, amount in reservation.amounts.items() if starts else ():
            # Its own tasks end with its present time: of a later one all is kept.
            left = left_of(state, reservation, node, kind) if starts == [reservation.start] else amount
            kept[kind] = kept.get(kind, 0) + left
    return {kind: amount for kind, amount in kept.items() if amount}


def kept_shares(state: ClusterState, now: float) -> tuple[list[Share], set[str]]:
    """What composing must leave free, as shares; and the nodes of which GPUs are kept, closed to new hosts."""
    shares, closed = [], set()
    for node in {name for reservation in state.reservations.values() for name in reservation.nodes}:
        for kind, amount in kept_on(state, node, now).items():
            shares.append(Share(provider=node, kind=kind, amount=amount))
            if kind == GPU:
                closed.add(node)
    return shares, closed


def bounds(state: ClusterState, wanted: RequestClass, job: JobState, now: float) -> Bounds | None:
    """How many tasks of the job some rows take at most, beside what is kept for others; None: as many as fit.

    During a pass nothing is kept for the job itself: its own planned start was taken back.
    """
    if not (state.reservations or state.plan):
        return None
    most: dict[int, int] = {}
    if job.spec.reservation:
        kept = state.reservations.get(job.spec.reservation)
        for node in kept.nodes if kept and why_not_now(state, job, now) == "" else ():
            row = state.columns.row(node)
            if row is not None:
                most[row] = _inside(state, kept, node, wanted)
        return Bounds(most, only=True)
    until = would_last_until(state, job, now)
    providers = {name for r in state.reservations.values() for name in r.nodes} | set(state.plan.providers())
    for provider in providers | {other for name in providers for other in state.places.beside(name)}:
        row = state.columns.row(provider)
        if row is not None and wanted.tasks_on(state.columns, row):
            most[row] = _outside(state, wanted, provider, now, until)
    return Bounds(most)


def room(state: ClusterState, wanted: RequestClass, job: JobState, now: float) -> dict[int, int]:
    """How many tasks of the job each row takes, beside what is kept for others; rows that take none left out."""
    fits, kept = wanted.fits(state.columns), bounds(state, wanted, job, now)
    found = {int(row): int(fits[row]) for row in wanted.rows_that_fit(state.columns)}
    if kept is not None:
        found = {row: min(n, kept.most.get(row, 0 if kept.only else n)) for row, n in found.items()}
    return {row: tasks for row, tasks in found.items() if tasks > 0}


def room_beside(
    state: ClusterState,
    wanted: RequestClass,
    job: JobState,
    row: int,
    held: Mapping[str, int],
    left: Left,
    now: float,
) -> int:
    """How many tasks of the job a row takes that takes some, beside what is `held` of it for others of the job: so
    much is left then."""
    most, provider = wanted.tasks_in(left.free, left.devices), state.columns.names[row]
    if most <= 0 or not (state.reservations or state.plan):
        return max(0, most)
    if job.spec.reservation:
        return min(most, _inside(state, state.reservations.get(job.spec.reservation), provider, wanted, held))
    return min(most, _beside(state, wanted, provider, left, now, would_last_until(state, job, now)))


def _inside(
    state: ClusterState, kept: Reservation | None, node: str, wanted: RequestClass, held: Mapping[str, int] = NOTHING
) -> int:
    """How many tasks fit into what is left of the reservation there."""
    assert kept is not None, "only a reservation that there is lets anybody in"
    return min(
        max(0, left_of(state, kept, node, kind) - held.get(kind, 0)) // amount
        for kind, amount in wanted.amounts.items()
    )


def _outside(state: ClusterState, wanted: RequestClass, provider: str, now: float, until: float) -> int:
    """How many tasks that may last until then fit there, beside what is kept at any time up to that."""
    columns, row = state.columns, state.columns.row(provider)
    assert row is not None, "it has room for some"
    free = {kind: int(columns.free(kind)[row]) for kind in wanted.needs}
    return _beside(state, wanted, provider, Left(free, columns.devices(row)), now, until)


def _beside(state: ClusterState, wanted: RequestClass, provider: str, left: Left, now: float, until: float) -> int:
    """How many tasks fit there, where so much is left, beside what is kept."""
    shared = bool(state.places.beside(provider))  # what is kept for others over the same node is news here too
    points = None if shared else state.plan.points.get(provider)
    if points is None:
        points = ahead_of(state, provider, now).points(now)
        if state.plan.passing and not shared:
            state.plan.points[provider] = points
    return min(point.beside(wanted, left.free, left.devices) for point in points if point.at < until)


def would_last_until(state: ClusterState, job: JobState, now: float) -> float:
    """Until when a task of the job may hold its place if it is placed now."""
    walltime = state.walltime_seconds(job)
    return math.inf if walltime is None else now + walltime + margin_seconds(state)


# --- its own tasks --------------------------------------------------------------------------------------------------


def ends_by(state: ClusterState, job: JobState) -> float | None:
    """When the job's tasks end at the latest, since their reservation does."""
    kept = state.reservations.get(job.spec.reservation)
    return kept.end if kept else None


def why_not_now(state: ClusterState, job: JobState, now: float) -> str:
    """What keeps the job out of its reservation, as a sentence; empty if nothing does."""
    name = job.spec.reservation
    kept = state.reservations.get(name)
    if not name:
        return ""
    if kept is None or now >= kept.end:
        return f"Reservation {name} is over; this can never be met."
    if now < kept.start:
        return f"Reservation {name} begins in {round(kept.start - now)} s."
    if kept.drained:
        return f"Reservation {name} is drained."
    walltime = state.walltime_seconds(job)
    if job.spec.walltime_seconds is not None and walltime is not None and now + walltime > kept.end:
        return f"Reservation {name} ends in {round(kept.end - now)} s, and the job may take {walltime} s."
    return ""


def keeping_out(state: ClusterState, job: JobState, now: float, nodes: Iterable[str]) -> list[str]:
    """`reservation R (for another 300 s)`, `job 7 (to start in 20 s)`: for whom else something is kept there."""
    names = {name for node in nodes for name in (node, *state.places.beside(node))}
    others = (s for s in state.plan.starts.values() if not names.isdisjoint(s.seats) and s.job != job.id)
    planned = sorted(others, key=lambda start: (start.at, start.job))
    return [
        f"reservation {r.name} (for another {round(r.end - now)} s)"
        for r in sorted(state.reservations.values(), key=lambda r: r.name)
        if now < r.end and names & set(r.nodes)
    ] + [f"job {start.job} (to start in {max(0, round(start.at - now))} s)" for start in planned]


def held_back(
    state: ClusterState, wanted: RequestClass, job: JobState, now: float, closed: Collection[int] = ()
) -> list[str]:
    """The nodes that have room for the job, where all that is kept for others; none where any has more.

    `closed` are rows where it must not go.
    """
    fitting = [row for row in wanted.rows_that_fit(state.columns) if row not in closed]
    with state.plan.leaving_out(job.id):
        kept = bounds(state, wanted, job, now)
    if kept is None or any(kept.most.get(row, not kept.only) for row in fitting):
        return []
    return [state.columns.names[row] for row in fitting]


def let_go(state: ClusterState, now: float) -> None:
    """End those whose time is over, or that nobody has used for too long; one that recurs waits for its next time.

    Others may have begun just now.
    """
    if not state.reservations:
        return
    state.schedule_wanted = state.keeps_changed = True
    used = {name for name, _ in state.reserved_use}
    for kept in list(state.reservations.values()):
        if kept.name in used or now < kept.start:
            state.unused_since.pop(kept.name, None)
            idle_seconds = 0.0
        else:
            idle_seconds = now - state.unused_since.setdefault(kept.name, now)
        if now >= kept.end or (kept.timeout_seconds is not None and idle_seconds >= kept.timeout_seconds):
            following = kept.after()
            if following is None:
                state.remove_reservation(kept.name)
            else:
                state.set_next_time(following)
