"""A cluster of one machine and one user: the real daemons, as processes without root, over SQLite.

    up     folder, ports ─► configurations ─► LIM (which starts mbatchd), sbatchd ─► wait until a node is ready
    down   sbatchd ─► its keeper, attempts first ─► LIM, and with it mbatchd ─► nothing is left but the folder

Both may be asked again at any time, and then do what is left to do. One of them acts on a folder at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lavalite.base.clock import Clock, SystemClock
from lavalite.base.errors import ConflictError, InputError, LavaLiteError, UnreachableError
from lavalite.base.processes import last_words, start_detached, started_with
from lavalite.cli.local_files import DAEMONS, StateFolder, UpRecord, choose_ports, node_name
from lavalite.sbatchd.ending import end_keeper, running_attempts

READY_SECONDS = 60.0
POLL_SECONDS = 0.1
STOP_SECONDS = 20.0
"""LIM gives mbatchd 10 s to end in, so it gets more itself."""
FENCE_SECONDS = 15.0
"""How long a scheduler whose LIM was killed takes to notice, at most."""
GRACE_SECONDS = 10.0

Tell = Callable[[str], None]
IsReady = Callable[[StateFolder], bool]


@dataclass(slots=True)
class Began:
    """What `up` found or did. `started` are the daemons that it started; none if all ran before."""

    record: UpRecord
    started: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Ended:
    """What `down` did. `attempts` are those that it stopped, or that go on where they were to be kept."""

    stopped: list[str] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _only_one(folder: StateFolder) -> Iterator[None]:
    """Hold the folder's lock. Raises ConflictError while another command has it."""
    with folder.lock_path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "Wait for it, then look with `lavalite status`."
            raise ConflictError(f"another up or down acts on {folder.path} now", code="busy", hint=hint) from None
        yield


def up(
    folder: StateFolder,
    is_ready: IsReady,
    *,
    cluster: str = "local",
    node: str = "",
    port_base: int | None = None,
    tell: Tell = lambda words: None,
    clock: Clock | None = None,
) -> Began:
    """Start what does not run yet, and wait until it is ready. What runs is left as it is.

    Raises InputError for the folder or the ports, ConflictError for a port that is taken, LavaLiteError with a
    daemon's own last words where one ends, UnreachableError where it takes too long.
    """
    clock = clock or SystemClock()
    folder.create()
    with _only_one(folder):
        record = folder.read_record()
        alive = record.alive() if record else {}
        if record and node not in ("", record.node):
            hint = f"Leave --node out, or name another folder with --state for {node}."
            raise InputError(f"this folder belongs to node {record.node}", field="--node", hint=hint)
        if record is None or not alive:
            ports = record.ports if record and port_base is None and not record.ports.taken() else None
            record = UpRecord(
                cluster=record.cluster if record else cluster,
                node=node or (record.node if record else node_name()),
                ports=ports or choose_ports(port_base),
            )
            folder.write_configs(record)
        began = Began(record)
        for daemon in DAEMONS:
            if daemon not in alive:
                tell(f"starting {daemon}")
                record.processes[daemon] = start_detached(
                    folder.command(daemon), folder.log_path(daemon), folder.path / daemon
                )
                folder.write_record(record)
                began.started.append(daemon)
        tell("waiting until it is ready")
        _wait_until_ready(folder, record, is_ready, clock)
    return began


def _wait_until_ready(folder: StateFolder, record: UpRecord, is_ready: IsReady, clock: Clock) -> None:
    until = clock.monotonic() + READY_SECONDS
    while not is_ready(folder):
        for daemon, process in record.processes.items():
            if not process.is_alive():
                raise _ended_early(folder, daemon)
        if clock.monotonic() > until:
            said = last_words(folder.log_path("mbatchd"))
            raise UnreachableError(
                f"it was not ready within {READY_SECONDS:g} s{': mbatchd says: ' + said if said else ''}",
                code="not_ready",
                hint=f"Look at the logs in {folder.lim} and {folder.sbatchd}; stop it with `lavalite down`.",
            )
        time.sleep(POLL_SECONDS)


def _ended_early(folder: StateFolder, daemon: str) -> LavaLiteError:
    log = folder.log_path(daemon)
    said = last_words(log)
    return LavaLiteError(
        f"{daemon} ended before it was ready{': ' + said if said else ''}",
        code="ended_early",
        hint=f"Its log is {log}.",
    )


def down(
    folder: StateFolder,
    *,
    keep_jobs: bool = False,
    purge: bool = False,
    tell: Tell = lambda words: None,
    clock: Clock | None = None,
) -> Ended:
    """Stop everything that `up` started, and all that came of it; with `keep_jobs` all but running attempts.

    `purge` removes the folder's content afterwards. Raises LavaLiteError where a process does not end.
    """
    clock = clock or SystemClock()
    ended = Ended()
    if not folder.path.is_dir():
        return ended
    if purge and keep_jobs:
        raise ConflictError("what runs needs its folder", hint="Give --keep-jobs or --purge, not both.")
    with _only_one(folder):
        record = folder.read_record()
        alive = record.alive() if record else {}
        if "sbatchd" in alive:
            tell("stopping sbatchd")
            alive["sbatchd"].end(STOP_SECONDS)
            ended.stopped.append("sbatchd")
        ended.attempts = _end_attempts(folder, keep_jobs, tell, clock)
        if "lim" in alive:
            tell("stopping LIM and mbatchd")
            alive["lim"].end(STOP_SECONDS)
            ended.stopped += ["lim", "mbatchd"]
        ended.stopped += [name for name in _end_schedulers(folder) if name not in ended.stopped]
        if record is not None:
            record.processes = {}
            folder.write_record(record)
        if purge:
            _purge(folder)
    return ended


def _end_attempts(folder: StateFolder, keep_jobs: bool, tell: Tell, clock: Clock) -> list[str]:
    attempts: list[str] = []
    for path in sorted(folder.sbatchd.rglob("keeper.sock")):
        attempts += running_attempts(path)
        if not keep_jobs:
            tell(f"stopping {len(attempts)} attempts" if attempts else "stopping the keeper")
            end_keeper(path, grace_seconds=GRACE_SECONDS, now=clock.monotonic)
    return attempts


def _end_schedulers(folder: StateFolder) -> list[str]:
    """See that no mbatchd is left: LIM ends its own; one whose LIM was killed ends by its own fence, or by us."""
    left = started_with(str(folder.config_path("mbatchd")))
    for process in left:
        if not process.wait_until_gone(FENCE_SECONDS):
            process.end(GRACE_SECONDS)
    return ["mbatchd"] if left else []


def _purge(folder: StateFolder) -> None:
    """Remove what is ours in the folder, and the folder if nothing else is in it."""
    store = folder.path.glob(f"{folder.store_path.name}*")  # SQLite and our own bells put things beside it
    for path in (folder.lim, folder.mbatchd, folder.sbatchd, *store, folder.record_path, folder.lock_path):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.path.rmdir()
