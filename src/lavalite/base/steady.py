"""Wall time that never jumps: what the control plane counts by."""

from __future__ import annotations

from lavalite.base.clock import Clock


class SteadyTime:
    """Wall time read once, carried on by CLOCK_BOOTTIME.

    A node is believed lost, and its work is started elsewhere, when so many seconds have passed. An operator (or
    NTP) who sets the wall clock forward must not make that happen early. The price: after the clock was set,
    times in records follow the old setting until the daemon is started anew.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.now() - clock.boottime()

    def now(self) -> float:
        """Seconds since the Unix epoch, as of the clock's setting at the start."""
        return self._clock.boottime() + self._offset
