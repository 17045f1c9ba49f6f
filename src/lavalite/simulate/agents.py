"""One simulated agent: what its journal holds and what it runs. Time is told to it; what it wants sent it returns.

It keeps the promises of sbatchd: an attempt is journalled before it starts, starts once, and is told again and again
until that is acknowledged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lavalite.control.actions import AttemptStart, PartOrdered
from lavalite.control.events import AttemptReported, NodeRegistered, PartReported, PartsReported
from lavalite.model.resources import NodeOffer
from lavalite.model.task import AttemptId

SIGKILL_CODE, SIGTERM_CODE = -9, -15


@dataclass(slots=True)
class Running:
    """An attempt that runs: at `since` it had `left` seconds of work to do (None: without end)."""

    started_at: float
    left: float | None
    exit_code: int
    since: float
    walltime_at: float | None
    fence_after_seconds: float
    suspended: bool = False
    turn: int = 0
    """Grows whenever its end has moved: an end that was foreseen before is none."""

    def pass_to(self, now: float, factor: float) -> None:
        """So much of its work is done by now."""
        if self.left is not None and not self.suspended:
            self.left = max(0.0, self.left - (now - self.since) / factor)
        self.since = now
        self.turn += 1

    def ends_at(self, factor: float) -> float | None:
        """When it ends as things are."""
        done = None if self.left is None or self.suspended else self.since + self.left * factor
        ends = [at for at in (done, self.walltime_at) if at is not None]
        return min(ends, default=None)

    def is_too_late(self, now: float, factor: float) -> bool:
        """Whether its walltime is over, and its work is not done."""
        if self.walltime_at is None or now < self.walltime_at:
            return False
        return self.left is None or self.suspended or self.since + self.left * factor > self.walltime_at


@dataclass(slots=True)
class SimulatedAgent:
    """`session` is 0 while there is none; `cut_at` is since when nothing it says arrives."""

    name: str
    offer: NodeOffer
    journal_id: str
    boots: int = 1
    session: int = 0
    cut_at: float | None = None
    factor: float = 1.0
    """Work takes so many times as long."""
    seq: int = 0
    report_due: bool = False
    running: dict[AttemptId, Running] = field(default_factory=dict)
    unacked: dict[AttemptId, tuple[int, AttemptReported]] = field(default_factory=dict)
    """With the number of the report that told it last; 0: none has."""

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def knows(self, attempt: AttemptId) -> bool:
        return attempt in self.running or attempt in self.unacked

    def start(self, start: AttemptStart, now: float, work: float | None, exit_code: int) -> Running:
        limit = start.walltime_seconds
        running = Running(
            now, work, exit_code, now, None if limit is None else now + limit, start.fence_after_seconds
        )
        self.running[start.id] = running
        self.note(start.id, "started", now)
        return running

    def end(self, attempt: AttemptId, now: float, exit_code: int | None, reason: str) -> None:
        del self.running[attempt]
        self.unacked[attempt] = (0, AttemptReported(attempt, "ended", now, exit_code, reason))

    def note(self, attempt: AttemptId, state: str, now: float) -> None:
        self.unacked[attempt] = (0, AttemptReported(attempt, state, now))  # type: ignore[arg-type]

    def registration(self, epoch_seconds: float) -> NodeRegistered:
        """All that its journal holds, with times of the wall clock that began at `epoch_seconds`."""
        told = [_dated(report, epoch_seconds) for _, report in self.unacked.values()]
        for attempt, running in self.running.items():
            if attempt not in self.unacked:
                state = "suspended" if running.suspended else "started"
                told.append(AttemptReported(attempt, state, epoch_seconds + running.started_at))  # type: ignore[arg-type]
        return NodeRegistered(
            self.name, self.boot_id, self.journal_id, self.offer, tuple(told), fabric_address=self.name
        )

    def carried_out(self, orders: tuple[PartOrdered, ...]) -> PartsReported:
        """Parts of logical hosts are made at once here, and never break."""
        return PartsReported(self.name, tuple(map(_made, orders)))

    def report(self, epoch_seconds: float) -> tuple[AttemptReported, ...]:
        """All that is not acknowledged, as one report with the next number."""
        self.seq += 1
        self.unacked = {attempt: (self.seq, report) for attempt, (_, report) in self.unacked.items()}
        return tuple(_dated(report, epoch_seconds) for _, report in self.unacked.values())

    def acknowledged(self, seq: int) -> None:
        self.unacked = {a: told for a, told in self.unacked.items() if not 0 < told[0] <= seq}

    def reboot(self, now: float) -> None:
        """What ran is lost, and the journal says so."""
        self.boots += 1
        for attempt in list(self.running):
            self.end(attempt, now, None, "lost")


def _made(order: PartOrdered) -> PartReported:
    state: Literal["ready", "gone"] = "ready" if order.want == "present" else "gone"
    port = 1 if order.role == "export" else 0
    device = "/dev/mapper/disk" if order.role == "disk" else ""
    key = (order.part, order.role, order.host, order.incarnation, order.version)
    return PartReported(*key, state, port=port, device=device)


def _dated(report: AttemptReported, epoch_seconds: float) -> AttemptReported:
    return AttemptReported(report.id, report.state, epoch_seconds + report.at, report.exit_code, report.reason)
