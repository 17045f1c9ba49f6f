"""What is measured while a scenario runs: waits, slowdowns, use, evictions. Sums only, so that it stays small.

wait         from when a task was submitted to when it started for the first time, or up to now if it has not
slowdown     (end − submit) ÷ run of its last attempt, at least 1 second of it
utilisation  what was committed × for how long ÷ what there was × for how long, per kind
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lavalite.control.tasks import TaskKey
from lavalite.model.task import AttemptId

SHORTEST_RUN_SECONDS = 1.0


@dataclass(slots=True)
class LiveAttempt:
    """One that holds something."""

    node: str
    attempt: int
    user: str
    amounts: Mapping[str, int]
    assigned_at: float
    started_at: float | None = None


@dataclass(slots=True)
class Measures:
    """All told so far."""

    waits: array[float] = field(default_factory=lambda: array("d"))
    slowdowns: array[float] = field(default_factory=lambda: array("d"))
    ended: Counter[str] = field(default_factory=Counter)
    """Tasks by how they ended."""
    refused: int = 0
    evictions: int = 0
    preemptions: int = 0
    retries: int = 0
    placements: int = 0
    used_by: dict[str, Counter[str]] = field(default_factory=dict)
    """Amount × seconds by user and kind, of what was given back."""
    live: dict[TaskKey, LiveAttempt] = field(default_factory=dict)
    begun: dict[TaskKey, float] = field(default_factory=dict)
    """When tasks that have not ended well started for the first time."""
    last_end: float = 0.0

    def assigned(self, key: TaskKey, attempt: LiveAttempt) -> None:
        self.placements += 1
        self.live[key] = attempt

    def started(self, id: AttemptId, submitted_at: float, now: float) -> None:
        key = TaskKey(id.job, id.task)
        found = self.live.get(key)
        if found is not None and found.attempt == id.attempt:
            found.started_at = now
        if key not in self.begun:
            self.begun[key] = now
            self.waits.append(now - submitted_at)

    def released(self, key: TaskKey, now: float) -> LiveAttempt | None:
        """What it held is free: that was so much for so long."""
        found = self.live.pop(key, None)
        if found is not None:
            _add_use(self.used_by, found, now)
        return found

    def used_until(self, now: float) -> dict[str, Counter[str]]:
        """Amount × seconds by user and kind, with what is held still."""
        used_by = {user: Counter(used) for user, used in self.used_by.items()}
        for found in self.live.values():
            _add_use(used_by, found, now)
        return used_by

    def finished(self, key: TaskKey, found: LiveAttempt | None, submitted_at: float, state: str, now: float) -> None:
        """The task has ended for good."""
        self.ended[state] += 1
        self.last_end = now
        self.begun.pop(key, None)
        if found is not None and found.started_at is not None:
            ran = max(SHORTEST_RUN_SECONDS, now - found.started_at)
            self.slowdowns.append(max(1.0, (now - submitted_at) / ran))


def _add_use(used_by: dict[str, Counter[str]], found: LiveAttempt, now: float) -> None:
    by_kind, seconds = used_by.setdefault(found.user, Counter()), now - found.assigned_at
    for kind, amount in found.amounts.items():
        by_kind[kind] += amount * seconds  # type: ignore[assignment]


def percentile(values: Sequence[float], part: float) -> float | None:
    """The value below which so much of them is, 0 to 1; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def fairness(used_by: Mapping[str, Counter[str]], kind: str) -> float | None:
    """Jain's index over users of what each had of a kind: 1 where all had the same, 1/n where one had all."""
    shares = [float(used[kind]) for used in used_by.values()]
    total = sum(shares)
    return total * total / (len(shares) * sum(share * share for share in shares)) if total else None
