"""What is on disk about an attempt, and what became of it.

FOLDER/contact         when the last acknowledged beat was sent
FOLDER/ID/start.json   durable before systemd is asked: from then on the attempt is never started (again)
FOLDER/ID/spec.json    what begin.py reads
FOLDER/ID/begun        what begin.py says: `exec`, or why not
FOLDER/ID/ending.json  who wanted its end, and when KILL is due; durable before the signal
FOLDER/ID/end          how it ended, written when nothing of it is left
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lavalite.model.amounts import format_bytes
from lavalite.sbatchd.executors import Known, Launch
from lavalite.sbatchd.systemd.begin import BEGUN
from lavalite.sbatchd.systemd.fence import (
    CONTACT_NAME,
    END_NAME,
    ENDING_NAME,
    START_NAME,
    boot_id,
    last_contact,
    read_json,
    sync_folder,
    write_durably,
)

REPORT_MOST_BYTES = 4096
CANNOT_START_EXIT = 126
LOST = "lost"
OOM, NODE_FULL = "oom-kill", "node-full"
"""The kernel killed it for want of memory; the second: it was within its own limit, and the whole node was full."""
EXIT_KINDS = {1: "exited", 2: "killed", 3: "dumped"}
"""Of waitid: CLD_EXITED, CLD_KILLED, CLD_DUMPED."""
MACHINE_UP = ("running", "degraded", "starting", "initializing", "maintenance")
GONE = "gone-"
"""Before the name of a folder that is being removed."""
BEFORE_PROGRAM = {
    200: "enter a folder",
    203: "run begin.py",
    205: "set limits",
    206: "set the OOM score",
    208: "open the standard input",
    209: "open the standard output",
    215: "pin to cores",
    216: "become its group",
    217: "become its user",
    219: "enter its cgroup",
    222: "open the standard error",
    228: "restrict system calls",
}
"""systemd's exit codes of a process that has not become begin.py yet."""


@dataclass(slots=True, frozen=True)
class Start:
    """`started_at` is wall time, `booted_at`, `contact` CLOCK_BOOTTIME."""

    id: str
    boot: str
    started_at: float
    booted_at: float
    walltime_seconds: int | None
    memory_bytes: int
    cpus: list[int]
    fence_after_seconds: float
    contact: float


