"""Exit codes, sentences, and that no traceback reaches a person."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lavalite.base.errors import InputError, UnreachableError
from lavalite.cli.connect import Place, find_place
from lavalite.cli.main import run
from lavalite.providers import place as place_of

GOOD = """
cluster: rack1
pools:
  general: {nodes: "n*", kinds: [cpu, memory], default: true}
logical_hosts:
  trainer: {count: 2, cpu: 1, memory: 1GiB}
queues:
  normal: {priority: 30, policy: best-fit, default: true}
"""


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LAVALITE_API", "LAVALITE_STATE", "LAVALITE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(place_of, "SYSTEM_CONFIGURATION", tmp_path / "no-etc")
    monkeypatch.setattr(place_of, "SYSTEM_SOCKETS", tmp_path / "no-run")


def test_a_good_file_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pools.yml"
    file.write_text(GOOD)
    assert run(["check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: good: 1 pool, 2 logical hosts, 1 queue\n"


def test_every_fault_of_a_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pools.yml"
    file.write_text(GOOD.replace("1GiB", "1 apple").replace("best-fit", "no-such"))
    assert run(["check", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert [line.split(":")[1] for line in lines] == ["6", "8"]
    assert all(line.startswith(f"{file}:") for line in lines)


@pytest.mark.parametrize(
    ("typed", "code", "words"),
    [
        (["frob"], 2, "No such command 'frob'"),
        (["nods"], 2, "Did you mean 'nodes'? See `lavalite --help`."),
        (["jobs", "--frob"], 2, "See `lavalite jobs --help`"),
        (["job", "0"], 2, "JOB"),
        (["job", "twelve"], 2, "JOB"),
        (["jobs", "--in", "sleeping"], 2, "there is no state sleeping"),
        (["jobs", "--api", "ftp://x"], 2, "is no address of an API"),
        (["jobs", "--api", "http://x", "--state", "/x"], 2, "exclude each other"),
        (["up", "--api", "http://x:1"], 2, "acts on a state folder"),
        (["check", "/no/such/file"], 2, "there is no such file"),
        (["submit"], 2, "there is no command"),
        (["submit", "--shell", "x", "--", "y"], 2, "exclude each other"),
        (["submit", "--memory", "3", "--", "true"], 2, "--memory: 3 has no unit. Write 3GiB."),
        (["jobs"], 3, "Start it with `lavalite up`"),
        (["status"], 3, "does not answer"),
        (["resign"], 3, "cannot be reached"),
        (["submit", "--", "true"], 3, "does not answer"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    typed: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(typed) == code
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


def test_down_where_nothing_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["down", "--state", str(tmp_path / "nothing")]) == 0
    assert capsys.readouterr().out == "nothing was running\n"
    assert not (tmp_path / "nothing").exists()


def test_the_way_to_the_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_place().state == tmp_path / "none" / "lavalite"
    assert find_place("https://a:6880/, unix:/run/x.sock").api == ("https://a:6880", "unix:/run/x.sock")
    assert find_place(state="rel").state == Path.cwd() / "rel"
    monkeypatch.setenv("LAVALITE_API", "http://b:1")
    assert find_place().api == ("http://b:1",)
    assert find_place(state="/s").state == Path("/s")
    monkeypatch.setenv("LAVALITE_STATE", "/t")
    assert find_place().state == Path("/t")
    with pytest.raises(InputError):
        find_place("http://b:1", "/s")


def test_this_nodes_daemons_are_asked_where_there_are_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    monkeypatch.setattr(place_of, "SYSTEM_SOCKETS", run_folder)
    place = find_place()
    assert place == Place()
    assert place.lim_socket == run_folder / "lim.sock"
    with pytest.raises(UnreachableError, match="systemctl"):
        place.targets()


def test_a_reader_that_has_enough_is_told_nothing() -> None:
    command = f"{sys.executable} -m lavalite.cli.main --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] in ("0", "1")  # depends on who was first; that it is quiet does not
    assert done.stderr == ""
