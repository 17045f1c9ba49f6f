"""Processes named so that a reused id is never mistaken for the old one: the id and the tick at which it started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GONE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Process:
    """`started`: clock ticks after boot, as field 22 of /proc/PID/stat."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """Raises ProcessLookupError where there is none."""
        fields = _fields(pid)
        if fields is None:
            raise ProcessLookupError(pid)
        return cls(pid, int(fields[19]))

    @classmethod
    def spawn(cls, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        """Start a program that may outlive this process and that nobody waits for: hence no Popen.

        What it writes is appended to `log`. Raises OSError where there is no such program.
        """
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        streams = [(os.POSIX_SPAWN_DUP2, nothing, 0), *((os.POSIX_SPAWN_DUP2, output, number) for number in (1, 2))]
        try:
            return cls.of(os.posix_spawnp(command[0], command, environment, file_actions=streams, setsid=True))
        finally:
            os.close(output)
            os.close(nothing)

    def alive(self) -> bool:
        """A process that has ended but was not waited for is not alive."""
        fields = _fields(self.pid)
        return fields is not None and int(fields[19]) == self.started and fields[0] not in "ZX"

    def kill(self) -> None:
        """SIGKILL, and return when it is gone. Raises TimeoutError after 20 s."""
        deadline = time.monotonic() + GONE_SECONDS
        while self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} outlived SIGKILL by {GONE_SECONDS:.0f} s")
            time.sleep(0.005)

    def command(self) -> str:
        """The program's name, at most 15 characters of it; empty where the process has ended."""
        try:
            return Path(f"/proc/{self.pid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def children(self) -> list[Process]:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        parents = ((pid, _fields(pid)) for pid in pids)
        return [Process(pid, int(fields[19])) for pid, fields in parents if fields and int(fields[1]) == self.pid]

    def forebears(self) -> list[Process]:
        """This one, its parent, and so on up to the first."""
        found = [self]
        while (fields := _fields(found[-1].pid)) and int(fields[1]) > 0:
            found.append(Process.of(int(fields[1])))
        return found

    def reap(self) -> None:
        """Of a dead one that this process may have started without a Popen: do not leave it a zombie."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def _fields(pid: int) -> list[str] | None:
    """What follows the command's name in /proc/PID/stat: state, parent, …; None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()
