"""The keeper: a small process that owns running attempts and outlives sbatchd.

Started as `python -I -S keeper.py FOLDER`, it uses the standard library alone, so that an upgrade of the agent does
not pull code from under it. It is a child subreaper in a session of its own. sbatchd speaks to it through the Unix
socket FOLDER/keeper.sock, a JSON object a line:

    {"op": "start", "id": …, "argv": […], …}      {"op": "signal", "id": …, "signal": 15, "grace_seconds": 10, …}
    {"op": "list"}   {"op": "acknowledge", "id": …}   {"op": "contact", "sent": …}   {"op": "shutdown", "force": …}

Answers carry `reply` (the request's `n`); `{"event": "started"|"ended", "attempt": {…}}` goes to every client.

    start ──► gated ──► running ◄──► suspended ──► exited ──► ended ──► acknowledged, forgotten
              pid is durable         TERM, KILL    leftovers  told until acknowledged
              before the gate opens  by deadline   are killed

Nothing leaves this process before it is durable: each pass of the loop ends with one fsync, and only then are gates
opened and messages sent. All deadlines are CLOCK_BOOTTIME seconds, and are kept whether or not sbatchd lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import resource
import selectors
import signal
import socket
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any, TextIO

PR_SET_CHILD_SUBREAPER = 36
SOCKET_NAME, LOCK_NAME, JOURNAL_NAME, CONTACT_NAME = "keeper.sock", "keeper.lock", "keeper.journal", "keeper.contact"
MARK = "LAVALITE_KEPT"
"""Variable in the environment of all that an attempt starts: keeper's folder and attempt, unique on the machine."""
MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_UNSENT_BYTES = 8 * 1024 * 1024
COMPACT_LINES = 4096
LINGER_SECONDS = 30.0
"""How long leftovers of an exited attempt are hunted before it is called ended in spite of them (stuck in I/O)."""
REPEAT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0
"""The loop sleeps on a clock that stops while the machine is suspended; deadlines do not. So it never sleeps long."""
ALREADY_RUNS_EXIT = 3


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall_time() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class DamagedLogError(Exception):
    """A line that is not the last one fails its checksum: the disk, or somebody's editor."""


