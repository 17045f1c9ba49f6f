"""A scenario at the pace of the clock, until it is told to stop: a daemon that converges.

Virtual time follows the clock; what is due is done when it is due. SIGINT and SIGTERM end it once what is being done
is done, with a report of how far it came.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lavalite.base.clock import Clock
from lavalite.simulate.report import Report
from lavalite.simulate.run import Simulation


def run_live(run: Simulation, clock: Clock, *, speed: float = 1.0, until: float | None = None) -> Report:
    """Until a signal comes, or `until`. `speed`: so many simulated seconds in one of the clock's.

    There is no other end: when all work is over the cluster goes on beating, and waits for nothing.
    """
    stop = threading.Event()
    with _stopped_by_signals(stop):
        began = clock.monotonic()
        while not stop.is_set():
            due = run.cluster.next_due
            reached = (clock.monotonic() - began) * speed
            if until is not None and reached >= until and (due is None or due > until):
                run.passes(until)
                return run.report("until")
            if due is not None and due <= reached:
                run.cluster.step()
                continue
            ahead = min(at for at in (due, until, reached + 3600.0) if at is not None) - reached
            stop.wait(max(0.0, ahead / speed))
        return run.report("stopped")


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    def note(*_: object) -> None:
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
