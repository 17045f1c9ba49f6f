"""`lavalite simulate --live`: a daemon that converges, and ends in order when it is told to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIO = Path(__file__).resolve().parents[2] / "scenarios/computelite.yml"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_shows_the_cluster_and_ends_with_a_report(number: signal.Signals) -> None:
    words = ["simulate", "--live", "--speed", "60", "--json", str(SCENARIO)]
    with subprocess.Popen(
        [sys.executable, "-m", "lavalite.cli.main", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None and daemon.stderr is not None
        kinds = []
        for line in daemon.stdout:
            record = json.loads(line)
            kinds.append(record["type"])
            if record["type"] == "snapshot":
                daemon.send_signal(number)
            if record["type"] == "report":
                assert record["ended"] == "stopped" and record["at"] >= 60
        assert daemon.wait() == 0 and daemon.stderr.read() == ""
    assert {"event", "snapshot"} <= set(kinds) and kinds[-1] == "report"


def test_it_ends_at_its_time() -> None:
    words = ["simulate", "--live", "--speed", "600", "--until", "5m", "--no-events", str(SCENARIO)]
    done = subprocess.run(
        [sys.executable, "-m", "lavalite.cli.main", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("-- 0:0") == 5 and "17 submitted, 17 succeeded, 0 unfinished" in done.stdout
