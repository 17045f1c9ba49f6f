"""The file behind SqliteStore: tables, transactions, leases, history. Synchronous; lives on one thread.

Every version of every key is one row of `versions`, a deletion being a row with create revision 0. The present is
the newest row of each key, the past is the newest row up to a revision, and a watch reads rows by revision.
Compaction deletes rows that were replaced before a revision.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lavalite.store.arguments import prefix_end
from lavalite.store.base import (
    Compacted,
    Compare,
    Event,
    LeaseLost,
    Page,
    Put,
    Record,
    StoreUnavailable,
    Target,
    TxnResult,
)
from lavalite.store.sqlite_faults import commit, refuse_network_file_system

APPLICATION_ID = 0x4C617661  # "Lava"
FORMAT = 1
WATCH_WINDOW_REVISIONS = 100
NO_END = b"\xff" * 8  # no UTF-8 text sorts after it

SCHEMA = (
    "CREATE TABLE position (revision INTEGER NOT NULL, compact_revision INTEGER NOT NULL)",
    "INSERT INTO position VALUES (1, 0)",
    """CREATE TABLE versions (id INTEGER PRIMARY KEY, key BLOB NOT NULL, revision INTEGER NOT NULL,
        create_revision INTEGER NOT NULL, lease_id INTEGER NOT NULL, value BLOB NOT NULL)""",
    "CREATE UNIQUE INDEX versions_by_key ON versions (key, revision)",
    "CREATE INDEX versions_by_revision ON versions (revision)",
    "CREATE INDEX versions_by_lease ON versions (lease_id) WHERE lease_id > 0",
    # boot_id is empty: nothing goes by it.
    """CREATE TABLE leases (id INTEGER PRIMARY KEY, boot_id TEXT NOT NULL, ttl_seconds INTEGER NOT NULL,
        deadline_ms INTEGER NOT NULL)""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)

NEWEST = """SELECT key, value, create_revision, revision, lease_id FROM versions
    WHERE key = ? ORDER BY revision DESC LIMIT 1"""
RANGE = """SELECT v.key, v.value, v.create_revision, v.revision, v.lease_id FROM
    (SELECT key, MAX(revision) AS revision FROM versions
        WHERE key >= ? AND key > ? AND key < ? AND revision <= ? GROUP BY key) AS newest
    JOIN versions AS v ON v.key = newest.key AND v.revision = newest.revision
    WHERE v.create_revision > 0 ORDER BY v.key LIMIT ?"""
EVENTS = """SELECT key, value, create_revision, revision, lease_id FROM versions
    WHERE revision BETWEEN ? AND ? AND key >= ? AND key < ? ORDER BY revision, id"""
LEASED_KEYS = """SELECT v.key FROM versions AS v WHERE v.lease_id = ? AND v.create_revision > 0
    AND v.revision = (SELECT MAX(revision) FROM versions WHERE key = v.key) ORDER BY v.key"""
FORGET_REPLACED = """DELETE FROM versions WHERE id IN (SELECT older.id FROM
    (SELECT key, MAX(revision) AS revision FROM versions WHERE revision > ? AND revision <= ? GROUP BY key) AS newest
    JOIN versions AS older ON older.key = newest.key AND older.revision < newest.revision)"""
FORGET_DELETIONS = "DELETE FROM versions WHERE create_revision = 0 AND revision >= ? AND revision < ?"
# A lease due when none of this boot can be is of another, whose clock counted from another moment. Not told by the
# boot's id: in a container a confined unit may see another one than a shell, and would end what that one holds.
DUE = "SELECT id FROM leases WHERE deadline_ms <= :now_ms OR deadline_ms > :now_ms + ttl_seconds * 1000"

Row = tuple[bytes, bytes, int, int, int]


def _record(row: Row) -> Record:
    key, value, create_revision, revision, lease_id = row
    return Record(key.decode(), value, create_revision, revision, lease_id)


