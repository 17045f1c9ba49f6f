"""The seam to /v1, against a real server."""

from __future__ import annotations

import json
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import client_from
from ansible_collections.lavalite.cluster.plugins.module_utils._client import Client, connect_unix, path_of
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError, UnreachableError
from ansible_collections.lavalite.cluster.plugins.module_utils._lim import LeaderSource


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_the_first_endpoint_that_serves_is_used(api: Any) -> None:
    api.answer = lambda *_: (200, {}, {"cluster": "c"})
    client = Client(urls=[closed_port(), api.url], token="t", patience_seconds=0)
    assert client.get("/v1/status").body == {"cluster": "c"}
    assert api.asked == [("GET", "/v1/status", "Bearer t", None)]


def test_a_backup_leads_to_the_leader_and_the_write_arrives_whole(api: Any, second_api: Any) -> None:
    api.answer = lambda _m, path, *_: (307, {"Location": second_api.url + path}, {})
    second_api.answer = lambda *_: (200, {}, {"changed": True})
    answer = Client(urls=[api.url], token="t").put("/v1/definition", {"text": "x"}, {"dry_run": "true"})
    assert answer.body == {"changed": True}
    assert second_api.asked == [("PUT", "/v1/definition?dry_run=true", "Bearer t", {"text": "x"})]


def test_backups_that_point_at_each_other_end(api: Any, second_api: Any) -> None:
    api.answer = lambda _m, path, *_: (307, {"Location": second_api.url + path}, {})
    second_api.answer = lambda _m, path, *_: (307, {"Location": api.url + path}, {})
    with pytest.raises(UnreachableError, match="more than 5 endpoints"):
        Client(urls=[api.url], patience_seconds=0).get("/v1/status")


def test_no_leader_yet_is_asked_again(api: Any) -> None:
    fault = {"errors": [{"code": "not_leader", "message": "no leader yet"}]}
    answers = [(503, {}, fault), (200, {}, {"ok": 1})]
    api.answer = lambda *_: answers.pop(0)
    assert Client(urls=[api.url], patience_seconds=30).get("/v1/status").body == {"ok": 1}


def test_who_is_told_to_come_again_later_does_while_there_is_time(api: Any) -> None:
    fault = {"errors": [{"code": "too_many", "message": "3 jobs have not ended yet, and 3 is the most"}]}
    answers = [(429, {"Retry-After": "0"}, fault), (200, {}, {"ids": [4]})]
    api.answer = lambda *_: answers.pop(0)
    assert Client(urls=[api.url], patience_seconds=30).post("/v1/jobs", {}).body == {"ids": [4]}
    for headers in ({"Retry-After": "60"}, {}):
        api.answer = lambda *_: (429, headers, fault)  # noqa: B023  (asked before the next one)
        with pytest.raises(ApiError, match="3 is the most"):
            Client(urls=[api.url], patience_seconds=30).post("/v1/jobs", {})


def test_no_leader_is_unreachable_with_the_reason(api: Any) -> None:
    api.answer = lambda *_: (503, {}, {"errors": [{"code": "not_leader", "message": "no leader yet"}]})
    with pytest.raises(UnreachableError, match="no leader yet"):
        Client(urls=[api.url], patience_seconds=0).get("/v1/status")


def test_all_faults_are_told_each_with_its_place(api: Any) -> None:
    faults = [
        {"code": "a", "message": "is too much", "field": "pools.x", "file": "p.yml", "line": 3, "hint": "Lower it."},
        {"code": "b", "message": "is unknown", "field": "queues.y", "file": "p.yml", "line": 9},
    ]
    api.answer = lambda *_: (400, {}, {"errors": faults})
    with pytest.raises(ApiError) as caught:
        Client(urls=[api.url]).get("/v1/status")
    assert str(caught.value) == "p.yml:3: pools.x: is too much. Lower it.\np.yml:9: queues.y: is unknown."
    assert (caught.value.status, caught.value.code) == (400, "a")


def test_what_is_no_answer_of_ours_is_told_without_a_traceback(api: Any) -> None:
    api.answer = lambda *_: (500, {}, b"<html>oops")
    with pytest.raises(ApiError, match="status 500"):
        Client(urls=[api.url]).get("/v1/status")
    api.answer = lambda *_: (200, {}, b"<html>hello")
    with pytest.raises(ApiError, match="not JSON"):
        assert Client(urls=[api.url]).get("/v1/status").body


