"""Decisions of placement are repeated from their records, whatever happened since; and nothing in them is random."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest
from control_world import GIB, World, offer, spec
from test_control_placing import NONSENSE, Odd

from lavalite.base.errors import InputError, LavaLiteError
from lavalite.control import decisions
from lavalite.control.decisions import record_of
from lavalite.control.events import DrainRequested, ResumeRequested, Specs
from lavalite.model.decision import DecisionRecord
from lavalite.model.job import Array, Gang
from lavalite.model.resources import CPU, MEMORY
from lavalite.model.selector import Selector
from lavalite.model.specs import HostSpec, PoolSpec, QueueSpec
from lavalite.placement import registry
from lavalite.placement.columns import Columns
from lavalite.placement.history import History
from lavalite.placement.replay import replay

ROOMS = Path(__file__).resolve().parents[2] / "src/lavalite"
POLICIES = ["first-fit", "best-fit", "round-robin", "binpack", "spread", "gpu-packing", "fgd"]


def live(seed: int, steps: int = 60) -> World:
    """Jobs of all policies come and end, planned starts keep some out, nodes are drained and come back."""
    chance = random.Random(seed)
    w = World()
    for number in range(6):
        w.connect(f"n{number}", offer(f"n{number}", cpu=chance.choice([4, 8]), gpus=chance.choice([0, 2])))
    even = PoolSpec("even", Selector.parse(["n0", "n2", "n4"]), (CPU, MEMORY))
    w.apply(Specs({"even": even}, {"normal": QueueSpec("normal", default=True)}, {"h": HostSpec("h", {"cpu": 1000})}))
    w.settle()
    for _ in range(steps):
        kind = chance.random()
        if kind < 0.6:
            job = spec(
                cpu_milli=chance.choice([500, 1000, 2000, 4000]),
                memory_bytes=chance.choice([0, GIB]),
                gpu_milli=chance.choice([0, 0, 400, 1000, 2000]),
                policy=chance.choice(POLICIES),
                walltime_seconds=chance.choice([None, 30, 300]),
                array=Array(first=1, last=chance.randint(1, 6)),
                host=chance.choice(["", "", "", "h"]),
            )
            w.submit(job)
        elif kind < 0.8 and (running := w.running()):
            w.finish(chance.choice(running))
        elif kind < 0.9:
            w.feed(chance.choice([DrainRequested, ResumeRequested])(f"n{chance.randrange(6)}"))
        w.settle()
        for name in w.agents:
            w.report(name)
        w.advance(1)
    return w


@pytest.mark.parametrize("seed", range(12))
def test_every_decision_is_repeated_from_its_record(seed: int) -> None:
    w = live(seed)
    made = list(w.state.decisions._last)
    assert len(made) > 10 and len({decision.seen.policy for decision in made}) > 3
    for decision in made:
        record = decisions._record(w.state, decision)
        read = DecisionRecord.model_validate_json(record.model_dump_json())
        assert read == record and replay(read) == record.chosen, decision


def test_bounds_and_pools_are_of_the_record() -> None:
    records = [decisions._record(w.state, d) for w in map(live, range(6)) for d in w.state.decisions._last]
    assert any(record.most for record in records), "none was kept out by a planned start"
    assert any(node.state for record in records for node in record.nodes)
    assert any(record.workload for record in records) and any(record.host for record in records)


def test_it_is_found_by_task_and_says_where_that_went() -> None:
    w = World()
    for name in ("n1", "n2"):
        w.connect(name, offer(name, cpu=2))
    job = w.submit(spec(array=Array(first=10, last=13)))
    w.settle()
    record = record_of(w.state, job, 12)
    assert (record.first_task, record.last_task, record.wanted) == (10, 13, 4)
    assert [(c.node, c.tasks) for c in replay(record)] == [("n1", 2), ("n2", 2)]
    later = w.submit(spec())
    w.settle()
    with pytest.raises(LavaLiteError, match=f"no decision on job {later} is known here. Gangs have none"):
        record_of(w.state, later, None)
    with pytest.raises(LavaLiteError, match=f"no decision on task 9 of job {job} is known here"):
        record_of(w.state, job, 9)


def test_what_is_too_long_ago_is_not_made_up() -> None:
    w = World()
    w.connect("n1", offer("n1", cpu=2))
    w.state.columns.history = History(most=4)
    first = w.submit(spec())
    w.settle()
    assert replay(record_of(w.state, first, None))[0].node == "n1"
    for _ in range(4):
        w.feed(DrainRequested("n1"))
        w.feed(ResumeRequested("n1"))
    with pytest.raises(LavaLiteError, match=f"too much has changed since job {first} was placed"):
        record_of(w.state, first, None)


def test_so_many_decisions_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MOST_DECISIONS", 3)
    w = World()
    w.connect("n1", offer("n1", cpu=8))
    jobs = [w.submit(spec()) for _ in range(5)]
    assert [w.state.decisions.of(job, None) is not None for job in jobs] == [False, False, True, True, True]
    gang = w.submit(spec(array=Array(first=1, last=2), gang=Gang()))
    assert w.state.decisions.of(gang, None) is None


def test_a_record_that_was_altered_or_whose_policy_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    w.connect("n1", offer("n1"))
    record = record_of(w.state, w.submit(spec()), None)
    with pytest.raises(InputError, match="the record was altered: its digest is another one"):
        replay(record.model_copy(update={"wanted": 2}))
    monkeypatch.delitem(registry.POLICIES, "best-fit")
    with pytest.raises(InputError, match="there is no policy best-fit here"):
        replay(record)
    monkeypatch.setitem(registry.POLICIES, "best-fit", Odd(NONSENSE["raises"][0]))
    with pytest.raises(InputError, match="Policy odd failed: ZeroDivisionError"):
        replay(record)


def test_rows_are_seen_as_they_were() -> None:
    columns = Columns()
    then: list[tuple[int, int, list[int]]] = []
    chance = random.Random(3)
    for step in range(200):
        name = f"n{chance.randrange(1 + step // 10)}"
        columns.set_row(name, {"cpu": 9000}, {"cpu": chance.randrange(9000)}, state=chance.choice(["", "draining"]))
        frees = [int(columns.free_on(row)[0]) for row in range(len(columns))]
        then.append((columns.history.mark, len(columns), frees))
    for mark, rows, frees in then:
        assert [int(row.free[0]) for row in columns.history.rows_at(columns, mark, rows)] == frees


@pytest.mark.parametrize("room", ["placement", "control", "model"])
def test_nothing_that_decides_is_random(room: str) -> None:
    """Neither by what it imports, nor by what it asks of numpy."""
    for path in (ROOMS / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Attribute):
                names = [node.attr] if node.attr in ("random", "urandom") else []
            assert not {"random", "secrets", "uuid", "numpy.random", "urandom"} & set(names), path
