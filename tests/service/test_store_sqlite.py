"""SqliteStore: what is special to a file that processes share."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import sys
from pathlib import Path

import pytest
from store_watching import Watching

from lavalite.base.clock import ManualClock, SystemClock
from lavalite.store.arguments import StoreClosed
from lavalite.store.base import Compacted, LeaseLost, OutcomeUnknown, Put, StoreUnavailable, range_all
from lavalite.store.sqlite import SqliteStore
from lavalite.store.sqlite_faults import refuse_network_file_system


async def opened(path: Path, **how: object) -> SqliteStore:
    return await SqliteStore.open(path, clock=SystemClock(), **how)  # type: ignore[arg-type]


async def test_records_outlive_the_store_and_nobody_else_reads_them(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    revision = (await store.txn([], [Put("/k", b"v")])).revision
    await store.close()
    store = await opened(tmp_path / "s.db")
    record = await store.get("/k")
    assert record is not None
    assert (record.value, record.mod_revision) == (b"v", revision)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.glob("s.db*") if path.is_file()} == {"0o600"}
    await store.close()
    with pytest.raises(StoreClosed):
        await store.get("/k")


async def test_a_lease_ends_with_the_boot(tmp_path: Path) -> None:
    """At once after a boot that was longer up, and else within its time."""
    clock = ManualClock()
    clock.advance(86400)
    before = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    lease_id = await before.lease_grant(60)
    await before.txn([], [Put("/k", b"", lease_id)])
    await before.close()
    store = await SqliteStore.open(tmp_path / "s.db", clock=ManualClock())
    assert await store.get("/k") is None
    with pytest.raises(LeaseLost):
        await store.lease_keepalive(lease_id)
    await store.close()


async def test_a_lease_of_a_boot_as_short_as_this_one_ends_within_its_time(tmp_path: Path) -> None:
    clock, after = ManualClock(), ManualClock()
    clock.advance(20)
    before = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    await before.txn([], [Put("/k", b"", await before.lease_grant(60))])
    await before.close()
    after.advance(30)
    store = await SqliteStore.open(tmp_path / "s.db", clock=after)
    assert await store.get("/k") is not None, "due at 80 s: that may be one of this boot"
    after.advance(50)
    assert await store.get("/k") is None
    await store.close()


async def test_a_lease_counts_its_own_clock_and_leaves_an_event(tmp_path: Path) -> None:
    clock = ManualClock()
    store = await SqliteStore.open(tmp_path / "s.db", clock=clock)
    lease_id = await store.lease_grant(10)
    start = (await store.txn([], [Put("/k", b"", lease_id)])).revision
    clock.advance(9)
    assert await store.lease_keepalive(lease_id) == 10
    clock.advance(9)
    assert await store.get("/k") is not None
    async with Watching(store, "/", start + 1) as seen:
        await store.status()  # one turn of the thread: the watch has had its first look
        clock.advance(1)
        await store.txn([], [Put("/other", b"")])
        await seen.until(lambda: seen.revision == start + 2)
        assert [change[:3] for change in seen.changes] == [(start + 1, "delete", "/k"), (start + 2, "put", "/other")]
    await store.close()


async def test_history_is_forgotten_by_itself(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db", history_revisions=100)
    for number in range(400):
        await store.txn([], [Put(f"/{number % 7}", b"x"), Put("/n", str(number).encode())])
    with sqlite3.connect(tmp_path / "s.db") as db:
        rows = db.execute("SELECT COUNT(*) FROM versions").fetchone()[0]
    assert 200 <= rows <= 2 * 111 + 8
    records, revision = await range_all(store, "/")
    assert len(records) == 8
    with pytest.raises(Compacted):
        await anext(store.watch("/", 1))
    assert (await store.range("/", at_revision=revision - 100)).records
    await store.close()


async def test_to_open_it_again_takes_no_lock_from_who_has_it_open(tmp_path: Path) -> None:
    """Without its lock, the next process that closes the file would take itself for the last, and remove its log."""
    first = await opened(tmp_path / "s.db")
    await first.txn([], [Put("/k", b"v")])
    again = await opened(tmp_path / "s.db")
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    inode = str((tmp_path / "s.db").stat().st_ino)
    assert any(lock[4] == str(os.getpid()) and lock[5].endswith(f":{inode}") for lock in locks)
    read = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA user_version'); db.close()"
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", read, str(tmp_path / "s.db"))
    assert await other.wait() == 0
    assert (tmp_path / "s.db-wal").exists()
    await again.close()
    await first.close()
    assert [path.name for path in tmp_path.iterdir()] == ["s.db"]


async def test_many_processes_create_and_fill_one_file(tmp_path: Path) -> None:
    writer = Path(__file__).with_name("store_writer.py")
    arguments = ("sqlite", str(tmp_path / "s.db"), "/w/", "20")
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, str(writer), *arguments, stdout=asyncio.subprocess.PIPE)
        for _ in range(3)
    ]
    told = [int(line) for process in processes for line in (await process.communicate())[0].splitlines()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(told) == list(range(2, 62))


async def test_the_doorbell_wakes_another_process_at_once_and_stale_ones_go(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a-folder-whose-name-makes-the-path-too-long-for-a-socket"] * 3)
    deep.mkdir(parents=True)
    reader, writer = await opened(deep / "s.db"), await opened(deep / "s.db")
    bells = deep / "s.db.bells"
    async with Watching(reader, "/", 2) as seen:
        await writer.txn([], [Put("/k", b"")])
        await seen.until(lambda: seen.revision == 2)
        assert len(list(bells.iterdir())) == 1
        heard = asyncio.Event()
        ring, reader._ring_here = reader._ring_here, heard.set  # type: ignore[method-assign]
        reader._poller.cancel()  # type: ignore[union-attr]  # without it, only the bell can wake the watch
        await writer.txn([], [Put("/k", b"")])
        await asyncio.wait_for(heard.wait(), 60)
        reader._ring_here = ring  # type: ignore[method-assign]
    assert list(bells.iterdir()) == []
    stale = bells / "1-stale"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        folder = os.open(bells, os.O_RDONLY)
        ear.bind(f"/proc/self/fd/{folder}/1-stale")
        os.close(folder)
    assert stale.exists()
    await writer.txn([], [Put("/k", b"")])
    assert not stale.exists()
    await reader.close()
    await writer.close()


# --- what can be wrong with a file -------------------------------------------------------------------------------


async def test_each_fault_of_the_file_is_said_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be taken for one " * 50)
    with sqlite3.connect(tmp_path / "foreign.db") as db:
        db.execute("CREATE TABLE t (x)")
    store = await opened(tmp_path / "newer.db")
    await store.close()
    with sqlite3.connect(tmp_path / "newer.db") as db:
        db.execute("PRAGMA user_version = 99")
    faults = {
        tmp_path / "text": "is not a SQLite database",
        tmp_path / "foreign.db": "another program's",
        tmp_path / "newer.db": "newer LavaLite",
        tmp_path / "no" / "folder" / "s.db": "cannot be opened",
        tmp_path / "text" / "s.db": "cannot be opened",
        tmp_path: "cannot be opened",
        Path("/proc/s.db"): "cannot be opened",
    }
    for path, sentence in faults.items():
        with pytest.raises(StoreUnavailable, match=sentence) as caught:
            await opened(path)
        assert caught.value.fault.hint


async def test_a_full_disk_changes_nothing_and_is_said(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    revision = (await store.txn([], [Put("/k", b"before")])).revision
    file = store._file
    assert file is not None
    file._db.execute("PRAGMA max_page_count = 10")
    with pytest.raises(StoreUnavailable, match="disk is full"):
        await store.txn([], [Put("/k", b"x" * 500_000)])
    record = await store.get("/k")
    assert record is not None
    assert (record.value, (await store.status()).revision) == (b"before", revision)
    await store.close()


async def test_a_file_held_by_another_process_is_waited_for_and_then_reported(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db", timeout_seconds=3)
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="held by another process"):
        await store.txn([], [Put("/k", b"")])
    assert await store.get("/k") is None  # readers are not stopped
    other.execute("ROLLBACK")
    assert (await store.txn([], [Put("/k", b"")])).succeeded
    other.close()
    await store.close()


async def test_a_slow_disk_tells_undone_from_unknown(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db", timeout_seconds=0.3)
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    file = store._file
    assert file is not None
    file._db.execute("PRAGMA busy_timeout = 5000")  # as if the disk hung under the running transaction
    other.execute("BEGIN IMMEDIATE")
    results = await asyncio.gather(
        store.txn([], [Put("/running", b"")]), store.txn([], [Put("/queued", b"")]), return_exceptions=True
    )
    assert [type(result) for result in results] == [OutcomeUnknown, StoreUnavailable]
    other.execute("ROLLBACK")
    other.close()
    async with asyncio.timeout(60):
        while True:
            try:
                running, queued = await store.get("/running"), await store.get("/queued")
                break
            except StoreUnavailable:
                continue
    assert running is not None
    assert queued is None
    await store.close()


def test_a_network_file_system_is_refused(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    line = "36 35 98:0 / {} rw,noatime shared:1 - {} server:/export rw\n"
    mounts.write_text(line.format("/", "ext4") + line.format(tmp_path / "a\\040b", "nfs4"))
    refuse_network_file_system(tmp_path / "s.db", mounts)
    (tmp_path / "a b").mkdir()
    with pytest.raises(StoreUnavailable, match="nfs4"):
        refuse_network_file_system(tmp_path / "a b" / "s.db", mounts)
