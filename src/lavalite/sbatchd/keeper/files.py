"""The files of a keeper's folder, and the lock on it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

SOCKET_NAME, LOCK_NAME, JOURNAL_NAME, CONTACT_NAME = "keeper.sock", "keeper.lock", "keeper.journal", "keeper.contact"


def lock(path: Path) -> TextIO | None:
    """A lock file, or None while another process has it. The lock is held as long as the file is open."""
    file = path.open("a", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def sync_folder(path: Path) -> None:
    """Make durable which files a folder has."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
