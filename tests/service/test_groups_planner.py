"""docs/examples/planner.py, a planner in seven steps: on this machine without daemons, and on a running system.

And the page: what it shows in Python is run.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from groups_cluster import GPUS, up_system

ROOT = Path(__file__).resolve().parents[2]
PLANNER = ROOT / "docs/examples/planner.py"
PAGE = ROOT / "docs/computegroups.md"

pytestmark = [pytest.mark.slow]


def played(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LAVALITE_")}
    gpus = {"PYTHONPATH": str(Path(__file__).parent / "fake_gpus"), "FAKE_GPUS": GPUS}
    return {**kept, **gpus, **more}


def shown(tmp_path: Path) -> list[str]:
    """The one command of the page, with its files in a folder of the test's."""
    [line] = re.findall(r"^\$ (.*)$", PAGE.read_text(), re.MULTILINE)
    program, script, *rest = line.replace("/tmp", str(tmp_path)).split()
    assert (program, ROOT / script) == ("python", PLANNER)
    return [sys.executable, str(PLANNER), *rest]


@pytest.fixture(params=["local", "up"])
async def where(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param == "local":
        yield shown(tmp_path)[2]
        return
    async with up_system() as system:
        yield f"up:{system.state}"


async def test_seven_steps_with_prefill_and_decode_that_scale_and_go(where: str, tmp_path: Path) -> None:
    _, _, _, served = command = shown(tmp_path)
    command[2] = where
    done = await asyncio.to_thread(
        subprocess.run, command, env=played(), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = done.stdout.splitlines()
    assert list(dict.fromkeys(line[0] for line in steps)) == list("1234567"), steps
    assert "2 4 GPUs on" in done.stdout and done.stdout.count("is allocated, of") == 2
    assert "6 decode has 3 groups, 0 of them sick" in steps and steps[-1] == "7 4 of 4 GPUs are free"
    # What ran: one prefill and three of decode, each on a GPU of its own, and each was let finish.
    said = {file.name: file.read_text().splitlines() for file in Path(served).iterdir()}
    names = sorted(name.split(".")[0] for name in said)
    assert names == ["decode"] * 3 + ["prefill"], said
    gpus = [lines[0].rpartition(" ")[2] for lines in said.values()]
    assert sorted(gpus) == sorted(GPUS.split(",")), said
    assert all(lines[-1] == "drained" for lines in said.values()), said


def test_without_gpus_the_planner_says_so_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(PLANNER), f"local:{tmp_path / 'groups.db'}", str(tmp_path / "served")]
    environment = {**played(), "FAKE_GPUS": "GPU-0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.endswith("lacks 1 gpu.\n"), done.stderr


def test_what_the_page_shows_in_python_is_what_it_does(tmp_path: Path) -> None:
    [block] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    imports, _, body = block.partition("\n\n")
    program = f"import asyncio\n{imports}\nasync def main():\n{textwrap.indent(body, '    ')}\nasyncio.run(main())\n"
    environment = played(LAVALITE_GROUPS=f"local:{tmp_path / 'groups.db'}")
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("decode has 2 GPUs: allocated\n"), done.stdout


def test_each_requirement_of_the_page_names_tests_that_there_are() -> None:
    rows = [line for line in PAGE.read_text().partition("## The seed's requirements")[2].splitlines() if "|" in line]
    assert len(rows) > 25
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    for row in rows[2:]:
        named = re.findall(r"`([\w./]+)`", row.split("|")[2])
        assert named, row
        for name in named:
            if name.endswith(".py"):
                assert list((ROOT / "tests").rglob(name)) or (ROOT / name).exists(), name
            else:
                assert f"def {name}(" in tests, name
