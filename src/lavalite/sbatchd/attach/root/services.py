"""Programs that serve a part for as long as it stands: they outlive the root program, and sbatchd too.

With systemd each is a unit `lavalite-part-SLUG.service`; otherwise a process of its own session, noted in SLUG.pid
with its start time, so that a reused pid is never taken for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.look import noted_process, unit_of
from lavalite.sbatchd.attach.root.request import Request, run
from lavalite.sbatchd.keeper.proc import boot_id, look_at

END_SECONDS = 10.0
POLL_SECONDS = 0.02


def is_up(request: Request) -> bool:
    """Whether it runs, or systemd is about to start it again."""
    if request.systemd:
        said = run(["systemctl", "show", "--value", "--property=ActiveState", unit_of(request.slug)])
        return said.strip() in ("active", "activating", "reloading")
    return noted_process(request.file("pid")) is not None


def start(request: Request, command: Sequence[str], properties: Sequence[str] = ()) -> None:
    """Raises LavaLiteError. `properties`: of the unit, where it is one."""
    if not request.systemd:
        _start_process(request, command)
        return
    unit = unit_of(request.slug)
    run(["systemctl", "reset-failed", unit], check=False)
    words = [f"--property={each}" for each in properties]
    describe = f"--description=LavaLite: {request.order['role']} of {request.order['host']}"
    run(["systemd-run", "--quiet", "--collect", f"--unit={unit}", "--service-type=exec", describe, *words, "--",
         *command], what=command[0])  # fmt: skip


def stop(request: Request) -> None:
    if request.systemd:
        unit = unit_of(request.slug)
        run(["systemctl", "stop", unit], check=False)
        run(["systemctl", "reset-failed", unit], check=False)
    _end_process(request.file("pid"))
    request.file("log").unlink(missing_ok=True)


def why_down(request: Request) -> str:
    """The last it said, for people."""
    if request.systemd:
        words = ["journalctl", "--quiet", "--output=cat", "--lines=3", f"_SYSTEMD_UNIT={unit_of(request.slug)}"]
        said = run(words, check=False)
    else:
        said = request.file("log").read_text(errors="replace") if request.file("log").exists() else ""
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def until(request: Request, ready: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait until it is ready. Raises LavaLiteError where it ends before, or takes longer."""
    deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
    while not ready():
        if not is_up(request):
            raise LavaLiteError(f"{what} ended at once: {why_down(request)}")
        if time.clock_gettime(time.CLOCK_BOOTTIME) > deadline:
            raise LavaLiteError(f"{what} is not ready after {seconds:g} s: {why_down(request)}")
        time.sleep(POLL_SECONDS)


def _start_process(request: Request, command: Sequence[str]) -> None:
    _end_process(request.file("pid"))
    with request.file("log").open("ab") as log:
        try:
            started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True)  # fmt: skip
        except FileNotFoundError:
            hint = f"Install the package that has {command[0]}."
            raise LavaLiteError(f"{command[0]} is not on this node", hint=hint) from None
    process = look_at(started.pid)
    if process is None:
        raise LavaLiteError(f"{command[0]} ended at once: {why_down(request)}")
    request.file("pid").write_text(f"{started.pid} {process.ticks} {boot_id()}\n")


def _end_process(note: Path) -> None:
    for number, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, END_SECONDS)):
        pid = noted_process(note)
        if pid is None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + seconds
        while noted_process(note) is not None and time.clock_gettime(time.CLOCK_BOOTTIME) < deadline:
            time.sleep(POLL_SECONDS)
    note.unlink(missing_ok=True)
