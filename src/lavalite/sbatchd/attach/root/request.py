"""What the root program is asked to do, and how it runs other programs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavalite.base.errors import LavaLiteError

PROGRAM_SECONDS = 120.0


@dataclass(slots=True, frozen=True)
class Request:
    """One part. `order` is a PartOrder in JSON; `state_path` is sbatchd's, `more` is what its role adds."""

    slug: str
    state_path: Path
    systemd: bool
    order: Mapping[str, Any]
    more: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Beside the records: small files that belong to a part."""
        return self.state_path / "parts"

    def file(self, suffix: str) -> Path:
        return self.folder / f"{self.slug}.{suffix}"

    @property
    def amount(self) -> int:
        return int(self.order["amount"])

    @property
    def storage(self) -> Path:
        """The file that holds its bytes on this node."""
        return Path(self.more.get("storage_path") or self.state_path / "storage") / self.slug


def run(
    command: Sequence[str], *, what: str = "", text: str = "", seconds: float = PROGRAM_SECONDS, check: bool = True
) -> str:
    """What it printed. Raises LavaLiteError with the last line of what it said, if `check` and it failed."""
    what = what or command[0]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds)
    except FileNotFoundError:
        hint = f"Install the package that has {command[0]}."
        raise LavaLiteError(f"{command[0]} is not on this node", code="missing_program", hint=hint) from None
    except subprocess.TimeoutExpired:
        raise LavaLiteError(f"{what} has not ended in {seconds:g} s", code="slow") from None
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"it ended with {done.returncode}").splitlines()[-1]
        raise LavaLiteError(f"{what}: {said}")
    return done.stdout


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else who asks for that folder is at work meanwhile, also after a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_room(storage: Path, amount: int, *, preallocate: bool) -> None:
    """The file of a part's bytes, at least so large; never smaller than it was. Raises LavaLiteError."""
    storage.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(storage, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        if os.fstat(descriptor).st_size < amount:
            os.truncate(descriptor, amount)
        if preallocate:
            os.posix_fallocate(descriptor, 0, amount)
    except OSError as error:
        raise LavaLiteError(
            f"{storage} cannot be made {amount} bytes large ({error.strerror})", hint="See the room on that disk."
        ) from None
    finally:
        os.close(descriptor)
