"""The benches run, and say what they measured; how fast anything is, is not for a test that shares its machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from endtoend import part  # noqa: E402


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


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(1, 100))
def test_so_many_per_cent_do_not_exceed_a_part_and_fewer_stay_below_it(values: list[int], percent: int) -> None:
    found = part(list(map(float, values)), percent)
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


def test_of_a_hundred_the_ninety_ninth_part_is_the_last_but_one() -> None:
    assert part([float(value) for value in range(100, 0, -1)], 99) == 99


KEYS = {"metric", "value", "unit", "target", "ok", "peer"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "metrics"),
    [
        (["--nodes", "200", "--jobs", "500"], {"placements_per_second"}),
        (["--nodes", "200", "--jobs", "300", "--distinct"], {"placements_per_second"}),
        (["--nodes", "1000,2000", "--jobs", "100,200"], {"growth_exponent_nodes", "growth_exponent_jobs"}),
    ],
    ids=["classes", "distinct", "growth"],
)
def test_the_placement_bench_measures_what_it_says(words: list[str], metrics: set[str]) -> None:
    """Its choices are those of the naive reference, or it ends with an error."""
    figures = _figures("bench/placement.py", *words)
    assert metrics <= figures.keys()


@pytest.mark.slow
def test_the_bench_of_plans_measures_what_it_says() -> None:
    """Its plans are lawful enough never to beat what is proved to be best, or it ends with an error."""
    figures = _figures("bench/compose.py", "--nodes", "400", "--hosts", "40", "--cases", "12")
    assert figures["plan_seconds"]["peer"] == "40 hosts over 400 nodes"
    assert figures["hosts_placed"]["value"] == 40
    assert 0 <= figures["gap_to_optimum_percent"]["value"] <= 2


@pytest.mark.slow
def test_the_bench_of_compute_groups_measures_what_it_says() -> None:
    figures = _figures(
        "bench/groups.py", "--allocations", "12", "--held", "40", "--processes", "3", "--together", "24"
    )
    assert figures["given twice, 3 processes"]["value"] == 0
    assert figures["given twice, 3 processes"]["peer"] == "24 allocations"
    assert figures["not given"]["value"] == 0
    for metric in ("allocate_p50_ms, 8 GPUs", "allocate_p99_ms, 10000 GPUs", "allocate_p50_ms, a running system"):
        assert figures[metric]["value"] > 0
    assert figures["discovery_ms"]["target"] == "<= 200"


@pytest.mark.slow
def test_the_packing_bench_measures_what_it_says(tmp_path: Path) -> None:
    nodes = ["sn,cpu_milli,memory_mib,gpu,model", *(f"n{at},8000,65536,2,A100" for at in range(4))]
    (tmp_path / "openb_node_list_all_node.csv").write_text("\n".join(nodes))
    tasks = ["name,cpu_milli,memory_mib,num_gpu,gpu_milli", "a,1000,1024,1,500", "b,2000,1024,1,1000", "c,1000,1,0,0"]
    (tmp_path / "openb_pod_list_default.csv").write_text("\n".join(tasks))
    figures = _figures("bench/packing.py", "--trace", str(tmp_path), "--seeds", "1,2")
    shares = {name: share["value"] for name, share in figures.items() if name.startswith("unallocated_percent_")}
    assert len(shares) == 7 + 2
    assert all(shares["unallocated_percent_bound"] <= share <= 100 for share in shares.values())
    assert shares["unallocated_percent_best"] == min(
        share for name, share in shares.items() if not name.endswith(("_bound", "_best"))
    )


def test_the_packing_bench_says_which_trace_it_wants(tmp_path: Path) -> None:
    command = [sys.executable, "bench/packing.py", "--trace", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "no openb_node_list_all_node.csv and no openb_pod_list_default.csv" in done.stderr
    assert "cluster-trace-gpu-v2023" in done.stderr


@pytest.mark.etcd
@pytest.mark.slow
def test_the_commit_bench_measures_what_it_says() -> None:
    figures = _figures("bench/commit.py", "--keys", "512", "--rounds", "2")
    assert figures["committed keys per second, 3 members"]["peer"] == "512 keys"
    assert figures["commit_ratio_1"]["value"] > 0 and figures["commit_ratio_3"]["value"] > 0


@pytest.mark.etcd
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_bench_end_to_end_measures_what_it_says() -> None:
    words = ["--tasks", "5", "--rounds", "1", "--idle", "2", "--seconds", "0.4"]
    figures = _figures("bench/endtoend.py", *words, seconds=280)
    metrics = {"jobs_per_second", "idle_start_p50_ms", "idle_start_p99_ms", "loaded_start_p99_ms"}
    assert all(figures[metric]["value"] > 0 for metric in metrics)
    assert not figures.keys() & {"ratio_slurm", "ratio_hyperqueue"}, "no peer was asked for"


@pytest.mark.etcd
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_peer_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    """Slurm's programs are taken off PATH; what else there is goes on."""
    etcd = shutil.which("etcd")
    (tmp_path / "etcd").symlink_to(etcd or tmp_path)
    command = [sys.executable, "bench/endtoend.py", "--peer", "slurm", "--tasks", "5", "--rounds", "1", "--idle", "1"]
    done = subprocess.run(
        [*command, "--seconds", "0.4", "--json"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert "slurm could not be run: no slurmctld, slurmd, sbatch, squeue, sinfo on PATH" in done.stderr
    assert "idle_start_p50_ms" in done.stdout and "ratio_slurm" not in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_memory_bench_measures_what_it_says() -> None:
    words = ["--nodes", "20", "--jobs", "50", "--classes", "5", "--array", "100000"]
    figures = _figures("bench/memory.py", *words, seconds=280)
    assert figures["rss_mib"]["value"] > 10, "a Python process has more"
    assert figures["rss_mib"]["peer"] == "20 nodes, 50 pending jobs of 5 classes"
    assert figures["array_extra_mib"]["peer"] == "one array of 100000 tasks"


def _figures(*words: str, seconds: float = 100) -> dict[str, dict[str, float]]:
    command = [sys.executable, *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode in (0, 1), done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert all(set(figure) == KEYS for figure in figures)
    return {figure["metric"]: figure for figure in figures}
