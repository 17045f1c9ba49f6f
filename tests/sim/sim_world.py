"""Virtual time for many processes: each has an asyncio loop and clocks of its own, and can be frozen or killed.

    what is due, of the world and of every loop ──► the earliest, whoever's it is ──► until nothing is ready any more

One source of randomness, so that a seed replays exactly.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

WALL_SECONDS = 1_700_000_000.0


class _NoFiles:
    """A selector of nothing: no process of the simulation has a file or a socket."""

    def select(self, timeout: float | None) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.base_events.BaseEventLoop):
    """A loop whose time is the world's, and that runs only when it is told to."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._selector = _NoFiles()
        self._clock_resolution = 1e-9
        self.set_exception_handler(self._fail)
        self.faults: list[str] = []

    def _fail(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"{context['message']}: {context.get('exception')!r}")

    def time(self) -> float:
        return self._now()

    def _process_events(self, events: Sequence[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def next_due(self) -> float | None:
        """When its next timer is due; now, where something is ready."""
        if self._ready:
            return self.time()
        while self._scheduled and self._scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(self._scheduled)._scheduled = False
        return self._scheduled[0]._when if self._scheduled else None

    def spin(self) -> None:
        """Run until nothing is ready and no timer is due."""
        while (due := self.next_due()) is not None and due <= self.time():
            self.call_soon(self.stop)
            self.run_forever()


class DriftingClock:
    """The clocks of one machine: they began anywhere, and go too fast or too slow. `rate` is near 1."""

    def __init__(self, world: World, rate: float, boot_offset: float) -> None:
        self._world, self.rate, self._offset = world, rate, boot_offset

    def now(self) -> float:
        return WALL_SECONDS + self._world.now * self.rate

    def boottime(self) -> float:
        return self._offset + self._world.now * self.rate

    def monotonic(self) -> float:
        return self.boottime()

    def true_time(self, boottime: float) -> float:
        """When this clock says that, by the world's time."""
        return (boottime - self._offset) / self.rate

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds) / self.rate)


class Machine:
    """One that can be frozen: what comes in meanwhile waits, and is taken when it thaws."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.loop = VirtualLoop(lambda: world.now)
        self.clock = DriftingClock(world, 1 + world.random.uniform(-0.002, 0.002), world.random.uniform(10, 1e6))
        self.frozen = False
        self._waiting: deque[Callable[[], None]] = deque()
        world.machines.append(self)

    def take(self, what: Callable[..., None], *words: Any) -> None:
        """Do it on this machine: now, or when it thaws."""
        if self.frozen:
            self._waiting.append(lambda: what(*words))
            return
        self.loop.call_soon(what, *words)
        self.loop.spin()

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        while self._waiting:
            self.loop.call_soon(self._waiting.popleft())
        self.loop.spin()


class World:
    """What is due, and what has happened. `random` decides everything that is left open."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.machines: list[Machine] = []
        self.story: deque[str] = deque(maxlen=400)
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()

    def tell(self, text: str) -> None:
        self.story.append(f"{self.now:9.3f} {text}")

    def at(self, time: float, what: Callable[..., None], *words: Any) -> None:
        heapq.heappush(self._due, (max(time, self.now), next(self._numbers), what, words))

    def after(self, seconds: float, what: Callable[..., None], *words: Any) -> None:
        self.at(self.now + seconds, what, *words)

    def step(self) -> None:
        """The next thing that is due."""
        first: Machine | None = None
        time = self._due[0][0] if self._due else float("inf")
        for machine in self.machines:
            due = None if machine.frozen else machine.loop.next_due()
            if due is not None and due < time:
                first, time = machine, due
        self.now = max(self.now, time)
        if first is not None:
            first.loop.spin()
        else:
            _, _, what, words = heapq.heappop(self._due)
            what(*words)

    def close(self) -> None:
        for machine in self.machines:
            for task in asyncio.all_tasks(machine.loop):
                task.cancel()
            machine.frozen = False
            machine.loop.spin()
            machine.loop.close()
