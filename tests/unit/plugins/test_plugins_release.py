"""Releases on a node: whole or not there, switched in one step, and the way back never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lavalite.cluster.plugins.module_utils import _release
from ansible_collections.lavalite.cluster.plugins.module_utils._release import ReleaseError, Releases
from ansible_collections.lavalite.cluster.plugins.modules.release import locked
from ansible_collections.lavalite.cluster.plugins.modules.release_info import look
from conftest import ROOT as CHECKOUT

Make = Callable[..., str]


def name_of(number: int, part: str = "node") -> str:
    return f"0.{number}.0+0123abcd-{part}-py311"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """An archive as build_release.py makes them, of release NUMBER."""

    def made(number: int, *, files: int = 3, **facts: Any) -> str:
        tree = tmp_path / f"tree-{number}"
        (tree / "lib").mkdir(parents=True)
        for index in range(files):
            (tree / f"lib/part{index}.py").write_text(f"value = {index}\n")
        sizes = [file.stat().st_size for file in (tree / "lib").iterdir()]
        said = {"name": name_of(number), "version": f"0.{number}.0+0123abcd", "protocol": [1, 1]}
        counted = {"files": len(sizes), "bytes": sum(sizes)}
        (tree / "release.json").write_text(json.dumps(said | counted | facts))
        archive = tmp_path / f"archive-{number}.tar.gz"
        with tarfile.open(archive, "w:gz") as out:
            out.add(tree, ".")
        return str(archive)

    return made


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The module, on a root of its own."""

    def ran(state: str, number: int | None = None, *, check: bool = False, **options: Any) -> dict[str, Any]:
        name = None if number is None else name_of(number)
        given = {"state": state, "name": name, "archive": None, "root": str(tmp_path / "root"), "keep": 3}
        result: dict[str, Any] = locked(given | {"python": sys.executable} | options, check)
        return result

    return ran


def test_a_release_comes_is_used_and_the_one_before_is_the_way_back(
    run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path
) -> None:
    for number in (1, 2):
        archive = make(number)
        assert run("installed", number, archive=archive)["changed"]
        assert not Path(archive).exists()
        assert run("current", number)["changed"]
    root = tmp_path / "root"
    assert os.readlink(root / "current") == f"releases/{name_of(2)}"
    assert os.readlink(root / "previous") == f"releases/{name_of(1)}"
    assert list((root / "current/lib/__pycache__").iterdir())
    back = run("previous")
    assert (back["changed"], back["current"], back["previous"]) == (True, name_of(1), name_of(2))
    assert (root / "current").resolve().name == name_of(1)


def test_what_is_right_stays_untouched(run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path) -> None:
    run("installed", 1, archive=make(1))
    run("current", 1)
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}
    assert not run("installed", 1)["changed"]
    assert not run("current", 1)["changed"]
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "root").rglob("*")} == before


def test_check_mode_says_what_the_run_does_and_does_nothing(
    run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path
) -> None:
    run("installed", 1, archive=make(1))
    run("current", 1)
    run("installed", 2, archive=make(2))
    for step in (("installed", 3), ("current", 3), ("previous",), ("current", 3)):
        options: dict[str, Any] = {"keep": 2}
        if step == ("installed", 3):
            options["archive"] = make(3)
        before = sorted(str(path) for path in (tmp_path / "root").rglob("*"))
        checked = run(*step, check=True, **options)
        assert sorted(str(path) for path in (tmp_path / "root").rglob("*")) == before
        assert checked == run(*step, **options)
    # From nothing: what the task before would have unpacked is not there.
    assert run("current", 9, check=True)["current"] == name_of(9)


@pytest.mark.parametrize("harm", ["file missing", "file cut", "no facts", "other name"])
def test_one_that_is_not_whole_is_replaced_and_never_used(
    run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path, harm: str
) -> None:
    run("installed", 1, archive=make(1))
    folder = tmp_path / "root/releases" / name_of(1)
    match harm:
        case "file missing":
            (folder / "lib/part1.py").unlink()
        case "file cut":
            (folder / "lib/part1.py").write_text("")
        case "no facts":
            (folder / "release.json").unlink()
        case "other name":
            folder.rename(folder.with_name(name_of(2)))
    number = 2 if harm == "other name" else 1
    assert look(str(tmp_path / "root"))["releases"] == []
    with pytest.raises(ReleaseError, match="not whole"):
        run("current", number)
    if number == 1:
        (tmp_path / "tree-1").rename(tmp_path / "tree-before")
    assert run("installed", number, archive=make(number))["changed"]
    assert run("current", number)["current"] == name_of(number)


KILLED_WHILE = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.lavalite.cluster.plugins.module_utils import _release

def die(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)

step, root, name, archive = sys.argv[2:]
releases = _release.Releases(root)
if step == "unpacking":
    extract = _release.tarfile.TarFile.makefile
    def once(self, info, path):
        extract(self, info, path)
        if "part1" in path:
            die()
    _release.tarfile.TarFile.makefile = once
    releases.unpack(name, archive, sys.executable)
elif step == "compiled":
    _release.os.sync = die
    releases.unpack(name, archive, sys.executable)
elif step == "removing":
    _release.discard = die
    releases.remove(name)
