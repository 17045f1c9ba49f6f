"""The client against recorded exchanges: it sends what the API's documentation says, and reads what that answers.

kube_exchanges.json says where they are from. Each test is one of them, request and answer.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp.web
import kmock
import pytest

from lavalite.base.errors import BusyError, ConflictError, InputError, LavaLiteError, RefusedError, UnreachableError
from lavalite.providers.kubernetes.connection import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    GROUPS,
    NODES,
    PODS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    Connection,
    GoneError,
    RejectedError,
)
from lavalite.providers.kubernetes.devices import sliced_devices
from lavalite.providers.kubernetes.offers import Seen, offers_of
from lavalite.providers.kubernetes.usage import ENDED

Json = dict[str, Any]
EXCHANGES: dict[str, Json] = {
    each["name"]: each
    for each in json.loads((Path(__file__).parent / "kube_exchanges.json").read_text())["exchanges"]
}


class Played(kmock.RawHandler):
    """Answers with the exchanges of these names, one after the other, where just their requests come."""

    def expect(self, *names: str) -> None:
        self.expected = [EXCHANGES[name] for name in names]

    async def _handle(self, request: kmock.Request) -> aiohttp.web.StreamResponse:
        exchange = self.expected.pop(0)
        asked = {
            "method": request.method.value,
            "path": request.url.path,
            "query": dict(request.params),
            "body": json.loads(request.body) if request.body else None,
        }
        assert asked == exchange["request"]
        assert request.headers["Authorization"] == "Bearer recorded"
        answer = exchange["response"]
        if "lines" in answer:
            body = b"".join(json.dumps(line).encode() + b"\n" for line in answer["lines"])
        else:
            body = answer["body"].encode() if isinstance(answer["body"], str) else json.dumps(answer["body"]).encode()
        return aiohttp.web.Response(body=body, status=answer["status"], headers=answer["headers"])


@pytest.fixture
async def server() -> AsyncIterator[Played]:
    async with Played(strict=True) as played, kmock.Server(played):
        yield played
        assert not played.expected, "a request that was to come did not"


@pytest.fixture
async def connection(server: Played, tmp_path: Path) -> AsyncIterator[Connection]:
    document = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": str(server.url)}}],
        "users": [{"name": "u", "user": {"token": "recorded"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "planner"}}],
    }
    (tmp_path / "config").write_text(json.dumps(document))
    opened = Connection.open("", tmp_path / "config", timeout_seconds=5)
    yield opened
    await opened.close()


def body_of(name: str) -> Json:
    found: Json = json.loads(json.dumps(EXCHANGES[name]["request"]["body"]))
    return found


async def test_nodes_are_listed_and_read(server: Played, connection: Connection) -> None:
    server.expect("list nodes")
    nodes = await connection.list_all(NODES)
    assert nodes is not None
    (offer,) = offers_of(Seen(nodes, []), frozenset())
    assert (offer.node, offer.boot_id) == ("gpu-1", "0f2fd5a4-6d0f-4b3f-8f4d-0f7a4e3c8e01")
    assert (offer.amount("cpu"), offer.amount("memory")) == (95500, 1050000 << 20)
    assert [gpu.id for gpu in offer.devices("gpu")] == [f"gpu-1/gpu-{n}" for n in range(8)]
    assert {(gpu.model, gpu.memory_bytes) for gpu in offer.devices("gpu")} == {("NVIDIA H100 80GB HBM3", 81559 << 20)}


async def test_long_lists_come_in_pages(server: Played, connection: Connection) -> None:
    server.expect("list pods, first page", "list pods, second page")
    pods = await connection.list_all(PODS, everywhere=True, without={"status.phase": ENDED})
    assert [pod["metadata"]["name"] for pod in pods or []] == ["coredns", "metrics"]


async def test_slices_are_read(server: Played, connection: Connection) -> None:
    server.expect("list slices")
    (gpu,) = sliced_devices(await connection.list_all(RESOURCE_SLICES) or [], frozenset(), frozenset())["gpu-1"]
    assert (gpu.id, gpu.model) == ("GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c", "NVIDIA H100 80GB HBM3")
    assert (gpu.memory_bytes, gpu.pci_address) == (81559 << 20, "0000:5e:00.0")
    assert gpu.attributes == {"driver": "gpu.nvidia.com", "claimed": "gpu-1/gpu-0", "pcie": "pci0000:5d"}


async def test_objects_are_made_and_changed_by_version(server: Played, connection: Connection) -> None:
    server.expect("get what is not there", "create", "replace", "create a claim")
    assert await connection.get(CONFIG_MAPS, "lavalite-groups") is None
    made = await connection.create(CONFIG_MAPS, body_of("create"))
    assert made["metadata"]["resourceVersion"] == "7021"
    changed = await connection.replace(CONFIG_MAPS, body_of("replace"))
    assert changed is not None and changed["metadata"]["resourceVersion"] == "7022"
    await connection.create(RESOURCE_CLAIMS, body_of("create a claim"))


async def test_ends_are_asked_for(server: Played, connection: Connection) -> None:
    server.expect("delete", "evict", "scale")
    assert await connection.delete(DEPLOYMENTS, "lavalite-a")
    assert await connection.evict("lavalite-a-x2x9p")
    assert await connection.scale("lavalite-a", 0)


async def test_a_watch_goes_on_until_history_is_gone(server: Played, connection: Connection) -> None:
    server.expect("watch until history is gone")
    seen = []
    with pytest.raises(GoneError):
        async for kind, obj in connection.watch(CONFIG_MAPS, version="7022", name="lavalite-groups"):
            seen.append((kind, obj["data"]["change"]))
    assert seen == [("MODIFIED", "2")]


async def test_a_kind_that_is_not_there_is_none(server: Played, connection: Connection) -> None:
    server.expect("no such kind")
    assert await connection.list_all(GROUPS) is None


Call = Callable[[Connection], Awaitable[Any]]


@pytest.mark.parametrize(
    ("name", "call", "error", "said"),
    [
        ("create what is there", lambda c: c.create(CONFIG_MAPS, body_of("create")), ConflictError, "already exists"),
        ("replace what has changed", lambda c: c.replace(CONFIG_MAPS, body_of("replace")), ConflictError, "modified"),
        (
            "delete of one version",
            lambda c: c.delete(CONFIG_MAPS, "lavalite-nodes-a", version="12"),
            ConflictError,
            "precondition",
        ),
        ("evict against a budget", lambda c: c.evict("lavalite-a-x2x9p"), BusyError, "wait"),
        ("too many requests", lambda c: c.list_all(NODES), BusyError, "wait"),
        ("forbidden", lambda c: c.list_all(RESOURCE_SLICES), RefusedError, "let us list resourceslices"),
        ("not known", lambda c: c.list_all(NODES), RefusedError, "does not know us"),
        ("failed", lambda c: c.list_all(NODES), UnreachableError, "500"),
        ("not accepted", lambda c: c.create(CONFIG_MAPS, body_of("create")), RejectedError, "is invalid"),
    ],
)
async def test_errors_are_typed(
    server: Played, connection: Connection, name: str, call: Call, error: type[LavaLiteError], said: str
) -> None:
    server.expect(name)
    with pytest.raises(error, match=said) as caught:
        await call(connection)
    assert type(caught.value) is error
    if isinstance(caught.value, BusyError):
        assert caught.value.retry_after_seconds == (7 if name == "too many requests" else 1)


async def test_nobody_answers(tmp_path: Path) -> None:
    document = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    (tmp_path / "config").write_text(json.dumps(document))
    connection = Connection.open("", tmp_path / "config", timeout_seconds=1)
    with pytest.raises(UnreachableError, match="does not answer: list nodes"):
        await connection.list_all(NODES)
    await connection.close()


async def test_no_cluster_is_configured(tmp_path: Path) -> None:
    for text in ("{}", "clusters: []\ncontexts: []\n", "["):
        (tmp_path / "config").write_text(text)
        with pytest.raises(InputError, match="no Kubernetes cluster is configured"):
            Connection.open("", tmp_path / "config")
    with pytest.raises(InputError, match="not found"):
        Connection.open("", tmp_path / "nowhere")
