"""When tasks start, told by the tasks themselves: each writes its number into a pipe that has a name."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

WAIT_SECONDS = 60.0


class Probe:
    """`command(N)` is what task N is to run; `wait` says how long after `sent(N)` it did."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent: dict[int, float] = {}
        self._began: dict[int, float] = {}
        self._news = threading.Condition()

    @contextlib.contextmanager
    def listening(self) -> Iterator[Probe]:
        os.mkfifo(self._path)
        self._path.chmod(0o666)
        pipe = os.open(self._path, os.O_RDWR)  # for writing too: else it would be at its end between two tasks
        reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        reader.start()
        try:
            yield self
        finally:
            os.write(pipe, b"end\n")
            reader.join()
            os.close(pipe)

    def command(self, number: int, then_sleep_seconds: float = 0.0) -> list[str]:
        then = f"; exec sleep {then_sleep_seconds:.3f}" if then_sleep_seconds else ""
        return ["/bin/sh", "-c", f"echo {number} > {self._path}{then}"]

    def sent(self, number: int, at: float | None = None) -> None:
        """Now, or at a time of the monotonic clock."""
        self._sent[number] = time.monotonic() if at is None else at

    def wait(self, numbers: list[int]) -> list[float]:
        """How long each took from `sent` to its start, in seconds. Raises AssertionError where one does not start."""
        with self._news:
            done = self._news.wait_for(lambda: self._began.keys() >= set(numbers), WAIT_SECONDS)
        assert done, f"not started within {WAIT_SECONDS:g} s: {sorted(set(numbers) - self._began.keys())[:10]}"
        return [self._began[number] - self._sent[number] for number in numbers]

    def _read(self, pipe: int) -> None:
        rest = b""
        while True:
            rest += os.read(pipe, 65_536)
            now = time.monotonic()
            *lines, rest = rest.split(b"\n")
            with self._news:
                for line in lines:
                    if line == b"end":
                        return
                    self._began[int(line)] = now
                self._news.notify_all()
