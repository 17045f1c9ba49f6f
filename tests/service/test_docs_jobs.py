"""docs/jobs.md is true: its files are laid down, its commands typed in order, and what it shows is what is said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/jobs.md"
STATE = "/tmp/jobs-of-lavalite"
"""As the page has it; here it is a folder of the test's own."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.xdist_group("docs_jobs")]


class Typed(NamedTuple):
    line: int
    command: str
    exit_code: int
    shown: list[str]


def blocks(page: Path) -> Iterator[tuple[str, int, list[str]]]:
    """What stands after the ``` of each block, the line where it begins, and its lines."""
    kind, first, lines = "", 0, list[str]()
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            if inside:
                yield kind, first, lines
            inside, kind, first, lines = not inside, line[3:], number + 1, []
        elif inside:
            lines.append(line)


def typed(page: Path) -> list[Typed]:
    """Commands after `$ `, each with the lines that it is shown to say."""
    found: list[Typed] = []
    for kind, first, lines in blocks(page):
        for number, line in enumerate(lines if kind == "console" else (), first):
            if line.startswith("$ "):
                meant = re.search(r"# exit (\d)$", line)
                found.append(Typed(number, line[2:], int(meant[1]) if meant else 0, []))
            else:
                found[-1].shown.append(line)
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ll-jobs-"))
    try:
        yield made
    finally:
        subprocess.run(
            [sys.executable, "-P", "-m", "lavalite.cli.main", "down", "--state", str(made / "state"), "--purge"],
            capture_output=True, check=False, timeout=100,
        )  # fmt: skip
        shutil.rmtree(made, ignore_errors=True)


def test_the_page_is_true(folder: Path) -> None:
    for kind, _, lines in blocks(PAGE):
        if name := kind.partition(" ")[2]:
            (folder / name).write_text("\n".join(lines) + "\n")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_"))}
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        "LAVALITE_STATE": str(folder / "state"),
    }
    commands = typed(PAGE)
    assert len(commands) > 20, "the commands are found by their ```console blocks"
    played: list[list[tuple[str, str]]] = []
    for line, command, exit_code, shown in commands:
        typed_here = command.replace(STATE, str(folder / "state"))
        told = subprocess.run(
            ["/bin/sh", "-c", typed_here], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        said = f"jobs.md:{line}: {command}\n{told.stdout[-3000:]}\n{told.stderr[-3000:]}"
        assert told.returncode == exit_code, said
        assert "Traceback" not in told.stdout + told.stderr, said
        for expected in shown:
            assert expected in (told.stdout + told.stderr).splitlines(), f"{said}\nit does not say: {expected}"
        if command.startswith("ansible-playbook"):
            played.append(re.findall(r"changed=(\d+) .*failed=(\d+)", told.stdout))
    assert played == [[("1", "0")], [("0", "0")]], "submitted once"
