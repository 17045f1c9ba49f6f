"""Why a job waits, exactly: each filter and how many nodes it turned away, the nearest fit, and what it lacks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lavalite.control import affinity, gangs, limits, parking, preemption, quotas, reservations, seating, shares
from lavalite.control.dependencies import first_missing, never
from lavalite.control.estimates import Estimates
from lavalite.control.find_start import floating_of
from lavalite.control.seating import RoomsNow
from lavalite.control.state import ClusterState
from lavalite.control.supply import takes_work
from lavalite.control.tasks import ASSUMED, BLOCKED, WAITING, JobState, TaskRun
from lavalite.ledger.book import FLOATING
from lavalite.model.amounts import format_amount
from lavalite.model.job import Dependency, DependencyKind, Request
from lavalite.model.resources import PLACES
from lavalite.model.specs import format_kind, sorted_kinds
from lavalite.model.task import TaskState
from lavalite.placement.classes import RequestClass
from lavalite.placement.filters import refusal
from lavalite.placement.reasons import Reason, Refusal
from lavalite.placement.room import natural

MAX_NAMED = 10
COMING_BACK_SECONDS = 15.0
"""So long after a leader began to serve, a node that is not connected is taken for one that looks for it."""


@dataclass(slots=True)
class Explanation:
    """Field by field what the API answers. `filters` counts nodes by the reason that turned them away."""

    job: int
    state: str
    asks: str = ""
    nodes: int = 0
    filters: dict[str, int] = field(default_factory=dict)
    nearest: str = ""
    lacks: dict[str, int] = field(default_factory=dict)
    held_by: list[str] = field(default_factory=list)
    waits_for: list[str] = field(default_factory=list)
    fairshare: dict[str, Any] = field(default_factory=dict)
    """Where its group and user stand in a queue with fairshare; empty in others."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Of a job with parts, part by part what it asks for, how many of its tasks fit alone, and why not more."""
    soon: bool = False
    """Whether it may start in a moment: a scheduler pass, or the write of its commitment, is all that is missing, or
    nodes have yet to find a leader that has just begun to serve."""
    sentence: str = ""
    starts: str = ""
    starts_at: float | None = None
    starts_why: str = ""
    """When it will start, as far as is known (control.estimates)."""


def explain(state: ClusterState, job: JobState, now: float) -> Explanation:
    """Why the job's pending tasks have not started; empty reasons where none is pending."""
    told = Explanation(job.id, job.state.value, asks=_asks(state, job))
    told.asks = ", ".join([told.asks, *(term.text() for term in job.spec.affinity)])
    if not job.by_state().get(TaskState.PENDING):
        told.sentence = f"Job {job.id} does not wait: it is {job.state.value}."
        if parked := parking.of(state, job):
            many = f"{len(parked)} of its tasks are" if len(job.codes) > 1 else "It is"
            told.sentence += f" {many} {parked[0].preempted}, and it goes on when there is CPU for it again."
        return told
    estimate = Estimates(state, now).of(job)
    if estimate is not None:
        told.starts, told.starts_at, told.starts_why = estimate.kind, estimate.at, estimate.why
    told.waits_for = _waits_for(state, job, now)
    told.fairshare = shares.standing_of(state, job)
    if not told.waits_for and job.startable:
        _explain_room(state, job, now, told)
    told.sentence = told.sentence or " ".join(told.waits_for)
    told.soon |= not told.sentence or bool(job.counts.get(ASSUMED)) or _are_coming_back(state, now)
    told.sentence = told.sentence or "It is its turn as soon as a scheduler pass is through."
    return told


def _are_coming_back(state: ClusterState, now: float) -> bool:
    """Whether agents have yet to find this leader, who has just begun to serve."""
    return now - state.service_started_at < COMING_BACK_SECONDS and not all(
        node.connected for node in state.nodes.values()
    )


