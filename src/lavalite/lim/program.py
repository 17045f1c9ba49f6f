"""mbatchd as a program that can be started, watched and ended: a child process, a systemd unit, or nothing.

A unit is started and stopped by us, or by systemd itself, which follows the lock file (`LockedProgram`).

The child outlives a LIM that is killed: it ends by itself when its deadline passes. A new LIM waits for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from abc import ABC, abstractmethod
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError

log = structlog.get_logger(__name__)

LEFTOVER_SECONDS = 2.0
POLL_SECONDS = 1.0
SYSTEMCTL_SECONDS = 20.0
GONE_STATES = ("inactive", "failed")
FOLLOW_SECONDS = 10.0
"""How long systemd may take to follow the lock file."""


@dataclass(slots=True, frozen=True)
class End:
    """How it ended, in words. `well`: it wanted to, or was asked to."""

    reason: str
    well: bool = False


class Program(ABC):
    """One that was asked to end, or killed, when it did not run, takes no harm. Methods raise LavaLiteError."""

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    async def ended(self) -> End:
        """Wait until it is gone, for sure. Raises nothing."""

    @abstractmethod
    async def terminate(self) -> None:
        """Ask it to end."""

    @abstractmethod
    async def kill(self) -> None: ...

    async def clear(self) -> None:
        """End what an earlier LIM left running, and wait for it."""
        return


class NoProgram(Program):
    """Somebody else runs mbatchd, or there is none."""

    def __init__(self) -> None:
        self._over = asyncio.Event()

    async def start(self) -> None:
        self._over.clear()

    async def ended(self) -> End:
        await self._over.wait()
        return End("not ours", well=True)

    async def terminate(self) -> None:
        self._over.set()

    async def kill(self) -> None:
        await self.terminate()


class ChildProgram(Program):
    """A child in its own session, so that what it started ends with it. Its output is appended to `log_path`."""

    def __init__(self, command: tuple[str, ...], log_path: Path, pid_path: Path) -> None:
        self._command, self._log_path, self._pid_path = command, log_path, pid_path
        self._process: Process | None = None

    async def start(self) -> None:
        try:
            with self._log_path.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=DEVNULL, stdout=output, stderr=STDOUT, start_new_session=True
                )
        except OSError as error:
            reason = error.strerror or str(error)
            hint = "Check supervise.command in LIM's configuration."
            raise LavaLiteError(f"{self._command[0]} cannot be started ({reason})", hint=hint) from None
        pid = self._process.pid
        log.info("mbatchd started", pid=pid)
        try:
            self._pid_path.write_text(f"{pid} {_started_ticks(pid)}\n")
        except OSError as error:  # it runs: that it could be left over is the smaller evil
            log.error("mbatchd's pid cannot be remembered", path=str(self._pid_path), reason=error.strerror)

    async def ended(self) -> End:
        assert self._process is not None
        code = await self._process.wait()
        _kill_group(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._pid_path.unlink()
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return End(reason, well=code == 0)

    async def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    async def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            _kill_group(self._process.pid, number)

    async def clear(self) -> None:
        try:
            pid, ticks = (int(word) for word in self._pid_path.read_text().split())
            pidfd = os.pidfd_open(pid)
        except (OSError, ValueError):
            return
        try:
            if _started_ticks(pid) != ticks:
                return  # the number belongs to another process by now
            log.warning("an mbatchd of an earlier LIM still runs and is ended", pid=pid)
            _kill_group(pid, signal.SIGTERM)
            if not await _gone(pidfd, LEFTOVER_SECONDS):
                _kill_group(pid, signal.SIGKILL)
                while not await _gone(pidfd, LEFTOVER_SECONDS):
                    log.error("an mbatchd of an earlier LIM cannot be killed", pid=pid)
        finally:
            os.close(pidfd)


class SystemdProgram(Program):
    """A unit of the system's manager, which starts and stops it for us."""

    def __init__(self, unit: str, clock: Clock) -> None:
        self._unit, self._clock = unit, clock

    async def start(self) -> None:
        await self._systemctl("reset-failed", quiet=True)
        try:
            await self._systemctl("start")
        except LavaLiteError:
            if await self._state() in GONE_STATES:
                raise
            # It may yet run: whoever stops it must wait for it, too.

    async def ended(self) -> End:
        while True:
            # While systemctl itself fails we do not know, and then nothing may be started elsewhere.
            with contextlib.suppress(LavaLiteError):
                if (state := await self._state()) in GONE_STATES:
                    return End(f"unit {state}", well=state == "inactive")
            await self._clock.sleep(POLL_SECONDS)

    async def terminate(self) -> None:
        await self._systemctl("stop", "--no-block")

    async def kill(self) -> None:
        await self._systemctl("kill", "--signal=SIGKILL", quiet=True)
        await self._systemctl("stop", "--no-block")

    async def clear(self) -> None:
        while await self._state() not in GONE_STATES:
            log.warning("mbatchd still runs from an earlier leadership and is stopped", unit=self._unit)
            await self.kill()
            await self._clock.sleep(POLL_SECONDS)

    async def _state(self) -> str:
        return await self._systemctl("is-active", quiet=True) or "unknown"

    async def _systemctl(self, verb: str, *options: str, quiet: bool = False) -> str:
        process = None
        try:
            async with asyncio.timeout(SYSTEMCTL_SECONDS):
                process = await asyncio.create_subprocess_exec(
                    "systemctl", verb, *options, self._unit, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
                )
                out, err = await process.communicate()
        except TimeoutError:
            raise LavaLiteError(f"systemctl {verb} {self._unit} did not end in {SYSTEMCTL_SECONDS:g} s") from None
        except OSError as error:
            hint = "Is this machine run by systemd? If not, set supervise.mode: child."
            raise LavaLiteError(f"systemctl cannot be run ({error.strerror})", hint=hint) from None
        finally:
            if process is not None and process.returncode is None:
                process.kill()
        if process.returncode != 0 and not quiet:
            hint = f"journalctl -u {self._unit} says more."
            reason = err.decode(errors="replace").strip() or f"exit code {process.returncode}"
            raise LavaLiteError(f"systemctl {verb} {self._unit}: {reason}", hint=hint)
        return out.decode(errors="replace").strip()


class LockedProgram(SystemdProgram):
    """A unit that systemd starts while the lock file is there, and stops when it goes: we may only look.

    It cannot be killed from here. Until it is gone the lease is not given back, and so ends by itself.
    """

    def __init__(self, unit: str, clock: Clock, unlock: Callable[[], None]) -> None:
        super().__init__(unit, clock)
        self._unlock = unlock

    async def start(self) -> None:
        until = self._clock.boottime() + FOLLOW_SECONDS
        while await self._state() in GONE_STATES:
            if self._clock.boottime() > until:
                hint = "Is the path unit that watches the lock file enabled? See docs/operating.md."
                raise LavaLiteError(f"systemd does not start {self._unit}", hint=hint)
            await self._clock.sleep(POLL_SECONDS / 5)

    async def terminate(self) -> None:
        self._unlock()

    async def kill(self) -> None:
        self._unlock()

    async def clear(self) -> None:
        if await self._state() not in GONE_STATES:
            log.warning("mbatchd still runs from an earlier leadership; it ends by itself", unit=self._unit)
            await self.ended()


def _kill_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _started_ticks(pid: int) -> int:
    """When the process began, in ticks since boot: with the pid it names a process for good. -1: it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[19])


async def _gone(pidfd: int, seconds: float) -> bool:
    """Whether the process behind `pidfd` ends within `seconds`."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, over.set)
    try:
        async with asyncio.timeout(seconds):
            await over.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
    return True
