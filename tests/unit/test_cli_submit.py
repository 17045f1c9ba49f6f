"""From what is typed after `lavalite submit` to a job, and what is said where it is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavalite.api.models import Job
from lavalite.base.errors import InputError
from lavalite.cli import submit
from lavalite.cli.affinity import parse_affinity
from lavalite.cli.jobs import parse_tasks
from lavalite.cli.submit import (
    make_gang,
    make_request,
    make_spec,
    parse_after,
    parse_array,
    parse_backoff,
    parse_pairs,
    wait_for,
)
from lavalite.model.job import Array, Gang, Request


@given(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(1, 1000))
def test_arrays_are_read_as_they_are_written(first: int, count: int, step: int) -> None:
    array = parse_array(f"{first}-{first + count}:{step}")
    assert array.indices() == range(first, first + count + 1, step)


@pytest.mark.parametrize("text", ["", "a", "-3", "1-", "1..8", "8-1", "1-8:0", "1-99999999", "1,2", "1-8 ", "１-８"])
def test_what_is_no_array_says_how_to_write_one(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_array(text)
    assert refused.value.fault.field == "--array"
    assert "1-8" in refused.value.fault.hint


def test_dependencies() -> None:
    assert [(d.kind, d.job) for d in parse_after("done:12,exit:13, 14")] == [("done", 12), ("exit", 13), ("done", 14)]


def test_dependencies_on_tasks_of_arrays() -> None:
    typed = "ended:6[3], done:6[1-10:3],started:7,8[*]"
    assert [d.text() for d in parse_after(typed)] == ["ended(6[3])", "done(6[1-10:3])", "started(7)", "done(8[*])"]


def test_back_offs() -> None:
    assert parse_backoff("first=10s,factor=3,most=5m") == {"first_seconds": 10, "factor": 3, "most_seconds": 300}
    assert parse_backoff("most=2h") == {"most_seconds": 7200}


@pytest.mark.parametrize("text", ["", "10s", "first=10", "factor=half", "last=5m", "first=-1s"])
def test_what_is_no_back_off_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--backoff"):
        parse_backoff(text)


@pytest.mark.parametrize(
    "text", ["", "done:", "begun:3", "done:3[", "3[8-1]", "3[1,2]", "3[*]x", "done:0", "done:-1", "3,", ":4:5"]
)
def test_what_is_no_dependency_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--after"):
        parse_after(text)


@given(st.dictionaries(st.from_regex(r"[A-Z_]+", fullmatch=True), st.text()))
def test_an_environment_keeps_every_value(pairs: dict[str, str]) -> None:
    assert parse_pairs([f"{k}={v}" for k, v in pairs.items()], "--env", "A=B") == pairs


@pytest.mark.parametrize("text", ["PATH", "=x", ""])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="NAME=VALUE"):
        parse_pairs([text], "--env", "A=B")


def test_amounts_become_integers_in_their_units() -> None:
    request = make_request(
        {"cpu": "0.5", "memory": "16GiB", "gpu": "2", "network": "10Gbit/s"}, "A100", ["matlab=2"], ["gpu=gpus"]
    )
    assert Request.model_validate(request) == Request(
        cpu_milli=500,
        memory_bytes=16 * 1024**3,
        gpu_milli=2000,
        gpu_model="A100",
        network_bits_per_second=10**10,
        floating={"matlab": 2},
        pools={"gpu": "gpus"},
    )


def test_all_wrong_amounts_are_said_at_once() -> None:
    with pytest.raises(InputError) as refused:
        make_request({"cpu": "many", "memory": "16", "gpu_memory": "-1GiB"}, "", ["matlab=half"], [])
    named = [fault.field for fault in refused.value.faults]
    assert named == ["--cpu", "--memory", "--gpu-memory", "--floating matlab"]


def test_a_spec_out_of_bounds_names_the_options() -> None:
    with pytest.raises(InputError) as refused:
        make_spec({"command": ["true"], "retries": 1000, "priority": 5000, "name": "x" * 200})
    assert {fault.field for fault in refused.value.faults} == {"--retries", "--priority", "--name"}


def test_task_lists() -> None:
    assert parse_tasks("1,3-5, 3") == [1, 3, 4, 5]
    with pytest.raises(InputError, match="--task"):
        parse_tasks("1-")


@pytest.mark.parametrize(("last", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_waiting_ends_with_the_jobs_own_end(last: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.0)
    states: Iterator[str] = iter(["pending", "running", last])

    def read(job_id: int) -> Job:
        return Job(
            id=job_id, name="", user="", queue="", state=next(states), command=[], tasks=1, counts={}, submitted_at=0
        )

    assert wait_for(read, 7) == code


def test_affinities() -> None:
    terms = [parse_affinity("name=db,within=rack,prefer", anti=False), parse_affinity("job=self", anti=True)]
    terms.append(parse_affinity("label=rack:r1|r2,label=zone:a,prefer=80", anti=False))
    assert [term.text() for term in make_spec({"command": ["true"], "affinity": terms}).affinity] == [
        "rather near jobs named db within one rack (50)",
        "apart from itself",
        "rather on nodes {rack: [r1, r2], zone: a} (80)",
    ]
    with pytest.raises(InputError, match="just one of them"):
        make_spec({"command": ["true"], "affinity": [parse_affinity("job=1,name=db", anti=False)]})


def test_gangs() -> None:
    assert make_spec(
        {"command": ["true"], "gang": make_gang(4, "2-3", "rack"), "array": Array(first=1, last=8)}
    ).gang == Gang(tasks_per_node=4, nodes_least=2, nodes_most=3, within="rack")
    assert make_gang(None, "2", "")["nodes_most"] == 2
    with pytest.raises(InputError, match="--nodes: few is no number of nodes"):
        make_gang(None, "few", "")
    with pytest.raises(InputError, match="1 tasks cannot be on 2 nodes"):
        make_spec({"command": ["true"], "gang": make_gang(None, "2", "")})
