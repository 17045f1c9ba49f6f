"""Seeing attempts start and exit, and that nothing of them is left when they are called ended."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
from collections.abc import Callable

from lavalite.sbatchd.keeper.ending import members
from lavalite.sbatchd.keeper.kept import Kept
from lavalite.sbatchd.keeper.proc import boottime, look_at, own_children, wall_time
from lavalite.sbatchd.keeper.roll import Roll

LINGER_SECONDS = 30.0
"""How long leftovers of an exited attempt are hunted before it is called ended in spite of them (stuck in I/O)."""


class Reaping:
    """`tell` is given "started" and "ended" with the attempt."""

    def __init__(self, selector: selectors.BaseSelector, roll: Roll, tell: Callable[[str, Kept], None]) -> None:
        self._selector, self._roll, self._tell = selector, roll, tell

    def watch_launch(self, kept: Kept) -> None:
        """Until its child has turned into it, or says why it cannot."""
        os.set_blocking(kept.errors, False)
        self._selector.register(kept.errors, selectors.EVENT_READ, lambda: self._hear_launch(kept))

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

    def watch_again(self, kept: Kept) -> None:
        """What an earlier keeper started: watched and killed from now on, but it is no child of ours."""
        kept.ours, kept.launched = False, True
        process = None
        if kept.boot == self._roll.boot:
            with contextlib.suppress(ProcessLookupError):
                kept.pidfd = os.pidfd_open(kept.pid)
            process = look_at(kept.pid)
        if process and process.ticks == kept.ticks and process.alive and kept.pidfd >= 0:
            self._roll.running[kept.id] = kept
            self._selector.register(kept.pidfd, selectors.EVENT_READ, lambda: None)
            if kept.reason:  # it was being ended
                kept.kill_at = boottime()
            return
        self._drop_pidfd(kept)
        kept.reason = kept.reason or ("keeper_lost" if kept.boot == self._roll.boot else "lost")
        kept.exited = kept.ended = True
        kept.ended_at = wall_time()

    def _drop_pidfd(self, kept: Kept) -> None:
        if kept.pidfd >= 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(kept.pidfd)
            os.close(kept.pidfd)
            kept.pidfd = -1

    def collect(self) -> None:
        """See who has exited; take in the dead that nobody else will."""
        for kept in list(self._roll.running.values()):
            if not kept.exited and self._has_exited(kept):
                self._hear_launch(kept)
                if kept.error:
                    kept.reason = kept.reason or "cannot_start"
                kept.exited, kept.ended_at = True, wall_time()
                kept.linger_until = boottime() + LINGER_SECONDS
                self._roll.note(kept.exit_record())
                self._drop_pidfd(kept)
            if kept.exited:
                self._finish(kept)
        for pid in own_children() - {kept.pid for kept in self._roll.running.values()}:
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
        running = self._roll.running
        if kept.ours and not own_children() - {other.pid for other in running.values()}:
            left: set[int] = set()  # all that it left behind would be ours by now
        else:
            left = members(self._roll, kept) - {kept.pid}
        if left and boottime() < kept.linger_until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            return
        if kept.ours:
            os.waitpid(kept.pid, 0)
        kept.ended = True
        del running[kept.id]
        self._tell("ended", kept)
