"""What stands on this node, durable: STATE/parts/SLUG.json, one file per thing, for root's eyes alone (secrets)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from lavalite.sbatchd.attach.roles import Key, Made
from lavalite.wire.frames import PartOrder

log = structlog.get_logger(__name__)

RecordState = Literal["new", "ready", "failed", "lost"]


class Record(BaseModel):
    """One thing: its last order, and how far it is. `version` is that of the order by which `made` was made."""

    model_config = ConfigDict(frozen=True)

    order: PartOrder
    state: RecordState = "new"
    version: int = 0
    made: Made = Made()
    reason: str = ""

    @property
    def key(self) -> Key:
        return Key.of(self.order)

    @property
    def leaving(self) -> bool:
        return self.order.want == "absent"

    def but(self, **changes: object) -> Record:
        return self.model_copy(update=changes)


class RecordFolder:
    """Raises OSError where the disk does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> list[Record]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        found = []
        for file in sorted(self._folder.glob("*.json")):
            try:
                found.append(Record.model_validate_json(file.read_bytes()))
            except ValidationError as error:
                # Whole or not at all, so this is no crash of ours. What it tells of stays, and a person has to look.
                log.error("a record of an attached part cannot be read", file=str(file), reason=str(error))
        return found

    def write(self, record: Record) -> None:
        path = self._path(record.key)
        fresh = path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(record.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        self._sync()

    def forget(self, key: Key) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(key).unlink()
        self._sync()

    def _path(self, key: Key) -> Path:
        return self._folder / f"{key.slug}.json"

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
