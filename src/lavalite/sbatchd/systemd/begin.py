"""The last steps of an attempt under systemd, run as its user: folder, outputs, limits, then the program itself.

    python -I -S begin.py < SPEC >> REPORT

systemd could open outputs itself, but does so as root, and would follow a user's link to anybody's file. SPEC is JSON
(records.begin_spec). It travels as an open file and not in the unit, which everybody on the machine may read. REPORT
gets one line: `exec`, or what could not be done; both when the kernel refuses at the last step. Standard library
alone: a release may be replaced under it.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import time
from typing import Any

BEGUN = b"exec\n"


def open_output(path: str, number: int, *, own: bool) -> None:
    """`own`: made already in the agent's folder, where a link can only be a trick."""
    flags = os.O_NOFOLLOW if own else os.O_CREAT
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o644)
    os.dup2(fd, number)


def check_program(program: str, search_path: str) -> None:
    """Raises OSError where exec would. Asked before it is said that the program runs."""
    folders = [""] if "/" in program else search_path.split(":")
    found = False
    for folder in folders:
        path = os.path.join(folder, program)  # noqa: PTH118
        found = found or os.path.exists(path)  # noqa: PTH110
        if os.path.isfile(path) and os.access(path, os.X_OK):  # noqa: PTH113
            return
    if found:
        raise PermissionError(13, "Permission denied")
    raise FileNotFoundError(2, "No such file or directory")


def begin(spec: dict[str, Any], report: int) -> None:
    """Never returns."""
    step = "prepare"
    try:
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and an attempt would inherit it
            signal.signal(ignored, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        step = "start"
        if spec["begin_by"] is not None and time.clock_gettime(time.CLOCK_BOOTTIME) >= spec["begin_by"]:
            raise TimeoutError(110, "it was held up until its fence had fallen")
        step = f"enter {spec['cwd']}"
        os.chdir(spec["cwd"])
        for name, number in (("stdout_path", 1), ("stderr_path", 2)):
            step = f"open {spec[name]}"
            open_output(spec[name], number, own=name in spec["own_outputs"])
        program, environment = spec["argv"][0], spec["environment"]
        step = f"run {program}"
        check_program(program, environment.get("PATH", os.defpath))
        step = "set limits"
        for name, value in spec["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        step = f"run {program}"
        os.write(report, BEGUN)
        os.execvpe(program, spec["argv"], environment)  # noqa: S606
    except BaseException as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        os.write(report, f"{step}: {text}".encode(errors="replace")[:4000])
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def main() -> None:
    with os.fdopen(os.dup(0), "rb") as file:
        spec = json.load(file)
    report = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    begin(spec, report)


if __name__ == "__main__":
    main()
