"""Scenarios in virtual time: what they say, what happens in them, and that it happens the same way each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lavalite.cli import main
from lavalite.control.tasks import TaskKey
from lavalite.model.task import AttemptId
from lavalite.simulate.report import Report
from lavalite.simulate.run import Simulation
from lavalite.simulate.scenario import read_scenario
from lavalite.simulate.story import Line

ROOT = Path(__file__).resolve().parents[2]
COMPUTELITE = ROOT / "scenarios/computelite.yml"
PAGE = (ROOT / "docs/simulate.md").read_text()
AT_ONCE = "settings: {store_ms: 0, network_ms: 0}\n"

sys.path.insert(0, str(ROOT / "bench"))
import packing  # noqa: E402


def play(folder: Path, text: str, until: float | None = None, **settings: object) -> tuple[Report, list[str]]:
    """The report of a scenario, and its lines without the time."""
    file = folder / "scenario.yml"
    file.write_text(text)
    lines: list[Line] = []
    run = Simulation(read_scenario(file, settings), lines.append, lambda snapshot: None)
    return run.run(until), [f"{line.who}: {line.text}" for line in lines]


def refused(folder: Path, text: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said of a scenario that cannot be run."""
    file = folder / "bad.yml"
    file.write_text(text)
    assert main.run(["simulate", str(file), *words]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    return out.err.replace(str(file), "bad.yml")


# --- the story ------------------------------------------------------------------------------------------------------


def told(hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lavalite.cli.main", "simulate", str(COMPUTELITE)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_node_falls_silent_its_jobs_finish_elsewhere_and_it_comes_back_twice_the_same() -> None:
    first = told("1")
    assert first == told("2")
    shown = PAGE.split("Of that run, among others:")[1].split("```")[1].strip().splitlines()
    at = -1
    for line in shown:
        assert line in first, line
        assert first.index(line) > at, f"{line}: not in that order"
        at = first.index(line)
    assert "17 submitted, 17 succeeded, 0 unfinished" in first


@pytest.mark.slow
def test_the_page_answers_its_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the page says what the page shows, and draws a picture."""
    command = next(line for line in PAGE.splitlines() if "--sweep policy" in line and line.startswith("lavalite"))
    words = (
        command.replace("scenarios/", f"{ROOT}/scenarios/").replace("growth.svg", f"{tmp_path}/growth.svg").split()
    )
    assert main.run(words[1:]) == 0
    table = PAGE.split(command)[1].split("```\n")[2]
    assert capsys.readouterr().out == table
    assert (tmp_path / "growth.svg").read_text().startswith("<?xml")
    assert (ROOT / "docs/images/gpu-growth.svg").is_file()


# --- sums -----------------------------------------------------------------------------------------------------------


def test_waits_makespan_and_use_are_as_one_can_reckon(tmp_path: Path) -> None:
    """4 cores, three jobs of 2 cores for 60 s: two at once, the third at 60 s. 3 × 2 × 60 of 4 × 120: 75 %."""
    text = "nodes: {n: {cpu: 4}}\njobs: {a: {count: 3, cpu: 2, runs: 1m}}\n" + AT_ONCE
    report, _ = play(tmp_path, text)
    assert (report.ended, report.makespan, report.use) == ("done", 120.0, {"cpu": 0.75})
    assert (report.wait["p50"], report.wait["max"], report.wait["mean"]) == (0.0, 60.0, 20.0)
    assert report.slowdown["max"] == 2.0


def test_who_gets_what_is_seen_in_fairness(tmp_path: Path) -> None:
    """Ada has 3 × 60 core-seconds, bob 1 × 60: (180 + 60)² ÷ (2 × (180² + 60²)) = 0.8."""
    jobs = "{a: {count: 3, runs: 1m, user: ada}, b: {runs: 1m, user: bob}}"
    report, _ = play(tmp_path, f"nodes: {{n: {{cpu: 4}}}}\njobs: {jobs}\n{AT_ONCE}")
    assert report.fairness == 0.8


def test_who_gets_nothing_counts_in_fairness(tmp_path: Path) -> None:
    """Ada has all of the one core: 1 of two users, 60² ÷ (2 × 60²) = 0.5."""
    jobs = "{a: {runs: forever, user: ada}, b: {at: 1s, runs: 1m, user: bob}}"
    report, _ = play(tmp_path, f"nodes: {{n: {{cpu: 1}}}}\njobs: {jobs}\n{AT_ONCE}", 60.0)
    assert report.fairness == 0.5
    assert (report.wait["p50"], report.wait["max"]) == (59.0, 59.0), "bob has waited since 1 s, and still does"


def test_a_slow_node_takes_as_many_times_as_long(tmp_path: Path) -> None:
    """60 s of work; 30 s of it done, then three times as slow for 60 s, which is 20 s of work, then the last 10 s."""
    text = "nodes: {n: {cpu: 1}}\njobs: {a: {runs: 1m}}\nfaults: [{at: 30s, slow: n, factor: 3, for: 1m}]\n" + AT_ONCE
    assert play(tmp_path, text)[0].makespan == 100.0


def test_what_takes_longer_than_its_walltime_is_ended(tmp_path: Path) -> None:
    text = "nodes: {n: {cpu: 1}}\njobs: {a: {runs: 1h, walltime: 2m}}\n" + AT_ONCE
    report, lines = play(tmp_path, text)
    assert (report.makespan, report.tasks["failed"]) == (120.0, 1)
    assert "JobController: job 1 (a) Running → Failed on n" in lines


def test_a_node_that_crashes_loses_what_ran_and_it_runs_again(tmp_path: Path) -> None:
    text = "nodes: {n: {cpu: 1}}\njobs: {a: {runs: 1m}}\nfaults: [{at: 30s, crash: n, for: 20s}]\n"
    report, lines = play(tmp_path, text)
    assert report.tasks["succeeded"] == 1 and report.evictions == 1 and 110 < report.makespan < 120
    assert "ReschedulerController: job 1 (a) Evicted from n → Pending" in lines


def test_what_runs_goes_on_under_another_leader(tmp_path: Path) -> None:
    text = "nodes: {n: {cpu: 1}}\njobs: {a: {count: 2, runs: 1m}}\nfaults: [{at: 30s, lose_leader: true}]\n"
    report, lines = play(tmp_path, text)
    assert report.tasks["succeeded"] == 2 and report.placements == 2 and report.makespan < 121
    assert "scenario: another leader serves, epoch 2" in lines


def test_without_a_store_for_longer_than_the_lease_the_leader_is_lost(tmp_path: Path) -> None:
    for seconds, epoch in ((5, 1), (30, 2)):
        text = "nodes: {n: {cpu: 1}}\njobs: {a: {at: 31s, runs: 1m}}\n"
        fault = f"faults: [{{at: 30s, store_outage: true, for: {seconds}s}}]\n"
        report, lines = play(tmp_path, text + fault)
        assert report.tasks["succeeded"] == 1
        assert any("epoch 2" in line for line in lines) == (epoch == 2)


def test_a_drained_node_gets_nothing_new(tmp_path: Path) -> None:
    text = (
        "nodes: {n: {cpu: 1}, m: {cpu: 1}}\njobs: {a: {at: 10s, count: 2, runs: 1m}}\n"
        "faults: [{at: 5s, drain: m, for: 10m}]\n"
    )
    report, lines = play(tmp_path, text)
    assert 130 < report.makespan < 131 and not any("to m" in line for line in lines)


# --- laws -----------------------------------------------------------------------------------------------------------

TROUBLE = """
seed: {seed}
snapshot_every: 10m
queues: {{normal: {{fence_after: 20s, lost_after: 40s, retries: 3}}}}
nodes:
  n: {{count: 6, cpu: 4, gpu: {{count: 2}}, rack: r1}}
jobs:
  a: {{count: 30, every: {{exponential: 10s}}, runs: {{exponential: 40s}}, cpu: 2}}
  b: {{count: 10, every: {{uniform: [5s, 40s]}}, runs: {{uniform: [10s, 60s]}}, gpu: {{count: 0.5}}, fails: 20%}}
  c: {{count: 4, every: 1m, tasks: 3, gang: true, runs: 30s}}
faults:
  - {{at: 20s, lose_messages: 5%, for: 3m}}
  - {{at: 50s, lose_leader: true}}
  - {{at: 70s, stop_beats: any, for: 30s}}
  - {{at: 90s, partition: [n-1, n-2], for: 90s}}
  - {{at: 150s, crash: any, for: 20s}}
  - {{at: 200s, store_outage: true, for: 25s}}
  - {{at: 210s, slow: any, factor: 3, for: 1m}}
  - {{at: 230s, drain: any, for: 30s}}
"""


class Watched(Simulation):
    """Holds the laws while it runs: an attempt starts once, and a rerunnable task runs in one place at a time."""

    def started(self, now: float, attempt: AttemptId, node: str) -> None:
        super().started(now, attempt, node)
        self.begun.append(attempt)
        key = TaskKey(attempt.job, attempt.task)
        runs = [a for agent in self.cluster.agents.values() for a in agent.running if TaskKey(a.job, a.task) == key]
        assert runs == [attempt], f"{attempt} starts while {runs} run"

    def ticked(self, now: float) -> None:
        super().ticked(now)
        self.cluster.state.book.check()

    begun: list[AttemptId]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_wrong_every_job_ends_and_runs_once_at_a_time(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "trouble.yml"
    file.write_text(TROUBLE.format(seed=seed))
    run = Watched(read_scenario(file), lambda line: None, lambda snapshot: None)
    run.begun = []
    report = run.run(3 * 3600.0)
    assert report.ended == "done", f"seed {seed}: {report}"
    assert len(run.begun) == len(set(run.begun))
    assert report.tasks["submitted"] == 52 and report.tasks["unfinished"] == 0
    assert sum(report.tasks[state] for state in ("succeeded", "failed") if state in report.tasks) == 52
    book = run.cluster.state.book
    book.check()
    assert not list(book.owners()), "everything is given back"


def test_each_task_has_the_node_that_the_bench_of_packing_gives_it() -> None:
    """The whole control plane, one task a second, against the placement room alone: 40 nodes, 400 tasks."""
    nodes = [
        {"sn": f"n{at}", "cpu_milli": "32000", "memory_mib": "131072", "gpu": str(at % 5), "model": "A"}
        for at in range(40)
    ]
    tasks = [
        packing._request(
            {"cpu_milli": str(1000 * cpu), "memory_mib": "4096", "num_gpu": str(n), "gpu_milli": str(part)}
        )
        for cpu, n, part in ((4, 1, 500), (8, 1, 1000), (2, 0, 0), (16, 2, 1000), (1, 1, 250))
    ]
    drawn = packing.draw(tasks, packing._gpus(nodes), 3)
    for policy in ("first-fit", "best-fit", "round-robin", "binpack", "spread", "gpu-packing"):
        here = packing.choices(nodes, drawn, packing.Workload(), policy)
        assert packing.simulated(nodes, drawn, policy) == here, policy


# --- bad input ------------------------------------------------------------------------------------------------------

GOOD = "nodes: {n: {cpu: 1}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "job: {}\n", "bad.yml:2: job: unknown key. Did you mean jobs?"),
        (
            GOOD + "jobs:\n  a: {runs: 1m, cpus: 2}\n",
            "bad.yml:3: jobs.a.cpus: unknown key. Did you mean cpu?",
        ),
        (GOOD + "faults:\n  - {at: -5s, lose_leader: true}\n", "bad.yml:3: faults[0].at: -5s is negative."),
        (
            GOOD + "jobs:\n  a: {runs: 1m, pools: {cpu: big}}\n",
            "bad.yml:3: jobs.a.pools.cpu: there is no pool big. None is defined.",
        ),
        (GOOD + "jobs:\n  a: {cpu: 1}\n", "bad.yml:3: jobs.a.runs: missing."),
        (GOOD + "jobs: {a: {runs: {normal: 3m}}}\n", "normal is not spelled like that. Write a duration, or"),
        (GOOD + "jobs: {a: {runs: {uniform: [3m, 1m]}}}\n", "1m is less than 3m. Write the lesser first."),
        (GOOD + "faults: [{at: 1s, crash: m}]\n", "faults[0].crash: there is no node m. "),
        (GOOD + "faults: [{at: 1s}]\n", "one thing goes wrong at a time. Write one of stop_beats"),
        (GOOD + "faults: [{crash: n}]\n", "when it happens is not said, or twice."),
        (GOOD + "queues: {q: {policy: beste-fit}}\n", "queues.q.policy: there is no policy beste-fit."),
        (GOOD + "policy: nearest\n", "bad.yml:2: policy: there is no policy nearest."),
        (GOOD + "jobs: {a: {runs: 1m, after: b}}\n", "there are no jobs b above it."),
        (GOOD + "jobs: {a: {runs: 1m, every: 0}}\n", "jobs without end, all at once."),
        ("jobs: {a: {runs: 1m}}\n", "there are no nodes."),
        ("nodes: {n: {count: 2}, n-1: {}}\n", "two nodes are called n-1."),
        ("- 1\n", "a list is not a mapping."),
        (GOOD + "traces: [{swf: gone.swf}]\n", "gone.swf cannot be read: No such file or directory."),
    ],
)
def test_what_is_wrong_is_said_with_file_line_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    assert said in refused(tmp_path, text, capsys)


def test_a_broken_line_of_a_trace_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.swf").write_text(
        "; a comment\n" + "1 0 -1 60 2 -1 -1 2 60 -1 1 3 1 -1 1 -1 -1 -1\n2 x\n3 0 -1 y" + " 1" * 14
    )
    said = refused(tmp_path, GOOD + "traces: [{swf: a.swf}]\n", capsys)
    assert "a.swf:3: 2 fields. A line of SWF has 18 numbers." in said
    assert "a.swf:4: field 4: y is no number." in said
    (tmp_path / packing.NODES).write_text("sn,cpu_milli,memory_mib,gpu,model\nn,1000,1024,0,\n")
    columns = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,creation_time,deletion_time,scheduled_time"
    (tmp_path / packing.TASKS).write_text(f"{columns}\na,1000,10,0,0,5,9,5\nb,1000,ten,0,0,5,9,5\n")
    said = refused(tmp_path, "traces: [{openb: .}]\n", capsys)
    assert f"{packing.TASKS}:3: memory_mib: ten is no number." in said


def test_a_trace_runs_as_it_was_recorded(tmp_path: Path) -> None:
    """Two cores asked at once for 60 s from 100 s on, then one for 30 s from 110 s on, on two cores."""
    lines = ["1 100 -1 60 2 -1 -1 2 60 -1 1 3 1 -1 1 -1 -1 -1", "2 110 -1 30 1 -1 -1 1 60 -1 1 4 1 -1 1 -1 -1 -1"]
    (tmp_path / "a.swf").write_text("\n".join(lines))
    report, _ = play(tmp_path, "nodes: {n: {cpu: 2}}\ntraces: [{swf: a.swf}]\n" + AT_ONCE)
    assert (report.makespan, report.tasks["succeeded"], report.wait["max"]) == (190.0, 3, 50.0)


def test_what_has_no_end_needs_one_and_says_that_it_was_cut_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for jobs in ("{runs: forever}", "{runs: 1m, every: 30s}"):
        text = f"{GOOD}jobs: {{a: {jobs}}}\nevents: false\n"
        assert "has no end. Give --until 2h" in refused(tmp_path, text, capsys)
        assert main.run(["simulate", str(tmp_path / "bad.yml"), "--until", "10m"]) == 0
        assert "its time was up, what follows is of a part" in capsys.readouterr().out


def test_what_can_never_start_ends_the_run_and_is_explained(tmp_path: Path) -> None:
    """It is let in before anybody knows what there is; a core is all there is."""
    report, _ = play(tmp_path, "nodes: {n: {cpu: 1, joins: 10s}}\njobs: {a: {cpu: 2, runs: 1m}}\n")
    assert report.ended == "stalled" and report.tasks["unfinished"] == 1
    assert "too small" in report.unfinished[0] or "smaller" in report.unfinished[0], report.unfinished


def test_settings_are_put_in_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.yml"
    file.write_text("nodes: {n: {cpu: 1, count: 2}}\njobs: {a: {count: 4, runs: 1m}}\nevents: false\n" + AT_ONCE)
    assert main.run(["simulate", str(file), "--sweep", "nodes=1,4", "--sweep", "jobs.a.runs=1m,2m"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:4] for row in rows[1:]] == [
        ["1", "1m", "done", "0:04:00"],
        ["1", "2m", "done", "0:08:00"],
        ["4", "1m", "done", "0:01:00"],
        ["4", "2m", "done", "0:02:00"],
    ]
    for words, said in (
        (["--set", "seed"], "seed is no NAME=VALUE"),
        (["--set", "jobs.a.runs.x=3"], "the scenario has no jobs.a.runs.x"),
        (["--sweep", "policy=best-fit,bestest"], "there is no policy bestest"),
        (["--plot", "x.gif"], "x.gif is no picture that can be drawn"),
        (["--until", "soon"], "soon is no duration"),
    ):
        assert main.run(["simulate", str(file), *words]) == 2
        assert said in capsys.readouterr().err