def test_collections_are_read_to_their_end(api: Any) -> None:
    def answer(_method: str, _path: str, query: str, _body: Any) -> Any:
        last = "cursor=b" in query
        return (
            200,
            {},
            {
                "items": [{"name": "c"}] if last else [{"name": "a"}, {"name": "b"}],
                "next_cursor": None if last else "b",
            },
        )

    api.answer = answer
    names = [item["name"] for item in Client(urls=[api.url]).items("/v1/hosts", {"state": "composed"})]
    assert names == ["a", "b", "c"]
    assert api.asked[1][1] == "/v1/hosts?cursor=b&limit=1000&state=composed"


def test_one_connection_is_kept_for_all_calls(api: Any) -> None:
    client = Client(urls=[api.url])
    for _call in range(5):
        client.get("/v1/status")
    assert (len(api.asked), len(api.connections)) == (5, 1)


def test_a_kept_connection_that_was_closed_meanwhile_is_opened_again(api: Any) -> None:
    client = Client(urls=[api.url], patience_seconds=0)
    client.get("/v1/status")
    client._kept[1].sock.shutdown(socket.SHUT_RDWR)
    assert client.get("/v1/status").status == 200
    assert len(api.connections) == 2


def test_a_collection_that_has_not_changed_is_one_answer(api: Any) -> None:
    api.answer = lambda *_: (304, {"ETag": '"1"'}, b"")
    assert [page.status for page in Client(urls=[api.url]).pages("/v1/hosts", etag='"1"')] == [304]


def test_what_is_not_there_is_nothing_but_a_wrong_address_is_an_error(api: Any) -> None:
    api.answer = lambda *_: (404, {}, {"errors": [{"code": "unknown_name", "message": "no host x"}]})
    assert Client(urls=[api.url]).find("/v1/hosts/x") is None
    api.answer = lambda *_: (404, {}, {"errors": [{"code": "no_such_path", "message": "nothing here"}]})
    with pytest.raises(ApiError):
        Client(urls=[api.url]).find("/v1/hosts/x")


def test_a_name_cannot_leave_its_place() -> None:
    assert path_of("hosts", "../definition?x") == "/v1/hosts/..%2Fdefinition%3Fx"


def test_a_socket_below_a_long_path_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.sock")
        listener.listen()
        connect_unix(str(folder / "s.sock"), 5).close()


def test_the_token_is_the_options_then_the_environments_then_the_files(
    api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    monkeypatch.delenv("LAVALITE_TOKEN", raising=False)
    client_from({"api": [api.url], "token_path": str(path)}).get("/v1/status")
    monkeypatch.setenv("LAVALITE_TOKEN", "from-environment")
    client_from({"api": [api.url], "token_path": str(path)}).get("/v1/status")
    client_from({"api": [api.url], "token": "given"}).get("/v1/status")
    assert [asked[2] for asked in api.asked] == ["Bearer from-file", "Bearer from-environment", "Bearer given"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing says where the API is"),
        ({"api": ["ctl1:6880"]}, "ctl1:6880 is no address of an API"),
        ({"api": ["http://x"], "token_path": "/nowhere/token"}, "/nowhere/token cannot be read"),
    ],
)
def test_options_that_make_no_client(options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAVALITE_TOKEN", raising=False)
    with pytest.raises(ApiError, match=said):
        client_from(options)


def serve_lim(path: Path, answers: dict[str, dict[str, Any]]) -> threading.Thread:
    """A LIM for one conversation."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def converse() -> None:
        with listener, listener.accept()[0] as peer, peer.makefile("rwb") as stream:
            while head := stream.read(4):
                frame = json.loads(stream.read(struct.unpack(">I", head)[0]))
                payload = json.dumps(answers[frame["type"]]).encode()
                stream.write(struct.pack(">I", len(payload)) + payload)
                stream.flush()

    thread = threading.Thread(target=converse, daemon=True)
    thread.start()
    return thread


def test_lim_says_who_leads_and_gives_a_token(api: Any, tmp_path: Path) -> None:
    answers = {
        "hello": {"type": "welcome"},
        "who_leads": {"type": "leader", "api_url": api.url},
        "ask_token": {"type": "granted", "token": "lent"},
    }
    thread = serve_lim(tmp_path / "lim.sock", answers)
    Client(leader_source=LeaderSource(str(tmp_path / "lim.sock"), 5)).get("/v1/status")
    thread.join()
    assert api.asked[0][2] == "Bearer lent"


def test_a_lim_that_refuses_is_told(tmp_path: Path) -> None:
    thread = serve_lim(tmp_path / "lim.sock", {"hello": {"type": "refused", "message": "not you"}})
    with pytest.raises(UnreachableError, match="LIM refuses: not you"):
        Client(leader_source=LeaderSource(str(tmp_path / "lim.sock"), 5), patience_seconds=0).get("/v1/status")
    thread.join()
