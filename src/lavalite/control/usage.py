"""Who holds how much, added up as it changes: by queue and pool, all told, by user and by group.

These sums say what limits and quotas leave. They are made of the shares of live commitments and of nothing else, so
there is no state in which a quota is charged and no device is held: who takes the one takes the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lavalite.control.tasks import JobState, TaskKey
from lavalite.ledger.book import FLOATING, LedgerBroken
from lavalite.model.job import Share
from lavalite.model.specs import TASKS

_Scope = tuple[str, str, str, str]
_NOTHING: Mapping[str, int] = {}


class Scope(NamedTuple):
    """`place` is queue or pool; `who` is user, group, or empty for all."""

    place: str
    name: str
    who: str = ""
    holder: str = ""


class Usage:
    """Sums by scope and kind, TASKS among the kinds. In a pool counts what comes from it by itself: not what a
    logical host holds of it, nor what its jobs hold of the host."""

    def __init__(self) -> None:
        self._sums: dict[_Scope, dict[str, int]] = {}
        self._in_pool: dict[tuple[str, str], dict[TaskKey, None]] = {}
        self._in_queue: dict[str, dict[TaskKey, None]] = {}

    def add(self, job: JobState, key: TaskKey, shares: Iterable[Share]) -> None:
        """A task holds these shares."""
        self._in_queue.setdefault(job.queue, {})[key] = None
        for place, name, amounts in _places(job, shares):
            for scope in _scopes(place, name, job):
                sums = self._sums.get(scope)
                if sums is None:
                    self._sums[scope] = dict(amounts)
                    continue
                for kind, amount in amounts.items():
                    sums[kind] = sums.get(kind, 0) + amount
            if place == "pool":
                self._in_pool.setdefault((name, job.spec.group), {})[key] = None

    def remove(self, job: JobState, key: TaskKey, shares: Iterable[Share]) -> None:
        """A task gives back what it was added with. Raises LedgerBroken."""
        for place, name, amounts in _places(job, shares):
            for scope in _scopes(place, name, job):
                sums = self._sums.get(scope, {})
                for kind, amount in amounts.items():
                    left = sums.get(kind, 0) - amount
                    if left < 0:
                        raise LedgerBroken(f"{key.owner} gives back {amount} {kind} of {scope}, not {left + amount}")
                    sums[kind] = left
                if not sums[TASKS]:
                    if any(sums.values()):
                        raise LedgerBroken(f"no task holds anything of {scope}, and yet {sums} are held")
                    del self._sums[scope]
            if place == "pool":
                tasks = self._in_pool[name, job.spec.group]
                del tasks[key]
                if not tasks:
                    del self._in_pool[name, job.spec.group]
        del self._in_queue[job.queue][key]

    def of(self, scope: Scope) -> Mapping[str, int]:
        """What is held, by kind. Not to be changed."""
        return self._sums.get(scope, _NOTHING)

    def in_pool(self, pool: str, group: str) -> list[TaskKey]:
        """Tasks of the group that hold anything of the pool, the newest first."""
        return list(reversed(self._in_pool.get((pool, group), {})))

    def in_queue(self, queue: str) -> Iterator[TaskKey]:
        """Tasks of the queue that hold anything, the newest first. Nothing may change meanwhile."""
        return reversed(self._in_queue.get(queue, {}))

    def queues(self) -> list[str]:
        """Queues of which any task holds anything."""
        return [queue for queue, tasks in self._in_queue.items() if tasks]

    def groups_in(self, pool: str) -> list[str]:
        """Groups that hold anything of the pool, by name."""
        return sorted(group for name, group in self._in_pool if name == pool)

    def faults(self, held: Iterable[tuple[JobState, TaskKey, Iterable[Share]]]) -> Iterator[str]:
        """Where the sums are not those of what is held. Adds everything up anew."""
        anew = Usage()
        for job, key, shares in held:
            anew.add(job, key, shares)
        for scope in sorted(map(Scope._make, self._sums.keys() | anew._sums.keys())):
            kept, found = self._nonzero(scope), anew._nonzero(scope)
            if kept != found:
                who = f"{scope.who or 'all'} {scope.holder}".strip()
                yield f"{scope.place} {scope.name} counts {kept} for {who}, and its tasks hold {found}"

    def _nonzero(self, scope: Scope) -> dict[str, int]:
        return {kind: amount for kind, amount in self.of(scope).items() if amount}


def counts_in_pool(host: str, share: Share) -> bool:
    """Whether a share of a task that runs on a host, or on none, is one of its pool by itself: of a task beside the
    host's GPUs of another node that is what it takes of that node."""
    return not host or share.provider not in (host, FLOATING)


def _places(job: JobState, shares: Iterable[Share]) -> list[tuple[str, str, dict[str, int]]]:
    """The queue and the pools that a task counts in, with how much."""
    whole: dict[str, int] = {TASKS: 1}
    pools: dict[str, dict[str, int]] = {}
    host = job.host
    for share in shares:
        kind, amount, pool = share.kind, share.amount, share.pool
        whole[kind] = whole.get(kind, 0) + amount
        if pool and counts_in_pool(host, share):
            of_pool = pools.get(pool)
            if of_pool is None:
                of_pool = pools[pool] = {TASKS: 1}
            of_pool[kind] = of_pool.get(kind, 0) + amount
    return [("queue", job.queue, whole), *(("pool", pool, amounts) for pool, amounts in pools.items())]


def _scopes(place: str, name: str, job: JobState) -> tuple[_Scope, _Scope, _Scope]:
    """A Scope each, as plain tuples: they are made for every task that starts or ends."""
    spec = job.spec
    return (place, name, "", ""), (place, name, "user", spec.user), (place, name, "group", spec.group)
