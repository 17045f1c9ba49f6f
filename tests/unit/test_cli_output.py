"""What tables, amounts and sentences look like, and that no text from elsewhere moves the cursor."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from lavalite.api.models import Amounts, Explanation, Host, HostPart, Job, Node
from lavalite.cli.cluster import HOST_COLUMNS, NODE_COLUMNS
from lavalite.cli.definition import difference
from lavalite.cli.jobs import JOB_COLUMNS, counts_text, explanation_text, job_text, nodes_text, request_text
from lavalite.cli.output import Format, aligned, fields, listed, machine, plain, table

GIB = 1024**3


def a_job(**changes: object) -> Job:
    given_fields = {
        "id": 12,
        "name": "sums",
        "user": "ada",
        "queue": "normal",
        "state": "running",
        "command": ["echo", "a b"],
        "tasks": 8,
        "counts": {"running": 3, "succeeded": 5},
        "submitted_at": 1_700_000_000.0,
        "request": {"cpu_milli": 500, "memory_bytes": 16 * GIB},
    }
    return Job.model_validate(given_fields | changes)


@given(st.text())
def test_what_is_shown_is_one_printable_line(text: str) -> None:
    assert plain(text).isprintable()


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_every_row_is_one_line(rows: list[tuple[str, str]]) -> None:
    shown = aligned([[plain(cell) for cell in row] for row in rows])
    assert len(shown.split("\n")) == len(rows)


def test_an_escape_sequence_is_shown_as_text() -> None:
    assert plain("\x1b[2Jname") == "\\x1b[2Jname"


def test_a_table_has_two_spaces_between_columns_and_a_dash_for_nothing() -> None:
    shown = table([a_job(nodes=["n1", "n2"])], JOB_COLUMNS[:8]).split("\n")
    assert shown[0] == "JOB  NAME  USER  QUEUE   HOST  STATE    TASKS                       NODES"
    assert shown[1] == "12   sums  ada   normal  –     running  8 (3 running, 5 succeeded)  n1 n2"


def test_wide_adds_columns() -> None:
    assert "COMMAND" not in table([], JOB_COLUMNS)
    assert table([a_job()], JOB_COLUMNS, wide=True).endswith("0.5 cpu, 16GiB memory  echo 'a b'")


def test_counts_are_left_out_where_they_say_nothing_new() -> None:
    assert counts_text(a_job(counts={"running": 8, "pending": 0})) == "8"
    assert counts_text(a_job(counts={"pending": 8})) == "8 (8 pending)"


def test_many_nodes_are_counted() -> None:
    assert nodes_text(["a", "b", "c"]) == "a b c"
    assert nodes_text(["a", "b", "c", "d", "e"]) == "a b c +2"


def test_a_request_in_words() -> None:
    asked = {"cpu_milli": 16000, "gpu_milli": 4000, "gpu_model": "A100", "floating": {"matlab": 2}}
    assert request_text(asked) == "16 cpu, 4 gpu, GPU model A100, 2 matlab"


def test_parts_are_shown_one_by_one() -> None:
    parts = [
        {"name": "ps", "tasks": 1, "request": {"cpu_milli": 4000}},
        {"name": "worker", "tasks": 4, "request": {"cpu_milli": 8000, "gpu_milli": 1000}},
    ]
    shown = job_text(a_job(parts=parts, request={}))
    assert "needs      ps: 1 × 4 cpu; worker: 4 × 8 cpu, 1 gpu" in shown.split("\n")
    waits: list[dict[str, Any]] = [
        {"name": "ps", "tasks": 1, "fit": 1},
        {"name": "worker", "tasks": 4, "fit": 0, "sentence": "1 node: 1 has too little free.", "held_by": ["job 3"]},
    ]
    told = Explanation(
        job=12, state="pending", asks="1 × ps (4 cpu)", parts=waits, sentence="Its 5 tasks start together."
    )
    assert explanation_text(told).split("\n") == [
        "job 12 waits: 1 × ps (4 cpu)",
        "  part ps  1 of 1 fit alone",
        "  part worker  0 of 4 fit alone: 1 node: 1 has too little free. Held by job 3.",
        "  Its 5 tasks start together.",
    ]


def test_json_is_a_list_of_what_the_api_gave() -> None:
    shown = json.loads(listed([a_job()], JOB_COLUMNS, Format.JSON))
    assert shown[0]["id"] == 12
    assert shown[0]["request"] == {"cpu_milli": 500, "memory_bytes": 16 * GIB}
    assert json.loads(listed([], JOB_COLUMNS, Format.JSON)) == []


def test_yaml_and_json_hold_the_same() -> None:
    job = a_job(name="zeile\nzwei: ü")
    assert yaml.safe_load(machine(job, Format.YAML)) == json.loads(machine(job, Format.JSON))


def test_a_waiting_job_says_why_in_one_line() -> None:
    shown = job_text(a_job(state="pending", why="3 nodes: 3 have too little free."))
    assert "why        3 nodes: 3 have too little free." in shown.split("\n")
    assert "exit code" not in shown


def test_fields_without_a_value_are_left_out() -> None:
    assert fields([("a", ""), ("bcd", 0), ("e", None), ("f", "x")]) == "bcd  0\nf    x"


def test_logical_hosts_say_what_is_far() -> None:
    part = HostPart(id="1", kind="memory", amount=128 * GIB, provider="n01")
    host = Host(
        name="analytics",
        state="composed",
        anchor="n01",
        parts=[
            HostPart(id="0", kind="cpu", amount=16000, provider="n01"),
            part,
            part.model_copy(update={"provider": "n02"}),
            HostPart(id="3", kind="storage", amount=2 * 1024 * GIB, provider="n03"),
        ],
    )
    shown = table([host], HOST_COLUMNS).split("\n")
    assert shown[1].split("  ") == [
        *["analytics", "composed", "16", " 128GiB + 128GiB far", "–", "", "2TiB at n03", "n01", "", " n01 n02 n03"]
    ]


def test_nodes_show_free_of_capacity() -> None:
    memory = Amounts(capacity=256 * GIB, committed=64 * GIB, free=192 * GIB)
    node = Node(name="n01", state="ready", resources={"memory": memory}, gpu_models=[])
    assert "192GiB/256GiB" in table([node], NODE_COLUMNS)


def test_an_explanation_counts_nodes_in_words() -> None:
    shown = explanation_text(
        Explanation(
            job=4711,
            state="pending",
            asks="4 A100 on one node, 16 cpu",
            nodes=12,
            filters={"no_model": 9, "too_few_free": 2, "draining": 1, "some_new_reason": 1},
            nearest="n07",
            lacks={"gpu": 2000},
            held_by=["4702"],
        )
    ).split("\n")
    assert shown[0] == "job 4711 waits: 4 A100 on one node, 16 cpu"
    assert "9 have no device of the model asked for  2 have too little free  1 is draining" in shown[1]
    assert shown[1].endswith("1 some new reason")
    assert shown[2] == "  nearest  n07 lacks 2 gpu, held by 4702"


def test_why_a_job_waits_is_said_once() -> None:
    why = "It waits for job 6 to be done; that is pending."
    shown = explanation_text(Explanation(job=7, state="pending", asks="1 cpu", waits_for=[why], sentence=why))
    assert shown.split("\n") == ["job 7 waits: 1 cpu", f"  {why}"]


def test_what_a_definition_changes_is_a_diff() -> None:
    assert difference({"a": 1}, {"a": 1}) == ""
    assert difference({"a": 1}, {"a": 2}).split("\n")[-2:] == ["-a: 1", "+a: 2"]
