"""The most that users, groups, queues and pools may hold at a time: tasks, and each kind of resource.

Every limit that concerns a task is looked at; the one that leaves least decides. What waits for one is told which it
is, and who holds what it allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lavalite.control.state import ClusterState
from lavalite.control.tasks import JobState
from lavalite.control.usage import Scope, counts_in_pool
from lavalite.model.amounts import format_amount
from lavalite.model.job import JobSpec
from lavalite.model.specs import TASKS, Limits

MAX_NAMED = 5


@dataclass(slots=True, frozen=True)
class Limit:
    """At most `most` of a kind may be held in the scope; `tasks` tasks, which start at once, take `each` of it."""

    scope: Scope
    kind: str
    most: int
    each: int
    tasks: int = 1

    def left(self, state: ClusterState) -> int:
        """How many more tasks it lets start."""
        return max(0, self.most - self.used(state)) // self.each * self.tasks

    def used(self, state: ClusterState) -> int:
        return state.usage.of(self.scope).get(self.kind, 0)

    def whose(self) -> str:
        """`lets ada hold 4 gpu at a time`, after the queue's or the pool's name."""
        holder = {"user": self.scope.holder, "group": f"group {self.scope.holder}"}.get(
            self.scope.who, "all together"
        )
        verb = "run" if self.kind == TASKS else "hold"
        return f"{self.scope.place} {self.scope.name} lets {holder} {verb} {text(self.kind, self.most)} at a time"


def text(kind: str, amount: int) -> str:
    """`4 gpu`, `2 tasks`, `64GiB memory`."""
    if kind == TASKS:
        return f"{amount} task{'s'[: amount != 1]}"
    return format_amount(kind, amount, named=True)


def applying(state: ClusterState, spec: JobSpec, queue: str) -> Iterator[Limit]:
    """Every limit that a task of the job comes under. Those of pools not where it runs on a logical host."""
    defined = state.queue(queue)
    if defined.limits:
        yield from _of("queue", queue, defined.limits, _asked(spec), spec)
    if defined.tasks_per_user is not None:
        scope = Scope("queue", queue, "user", spec.user)
        if TASKS not in defined.limits.users.get(spec.user, {}):
            yield Limit(scope, TASKS, defined.tasks_per_user, 1)
    if not any(pool.limits for pool in state.specs.pools.values()):
        return
    for pool, amounts in state.charged_pools(spec).items():
        found = state.specs.pools.get(pool)
        if found is not None and found.limits:
            tasks = sum(n for piece, n in spec.pieces() if spec.parts is None or pool in state.charged_pools(piece))
            yield from _of("pool", pool, found.limits, {TASKS: tasks, **amounts}, spec)


def _asked(spec: JobSpec) -> dict[str, int]:
    """What a task takes, or all of a job with parts."""
    if spec.parts is None:
        return {TASKS: 1, **spec.request.amounts(), **spec.request.floating}
    asked: dict[str, int] = {}
    for piece, tasks in spec.pieces():
        for kind, amount in {TASKS: 1, **piece.request.amounts(), **piece.request.floating}.items():
            asked[kind] = asked.get(kind, 0) + amount * tasks
    return asked


def _of(place: str, name: str, limits: Limits, asked: Mapping[str, int], spec: JobSpec) -> Iterator[Limit]:
    for who, holder, amounts in (
        ("", "", limits.whole),
        ("user", spec.user, limits.of_user(spec.user)),
        ("group", spec.group, limits.of_group(spec.group)),
    ):
        for kind, most in amounts.items():
            if asked.get(kind):
                yield Limit(Scope(place, name, who, holder), kind, most, asked[kind], spec.tasks_counted)


def allowed(state: ClusterState, job: JobState) -> int:
    """How many more tasks of the job all limits let start; all that are ready where there is none."""
    return min((limit.left(state) for limit in applying(state, job.spec, job.queue)), default=job.ready)


def reached(state: ClusterState, job: JobState) -> list[Limit]:
    """The limits that keep every task of the job back; of a gang, all that keep one back."""
    needed = len(job.codes) if job.is_gang else 1
    return [limit for limit in applying(state, job.spec, job.queue) if limit.left(state) < needed]


def sentence(state: ClusterState, limit: Limit) -> str:
    """Which limit it is, and who holds what it allows."""
    who = "a task asks" if limit.tasks == 1 else f"its {limit.tasks} tasks together ask"
    words = f"{limit.whose()[0].upper()}{limit.whose()[1:]}, and {who} for {text(limit.kind, limit.each)}"
    if limit.kind == TASKS:
        words = f"{limit.whose()[0].upper()}{limit.whose()[1:]}"
    names = holders(state, limit.scope, limit.kind)
    return f"{words}; {'held' if names else 'nothing is held'}{' by ' if names else ''}{', '.join(names)}."


def holders(state: ClusterState, scope: Scope, kind: str) -> list[str]:
    """Who holds the kind in the scope, the largest first: `job 12 of ada (2 gpu)`. For people: looks at all tasks."""
    sums: dict[int, int] = {}
    for key in state.runs:
        job = state.jobs[key.job]
        if (scope.who == "user" and job.spec.user != scope.holder) or (
            scope.who == "group" and job.spec.group != scope.holder
        ):
            continue
        if scope.place == "queue" and job.queue != scope.name:
            continue
        amount = _held(state, job, key.owner, scope, kind)
        if amount:
            sums[key.job] = sums.get(key.job, 0) + amount
    largest = sorted(sums.items(), key=lambda entry: (-entry[1], entry[0]))
    names = [
        f"job {job} of {state.jobs[job].spec.user} ({text(kind, amount)})" for job, amount in largest[:MAX_NAMED]
    ]
    return names + ([f"{len(largest) - MAX_NAMED} more jobs"] if largest[MAX_NAMED:] else [])


def _held(state: ClusterState, job: JobState, owner: str, scope: Scope, kind: str) -> int:
    shares = state.book.shares(owner)
    if scope.place == "pool":
        shares = tuple(share for share in shares if share.pool == scope.name and counts_in_pool(job.host, share))
    if kind == TASKS:
        return 1 if shares or scope.place == "queue" else 0
    return sum(share.amount for share in shares if share.kind == kind)
