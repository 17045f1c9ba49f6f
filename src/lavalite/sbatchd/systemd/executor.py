"""The `systemd` executor: attempts as transient units, which systemd owns while sbatchd comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any, Literal

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import InputError, UnreachableError
from lavalite.sbatchd.executors import Known, Launch, Listed, Signalled, Started, StartFailed, Tell
from lavalite.sbatchd.process import SUSPENDING
from lavalite.sbatchd.systemd import begin, fence
from lavalite.sbatchd.systemd.bus import SERVICE, UNIT, CallError, SystemdBus
from lavalite.sbatchd.systemd.records import (
    LOST,
    AttemptFolder,
    Contact,
    End,
    begin_spec,
    is_stopped,
    make_own_outputs,
    noted,
    prepare,
    started,
)
from lavalite.sbatchd.systemd.service import ensure_service
from lavalite.sbatchd.systemd.units import (
    NOTE_END,
    NOTE_END_NAME,
    TASKS_MOST,
    attempt_of,
    fits_unit,
    gpu_nodes,
    host_slice,
    memory_is_limited,
    process_limits,
    slice_properties,
    unit_name,
    unit_path,
    unit_properties,
)

SWEEP_SECONDS = 5.0
"""Ends are told by systemd; what a lost signal told is found by looking."""
BEGIN_POLL_SECONDS = 0.01
BEGIN_SLOWEST_SECONDS = 0.5
GONE_STATES = ("inactive", "failed")
RUNNING_STATES = ("running", "start")
UNKNOWN_UNIT = ("NoSuchUnit", "org.freedesktop.DBus.Error.UnknownObject")
"""Errors of systemd that has nothing of a unit. Any other says nothing about the unit."""
HIT_STATES = (*RUNNING_STATES, "stop-sigterm", "final-sigterm")
"""Sub-states in which a signal goes to the attempt's processes and not to the note of its end."""

log = structlog.get_logger(__name__)


