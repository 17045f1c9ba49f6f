"""Where ledgers of compute groups are kept: fixtures that open a store, or a ledger, as often as a test likes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from etcd_server import EtcdServer
from kube_api import kubeconfig, running_api
from memory_ledger import MemoryLedger, World

from lavalite.base.clock import SystemClock
from lavalite.groups.kubernetes.ledger import KubernetesLedger
from lavalite.groups.ledger import GroupLedger
from lavalite.groups.store_ledger import StoreLedger
from lavalite.providers.kubernetes.connection import Connection
from lavalite.store.base import Store
from lavalite.store.open import StoreConfig, open_store

OpenStore = Callable[[], Awaitable[Store]]
OpenLedger = Callable[[], Awaitable[GroupLedger]]
DEADLINE_SECONDS = 30.0
SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def etcd_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd.endpoints[0]


@pytest.fixture(params=["sqlite", pytest.param("etcd", marks=pytest.mark.etcd)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    """Opens the store once more, as another process would."""
    config = StoreConfig(kind="sqlite", path=tmp_path / "store.db")
    if request.param == "etcd":
        config = StoreConfig(kind="etcd", endpoints=(request.getfixturevalue("etcd_endpoint"),))
    async with AsyncExitStack() as stack:

        async def opened() -> Store:
            found = await open_store(config, SystemClock())
            stack.push_async_callback(found.close)
            return found

        yield opened


@pytest.fixture
def cluster() -> str:
    return uuid.uuid4().hex


LEDGERS = ["memory", "sqlite", pytest.param("etcd", marks=pytest.mark.etcd), "computegroups", "configmaps"]
"""The last two are of a played Kubernetes, with and without our own kind of objects."""


@pytest.fixture(params=LEDGERS)
async def open_ledger(request: pytest.FixtureRequest, tmp_path: Path, cluster: str) -> AsyncIterator[OpenLedger]:
    """Opens the ledger once more, as another process would."""
    world = World()
    config = StoreConfig(kind="sqlite", path=tmp_path / "store.db")
    if request.param == "etcd":
        config = StoreConfig(kind="etcd", endpoints=(request.getfixturevalue("etcd_endpoint"),))
    async with AsyncExitStack() as stack:
        if request.param in ("computegroups", "configmaps"):
            api = await stack.enter_async_context(running_api())
            if request.param == "configmaps":
                del api.kinds["lavalite.io", "computegroups"]

        async def opened() -> GroupLedger:
            if request.param == "memory":
                return MemoryLedger(world)
            if request.param in ("computegroups", "configmaps"):
                connection = Connection.open("", kubeconfig(api, tmp_path))
                played = await KubernetesLedger.open(connection, SystemClock())
                assert played.where == request.param
                stack.push_async_callback(played.close)
                return played
            ledger = StoreLedger(await open_store(config, SystemClock()), cluster, clock=SystemClock())
            stack.push_async_callback(ledger.close)
            return ledger

        yield opened
