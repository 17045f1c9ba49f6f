"""`queues.NAME` of pools.yml: whose turn it is, who gives way to whom, and what is tried again."""

from __future__ import annotations

from signal import Signals
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lavalite.model import amounts
from lavalite.model.job import MAX_BACKOFF_SECONDS, Factor, Name, Retries
from lavalite.model.pools_entries import HolderLimits
from lavalite.model.pools_spelling import Entry, ExitCode, Seconds, custom, spelled_short
from lavalite.model.specs import HALF_LIFE_SECONDS, Fairshare, Preemption

CONSERVATIVE_DEPTH = 10
"""Of so many that wait the starts are planned where a queue is conservative and does not say."""
MAX_GRACE_SECONDS = 86400
PREEMPTION_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGUSR1", "SIGUSR2")
"""What a task may be sent first that is preempted: KILL follows after the grace."""


class QueueLimits(HolderLimits):
    walltime: Seconds | None = None


ShareCount = Annotated[int, Field(ge=1, le=1_000_000)]


class FairshareEntry(Entry):
    """Shares of groups, and of users within their group; 1 for those that are not named."""

    half_life: Seconds = HALF_LIFE_SECONDS
    groups: dict[Name, ShareCount] = {}
    users: dict[Name, ShareCount] = {}

    def spec(self) -> Fairshare:
        return Fairshare(self.half_life, dict(self.groups), dict(self.users))


class BackoffEntry(Entry):
    """`first`, then each time `factor` times as long, but never more than `most`."""

    first: Seconds | None = None
    factor: Factor | None = None
    most: Seconds | None = None

    @model_validator(mode="after")
    def _ordered(self) -> BackoffEntry:
        for name in ("first", "most"):
            seconds = getattr(self, name)
            if seconds is not None and not 1 <= seconds <= MAX_BACKOFF_SECONDS:
                raise custom("out_of_range", f"{name} is {amounts.format_duration(seconds)}", "Write from 1s to 30d.")
        if self.first is not None and self.most is not None and self.first > self.most:
            raise custom("out_of_range", "first is more than most", "Lower first, or raise most.")
        return self


class BackfillEntry(Entry):
    """Of whom starts are planned: of the first that has no room (easy), of so many (conservative), or of nobody."""

    mode: Literal["easy", "conservative", "none"]
    depth: Annotated[int, Field(ge=1, le=100)] | None = None
    _short = spelled_short("mode")

    @model_validator(mode="after")
    def _depth_is_conservative(self) -> BackfillEntry:
        if self.depth is not None and self.mode != "conservative":
            raise custom(
                "unknown_key", f"{self.mode} backfill has no depth", "Write mode: conservative, or no depth."
            )
        return self

    def planned_starts(self) -> int:
        if self.mode == "conservative":
            return CONSERVATIVE_DEPTH if self.depth is None else self.depth
        return 1 if self.mode == "easy" else 0


class PreemptionEntry(Entry):
    """How the queue's jobs take room from tasks of queues of lower priority; which those may be: pools_check."""

    mode: Literal["none", "cancel", "requeue", "suspend"]
    queues: list[Name] = []
    below: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    grace: Seconds | None = None
    signal: str = "SIGTERM"
    _short = spelled_short("mode")

    @model_validator(mode="after")
    def _good(self) -> PreemptionEntry:
        if self.mode == "none" and self.model_fields_set - {"mode"}:
            raise custom("unknown_key", "nobody is preempted, and yet it says how", "Write mode: requeue or cancel.")
        if self.mode == "suspend" and {"grace", "signal"} & self.model_fields_set:
            message = "what is suspended does not end, and has neither grace nor signal"
            raise custom("unknown_key", message, "Leave them out, or write mode: requeue.")
        if self.signal not in PREEMPTION_SIGNALS:
            hint = f"Write one of {', '.join(PREEMPTION_SIGNALS)}."
            raise custom("unknown_signal", f"{self.signal} is no signal that asks to end", hint)
        if self.grace is not None and not 1 <= self.grace <= MAX_GRACE_SECONDS:
            message = f"grace is {amounts.format_duration(self.grace)}"
            raise custom("out_of_range", message, "Write from 1s to 1d.")
        return self

    def spec(self) -> Preemption | None:
        if self.mode == "none":
            return None
        return Preemption(self.mode, tuple(self.queues), self.below, self.grace, int(Signals[self.signal]))


class QueueEntry(Entry):
    """`fence_after` is when a silent node stops rerunnable work by itself, `lost_after` when it is given up.

    `retries`, `retry_on` and `backoff` are for jobs that do not say them.
    A keeper that was suspended stops its work some seconds late, so the one comes well after the other (pools_check).
    """

    priority: Annotated[int, Field(ge=0, le=1_000_000)] = 30
    policy: str = ""
    default: bool = False
    limits: QueueLimits = QueueLimits()
    fairshare: FairshareEntry | None = None
    backfill: BackfillEntry = BackfillEntry(mode="easy")
    preemption: PreemptionEntry = PreemptionEntry(mode="none")
    max_preemptions: Annotated[int, Field(ge=0, le=1000)] | None = None
    fence_after: Seconds | None = None
    lost_after: Seconds | None = None
    retries: Retries = 0
    retry_on: list[ExitCode] = []
    backoff: BackoffEntry = BackoffEntry()