class SqliteFile:
    """Not safe for threads: the owner calls it from one. Raises sqlite3.Error, OSError and the store's errors.

    `boottime` gives seconds of CLOCK_BOOTTIME. A lease of another boot has expired, or does within its time.
    """

    def __init__(
        self, path: Path, *, boottime: Callable[[], float], busy_seconds: float, history_revisions: int
    ) -> None:
        self._path = path
        self._boottime = boottime
        self._history_revisions = history_revisions
        self._revision = 0
        self._compact_revision = 0
        self._db = self._connect(busy_seconds)

    def _connect(self, busy_seconds: float) -> sqlite3.Connection:
        refuse_network_file_system(self._path)
        self._make_private_file()
        db = sqlite3.connect(self._path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
        try:
            self._refuse_foreign(db)
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                hint = "Put it on a local file system such as ext4 or xfs."
                raise StoreUnavailable(f"the file system of {self._path} has no write-ahead logging", hint=hint)
            db.execute("PRAGMA synchronous = FULL")
            self._create(db)
        except BaseException:
            db.close()
            raise
        return db

    def _make_private_file(self) -> None:
        """Made here and not by SQLite, so that nobody else may read it; its companions inherit the mode.

        Made beside its place and linked into it, because to close any descriptor of the database itself drops the
        POSIX locks that this process's other connections hold on it: https://www.sqlite.org/howtocorrupt.html §2.2.
        """
        if self._path.exists():
            return
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            with contextlib.suppress(FileExistsError):  # another was faster
                self._path.hardlink_to(draft)
        finally:
            draft.unlink()

    def _refuse_foreign(self, db: sqlite3.Connection) -> None:
        # Tables first: whoever is making them now makes the rest in the same transaction.
        tables = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        application, version = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version"))
        if tables and application != APPLICATION_ID:
            raise StoreUnavailable(f"{self._path} is another program's database", hint="Name another file.")
        if version > FORMAT:
            raise StoreUnavailable(f"{self._path} was written by a newer LavaLite", hint="Upgrade this one.")

    @staticmethod
    def _create(db: sqlite3.Connection) -> None:
        if db.execute("PRAGMA user_version").fetchone()[0] == FORMAT:
            return
        db.execute("BEGIN IMMEDIATE")
        try:
            if db.execute("PRAGMA user_version").fetchone()[0] != FORMAT:  # another process may have been faster
                for statement in SCHEMA:
                    db.execute(statement)
            commit(db)
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def close(self) -> None:
        self._db.close()

    # --- reading -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """A read transaction in which no lease is overdue."""
        while True:
            self._db.execute("BEGIN")
            try:
                if not self._due():
                    self._load_position()
                    yield
                    return
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")  # nothing was written
            self.expire()

    def get(self, key: str) -> Record | None:
        with self._reading():
            return self._newest(key.encode())

    def range(self, prefix: str, limit: int, after: str | None, at_revision: int) -> Page:
        with self._reading():
            revision = at_revision or self._revision
            if revision < self._compact_revision:
                raise Compacted(self._compact_revision)
            if revision > self._revision:  # of a store that is gone, such as before a restore
                raise Compacted(self._revision)
            start, end = prefix.encode(), prefix_end(prefix) or NO_END
            # Nothing sorts before the empty key, and no key is empty: it stands for "from the start".
            found = self._db.execute(RANGE, (start, (after or "").encode(), end, revision, limit + 1)).fetchall()
        records = [_record(row) for row in found[:limit]]
        return Page(records, revision, records[-1].key if len(found) > limit else None)

    def events(self, prefix: str, from_revision: int) -> tuple[list[Event], int]:
        """Events of whole revisions from `from_revision` on, and the last revision looked at (before it: none)."""
        with self._reading():
            if from_revision < self._compact_revision:
                raise Compacted(self._compact_revision)
            last = min(self._revision, from_revision + WATCH_WINDOW_REVISIONS - 1)
            bounds = (from_revision, last, prefix.encode(), prefix_end(prefix) or NO_END)
            found = self._db.execute(EVENTS, bounds).fetchall()
        return [Event("put" if row[2] else "delete", _record(row)) for row in found], last

    def data_version(self) -> int:
        """Changes whenever another connection has committed."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def next_deadline_seconds(self) -> float | None:
        """Seconds until the next lease is due; None without leases."""
        first = self._db.execute("SELECT MIN(deadline_ms) FROM leases").fetchone()[0]
        return None if first is None else max(0.0, first / 1000 - self._boottime())

    def size(self) -> tuple[int, int]:
        """Revision, and bytes in use by the file."""
        with self._reading():
            pages, page_bytes = (self._db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("page_count", "page_size"))
            return self._revision, pages * page_bytes

    # --- writing -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A write transaction; overdue leases go first, so that they get a revision of their own."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._load_position()
            self._end_leases(self._due())
            yield
            if self._revision - self._compact_revision > self._history_revisions * 11 // 10:
                self._forget(self._revision - self._history_revisions)
            self._db.execute("UPDATE position SET revision = ?, compact_revision = ?", self._position())
            commit(self._db)
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def txn(self, compares: Sequence[Compare], puts: Sequence[Put], deletes: Sequence[str]) -> TxnResult:
        with self._writing():
            if not all(self._holds(compare) for compare in compares):
                return TxnResult(False, self._revision)
            revision = self._revision + 1
            for put in puts:
                self._put(put, revision)
            changed = len(puts) + sum(self._delete(key.encode(), revision) for key in deletes)
            if changed:
                self._revision = revision
            return TxnResult(True, self._revision)

    def grant(self, ttl_seconds: int) -> int:
        with self._writing():
            lease_id = secrets.randbits(62) + 1
            lease = (lease_id, ttl_seconds, self._deadline_ms(ttl_seconds))
            self._db.execute("INSERT INTO leases VALUES (?, '', ?, ?)", lease)
        return lease_id

    def keepalive(self, lease_id: int) -> int:
        with self._writing():
            ttl_seconds = self._ttl_seconds(lease_id)
            deadline_ms = self._deadline_ms(ttl_seconds)
            self._db.execute("UPDATE leases SET deadline_ms = ? WHERE id = ?", (deadline_ms, lease_id))
        return ttl_seconds

    def revoke(self, lease_id: int) -> None:
        with self._writing():
            self._end_leases([lease_id])

    def expire(self) -> None:
        """End the leases that are due."""
        with self._writing():
            pass

    def compact(self, revision: int) -> None:
        with self._writing():
            if revision > self._revision:
                raise ValueError(f"revision {revision} is not reached yet, the store is at {self._revision}")
            self._forget(revision)

    # --- inside a transaction ----------------------------------------------------------------------------------

    def _load_position(self) -> None:
        row = self._db.execute("SELECT revision, compact_revision FROM position").fetchone()
        self._revision, self._compact_revision = row

    def _position(self) -> tuple[int, int]:
        return self._revision, self._compact_revision

    def _due(self) -> list[int]:
        return [row[0] for row in self._db.execute(DUE, {"now_ms": int(self._boottime() * 1000)})]

    def _deadline_ms(self, ttl_seconds: int) -> int:
        return int(self._boottime() * 1000) + ttl_seconds * 1000

    def _ttl_seconds(self, lease_id: int) -> int:
        row = self._db.execute("SELECT ttl_seconds FROM leases WHERE id = ?", (lease_id,)).fetchone()
        if row is None:
            raise LeaseLost(f"lease {lease_id} has expired or was revoked", hint="Take a new one.")
        return int(row[0])

    def _newest(self, key: bytes) -> Record | None:
        row = self._db.execute(NEWEST, (key,)).fetchone()
        return _record(row) if row is not None and row[2] else None

    def _holds(self, compare: Compare) -> bool:
        record = self._newest(compare.key.encode())
        if compare.target is Target.VALUE:
            return record is not None and record.value == compare.expected
        if record is None:
            return compare.expected == 0
        is_created = compare.target is Target.CREATE_REVISION
        return compare.expected == (record.create_revision if is_created else record.mod_revision)

    def _put(self, put: Put, revision: int) -> None:
        if put.lease_id:
            self._ttl_seconds(put.lease_id)
        key = put.key.encode()
        present = self._newest(key)
        self._add(key, revision, present.create_revision if present else revision, put.lease_id, put.value)

    def _delete(self, key: bytes, revision: int) -> bool:
        if self._newest(key) is None:
            return False
        self._add(key, revision, 0, 0, b"")
        return True

    def _add(self, key: bytes, revision: int, create_revision: int, lease_id: int, value: bytes) -> None:
        self._db.execute(
            "INSERT INTO versions (key, revision, create_revision, lease_id, value) VALUES (?, ?, ?, ?, ?)",
            (key, revision, create_revision, lease_id, value),
        )

    def _end_leases(self, lease_ids: list[int]) -> None:
        revision = self._revision + 1
        for lease_id in lease_ids:
            for (key,) in self._db.execute(LEASED_KEYS, (lease_id,)).fetchall():
                self._delete(key, revision)
                self._revision = revision
            self._db.execute("DELETE FROM leases WHERE id = ?", (lease_id,))

    def _forget(self, revision: int) -> None:
        if revision > self._compact_revision:
            self._db.execute(FORGET_REPLACED, (self._compact_revision, revision))
            self._db.execute(FORGET_DELETIONS, (self._compact_revision, revision))
            self._compact_revision = revision
