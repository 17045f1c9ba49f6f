"""That limits hold: a worker with a kernel of its own, deployed as the roles do it, and jobs that go too far.

The host is emulated, some ten times slower than this machine: one serves all tests, which leave it as they found it.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator

import pytest
from deployed import Cluster
from lab import Lab

pytestmark = [pytest.mark.lab(kernel=True), pytest.mark.slow, pytest.mark.timeout(900)]

NODE, UID = "n1", 5000
MIB = 1024**2
MAX_TASKS = 200
UNTIL_TOLD = "while [ ! -e ~/{} ]; do sleep 0.5; done"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Lab([NODE], kernels=[NODE]) as lab:
        lab.run(NODE, f"groupadd --gid 5001 crew && useradd --uid {UID} --groups crew --create-home ada")
        settings = f"max_tasks: {MAX_TASKS}\n"
        with Cluster(
            tmp_path_factory.mktemp("cluster"), lab, NODE, uid=UID, agent_settings=settings
        ).running() as made:
            yield made


def test_the_kernel_is_its_own_and_can_limit(cluster: Cluster) -> None:
    controllers = cluster.run("cat /sys/fs/cgroup/cgroup.controllers").split()
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(controllers)


def test_one_takes_more_memory_than_asked_and_its_neighbour_does_not_notice(cluster: Cluster) -> None:
    neighbour = cluster.submit(UNTIL_TOLD.format("go"), memory_bytes=64 * MIB)
    cluster.running_task(neighbour)
    # One that sleeps, and a program that keeps all it reads.
    greedy = cluster.end(cluster.submit("sleep 601 & tail /dev/zero", memory_bytes=48 * MIB))
    assert (greedy.state, greedy.exit_code) == ("failed", -signal.SIGKILL)
    assert greedy.reason == "memory limit of 48MiB exceeded"
    assert cluster.run("pgrep -fx 'sleep 601' || true") == "", "all of it goes, not the largest process alone"
    assert "oom_kill 0\n" in cluster.cgroup(neighbour, "memory.events")
    cluster.run("touch ~ada/go")
    spared = cluster.end(neighbour)
    assert (spared.state, spared.exit_code, spared.attempt) == ("succeeded", 0, 1)


def test_files_in_memory_count(cluster: Cluster) -> None:
    """They outlive its processes and fill its limit: whatever notes its end has no memory left there."""
    full = cluster.end(cluster.submit("head -c 100M /dev/zero > /dev/shm/left", memory_bytes=48 * MIB))
    cluster.run("rm /dev/shm/left")
    assert (full.state, full.reason) == ("failed", "memory limit of 48MiB exceeded")


def test_half_a_core_is_half_a_core(cluster: Cluster) -> None:
    job = cluster.submit("for each in 1 2; do while :; do :; done & done; wait", cpu_milli=500, memory_bytes=48 * MIB)
    cluster.running_task(job)
    look = f"cat /proc/uptime {shlex.quote(cluster.cgroup_path(job))}/cpu.stat"
    before, after = (_usage(said) for said in cluster.run(f"{look}; echo; sleep 6; {look}").split("\n\n"))
    cluster.cancel(job)
    used = (after["usage_usec"] - before["usage_usec"]) / 1e6 / (after["uptime"] - before["uptime"])
    throttled = (after["nr_throttled"] - before["nr_throttled"]) / (after["nr_periods"] - before["nr_periods"])
    print(f"{used:.3f} cores used, throttled in {throttled:.0%} of the periods")
    # Two loops on two cores, so 2.0 without a limit. The kernel hands out time in slices of 5 ms for periods of 100.
    assert 0.35 <= used <= 0.6 and throttled > 0.5
    assert cluster.end(job).state == "cancelled"


def _usage(said: str) -> dict[str, float]:
    uptime, *lines = said.strip().splitlines()
    return {"uptime": float(uptime.split()[0])} | {name: float(value) for name, value in map(str.split, lines)}
