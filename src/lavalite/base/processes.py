"""Processes that outlive the command which starts them, named so that a reused pid is never taken for one of them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lavalite.base.errors import LavaLiteError


class ProcessIdentity(BaseModel):
    """`start_ticks` is when it started, as the kernel counts; with boot and pid it names one process for good."""

    model_config = ConfigDict(frozen=True)

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The process that has this pid now; None if none does, or if it is dead and merely not yet reaped."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = text.rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return cls(pid=pid, start_ticks=int(fields[19]), boot_id=current_boot_id())

    def is_alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self

    def end(self, grace_seconds: float) -> None:
        """Ask it to end, kill it after `grace_seconds`, and return when it is gone. Raises LavaLiteError."""
        for number, wait_seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
            with self._held() as descriptor:
                if descriptor is None:
                    return
                try:
                    signal.pidfd_send_signal(descriptor, number)
                except ProcessLookupError:
                    return
                except PermissionError:
                    hint = "Ask as the user that started it."
                    raise LavaLiteError(f"process {self.pid} belongs to another user", hint=hint) from None
                if _ends(descriptor, wait_seconds):
                    return
        raise LavaLiteError(f"process {self.pid} does not end", hint="It may hang in the kernel; look with `ps`.")

    def wait_until_gone(self, timeout_seconds: float) -> bool:
        """Whether it is gone within the time."""
        with self._held() as descriptor:
            return descriptor is None or _ends(descriptor, timeout_seconds)

    @contextlib.contextmanager
    def _held(self) -> Iterator[int | None]:
        """A descriptor of this very process, or None if it is gone. Looked at after it is held: no race is left."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield descriptor if self.is_alive() else None
        finally:
            os.close(descriptor)


def _ends(descriptor: int, timeout_seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))


def current_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def started_with(argument: str, uids: Collection[int] | None = None) -> list[ProcessIdentity]:
    """Processes of these users, or of this one, that have exactly this argument, such as a configuration's path."""
    found, wanted = [], argument.encode()
    owners = {os.geteuid()} if uids is None else uids
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or (identity := ProcessIdentity.of(int(entry.name))) is None:
            continue
        with contextlib.suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            if wanted in arguments and entry.stat().st_uid in owners and identity.is_alive():
                found.append(identity)
    return found


def start_detached(command: Sequence[str], log_path: Path, cwd: Path) -> ProcessIdentity:
    """Start a program in a session of its own; what it says is appended to `log_path`. Raises LavaLiteError."""
    try:
        with log_path.open("ab") as log:
            started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, start_new_session=True
            )
    except OSError as error:
        raise LavaLiteError(f"{command[0]} cannot be started ({error.strerror})") from None
    identity = ProcessIdentity.of(started.pid)
    if identity is None:
        raise LavaLiteError(f"{' '.join(command[:4])} ended at once", hint=f"See {log_path}.")
    return identity


def last_words(log_path: Path) -> str:
    """The last line of a log that is for people: what a daemon said as it ended."""
    try:
        lines = log_path.read_bytes()[-8192:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    spoken = [line for line in lines if line.strip() and not line.startswith(("{", " "))]
    return spoken[-1].strip() if spoken else ""