class LineLog:
    """An append-only file: a line is a checksum and a JSON list of records that became durable together.

    A torn last line was never durable, so nobody acted on it: it is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self._fd = -1

    def open(self) -> list[dict[str, Any]]:
        """All records so far. Creates the file. Raises DamagedLogError, OSError."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        sync_folder(self.path.parent)
        content = self.path.read_bytes()
        records: list[dict[str, Any]] = []
        good_bytes = 0
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            batch = decode_line(line)
            if batch is None:
                if good_bytes + len(line) < len(content):
                    raise DamagedLogError(f"{self.path}:{number}: the checksum is wrong")
                break
            records += batch
            good_bytes += len(line)
            self.lines = number
        if good_bytes < len(content):
            os.ftruncate(self._fd, good_bytes)
            os.fsync(self._fd)
        return records

    def append(self, records: list[dict[str, Any]], *, durable: bool = True) -> None:
        """One line for all, and an fsync unless losing them is harmless. Raises OSError, having added nothing."""
        line, before = encode_line(records), os.fstat(self._fd).st_size
        try:
            while line:
                line = line[os.write(self._fd, line) :]
            if durable:
                os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, before)  # half a line must not stand before a whole one
            raise
        self.lines += 1

    def rewrite(self, records: list[dict[str, Any]]) -> None:
        """Put these in place of all lines, atomically. Without room on the disk all stays as it was."""
        fresh = self.path.with_name(self.path.name + ".new")
        other = LineLog(fresh)
        try:
            fresh.unlink(missing_ok=True)
            other.open()
            other.append(records)
            fresh.rename(self.path)
        except OSError:
            other.close()
            return
        os.close(self._fd)
        self._fd, self.lines = other._fd, 1
        sync_folder(self.path.parent)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def encode_line(records: list[dict[str, Any]]) -> bytes:
    body = json.dumps(records, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode_line(line: bytes) -> list[dict[str, Any]] | None:
    """The records of a line, or None where the line is not whole."""
    checksum, _, body = line.partition(b" ")
    if not body.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body[:-1]):
        return None
    records: list[dict[str, Any]] = json.loads(body)
    return records


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- what /proc says ------------------------------------------------------------------------------------------


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
        return Process(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def all_processes() -> dict[int, Process]:
    pids = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return {pid: found for pid in pids if (found := look_at(pid))}


def own_children() -> set[int]:
    me = os.getpid()
    try:
        return {int(pid) for pid in Path(f"/proc/self/task/{me}/children").read_text(encoding="ascii").split()}
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return {pid for pid, process in all_processes().items() if process.parent == me}


def carries_mark(pid: int, mark: str) -> bool:
    """Whether the process was started with this attempt's mark in its environment."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


# --- one attempt ----------------------------------------------------------------------------------------------


class Kept:
    """One attempt, from its fork until its end is acknowledged."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.id: str = record["id"]
        self.pid: int = record["pid"]
        self.ticks: int = record["ticks"]
        self.boot: str = record["boot"]
        self.started_at: float = record["started_at"]
        self.walltime_deadline: float | None = record["walltime_deadline"]
        self.grace_seconds: float = record["grace_seconds"]
        self.fence_after_seconds: float = record["fence_after_seconds"]
        self.contact: float = record["contact"]
        self.ours = True
        """False after the keeper itself was lost: then the process is watched and killed, but not reaped."""
        self.gate = self.errors = self.pidfd = -1
        self.launched = self.suspended = self.exited = self.ended = False
        self.error = self.reason = ""
        self.kill_at: float | None = None
        self.linger_until = 0.0
        self.exit_code: int | None = None
        self.ended_at = 0.0

    def record(self) -> dict[str, Any]:
        names = ("id", "pid", "ticks", "boot", "started_at", "walltime_deadline", "grace_seconds")
        more = ("fence_after_seconds", "contact")
        return {"type": "start"} | {name: getattr(self, name) for name in names + more}

    def exit_record(self) -> dict[str, Any]:
        names = ("id", "exit_code", "reason", "error", "ended_at")
        return {"type": "exit"} | {name: getattr(self, name) for name in names}

    def end_from(self, record: dict[str, Any]) -> None:
        self.exited = self.ended = True
        for name in ("exit_code", "reason", "error", "ended_at"):
            setattr(self, name, record[name])

    def said(self) -> dict[str, Any]:
        """The attempt as clients see it."""
        state = "ended" if self.ended else "suspended" if self.suspended else "running"
        return {
            "id": self.id,
            "state": state,
            "pid": self.pid,
            "started_at": self.started_at,
            "exit_code": self.exit_code,
            "reason": self.reason or "exit",
            "error": self.error,
            "ended_at": self.ended_at,
        }

    def next_deadline(self, contact: float) -> float | None:
        """When something is to be done to it, CLOCK_BOOTTIME seconds."""
        due = [self.kill_at] if self.kill_at is not None else []
        if self.walltime_deadline is not None and not self.reason:
            due.append(self.walltime_deadline)
        if self.fence_after_seconds > 0 and self.reason != "fence":
            due.append(self.fence_deadline(contact))
        return min(due, default=None)

    def fence_deadline(self, contact: float) -> float:
        return max(contact, self.contact) + self.fence_after_seconds


def become_attempt(spec: dict[str, Any], mark: str, gate: int, errors: int) -> None:
    """In the child, after fork: wait for the gate, turn into the attempt. Never returns."""
    step = "prepare"
    try:
        signal.set_wakeup_fd(-1)
        for caught in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(caught, signal.SIG_DFL)
        os.setsid()
        keep = sorted((gate, errors))
        for low, high in ((3, keep[0]), (keep[0] + 1, keep[1]), (keep[1] + 1, 65536)):
            os.closerange(low, high)
        if os.read(gate, 1) != b"g":  # the keeper died before this pid was durable
            os._exit(126)
        os.umask(0o022)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        outputs = (("stdout_path", 1), ("stderr_path", 2))
        for name, number in outputs:
            if name in spec["own_outputs"]:  # below the agent's own folder, where the user may not create files
                step = f"open {spec[name]}"
                open_output(spec[name], number, os.O_NOFOLLOW, spec["uid"], spec["gid"])
        if spec["cpus"]:
            step = f"pin to cores {spec['cpus']}"
            os.sched_setaffinity(0, spec["cpus"])
        step = "set limits"
        for name, value in spec["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        step = f"become uid {spec['uid']}"
        take_identity(spec["uid"], spec["gid"])
        step = f"enter {spec['cwd']}"
        os.chdir(spec["cwd"])
        for name, number in outputs:
            if name not in spec["own_outputs"]:
                step = f"open {spec[name]}"
                open_output(spec[name], number, 0, -1, -1)
        step = f"run {spec['argv'][0]}"
        os.execvpe(spec["argv"][0], spec["argv"], spec["environment"] | {MARK: mark})  # noqa: S606
    except BaseException as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        with contextlib.suppress(OSError):
            os.write(errors, f"{step}: {text}".encode()[:4000])
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def open_output(path: str, number: int, flags: int, uid: int, gid: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, 0o600 if flags else 0o644)
    if uid >= 0 and os.geteuid() == 0:
        os.fchown(fd, uid, gid)
    os.dup2(fd, number)


def take_identity(uid: int, gid: int) -> None:
    if os.geteuid() != 0:
        if uid not in (-1, os.geteuid()):
            raise PermissionError(1, "only root can start an attempt as another user")
        return
    try:
        os.initgroups(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


# --- the keeper -----------------------------------------------------------------------------------------------


class Client:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.unread = b""
        self.unsent = b""


class Keeper:
    """The loop: hear, collect the dead, enforce deadlines, commit."""

    def __init__(self, folder: Path, idle_seconds: float) -> None:
        self._folder = folder
        self._log = LineLog(folder / JOURNAL_NAME)
        self._boot = boot_id()
        self._idle_seconds = idle_seconds
        self._idle_since = boottime()
        self._kept: dict[str, Kept] = {}
        self._running: dict[str, Kept] = {}
        """Those of `_kept` that have not ended."""
        self._clients: dict[int, Client] = {}
        self._selector = selectors.DefaultSelector()
        self._notes: list[dict[str, Any]] = []
        self._urgent = False
        self._gated: list[Kept] = []
        self._outbox: list[tuple[Client | None, dict[str, Any]]] = []
        self._over = False
        self._contact = 0.0
        self._contact_fd = os.open(folder / CONTACT_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._wakeup, self._alarm = os.pipe()

    def open(self) -> None:
        """Recover what an earlier keeper left, and listen."""
        for fd in (self._wakeup, self._alarm):
            os.set_blocking(fd, False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Asked to end by a signal, it goes on: whoever must end an attempt says so by name.
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._alarm, warn_on_full_buffer=False)
        self._selector.register(self._wakeup, selectors.EVENT_READ, lambda: os.read(self._wakeup, 4096))
        self._recover()
        with contextlib.suppress(FileNotFoundError):
            Path(SOCKET_NAME).unlink()
        self._listener.bind(SOCKET_NAME)
        self._listener.listen(16)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def serve(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(self._patience_seconds()):
                key.data()
            self._collect()
            self._enforce(boottime())
            self._commit()
            busy = self._running or self._clients
            self._idle_since = boottime() if busy else self._idle_since
            self._over |= not busy and boottime() - self._idle_since >= self._idle_seconds

    def _patience_seconds(self) -> float:
        now = boottime()
        waits = [LONGEST_WAIT_SECONDS]
        for kept in self._running.values():
            if kept.exited:
                waits.append(REPEAT_SECONDS)
            elif (due := kept.next_deadline(self._contact)) is not None:
                waits.append(due - now)
        if not self._running and not self._clients:
            waits.append(self._idle_since + self._idle_seconds - now)
        return max(0.0, min(waits))

    # --- after a crash of the keeper itself

    def _recover(self) -> None:
        for record in self._log.open():
            if record["type"] == "start":
                self._kept[record["id"]] = Kept(record)
            elif record["type"] == "exit":
                self._kept[record["id"]].end_from(record)
            elif record["type"] == "ending":
                self._kept[record["id"]].reason = record["reason"]
            elif record["type"] == "forget":
                self._kept.pop(record["id"], None)
        self._recover_contact()
        for kept in self._kept.values():
            if not kept.ended:
                self._watch_again(kept)
        self._compact()

    def _watch_again(self, kept: Kept) -> None:
        kept.ours, kept.launched = False, True
        process = None
        if kept.boot == self._boot:
            with contextlib.suppress(ProcessLookupError):
                kept.pidfd = os.pidfd_open(kept.pid)
            process = look_at(kept.pid)
        if process and process.ticks == kept.ticks and process.alive and kept.pidfd >= 0:
            self._running[kept.id] = kept
            self._selector.register(kept.pidfd, selectors.EVENT_READ, lambda: None)
            if kept.reason:  # it was being ended
                kept.kill_at = boottime()
            return
        self._drop_pidfd(kept)
        kept.reason = kept.reason or ("keeper_lost" if kept.boot == self._boot else "lost")
        kept.exited = kept.ended = True
        kept.ended_at = wall_time()

    def _drop_pidfd(self, kept: Kept) -> None:
        if kept.pidfd >= 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(kept.pidfd)
            os.close(kept.pidfd)
            kept.pidfd = -1

    def _recover_contact(self) -> None:
        boot, _, sent = os.pread(self._contact_fd, 200, 0).decode().partition(" ")
        if boot == self._boot:
            with contextlib.suppress(ValueError):
                self._contact = min(float(sent), boottime())

    def _compact(self) -> None:
        records = []
        for kept in self._kept.values():
            records.append(kept.record())
            if kept.ended:
                records.append(kept.exit_record())
            elif kept.reason:
                records.append({"type": "ending", "id": kept.id, "reason": kept.reason})
        self._log.rewrite(records)

    # --- clients

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it is gone again, or there are no descriptors left just now
            return
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            connection.close()
            return
        connection.setblocking(False)
        client = Client(connection)
        self._clients[connection.fileno()] = client
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear(client))

    def _leave(self, client: Client) -> None:
        if self._clients.pop(client.socket.fileno(), None):
            self._selector.unregister(client.socket)
            client.socket.close()

    def _hear(self, client: Client) -> None:
        """The socket became readable (or writable, while something is unsent)."""
        if client.unsent:
            self._push(client)
        try:
            heard = client.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        client.unread += heard
        *lines, client.unread = client.unread.split(b"\n")
        for line in lines:
            self._outbox.append((client, self._answer(line)))
        if not heard or len(client.unread) > MAX_LINE_BYTES:
            self._leave(client)

    def _answer(self, line: bytes) -> dict[str, Any]:
        request: dict[str, Any] = {}
        try:
            request |= json.loads(line)
            answer: dict[str, Any] = getattr(self, "_do_" + str(request["op"]))(request)
        except Exception as error:
            # A request that is wrong must not end what runs.
            answer = {"error": f"{type(error).__name__}: {error}"}
        return {"reply": request.get("n"), "id": request.get("id", "")} | answer

    def _push(self, client: Client) -> None:
        try:
            client.unsent = client.unsent[client.socket.send(client.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._leave(client)
            return
        if len(client.unsent) > MAX_UNSENT_BYTES:
            self._leave(client)
            return
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        key = self._selector.get_key(client.socket)
        if key.events != interest:
            self._selector.modify(client.socket, interest, key.data)

    # --- requests

    def _do_hello(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid(), "protocol": 1, "boot_id": self._boot, "contact": self._contact}

    def _do_list(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"attempts": [kept.said() for kept in self._kept.values()]}

    def _do_start(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["id"] in self._kept:
            return {"error": "known", "attempt": self._kept[request["id"]].said()}
        try:
            kept = self._fork(request)
        except OSError as error:
            return {"error": f"fork: {error.strerror}"}
        self._kept[kept.id] = self._running[kept.id] = kept
        self._gated.append(kept)
        self._note(kept.record())
        return {"attempt": kept.said()}

    def _fork(self, spec: dict[str, Any]) -> Kept:
        now, walltime = boottime(), spec["walltime_seconds"]
        record = {
            "id": spec["id"],
            "boot": self._boot,
            "started_at": wall_time(),
            "walltime_deadline": None if walltime is None else now + walltime,
            "grace_seconds": spec["grace_seconds"],
            "fence_after_seconds": spec["fence_after_seconds"],
            "contact": min(spec.get("contact") or now, now),
        }
        gate_read, gate = os.pipe()
        errors, errors_write = os.pipe()
        try:
            pid = os.fork()
            if pid == 0:
                become_attempt(spec, self._mark(spec["id"]), gate_read, errors_write)
        except OSError:
            os.close(gate)
            os.close(errors)
            raise
        finally:
            os.close(gate_read)
            os.close(errors_write)
        process = look_at(pid)
        kept = Kept(record | {"pid": pid, "ticks": process.ticks if process else 0})
        kept.gate, kept.errors = gate, errors
        os.set_blocking(errors, False)
        self._selector.register(errors, selectors.EVENT_READ, lambda: self._hear_launch(kept))
        return kept

    def _hear_launch(self, kept: Kept) -> None:
        """The child's last words before exec: none, when exec closed the pipe."""
        if kept.errors < 0:
            return
        try:
            kept.error = kept.error or os.read(kept.errors, 4096).decode(errors="replace")
        except BlockingIOError:
            return
        self._selector.unregister(kept.errors)
        os.close(kept.errors)
        kept.errors = -1
        if not kept.error:
            kept.launched = True
            self._tell("started", kept)

    def _do_signal(self, request: dict[str, Any]) -> dict[str, Any]:
        kept = self._running.get(request["id"])
        if not kept or kept.exited:
            return {"error": "unknown"}
        number = signal.Signals(request["signal"])
        if request.get("ending"):
            self._end(kept, number, request.get("grace_seconds", 0.0), request.get("reason") or "stop")
        elif number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGCONT):
            self._strike(kept, number)
            kept.suspended = number != signal.SIGCONT
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kept.pid, number)
        return {"attempt": kept.said()}

    def _do_acknowledge(self, request: dict[str, Any]) -> dict[str, Any]:
        kept = self._kept.get(request["id"])
        if kept and kept.ended:
            del self._kept[kept.id]
            # Losing this one is harmless: the end is told once more, and acknowledged once more.
            self._note({"type": "forget", "id": kept.id}, urgent=False)
        return {}

    def _do_contact(self, request: dict[str, Any]) -> dict[str, Any]:
        """The leader acknowledged a beat that was sent then: fences count from it."""
        sent = min(float(request["sent"]), boottime())
        if sent > self._contact:
            self._contact = sent
            os.pwrite(self._contact_fd, f"{self._boot} {sent:020.6f}".encode(), 0)
        return {}

    def _do_shutdown(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._running and not request.get("force"):
            return {"error": f"{len(self._running)} attempts run"}
        for kept in list(self._running.values()):
            self._end(kept, signal.SIGKILL, 0.0, "shutdown")
        self._idle_seconds = 0.0
        for client in list(self._clients.values()):
            self._outbox.append((client, {"reply": request.get("n")}))
        self._commit()
        for client in list(self._clients.values()):
            self._leave(client)
        return {}

    # --- ending

    def _end(self, kept: Kept, number: signal.Signals, grace_seconds: float, reason: str) -> None:
        if not kept.reason:
            kept.reason = reason
            self._note({"type": "ending", "id": kept.id, "reason": reason})
        if number == signal.SIGKILL:
            kept.kill_at = boottime()
            self._strike(kept, number)
            return
        self._strike(kept, number)
        if kept.suspended:  # a stopped process does not hear that it should end
            self._strike(kept, signal.SIGCONT)
            kept.suspended = False
        if grace_seconds > 0:
            due = boottime() + grace_seconds
            kept.kill_at = due if kept.kill_at is None else min(due, kept.kill_at)

    def _strike(self, kept: Kept, number: signal.Signals) -> None:
        """The whole group at once, then whoever of the attempt has left the group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if kept.ours or kept.pidfd >= 0:
                os.killpg(kept.pid, number)
        for pid in self._members(kept):
            process = look_at(pid)
            if process and process.group != kept.pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        if not kept.launched:  # not yet a group of its own, perhaps
            with contextlib.suppress(ProcessLookupError):
                os.kill(kept.pid, number)

    def _members(self, kept: Kept) -> set[int]:
        """All live processes of an attempt as far as they can be found: session, group, mark, and their descendants.

        Our own leader is a zombie at worst while this is asked, so that its pid names no other session.
        """
        processes = all_processes()
        leaders = {other.pid for other in self._running.values()}
        orphans = own_children() - leaders if kept.ours else set(processes) - leaders
        alone = kept.ours and len(self._running) == 1
        leader = processes.get(kept.pid)
        still_named = leader is None or leader.ticks == kept.ticks
        members = {kept.pid} if still_named else set()
        for pid, process in processes.items():
            in_session = still_named and kept.pid in (process.session, process.group)
            if in_session or (pid in orphans and (alone or carries_mark(pid, self._mark(kept.id)))):
                members.add(pid)
        while True:
            more = {pid for pid, process in processes.items() if process.parent in members} - members
            if not more:
                break
            members |= more
        return {pid for pid in members if pid in processes and processes[pid].alive} - {os.getpid()}

    def _mark(self, attempt: str) -> str:
        return f"{self._folder}:{attempt}"

    def _enforce(self, now: float) -> None:
        for kept in list(self._running.values()):
            if kept.exited:
                continue
            if kept.fence_after_seconds > 0 and kept.fence_deadline(self._contact) <= now and kept.reason != "fence":
                # No grace: its successor may start elsewhere soon after this moment.
                kept.reason = ""
                self._end(kept, signal.SIGKILL, 0.0, "fence")
            elif kept.kill_at is not None and kept.kill_at <= now:
                self._strike(kept, signal.SIGKILL)
                kept.kill_at = now + REPEAT_SECONDS
            elif kept.walltime_deadline is not None and kept.walltime_deadline <= now and not kept.reason:
                self._end(kept, signal.SIGTERM, max(kept.grace_seconds, 0.01), "walltime")

    def _collect(self) -> None:
        """See who has exited; take in the dead that nobody else will."""
        for kept in list(self._running.values()):
            if not kept.exited and self._has_exited(kept):
                self._hear_launch(kept)
                if kept.error:
                    kept.reason = kept.reason or "cannot_start"
                kept.exited, kept.ended_at = True, wall_time()
                kept.linger_until = boottime() + LINGER_SECONDS
                self._note(kept.exit_record())
                self._drop_pidfd(kept)
            if kept.exited:
                self._finish(kept)
        for pid in own_children() - {kept.pid for kept in self._running.values()}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _has_exited(self, kept: Kept) -> bool:
        """Whether it has; its exit code is kept then. It stays a zombie, so that its pid is not given out again."""
        if not kept.ours:
            process = look_at(kept.pid)
            if process and process.ticks == kept.ticks and process.alive:
                return False
            kept.reason = kept.reason or "keeper_lost"
            return True
        status = os.waitid(os.P_PID, kept.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is None:
            return False
        kept.exit_code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        return True

    def _finish(self, kept: Kept) -> None:
        """It has exited: nothing of it may be left when it is called ended, for its resources are given away then."""
        if kept.ours and not own_children() - {other.pid for other in self._running.values()}:
            left: set[int] = set()  # all that it left behind would be ours by now
        else:
            left = self._members(kept) - {kept.pid}
        if left and boottime() < kept.linger_until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            return
        if kept.ours:
            os.waitpid(kept.pid, 0)
        kept.ended = True
        del self._running[kept.id]
        self._tell("ended", kept)

    # --- durability

    def _note(self, record: dict[str, Any], *, urgent: bool = True) -> None:
        self._notes.append(record)
        self._urgent |= urgent

    def _tell(self, event: str, kept: Kept) -> None:
        self._outbox.append((None, {"event": event, "attempt": kept.said()}))

    def _commit(self) -> None:
        if self._notes:
            self._write_notes()
        for kept in self._gated:
            with contextlib.suppress(BrokenPipeError):
                os.write(kept.gate, b"g")
            os.close(kept.gate)
            kept.gate = -1
        self._gated.clear()
        for to, message in self._outbox:
            line = json.dumps(message).encode() + b"\n"
            for client in [to] if to else list(self._clients.values()):
                client.unsent += line
        self._outbox.clear()
        for client in list(self._clients.values()):
            if client.unsent:
                self._push(client)
        if self._log.lines > COMPACT_LINES:
            self._compact()

    def _write_notes(self) -> None:
        try:
            self._log.append(self._notes, durable=self._urgent)
        except OSError as error:
            # What runs, runs on, and the next pass tries again. But nothing is started that would leave no trace.
            why = f"the keeper's journal cannot be written: {error.strerror}"
            print(why, file=sys.stderr, flush=True)
            for kept in self._gated:
                kept.error = why
                os.close(kept.gate)
                kept.gate = -1
            self._gated.clear()
            return
        self._notes, self._urgent = [], False


def lock(path: Path) -> TextIO | None:
    """A lock file, or None while another process has it. The lock is held as long as the file is open."""
    file = path.open("a", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def main(arguments: list[str]) -> int:
    """`keeper.py FOLDER [IDLE_SECONDS]`. Prints `ready` when it listens. Exit 3: another keeper has the folder."""
    folder = Path(arguments[0]).absolute()
    idle_seconds = float(arguments[1]) if len(arguments) > 1 else 60.0
    os.umask(0o077)
    os.chdir(folder)  # a Unix socket's path is at most 107 bytes long, a folder's may be longer
    held = lock(folder / LOCK_NAME)
    if held is None:
        print("another keeper has this folder", file=sys.stderr)
        return ALREADY_RUNS_EXIT
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    keeper = Keeper(folder, idle_seconds)
    try:
        keeper.open()
    except DamagedLogError as error:
        print(f"{error}. Move the file away; attempts it knew will be reported as lost.", file=sys.stderr)
        return 1
    print("ready", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    keeper.serve()
    with contextlib.suppress(FileNotFoundError):
        Path(SOCKET_NAME).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
