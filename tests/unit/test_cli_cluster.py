"""What is typed about nodes, and what is said of them."""

from __future__ import annotations

import pytest

from lavalite.api.models import Drain, Node
from lavalite.base.errors import InputError
from lavalite.cli.cluster import drain_text, drained_text, label_change
from lavalite.cli.main import run


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("rack=r1", ("rack", ["r1"])), ("disk=ssd,nvme", ("disk", ["ssd", "nvme"])), ("rack-", ("rack", None))],
)
def test_a_label_is_set_or_taken_away(typed: str, meant: tuple[str, list[str] | None]) -> None:
    assert label_change(typed) == meant


def test_what_is_neither_is_refused() -> None:
    with pytest.raises(InputError, match="rack is no change of a label"):
        label_change("rack")


def test_a_drained_node_is_told_with_the_work_that_is_left() -> None:
    node = Node(name="n1", state="drained", tasks=0, drain=Drain())
    assert drained_text(node) == "node n1: drained"
    assert drained_text(node.model_copy(update={"tasks": 1})) == "node n1: drained, 1 task there"
    late = node.model_copy(update={"tasks": 2, "drain": Drain(deadline_seconds=60, deadline_at=15 * 86400.0)})
    assert drained_text(late).startswith("node n1: drained, 2 tasks there until 1970-01-1")


def test_why_and_until_when_a_node_is_drained_is_shown() -> None:
    assert (drain_text(None), drain_text(Drain())) == ("", "yes")
    assert drain_text(Drain(reason="new disk", deadline_at=15 * 86400.0)).startswith("new disk, until 1970-01-1")


def test_a_deadline_that_is_none_is_refused_before_anybody_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drain", "n1", "--deadline", "soon", "--api", "unix:/nowhere"]) == 2
    assert capsys.readouterr().err.startswith("--deadline: ")
