"""The loop: hear, collect the dead, enforce deadlines, make durable and tell. And what it does on request."""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
from pathlib import Path

from lavalite.sbatchd.keeper.clients import Clients, Message
from lavalite.sbatchd.keeper.ending import REPEAT_SECONDS, end, enforce, strike
from lavalite.sbatchd.keeper.kept import Kept
from lavalite.sbatchd.keeper.launch import fork, hold_signals
from lavalite.sbatchd.keeper.proc import boottime
from lavalite.sbatchd.keeper.reaping import Reaping
from lavalite.sbatchd.keeper.roll import COMPACT_LINES, Roll

PROTOCOL = 2
"""1: it answers to all that it is asked, `quiet` or not."""
LONGEST_WAIT_SECONDS = 5.0
"""The loop sleeps on a clock that stops while the machine is suspended; deadlines do not. So it never sleeps long."""


class Keeper:
    """Ends after `idle_seconds` in which nothing ran and nobody was connected."""

    def __init__(self, folder: Path, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._idle_since = boottime()
        self._selector = selectors.DefaultSelector()
        self._roll = Roll(folder)
        self._clients = Clients(self._selector, self._obey)
        self._reaping = Reaping(self._selector, self._roll, self._tell)
        self._wakeup, self._alarm = os.pipe()

    def open(self) -> None:
        """Recover what an earlier keeper left, and listen. Raises DamagedLogError, OSError."""
        for fd in (self._wakeup, self._alarm):
            os.set_blocking(fd, False)
        hold_signals()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._alarm, warn_on_full_buffer=False)
        self._selector.register(self._wakeup, selectors.EVENT_READ, lambda: os.read(self._wakeup, 4096))
        for kept in self._roll.recover():
            self._reaping.watch_again(kept)
        self._roll.compact()
        self._clients.listen()
        # What is there by now stays: a collection would only touch it, and each child would have it copied.
        gc.freeze()

    def serve(self) -> None:
        """Until it is idle for long enough."""
        over = False
        while not over:
            for key, _ in self._selector.select(self._patience_seconds()):
                key.data()
            self._reaping.collect()
            enforce(self._roll, boottime())
            self._commit()
            busy = self._roll.running or self._clients
            self._idle_since = boottime() if busy else self._idle_since
            over = not busy and boottime() - self._idle_since >= self._idle_seconds

    def _patience_seconds(self) -> float:
        now = boottime()
        waits = [LONGEST_WAIT_SECONDS]
        for kept in self._roll.running.values():
            if kept.exited:
                waits.append(REPEAT_SECONDS)
            elif (due := kept.next_deadline(self._roll.contact)) is not None:
                waits.append(due - now)
        if not self._roll.running and not self._clients:
            waits.append(self._idle_since + self._idle_seconds - now)
        return max(0.0, min(waits))

    def _tell(self, event: str, kept: Kept) -> None:
        self._clients.tell_all({"event": event, "attempt": kept.said()})

    def _commit(self) -> None:
        self._roll.write()
        self._clients.flush()
        self._roll.compact(longer_than=COMPACT_LINES)

    # --- requests: each answers with fields of its own, or `error`

    def _obey(self, request: Message) -> Message:
        answer: Message = getattr(self, "_do_" + str(request["op"]))(request)
        return answer

    def _do_hello(self, request: Message) -> Message:
        return {"pid": os.getpid(), "protocol": PROTOCOL, "boot_id": self._roll.boot, "contact": self._roll.contact}

    def _do_list(self, request: Message) -> Message:
        return {"attempts": [kept.said() for kept in self._roll.kept.values()]}

    def _do_start(self, request: Message) -> Message:
        known = self._roll.kept.get(request["id"])
        if known:
            return {"error": "known", "attempt": known.said()}
        try:
            kept = fork(request, self._roll.boot, self._roll.mark(request["id"]))
        except OSError as error:
            return {"error": f"fork: {error.strerror}"}
        self._reaping.watch_launch(kept)
        self._roll.add(kept)
        return {"attempt": kept.said()}

    def _do_signal(self, request: Message) -> Message:
        kept = self._roll.running.get(request["id"])
        if not kept or kept.exited:
            return {"error": "unknown"}
        number = signal.Signals(request["signal"])
        if request.get("ending"):
            end(self._roll, kept, number, request.get("grace_seconds", 0.0), request.get("reason") or "stop")
        elif number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGCONT):
            strike(self._roll, kept, number)
            kept.suspended = number != signal.SIGCONT
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kept.pid, number)
        return {"attempt": kept.said()}

    def _do_acknowledge(self, request: Message) -> Message:
        kept = self._roll.kept.get(request["id"])
        if kept and kept.ended:
            self._roll.forget(kept)
        return {}

    def _do_contact(self, request: Message) -> Message:
        self._roll.renew_contact(float(request["sent"]))
        return {}

    def _do_shutdown(self, request: Message) -> Message:
        running = list(self._roll.running.values())
        if running and not request.get("force"):
            return {"error": f"{len(running)} attempts run"}
        for kept in running:
            end(self._roll, kept, signal.SIGKILL, 0.0, "shutdown")
        self._idle_seconds = 0.0
        self._clients.tell_all({"reply": request.get("n")})
        self._commit()
        self._clients.leave_all()
        return {}
