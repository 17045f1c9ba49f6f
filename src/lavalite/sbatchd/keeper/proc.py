"""What the kernel tells: clocks, the boot, and processes (proc(5))."""

from __future__ import annotations

import os
import time
from pathlib import Path

MARK = "LAVALITE_KEPT"
"""Variable in the environment of all that an attempt starts: keeper's folder and attempt, unique on the machine."""


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_time() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _read(path: str) -> bytes:
    """All of a file of the kernel's. Read for each attempt several times, and in a third of the time of pathlib."""
    fd = os.open(path, os.O_RDONLY)
    try:
        content = b""
        while more := os.read(fd, 65536):
            content += more
        return content
    finally:
        os.close(fd)


class Process:
    """One line of /proc/PID/stat. `ticks` is its start time: with the pid it names a process for good."""

    __slots__ = ("alive", "group", "parent", "session", "ticks")

    def __init__(self, text: str) -> None:
        fields = text.rpartition(")")[2].split()
        self.alive = fields[0] not in "ZX"
        self.parent, self.group, self.session = int(fields[1]), int(fields[2]), int(fields[3])
        self.ticks = int(fields[19])


def look_at(pid: int) -> Process | None:
    try:
        return Process(_read(f"/proc/{pid}/stat").decode(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def all_processes() -> dict[int, Process]:
    pids = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return {pid: found for pid in pids if (found := look_at(pid))}


def own_children() -> set[int]:
    me = os.getpid()
    try:
        return {int(pid) for pid in _read(f"/proc/self/task/{me}/children").split()}
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return {pid for pid, process in all_processes().items() if process.parent == me}


def carries_mark(pid: int, mark: str) -> bool:
    """Whether the process was started with this attempt's mark in its environment."""
    try:
        environment = _read(f"/proc/{pid}/environ")
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")
