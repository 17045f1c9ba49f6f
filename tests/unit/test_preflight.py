"""What a machine lacks is named in one sentence, with the way out, before anything is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PREFLIGHT = Path(__file__).resolve().parents[2] / "tools/preflight"


def look(python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    return subprocess.run(
        [PREFLIGHT, python],
        env=kept | {"LC_ALL": "C.UTF-8"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def fake_python(folder: Path, fails_on: str) -> str:
    """A Python that fails at what holds the word, and says that it is an old one."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\ncase "$*" in *{fails_on}*) exit 1 ;; --version) echo Python 3.9.2 ;; esac\n')
    path.chmod(0o755)
    return str(path)


def test_a_machine_that_lacks_nothing_is_told_nothing() -> None:
    done = look(sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("fails_on", "says"),
    [("version_info", "Python 3.9.2 is too old"), ("venv", "apt-get install python3-venv")],
)
def test_what_a_python_lacks_is_one_sentence(tmp_path: Path, fails_on: str, says: str) -> None:
    done = look(fake_python(tmp_path, fails_on))
    assert done.returncode == 1
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = look(str(tmp_path / "none"))
    assert done.returncode == 1 and f"there is no {tmp_path}/none on PATH" in done.stderr


def test_a_locale_that_is_not_utf8_is_named_with_the_way_out() -> None:
    done = look(sys.executable, LC_ALL="C")
    assert done.returncode == 1
    assert "LC_ALL=C.UTF-8" in done.stderr and done.stderr.count("\n") == 1
