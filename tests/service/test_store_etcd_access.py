"""EtcdStore with TLS on both sides, and with etcd's own users."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from authority import Authority
from etcd_server import EtcdServer, EtcdTls
from store_watching import Watching

from lavalite.base.clock import SystemClock
from lavalite.store.base import Put, StoreUnavailable
from lavalite.store.etcd import EtcdStore
from lavalite.store.open import StoreConfig, open_store

pytestmark = pytest.mark.etcd


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_both_sides_show_certificates(tmp_path: Path, host: str) -> None:
    authority = Authority(tmp_path)
    ca_path = authority.ca_path
    server_cert, server_key = authority.issue("server")
    cert_path, key_path = authority.issue("client")
    with EtcdServer(tmp_path / "data", tls=EtcdTls(ca_path, server_cert, server_key)) as etcd:
        endpoint = f"{host}:{etcd.endpoints[0].rpartition(':')[2]}"
        config = StoreConfig(
            kind="etcd", endpoints=(endpoint,), ca_path=ca_path, cert_path=cert_path, key_path=key_path
        )
        store = await open_store(config, SystemClock())
        assert (await store.txn([], [Put("/k", b"")])).succeeded
        assert (await store.status()).endpoint == f"https://{endpoint}"
        await store.close()
        other_ca = Authority(tmp_path / "other").ca_path
        stranger = await EtcdStore.open([endpoint], clock=SystemClock(), ca_path=other_ca, timeout_seconds=2)
        with pytest.raises(StoreUnavailable):
            await stranger.get("/k")
        await stranger.close()


def ask(endpoint: str, path: str, **body: object) -> None:
    request = urllib.request.Request(f"http://{endpoint}/v3/auth/{path}", json.dumps(body).encode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        answer.read()


async def test_users_log_in_again_when_their_token_runs_out(tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "data", arguments=("--auth-token-ttl", "1")) as etcd:
        endpoint = etcd.endpoints[0]
        for user in ("root", "lavalite"):
            ask(endpoint, "user/add", name=user, password="secret")
        ask(endpoint, "role/add", name="root")
        ask(endpoint, "user/grant", user="root", role="root")
        ask(endpoint, "role/add", name="lavalite")
        # /lavalite/ to /lavalite0, in base64
        permission = {"permType": "READWRITE", "key": "L2xhdmFsaXRlLw==", "range_end": "L2xhdmFsaXRlMA=="}
        ask(endpoint, "role/grant", name="lavalite", perm=permission)
        ask(endpoint, "user/grant", user="lavalite", role="lavalite")
        ask(endpoint, "enable")
        (tmp_path / "password").write_text("secret\n")
        config = StoreConfig(
            kind="etcd", endpoints=(endpoint,), username="lavalite", password_path=tmp_path / "password"
        )
        store = await open_store(config, SystemClock())
        start = (await store.txn([], [Put("/lavalite/k", b"")])).revision
        with pytest.raises(StoreUnavailable, match="may not touch"):
            await store.get("/elsewhere")
        async with Watching(store, "/lavalite/", start) as seen:
            await seen.until(lambda: seen.revision == start)
            assert isinstance(store, EtcdStore)
            store._members._token = "used.up"
            last = (await store.txn([], [Put("/lavalite/k", b"")])).revision
            await seen.until(lambda: seen.revision == last, 3)
        store._members._token = "used.up"
        async with Watching(store, "/lavalite/", start) as seen:
            await seen.until(lambda: seen.revision == last, 3)
        with pytest.raises(StoreUnavailable, match="may not touch"):
            await anext(store.watch("/elsewhere", 1))
        await store.close()
        (tmp_path / "password").write_text("wrong")
        store = await open_store(config, SystemClock())
        with pytest.raises(StoreUnavailable, match="refused the user name or password"):
            await store.get("/lavalite/k")
        await store.close()
        nobody = await EtcdStore.open([endpoint], clock=SystemClock())
        with pytest.raises(StoreUnavailable, match="wants a user name"):
            await nobody.get("/lavalite/k")
        await nobody.close()
