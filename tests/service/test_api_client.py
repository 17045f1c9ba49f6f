"""The client on real sockets: it finds the leader, asks again only what may be asked again, and keeps the words.

The peer is a script of answers, not a scheduler: what counts here is what goes over the wire and how often.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports

from lavalite.api.client import Client, Target
from lavalite.api.models import Submit
from lavalite.base.errors import (
    ConflictError,
    InputError,
    LavaLiteError,
    RefusedError,
    UnknownNameError,
    UnreachableError,
)
from lavalite.model.job import JobSpec

STATUS = {"cluster": "c", "node": "n", "lim": "master", "mbatchd": "ready", "epoch": None, "version": "1"}
STATUS |= {"started_at": 1.0, "now": 2.0}
NO_LEADER = (503, {"errors": [{"code": "no_leader", "message": "this node does not lead"}]}, {})
DROP = (0, b"", {})
Answer = tuple[int, Any, dict[str, str]]


class Peer:
    """Answers each request with the next of `script` (the last one for good); remembers what was asked."""

    def __init__(self, *script: Answer, port: int = 0) -> None:
        self.script, self.heard = list(script), []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                peer.heard.append((self.command, self.path, dict(self.headers), body))
                status, answer, headers = peer.script.pop(0) if len(peer.script) > 1 else peer.script[0]
                if status == 0:
                    self.close_connection = True
                    return
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                if int(headers.get("Content-Length", len(content))) > len(content):
                    self.close_connection = True

            do_POST = do_PUT = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def peers() -> Iterator[Any]:
    made: list[Peer] = []

    def make(*script: Answer) -> Peer:
        made.append(Peer(*script))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


def client(*targets: Target, timeout_seconds: float = 30.0) -> Client:
    return Client(targets, timeout_seconds=timeout_seconds)


def ok(value: Any) -> Answer:
    return 200, value, {}


def fault(status: int, *messages: str) -> Answer:
    return status, {"errors": [{"code": "c", "message": m, "field": "f", "hint": "Do it."} for m in messages]}, {}


def test_a_backup_sends_us_to_the_leader(peers: Any) -> None:
    leader = peers(ok(STATUS))
    backup = peers((307, b"", {"Location": f"{leader.url}/v1/status"}))
    with client(Target(backup.url, "secret")) as api:
        assert api.status().node == "n"
        assert api.status().node == "n"
    assert len(backup.heard) == 1, "the leader is remembered"
    assert leader.heard[0][2]["Authorization"] == "Bearer secret"


def test_the_one_that_leads_is_found_among_several(peers: Any) -> None:
    follower, leader = peers(NO_LEADER), peers(ok(STATUS))
    with client(Target("http://127.0.0.1:1"), Target(follower.url), Target(leader.url)) as api:
        assert api.status().cluster == "c"


def test_a_moment_without_a_leader_is_waited_through(peers: Any) -> None:
    peer = peers(NO_LEADER, NO_LEADER, DROP, ok(STATUS))
    with client(Target(peer.url)) as api:
        assert api.status().cluster == "c"
    assert len(peer.heard) >= 4


def test_who_answered_once_is_waited_for_while_it_restarts(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavalite.api.transport.NOBODY_SECONDS", 0.0)  # who never answered is not waited for
    (port,) = free_ports(1)  # none that another client may be given while nobody listens there
    first = Peer((200, STATUS, {"Connection": "close"}), port=port)
    rounds = 0

    def find() -> list[Target]:
        nonlocal rounds
        rounds += 1
        if rounds == 4:
            made.append(Peer(ok(STATUS | {"node": "again"}), port=port))
        return [Target(first.url)]

    made: list[Peer] = []
    with Client(find, timeout_seconds=30.0) as api:
        assert api.status().node == "n"
        first.close()
        try:
            assert api.status().node == "again"
        finally:
            for peer in made:
                peer.close()


def busy(seconds: str) -> Answer:
    status, body, _ = fault(429, "3 jobs have not ended yet, and 3 is the most")
    return status, body, {"Retry-After": seconds}


def test_who_is_told_to_come_again_later_does(peers: Any) -> None:
    peer = peers(busy("4"), busy("0"), ok(STATUS))
    began = time.monotonic()
    with client(Target(peer.url)) as api:
        assert api.status().cluster == "c"
    assert len(peer.heard) == 3 and time.monotonic() - began >= 4


def test_who_has_no_time_to_come_again_is_told_why_at_once(peers: Any) -> None:
    peer = peers(busy("30"))
    with client(Target(peer.url), timeout_seconds=5) as api, pytest.raises(RefusedError, match="3 is the most"):
        api.status()
    assert len(peer.heard) == 1


def test_no_leader_in_time_is_unreachable_in_the_peers_words(peers: Any) -> None:
    peer = peers(NO_LEADER)
    with client(Target(peer.url), timeout_seconds=0.6) as api, pytest.raises(UnreachableError, match="does not lead"):
        api.status()


def test_nobody_there_is_unreachable_with_the_way_out() -> None:
    api = client(Target("http://127.0.0.1:1"), timeout_seconds=0.3)
    with api, pytest.raises(UnreachableError, match="lavalite up"):
        api.status()


def test_a_socket_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with client(Target(f"unix:{tmp_path}/api.sock"), timeout_seconds=0.3) as api, pytest.raises(UnreachableError):
        api.status()


def test_where_to_ask_is_looked_up_anew(peers: Any) -> None:
    leader = peers(ok(STATUS))
    places = iter([[Target("http://127.0.0.1:1")], [], [Target(leader.url)]])
    with Client(lambda: next(places)) as api:
        assert api.status().cluster == "c"


def test_a_circle_of_redirects_ends(peers: Any) -> None:
    peer = peers(ok(STATUS))
    peer.script = [(307, b"", {"Location": f"{peer.url}/v1/status"})]
    with client(Target(peer.url)) as api, pytest.raises(UnreachableError, match="circle"):
        api.status()


def test_a_token_is_not_shown_in_the_clear() -> None:
    target = Target("https://a:1", "secret")
    with pytest.raises(RefusedError):
        target.moved_to("http://b:1/v1/status")
    assert target.moved_to("https://b:1/v1/status") == Target("https://b:1", "secret")
    assert "secret" not in repr(target)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InputError),
        (401, RefusedError),
        (403, RefusedError),
        (404, UnknownNameError),
        (409, ConflictError),
        (412, ConflictError),
        (429, RefusedError),
        (500, LavaLiteError),
    ],
)
def test_errors_keep_the_servers_words(peers: Any, status: int, kind: type[LavaLiteError]) -> None:
    peer = peers(fault(status, "one is wrong", "two is wrong"))
    with client(Target(peer.url)) as api, pytest.raises(kind) as said:
        api.job(1)
    assert type(said.value) is kind
    assert str(said.value) == "f: one is wrong. Do it.\nf: two is wrong. Do it."
    assert len(peer.heard) == 1


def test_an_answer_that_is_none_of_ours_is_said_to_be_none(peers: Any) -> None:
    with client(Target(peers((200, b"<html>", {})).url)) as api, pytest.raises(LavaLiteError, match="no Status"):
        api.status()
    with client(Target(peers((418, b"<html>", {})).url)) as api, pytest.raises(LavaLiteError, match="answered 418"):
        api.status()


def test_a_submit_that_broke_off_is_sent_again_under_the_same_key(peers: Any) -> None:
    peer = peers(DROP, ok({"ids": [5]}))
    with client(Target(peer.url)) as api:
        assert api.submit([Submit(spec=JobSpec(command=["true"]))]).ids == [5]
    keys = {json.loads(body)["jobs"][0]["key"] for _, _, _, body in peer.heard}
    assert len(peer.heard) == 2
    assert len(keys) == 1
    assert keys != {""}


def test_what_must_not_happen_twice_is_not_asked_twice(peers: Any) -> None:
    peer = peers(DROP)
    with client(Target(peer.url)) as api:
        with pytest.raises(LavaLiteError, match="may or may not"):
            api.requeue(3)
        with pytest.raises(LavaLiteError, match="may or may not"):
            api.delete_entry("pools", "a")
    assert len(peer.heard) == 2


def test_pages_are_followed_to_the_last(peers: Any) -> None:
    queue = {"name": "q", "priority": 1, "policy": "best-fit"}
    peer = peers(
        ok({"items": [queue], "next_cursor": "a/b"}), ok({"items": [queue, queue], "next_cursor": None, "new": 1})
    )
    with client(Target(peer.url)) as api:
        assert len(list(api.queues())) == 3
    assert "cursor=a%2Fb" in peer.heard[1][1]


def test_output_that_breaks_off_goes_on_where_it_was(peers: Any) -> None:
    peer = peers((200, b"hello ", {"Content-Length": "11"}), (200, b"world", {}))
    with client(Target(peer.url)) as api:
        assert b"".join(api.output(1, task=3, follow=True)) == b"hello world"
    assert "offset=6" in peer.heard[1][1]
    assert "task=3" in peer.heard[1][1]


def test_names_stay_one_part_of_the_path(peers: Any) -> None:
    peer = peers(fault(404, "no such node"))
    with client(Target(peer.url)) as api, pytest.raises(UnknownNameError):
        api.node("../jobs?x=1")
    assert peer.heard[0][1] == "/v1/nodes/..%2Fjobs%3Fx%3D1"


def test_ctrl_c_is_quiet(peers: Any) -> None:
    """While it waits: for longer than a busy machine may take to get here."""
    status, answer, _ = fault(429, "busy")
    peer = peers((status, answer, {"Retry-After": "10"}))
    command = [sys.executable, "-P", "-m", "lavalite.cli.main", "status", "--api", peer.url]
    # Whoever runs the tests in the background may have them ignore it, and a child inherits that.
    heeds = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    deadline = time.monotonic() + 30
    while not peer.heard and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, out, said) == (130, "", "")
