"""The tag of a collection changes whenever the collection does; and never holds for another process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from control_world import KEYS, offer

from lavalite.control.state import ClusterState
from lavalite.mbatchd.hosts_here import HostNews
from lavalite.mbatchd.tags import Tags, holds
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.job import CommitmentRecord, Share

EPOCH = (0, 1)
USED = frozenset({"name", "resources"})
UNUSED = frozenset({"name", "state"})


class Tagged:
    def __init__(self) -> None:
        self.state = ClusterState(KEYS, EPOCH)
        self.news = HostNews(self.state, EPOCH, lambda *_: True)
        self.service: Any = SimpleNamespace(state=self.state, document={"version": 1})
        self.tags = Tags(self.service, self.news)
        self.state.set_node(offer("n1"))
        self.state.set_host(LogicalHost(name="h", state=HostState.COMPOSED, anchor="n1", parts=[]))

    def all(self) -> tuple[str, str, str, str]:
        tags = self.tags
        return tags.hosts(frozenset()), tags.hosts(USED), tags.hosts(UNUSED), tags.pools()

    def changed(self, before: tuple[str, ...]) -> list[bool]:
        return [old != new for old, new in zip(before, self.all(), strict=True)]


def test_nothing_changes_by_looking() -> None:
    t = Tagged()
    before = t.all()
    t.news.note_applied("n1", {})
    after_first = t.all()
    t.news.note_applied("n1", {})
    assert t.all() == after_first
    assert t.changed(before) == [True, True, True, False]


def test_a_host_that_changes_changes_the_hosts() -> None:
    t = Tagged()
    before = t.all()
    t.state.set_host(t.state.hosts["h"].model_copy(update={"reason": "why not"}))
    assert t.changed(before)[:3] == [True, True, True]
    before = t.all()
    t.news.note_applied("n1", {"h": 1})
    assert t.changed(before)[:3] == [True, True, True], "a node says that it can be entered"
    before = t.all()
    t.service.document = {"version": 2}
    assert t.changed(before) == [True] * 4, "it is asked for otherwise"
    before = t.all()
    t.state.remove_host("h")
    assert t.changed(before)[:3] == [True, True, True]


def test_what_is_in_use_changes_only_what_tells_of_it() -> None:
    t = Tagged()
    share = Share(provider="n1", kind="cpu", amount=1000, devices=[], pool="")
    record = CommitmentRecord(owner="job/1/0", epoch=EPOCH, shares=[share], committed_at=0.0, node="n1")
    before = t.all()
    assert t.state.book.assume(record) is None
    assert t.changed(before) == [True, True, False, True]
    before = t.all()
    t.state.book.confirm(record.owner)
    t.state.book.release(record.owner)
    assert t.changed(before) == [True, True, False, True]


def test_a_node_that_offers_something_else_changes_the_pools() -> None:
    t = Tagged()
    before = t.all()
    t.state.set_node(offer("n1", rack="r2"))
    assert t.changed(before)[3]
    before = t.all()
    t.state.set_node(offer("n1", rack="r2"))
    assert t.changed(before)[3] is False, "the same again is no change"
    t.state.set_labels(t.state.nodes["n1"], {"rack": ["r3"]})
    assert t.changed(before)[3], "an operator's labels decide on pools too"


def test_no_tag_holds_for_another_process() -> None:
    assert not set(Tagged().all()) & set(Tagged().all())


@pytest.mark.parametrize(
    ("asked", "held"),
    [('"a"', True), ('"b", "a"', True), ('W/"a"', True), ("*", True), ("", False), ('"b"', False), ("a", False)],
)
def test_what_if_none_match_may_say(asked: str, held: bool) -> None:
    assert holds('"a"', asked) is held
