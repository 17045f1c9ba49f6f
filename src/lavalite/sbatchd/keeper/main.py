"""The process: one keeper a folder, a subreaper in a session of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from lavalite.sbatchd.keeper.files import LOCK_NAME, SOCKET_NAME, lock
from lavalite.sbatchd.keeper.line_log import DamagedLogError
from lavalite.sbatchd.keeper.loop import Keeper

PR_SET_CHILD_SUBREAPER = 36
ALREADY_RUNS_EXIT = 3


def main(arguments: list[str]) -> int:
    """FOLDER [IDLE_SECONDS]. Prints `ready` when it listens. Exit 3: another keeper has the folder."""
    folder = Path(arguments[0]).absolute()
    idle_seconds = float(arguments[1]) if len(arguments) > 1 else 60.0
    os.umask(0o077)
    os.chdir(folder)
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
