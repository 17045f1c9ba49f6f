"""The benches run, and say what they measured; how fast anything is, is not for a test that shares its machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_inventory_bench_measures_what_it_says() -> None:
    command = [sys.executable, "bench/inventory.py", "--hosts", "30", "--rounds", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode in (0, 1), done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    measured = {figure["metric"]: figure for figure in figures}
    assert {"parse", "--graph", "--list / no variables", "--list / Ansible's YAML"} <= measured.keys()
    assert all(set(figure) == {"metric", "value", "unit", "target", "ok", "peer"} for figure in figures)
    assert measured["hosts"]["value"] == 30 and measured["parse"]["value"] > 0
