"""Module node, and the modules that list: what they ask of the API and what they make of its answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

import pytest
from ansible_collections.lavalite.cluster.plugins.module_utils._client import Client
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError
from ansible_collections.lavalite.cluster.plugins.modules import (
    event_info,
    job_info,
    logical_host_info,
    node,
    node_info,
    pool_info,
)

from lavalite.control.drain import drain_of
from lavalite.control.events import DrainRequested
from lavalite.model.labels import changed_labels
from lavalite.model.node import Drain

NODE = {
    "name": "n1",
    "state": None,
    "deadline": None,
    "reason": None,
    "wait": False,
    "timeout": 0,
    "labels": None,
    "purge_labels": False,
}


class OneNode:
    """Enough of /v1/nodes/n1, with the scheduler's own rules. Time passes with every call."""

    def __init__(self, api: Any) -> None:
        self.drain: Drain | None = None
        self.labels: dict[str, list[str]] = {}
        self.tasks = 0
        self.now = 1000.0
        self.writes = 0
        api.answer = self.answer
        self.client = Client(urls=[api.url], patience_seconds=0)

    def apply(self, check_mode: bool = False, **params: Any) -> dict[str, Any]:
        result: dict[str, Any] = node.apply(self.client, NODE | params, check_mode)
        return result

    def answer(self, method: str, path: str, query: str, body: Any) -> Any:
        self.now += 1
        asked = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        drain, labels = self.drain, self.labels
        if path.endswith("/drain"):
            seconds = asked.get("deadline_seconds")
            event = DrainRequested(
                "n1", asked.get("reason"), int(seconds) if seconds else None, "no_deadline" in asked
            )
            drain = drain_of(drain, event, self.now)
        elif path.endswith("/resume"):
            drain = None
        elif path.endswith("/labels"):
            labels = changed_labels(labels, body["labels"], purge=body["purge"])
        if method != "GET" and "dry_run" not in asked:
            self.drain, self.labels, self.writes = drain, labels, self.writes + 1
        return (
            200,
            {},
            {
                "name": "n1",
                "state": "drained" if drain else "ready",
                "drain": asdict(drain) if drain else None,
                "operator_labels": labels,
                "labels": labels,
                "tasks": self.tasks,
            },
        )


@pytest.mark.parametrize(
    "params",
    [
        {"state": "drained"},
        {"state": "drained", "deadline": "30m", "reason": "disk"},
        {"state": "drained", "deadline": "never"},
        {"labels": {"rack": "r1", "disk": ["a", "b"], "row": 7}},
        {"state": "drained", "labels": {"rack": "r9", "disk": None}},
        {"labels": {"rack": "r1"}, "purge_labels": True},
        {"purge_labels": True},
        {"state": "active"},
    ],
)
def test_check_mode_says_what_a_run_does_and_a_second_run_does_nothing(api: Any, params: dict[str, Any]) -> None:
    one = OneNode(api)
    one.labels = {"disk": ["old"]}
    foretold = one.apply(True, **params)
    assert one.writes == 0
    done = one.apply(**params)
    assert (foretold["changed"], foretold["diff"]) == (done["changed"], done["diff"])
    assert done["changed"] == (done["diff"]["before"] != done["diff"]["after"])
    again = one.apply(**params)
    assert again["changed"] is False and again["diff"]["before"] == again["diff"]["after"]


def test_another_deadline_is_a_change_and_the_same_is_none(api: Any) -> None:
    one = OneNode(api)
    assert one.apply(state="drained", deadline="30m")["changed"]
    assert not one.apply(state="drained", deadline="1800s")["changed"]
    assert not one.apply(state="drained")["changed"]
    assert one.apply(state="drained", deadline="10m")["diff"]["after"]["drain"]["deadline_seconds"] == 600
    assert one.apply(state="drained", deadline="never")["changed"]
    assert one.apply(state="active")["node"]["drain"] is None