def _asks(state: ClusterState, job: JobState) -> str:
    """What a task asks for; of a job with parts `2 × ps (4 cpu), 4 × worker (8 cpu, 1 gpu)`."""
    if job.spec.parts is None:
        return asked(job.spec.request, state.pools_of(job.spec), job.spec.host)
    each = zip(job.spec.parts, job.spec.pieces(), strict=True)
    words = [f"{n} × {part.name} ({asked(piece.request, state.pools_of(piece))})" for part, (piece, n) in each]
    return ", ".join(words + ([f"on host {job.spec.host}"] if job.spec.host else []))


def asked(request: Request, pools: dict[str, str], host: str = "") -> str:
    """`4 A100, 16 cpu, 128GiB memory, pool gpus, on host trainer`: for people."""
    amounts = request.amounts()
    words = [format_kind(kind, amounts[kind], request.gpu_model) for kind in sorted_kinds(amounts)]
    words += [f"of MIG profile {request.gpu_mig}"] if request.gpu_mig else []
    words += [f"GPUs together by {request.gpu_topology}"] if request.gpu_topology else []
    words += [f"{amount} {kind}" for kind, amount in request.floating.items() if amount]
    words += ["a node for itself"] if request.exclusive else []
    words += [f"pool {pool}" for pool in sorted(set(pools.values()))] if not host else [f"on host {host}"]
    return ", ".join(words)


def _waits_for(state: ClusterState, job: JobState, now: float) -> list[str]:
    """What keeps it back, other than room."""
    reasons = []
    host = state.hosts.get(job.spec.host)
    if job.spec.host and host is None:
        reasons.append(f"Logical host {job.spec.host} is gone.")
    elif host is not None and not takes_work(host):
        why = f": {host.reason}" if host.reason else ""
        state_word = "drained" if host.drained else host.state.value
        reasons.append(f"Logical host {host.name} is {state_word}{why}.".replace("..", "."))
    if out := reservations.why_not_now(state, job, now):
        reasons.append(out)
    if job.cancelling:
        reasons.append("It is being cancelled.")
    if job.held:
        reasons.append("It is held; release it to let it start.")
    reasons += [_dependency(state, job.spec.depends[place]) for place in sorted(job.unmet)]
    if job.counts.get(BLOCKED) and not job.ready:
        reasons += [_index_by_index(state, job, d) for d in job.spec.depends if d.each]
    if state.waits_for_journals(job):
        names = ", ".join(sorted(state.untold)[:5])
        reasons.append(
            f"The store was restored, and {names} may have started it since: it waits for what they tell."
            " One that is gone for good: lavalite forget."
        )
    if job.sleeping and job.spec.not_before is not None:
        reasons.append(f"It is not to start for another {_seconds(job.spec.not_before - now)}.")
    if job.counts.get(ASSUMED) and not job.startable:
        reasons.append("It is placed; its commitment is being written.")
    elif job.is_gang and gangs.is_broken(state, job):
        reasons.append("It begins anew, all tasks together, as soon as those that still run have been stopped.")
    elif job.counts.get(WAITING) and not job.startable:
        position, soonest = min(job.wakes.items(), key=lambda wake: wake[1], default=(-1, now))
        end = job.ends.get(position)
        was = f"was {end.reason}" if end is not None and end.reason.startswith(preemption.PREEMPTED) else "ended"
        reasons.append(f"Its last attempt {was}; it is tried again in {_seconds(soonest - now)}.")
    if not reasons:
        reasons += _limits(state, job)
    if not reasons and not job.spec.host and not any(n.connected for n in state.nodes.values()):
        reasons.append("No node is connected.")
    return reasons


def _dependency(state: ClusterState, dependency: Dependency) -> str:
    other, kind = state.jobs.get(dependency.job), dependency.kind.value
    if other is None:
        return f"It depends on job {dependency.job}, which is not known any more; this can never be met."
    if dependency.tasks is not None:
        many = "s" if len(dependency.tasks.indices()) > 1 else ""
        whom = f"task{many} {dependency.tasks.text()} of job {dependency.job}"
        if first_missing(other, dependency.model_copy(update={"kind": DependencyKind.ENDED})) is not None:
            return f"It waits for {whom} to be {kind}."
        return f"It depends on {whom} being {kind}, but that ended otherwise; this can never be met."
    if other.unfinished:
        return f"It waits for job {dependency.job} to be {kind}; that is {other.state.value}."
    return f"It depends on job {dependency.job} being {kind}, but that {other.state.value}; this can never be met."


