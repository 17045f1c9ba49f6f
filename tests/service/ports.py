"""Ports for servers of tests: free now, and given out once, whoever else tests on this machine meanwhile."""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

FIRST, BLOCK, BLOCKS = 12_000, 100, 200
"""Below what the kernel gives to clients (32768 and up). A process has whole blocks to itself until it ends."""

_held: list[TextIO] = []


def _ports() -> Iterator[int]:
    """Every port of every block that no other process has."""
    folder = Path(tempfile.gettempdir()) / f"lavalite-test-ports-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    first = os.getpid() % BLOCKS
    for number in itertools.chain(range(first, BLOCKS), range(first)):
        lock = (folder / str(number)).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        yield from range(FIRST + number * BLOCK, FIRST + (number + 1) * BLOCK)


_untried = _ports()


def free_ports(count: int) -> list[int]:
    """So many different ports on 127.0.0.1 on which nobody listens."""
    found: list[int] = []
    while len(found) < count:
        port = next(_untried, None)
        assert port is not None, f"no {count} free ports from {FIRST} on"
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found
