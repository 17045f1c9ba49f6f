"""Ending attempts: when a deadline or somebody says so, and so that it reaches all of their processes."""

from __future__ import annotations

import contextlib
import os
import signal

from lavalite.sbatchd.keeper.kept import Kept
from lavalite.sbatchd.keeper.proc import all_processes, boottime, carries_mark, look_at, own_children
from lavalite.sbatchd.keeper.roll import Roll

REPEAT_SECONDS = 0.1


def enforce(roll: Roll, now: float) -> None:
    """Do to each attempt what is due: fence, kill after the grace, walltime."""
    for kept in list(roll.running.values()):
        if kept.exited:
            continue
        if kept.fence_after_seconds > 0 and kept.fence_deadline(roll.contact) <= now and kept.reason != "fence":
            # No grace: its successor may start elsewhere soon after this moment.
            kept.reason = ""
            end(roll, kept, signal.SIGKILL, 0.0, "fence")
        elif kept.kill_at is not None and kept.kill_at <= now:
            strike(roll, kept, signal.SIGKILL)
            kept.kill_at = now + REPEAT_SECONDS
        elif kept.walltime_deadline is not None and kept.walltime_deadline <= now and not kept.reason:
            end(roll, kept, signal.SIGTERM, max(kept.grace_seconds, 0.01), "walltime")


def end(roll: Roll, kept: Kept, number: signal.Signals, grace_seconds: float, reason: str) -> None:
    """Signal it, and kill what is left of it after the grace. The first reason given is the one that counts."""
    if not kept.reason:
        kept.reason = reason
        roll.note_ending(kept)
    if number == signal.SIGKILL:
        kept.kill_at = boottime()
        strike(roll, kept, number)
        return
    strike(roll, kept, number)
    if kept.suspended:  # a stopped process does not hear that it should end
        strike(roll, kept, signal.SIGCONT)
        kept.suspended = False
    if grace_seconds > 0:
        due = boottime() + grace_seconds
        kept.kill_at = due if kept.kill_at is None else min(due, kept.kill_at)


def strike(roll: Roll, kept: Kept, number: signal.Signals) -> None:
    """The whole group at once, then whoever of the attempt has left the group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if kept.ours or kept.pidfd >= 0:
            os.killpg(kept.pid, number)
    for pid in members(roll, kept):
        process = look_at(pid)
        if process and process.group != kept.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
    if not kept.launched:  # not yet a group of its own, perhaps
        with contextlib.suppress(ProcessLookupError):
            os.kill(kept.pid, number)


def members(roll: Roll, kept: Kept) -> set[int]:
    """All live processes of an attempt as far as they can be found: session, group, mark, and their descendants.

    Our own leader is a zombie at worst while this is asked, so that its pid names no other session.
    """
    processes = all_processes()
    leaders = {other.pid for other in roll.running.values()}
    orphans = own_children() - leaders if kept.ours else set(processes) - leaders
    alone = kept.ours and len(roll.running) == 1
    leader = processes.get(kept.pid)
    still_named = leader is None or leader.ticks == kept.ticks
    found = {kept.pid} if still_named else set()
    for pid, process in processes.items():
        in_session = still_named and kept.pid in (process.session, process.group)
        if in_session or (pid in orphans and (alone or carries_mark(pid, roll.mark(kept.id)))):
            found.add(pid)
    while True:
        more = {pid for pid, process in processes.items() if process.parent in found} - found
        if not more:
            break
        found |= more
    return {pid for pid in found if pid in processes and processes[pid].alive} - {os.getpid()}
