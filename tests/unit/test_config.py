"""Configuration files, daemons' mains and logs: what a person does wrong comes back as sentences, all at once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, field_validator

from lavalite.base.config import Config, load_config, parse_config
from lavalite.base.daemon import EXIT_UNEXPECTED, daemon_main
from lavalite.base.errors import InputError, UnreachableError
from lavalite.base.logging import configure_logging, is_secret, redact_event


class Mode(StrEnum):
    CHILD = "child"
    NONE = "none"


class Etcd(Config):
    kind: Literal["etcd"]
    endpoints: list[str] = Field(min_length=1)


class Sqlite(BaseModel):  # one that forgot to refuse unknown fields
    kind: Literal["sqlite"]
    path: str


class Sample(Config):
    node: str
    port: int = Field(default=7869, ge=1, le=65535)
    ratio: float = 0.5
    insecure: bool = False
    mode: Mode = Mode.CHILD
    pair: tuple[int, int] = (0, 0)
    labels: dict[str, str | list[str]] = {}
    store: Annotated[Etcd | Sqlite, Field(discriminator="kind")] | None = None
    password: SecretStr = SecretStr("")
    wait: int = 1

    @field_validator("wait")
    @classmethod
    def _no_seven(cls, value: int) -> int:
        if value == 7:
            raise ValueError("seven is unlucky")
        if value == 8:
            raise InputError("eight is too many", code="eight", field="wait", hint="Take one.")
        return value


def faults_of(text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse_config(text, "f.yml", Sample)
    assert str(caught.value) == "\n".join(fault.sentence() for fault in caught.value.faults)
    assert caught.value.exit_code == 2
    return [fault.sentence() for fault in caught.value.faults]


def test_a_good_file_becomes_a_model(tmp_path: Path) -> None:
    path = tmp_path / "f.yml"
    path.write_text(
        "node: n1\nratio: 1\nmode: none\npair: [1, 2]\nlabels: {rack: r1, feature: [a, b]}\n"
        "store: {kind: sqlite, path: /x}\n"
    )
    config = load_config(path, Sample)
    assert (config.node, config.mode, config.pair, config.ratio) == ("n1", Mode.NONE, (1, 2), 1.0)
    assert config.store == Sqlite(kind="sqlite", path="/x")


def test_all_faults_at_once_each_with_its_line() -> None:
    text = (
        "nodee: n1\nport: 99999\ninsecure: 'true'\nmode: chld\nstore:\n  kind: etcd\n  endpoints: []\n  endpoint: x\n"
    )
    assert faults_of(text) == [
        "f.yml:1: node: it is missing. Add it.",
        "f.yml:1: nodee: there is no such field. Did you mean node?",
        "f.yml:2: port: it should be less than or equal to 65535, not 99999.",
        'f.yml:3: insecure: it should be a valid boolean, not "true".',
        "f.yml:4: mode: it should be 'child' or 'none', not \"chld\".",
        "f.yml:7: store.endpoints: List should have at least 1 item, not 0.",
        "f.yml:8: store.endpoint: there is no such field. Did you mean endpoints?",
    ]


@pytest.mark.parametrize(
    "line", ["port: '80'", "port: 80.5", "port: true", "labels: {a: 5}", "insecure: 1", "pair: [1]", "pair: 1"]
)
def test_types_are_taken_as_written(line: str) -> None:
    field = line.partition(":")[0]
    assert all(fault.startswith(f"f.yml:2: {field}") for fault in faults_of(f"node: n\n{line}"))


def test_unknown_fields_are_refused_even_where_a_model_does_not_care() -> None:
    assert faults_of("node: n\nstore: {kind: sqlite, path: x, pth: y}") == [
        "f.yml:2: store.pth: there is no such field. Did you mean path?"
    ]


def test_a_models_own_sentences_are_kept() -> None:
    assert faults_of("node: n\nwait: 7") == ["f.yml:2: wait: seven is unlucky."]
    assert faults_of("node: n\nwait: 8") == ["f.yml:2: wait: eight is too many. Take one."]


def test_yaml_surprises_and_syntax_are_faults() -> None:
    assert faults_of("node: n\ninsecure: no")[0].startswith("f.yml:2: insecure: ")
    assert faults_of("node: [")[0].startswith("f.yml:")
    assert faults_of("")[0] == "f.yml:1: node: it is missing. Add it."
    assert faults_of("- x")[0].startswith("f.yml:1: ")


def test_a_secret_is_never_quoted() -> None:
    assert all("hush" not in fault for fault in faults_of("node: n\npassword: [hush]"))
    assert all("4711" not in fault for fault in faults_of("node: n\npassword: 4711"))


def test_an_unreadable_file_is_a_sentence(tmp_path: Path) -> None:
    binary = tmp_path / "b"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, why in ((tmp_path / "none", "no such file"), (tmp_path, "directory"), (binary, "UTF-8")):
        with pytest.raises(InputError, match=why) as caught:
            load_config(path, Sample)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@given(
    st.text(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*Sample.model_fields, "x"]), inner, max_size=4)
        ),
    ).map(json.dumps)
)
def test_no_text_raises_anything_but_faults(text: str) -> None:
    try:
        parse_config(text, "f.yml", Sample)
    except InputError as error:
        assert all(fault.sentence() for fault in error.faults)


# --- daemons --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _logging_as_before() -> object:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    structlog.reset_defaults()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "f.yml"
    path.write_text("node: n1\n")
    return str(path)


async def _never(config: Sample, stop: asyncio.Event) -> None:
    raise AssertionError("must not run")


def test_check_config_says_so_and_runs_nothing(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert daemon_main("d", Sample, _never, ["--config", file, "--check-config"]) == 0
    assert capsys.readouterr().out == f"{file}: no fault found.\n"
    Path(file).write_text("port: 0\n")
    assert daemon_main("d", Sample, _never, ["--config", file, "--check-config"]) == 2
    assert capsys.readouterr().err.count("\n") == 2

    def check(_: Sample) -> None:
        raise InputError("not on this machine")

    Path(file).write_text("node: n1\n")
    assert daemon_main("d", Sample, _never, ["--config", file, "--check-config"], check=check) == 2
    assert capsys.readouterr().err == "not on this machine.\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_others_are_ignored(file: str, number: signal.Signals) -> None:
    seen: list[str] = []

    async def serve(config: Sample, stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGPIPE)
        os.kill(os.getpid(), number)
        await stop.wait()
        seen.append(config.node)

    assert daemon_main("d", Sample, serve, ["--config", file]) == 0
    assert seen == ["n1"]


def test_a_second_signal_cancels(file: str) -> None:
    async def serve(config: Sample, stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    assert daemon_main("d", Sample, serve, ["--config", file]) == 128 + signal.SIGTERM


def test_a_known_error_is_its_sentence_and_code(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def serve(config: Sample, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await stop.wait()

    async def fail() -> None:
        raise UnreachableError("the store does not answer", hint="Start it.")

    assert daemon_main("d", Sample, serve, ["--config", file]) == 3
    assert capsys.readouterr().err == "the store does not answer. Start it.\n"


def test_an_unforeseen_error_goes_to_the_log_without_its_secrets(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def serve(config: Sample, stop: asyncio.Event) -> None:
        raise KeyError("v4.public.hushhush")

    assert daemon_main("d", Sample, serve, ["--config", file, "--log-format", "json"]) == EXIT_UNEXPECTED
    logged, sentence = capsys.readouterr().err.splitlines()
    entry = json.loads(logged)
    assert entry["level"] == "error" and "Traceback" in entry["exception"] and "hushhush" not in logged
    assert sentence == "d: something failed that was not foreseen; its log says what."


# --- logs -----------------------------------------------------------------------------------------------------


def test_logs_are_json_lines_and_both_libraries_end_there(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", json=True)
    structlog.get_logger("a").info("one", token="hush", deep={"items": [{"api_token": "hush"}]}, n=1)
    structlog.get_logger("a").debug("not shown")
    logging.getLogger("b").warning("two %s", "Bearer v4.public.hush")
    err = capsys.readouterr().err
    one, two = map(json.loads, err.splitlines())
    assert (one["event"], one["level"], one["logger"], one["n"]) == ("one", "info", "a", 1)
    assert (two["event"], two["level"], two["logger"]) == ("two Bearer [redacted]", "warning", "b")
    assert "hush" not in err and one["time"].endswith("Z")


def test_console_logs_are_redacted_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", json=False)
    structlog.get_logger("a").debug("one", password="hush", note=Path("/x"))
    try:
        local_secret = "hush"
        raise KeyError("v4.public." + local_secret)
    except KeyError:
        structlog.get_logger("a").exception("two")
    err = capsys.readouterr().err
    assert "one" in err and "/x" in err and "Traceback" in err
    assert "= 'hush" not in err and "v4.public.hush" not in err and "password=hush" not in err


@pytest.mark.parametrize("key", ["token", "Authorization", "api_token", "private-key", "PASSWORD", "client_secret"])
def test_keys_of_secrets(key: str) -> None:
    assert is_secret(key) and not is_secret(f"{key}_path") and not is_secret("key")


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.text() | st.binary() | st.floats(),
            lambda i: st.lists(i) | st.dictionaries(st.text(max_size=3), i),
            max_leaves=6,
        ),
    )
)
def test_a_secret_is_found_wherever_it_hides(event: dict[str, object]) -> None:
    hidden = {**event, "x": [event, {"token": "k4.secret.abc"}, "see k4.secret.abc", ValueError("k4.secret.abc")]}
    assert "abc" not in str(redact_event(None, "info", hidden)["x"][1:])
