"""What can be wrong with a SQLite file, in sentences with a way out."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from lavalite.base.errors import LavaLiteError
from lavalite.store.base import OutcomeUnknown, StoreUnavailable

NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "lustre",
        "gpfs",
        "beegfs",
        "fuse.sshfs",
        "glusterfs",
    }
)
"""Write-ahead logging needs memory that all writers share; on these there may be writers on other machines."""

SENTENCES: tuple[tuple[str, str, str], ...] = (
    ("SQLITE_BUSY", "is held by another process", "Try again; `fuser FILE` shows who holds it."),
    ("SQLITE_LOCKED", "is held by another process", "Try again; `fuser FILE` shows who holds it."),
    ("SQLITE_FULL", "cannot grow: the disk is full", "Free space on its file system."),
    ("SQLITE_NOTADB", "is not a SQLite database", "Name another file, or move this one away."),
    ("SQLITE_CORRUPT", "is damaged", "Restore it from a backup."),
    ("SQLITE_READONLY", "may not be written", "Give this user write permission on the file and its folder."),
    ("SQLITE_PERM", "may not be written", "Give this user write permission on the file and its folder."),
    ("SQLITE_CANTOPEN", "cannot be opened", "Check that its folder exists and this user may write in it."),
    ("SQLITE_IOERR", "cannot be read or written", "Check its disk: `dmesg` and `df` tell more."),
)


class CommitFailed(Exception):
    """The commit itself gave an error other than 'busy' or 'full': on disk it may be either way."""


def explain(error: Exception, path: Path) -> LavaLiteError:
    """The error of ours that says what happened to the file at `path`."""
    if isinstance(error, CommitFailed):
        return OutcomeUnknown(f"{path} could not be committed to ({error})", hint="Read the keys to know.")
    name = str(getattr(error, "sqlite_errorname", ""))
    for prefix, message, hint in SENTENCES:
        if name.startswith(prefix):
            return StoreUnavailable(f"{path} {message} ({name})", hint=hint)
    if isinstance(error, OSError):
        hint = "Check that its folder exists and this user may write in it."
        return StoreUnavailable(f"{path} cannot be opened ({error.strerror})", hint=hint)
    return StoreUnavailable(f"{path} cannot be used ({error})", hint="Check the file and its disk.")


def commit(db: sqlite3.Connection) -> None:
    """Commit. Raises sqlite3.Error where nothing was kept, CommitFailed where that is not known."""
    try:
        db.execute("COMMIT")
    except sqlite3.Error as error:
        name = str(getattr(error, "sqlite_errorname", ""))
        if name.startswith(("SQLITE_BUSY", "SQLITE_FULL")):
            raise
        raise CommitFailed(str(error)) from error


def refuse_network_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Raise StoreUnavailable where `path` lies on a network file system."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return
    folder = path.resolve().parent
    best = ("", "")
    for line in lines:
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if folder.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, after.split()[0])
    if best[1] in NETWORK_FILE_SYSTEMS:
        hint = "Put it on a disk of this machine, or use etcd for several machines."
        raise StoreUnavailable(f"{path} lies on a network file system ({best[1]} at {best[0]})", hint=hint)
