"""A token in a file: what of it is read, what is kept, and how it gets there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lavalite.cluster.plugins.module_utils import _tokenfile
from ansible_collections.lavalite.cluster.plugins.module_utils._lim import LeaderSource
from ansible_collections.lavalite.cluster.plugins.modules import token

from lavalite.wire.tokens import NodeKey, issue_token

EPOCH = (0, 7)
NOW = 1_790_000_000.0


def issued(folder: Path, *, epoch: tuple[int, int] = EPOCH, now: float = NOW, uid: int = -1) -> str:
    """As a LIM would issue it, for 300 seconds."""
    key = NodeKey.load_or_create(folder / "node.key")
    subject = f"user:ann:{os.geteuid() if uid < 0 else uid}:100"
    return issue_token(key, "n1", subject, "api", epoch, now)[0]


@pytest.fixture
def lim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A LIM that gives a token for each that it is asked for; those that it gave."""
    given: list[str] = []

    def ask(self: Any, *frames: dict[str, Any]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = [{"api_url": "http://n1", "epoch": list(EPOCH)}]
        for _frame in frames[1:]:
            given.append(issued(tmp_path, now=NOW + len(given)))
            answers.append({"token": given[-1], "expires_at": NOW + 300})
        return answers

    monkeypatch.setattr(LeaderSource, "ask", ask)
    monkeypatch.setattr(token.time, "time", lambda: NOW)
    return given


def bring(path: Path, check_mode: bool = False, **params: Any) -> dict[str, Any]:
    asked = {"path": str(path), "lim_socket": "x", "valid_for": 120, "connect_timeout": 30.0} | params
    result: dict[str, Any] = token.bring_to_state(asked, check_mode)
    return result


def test_what_a_token_says_of_itself_is_read_as_it_was_issued(tmp_path: Path) -> None:
    claims = _tokenfile.claims_of(issued(tmp_path))
    assert (claims["aud"], claims["epoch"], claims["expires_at"]) == ("api", [0, 7], NOW + 300)


@pytest.mark.parametrize("text", ["", "v4.public.", "v4.public.AAAA.AAAA", "v4.public.%%%", "v4.local.x", "é" * 5000])
def test_what_is_no_token_says_nothing(text: str) -> None:
    assert _tokenfile.claims_of(text) == {}


def test_one_that_will_do_is_left_alone(tmp_path: Path, lim: list[str]) -> None:
    path = tmp_path / "token"
    foretold = bring(path, True)
    assert foretold["changed"] and not path.exists() and "expires_at" not in foretold
    made = bring(path)
    assert made == foretold | {"expires_at": NOW + 300}
    assert path.read_text() == lim[0] + "\n" and path.stat().st_mode & 0o777 == 0o600
    again = bring(path)
    assert (again["changed"], again["expires_at"], len(lim)) == (False, NOW + 300, 1)
    assert again["diff"]["before"] == again["diff"]["after"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "node.key", path]


@pytest.mark.parametrize(
    ("made", "mode"),
    [
        ({}, 0o640),
        ({"epoch": (0, 6)}, 0o600),
        ({"now": NOW - 200}, 0o600),
        ({"uid": 4_000_000}, 0o600),
    ],
    ids=["readable", "another leader's", "about to expire", "another user's"],
)
def test_one_that_will_not_do_is_replaced(tmp_path: Path, lim: list[str], made: dict[str, Any], mode: int) -> None:
    path = tmp_path / "token"
    path.write_text(issued(tmp_path, **made))
    path.chmod(mode)
    assert bring(path, True)["changed"] and path.stat().st_mode & 0o777 == mode
    assert bring(path)["changed"]
    assert path.read_text() == lim[0] + "\n" and path.stat().st_mode & 0o777 == 0o600


def test_no_token_is_in_a_result_or_in_a_difference(tmp_path: Path, lim: list[str]) -> None:
    told = [bring(tmp_path / "token", check_mode) for check_mode in (True, False, False)]
    assert "v4.public" not in repr(told)


def test_what_is_no_file_is_not_replaced(tmp_path: Path, lim: list[str]) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "token").symlink_to("elsewhere")
    for path in (tmp_path / "token", tmp_path):
        with pytest.raises(token.ApiError, match=f"path: {path}: it is no plain file"):
            bring(path)
    assert (tmp_path / "elsewhere").read_text() == "kept" and lim == []
