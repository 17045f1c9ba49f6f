"""Ports for servers of tests: free now, and not given out again by this run."""

from __future__ import annotations

import itertools
import os
import socket

FIRST, PER_WORKER, WORKERS = 12_000, 2_000, 10
"""Below what the kernel gives to clients (32768 and up), and a range of its own for each worker of a parallel run."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_numbers = itertools.cycle(range(FIRST + _worker * PER_WORKER, FIRST + (_worker + 1) * PER_WORKER))
# Two runs at once begin at different places.
for _ in range(os.getpid() * 7 % PER_WORKER):
    next(_numbers)


def free_ports(count: int) -> list[int]:
    """So many different ports on 127.0.0.1 on which nobody listens."""
    found: list[int] = []
    for port in itertools.islice(_numbers, PER_WORKER):
        if len(found) == count:
            break
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    assert len(found) == count, f"no {count} free ports below {FIRST + WORKERS * PER_WORKER}"
    return found