def test_waiting_ends_when_nothing_runs_there_or_says_what_does(api: Any) -> None:
    one = OneNode(api)
    one.tasks = 3
    with pytest.raises(ApiError, match=r"timeout: node n1 still has 3 tasks after 0 s\. Give a deadline"):
        one.apply(state="drained", wait=True)
    assert one.drain is not None
    assert one.apply(True, state="drained", wait=True)["changed"] is False
    one.tasks = 0
    assert one.apply(state="drained", wait=True)["node"]["tasks"] == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"state": "drained", "deadline": "soon"}, "deadline: soon is not understood"),
        ({"labels": {"rack": True}}, "labels.rack: True is no value of a label"),
        ({"labels": {"rack": [{"a": 1}]}}, "labels.rack: .* is no value of a label"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_asked(api: Any, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError, match=said):
        OneNode(api).apply(**wrong)
    assert api.asked == []


def pages(api: Any, collection: str, count: int) -> Client:
    """A collection of so many items, in pages of two."""

    def answer(method: str, path: str, query: str, body: Any) -> Any:
        if path != f"/v1/{collection}":
            name = path.rpartition("/")[2]
            known = name.isdigit() and int(name) < count
            return (200, {}, {"id": int(name)}) if known else (404, {}, {"errors": [{"code": "unknown_name"}]})
        first = int(parse_qs(query).get("cursor", ["0"])[0])
        last = min(first + 2, count)
        items = [{"id": number, "name": str(number)} for number in range(first, last)]
        return 200, {}, {"items": items, "next_cursor": str(last) if last < count else None}

    api.answer = answer
    return Client(urls=[api.url], patience_seconds=0)


@pytest.mark.parametrize(("limit", "found", "more"), [(1, 1, True), (4, 4, True), (5, 5, False), (9, 5, False)])
def test_no_more_is_listed_than_asked_for_and_whether_there_is_more_is_told(
    api: Any, limit: int, found: int, more: bool
) -> None:
    result = pool_info.read(pages(api, "pools", 5), {"limit": limit, "name": []})
    assert (len(result["pools"]), result["more"], result["changed"]) == (found, more, False)


def test_by_name_only_what_is_there_is_found(api: Any) -> None:
    result = pool_info.read(pages(api, "pools", 3), {"limit": 9, "name": ["2", "7", "0"]})
    assert ([pool["id"] for pool in result["pools"]], result["more"]) == ([2, 0], False)


def test_filters_are_the_servers(api: Any) -> None:
    client = pages(api, "nodes", 0)
    node_info.read(client, {"limit": 9, "name": [], "state": ["ready", "lost"], "select": {"rack": ["r1"]}})
    assert parse_qs(api.asked[-1][1].partition("?")[2]) == {
        "limit": ["10"],
        "state": ["ready,lost"],
        "selector": ['{"rack": ["r1"]}'],
    }
    client = pages(api, "hosts", 0)
    logical_host_info.read(client, {"limit": 9, "name": [], "state": []})
    assert parse_qs(api.asked[-1][1].partition("?")[2]) == {"limit": ["10"]}
    client = pages(api, "jobs", 0)
    asked = {"limit": 9, "id": [], "name": "a", "user": None, "queue": None, "host": None, "state": ["failed"]}
    job_info.read(client, asked | {"tasks": False})
    assert parse_qs(api.asked[-1][1].partition("?")[2]) == {"limit": ["10"], "name": ["a"], "state": ["failed"]}


def test_a_limit_of_nothing_is_refused(api: Any) -> None:
    with pytest.raises(ApiError, match=r"limit: 0 is none\. Write 1 or more"):
        pool_info.read(pages(api, "pools", 1), {"limit": 0, "name": []})


EVENTS = {"since": "", "kind": [], "name": "", "limit": 1000, "timeout": 0, "connect_timeout": 30.0}


def test_events_end_at_the_limit_and_at_what_there_is(api: Any) -> None:
    known = [{"kind": "node", "name": f"n{number}", "state": "drained", "at": 0.0} for number in range(7)]

    def answer(method: str, path: str, query: str, body: Any) -> Any:
        asked = parse_qs(query, keep_blank_values=True)
        first = int(asked["since"][0] or 0)
        last = min(first + min(3, int(asked["limit"][0])), len(known))
        return 200, {}, {"items": known[first:last], "cursor": str(last), "missed": first == 3}

    api.answer = answer
    client = Client(urls=[api.url], patience_seconds=0)
    everything = event_info.read(client, EVENTS)
    assert (everything["events"], everything["cursor"], everything["missed"]) == (known, "7", True)
    some = event_info.read(client, EVENTS | {"limit": 4})
    assert (some["events"], some["cursor"]) == (known[:4], "4")
    none = event_info.read(client, EVENTS | {"since": "7", "timeout": 0})
    assert (none["events"], none["cursor"]) == ([], "7")
