"""docs/placing.md is true: its commands are typed, what the API takes is placed, and what is refused is said."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from control_world import World, offer

from lavalite.api.models import Submit, SubmitBatch, Submitted
from lavalite.cli import main
from lavalite.cli.connect import Place
from lavalite.control.admission import admit
from lavalite.control.explain import explain
from lavalite.control.views import task as task_view
from lavalite.model.resources import NodeOffer

PAGE = Path(__file__).resolve().parents[2] / "docs/placing.md"
EXCLUSIVE = "## A node for itself"
"""Its commands are typed where nothing runs."""


def node(number: int) -> NodeOffer:
    made = offer(f"n{number}", cpu=8, gpus=3 if number == 5 else 4, rack=f"r{number // 2}")
    for at, device in enumerate(made.resources[-1].devices):
        device.attributes = {"mig_profile": "1g.10gb"} if number == 5 else {"nvlink": str(at % 2)}
    return made


class Typist:
    """A shell whose `lavalite` talks to a world in memory, through the API's own models."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, node: Callable[[int], NodeOffer] = node) -> None:
        self.world = World()
        for number in range(6):
            self.world.connect(f"n{number}", node(number))
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(Place, "client", self._client)

    @contextmanager
    def _client(self, *_: Any, **__: Any) -> Iterator[Typist]:
        yield self

    def submit(self, jobs: list[Submit], *, dry_run: bool) -> Submitted:
        asked = SubmitBatch(jobs=jobs).model_dump(mode="json", exclude_unset=True)
        ids = []
        for one in SubmitBatch.model_validate(asked).jobs:
            spec = one.spec.model_copy(update={"user": "ada"})
            admit(self.world.state, spec, self.world.now)
            ids += [] if dry_run else [self.world.submit(spec)]
        self.world.settle()
        return Submitted(ids=ids)

    def type(self, text: str) -> int:
        self._monkeypatch.setattr(sys, "argv", shlex.split(text))
        with pytest.raises(SystemExit) as ended:
            main.main()
        return int(ended.value.code or 0)

    def type_all(self, page: str, count: int) -> None:
        typed = re.findall(r"^\$ (lavalite submit .*)$", page, re.MULTILINE)
        assert len(typed) == count
        for text in typed:
            assert self.type(text) == 0, text

    def where(self, name: str) -> dict[str, int]:
        """By rack `r0`, or node where `on` is asked for."""
        state = self.world.state
        runs = [run.node for key, run in state.runs.items() if state.jobs[key.job].spec.name == name]
        return dict(sorted(Counter(runs).items()))

    def racks(self, name: str) -> dict[str, int]:
        found: Counter[str] = Counter()
        for where, tasks in self.where(name).items():
            found[self.world.state.nodes[where].labels["rack"][0]] += tasks
        return dict(sorted(found.items()))


@pytest.fixture
def typist(monkeypatch: pytest.MonkeyPatch) -> Typist:
    return Typist(monkeypatch)


def test_what_the_page_types_goes_where_it_says(typist: Typist) -> None:
    typist.type_all(PAGE.read_text().partition(EXCLUSIVE)[0], 10)
    assert typist.racks("db") == {"r1": 1} and typist.racks("web") == {"r1": 3}
    assert typist.racks("spread") == {"r0": 1, "r1": 1, "r2": 1}
    assert typist.racks("rather") == {"r1": 1}
    assert typist.where("quiet") == {"n0": 1} and typist.where("noisy") == {"n2": 1}
    state = typist.world.state
    by_name = {job.spec.name: job for job in state.jobs.values()}
    assert typist.where("close") == {}
    assert "2 of 3 fit now" in explain(state, by_name["close"], typist.world.now).sentence
    assert len(typist.racks("near")) == 1
    pair = task_view(state, by_name["pair"], 0)
    assert pair["gpu_topology"] == "nvlink" and {gpu[-1] for gpu in pair["gpus"]} in ({"0", "2"}, {"1", "3"})
    assert task_view(state, by_name["small"], 0)["gpus"] == ["n5-gpu0"]


def test_who_asks_for_a_node_for_itself_has_it(typist: Typist) -> None:
    typist.type_all(PAGE.read_text().partition(EXCLUSIVE)[2], 3)
    state, now = typist.world.state, typist.world.now
    whole, small = typist.where("whole"), typist.where("small")
    assert sorted(whole.values()) == [1] * 4 and sorted(small.values()) == [8, 8] and not whole.keys() & small.keys()
    assert typist.where("more") == {}
    why = explain(state, next(job for job in state.jobs.values() if job.spec.name == "more"), now)
    assert why.sentence.startswith("6 nodes: 6 are not empty; nearest ") and why.held_by == ["job 1"]
    assert state.book.committed(next(iter(whole)), "cpu") == 2000


def test_what_the_page_says_is_refused_is(typist: Typist, capsys: pytest.CaptureFixture[str]) -> None:
    refused = re.findall(r"^\| `(--.*)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(refused) == 11
    for options, sentence in refused:
        assert typist.type(f"lavalite submit {options} -- true") == 2, options
        said = " ".join(capsys.readouterr().err.split())
        assert sentence in said, f"{options}: {said}"
    assert not typist.world.state.jobs
