"""EtcdStore while members are killed, frozen and full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from etcd_server import EtcdServer
from ports import free_ports
from store_watching import Watching

from lavalite.base.clock import SystemClock
from lavalite.base.errors import InputError
from lavalite.store.base import Compacted, OutcomeUnknown, Put, StoreUnavailable, TxnResult, range_all
from lavalite.store.etcd import EtcdStore

pytestmark = pytest.mark.etcd

T = TypeVar("T")


@asynccontextmanager
async def opened(endpoints: list[str], timeout_seconds: float = 3.0) -> AsyncIterator[EtcdStore]:
    store = await EtcdStore.open(endpoints, clock=SystemClock(), timeout_seconds=timeout_seconds)
    try:
        yield store
    finally:
        await store.close()


async def until_done(call: Callable[[], Awaitable[T]], seconds: float = 60.0) -> T:
    """The first answer of `call`, asked again through outages."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await call()
            except (StoreUnavailable, OutcomeUnknown):
                await asyncio.sleep(0.02)


async def timed(call: Awaitable[T]) -> tuple[T, float]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    return await call, loop.time() - start


@pytest.mark.kills_etcd
async def test_a_watch_goes_on_over_kill_and_restart(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as etcd:
        async with opened(etcd.endpoints) as store, opened(etcd.endpoints) as watcher:
            acknowledged: set[int] = set()
            stop = asyncio.Event()

            async def write() -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    value = str(number).encode()
                    try:
                        puts = [Put("/w/left", value), Put("/w/right", value)]
                        acknowledged.add((await store.txn([], puts)).revision)
                    except (StoreUnavailable, OutcomeUnknown):
                        await asyncio.sleep(0.02)

            async with Watching(watcher, "/w/", 1) as seen:
                writing = asyncio.create_task(write())
                for _ in range(2):
                    count = len(acknowledged)
                    await seen.until(lambda count=count: len(seen.batches) > count // 2 + 5)
                    await asyncio.to_thread(etcd.kill)
                    await asyncio.to_thread(etcd.restart)
                    before = len(acknowledged)
                    await seen.until(lambda before=before: len(acknowledged) > before + 5)
                stop.set()
                await writing
                await seen.until(lambda: seen.revision >= max(acknowledged))
                seen.check_order()
                assert acknowledged <= seen.revisions
                final, _ = await range_all(store, "/w/")
                assert seen.replay([]) == {record.key: record.value for record in final}
                assert len({record.value for record in final}) == 1


async def test_a_frozen_follower_costs_one_deadline_at_most(tmp_path: Path) -> None:
    with EtcdServer(tmp_path, members=3) as etcd:
        leader = etcd.leader()
        follower = (leader + 1) % 3
        endpoints = [etcd.endpoints[i] for i in (follower, leader, (leader + 2) % 3)]
        async with opened(endpoints, timeout_seconds=12) as store, opened(endpoints) as watcher:
            store._members.probe_after_seconds = 0
            lease_id = await store.lease_grant(60)
            start = (await store.txn([], [Put("/f/k", b"1")])).revision
            async with Watching(watcher, "/f/", start) as seen:
                await seen.until(lambda: seen.revision >= start)
                etcd.pause(follower)
                result, seconds = await timed(store.txn([], [Put("/f/k", b"2")]))
                assert result.succeeded
                assert seconds < 12, "a third of the deadline for the frozen one, the rest for the others"
                assert store._members.in_use == f"http://{endpoints[1]}"
                record, seconds = await timed(store.get("/f/k"))
                assert record is not None
                assert record.value == b"2"
                assert seconds < 4, "the frozen member was tried again"
                assert await store.lease_keepalive(lease_id) == 60
                await seen.until(lambda: seen.revision >= result.revision)
                seen.check_order()
                etcd.resume(follower)
        assert etcd.endpoints[follower] == endpoints[0]


async def test_a_frozen_leader_is_replaced_and_calls_go_on(tmp_path: Path) -> None:
    with EtcdServer(tmp_path, members=3) as etcd:
        leader = etcd.leader()
        endpoints = [etcd.endpoints[(leader + i) % 3] for i in range(3)]
        async with opened(endpoints) as store, opened(endpoints) as watcher:
            start = (await store.txn([], [Put("/l/k", b"1")])).revision
            async with Watching(watcher, "/l/", start) as seen:
                await seen.until(lambda: seen.revision >= start)
                etcd.pause(leader)
                result = await until_done(lambda: store.txn([], [Put("/l/k", b"2")]))
                await seen.until(lambda: seen.revision >= result.revision)
                seen.check_order()


async def test_a_silent_server_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as etcd:
        async with opened(etcd.endpoints, timeout_seconds=1.0) as store:
            before = (await store.txn([], [Put("/u/k", b"1")])).revision
            store._members.probe_after_seconds = float("inf")
            etcd.pause()
            with pytest.raises(OutcomeUnknown, match="did not answer in time"):
                await store.txn([], [Put("/u/k", b"2")])
            with pytest.raises(StoreUnavailable):
                await store.get("/u/k")
            store._members.probe_after_seconds = 0.0
            with pytest.raises(StoreUnavailable):  # it gives no sign of life, so nothing is sent
                await store.txn([], [Put("/u/probed", b"")])
            etcd.resume()
            record = await until_done(lambda: store.get("/u/k"))
            assert record is not None
            assert (record.value, record.mod_revision) in ((b"1", before), (b"2", before + 1))
            assert await store.get("/u/probed") is None


async def test_a_call_whose_channel_is_closed_under_it_is_not_a_cancellation(tmp_path: Path) -> None:
    """gRPC raises CancelledError then, which would end the caller's task without a word."""
    with EtcdServer(tmp_path) as etcd:
        async with opened(etcd.endpoints) as store:
            assert await store.get("/k") is None
            etcd.pause()
            writing = asyncio.create_task(store.txn([], [Put("/k", b"")]))
            reading = asyncio.create_task(store.get("/k"))
            await asyncio.wait({writing, reading}, timeout=0.2)
            await store._members._members[0].close()
            results = await asyncio.gather(writing, reading, return_exceptions=True)
            assert [type(result) for result in results] == [OutcomeUnknown, StoreUnavailable]
            stopped = asyncio.create_task(store.get("/k"))
            await asyncio.wait({stopped}, timeout=0.2)
            stopped.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stopped


async def test_nobody_there_means_nothing_was_done() -> None:
    endpoints = [f"127.0.0.1:{port}" for port in free_ports(2)]
    async with opened(endpoints) as store:
        for call in (store.txn([], [Put("/k", b"")]), store.get("/k"), store.lease_grant(5)):
            with pytest.raises(StoreUnavailable, match="refused") as caught:
                await call
            assert all(endpoint in str(caught.value) for endpoint in endpoints)
    async with opened(["no-such-host.invalid:2379"]) as store:
        with pytest.raises(StoreUnavailable, match="cannot be resolved"):
            await store.get("/k")


async def test_names_and_members_that_are_down_are_passed_over(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as etcd:
        port = etcd.endpoints[0].rpartition(":")[2]
        async with opened([f"127.0.0.1:{free_ports(1)[0]}", f"localhost:{port}"]) as store:
            assert (await store.txn([], [Put("/k", b"")])).succeeded
            assert (await store.status()).endpoint == f"http://localhost:{port}"


async def test_a_full_quota_is_named_with_the_way_out(tmp_path: Path) -> None:
    with EtcdServer(tmp_path, arguments=("--quota-backend-bytes", "2000000")) as etcd:
        async with opened(etcd.endpoints) as store:

            async def fill() -> TxnResult:
                return await store.txn([], [Put(f"/q/{n}", bytes(100_000)) for n in range(10)])

            with pytest.raises(StoreUnavailable, match=r"quota is full\. .*alarm disarm"):
                for _ in range(50):
                    await fill()
            assert await store.get("/q/0") is not None


@pytest.mark.kills_etcd
async def test_a_watch_that_missed_a_compaction_says_so(tmp_path: Path) -> None:
    """It is cut off, misses changes, and these are compacted before it is back."""
    with EtcdServer(tmp_path) as etcd:
        async with opened(etcd.endpoints) as store, opened(etcd.endpoints) as watcher:
            start = (await store.txn([], [Put("/c/k", b"1")])).revision
            watch = watcher.watch("/c/", start)
            assert (await anext(watch)).revision == start
            await watcher._members._members[0].close()  # cuts the stream, which has delivered `start`
            for _ in range(5):
                last = (await store.txn([], [Put("/c/k", b"2")])).revision
            await store.compact(last)
            with pytest.raises(Compacted):
                await asyncio.wait_for(anext(watch), 60)
            await watch.aclose()


async def test_bad_certificates_are_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        await EtcdStore.open(["n01"], clock=SystemClock(), ca_path=tmp_path / "absent.pem")
    with pytest.raises(InputError, match="not an endpoint"):
        await EtcdStore.open(["n01:x"], clock=SystemClock())
