"""The agent's journal: what it has promised, on disk before it acts.

A record is a dictionary with a `type`; which ones there are is the core's business (core.restore reads them):

    {"type": "journal", "id": …}                 made once, when the file is; names this journal
    {"type": "epoch", "epoch": [g, r]}           the highest seen, written before a frame of it is acted upon
    {"type": "attempt", …}                       accepted: from here on it is never started again
    {"type": "report", …}                        refused, started, suspended, resumed, ended: to be acknowledged
    {"type": "acknowledged", "id": …, "count": n}    the first n reports of it are durable at the leader
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.keeper.line_log import DamagedLogError, LineLog

Record = dict[str, Any]
FILE_NAME = "journal"


class Journal:
    """Records in `state_path/journal`. One process at a time may have it open (the daemon's lock sees to that)."""

    def __init__(self, state_path: Path, *, compact_lines: int = 8192) -> None:
        self._log = LineLog(state_path / FILE_NAME)
        self._compact_lines = compact_lines

    def open(self) -> list[Record]:
        """All records; the first one names the journal. Raises LavaLiteError where the file is damaged, OSError."""
        try:
            records = self._log.open()
        except DamagedLogError as error:
            raise LavaLiteError(
                str(error),
                code="journal_damaged",
                hint="Move it away: the agent then begins a new journal, and its old attempts count as lost.",
            ) from error
        if not records:
            records = [{"type": "journal", "id": str(uuid.uuid4())}]
            self._log.append(records)
        return records

    def append(self, records: list[Record]) -> None:
        """Durable on return, all of them or none. Raises LavaLiteError where the disk does not take them."""
        try:
            self._log.append(records)
        except OSError as error:
            raise LavaLiteError(
                f"{self._log.path} cannot be written ({error.strerror})",
                code="journal_unwritable",
                hint="Nothing can be promised without it. Make room on the disk; attempts that run are not harmed.",
            ) from error

    @property
    def long(self) -> bool:
        """Whether it has grown enough to be worth compacting."""
        return self._log.lines > self._compact_lines

    def compact(self, records: list[Record]) -> None:
        """Put these, which say the same in fewer words, in place of all. Where there is no room, later."""
        self._log.rewrite(records)

    def close(self) -> None:
        self._log.close()
