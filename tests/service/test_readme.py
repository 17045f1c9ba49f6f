"""Every command of the README, in order, in a copy of the checkout: what a newcomer types is what is tested.

A block of ```console holds commands after `$ `. A comment `# exit N` says that one is meant to end so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ports import free_ports
from test_pages import PAGES

ROOT = Path(__file__).resolve().parents[2]
PORTS = (7869, 6881, 6880)
OPERATING = ROOT / "docs/operating.md"
SCRATCH = "/tmp/tour-of-lavalite"
"""In the README; somebody else on this machine may be testing it as well, so each has one of their own."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.xdist_group("readme")]


@dataclass(frozen=True)
class Command:
    line: int
    text: str
    exit_code: int


def commands(page: Path) -> list[Command]:
    found, inside = [], False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith("$ "):
            meant = re.search(r"# exit (\d)$", line)
            found.append(Command(number, line[2:], int(meant[1]) if meant else 0))
    return found


class Newcomer:
    """Somebody at a shell in a fresh checkout: a folder that is kept, variables that stay exported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True,
        ).stdout.decode()  # fmt: skip
        for name in filter(None, files.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        # What is installed already is taken as it is: were a file newer than the stamps, `make` would install this
        # passing folder into the environment that the tests run in, and nobody could import LavaLite afterwards.
        (folder / ".venv").symlink_to(Path(sys.prefix))
        for path in (folder / "pyproject.toml", *(folder / "requirements").iterdir()):
            os.utime(path, (0, 0))
        hosts = folder / "inventories/local/hosts.yml"
        text = hosts.read_text()
        for port, mine in zip(PORTS, free_ports(len(PORTS)), strict=True):
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{mine}")
        hosts.write_text(text)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_", "MAKE", "MFLAGS"))}
        self.environment = kept | {"ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_NOCOLOR": "1"}

    def type(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run a line as a shell would; what it exports is there for the next one."""
        text = text.replace(SCRATCH, f"{self.folder}/tour")
        kept = self.folder / "environment"
        told = subprocess.run(
            ["/bin/sh", "-c", f"{text}\nstatus=$?\nenv -0 > {kept}\nexit $status"],
            cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        self.environment = dict(entry.split("=", 1) for entry in kept.read_text().split("\0") if entry)
        return told


def left_running(folder: Path) -> list[str]:
    """Command lines of processes that were started for this checkout."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
            if f"{folder}/" in words:
                found.append(words)
    return found


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    folder = Path(tempfile.mkdtemp(prefix="ll-"))  # short: sockets have to fit below it
    somebody = Newcomer(folder)
    try:
        yield somebody
    finally:
        somebody.type("make demo-down")
        somebody.type(f".venv/bin/lavalite down --state {SCRATCH} --purge")
        shutil.rmtree(folder, ignore_errors=True)


def test_the_readme_is_true(newcomer: Newcomer) -> None:
    typed = commands(ROOT / "README.md")
    assert len(typed) > 20, "the README's commands are found by their ```console blocks"
    for command in typed:
        told = newcomer.type(command.text)
        said = f"README.md:{command.line}: {command.text}\n{told.stdout[-3000:]}\n{told.stderr[-3000:]}"
        assert told.returncode == command.exit_code, said
        assert "Traceback" not in told.stdout + told.stderr, said
        if command.text.endswith("-o json"):
            assert isinstance(json.loads(told.stdout), list), said
        if command.text == "make demo":
            assert re.search(r"^[0-9a-f]{64} \d+ files$", told.stdout, re.MULTILINE), said
        if command.text == "make demo-down":
            assert left_running(newcomer.folder) == [], said
        if command.text.startswith("ansible-playbook"):
            assert re.search(r"changed=0 .*failed=0", told.stdout), said


def test_every_command_is_in_a_page_that_is_tested() -> None:
    """Other pages hold no commands that nobody runs, but those of CONTRIBUTING, which is how this test is run."""
    pages = [p for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if commands(p)]
    others = (
        "back-pressure.md",
        "computegroups.md",
        "jobs.md",
        "parts.md",
        "placing.md",
        "planning.md",
        "replay.md",
        "vm.md",
    )
    tested = {"CONTRIBUTING.md", "README.md", OPERATING.name, *PAGES, *others}
    assert sorted(p.name for p in pages) == sorted(tested)


@pytest.mark.parametrize("command", commands(OPERATING), ids=lambda command: command.text)
def test_the_commands_of_operating_exist(command: Command, tmp_path: Path) -> None:
    """What they do needs hosts of their own and is tested there; here, that the page names what there is."""
    words = shlex.split(command.text)
    if words[0] == "ansible-playbook":
        words.append("--syntax-check")
    elif words[0] == "lavalite":
        words.append("--help")
    else:
        assert words[0] in {"systemctl", "journalctl", "systemd-analyze", "/usr/local/sbin/lavalite-etcd"}
        return
    environment = os.environ | {"LAVALITE_MODE": "plan", "ANSIBLE_HOME": str(tmp_path)}
    told = subprocess.run(
        [str(Path(sys.executable).parent / words[0]), *words[1:]],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
