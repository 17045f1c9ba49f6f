"""docs/parts.md is true: its commands are typed, what the API takes is placed, and what is refused is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from control_world import offer
from test_placing_page import Typist

from lavalite.control.starts import attempt_start
from lavalite.model.resources import NodeOffer

PAGE = (Path(__file__).resolve().parents[2] / "docs/parts.md").read_text()


def node(number: int) -> NodeOffer:
    return offer(f"n{number}", cpu=8, gpus=4 if number in (2, 4) else 0, rack=f"r{number // 2}")


@pytest.fixture
def typist(monkeypatch: pytest.MonkeyPatch) -> Typist:
    return Typist(monkeypatch, node)


def test_what_the_page_types_goes_where_it_says(typist: Typist) -> None:
    typed = re.findall(r"^\$ (lavalite submit .*)$", PAGE, re.MULTILINE)
    assert [typist.type(text) for text in typed] == [0, 0, 0]
    assert typist.where("train") == {"n2": 4, "n3": 1}
    assert list(typist.where("spread").values()) == [1, 1, 1]
    assert typist.where("wide") == {"n4": 4, "n5": 1}
    state = typist.world.state
    first = next(run for key, run in state.runs.items() if key == (1, 1))
    told = attempt_start(state, first, typist.world.now).environment | {"LAVALITE_TASK": str(first.key.task)}
    rows = re.findall(r"^\| (`LAVALITE_.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for names, values in rows:
        said = re.findall(r"`([^`]*)`", values)
        assert [told[name] for name in re.findall(r"`([^`]*)`", names)] == said


def test_what_the_page_says_is_refused_is(typist: Typist, capsys: pytest.CaptureFixture[str]) -> None:
    refused = re.findall(r"^\| `(--.*)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(refused) == 10
    for options, sentence in refused:
        assert typist.type(f"lavalite submit {options} -- true") == 2, options
        said = " ".join(capsys.readouterr().err.split())
        assert sentence in said, f"{options}: {said}"
    assert not typist.world.state.jobs
