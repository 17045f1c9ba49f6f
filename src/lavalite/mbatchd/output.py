"""Output of attempts, streamed from the agents on demand to whoever asked over the API.

A stream has a number. The agent pushes pieces; they wait in a bounded queue for the reader. A reader that is too
slow to follow is cut off with a word, so that it can come back with the offset it has reached.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from lavalite.base.errors import BusyError, LavaLiteError, UnreachableError
from lavalite.wire.frames import AnyFrame, CancelRead, EpochPair, Output, Read

MAX_PIECES = 256
"""At most 16 MiB wait for one reader: 256 pieces of 64 KiB."""
MAX_PIECE_CHARACTERS = 88_000
"""64 KiB in base64. An agent that sends more than it agreed to does not get to fill our memory."""
MAX_STREAMS = 1024
MAX_STREAMS_EACH = 64
"""Of one person, so that nobody keeps the others from reading."""


@dataclass(slots=True)
class _Stream:
    node: str
    reader: str
    pieces: asyncio.Queue[Output | LavaLiteError] = field(default_factory=lambda: asyncio.Queue(MAX_PIECES + 1))
    cut: bool = False


class OutputStreams:
    """All streams that are being read now."""

    def __init__(self, post: Callable[..., bool]) -> None:
        self._post = post
        self._numbers = itertools.count(1)
        self._streams: dict[int, _Stream] = {}

    async def read(
        self,
        node: str,
        epoch: EpochPair,
        attempt: str,
        stream: Literal["stdout", "stderr"],
        *,
        offset: int = 0,
        follow: bool = False,
        reader: str = "",
    ) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on; with `follow` until the attempt ends. Raises LavaLiteError."""

        def ask(number: int) -> AnyFrame:
            return Read(epoch=epoch, stream_id=number, attempt=attempt, stream=stream, offset=offset, follow=follow)

        async with aclosing(self.stream(node, epoch, ask, f"output of {attempt}", reader=reader)) as pieces:
            async for piece in pieces:
                yield piece

    async def stream(
        self, node: str, epoch: EpochPair, ask: Callable[[int], AnyFrame], what: str, *, reader: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """What a node says in answer to a frame that is asked of it, made with the stream's number. `what` is that,
        for people. Raises LavaLiteError."""
        of_reader = sum(entry.reader == reader for entry in self._streams.values())
        if len(self._streams) >= MAX_STREAMS or of_reader >= MAX_STREAMS_EACH:
            raise BusyError("too many outputs are being read", hint="Try again later.")
        number = next(self._numbers)
        entry = self._streams[number] = _Stream(node, reader)
        ended = False
        try:
            self._ask(node, ask(number))
            while True:
                piece = await entry.pieces.get()
                if isinstance(piece, LavaLiteError):
                    raise piece
                if piece.data_base64 or not (piece.ended or piece.error):
                    yield _decoded(piece)
                if piece.error:
                    ended = True
                    raise LavaLiteError(f"{what}: {piece.error}", code="no_output")
                if piece.ended:
                    ended = True
                    return
        finally:
            del self._streams[number]
            if not ended:
                self._post(node, CancelRead(epoch=epoch, stream_id=number))

    def take(self, node: str, frame: Output) -> None:
        """A piece came. One for a stream that nobody reads any more is dropped."""
        entry = self._streams.get(frame.stream_id)
        if entry is None or entry.node != node or entry.cut:
            return
        if entry.pieces.qsize() >= MAX_PIECES:
            self._cut(entry, LavaLiteError("the reader is too slow", code="too_slow", hint="Read on from there."))
            return
        if len(frame.data_base64) > MAX_PIECE_CHARACTERS:
            self._cut(entry, LavaLiteError("the agent sent too long a piece of output", code="bad_output"))
            return
        entry.pieces.put_nowait(frame)

    def finish(self, number: int) -> None:
        """Nothing more is to come: whoever reads it is told that it has ended."""
        entry = self._streams.get(number)
        if entry is not None and not entry.cut:
            entry.cut = True
            entry.pieces.put_nowait(Output(stream_id=number, offset=0, ended=True))

    def node_gone(self, node: str) -> None:
        for entry in self._streams.values():
            if entry.node == node:
                self._cut(entry, _gone(node))

    def end(self) -> None:
        """Cut off all readers: the scheduler is stopping. They go on with the next one, at their offsets."""
        for entry in self._streams.values():
            self._cut(entry, UnreachableError("the scheduler is stopping", hint="Read on from there."))

    @staticmethod
    def _cut(entry: _Stream, error: LavaLiteError) -> None:
        if not entry.cut:
            entry.cut = True
            entry.pieces.put_nowait(error)

    def _ask(self, node: str, ask: AnyFrame) -> None:
        if not self._post(node, ask):
            raise _gone(node)


def _gone(node: str) -> UnreachableError:
    return UnreachableError(
        f"node {node} is not connected, and its output is there", hint="Try again when it is back."
    )


def _decoded(piece: Output) -> bytes:
    try:
        return base64.b64decode(piece.data_base64, validate=True)
    except binascii.Error:
        raise LavaLiteError("the agent sent output that is no base64", code="bad_output") from None
