"""A scheduler that is ended, killed, or cannot begin: its LIM starts it again, and what runs is not disturbed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_calls import UnixHttp, open_folder, wait_for
from cluster import LimProcess
from ports import free_ports
from whole import Whole

from lavalite.api.models import Submit
from lavalite.base.errors import LavaLiteError
from lavalite.model.job import Array, JobSpec, Request


def configure(lim: LimProcess, **fields: Any) -> None:
    """Change what its scheduler is started with next."""
    path = lim.folder / "mbatchd.conf"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | fields))


def successor(whole: Whole, lim: LimProcess, before: int) -> bool:
    try:
        return whole.scheduler_pid(lim) != before
    except (OSError, IndexError):
        return False  # there is none just now


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Whole, LimProcess]]:
    with open_folder() as folder:
        store = {"kind": "sqlite", "path": str(folder / "store.db")}
        whole = Whole(folder, {"n1": 9}, store=store)
        configure(whole.lims["n1"], retention={"finished_jobs": 2})
        with whole.running():
            yield whole, asyncio.run(whole.serving())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_runs_goes_on_and_is_recorded_once(
    cluster: tuple[Whole, LimProcess], tmp_path: Path, how: signal.Signals
) -> None:
    whole, lim = cluster
    go, witness = tmp_path / "go", tmp_path / "witness"
    script = f"echo $LAVALITE_TASK >> {witness}; until [ -e {go} ]; do sleep 0.1; done"
    job = whole.submit(lim, ["/bin/sh", "-c", script], array=Array(first=1, last=5), request=Request(cpu_milli=10))
    wait_for(lambda: whole.job(lim, job).counts == {"running": 5}, 30, "all run")
    before = whole.scheduler_pid(lim)
    epoch = whole.client(lim).status().epoch
    os.kill(before, how)
    wait_for(lambda: successor(whole, lim, before), 20, "another one is started")
    asyncio.run(whole.serving())
    assert whole.client(lim).status().epoch == epoch, "the LIM leads on, and so the epoch stays"
    assert whole.job(lim, job).counts == {"running": 5}
    go.touch()
    done = asyncio.run(whole.ended(lim, job))
    assert (done.state, done.counts) == ("succeeded", {"succeeded": 5})
    assert {(task.attempt, task.exit_code) for task in whole.tasks(lim, job)} == {(1, 0)}
    assert sorted(witness.read_text().split()) == ["1", "2", "3", "4", "5"]
    with whole.client(lim) as client:
        assert list(client.commitments()) == []
        assert client.status().quarantined == 0
    assert "Traceback" not in lim.scheduler_log


def test_the_same_key_is_known_to_the_next_one(cluster: tuple[Whole, LimProcess]) -> None:
    whole, lim = cluster
    ask = [Submit(spec=JobSpec(command=["true"], hold=True), key="kept")]
    with whole.client(lim) as client:
        first = client.submit(ask).ids
        os.kill(whole.scheduler_pid(lim), signal.SIGKILL)
        again = client.submit(ask)  # the client itself waits for the next one
        assert (again.ids, again.existing) == (first, first)
        client.cancel(first[0])


def test_who_follows_does_not_keep_it_from_stopping(cluster: tuple[Whole, LimProcess]) -> None:
    whole, lim = cluster
    running, waiting = whole.submit(lim, ["sleep", "600"]), whole.submit(lim, ["true"], hold=True)
    wait_for(lambda: whole.job(lim, running).state == "running", 30, "it runs")
    before = whole.scheduler_pid(lim)
    paths = ["/v1/events", *(f"/v1/jobs/{job}/output?follow=true" for job in (running, waiting))]
    followers = [UnixHttp(lim.folder / "m" / "api.sock") for _ in paths]
    for follower, path in zip(followers, paths, strict=True):
        follower.request("GET", path)
    assert followers[0].getresponse().readline().startswith(b":")
    os.kill(before, signal.SIGTERM)
    wait_for(lambda: successor(whole, lim, before), 20, "another one is started")
    asyncio.run(whole.serving())
    for follower in followers:
        follower.close()
    assert "Traceback" not in lim.scheduler_log
    assert "mbatchd stops as asked" in lim.scheduler_log
    with whole.client(lim) as client:
        client.cancel(running)
        client.cancel(waiting)
        wait_for(lambda: not list(client.commitments()), 30, "nothing is left")


def test_finished_jobs_are_kept_for_a_while_only(cluster: tuple[Whole, LimProcess]) -> None:
    whole, lim = cluster
    jobs = []
    for _ in range(6):
        jobs.append(whole.submit(lim, ["true"]))
        asyncio.run(whole.ended(lim, jobs[-1]))  # one after the other: what ended last is what stays
    with whole.client(lim) as client:
        wait_for(
            lambda: [j.id for j in client.jobs() if j.state == "succeeded"] == jobs[-2:], 30, "the last two are left"
        )
        with pytest.raises(LavaLiteError, match=f"no job {jobs[0]}"):
            client.job(jobs[0])


def test_one_that_cannot_begin_says_why_in_a_sentence() -> None:
    """No store, then a port in use, then all is well: the LIM keeps trying."""
    with open_folder() as folder:
        store = {"kind": "sqlite", "path": str(folder / "store.db")}
        whole = Whole(folder, {"n1": 9}, store=store)
        lim = whole.lims["n1"]
        api = str(lim.config["api_url"]).removeprefix("http://")
        configure(lim, store={"kind": "etcd", "endpoints": [f"127.0.0.1:{free_ports(1)[0]}"]})
        with socket.socket() as taken, whole.running():
            host, port = api.split(":")
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind((host, int(port)))
            taken.listen()
            wait_for(lambda: "etcd" in lim.scheduler_log, 30, "it says that the store does not answer")
            configure(lim, store=store)
            wait_for(lambda: f"{port}" in lim.scheduler_log, 30, "it says that the port is taken")
            taken.close()
            asyncio.run(whole.serving())
            assert "Traceback" not in lim.scheduler_log
