"""The serial console of a logical host that is a virtual machine, from wherever the API is reached.

    standard input ──► typed, piece by piece ──► the leader ──► the anchor ──► the machine
    standard output ◄── pieces as they come ◄──────────────────────────────────┘

A thread reads; this one types, and asks now and then whether it is still there: a dead leader says nothing.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from lavalite.base.errors import ConflictError, LavaLiteError
from lavalite.cli.connect import Place, at_place

if TYPE_CHECKING:
    from lavalite.api.client import Client, ConsoleStream

LEAVE = b"\x1d"
CHUNK_BYTES = 1024
ASK_SECONDS = 15.0
JOIN_SECONDS = 5.0


@at_place
def console(place: Place, host: Annotated[str, typer.Argument(metavar="HOST")]) -> None:
    """Use the serial console of a virtual machine. Ctrl-] leaves."""
    source, target = sys.stdin.fileno(), sys.stdout.fileno()
    with place.client() as reading, place.client() as typing, reading.console(host) as stream:
        if os.isatty(source):
            print(f"The console of {host}. Ctrl-] leaves.", file=sys.stderr)
        with raw(source):
            ended = carry(stream, typing, source, target)
        if os.isatty(source):
            print(file=sys.stderr)
        if ended:
            print(f"The console of {host} was closed: its machine has ended or starts anew.", file=sys.stderr)


@contextmanager
def raw(source: int) -> Iterator[None]:
    """A terminal hands on each key as it is typed, and is as it was afterwards; anything else is left alone."""
    before = termios.tcgetattr(source) if os.isatty(source) else None
    try:
        if before:
            tty.setraw(source)
        yield
    finally:
        if before:
            termios.tcsetattr(source, termios.TCSADRAIN, before)


def carry(stream: ConsoleStream, typing: Client, source: int, target: int) -> bool:
    """Until Ctrl-] is typed, the input ends, or the machine closes it: whether it was the machine.

    Raises LavaLiteError where it breaks off.
    """
    reader = _Reader(stream.pieces, target)
    reader.start()
    while True:
        ready, _, _ = select.select([source, reader.over], [], [], ASK_SECONDS)
        if reader.over in ready:
            reader.finish()
            return True
        typed = os.read(source, CHUNK_BYTES) if source in ready else b""
        before, left, _ = typed.partition(LEAVE)
        leaves = bool(left) or (source in ready and not typed)
        try:
            typing.type_console(stream, before, leave=leaves)
        except ConflictError:  # it is closed; how that came about the reader knows
            reader.finish()
            return True
        if leaves:
            reader.finish()
            return False


class _Reader(threading.Thread):
    """Writes what comes; `over` can be read from once nothing more does."""

    def __init__(self, pieces: Iterable[bytes], target: int) -> None:
        super().__init__(daemon=True)
        self._pieces, self._target = pieces, target
        self._error: Exception | None = None
        self.over, self._end = os.pipe()

    def run(self) -> None:
        try:
            for piece in self._pieces:
                left = memoryview(piece)
                while left:
                    left = left[os.write(self._target, left) :]
        except (LavaLiteError, OSError) as error:
            self._error = error
        finally:
            os.close(self._end)

    def finish(self) -> None:
        """Wait for what is still to come. Raises what it ended with."""
        self.join(JOIN_SECONDS)
        os.close(self.over)
        if self._error is not None:
            raise self._error
