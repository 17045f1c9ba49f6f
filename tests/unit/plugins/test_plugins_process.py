"""A daemon as a plain process: started once, found again, restarted when it must be, and never taken for another."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lavalite.cluster.plugins.module_utils import _process
from ansible_collections.lavalite.cluster.plugins.modules.daemon import locked

SERVER = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
while True:
    s.accept()[0].close()
"""


@pytest.fixture
def params(tmp_path: Path) -> Iterator[dict[str, Any]]:
    config = tmp_path / "d.conf"
    config.write_text("one")
    yield {
        "name": "d",
        "state": "started",
        "command": [sys.executable, "-c", "import time; time.sleep(600)", str(config)],
        "environment": {"A": "1"},
        "config": [str(config)],
        "version": "1",
        "state_path": str(tmp_path),
        "chdir": None,
        "socket": None,
        "timeout": 60,
        "settle": 1,
    }
    record = _process.read_record(tmp_path / "d.process")
    if record:
        _process.stop(record, 5)
        reap(record["pid"])


def reap(pid: int) -> None:
    """Started by this very process, it stays a zombie until it is waited for, here or by the next Popen."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_it_is_started_once_in_a_session_of_its_own(params: dict[str, Any]) -> None:
    first = locked(params, False)
    assert first["changed"] is True
    assert os.getsid(first["pid"]) == first["pid"]
    again = locked(params, False)
    assert (again["changed"], again["pid"]) == (False, first["pid"])


@pytest.mark.parametrize("change", ["config", "version", "environment", "command"])
def test_what_it_was_started_with_changes_and_it_is_restarted(params: dict[str, Any], change: str) -> None:
    first = locked(params, False)
    if change == "config":
        Path(params["config"][0]).write_text("two")
    else:
        params[change] = {"version": "2", "environment": {"A": "2"}, "command": [*params["command"], "x"]}[change]
    assert locked(params, True) | {"diff": 0} == first | {"changed": True, "diff": 0}  # check mode touches nothing
    second = locked(params, False)
    assert second["changed"] is True
    assert second["pid"] != first["pid"]
    assert _process.start_ticks(first["pid"]) is None
    reap(first["pid"])


def test_it_is_stopped_once(params: dict[str, Any]) -> None:
    pid = locked(params, False)["pid"]
    params["state"] = "stopped"
    assert locked(params, True)["changed"] is True
    assert _process.start_ticks(pid) is not None
    stopped = locked(params, False)
    assert (stopped["changed"], stopped["pid"], stopped["ended_by_itself"]) == (True, 0, True)
    assert locked(params, False)["changed"] is False
    reap(pid)


@pytest.mark.parametrize("lie", ["start_ticks", "boot_id"])
def test_a_process_that_only_has_its_pid_is_not_it(params: dict[str, Any], tmp_path: Path, lie: str) -> None:
    pid = locked(params, False)["pid"]
    path = tmp_path / "d.process"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {lie: 1 if lie == "start_ticks" else "another"}))
    assert _process.read_record(path) is None
    path.write_text(json.dumps(record))
    assert _process.read_record(path) == record
    assert record["pid"] == pid


@pytest.mark.parametrize("text", ["", "{", "17", '{"pid": "x"}', '{"pid": 1}'])
def test_a_broken_record_names_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.process").write_text(text)
    assert _process.read_record(tmp_path / "d.process") is None


def test_it_is_waited_for_until_it_answers(params: dict[str, Any], tmp_path: Path) -> None:
    params["socket"] = str(tmp_path / "d.sock")
    params["command"] = [sys.executable, "-c", SERVER, params["socket"]]
    locked(params, False)
    assert _process.answers(params["socket"])


def test_one_that_ends_at_once_is_told_with_the_end_of_its_log(params: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "d.log").write_text("of yesterday\n")
    params["command"] = [sys.executable, "-c", "import sys; sys.exit('no port is free')"]
    with pytest.raises(_process.DaemonError, match=r"exit code 1: no port is free$"):
        locked(params, False)


def test_a_program_that_is_not_there_is_told(params: dict[str, Any]) -> None:
    params["command"] = ["/nowhere/daemon"]
    with pytest.raises(_process.DaemonError, match="/nowhere/daemon cannot be started: No such file"):
        locked(params, False)


def test_a_folder_that_is_not_there_is_told_but_in_check_mode_may_come(params: dict[str, Any]) -> None:
    params["state_path"] += "/none"
    assert locked(params, True)["changed"] is True
    with pytest.raises(_process.DaemonError, match="Make it first"):
        locked(params, False)


def test_where_it_never_was_there_is_nothing_to_stop(params: dict[str, Any], tmp_path: Path) -> None:
    params |= {"state": "stopped", "state_path": str(tmp_path / "never")}
    assert locked(params, False) == {"changed": False, "pid": 0}
    assert not (tmp_path / "never").exists()