def _index_by_index(state: ClusterState, job: JobState, dependency: Dependency) -> str:
    waiting = job.counts.get(BLOCKED, 0)
    words = f"Each of its {waiting} tasks" if waiting > 1 else "Its task"
    said = f"{words} waits for that of the same index of job {dependency.job} to be {dependency.kind.value}"
    if lost := never(job, dependency, state.jobs.get(dependency.job)):
        return f"{said}; for {lost} this can never be met."
    return f"{said}."


def _limits(state: ClusterState, job: JobState) -> list[str]:
    reasons = [limits.sentence(state, limit) for limit in limits.reached(state, job)]
    reasons += quotas.sentences(state, job.spec)
    for kind, amount in (floating_of(job) if job.spec.parts else job.spec.request.floating).items():
        free, capacity = state.book.free(FLOATING, kind), state.book.capacity(FLOATING, kind)
        if amount > free:
            reasons.append(f"It needs {amount} {kind}; {free} of {capacity} are free.")
    return reasons


def _explain_room(state: ClusterState, job: JobState, now: float, told: Explanation) -> None:
    state.refresh_columns(now)
    if ending := preemption.waited_for(state, job, now):
        _explain_preemption(state, ending, told)
        return
    near = affinity.filters(state, job)
    each = [state.request_class(piece) for piece, _ in job.spec.pieces()]
    whys = [refusal(state.columns, wanted, near) for wanted in each]
    why = next((why for why in whys if why is not None), None)
    told.sentence = " ".join(affinity.sentences(state, job))
    if why is None and job.spec.reservation:
        told.sentence = f"Reservation {job.spec.reservation} has too little left for it, or nothing free of it yet."
        return
    fault = state.order.shape_of(state.classes[job.class_key]).fault if job.class_key else ""
    if why is None and fault:
        told.sentence = f"{fault} It is asked again when anything on a node has changed."
        return
    closed = {int(row) for _, turned_away in near for row in np.flatnonzero(turned_away)}
    back: list[str] = []
    for wanted in each if job.class_key else ():
        back = back or reservations.held_back(state, wanted, job, now, closed)
    _explain_parts(state, job, each, whys, closed, now, told)
    if why is None and back:
        told.nodes, told.filters = len(back), {Reason.HELD.value: len(back)}
        told.held_by = reservations.keeping_out(state, job, now, back)
        told.sentence = f"There is room, but it is held by {', '.join(told.held_by)}."
        return
    if job.is_gang and job.class_key and _explain_gang(state, job, now, told) and why is None:
        return
    if why is None:
        told.soon = True
        told.sentence = "It fits now, and starts when those before it in the order have been placed."
        return
    told.nodes, told.nearest, told.lacks = why.nodes, why.nearest, dict(why.lacks)
    told.filters = {reason.value: count for reason, count in why.turned_away.items()}
    part = f"Part {job.spec.parts[whys.index(why)].name}: " if job.spec.parts else ""
    told.sentence = f"{told.sentence} {part}{why.sentence()}".lstrip()
    if why.nearest:
        told.held_by = holders(state, why.nearest, [PLACES] if why.taken else list(why.lacks))
    if why.taken:
        told.sentence += f" On {why.nearest}: {', '.join(told.held_by)}."


