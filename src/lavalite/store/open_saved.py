"""From a backup's file to the records in it."""

from __future__ import annotations

from pathlib import Path

from lavalite.base.errors import InputError
from lavalite.store.etcd_saved import read_etcd_snapshot
from lavalite.store.saved import Saved
from lavalite.store.sqlite_saved import MAGIC, read_sqlite


def read_saved(path: Path) -> Saved:
    """A snapshot of etcd, or a saved SQLite store: its first bytes say which. Raises InputError."""
    try:
        with path.open("rb") as file:
            is_sqlite = file.read(len(MAGIC)) == MAGIC
        return read_sqlite(path) if is_sqlite else read_etcd_snapshot(path)
    except OSError as error:
        hint = "Check the path and that this user may read it."
        raise InputError(f"cannot read {path}: {error.strerror or error}", code="cannot_read", hint=hint) from None
