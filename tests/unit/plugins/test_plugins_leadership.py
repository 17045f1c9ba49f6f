"""Who leads is told as LIM knows it, and a hand-over is done when another one leads."""

from __future__ import annotations

import json
import socketserver
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lavalite.cluster.plugins.modules.leadership import HandOverError, bring_to_state

NOBODY: dict[str, Any] = {"type": "leader", "node": ""}


def led_by(node: str, revision: int, *, mine: bool = False) -> dict[str, Any]:
    return {"type": "leader", "node": node, "epoch": [1, revision], "mine": mine}


class SmallLim:
    """A LIM that says what a test sets: `now`, and after a Resign, one look after the other, `then`."""

    def __init__(self, path: Path) -> None:
        self.now, self.then, self.resigned = NOBODY, list[dict[str, Any]](), 0
        self.refusal = ""
        lim = self

        class Conversation(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while head := self.rfile.read(4):
                    frame = json.loads(self.rfile.read(struct.unpack(">I", head)[0]))
                    payload = json.dumps(lim.answer(frame["type"])).encode()
                    self.wfile.write(struct.pack(">I", len(payload)) + payload)

        self.path = str(path)
        self._server = socketserver.ThreadingUnixStreamServer(self.path, Conversation)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def answer(self, question: str) -> dict[str, Any]:
        if question == "hello":
            return {"type": "welcome"}
        if question == "resign":
            self.resigned += 1
            return {"type": "refused", "message": self.refusal} if self.refusal else {"type": "bye"}
        if self.resigned and self.then:
            self.now = self.then.pop(0)
        return self.now

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def lim(tmp_path: Path) -> Iterator[SmallLim]:
    small = SmallLim(tmp_path / "lim.sock")
    yield small
    small.close()


def ask(lim: SmallLim | str, state: str, *, check: bool = False, timeout: int = 60) -> dict[str, Any]:
    socket = lim if isinstance(lim, str) else lim.path
    said: dict[str, Any] = bring_to_state({"state": state, "lim_socket": socket, "timeout": timeout}, check)
    return said


def test_who_leads_is_told(lim: SmallLim) -> None:
    lim.now = led_by("ctl2", 7)
    assert ask(lim, "known") == {"changed": False, "node": "ctl2", "mine": False, "epoch": [1, 7]}


def test_somebody_to_lead_is_waited_for_but_not_in_check_mode(lim: SmallLim) -> None:
    assert ask(lim, "known", check=True)["node"] == ""
    assert ask(lim, "known", timeout=0)["node"] == ""
    with pytest.raises(HandOverError, match=r"nobody is known to lead, not within 1 s\. Look at LIM"):
        ask(lim, "known", timeout=1)


def test_where_no_lim_is_nobody_leads(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.sock")
    assert ask(absent, "known", timeout=0)["node"] == ""
    assert not ask(absent, "elsewhere")["changed"]
    with pytest.raises(HandOverError, match="No such file"):
        ask(absent, "known", timeout=1)


def test_who_does_not_lead_has_nothing_to_hand_over(lim: SmallLim) -> None:
    lim.now = led_by("ctl2", 7)
    assert not ask(lim, "elsewhere")["changed"]
    assert lim.resigned == 0


def test_a_hand_over_is_done_when_another_leads(lim: SmallLim) -> None:
    mine = led_by("ctl1", 7, mine=True)
    lim.now, lim.then = mine, [mine, NOBODY, led_by("ctl2", 9)]
    checked = ask(lim, "elsewhere", check=True)
    assert (checked["changed"], checked["diff"]["after"], lim.resigned) == (True, "leads: another candidate\n", 0)
    said = ask(lim, "elsewhere")
    assert (said["changed"], said["node"], said["mine"], lim.resigned) == (True, "ctl2", False, 1)
    assert said["diff"] == {"before": "leads: ctl1\n", "after": "leads: ctl2\n"}


@pytest.mark.parametrize(
    ("then", "timeout", "sentence"),
    [
        ([NOBODY], 1, "ctl1 handed over, and nobody took over within 1 s. Look at LIM on the other candidates"),
        ([NOBODY, led_by("ctl1", 9, mine=True)], 60, "ctl1 handed over, and took over again itself."),
    ],
)
def test_a_hand_over_to_nobody_is_told(
    lim: SmallLim, then: list[dict[str, Any]], timeout: int, sentence: str
) -> None:
    lim.now, lim.then = led_by("ctl1", 7, mine=True), then
    with pytest.raises(HandOverError) as caught:
        ask(lim, "elsewhere", timeout=timeout)
    assert str(caught.value).startswith(sentence)


def test_a_lim_that_refuses_is_told(lim: SmallLim) -> None:
    lim.now, lim.refusal = led_by("ctl1", 7, mine=True), "'resign' is not answered to uid 1000"
    with pytest.raises(HandOverError, match=r"no hand-over: .*LIM refuses: 'resign' is not answered to uid 1000"):
        ask(lim, "elsewhere")
