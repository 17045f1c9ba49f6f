"""Who uses a group on this machine: all processes that carry its mark in their environment.

Blocking: call it in a worker thread. As another user than root only processes of one's own can be looked at.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection
from pathlib import Path

from lavalite.base.processes import ProcessIdentity
from lavalite.groups.local.isolation import MARKER


def marked(groups: Collection[str]) -> dict[str, list[ProcessIdentity]]:
    """The processes of each of these groups that has any."""
    found: dict[str, list[ProcessIdentity]] = {}
    mark = f"{MARKER}=".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue  # gone, or another user's
        at = environ.find(mark)
        if at < 0 or (at > 0 and environ[at - 1]):
            continue
        group = environ[at + len(mark) :].split(b"\0", 1)[0].decode(errors="replace")
        if group in groups and (process := ProcessIdentity.of(int(entry.name))) is not None:
            found.setdefault(group, []).append(process)
    return found


def ask_to_end(processes: Collection[ProcessIdentity]) -> None:
    """SIGTERM to those that are this user's, and not this process. Each is looked at again while it is held, so that
    none is mistaken for another that has its pid by now."""
    for process in processes:
        if process.pid == os.getpid():
            continue
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        try:
            with contextlib.suppress(OSError):
                if process.is_alive() and Path(f"/proc/{process.pid}").stat().st_uid == os.geteuid():
                    signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        finally:
            os.close(descriptor)
