"""How the root program is run: by systemd as a unit of its own, where sbatchd is confined, or as a child.

Its request is a file that root alone may read (secrets), its answer another. It is not ended with sbatchd: what it
has begun it carries to its end, and the next one for the same part waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError, RefusedError, UnreachableError
from lavalite.sbatchd.attach.look import noted_process, unit_of

if TYPE_CHECKING:
    from lavalite.sbatchd.systemd.bus import SystemdBus

PROGRAM = Path(__file__).parent / "root" / "__main__.py"
WORK_SECONDS = 900.0
"""Swap may have to be paged back over the network."""
TRIES = 3
POLL_SECONDS = 0.1
PART_FAILED = "part_failed"
"""Code of what the root program itself says went wrong."""


class Runner(Protocol):
    systemd: bool

    async def run(self, verb: str, slug: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The root program's answer. Raises LavaLiteError, also with what it says went wrong."""
        ...

    async def serves(self, slug: str) -> bool:
        """Whether the long-running program of a part runs, or is about to again. Raises LavaLiteError."""
        ...


def command(verb: str) -> list[str]:
    return [sys.executable, "-I", str(PROGRAM), verb]


class ProcessRunner:
    """As a child of sbatchd, which therefore has to be root."""

    systemd = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def run(self, verb: str, slug: str, asked: dict[str, Any]) -> dict[str, Any]:
        if os.geteuid() != 0:
            raise RefusedError("attaching needs root", hint="Run sbatchd as root on nodes that give or take parts.")
        started = await asyncio.create_subprocess_exec(
            *command(verb),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        said, complaint = await started.communicate(json.dumps(asked).encode())
        return answer_of(said, complaint.decode(errors="replace"))

    async def serves(self, slug: str) -> bool:
        return noted_process(self._folder / f"{slug}.pid") is not None


class SystemdRunner:
    """As a transient unit: outside of what confines sbatchd, in the machine's own namespaces."""

    systemd = True

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self._clock = folder, clock
        self._bus: SystemdBus | None = None
        self._connecting = asyncio.Lock()
        self._jobs: dict[str, asyncio.Future[str]] = {}

    async def run(self, verb: str, slug: str, asked: dict[str, Any]) -> dict[str, Any]:
        request, answer = (self._folder / f"{slug}.{name}" for name in ("request", "answer"))
        for left in range(TRIES - 1, -1, -1):
            try:
                await asyncio.to_thread(_write, request, json.dumps(asked))
                await asyncio.to_thread(answer.unlink, missing_ok=True)
                await self._run_unit(f"lavalite-partwork-{slug}.service", command(verb), request, answer)
                break
            except UnreachableError:
                # It may have been done; doing it again does no harm.
                if not left:
                    raise
                await self._clock.sleep(1.0)
        try:
            said = await asyncio.to_thread(answer.read_bytes)
        except OSError:
            said = b""
        finally:
            for file in (request, answer):
                await asyncio.to_thread(file.unlink, missing_ok=True)
        return answer_of(said, f"see the journal of lavalite-partwork-{slug}")

    async def serves(self, slug: str) -> bool:
        bus, unit = await self._connected(), unit_of(slug)
        states = await bus.active_states(unit)
        return states.get(unit, "inactive") in ("active", "activating", "reloading")

    async def close(self) -> None:
        if self._bus:
            await self._bus.close()
            self._bus = None

    async def _run_unit(self, unit: str, words: Sequence[str], request: Path, answer: Path) -> None:
        from lavalite.sbatchd.systemd.bus import CallError
        from lavalite.sbatchd.systemd.units import oneshot_properties

        bus = await self._connected()
        properties = oneshot_properties(f"LavaLite: {words[-1]} a part", words, request, answer, WORK_SECONDS)
        deadline = self._clock.boottime() + WORK_SECONDS
        while True:
            ended = self._jobs[unit] = asyncio.get_running_loop().create_future()
            try:
                await bus.start(unit, properties)
                async with asyncio.timeout(WORK_SECONDS):
                    await ended
                return
            except CallError as error:
                # One that an earlier sbatchd began is at work still.
                if error.name != "UnitExists" or self._clock.boottime() > deadline:
                    raise LavaLiteError(f"systemd does not run {unit} ({error})", code="systemd") from None
            except TimeoutError:
                raise LavaLiteError(f"{unit} has not ended in {WORK_SECONDS:g} s") from None
            finally:
                self._jobs.pop(unit, None)
            await self._clock.sleep(POLL_SECONDS)

    async def _connected(self) -> SystemdBus:
        async with self._connecting:
            if self._bus is None:
                # Only here: other nodes need not spend the memory.
                from lavalite.sbatchd.systemd.bus import SystemdBus

                bus = SystemdBus(lambda path, state: None, self._hear_job, self._hear_loss)
                await bus.connect()
                self._bus = bus
            return self._bus

    def _hear_job(self, unit: str, result: str) -> None:
        if (ended := self._jobs.get(unit)) and not ended.done():
            ended.set_result(result)

    def _hear_loss(self) -> None:
        self._bus = None
        for ended in self._jobs.values():
            if not ended.done():
                ended.set_exception(UnreachableError("the bus was disconnected", code="systemd"))


def answer_of(said: bytes, complaint: str) -> dict[str, Any]:
    """Raises LavaLiteError with what went wrong."""
    answer: dict[str, Any] = {}
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(said.decode().splitlines()[-1])
    if not said.strip():
        last = ([line for line in complaint.splitlines() if line.strip()] or ["it said nothing"])[-1]
        raise LavaLiteError(f"the root program ended without an answer: {last}")
    if error := answer.get("error"):
        raise LavaLiteError(str(error), code=PART_FAILED)
    return answer


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
