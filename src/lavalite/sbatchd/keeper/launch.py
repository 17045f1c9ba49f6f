"""From the fork to the exec: how a process becomes an attempt."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import signal
from typing import Any

from lavalite.sbatchd.keeper.kept import Kept
from lavalite.sbatchd.keeper.proc import MARK, boottime, look_at, wall_time

HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)


def hold_signals() -> None:
    """Let none of HELD through: whoever must end an attempt says so by name.

    They are not caught, since a child has what the keeper catches until it puts that away: a signal to it would be
    lost. One that is held waits, and finds all at its default. What is left to put away is what Python ignores.
    """
    for each in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, *IGNORED}:
        signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def fork(spec: dict[str, Any], boot: str, mark: str) -> Kept:
    """A process that waits at its gate to become what `spec`, a request, says. Raises OSError.

    What can be made ready is made before the fork: each page that Python touches in the child is copied.
    """
    now, walltime = boottime(), spec["walltime_seconds"]
    record = {
        "id": spec["id"],
        "boot": boot,
        "started_at": wall_time(),
        "walltime_deadline": None if walltime is None else now + walltime,
        "grace_seconds": spec["grace_seconds"],
        "fence_after_seconds": spec["fence_after_seconds"],
        "contact": min(spec.get("contact") or now, now),
    }
    environment = spec["environment"] | {MARK: mark}
    gate_read, gate = os.pipe()
    errors, errors_write = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            become_attempt(spec, environment, gate_read, errors_write)
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
    return kept


def become_attempt(spec: dict[str, Any], environment: dict[str, str], gate: int, errors: int) -> None:
    """In the child, after fork: wait for the gate, turn into the attempt. Never returns."""
    step = "prepare"
    try:
        os.setsid()
        for each in IGNORED:
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
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
        take_identity(spec["uid"], spec["gid"], spec.get("groups"))
        step = f"enter {spec['cwd']}"
        os.chdir(spec["cwd"])
        for name, number in outputs:
            if name not in spec["own_outputs"]:
                step = f"open {spec[name]}"
                open_output(spec[name], number, 0, -1, -1)
        step = f"run {spec['argv'][0]}"
        os.execvpe(spec["argv"][0], spec["argv"], environment)  # noqa: S606
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


def take_identity(uid: int, gid: int, groups: list[int] | None) -> None:
    if os.geteuid() != 0:
        if uid not in (-1, os.geteuid()):
            raise PermissionError(1, "only root can start an attempt as another user")
        return
    try:
        if groups is not None:
            os.setgroups(groups)
        else:  # whoever asks does not say: then it is looked up here, for each attempt anew
            os.initgroups(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
