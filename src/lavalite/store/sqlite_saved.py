"""Saving the SQLite store while it is in use, reading what was saved, and putting it back.

A copy is one file in SQLite's rollback mode, with no companions: it can be moved, and read where nothing may be
written. Everything here is synchronous, and takes as long as the disk takes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from lavalite.base.errors import ConflictError
from lavalite.store.base import Record
from lavalite.store.saved import Saved, damaged
from lavalite.store.sqlite_faults import explain
from lavalite.store.sqlite_file import APPLICATION_ID, FORMAT

MAGIC = b"SQLite format 3\0"
BUSY_SECONDS = 10.0
BEFORE_RESTORE = ".before-restore"

PRESENT = """SELECT v.key, v.value, v.create_revision, v.revision, v.lease_id FROM
    (SELECT key, MAX(revision) AS revision FROM versions GROUP BY key) AS newest
    JOIN versions AS v ON v.key = newest.key AND v.revision = newest.revision
    WHERE v.create_revision > 0 ORDER BY v.key"""


def save_sqlite(source: Path, target: Path) -> None:
    """Copy the store as it is at one moment, whoever uses it meanwhile. `target` appears whole or not at all.

    Raises InputError where the source is none of our stores, StoreUnavailable, OSError.
    """
    with _opened(source, "rw") as db:
        _copy(db, target)


def read_sqlite(path: Path) -> Saved:
    """Raises InputError where the file is not whole, or none of ours; OSError where it cannot be read."""
    with path.open("rb"):
        pass  # for an error that says more than SQLite's
    with _opened(path, "ro&immutable=1") as db:
        if (told := db.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise damaged(path, f"no whole store: {told}")
        revision = db.execute("SELECT revision FROM position").fetchone()[0]
        rows = db.execute(PRESENT).fetchall()
    records = [Record(key.decode(), value, created, changed, lease) for key, value, created, changed, lease in rows]
    return Saved("sqlite", revision, records)


def restore_sqlite(saved: Path, target: Path) -> None:
    """Put a saved store in the place of `target`, which is kept beside it (BEFORE_RESTORE). Its owner stays.

    Raises ConflictError while anybody has the store open, InputError, StoreUnavailable, OSError.
    """
    draft = target.with_name(target.name + ".restored")
    draft.unlink(missing_ok=True)
    owner = (target if target.exists() else target.parent).stat()
    with _opened(saved, "ro&immutable=1") as db:
        _copy(db, draft)
    if os.geteuid() == 0:  # who restores as root is not who uses it
        os.chown(draft, owner.st_uid, owner.st_gid)
    if target.exists():
        _fold(target)
        target.replace(target.with_name(target.name + BEFORE_RESTORE))
    draft.replace(target)
    _sync(target.parent)


def _fold(path: Path) -> None:
    """Write what stands in the companions into the file itself; only who has it alone can do that."""
    with contextlib.closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as db:
        try:
            db.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError:
            hint = "Stop LIM and the scheduler first."
            raise ConflictError(f"{path} is in use", code="in_use", hint=hint) from None


def _copy(db: sqlite3.Connection, target: Path) -> None:
    draft = target.with_name(target.name + ".part")
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as copy:
        db.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.replace(target)
    _sync(target.parent)


def _sync(folder: Path) -> None:
    entry = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """One of our stores, never made by looking. Raises InputError."""
    try:
        name = f"file:{quote(str(path))}?mode={mode}"
        with contextlib.closing(sqlite3.connect(name, uri=True, timeout=BUSY_SECONDS, isolation_level=None)) as db:
            application, version = (
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            if application != APPLICATION_ID:
                raise damaged(path, "no store of LavaLite")
            if version > FORMAT:
                raise damaged(path, "written by a newer LavaLite")
            yield db
    except sqlite3.Error as error:
        if str(getattr(error, "sqlite_errorname", "")).startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            raise damaged(path, f"no whole store: {error}") from None
        raise explain(error, path) from None