def _explain_parts(
    state: ClusterState,
    job: JobState,
    each: list[RequestClass],
    whys: list[Refusal | None],
    closed: set[int],
    now: float,
    told: Explanation,
) -> None:
    """Each part as if it were alone."""
    rooms = RoomsNow(state, job, now)
    with state.plan.leaving_out(job.id):
        for part, wanted, why in zip(job.spec.parts or (), each, whys, strict=False):
            room = sum(tasks for row, tasks in rooms.rows(wanted).items() if row not in closed)
            entry: dict[str, Any] = {
                "name": part.name,
                "tasks": part.tasks,
                "asks": asked(part.request, wanted.pools),
                "fit": min(room, part.tasks),
            }
            if why is not None:
                entry |= {"nodes": why.nodes, "filters": {r.value: count for r, count in why.turned_away.items()}}
                entry |= {"nearest": why.nearest, "lacks": dict(why.lacks), "sentence": why.sentence()}
                kinds = [PLACES] if why.taken else list(why.lacks)
                entry |= {"held_by": holders(state, why.nearest, kinds) if why.nearest else []}
            told.parts.append(entry)


def _explain_preemption(state: ClusterState, ending: list[TaskRun], told: Explanation) -> None:
    """Room is being made for it: who has to end first."""
    told.held_by = [_name(state, run) for run in ending[:MAX_NAMED]]
    more = f" and {len(ending) - MAX_NAMED} more" if len(ending) > MAX_NAMED else ""
    tasks = f"{len(ending)} task{'s'[: len(ending) != 1]}"
    preempted = sum(bool(run.preempted) for run in ending)
    words = "preempted for it" if preempted == len(ending) else f"of which {preempted} were preempted"
    end = "be suspended" if all(run.suspend_requested for run in ending) else "end"
    told.sentence = f"It waits for {tasks} to {end}, {words}: {', '.join(told.held_by)}{more}."


def _name(state: ClusterState, run: TaskRun) -> str:
    """`job 7`, `job 8[3]`."""
    many = len(state.jobs[run.key.job].codes) > 1 or state.jobs[run.key.job].spec.array is not None
    return f"job {run.key.job}[{run.key.task}]" if many else f"job {run.key.job}"


def _explain_gang(state: ClusterState, job: JobState, now: float, told: Explanation) -> bool:
    """Whether it is for want of room for all tasks at once that it waits."""
    found, gang, tasks = (
        seating.find(state, state.classes[job.class_key], job, now),
        job.spec.gang,
        len(job.codes),
    )
    if found.seats or gang is None:
        return False
    where = f" within {gang.within} {found.within}, where most do" if found.within else ""
    span = [f"at most {gang.tasks_per_node} on a node"] if gang.tasks_per_node else []
    if gang.nodes_least == gang.nodes_most:
        span += [f"on {gang.nodes_least} node{'s' if gang.nodes_least > 1 else ''}"]
    else:
        span += [f"on {gang.nodes_least} nodes at least"] if gang.nodes_least > 1 else []
        span += [f"on {gang.nodes_most} nodes at most"] if gang.nodes_most else []
    span += [f"all within one {gang.within}"] if gang.within else []
    span += [f"rather within one {gang.prefer_within}"] if gang.prefer_within else []
    asked_for = f" ({', '.join(span)})" if span else ""
    told.sentence = f"Its {tasks} tasks start together{asked_for}, and {found.fit} of {tasks} fit now{where}."
    return True


def holders(state: ClusterState, provider: str, kinds: list[str]) -> list[str]:
    """Who holds these kinds of a provider, the largest share first: at most ten, as `job 4702 (2 gpu)`; who has a
    place there, as `job 4702`."""
    words: list[tuple[int, str]] = []
    for kind in kinds:
        for owner, amount in state.book.holders(state.places.account(provider, kind), kind).items():
            parts = owner.split("/")
            name = f"job {parts[1]}" if parts[0] == "job" else f"host {parts[1]}"
            words.append((amount, name if kind == PLACES else f"{name} ({format_amount(kind, amount, named=True)})"))
    ordered = sorted(words, key=lambda entry: (-entry[0], natural(entry[1])))
    return list(dict.fromkeys(word for _, word in ordered))[:10]


def waits(job: JobState) -> bool:
    """Whether any task of it is pending."""
    return bool(job.by_state().get(TaskState.PENDING))


def _seconds(seconds: float) -> str:
    return f"{max(0, round(seconds))} s"
