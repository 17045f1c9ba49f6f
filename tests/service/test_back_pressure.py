"""Submits are told to come again later: the commands of docs/back-pressure.md, and an etcd that runs full."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_calls import open_folder, wait_for
from etcd_server import EtcdServer
from test_planning_page import Typist
from test_readme import commands
from whole import Whole

from lavalite.api.client import Client
from lavalite.api.models import Submit
from lavalite.base.clock import SystemClock
from lavalite.base.errors import InputError, RefusedError
from lavalite.model.job import Array, JobSpec
from lavalite.store.base import Put
from lavalite.store.etcd import EtcdStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PAGE = Path(__file__).resolve().parents[2] / "docs/back-pressure.md"
HELD = Submit(spec=JobSpec(command=["true"], hold=True))


@contextmanager
def cluster_with(folder: Path, store: dict[str, Any], **config: Any) -> Iterator[tuple[Client, Path]]:
    whole = Whole(folder, {"n1": 9}, store=store)
    path = folder / "n1" / "mbatchd.conf"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | config))
    with whole.running() as cluster:
        lim = asyncio.run(cluster.serving())
        (folder / "n1").chmod(0o755)
        with cluster.client(lim) as client:
            yield client, folder


def test_the_page_on_back_pressure_is_true() -> None:
    (written,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (sentence,) = re.findall(r"```text\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    with open_folder() as folder:
        store = {"kind": "sqlite", "path": str(folder / "store.db")}
        with cluster_with(folder, store, **yaml.safe_load(written)) as (client, _):
            typist, typed = Typist(folder, client), commands(PAGE)
            for command in typed[:3]:
                typist.type(command.text)
            user = client.job(1).user
            status = typist.type(typed[3].text)
            assert re.search(rf"^submits +let in.* jobs 75 %, jobs of {user} 100 %, tasks 0 %", status, re.MULTILINE)
            assert {(room.what, room.used, room.most) for room in client.status().headroom} >= {
                ("jobs", 3, 4),
                (f"jobs of {user}", 3, 3),
                ("tasks", 1002, 5_000_000),
            }
            refused = typist.refused(typed[4].text)
            assert sentence.replace("ada", user) in refused
            for command in typed[5:]:
                typist.type(command.text)
            assert client.job(4).name == "fourth"


def test_who_waits_is_let_in_when_one_has_ended_and_who_asks_for_too_many_is_told_at_once() -> None:
    with open_folder() as folder:
        store = {"kind": "sqlite", "path": str(folder / "store.db")}
        with cluster_with(folder, store, back_pressure={"jobs": 2}, max_unfinished_tasks=50) as (client, _):
            ids = client.submit([HELD, HELD.model_copy(update={"key": "k"})]).ids
            status = client.status()
            assert "2 jobs have not ended yet, and 2 is the most." in status.refuses
            # What was let in before is answered, also now; what can never be let in is not waited for.
            assert client.submit([HELD.model_copy(update={"key": "k"})]).ids == [ids[1]]
            with pytest.raises(InputError, match="3 jobs at once, and 2 is the most that may be there"):
                client.submit([HELD] * 3)
            with pytest.raises(InputError, match="51 tasks at once, and 50 is the most"):
                spec = HELD.spec.model_copy(update={"array": Array(first=1, last=51)})
                client.submit([Submit(spec=spec)])
            found: list[int] = []
            other = Client(lambda: client._transport._find(), timeout_seconds=60)
            waiting = threading.Thread(target=lambda: found.extend(other.submit([HELD]).ids))
            waiting.start()
            client.cancel(ids[0])
            waiting.join(60)
            other.close()
            assert found == [ids[1] + 1]


@pytest.mark.etcd
def test_an_etcd_that_runs_full_refuses_submits_and_lets_jobs_end(tmp_path: Path) -> None:
    quota_bytes = 24 * 1024 * 1024
    with EtcdServer(tmp_path, arguments=("--quota-backend-bytes", str(quota_bytes))) as etcd, open_folder() as folder:
        store = {"kind": "etcd", "endpoints": etcd.endpoints, "quota_bytes": quota_bytes}
        with cluster_with(folder, store) as (client, _):
            client.submit([HELD])
            asyncio.run(fill(etcd.endpoints, quota_bytes * 83 // 100))
            refused = wait_for(lambda: client.status().refuses, 60, "mbatchd sees that the store is nearly full")
            assert re.search(r"the store has in use [89]\d % of its quota of 24MiB, and 80 % is the most\.", refused)
            room = {room.what: room for room in client.status().headroom}["store"]
            assert room.used >= room.most == quota_bytes * 80 // 100
            with pytest.raises(RefusedError, match="the store has in use"):
                client.submit([HELD])
            client.cancel(1)
            wait_for(lambda: client.job(1).state == "cancelled", 30, "the job is cancelled")


async def fill(endpoints: list[str], size_bytes: int) -> None:
    """Write so much beside what the cluster stores."""
    store = await EtcdStore.open(endpoints, clock=SystemClock())
    try:
        for number in range(2 * size_bytes // 1024**2):
            if (await store.status()).in_use_bytes >= size_bytes:
                break
            await store.txn([], [Put(f"/beside/{number}", b"x" * 512 * 1024)])
    finally:
        await store.close()
