"""One attempt, from its fork until its end is acknowledged."""

from __future__ import annotations

from typing import Any


class Kept:
    """One attempt, from its fork until its end is acknowledged."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.id: str = record["id"]
        self.pid: int = record["pid"]
        self.ticks: int = record["ticks"]
        self.boot: str = record["boot"]
        self.started_at: float = record["started_at"]
        self.walltime_deadline: float | None = record["walltime_deadline"]
        self.grace_seconds: float = record["grace_seconds"]
        self.fence_after_seconds: float = record["fence_after_seconds"]
        self.contact: float = record["contact"]
        self.ours = True
        """False after the keeper itself was lost: then the process is watched and killed, but not reaped."""
        self.gate = self.errors = self.pidfd = -1
        self.launched = self.suspended = self.exited = self.ended = False
        self.error = self.reason = ""
        self.kill_at: float | None = None
        self.linger_until = 0.0
        self.exit_code: int | None = None
        self.ended_at = 0.0

    def record(self) -> dict[str, Any]:
        names = ("id", "pid", "ticks", "boot", "started_at", "walltime_deadline", "grace_seconds")
        more = ("fence_after_seconds", "contact")
        return {"type": "start"} | {name: getattr(self, name) for name in names + more}

    def exit_record(self) -> dict[str, Any]:
        names = ("id", "exit_code", "reason", "error", "ended_at")
        return {"type": "exit"} | {name: getattr(self, name) for name in names}

    def end_from(self, record: dict[str, Any]) -> None:
        self.exited = self.ended = True
        for name in ("exit_code", "reason", "error", "ended_at"):
            setattr(self, name, record[name])

    def said(self) -> dict[str, Any]:
        """The attempt as clients see it."""
        state = "ended" if self.ended else "suspended" if self.suspended else "running"
        return {
            "id": self.id,
            "state": state,
            "pid": self.pid,
            "started_at": self.started_at,
            "exit_code": self.exit_code,
            "reason": self.reason or "exit",
            "error": self.error,
            "ended_at": self.ended_at,
        }

    def next_deadline(self, contact: float) -> float | None:
        """When something is to be done to it, CLOCK_BOOTTIME seconds."""
        due = [self.kill_at] if self.kill_at is not None else []
        if self.walltime_deadline is not None and not self.reason:
            due.append(self.walltime_deadline)
        if self.fence_after_seconds > 0 and self.reason != "fence":
            due.append(self.fence_deadline(contact))
        return min(due, default=None)

    def fence_deadline(self, contact: float) -> float:
        return max(contact, self.contact) + self.fence_after_seconds