class SystemdExecutor:
    """Attempts as transient units. The contract is executors.Executor. Needs root, and systemd as process 1."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        prefix: str = "lavalite",
        python: str = sys.executable,
        max_tasks: int = TASKS_MOST,
    ) -> None:
        """`folder` is root's alone and survives a reboot. Units are named `PREFIX-ATTEMPT.service`.

        `max_tasks`: processes and threads of one attempt.

        Raises InputError for paths that no unit can name.
        """
        for path in (str(folder), python, begin.__file__):
            if not fits_unit(path):
                raise InputError(
                    f"{path} cannot stand in a unit of systemd",
                    field="state_path",
                    hint="Take a path of letters, digits, hyphens, dots and underscores.",
                )
        self._folder, self._clock, self._prefix, self._python = folder, clock, prefix, python
        self._max_tasks = max_tasks
        self._bus: SystemdBus | None = None
        self._tell: Tell = lambda event: None
        self._live: dict[str, int] = {}
        """Attempts that have not ended, with their pid where it is known."""
        self._told_started: set[str] = set()
        self._settling: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._contact: Contact | None = None
        self._memory_is_limited = memory_is_limited()

    async def connect(self, tell: Tell, lost: Callable[[], None]) -> Listed:
        await self.close()
        self._tell = tell
        try:
            self._contact = self._contact or Contact(self._folder)
            prepare(self._folder, NOTE_END, NOTE_END_NAME)
        except OSError as error:
            raise UnreachableError(
                f"{self._folder} cannot be used ({error.strerror})", hint="See its owner, and the room on the disk."
            ) from None
        self._bus = SystemdBus(self._hear_state, self._hear_job, lost)
        await self._bus.connect()
        try:
            command = [self._python, "-I", "-S", fence.__file__, str(self._folder), self._prefix, self._contact.boot]
            await ensure_service(self._bus, self._clock, self._unit("fence"), command)
        except CallError as error:
            raise UnreachableError(f"the fence's unit cannot be started ({error})", code="systemd") from None
        listed = await self.list()
        # The list says of these what there is to say.
        self._told_started.update(known.id for known in listed.known)
        self._spawn(self._sweep())
        return listed

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self._live.clear()
        self._told_started.clear()
        if self._bus:
            await self._bus.close()
            self._bus = None

    # --- requests

    async def start(self, launch: Launch) -> None:
        if not self._bus:
            return  # connecting anew lists what there is; what was not sent counts as never started
        now = self._clock.boottime()
        contact = max(min(launch.contact or now, now), self._contact.sent if self._contact else 0.0)
        folder = self._attempt(launch.id)
        limits = process_limits(launch, memory_is_limited=self._memory_is_limited)
        record = started(launch, wall=self._clock.now(), boot=now, contact=contact)
        try:
            fresh = await asyncio.to_thread(folder.create, record, begin_spec(launch, limits, contact))
        except (OSError, ValueError) as error:
            self._tell(StartFailed(launch.id, f"the attempt cannot be noted in {self._folder}: {error}"))
            return
        if not fresh:
            return
        if why := await asyncio.to_thread(make_own_outputs, launch):
            await asyncio.to_thread(folder.cannot_start, why, self._clock.now(), now)
            self._tell_end(await asyncio.to_thread(folder.outcome))
            return
        await self._start_unit(launch, folder)

    async def signal(
        self, attempt: str, signal: int, *, ending: bool, grace_seconds: float = 0.0, reason: str = "stop"
    ) -> None:
        bus, unit = self._bus, self._unit(attempt)
        with contextlib.suppress(CallError, UnreachableError):
            state = await bus.property(unit, UNIT, "SubState") if bus else ""
            if bus and state == "dead" and ending and (await bus.property(unit, UNIT, "Job"))[0]:
                # Its start waits yet: it does not come to it.
                await self._note_ending(attempt, signal, grace_seconds, reason)
                await bus.manager("StopUnit", "ss", unit, "replace")
                return
            if not bus or state not in HIT_STATES:
                return
            if ending:
                # One that ends already has its reason: its walltime, or its own exit.
                await self._note_ending(attempt, signal, grace_seconds, reason if state in RUNNING_STATES else "")
            await bus.manager("KillUnit", "ssi", unit, "all", signal)
            if ending and signal != SIGKILL:
                # A stopped process does not hear that it should end.
                await bus.manager("KillUnit", "ssi", unit, "all", int(SIGCONT))
            if not ending and signal in SUSPENDING:
                self._tell(Signalled(attempt, SUSPENDING[signal]))

    async def list(self) -> Listed:
        bus = self._bus
        if not bus:
            raise UnreachableError("systemd is not connected", code="systemd")
        try:
            states = await bus.active_states(self._unit("*.*.*"))
        except CallError as error:
            raise UnreachableError(f"systemd does not list its units ({error})", code="systemd") from None
        units = {attempt_of(self._prefix, unit): state for unit, state in states.items()}
        running = {attempt for attempt, state in units.items() if attempt and state not in GONE_STATES}
        known: list[Known] = []
        for unit in states.keys() - {self._unit(attempt) for attempt in running}:
            # A failure stays loaded until somebody has read of it; ours is noted.
            with contextlib.suppress(CallError):
                if not self._attempt(attempt_of(self._prefix, unit)).path.exists():
                    await bus.manager("ResetFailedUnit", "s", unit)
        for attempt in await asyncio.to_thread(noted, self._folder):
            ended = None if attempt in running else await self._outcome(attempt)
            if ended:
                self._live.pop(attempt, None)
                known.append(ended)
            else:
                running.add(attempt)
        # Also those that are not noted: somebody must end what an older state folder began.
        return Listed((*known, *[await self._running(attempt) for attempt in sorted(running)]))

    async def acknowledge(self, attempt: str) -> None:
        self._told_started.discard(attempt)
        await asyncio.to_thread(self._attempt(attempt).remove)
        for member in ("UnrefUnit", "ResetFailedUnit"):
            with contextlib.suppress(CallError, UnreachableError):
                if self._bus:
                    await self._bus.manager(member, "s", self._unit(attempt))

    async def contact(self, sent: float) -> None:
        if self._contact:
            try:
                self._contact.renew(sent, self._clock.boottime())
            except OSError as error:
                log.warning("the contact cannot be noted", reason=str(error))

    # --- starting

    async def _start_unit(self, launch: Launch, folder: AttemptFolder) -> None:
        assert self._bus
        command = [self._python, "-I", "-S", begin.__file__]
        nodes = await asyncio.to_thread(gpu_nodes, launch.gpus) if launch.gpus else []
        self._live[launch.id] = 0
        try:
            if launch.host:
                await self._ensure_slice(launch)
            properties = unit_properties(launch, folder, command, nodes, max_tasks=self._max_tasks)
            await self._bus.start(self._unit(launch.id), properties)
        except CallError as error:
            del self._live[launch.id]
            await asyncio.to_thread(folder.remove)
            self._tell(StartFailed(launch.id, f"systemd refuses the unit: {error}"))
        except UnreachableError:
            pass  # it may have been heard: the list after the next connect knows

    async def _ensure_slice(self, launch: Launch) -> None:
        """The slice of a host with far memory, with what the host has now. Raises CallError, UnreachableError."""
        assert self._bus
        unit, properties = host_slice(launch.host), slice_properties(launch)
        try:
            await self._bus.start(unit, [("Description", "s", f"LavaLite host {launch.host}"), *properties])
        except CallError as error:
            if error.name != "UnitExists":
                raise
            await self._bus.set_properties(unit, properties)

    def _hear_job(self, unit: str, result: str) -> None:
        attempt = attempt_of(self._prefix, unit)
        if attempt in self._live and result == "done":
            self._spawn(self._await_begin(attempt))

    async def _await_begin(self, attempt: str) -> None:
        """The unit's first process runs; it is told as started when the attempt's own program does."""
        wait, folder = BEGIN_POLL_SECONDS, self._attempt(attempt)
        while attempt in self._live and attempt not in self._told_started:
            if folder.report():
                await self._tell_started(attempt)
                return
            await self._clock.sleep(wait)
            wait = min(wait * 2, BEGIN_SLOWEST_SECONDS)

    async def _tell_started(self, attempt: str) -> None:
        folder = self._attempt(attempt)
        start, pid = folder.start(), await self._pid(attempt)
        began = start and folder.report().startswith(begin.BEGUN.decode())
        if start and began and attempt in self._live and attempt not in self._told_started:
            self._told_started.add(attempt)
            self._live[attempt] = pid
            self._tell(Started(attempt, pid, start.started_at))

    # --- ending

    def _hear_state(self, path: str, state: str) -> None:
        if state not in GONE_STATES:
            return
        for attempt in self._live:
            if unit_path(self._unit(attempt)) == path:
                self._spawn(self._settle(attempt))
                return

    async def _settle(self, attempt: str) -> None:
        """Its unit is gone: say so, once."""
        if attempt in self._settling or attempt not in self._live:
            return
        self._settling.add(attempt)
        try:
            ended = await self._outcome(attempt)
            if ended and attempt in self._live:
                if not ended.reason.startswith("cannot_start"):
                    await self._tell_started(attempt)
                self._tell_end(ended)
        except UnreachableError:
            pass  # told by the list after the next connect
        finally:
            self._settling.discard(attempt)

    def _tell_end(self, ended: Known | None) -> None:
        if ended:
            self._live.pop(ended.id, None)
            self._tell(ended.end())

    async def _outcome(self, attempt: str) -> Known | None:
        """What became of one whose unit has no process; noted from what systemd still knows, if nobody noted it.

        None where it may run yet. Raises UnreachableError where systemd does not say.
        """
        folder = self._attempt(attempt)
        if ended := await asyncio.to_thread(folder.outcome):
            return ended
        assert self._bus
        unit = self._unit(attempt)
        facts: dict[str, Any] = {}
        try:
            state = await self._bus.properties(unit, UNIT)
            if state["LoadState"] != "not-found":
                # Before its start has had its turn a unit is inactive, as one that is over; but there is a job.
                if state["ActiveState"] not in GONE_STATES or state["Job"][0]:
                    return None
                facts = await self._bus.properties(unit, SERVICE)
        except CallError as error:
            if error.name not in UNKNOWN_UNIT:
                raise UnreachableError(f"systemd says nothing of {unit} ({error})", code="systemd") from None
        if not await asyncio.to_thread(folder.start):
            return Known(attempt, "ended", 0, self._clock.now(), None, LOST, self._clock.now())
        # Between the two looks it may have been noted after all.
        if not await asyncio.to_thread(folder.end):
            end = End.of_unit(facts, self._clock.now(), self._clock.boottime())
            with contextlib.suppress(OSError):
                await asyncio.to_thread(folder.write_end, end)
        return await asyncio.to_thread(folder.outcome)

    async def _note_ending(self, attempt: str, signal: int, grace_seconds: float, reason: str) -> None:
        now = self._clock.boottime()
        due = now if signal == SIGKILL else now + grace_seconds if grace_seconds > 0 else None
        try:
            await asyncio.to_thread(self._attempt(attempt).want_end, reason, due)
        except OSError as error:
            # The signal goes out all the same; nobody will know whose it was, nor KILL it when sbatchd is dead.
            log.error("the end cannot be noted", attempt=attempt, reason=str(error))

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            with contextlib.suppress(CallError, UnreachableError):
                states = await self._bus.active_states(self._unit("*")) if self._bus else {}
                for attempt in list(self._live):
                    if states.get(self._unit(attempt), "inactive") in GONE_STATES:
                        await self._settle(attempt)

    # --- looking

    async def _running(self, attempt: str) -> Known:
        start = await asyncio.to_thread(self._attempt(attempt).start)
        pid = self._live.get(attempt) or await self._pid(attempt)
        self._live[attempt] = pid
        state: Literal["suspended", "running"] = "suspended" if pid and is_stopped(pid) else "running"
        return Known(attempt, state, pid, start.started_at if start else self._clock.now())

    async def _pid(self, attempt: str) -> int:
        """Of the main process, alive or not; 0 where systemd does not know."""
        with contextlib.suppress(CallError, UnreachableError):
            if self._bus:
                return int(await self._bus.property(self._unit(attempt), SERVICE, "ExecMainPID"))
        return 0

    def _attempt(self, attempt: str) -> AttemptFolder:
        return AttemptFolder(self._folder, attempt)

    def _unit(self, attempt: str) -> str:
        return unit_name(self._prefix, attempt)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
