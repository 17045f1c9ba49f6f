"""Durable no-op jobs a second and how soon a job starts, with real processes, beside Slurm and HyperQueue.

python bench/endtoend.py [--peer slurm] [--peer hyperqueue] [--tasks 1000] [--rounds 3] [--idle 100] [--json]

Each system has eight nodes of eight slots on loopback: LavaLite with an etcd, a LIM and an agent a node; its peers as
bench/peers.py says. All are up at once and take turns, so that what else the machine does meets all alike.

jobs a second    an array of so many tasks of /bin/true, from before its submit until it has ended: LavaLite's durably
start, idle      one job at a time, from before its submit until the first thing that it does
start, loaded    jobs of a second that come by chance (Poisson), 51 a second, which takes 80 % of the slots; from when
                 each was due. Those of the first second, while it fills up, do not count

A peer that is not installed, or does not start, is named with the reason; ratios to it are then not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests/service")]

from figures import Figure, at_least, at_most, not_measured, noted, report  # noqa: E402
from ours import LavaLite  # noqa: E402
from peers import NODES, PEERS, SLOTS, System  # noqa: E402
from probe import Probe  # noqa: E402

RATIOS = {"slurm": 8.0, "hyperqueue": 1.5}
IDLE_P50_MS, IDLE_P99_MS, LOADED_P99_MS = 10, 30, 250
LOAD = 0.8
LASTS_SECONDS = 1.0
SEED = 20260101
PAUSE_SECONDS = 0.05
WARM_TASKS = NODES * SLOTS
BATCH_JOBS = 100
PEER_SHARE = {"slurm": 0.2}
"""Of the tasks that LavaLite gets, so many are enough for a peer."""
PEER_IDLE_SHARE = {"slurm": 0.05}
"""Of the jobs one at a time: one of Slurm's takes a second, give or take a few hundredths."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Jobs a second and time to start, with real processes.")
    parser.add_argument("--peer", action="append", choices=sorted(PEERS), default=[], help="may be repeated")
    parser.add_argument("--tasks", type=int, default=1000, help="of an array, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=int, default=100, help="so many jobs, one at a time")
    parser.add_argument("--seconds", type=float, default=6.0, help="so long under load")
    parser.add_argument("--json", action="store_true", help="the last line is a list of the figures")
    asked = parser.parse_args()
    if reason := LavaLite.missing():
        return not_measured(reason, asked.json)
    with tempfile.TemporaryDirectory(prefix="lava-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        probe = stack.enter_context(Probe(folder / "probe").listening())
        systems: dict[str, System] = {"": LavaLite(_made(folder / "ours"))}
        stack.enter_context(systems[""].running())
        for peer in dict.fromkeys(asked.peer):
            try:
                if reason := PEERS[peer].missing():
                    raise AssertionError(reason)
                system = PEERS[peer](_made(folder / peer))
                stack.enter_context(system.running())
                systems[peer] = system
            except (AssertionError, OSError, RuntimeError) as error:
                print(f"{peer} could not be run: {error}", file=sys.stderr)
        figures = compare(systems, probe, asked)
    return report(figures, as_json=asked.json)


def compare(systems: dict[str, System], probe: Probe, asked: argparse.Namespace) -> list[Figure]:
    """`systems` by the peer's name, ours without one."""
    numbers = count(1)
    seconds, tasks = dict.fromkeys(systems, 0.0), {name: _share(asked.tasks, name) for name in systems}
    for system in systems.values():
        system.run_array(WARM_TASKS)
    for _ in range(asked.rounds):
        for name, system in systems.items():
            began = time.monotonic()
            system.run_array(tasks[name])
            seconds[name] += time.monotonic() - began
    rate = {name: asked.rounds * tasks[name] / seconds[name] for name in systems}
    alone = {name: _share(asked.idle, name, PEER_IDLE_SHARE) for name in systems}
    idle = {name: started_idle(system, probe, numbers, alone[name]) for name, system in systems.items()}
    separate, loaded = {}, {}
    for name, system in systems.items():
        separate[name] = started_a_second(system, probe, numbers, _share(asked.tasks, name))
        loaded[name] = started_loaded(system, probe, numbers, asked.seconds)
    return [
        noted("jobs_per_second", rate[""], "/s", _beside(rate, "/s")),
        *(
            at_least(f"ratio_{name}", rate[""] / rate[name], "", RATIOS[name], f"{rate[name]:.0f}/s")
            for name in systems
            if name
        ),
        at_most("idle_start_p50_ms", part(idle[""], 50), "ms", IDLE_P50_MS, _beside(_parts(idle, 50), "ms")),
        at_most("idle_start_p99_ms", part(idle[""], 99), "ms", IDLE_P99_MS, _beside(_parts(idle, 99), "ms")),
        noted("separate jobs started per second", separate[""], "/s", _beside(separate, "/s")),
        noted("loaded_start_p50_ms", part(loaded[""], 50), "ms", _beside(_parts(loaded, 50), "ms")),
        at_most("loaded_start_p99_ms", part(loaded[""], 99), "ms", LOADED_P99_MS, _beside(_parts(loaded, 99), "ms")),
    ]


def started_idle(system: System, probe: Probe, numbers: Iterator[int], jobs: int) -> list[float]:
    """Milliseconds until each started."""
    took = []
    for _ in range(jobs):
        number = next(numbers)
        probe.sent(number)
        system.submit([probe.command(number)])
        took += probe.wait([number])
        time.sleep(PAUSE_SECONDS)
    return [1000 * seconds for seconds in took]


def started_a_second(system: System, probe: Probe, numbers: Iterator[int], jobs: int) -> float:
    """Jobs of one task each, submitted by the hundred; as many as there are, until the last has started."""
    began, mine = time.monotonic(), [next(numbers) for _ in range(jobs)]
    for first in range(0, jobs, BATCH_JOBS):
        batch = mine[first : first + BATCH_JOBS]
        for number in batch:
            probe.sent(number)
        system.submit([probe.command(number) for number in batch])
    probe.wait(mine)
    return jobs / (time.monotonic() - began)


def started_loaded(system: System, probe: Probe, numbers: Iterator[int], seconds: float) -> list[float]:
    """Milliseconds from when each was due until it started."""
    rng, began, due, mine = random.Random(SEED), time.monotonic(), 0.0, []
    rate = LOAD * NODES * SLOTS / LASTS_SECONDS
    while due < seconds:
        batch = []
        while due <= time.monotonic() - began:
            number = next(numbers)
            probe.sent(number, began + due)
            batch.append(probe.command(number, LASTS_SECONDS))
            if due >= min(LASTS_SECONDS, seconds / 2):
                mine.append(number)
            due += rng.expovariate(rate)
        if batch:
            system.submit(batch)
        time.sleep(max(0.0, began + due - time.monotonic()))
    return [1000 * took for took in probe.wait(mine)]


def part(values: list[float], percent: int) -> float:
    """The least value that so many per cent do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _parts(values: dict[str, list[float]], percent: int) -> dict[str, float]:
    return {name: part(each, percent) for name, each in values.items()}


def _beside(values: dict[str, float], unit: str) -> str:
    return ", ".join(f"{name} {value:.0f} {unit}" for name, value in values.items() if name)


def _share(whole: int, name: str, shares: dict[str, float] = PEER_SHARE) -> int:
    return max(1, int(whole * shares.get(name, 1.0)))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
