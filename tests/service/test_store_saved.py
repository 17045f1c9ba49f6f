"""Backups of both stores: what was saved is read back as it was, and nothing that is not whole is taken for one."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from etcd_server import EtcdServer

from lavalite.base.clock import SystemClock
from lavalite.base.errors import InputError
from lavalite.store.base import Put, Record, Store, range_all
from lavalite.store.keys import Keys
from lavalite.store.open import StoreConfig, open_store
from lavalite.store.open_saved import read_saved
from lavalite.store.sqlite_saved import restore_sqlite, save_sqlite

KEYS = Keys("rack1")
needs_etcdctl = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="no etcdctl on PATH")


async def fill(store: Store, keys: Keys = KEYS) -> None:
    """More than a page of records, some of them rewritten and deleted, some large."""
    for first in range(0, 300, 100):
        await store.txn([], [Put(f"{keys.root}other/{n:04d}", b"x" * n * 40) for n in range(first, first + 100)])
    await store.txn([], [Put(keys.job_counter, b"0")], [f"{keys.root}other/{n:04d}" for n in range(0, 90, 3)])
    await store.txn([], [Put(f"{keys.root}other/0100", b"again")])


async def content(config: StoreConfig) -> tuple[list[Record], int]:
    store = await open_store(config, SystemClock())
    try:
        return await range_all(store, "/")
    finally:
        await store.close()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


def snapshot(etcd: EtcdServer, file: Path) -> Path:
    command = ["etcdctl", f"--endpoints=http://{etcd.endpoints[0]}", "snapshot", "save", str(file)]
    subprocess.run(command, check=True, capture_output=True, env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"})
    return file


def lavalite(*typed: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "lavalite.cli.main", "store", *map(str, typed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/tmp")
    assert "Traceback" not in done.stderr, done.stderr
    return done


def scheduler_config(folder: Path, store: dict[str, object]) -> Path:
    file = folder / "mbatchd.conf"
    known = {"cluster": "rack1", "node": "n1", "state_path": str(folder), "lim_socket_path": str(folder / "lim.sock")}
    file.write_text(yaml.safe_dump(known | {"store": store}))
    return file


@pytest.mark.etcd
@needs_etcdctl
async def test_a_snapshot_of_etcd_says_what_etcd_says(etcd: EtcdServer, tmp_path: Path) -> None:
    config = StoreConfig(kind="etcd", endpoints=tuple(etcd.endpoints))
    empty = read_saved(snapshot(etcd, tmp_path / "empty.db"))
    assert (empty.records, empty.revision) == ([], 1)
    store = await open_store(config, SystemClock())
    await fill(store)
    await store.compact(3)
    await store.close()
    saved = read_saved(snapshot(etcd, tmp_path / "full.db"))
    assert (saved.records, saved.revision) == await content(config)


@pytest.mark.etcd
@needs_etcdctl
async def test_a_snapshot_that_was_cut_off_or_changed_is_refused(etcd: EtcdServer, tmp_path: Path) -> None:
    whole = snapshot(etcd, tmp_path / "whole.db").read_bytes()
    chance = random.Random(7)
    at = chance.randrange(len(whole))
    spoiled = {
        "cut": whole[:-4096],
        "half": whole[: len(whole) // 2],
        "changed": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        "tail": whole[:-32],
        "nothing": b"",
        "text": b"a letter\n" * 1000,
    }
    for name, data in spoiled.items():
        file = tmp_path / name
        file.write_bytes(data)
        with pytest.raises(InputError, match="is no whole snapshot of etcd"):
            read_saved(file)
        done = lavalite("check", "--file", file)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


async def test_a_store_in_use_is_saved_as_it_is_at_one_moment(tmp_path: Path) -> None:
    config = StoreConfig(kind="sqlite", path=tmp_path / "store.db")
    store = await open_store(config, SystemClock())
    await fill(store)
    before = await range_all(store, "/")
    save_sqlite(tmp_path / "store.db", tmp_path / "saved.db")
    await store.txn([], [Put("/later", b"")])
    saved = read_saved(tmp_path / "saved.db")
    assert (saved.kind, saved.records, saved.revision) == ("sqlite", *before)
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == [
        "saved.db", "store.db", "store.db-shm", "store.db-wal"
    ]  # fmt: skip
    assert (tmp_path / "saved.db").stat().st_mode & 0o777 == 0o600
    await store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
@pytest.mark.parametrize("there", [True, False])
async def test_a_store_that_root_puts_back_is_still_its_owners(tmp_path: Path, there: bool) -> None:
    """Of the store that was there; where none was, of whose folder it is."""
    target = tmp_path / "home/store.db"
    target.parent.mkdir()
    store = await open_store(StoreConfig(kind="sqlite", path=target), SystemClock())
    await fill(store)
    await store.close()
    save_sqlite(target, tmp_path / "saved.db")
    if not there:
        target.unlink()
    for path in tmp_path.glob("home/store.db") if there else [target.parent]:
        os.chown(path, 65534, 65533)
    restore_sqlite(tmp_path / "saved.db", target)
    assert (target.stat().st_uid, target.stat().st_gid, target.stat().st_mode & 0o777) == (65534, 65533, 0o600)


async def test_a_store_that_is_put_back_begins_a_generation_that_nobody_has_seen(tmp_path: Path) -> None:
    config = scheduler_config(tmp_path, {"kind": "sqlite", "path": str(tmp_path / "store.db")})
    settings = StoreConfig(kind="sqlite", path=tmp_path / "store.db")
    store = await open_store(settings, SystemClock())
    await fill(store)
    assert lavalite("save", tmp_path / "saved.db", "--config", config).returncode == 0
    await store.txn([], [Put(f"{KEYS.root}other/later", b""), Put(KEYS.leader, b"{}"), Put(KEYS.generation, b"2")])
    in_use = lavalite("restore", tmp_path / "saved.db", "--config", config)
    assert in_use.returncode == 1 and "is in use. Stop LIM" in in_use.stderr
    await store.close()

    done = lavalite("restore", tmp_path / "saved.db", "--config", config)
    assert done.returncode == 0, done.stderr
    assert (await content(settings))[0] == read_saved(tmp_path / "saved.db").records
    kept = read_saved(tmp_path / "store.db.before-restore")
    assert KEYS.leader in {record.key for record in kept.records}

    done = lavalite("new-generation", "--above", "2", "--config", config)
    assert json.loads(done.stdout) == {"generation": 3}
    assert json.loads(lavalite("new-generation", "--config", config).stdout) == {"generation": 4}
    told = json.loads(lavalite("check", "--config", config, "-o", "json").stdout)
    assert (told["generation"], told["faults"], told["cluster"]) == (4, [], "rack1")


@pytest.mark.etcd
async def test_a_new_generation_deposes_who_leads(etcd: EtcdServer, tmp_path: Path) -> None:
    config = scheduler_config(tmp_path, {"kind": "etcd", "endpoints": etcd.endpoints})
    store = await open_store(StoreConfig(kind="etcd", endpoints=tuple(etcd.endpoints)), SystemClock())
    await store.txn([], [Put(KEYS.leader, b"{}")])
    assert json.loads(lavalite("new-generation", "--config", config).stdout) == {"generation": 1}
    assert await store.get(KEYS.leader) is None
    await store.close()


def test_what_is_no_backup_of_this_cluster_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE t (x)")
    done = lavalite("check", "--file", other)
    assert done.returncode == 2 and f"{other} is no store of LavaLite. Take another one" in done.stderr
    done = lavalite("check", "--file", tmp_path / "nowhere.db")
    assert done.returncode == 2 and "No such file" in done.stderr


async def test_a_backup_of_another_cluster_is_refused(tmp_path: Path) -> None:
    store = await open_store(StoreConfig(kind="sqlite", path=tmp_path / "store.db"), SystemClock())
    await fill(store)
    await store.close()
    save_sqlite(tmp_path / "store.db", tmp_path / "saved.db")
    assert lavalite("check", "--file", tmp_path / "saved.db", "--cluster", "rack1").returncode == 0
    done = lavalite("check", "--file", tmp_path / "saved.db", "--cluster", "rack2")
    assert done.returncode == 2 and "is a backup of rack1, and not of rack2" in done.stderr
    whole = (tmp_path / "saved.db").read_bytes()
    (tmp_path / "cut.db").write_bytes(whole[: len(whole) // 2])
    done = lavalite("check", "--file", tmp_path / "cut.db")
    assert done.returncode == 2 and "is no whole store" in done.stderr


async def test_faults_are_told_and_end_with_1(tmp_path: Path) -> None:
    config = scheduler_config(tmp_path, {"kind": "sqlite", "path": str(tmp_path / "store.db")})
    assert "there is no store" in lavalite("check", "--config", config).stderr
    store = await open_store(StoreConfig(kind="sqlite", path=tmp_path / "store.db"), SystemClock())
    await store.txn([], [Put(KEYS.generation, b"many"), Put(KEYS.job_counter, b"0")])
    await store.close()
    done = lavalite("check", "--config", config)
    assert done.returncode == 1 and "fault: the record generation is no number" in done.stdout
    save_sqlite(tmp_path / "store.db", tmp_path / "saved.db")
    assert "does not keep the law" in lavalite("restore", tmp_path / "saved.db", "--config", config).stderr
