"""The files of a daemon: as they should be or replaced in one step, and whoever read older ones is named."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lavalite.cluster.plugins.module_utils import _unit
from ansible_collections.lavalite.cluster.plugins.module_utils._files import FilesError
from ansible_collections.lavalite.cluster.plugins.modules.daemon_files import bring_to_state

Run = Callable[..., dict[str, Any]]
REFUSES = [sys.executable, "-c", "import sys; sys.exit('it is wrong: ' + open(sys.argv[1]).read())", "%s"]


def entry(path: Path, **options: Any) -> dict[str, Any]:
    """As the module gets it, with every default filled in."""
    defaults = {"state": "file", "content": None, "src": "", "mode": "", "owner": "", "group": "", "validate": []}
    return {"path": str(path)} | defaults | {"at_start": False} | options


def run(*files: dict[str, Any], check: bool = False, **options: Any) -> dict[str, Any]:
    result: dict[str, Any] = bring_to_state({"files": files, "unit": "", "reads": [], "look": []} | options, check)
    return result


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def every_kind(folder: Path) -> list[dict[str, Any]]:
    """One of each, in an order in which each needs those before it."""
    return [
        entry(folder / "a/b", state="directory", mode="0750"),
        entry(folder / "a/b/conf", content="one\n", mode="0640"),
        entry(folder / "a/link", state="link", src=str(folder / "a/b/conf")),
        entry(folder / "a/b/conf", mode="0600"),
        entry(folder / "old", state="absent"),
    ]


def test_what_is_wanted_comes_about_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    first = run(*every_kind(tmp_path)[:3], *every_kind(tmp_path)[4:])
    assert first["changed_paths"] == [str(tmp_path / name) for name in ("a/b", "a/b/conf", "a/link", "old")]
    assert (tmp_path / "a/link").read_text() == "one\n" and not (tmp_path / "old").exists()
    assert (mode(tmp_path / "a"), mode(tmp_path / "a/b"), mode(tmp_path / "a/b/conf")) == (0o750, 0o750, 0o640)
    assert not run(*every_kind(tmp_path)[:3], *every_kind(tmp_path)[4:])["changed"]
    assert run(every_kind(tmp_path)[3])["changed"] and mode(tmp_path / "a/b/conf") == 0o600
    assert (tmp_path / "a/b/conf").read_text() == "one\n"
    assert sorted(os.listdir(tmp_path / "a/b")) == ["conf"], "nothing is left of how it came there"


def test_check_mode_says_what_a_run_then_does_and_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    files = [*every_kind(tmp_path)[:3], every_kind(tmp_path)[4]]
    said = run(*files, check=True)
    assert os.listdir(tmp_path) == ["old"]
    done = run(*files)
    assert said["changed_paths"] == done["changed_paths"]
    assert [each["after"] for each in said["diff"]] == [each["after"] for each in done["diff"]]
    assert not run(*files, check=True)["changed"]


def test_a_content_that_is_found_wrong_does_not_take_the_place_of_the_one_that_is_there(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text("good\n")
    with pytest.raises(FilesError, match=r"refuses what .*/conf would be, and says: it is wrong: bad"):
        run(entry(conf, content="bad\n", validate=REFUSES))
    assert conf.read_text() == "good\n" and os.listdir(tmp_path) == ["conf"]


@pytest.mark.parametrize("state", ["file", "directory", "link"])
def test_what_is_of_another_kind_is_not_removed_for_it(tmp_path: Path, state: str) -> None:
    path = tmp_path / "here"
    if state == "file":
        path.mkdir()
    else:
        path.write_text("precious\n")
    with pytest.raises(FilesError, match="Move it away"):
        run(entry(path, state=state, content="x" if state == "file" else None, src="/etc/hostname"))
    assert path.is_dir() or path.read_text() == "precious\n"


def test_a_link_is_replaced_by_a_file_and_what_it_led_to_stays(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other\n")
    (tmp_path / "conf").symlink_to("other")
    run(entry(tmp_path / "conf", content="mine\n"))
    assert not (tmp_path / "conf").is_symlink() and (tmp_path / "other").read_text() == "other\n"


@pytest.fixture
def process() -> Iterator[int]:
    """One that has just begun."""
    with subprocess.Popen(["sleep", "60"]) as started:
        yield started.pid
        started.kill()


def aged(path: Path, seconds: float) -> None:
    """Written so many seconds ago."""
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_process_is_to_restart_for_what_was_written_after_it_began_and_for_nothing_else(
    tmp_path: Path, process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = {"there": True, "active": True, "enabled": True, "reload": False, "pid": process}
    monkeypatch.setattr(_unit, "look", lambda name: dict(unit))
    conf, cert, other = tmp_path / "conf", tmp_path / "cert", tmp_path / "other"
    files = [entry(conf, content="one\n", at_start=True), entry(other, content="one\n")]
    for path in (conf, cert, other):
        path.write_text("one\n")
        aged(path, 3600)

    def newer(**options: Any) -> list[str]:
        found = run(*files, unit="x.service", reads=[str(cert)], **options)["unit"]
        assert found["restart"] == bool(found["newer"])
        return [Path(path).name for path in found["newer"]]

    assert newer() == []
    aged(other, -1)
    assert newer() == [], "that one is read again by itself"
    aged(cert, -1)
    assert newer() == ["cert"]
    aged(conf, -1)
    assert newer() == ["cert", "conf"], "as an interrupted run leaves it: the content is right, the process is not"
    aged(conf, 3600)
    aged(cert, 3600)
    files[0]["content"] = "two\n"
    assert newer(check=True) == ["conf"], "it would be written"
    assert newer() == ["conf"]
    unit["active"], unit["pid"] = False, 0
    assert not run(*files, unit="x.service")["unit"]["restart"], "what does not run reads it when it starts"


def test_what_systemd_says_of_units() -> None:
    shown = "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=yes\nMainPID=7\n"
    assert _unit.said(shown) == {"there": True, "active": True, "enabled": True, "reload": True, "pid": 7}
    nothing = "LoadState=not-found\nActiveState=inactive\nUnitFileState=\nNeedDaemonReload=no\nMainPID=0\n"
    nowhere = {"there": False, "active": False, "enabled": False, "reload": False, "pid": 0}
    assert _unit.said(nothing) == _unit.said("") == nowhere