elif step.startswith("link"):
    left, link = int(step[4:]), releases._link
    def counted(*arguments):
        global left
        link(*arguments)
        left -= 1
        if left == 0:
            die()
    releases._link = counted
    releases.switch(name)
"""


def killed(step: str, root: Path, number: int, archive: str = "") -> None:
    """The module's own code, up to a point at which it is killed."""
    program = [sys.executable, "-c", KILLED_WHILE, str(CHECKOUT / ".ansible/collections"), step, str(root)]
    done = subprocess.run([*program, name_of(number), archive], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("step", ["unpacking", "compiled"])
def test_who_is_killed_while_unpacking_leaves_nothing_that_is_taken_for_whole(
    run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path, step: str
) -> None:
    root, archive = tmp_path / "root", make(1)
    killed(step, root, 1, archive)
    assert (root / "releases" / f".{name_of(1)}.part").exists()
    assert look(str(root))["releases"] == []
    assert run("installed", 1, archive=archive)["changed"]
    assert [one["name"] for one in look(str(root))["releases"]] == [name_of(1)]
    assert sorted(path.name for path in (root / "releases").iterdir()) == [".lock", name_of(1)]


def test_who_is_killed_while_removing_leaves_nothing_that_is_taken_for_whole(
    run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path
) -> None:
    run("installed", 1, archive=make(1))
    killed("removing", tmp_path / "root", 1)
    assert look(str(tmp_path / "root"))["releases"] == []
    run("installed", 2, archive=make(2))
    assert sorted(path.name for path in (tmp_path / "root/releases").iterdir()) == [".lock", name_of(2)]


@pytest.mark.parametrize("links", [1, 2, 3])
def test_going_back_may_be_killed_at_any_point_and_said_again(
    run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path, links: int
) -> None:
    for number in (1, 2):
        run("installed", number, archive=make(number))
        run("current", number)
    killed(f"link{links}", tmp_path / "root", 1)
    back = run("previous")
    assert (back["current"], back["previous"]) == (name_of(1), name_of(2))
    assert (run("previous")["current"], look(str(tmp_path / "root"))["previous"]) == (name_of(2), name_of(1))


def test_old_ones_go_but_never_those_in_use(
    run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 6):
        run("installed", number, archive=make(number))
    run("current", 1, keep=0)
    monkeypatch.setattr(_release, "used", lambda _root: {name_of(2): ["lavalite-lim"]})
    said = run("current", 5, keep=2)
    assert said["releases"] == [name_of(1), name_of(2), name_of(5)]
    assert said["behind"] == ["lavalite-lim"]
    assert not run("current", 5, keep=2)["changed"]


def test_who_runs_out_of_which_release_is_seen(
    run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path
) -> None:
    for number in (1, 2):
        run("installed", number, archive=make(number))
    run("current", 1)
    program = tmp_path / "lavalite-lim"
    program.write_text(
        "import mmap, sys\nfile = open(sys.argv[1])\n"
        "kept = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\nprint('mapped', flush=True)\nsys.stdin.read()\n"
    )
    mapped = tmp_path / "root/current/lib/part0.py"
    with subprocess.Popen(
        [sys.executable, program, mapped], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"
        assert run("current", 1)["behind"] == []
        assert run("current", 2, check=True)["behind"] == ["lavalite-lim"]
        assert run("current", 2)["behind"] == ["lavalite-lim"]
        assert look(str(tmp_path / "root"))["behind"] == ["lavalite-lim"]
        process.communicate()
    assert look(str(tmp_path / "root"))["behind"] == []


def test_one_by_which_an_attempt_ends_stays(
    run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        run("installed", number, archive=make(number))
        run("current", number, keep=0)
    monkeypatch.setattr(_release, "TRANSIENT_UNITS", str(tmp_path / "*.service"))
    unit = tmp_path / "lavalite-7.0.1.service"
    begin = tmp_path / "root/releases" / name_of(1) / "lib/begin.py"
    unit.write_text(f"[Service]\nExecStopPost=/usr/bin/python3 -I {begin} --end\n")
    said = run("current", 3, keep=1)
    assert (said["releases"], said["behind"]) == ([name_of(1), name_of(2), name_of(3)], [])
    unit.unlink()
    assert run("current", 3, keep=1)["releases"] == [name_of(2), name_of(3)]


@pytest.mark.parametrize(
    ("state", "options", "sentence"),
    [
        ("installed", {"name": "../etc"}, "name: '../etc' cannot be a release's name."),
        ("installed", {"name": name_of(1)}, "archive: there is no file None to make"),
        ("installed", {"name": name_of(1), "archive": __file__}, "is damaged"),
        ("current", {"name": name_of(1)}, "is not on this node, or not whole. Install it first."),
        ("previous", {}, "there is no release before the first one on this node"),
    ],
)
def test_what_cannot_be_is_said(
    run: Callable[..., dict[str, Any]], state: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ReleaseError) as caught:
        run(state, **options)
    assert sentence in str(caught.value)


def test_an_archive_of_something_else_is_refused(
    run: Callable[..., dict[str, Any]], make: Make, tmp_path: Path
) -> None:
    with pytest.raises(ReleaseError, match=r"is not 0\.2\.0"):
        run("installed", 2, archive=make(1))
    with pytest.raises(ReleaseError, match="not all of it"):
        run("installed", 3, archive=make(3, bytes=1))
    assert Releases(str(tmp_path / "root")).names() == []
