"""An append-only file whose lines are whole or were never there: journals of the keeper and of the agent."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

from lavalite.sbatchd.keeper.files import sync_folder


class DamagedLogError(Exception):
    """A line that is not the last one fails its checksum: the disk, or somebody's editor."""


class LineLog:
    """An append-only file: a line is a checksum and a JSON list of records that became durable together.

    A torn last line was never durable, so nobody acted on it: it is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self._fd = -1

    def open(self) -> list[dict[str, Any]]:
        """All records so far. Creates the file. Raises DamagedLogError, OSError."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        sync_folder(self.path.parent)
        content = self.path.read_bytes()
        records: list[dict[str, Any]] = []
        good_bytes = 0
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            batch = decode_line(line)
            if batch is None:
                if good_bytes + len(line) < len(content):
                    raise DamagedLogError(f"{self.path}:{number}: the checksum is wrong")
                break
            records += batch
            good_bytes += len(line)
            self.lines = number
        if good_bytes < len(content):
            os.ftruncate(self._fd, good_bytes)
            os.fsync(self._fd)
        return records

    def append(self, records: list[dict[str, Any]], *, durable: bool = True) -> None:
        """One line for all, and an fsync unless losing them is harmless. Raises OSError, having added nothing."""
        line, before = encode_line(records), os.fstat(self._fd).st_size
        try:
            while line:
                line = line[os.write(self._fd, line) :]
            if durable:
                os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, before)  # half a line must not stand before a whole one
            raise
        self.lines += 1

    def rewrite(self, records: list[dict[str, Any]]) -> None:
        """Put these in place of all lines, atomically. Without room on the disk all stays as it was."""
        fresh = self.path.with_name(self.path.name + ".new")
        other = LineLog(fresh)
        try:
            fresh.unlink(missing_ok=True)
            other.open()
            other.append(records)
            fresh.rename(self.path)
        except OSError:
            other.close()
            return
        os.close(self._fd)
        self._fd, self.lines = other._fd, 1
        sync_folder(self.path.parent)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def encode_line(records: list[dict[str, Any]]) -> bytes:
    body = json.dumps(records, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode_line(line: bytes) -> list[dict[str, Any]] | None:
    """The records of a line, or None where the line is not whole."""
    checksum, _, body = line.partition(b" ")
    if not body.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body[:-1]):
        return None
    records: list[dict[str, Any]] = json.loads(body)
    return records
