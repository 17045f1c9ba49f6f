"""All attempts that are kept, and what is durable of them: the keeper's journal and the last contact."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from lavalite.sbatchd.keeper.files import CONTACT_NAME, JOURNAL_NAME
from lavalite.sbatchd.keeper.kept import Kept
from lavalite.sbatchd.keeper.line_log import LineLog
from lavalite.sbatchd.keeper.proc import boot_id, boottime

COMPACT_LINES = 4096


class Roll:
    """What is noted becomes durable with the next `write`, and only then are gates opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boot = boot_id()
        self.kept: dict[str, Kept] = {}
        self.running: dict[str, Kept] = {}
        """Those of `kept` that have not ended."""
        self.contact = 0.0
        """When the last beat was sent that the leader acknowledged: fences count from it."""
        self._log = LineLog(folder / JOURNAL_NAME)
        self._contact_fd = os.open(folder / CONTACT_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        self._notes: list[dict[str, Any]] = []
        self._urgent = False
        self._gated: list[Kept] = []

    def mark(self, attempt: str) -> str:
        """What all processes of an attempt have in their environment."""
        return f"{self.folder}:{attempt}"

    # --- changes

    def add(self, kept: Kept) -> None:
        """It was forked, and waits at its gate until its pid is durable."""
        self.kept[kept.id] = self.running[kept.id] = kept
        self._gated.append(kept)
        self.note(kept.record())

    def forget(self, kept: Kept) -> None:
        """Its end is known. Losing this is harmless: the end is told once more, and acknowledged once more."""
        del self.kept[kept.id]
        self.note({"type": "forget", "id": kept.id}, urgent=False)

    def note_ending(self, kept: Kept) -> None:
        """Why it is being ended, so that a keeper after this one goes on with it."""
        self.note({"type": "ending", "id": kept.id, "reason": kept.reason})

    def note(self, record: dict[str, Any], *, urgent: bool = True) -> None:
        self._notes.append(record)
        self._urgent |= urgent

    def renew_contact(self, sent: float) -> None:
        """The leader acknowledged a beat that was sent then, CLOCK_BOOTTIME seconds."""
        sent = min(sent, boottime())
        if sent > self.contact:
            self.contact = sent
            os.pwrite(self._contact_fd, f"{self.boot} {sent:020.6f}".encode(), 0)

    def write(self) -> None:
        """Make durable what was noted, then open the gates."""
        if self._notes:
            self._write_notes()
        for kept in self._gated:
            with contextlib.suppress(BrokenPipeError):
                os.write(kept.gate, b"g")
            _close_gate(kept)
        self._gated.clear()

    def _write_notes(self) -> None:
        try:
            self._log.append(self._notes, durable=self._urgent)
        except OSError as error:
            # What runs, runs on, and the next pass tries again. But nothing is started that would leave no trace.
            why = f"the keeper's journal cannot be written: {error.strerror}"
            print(why, file=sys.stderr, flush=True)
            for kept in self._gated:
                kept.error = why
                _close_gate(kept)
            self._gated.clear()
            return
        self._notes, self._urgent = [], False

    # --- after a crash of the keeper itself

    def recover(self) -> list[Kept]:
        """Read what an earlier keeper left. Those that had not ended. Raises DamagedLogError, OSError."""
        for record in self._log.open():
            if record["type"] == "start":
                self.kept[record["id"]] = Kept(record)
            elif record["type"] == "exit":
                self.kept[record["id"]].end_from(record)
            elif record["type"] == "ending":
                self.kept[record["id"]].reason = record["reason"]
            elif record["type"] == "forget":
                self.kept.pop(record["id"], None)
        boot, _, sent = os.pread(self._contact_fd, 200, 0).decode().partition(" ")
        if boot == self.boot:
            with contextlib.suppress(ValueError):
                self.contact = min(float(sent), boottime())
        return [kept for kept in self.kept.values() if not kept.ended]

    def compact(self, *, longer_than: int = -1) -> None:
        """Write the journal anew, in as few records as can be, if it has more lines than that."""
        if self._log.lines <= longer_than:
            return
        records = []
        for kept in self.kept.values():
            records.append(kept.record())
            if kept.ended:
                records.append(kept.exit_record())
            elif kept.reason:
                records.append({"type": "ending", "id": kept.id, "reason": kept.reason})
        self._log.rewrite(records)


def _close_gate(kept: Kept) -> None:
    os.close(kept.gate)
    kept.gate = -1
