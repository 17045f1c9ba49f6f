"""The `process` executor: a client of the keeper, which it starts when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from lavalite.base.errors import UnreachableError
from lavalite.sbatchd.executors import Known, Launch, Listed, Signalled, Started, StartFailed, Tell
from lavalite.sbatchd.keeper import PROGRAM
from lavalite.sbatchd.keeper.clients import MAX_LINE_BYTES
from lavalite.sbatchd.keeper.files import SOCKET_NAME
from lavalite.sbatchd.keeper.main import ALREADY_RUNS_EXIT

CONNECT_TRIES = 5
READY_SECONDS = 10.0
ANSWER_SECONDS = 10.0
LAUNCH_NAMES = [each.name for each in fields(Launch)]
QUIET = ("start", "acknowledge", "contact")
"""What the keeper need not answer: an attempt that starts, or ends, is an event."""
SUSPENDING = {19: True, 20: True, 18: False}
"""SIGSTOP, SIGTSTP, SIGCONT."""


class ProcessExecutor:
    """Attempts as plain processes, owned by the keeper of `folder`. The contract is executors.Executor."""

    def __init__(self, folder: Path, *, keeper_idle_seconds: float = 60.0) -> None:
        self._folder = folder
        self._idle_seconds = keeper_idle_seconds
        self._spawned: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked: dict[int, tuple[dict[str, Any], asyncio.Future[dict[str, Any]] | None]] = {}
        self._number = 0
        self._quietly = False
        """Whether the keeper, which may be of an earlier release, answers only if something goes wrong."""
        self._tell: Tell = lambda event: None
        self.keeper_pid = 0

    async def connect(self, tell: Tell, lost: Callable[[], None]) -> Listed:
        await self.close()
        self._tell = tell
        reader, self._writer = await self._reach_keeper()
        self._reading = asyncio.create_task(self._read(reader, lost))
        self._quietly = False
        hello = await self._ask({"op": "hello"})
        self.keeper_pid, self._quietly = hello["pid"], hello["protocol"] >= 2
        return await self.list()

    async def start(self, launch: Launch) -> None:
        self._send({"op": "start"} | {name: getattr(launch, name) for name in LAUNCH_NAMES})
        await self._drain()

    async def signal(
        self, attempt: str, signal: int, *, ending: bool, grace_seconds: float = 0.0, reason: str = "stop"
    ) -> None:
        request = {"op": "signal", "id": attempt, "signal": signal, "ending": ending}
        self._send(request | {"grace_seconds": grace_seconds, "reason": reason})
        await self._drain()

    async def list(self) -> Listed:
        answer = await self._ask({"op": "list"})
        return Listed(tuple(_known(attempt) for attempt in answer["attempts"]))

    async def acknowledge(self, attempt: str) -> None:
        self._send({"op": "acknowledge", "id": attempt})

    async def contact(self, sent: float) -> None:
        self._send({"op": "contact", "sent": sent})

    async def shutdown(self, *, force: bool = False) -> str:
        """Ask the keeper to end, with `force` together with all its attempts. Why it does not, or an empty text."""
        return str((await self._ask({"op": "shutdown", "force": force})).get("error", ""))

    async def close(self) -> None:
        """Leave the keeper, once it has read all that was asked: a line it has not read yet is lost with us."""
        if self._reading and not self._reading.done():
            with contextlib.suppress(UnreachableError):
                await self._ask({"op": "hello"})
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
        if self._writer:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            self._writer = None
        self._give_up()

    # --- the keeper

    async def _reach_keeper(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        why = ""
        for _ in range(CONNECT_TRIES):
            try:
                return await self._dial()
            except OSError as error:
                why = str(error)
            # It may be that another one is just ending: then ours finds the folder locked, and the next try works.
            why = await asyncio.to_thread(self._spawn) or why
        raise UnreachableError(
            f"the keeper of {self._folder} cannot be started or reached ({why})",
            code="keeper",
            hint=f"See {self._folder / 'keeper.log'}.",
        )

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # By way of the folder's descriptor: a Unix socket's path is at most 107 bytes long.
        folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
        try:
            path = f"/proc/self/fd/{folder}/{SOCKET_NAME}"
            return await asyncio.open_unix_connection(path, limit=MAX_LINE_BYTES)
        finally:
            os.close(folder)

    def _spawn(self) -> str:
        """Start a keeper, wait until it listens. Why it does not, or an empty text."""
        self._reap()
        command = [sys.executable, "-I", "-S", PROGRAM, str(self._folder), str(self._idle_seconds)]
        with (self._folder / "keeper.log").open("ab") as log:
            self._spawned = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            )
        assert self._spawned.stdout is not None
        with self._spawned.stdout as said:
            if said.readline() == b"ready\n":
                return ""
        code = self._spawned.wait(READY_SECONDS)
        return "" if code == ALREADY_RUNS_EXIT else f"it ended with {code}"

    def _reap(self) -> None:
        if self._spawned:
            self._spawned.poll()

    # --- requests and what comes back

    def _send(self, request: dict[str, Any], future: asyncio.Future[dict[str, Any]] | None = None) -> None:
        if not self._writer or self._writer.is_closing():
            if future:
                future.set_exception(UnreachableError("the keeper is not connected"))
            return  # connecting anew lists what there is; what was not sent counts as never started
        self._number += 1
        if self._quietly and request["op"] in QUIET:
            request = request | {"quiet": True}
        else:
            known = {name: request.get(name) for name in ("op", "id", "signal", "ending")}
            self._asked[self._number] = (known, future)
        self._writer.write(json.dumps(request | {"n": self._number}).encode() + b"\n")

    async def _drain(self) -> None:
        if self._writer:
            with contextlib.suppress(OSError):
                await self._writer.drain()

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._send(request, future)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await future
        except TimeoutError:
            raise UnreachableError("the keeper does not answer", code="keeper") from None

    async def _read(self, reader: asyncio.StreamReader, lost: Callable[[], None]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                message = json.loads(line)
                if "event" in message:
                    self._hear_event(message["event"], message["attempt"])
                else:
                    self._hear_reply(message)
        self._give_up()
        self._reap()
        lost()

    def _give_up(self) -> None:
        for _, future in self._asked.values():
            if future and not future.done():
                future.set_exception(UnreachableError("the keeper went away", code="keeper"))
        self._asked.clear()

    def _hear_event(self, event: str, attempt: dict[str, Any]) -> None:
        known = _known(attempt)
        self._tell(Started(known.id, known.pid, known.started_at) if event == "started" else known.end())

    def _hear_reply(self, message: dict[str, Any]) -> None:
        unasked = {"ending": True} | message
        request, future = self._asked.pop(message.get("reply") or 0, (unasked, None))
        if future and not future.done():
            future.set_result(message)
        error = message.get("error", "")
        if request.get("op") == "start" and error and error != "known":
            self._tell(StartFailed(request["id"], error))
        if request.get("op") == "signal" and not error and not request["ending"] and request["signal"] in SUSPENDING:
            self._tell(Signalled(request["id"], SUSPENDING[request["signal"]]))


def _known(attempt: dict[str, Any]) -> Known:
    reason = attempt["reason"] + (f": {attempt['error']}" if attempt["error"] else "")
    return Known(
        attempt["id"],
        attempt["state"],
        attempt["pid"],
        attempt["started_at"],
        attempt["exit_code"],
        reason if attempt["state"] == "ended" else "",
        attempt["ended_at"],
    )