@dataclass(slots=True, frozen=True)
class End:
    """What systemd says of the end: `result` as in SERVICE_RESULT, or NODE_FULL; `code` exited, killed or dumped,
    `status` a number or a signal's name. `at` is wall time, `up` CLOCK_BOOTTIME."""

    result: str
    code: str = "-"
    status: str = "-"
    at: float = 0.0
    up: float = 0.0
    machine: str = "running"
    """What systemd said of the machine as a whole."""

    @classmethod
    def parse(cls, text: str) -> End | None:
        """None where it is not whole."""
        words = text.split()
        if len(words) != 6 or not text.endswith("\n"):
            return None
        return cls(words[0], words[1], words[2], float(words[3]), float(words[4]), words[5])

    @classmethod
    def of_unit(cls, facts: Mapping[str, Any], wall: float, up: float) -> End:
        """From the properties of a service that is loaded still; without them nobody knows."""
        code = EXIT_KINDS.get(facts.get("ExecMainCode", 0))
        if not facts or (code is None and facts.get("Result") == "success"):
            return cls(LOST, at=wall, up=up)
        return cls(facts["Result"], code or "-", str(facts["ExecMainStatus"]), wall, up)

    def text(self) -> str:
        return f"{self.result} {self.code} {self.status} {self.at:.6f} {self.up:.2f} {self.machine}\n"

    @property
    def shutdown(self) -> bool:
        """Whether the machine went down, and took it along: what it made of that TERM is not its own end.

        systemd says `stopping` then, or does not answer any more.
        """
        return self.machine not in MACHINE_UP

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal; None where nobody knows."""
        if self.code not in ("exited", "killed", "dumped"):
            return None
        if self.status.isdigit():
            number = int(self.status)
        else:
            name, _, offset = self.status.partition("+")
            try:
                number = signal.Signals[f"SIG{name}"] + int(offset or 0)
            except (KeyError, ValueError):
                return None
        return number if self.code == "exited" else -number


def reason_of(start: Start, begun: str, wanted: str, end: End) -> str:
    """Why it ended, as executors.Ended says it. `wanted`: the reason of whoever asked for the end."""
    said, ran = begun.removeprefix(BEGUN.decode()), begun.startswith(BEGUN.decode())
    if said and end.code == "exited":
        return f"cannot_start: {said}"
    if wanted:
        return wanted
    if not ran and end.code == "exited" and end.status.isdigit() and int(end.status) >= 200:
        step = BEFORE_PROGRAM.get(int(end.status), f"prepare it (systemd's exit {end.status})")
        return f"cannot_start: {step}{f' {start.cpus}' if end.status == '215' else ''}: systemd could not"
    if end.result == OOM and start.memory_bytes:
        return f"memory limit of {format_bytes(start.memory_bytes)} exceeded"
    if end.result in (OOM, NODE_FULL):
        return "the node's memory exceeded"
    # systemd says the same of leftovers that had to be killed after the program had ended by itself.
    if end.result == "timeout" and start.walltime_seconds and end.up - start.booted_at >= start.walltime_seconds:
        return "walltime"
    return LOST if end.shutdown or end.result == LOST else "exit"


def outcome(start: Start, begun: str, wanted: str, end: End) -> Known:
    reason, code = reason_of(start, begun, wanted, end), end.exit_code
    if reason.startswith("cannot_start") and code not in (126, 127):
        code = CANNOT_START_EXIT
    if reason == LOST:
        code = None
    return Known(start.id, "ended", 0, start.started_at, code, reason, end.at or start.started_at)


class AttemptFolder:
    """The files of one attempt. Methods do disk I/O and raise OSError."""

    def __init__(self, folder: Path, attempt: str) -> None:
        self.path = folder / attempt
        self.spec, self.begun = self.path / "spec.json", self.path / "begun"

    def create(self, start: Start, spec: dict[str, Any]) -> bool:
        """Durably. False: it was there already. Raises OSError, leaving nothing behind."""
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            return False
        try:
            self._write("begun", b"")
            self._write("spec.json", json.dumps(spec).encode())
            write_durably(self.path / START_NAME, asdict(start))
            sync_folder(self.path.parent)
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        return True

    def start(self) -> Start | None:
        content = read_json(self.path / START_NAME)
        return Start(**content) if content else None

    def want_end(self, reason: str, kill_at: float | None) -> None:
        """Durably: whose wish it is (the first one's counts), and when KILL is due (the earliest)."""
        before = read_json(self.path / ENDING_NAME)
        due = [at for at in (before.get("kill_at"), kill_at) if at is not None]
        content = {"reason": before.get("reason") or reason, "kill_at": min(due, default=None)}
        write_durably(self.path / ENDING_NAME, content)

    def cannot_start(self, why: str, at: float, up: float) -> None:
        """It ended before systemd was asked."""
        self._write("begun", why.encode(errors="replace")[:REPORT_MOST_BYTES])
        self.write_end(End("exit-code", "exited", str(CANNOT_START_EXIT), at, up))

    def write_end(self, end: End) -> None:
        fresh = self.path / f"{END_NAME}.new"
        self._write(fresh.name, end.text().encode())
        fresh.rename(self.path / END_NAME)
        sync_folder(self.path)

    def end(self) -> End | None:
        try:
            return End.parse((self.path / END_NAME).read_text(encoding="ascii"))
        except FileNotFoundError:
            return None

    def report(self) -> str:
        """What begin.py said so far."""
        try:
            with self.begun.open("rb") as file:
                return file.read(REPORT_MOST_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return ""

    def outcome(self) -> Known | None:
        """None while it has not ended. The spec goes: it may hold secrets, and nobody reads it any more."""
        start, end = self.start(), self.end()
        if start is None or end is None:
            return None
        self.spec.unlink(missing_ok=True)
        return outcome(start, self.report(), read_json(self.path / ENDING_NAME).get("reason", ""), end)

    def remove(self) -> None:
        """As one step, so that no half of it is taken for an attempt."""
        gone = self.path.with_name(GONE + self.path.name)
        shutil.rmtree(gone, ignore_errors=True)
        try:
            self.path.rename(gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def _write(self, name: str, content: bytes) -> None:
        fd = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            while content:
                content = content[os.write(fd, content) :]
            os.fsync(fd)
        finally:
            os.close(fd)


def begin_spec(launch: Launch, limits: dict[str, int], contact: float) -> dict[str, Any]:
    """What begin.py has to know. `contact`: the last one, CLOCK_BOOTTIME."""
    fence = launch.fence_after_seconds
    names = ("argv", "cwd", "environment", "stdout_path", "stderr_path", "own_outputs")
    spec = {name: getattr(launch, name) for name in names}
    return spec | {"limits": limits, "begin_by": contact + fence if fence > 0 else None}


def started(launch: Launch, *, wall: float, boot: float, contact: float) -> Start:
    return Start(
        id=launch.id,
        boot=boot_id(),
        started_at=wall,
        booted_at=boot,
        walltime_seconds=launch.walltime_seconds,
        memory_bytes=launch.memory_bytes,
        cpus=launch.cpus,
        fence_after_seconds=launch.fence_after_seconds,
        contact=contact,
    )


def make_own_outputs(launch: Launch) -> str:
    """Create those outputs that are in the agent's own folder. Why one cannot be, or an empty text."""
    for name in launch.own_outputs:
        path = getattr(launch, name)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.fchown(fd, launch.uid, launch.gid)
            finally:
                os.close(fd)
        except OSError as error:
            return f"open {path}: {error.strerror}"
    return ""


def prepare(folder: Path, note_end: str, name: str) -> None:
    """Lay down what units run when they end. Raises OSError."""
    if not (folder / name).exists() or (folder / name).read_text(encoding="utf-8") != note_end:
        fresh = folder / f"{name}.new"
        fresh.write_text(note_end, encoding="utf-8")
        fresh.rename(folder / name)


def noted(folder: Path) -> list[str]:
    """Ids of attempts that have a whole record. Half a one was never given to systemd: it goes. Raises OSError."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(GONE):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name[0].isdigit():
            attempt = AttemptFolder(folder, path.name)
            if attempt.start():
                found.append(path.name)
            else:
                attempt.remove()
    return found


def is_stopped(pid: int) -> bool:
    """Whether the process is suspended by a signal."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


class Contact:
    """The file that says when the last acknowledged beat was sent. Not synced: it is void after a reboot."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / CONTACT_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self.boot = boot_id()
        self.sent = last_contact(folder, self.boot)

    def renew(self, sent: float, now: float) -> None:
        """Both CLOCK_BOOTTIME. Raises OSError."""
        sent = min(sent, now)
        if sent > self.sent:
            self.sent = sent
            os.pwrite(self._fd, f"{self.boot} {sent:020.6f}".encode(), 0)
