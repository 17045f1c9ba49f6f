"""Reading attempts' output for the leader, and clearing away what is old.

Output files belong to users, who may put anything in their place: only a plain file that belongs to the attempt's
user is read, and no link is followed. Default output is kept for KEPT_SECONDS or the newest KEPT_ATTEMPTS attempts,
whichever is less; output at paths that the user named is the user's own.
"""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from collections.abc import Awaitable, Callable, Container
from pathlib import Path

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.entry import Entry
from lavalite.wire.frames import Output, Read

CHUNK_BYTES = 64 * 1024
MAX_STREAMS = 64
POLL_SECONDS = 0.2
KEPT_SECONDS = 7 * 24 * 3600
KEPT_ATTEMPTS = 10_000

SendOutput = Callable[[Output], Awaitable[None]]
"""Waits while the leader is behind, so that a slow reader holds up its own stream and nothing else."""


class OutputStreams:
    """The streams of one session. At most MAX_STREAMS at a time, one chunk of each in memory."""

    def __init__(self, send: SendOutput, clock: Clock, own_uid: int) -> None:
        self._send, self._clock, self._own_uid = send, clock, own_uid
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def open(self, read: Read, entry: Entry | None) -> None:
        """Answer a Read: bytes, or why there are none."""
        if read.stream_id in self._tasks:
            return
        if entry is None or entry.state == "refused":
            await self._fail(read, "there is no output: the attempt never ran here")
        elif len(self._tasks) >= MAX_STREAMS:
            await self._fail(read, f"{MAX_STREAMS} outputs are being read from this node; try again later")
        else:
            task = asyncio.create_task(self._stream(read, entry))
            self._tasks[read.stream_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(read.stream_id, None))

    def cancel(self, stream_id: int) -> None:
        if task := self._tasks.get(stream_id):
            task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fail(self, read: Read, why: str) -> None:
        await self._send(Output(stream_id=read.stream_id, offset=read.offset, ended=True, error=why))

    async def _stream(self, read: Read, entry: Entry) -> None:
        path = entry.stdout_path if read.stream == "stdout" else entry.stderr_path
        uid = self._own_uid if entry.uid < 0 else entry.uid
        offset = read.offset
        try:
            while True:
                over = entry.final or not read.follow  # asked before reading: what comes later is not missed
                chunk = await asyncio.to_thread(read_chunk, path, offset, uid, missing_ok=not entry.final)
                if chunk:
                    data = base64.b64encode(chunk).decode()
                    await self._send(Output(stream_id=read.stream_id, offset=offset, data_base64=data))
                    offset += len(chunk)
                elif over:
                    await self._send(Output(stream_id=read.stream_id, offset=offset, ended=True))
                    return
                else:
                    await self._clock.sleep(POLL_SECONDS)
        except OSError as error:
            await self._fail(read, f"{path} cannot be read: {error.strerror or error}")
        except LavaLiteError:
            pass  # the session is gone, and the stream with it


def read_chunk(path: str, offset: int, uid: int, *, missing_ok: bool = False) -> bytes:
    """At most CHUNK_BYTES from `offset`; empty at the end. Raises OSError, also for a file of another than `uid`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if missing_ok:
            return b""
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(1, "it is not a plain file")
        if found.st_uid != uid:
            raise PermissionError(1, "it does not belong to the attempt's user")
        return os.pread(fd, CHUNK_BYTES, offset)
    finally:
        os.close(fd)


def prune(folder: Path, live: Container[str], now: float) -> int:
    """Remove old default output of attempts that are not `live`; the number of files removed. `now`: wall time."""
    found: dict[str, tuple[float, list[Path]]] = {}
    for path in folder.iterdir():
        attempt = path.name.rpartition(".")[0]
        changed, paths = found.get(attempt, (0.0, []))
        found[attempt] = (max(changed, path.lstat().st_mtime), [*paths, path])
    removed = 0
    newest_first = sorted(found.items(), key=lambda item: item[1][0], reverse=True)
    for place, (attempt, (changed, paths)) in enumerate(newest_first):
        if attempt in live or (place < KEPT_ATTEMPTS and now - changed < KEPT_SECONDS):
            continue
        for path in paths:
            path.unlink(missing_ok=True)
            removed += 1
    return removed
