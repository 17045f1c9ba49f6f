"""The commands of docs/planning.md, in order, at a real scheduler: what the page says of them is what they say."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_calls import open_folder, wait_for
from cluster import CLUSTER
from test_readme import commands
from whole import Whole

from lavalite.api.client import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PAGE = Path(__file__).resolve().parents[2] / "docs/planning.md"


class Typist:
    def __init__(self, folder: Path, client: Client) -> None:
        self.folder, self.client = folder, client
        self.socket = folder / "n1/m/api.sock"

    def type(self, text: str, exit_code: int = 0) -> str:
        """What it says on standard output."""
        return self._run(text, exit_code).stdout

    def refused(self, text: str, exit_code: int = 1) -> str:
        """What it says on standard error, of a command that fails."""
        return self._run(text, exit_code).stderr

    def _run(self, text: str, exit_code: int) -> subprocess.CompletedProcess[str]:
        words = shlex.split(text, comments=True)
        assert words[0] == "lavalite", text
        environment = {**os.environ, "LAVALITE_API": f"unix:{self.socket}", "COLUMNS": "300"}
        command = [sys.executable, "-m", "lavalite.cli.main", *words[1:]]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert told.returncode == exit_code, f"{text}\n{told.stdout}\n{told.stderr}"
        return told


@pytest.fixture
def typist() -> Iterator[Typist]:
    with open_folder() as folder:
        store = {"kind": "sqlite", "path": str(folder / "store.db")}
        with Whole(folder, {"n1": 9}, store=store).running() as cluster:
            lim = asyncio.run(cluster.serving())
            (folder / "n1").chmod(0o755)
            with cluster.client(lim) as client:
                yield Typist(folder, client)


def test_the_page_on_planning_is_true(typist: Typist) -> None:
    (written,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    pools = typist.folder / "pools.yml"
    pools.write_text(written.replace("cluster: planned", f"cluster: {CLUSTER}"))
    typist.type(f"lavalite definition apply {pools}")
    client, typed = typist.client, commands(PAGE)
    for command in typed[:4]:
        typist.type(command.text)
    first, large, long, short = (job.id for job in client.jobs())
    for job in (first, short):
        wait_for(lambda job=job: client.job(job).state == "running", 30, f"job {job} runs")
    told = {command.text: typist.type(command.text, command.exit_code) for command in typed[4:]}
    wide = told["lavalite jobs -o wide"].splitlines()
    lines = {job: next(line for line in wide if line.split()[0] == str(job)) for job in (first, large, long, short)}
    assert "STARTS" in wide[0]
    assert "planned" in lines[large] and "about" in lines[long]
    assert [client.job(job).state for job in (first, large, long, short)] == [
        "running",
        "pending",
        "pending",
        "running",
    ]
    waits_seconds = (client.job(large).starts_at or 0) - (client.job(first).submitted_at)
    assert 670 <= waits_seconds < 700
    assert "starts  planned" in told["lavalite explain 2"] and "starts  about" in told["lavalite explain 3"]
    assert re.search(r"^starts +about ", told["lavalite job 3"], re.MULTILINE)
    listed = {line.split()[0]: line for line in told["lavalite reservations"].splitlines()}
    assert "weekday (Europe/Berlin)" in listed["on-call"] and "planned" in listed["course"]
    assert "Reservation on-call begins in" in told["lavalite explain 5"]
    assert "starts  not before 2099-03-02" in told["lavalite explain 5"]
    assert list(client.reservations()) == []
