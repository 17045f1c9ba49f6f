"""The pages whose examples are run: each in a LavaLite of its own, and what a page shows is what is said.

A block of ```console holds commands after `$ `, and below a command lines that its output has: spaces count as one,
`…` stands for anything, and what stands before and after a line may be left out. `# exit N` says how a command ends.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "fairness.md": "fairness.yml",
    "hosts.md": "../../inventories/composed/pools.yml",
    "preemption.md": "preemption.yml",
    "quotas.md": "quotas.yml",
}
PATIENCE_SECONDS = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200), pytest.mark.xdist_group("readme")]


@dataclass
class Step:
    line: int
    command: str
    exit_code: int
    shown: list[str] = field(default_factory=list)


def steps(page: Path) -> list[Step]:
    found: list[Step] = []
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith("$ "):
            meant = re.search(r"# exit (\d)$", line)
            found.append(Step(number, line[2:], int(meant[1]) if meant else 0))
        elif inside and line.strip():
            found[-1].shown.append(line)
    return found


def said(shown: str, output: str) -> bool:
    """Whether a line of the output has what the page shows."""
    parts = [re.escape(" ".join(part.split())) for part in shown.split("…")]
    return re.search(r" ?.* ?".join(parts), " ".join(output.split())) is not None


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    folder = tempfile.mkdtemp(prefix="ll-")  # short: sockets have to fit below it
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LAVALITE_", "ANSIBLE_"))}
    programs = Path(sys.executable).parent
    values = kept | {"LAVALITE_STATE": f"{folder}/s", "PATH": f"{programs}:{kept['PATH']}", "COLUMNS": "200"}
    try:
        yield values
    finally:
        run("lavalite down --purge", values)


def run(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_true(name: str, environment: dict[str, str]) -> None:
    typed = steps(ROOT / "docs" / name)
    assert sum(len(step.shown) for step in typed) > 4, "what a page shows is found below its commands"
    for step in typed:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            told = run(step.command, environment)
            output = f"{told.stdout}\n{told.stderr}"
            missing = [line for line in step.shown if not said(line, output)]
            # What was submitted a moment ago may not run yet.
            if not missing or time.monotonic() > until:
                break
        where = f"docs/{name}:{step.line}: {step.command}\n{output}"
        assert told.returncode == step.exit_code, where
        assert not missing, f"{where}\nnot said: {missing}"
        assert "Traceback" not in output, where


@pytest.mark.parametrize(("name", "example"), PAGES.items())
def test_the_example_is_the_one_that_the_page_shows(name: str, example: str) -> None:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)
    assert block and (ROOT / "docs/examples" / example).read_text().endswith(block[1])


def test_the_play_that_resizes_and_drains_is_one(tmp_path: Path, environment: dict[str, str]) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/hosts.md").read_text(), re.DOTALL)
    (play,) = [block for block in blocks if block.startswith("- hosts:")]
    (tmp_path / "play.yml").write_text(play)
    told = run(f"ansible-playbook -i inventories/local --syntax-check {tmp_path}/play.yml", environment)
    assert told.returncode == 0, told.stdout + told.stderr
    taken = {key for task in yaml.safe_load(play)[0]["tasks"] for key in task["lavalite.cluster.logical_host"]}
    documentation = (ROOT / "plugins/modules/logical_host.py").read_text().split('"""')[1]
    assert taken <= yaml.safe_load(documentation)["options"].keys()
