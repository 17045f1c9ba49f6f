"""Leaders that die, freeze and come back, on real etcd: nothing is lost, nothing runs twice, nothing is done late."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import until
from etcd_server import EtcdServer
from whole import Whole

from lavalite.model.job import Array, Request

pytestmark = pytest.mark.etcd


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield {"kind": "etcd", "endpoints": server.endpoints}


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def test_a_killed_leader_loses_and_repeats_nothing(tmp_path: Path, store: dict[str, Any]) -> None:
    """200 sleeping tasks; the leading LIM and its mbatchd are killed while they run. Each runs exactly once."""
    witness = tmp_path / "witness"
    script = f'echo "$LAVALITE_TASK" >> {witness}; sleep 0.$((LAVALITE_TASK % 5 + 3))'
    with Whole(tmp_path / "c", {"n1": 9, "n2": 5, "n3": 1}, store=store).running() as cluster:
        first = await cluster.serving()
        before = (await first.leader()).epoch
        assert before is not None
        job = cluster.submit(
            first,
            ["/bin/sh", "-c", script],
            array=Array(first=1, last=200),
            request=Request(cpu_milli=100),
            rerunnable=True,
        )
        await until(lambda: _holds(len(lines(witness)) >= 20), 30, "twenty tasks have started")

        os.kill(cluster.scheduler_pid(first), signal.SIGKILL)
        first.kill()
        started_at_kill = len(lines(witness))
        second = await cluster.serving(above=before, nodes=2)
        after = (await second.leader()).epoch
        assert started_at_kill < 200, "the leader was to die in the middle"
        assert after is not None and after > before

        first.start()  # its node's agent finds the new leader through its own LIM
        done = await cluster.ended(second, job, 90)
        ran = Counter(lines(witness))
        assert {task: count for task, count in ran.items() if count != 1} == {}, "a task ran twice"
        assert len(lines(witness)) == 200
        assert (done.state, done.counts) == ("succeeded", {"succeeded": 200})
        recorded = cluster.tasks(second, job)
        assert sorted(task.index for task in recorded) == list(range(1, 201))
        assert {(task.state, task.attempt, task.exit_code) for task in recorded} == {("succeeded", 1, 0)}
        with cluster.client(second) as client:
            assert list(client.commitments()) == []


async def test_a_deposed_scheduler_commits_and_dispatches_nothing(tmp_path: Path, store: dict[str, Any]) -> None:
    """A leader frozen past its lease wakes with work waiting. Its first transaction is refused, and it ends."""
    witness = tmp_path / "witness"
    with Whole(tmp_path / "c", {"n1": 9, "n2": 5}, store=store).running() as cluster:
        first = await cluster.serving()
        before = (await first.leader()).epoch
        assert before is not None
        held = cluster.submit(first, ["/bin/sh", "-c", f"echo held >> {witness}"], hold=True)
        scheduler = cluster.scheduler_pid(first)
        os.kill(scheduler, signal.SIGSTOP)
        first.pause()
        # Asked of the frozen one: it will find this in its socket when it wakes.
        late = asyncio.create_task(asyncio.to_thread(_ask_late, cluster, first, held))

        second = await cluster.serving(above=before, nodes=1)
        with cluster.client(second) as client:
            revision = client.status().store["revision"]
        os.kill(scheduler, signal.SIGCONT)  # the LIM stays frozen: nobody tells the scheduler that it is over
        await until(lambda: _holds(not _alive(scheduler)), 15, "the deposed scheduler ends")
        await late
        assert lines(witness) == []
        with cluster.client(second) as client:
            assert client.job(held).state == "pending", "what a deposed leader was asked has not happened"
            assert client.status().epoch == (await second.leader()).epoch
            assert client.status().store["revision"] >= revision
        assert "mbatchd ends" in first.scheduler_log
        with cluster.client(second) as client:
            client.release(held)
        assert (await cluster.ended(second, held)).state == "succeeded"
        assert lines(witness) == ["held"]


def _ask_late(cluster: Whole, lim: Any, job: int) -> None:
    try:
        with cluster.client(lim) as client:
            client.release(job)
    except Exception as error:  # refused, or cut off: both are right
        print("the deposed scheduler answered:", error)


async def _holds(value: bool) -> bool:
    return value


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
