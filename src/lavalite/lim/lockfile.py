"""`master.lock`: a file that exists only while this node's LIM leads, for systemd conditions and people."""

from __future__ import annotations

import json
from pathlib import Path

import structlog

from lavalite.lim.steps import Epoch

log = structlog.get_logger(__name__)


class LockFile:
    """A file system that fails does not stop a leader: the lease decides, the file only shows it."""

    def __init__(self, path: Path, node: str) -> None:
        self._path, self._node = path, node

    def write(self, epoch: Epoch) -> None:
        """Whole or not at all."""
        draft = self._path.with_name(f".{self._path.name}.new")
        try:
            draft.write_text(json.dumps({"node": self._node, "epoch": epoch}) + "\n")
            draft.chmod(0o644)
            draft.replace(self._path)
        except OSError as error:
            log.error("the lock file cannot be written", path=str(self._path), reason=error.strerror)

    def remove(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.error("the lock file cannot be removed", path=str(self._path), reason=error.strerror)
