"""What the agent knows of one attempt, and how that is written in the journal and read back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from lavalite.model.task import AttemptId
from lavalite.wire.frames import Attempt, AttemptReport

Record = dict[str, Any]
State = Literal["journalled", "started", "suspended", "ended", "refused"]
FINAL_STATES = ("ended", "refused")
STATE_AFTER: dict[str, State] = {
    "refused": "refused",
    "started": "started",
    "suspended": "suspended",
    "resumed": "started",
    "ended": "ended",
}


@dataclass(slots=True)
class Entry:
    """One attempt of the journal.

        journalled ──► started ◄──► suspended      ended, refused: final
             └────────────┴─────────────┴──► ended
        (never known) ──► refused

    `unacknowledged` are the reports that the leader may not have, oldest first; `acknowledged` counts those it has.
    """

    id: str
    uid: int = -1
    stdout_path: str = ""
    stderr_path: str = ""
    state: State = "journalled"
    journalled_at: float = 0.0
    pid: int = 0
    acknowledged: int = 0
    unacknowledged: list[AttemptReport] = field(default_factory=list)
    last: AttemptReport | None = None

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def settled(self) -> bool:
        """Over, and the leader knows."""
        return self.final and not self.unacknowledged

    def report(self, report: AttemptReport) -> None:
        self.state = STATE_AFTER[report.state]
        self.pid = report.pid or self.pid
        self.last = report
        self.unacknowledged.append(report)

    def acknowledge(self, count: int) -> None:
        """The leader has the first `count` reports, counted from the very first."""
        fresh = max(0, count - self.acknowledged)
        self.acknowledged += fresh
        del self.unacknowledged[:fresh]

    def restated(self) -> list[AttemptReport]:
        """What a leader that knows nothing of it has to hear."""
        if self.unacknowledged:
            return list(self.unacknowledged)
        if self.last:
            return [self.last]
        return [AttemptReport(id=self.id, state="started", at=self.journalled_at, reason="starting")]

    def record(self) -> Record:
        return {
            "type": "attempt",
            "id": self.id,
            "uid": self.uid,
            "stdout_path": self.stdout_path,
            "stderr_path": self.stderr_path,
            "at": self.journalled_at,
        }

    def records(self) -> list[Record]:
        """All that the journal has to say of it, in as few records as can be."""
        summary = self.record() | {"state": self.state, "pid": self.pid, "acknowledged": self.acknowledged}
        if self.last:
            summary["last"] = report_record(self.last)
        return [summary, *(report_record(report) for report in self.unacknowledged)]


def accepted(attempt: Attempt, stdout_path: str, stderr_path: str, at: float) -> Entry:
    return Entry(attempt.id, attempt.uid, stdout_path, stderr_path, journalled_at=at)


def report_record(report: AttemptReport) -> Record:
    return report.model_dump(exclude_defaults=True) | {"type": "report"}


def acknowledged_record(entry: Entry) -> Record:
    return {"type": "acknowledged", "id": entry.id, "count": entry.acknowledged}


@dataclass(slots=True)
class Restored:
    """What a journal says, read from its first record to its last."""

    journal_id: str = ""
    highest_epoch: tuple[int, int] | None = None
    entries: dict[str, Entry] = field(default_factory=dict)


def restore(records: Iterable[Record]) -> Restored:
    restored = Restored()
    for record in records:
        kind = record["type"]
        if kind == "journal":
            restored.journal_id = record["id"]
        elif kind == "epoch":
            restored.highest_epoch = (record["epoch"][0], record["epoch"][1])
        elif kind == "attempt":
            restored.entries[record["id"]] = _restored_entry(record)
        elif kind == "report":
            restored.entries[record["id"]].report(_restored_report(record))
        elif kind == "acknowledged" and record["id"] in restored.entries:
            restored.entries[record["id"]].acknowledge(record["count"])
        elif kind == "forgotten":
            restored.entries.pop(record["id"], None)
    return restored


def _restored_entry(record: Record) -> Entry:
    entry = Entry(
        record["id"], record["uid"], record["stdout_path"], record["stderr_path"], journalled_at=record["at"]
    )
    entry.state = record.get("state", "journalled")
    entry.pid = record.get("pid", 0)
    entry.acknowledged = record.get("acknowledged", 0)
    if "last" in record:
        entry.last = _restored_report(record["last"])
    return entry


def _restored_report(record: Record) -> AttemptReport:
    return AttemptReport.model_validate({key: value for key, value in record.items() if key != "type"})


def well_named(attempt: str) -> bool:
    """Whether this is JOB.TASK.ATTEMPT, spelt as we spell it: such a name is safe in a path."""
    try:
        return str(AttemptId.parse(attempt)) == attempt and "-" not in attempt
    except ValueError:
        return False
