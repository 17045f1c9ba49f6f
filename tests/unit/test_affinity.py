"""Near other jobs and apart from them, on nodes with some labels: demanded or preferred, by node or by label."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from control_world import KEYS, World, offer, spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lavalite.base.errors import InputError
from lavalite.cli.affinity import parse_affinity
from lavalite.control import ground
from lavalite.control.admission import admit
from lavalite.control.events import LabelsSet
from lavalite.control.explain import explain
from lavalite.control.records import load
from lavalite.control.views import job as job_view
from lavalite.model.affinity import Affinity
from lavalite.model.job import Array, Gang, JobSpec
from lavalite.model.specs import BUILT_IN_POLICIES
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Columns
from lavalite.placement.ranking import Leaning, Ranking
from lavalite.placement.registry import POLICIES


def world(*cores: int) -> World:
    """A node for each number of cores; n0 and n1 are in rack r0, n2 and n3 in r1, and so on."""
    made = World()
    for number, cpu in enumerate(cores):
        made.connect(f"n{number}", offer(f"n{number}", cpu=cpu, rack=f"r{number // 2}"))
    made.settle()
    return made


def near(text: str) -> Affinity:
    return Affinity(**parse_affinity(text, anti=False))


def apart(text: str) -> Affinity:
    return Affinity(**parse_affinity(text, anti=True))


def job(*terms: Affinity, tasks: int = 1, **fields: Any) -> JobSpec:
    return spec(array=Array(first=1, last=tasks), affinity=list(terms), policy="first-fit", **fields)


def where(w: World, number: int) -> dict[str, int]:
    runs = (run.node for key, run in w.state.runs.items() if key.job == number)
    return dict(sorted(Counter(runs).items()))


def end(w: World, number: int) -> None:
    w.settle()
    for name in w.agents:
        w.report(name)
    for attempt in [a for a in w.running() if a.job == number]:
        w.finish(attempt)
    w.settle()


def test_near_a_job_is_on_its_node_or_in_its_rack() -> None:
    w = world(2, 2, 2, 2)
    db = w.submit(spec(name="db", policy="spread"))  # n0, which has 1 core left
    assert where(w, db) == {"n0": 1}
    assert where(w, w.submit(job(near(f"job={db}"), tasks=3))) == {"n0": 1}  # two of three wait
    assert where(w, w.submit(job(near("name=db,within=rack"), tasks=3))) == {"n1": 2}  # rack r0 has 2 cores left


def test_apart_from_itself_is_one_on_each_node_or_rack() -> None:
    w = world(4, 4, 4, 4)
    assert where(w, w.submit(job(apart("job=self"), tasks=6))) == {"n0": 1, "n1": 1, "n2": 1, "n3": 1}
    assert where(w, w.submit(job(apart("job=self,within=rack"), tasks=6))) == {"n0": 1, "n2": 1}


def test_near_itself_all_follow_the_first() -> None:
    w = world(1, 2, 2, 2)
    # the first goes to n0, of rack r0, which has 3 cores; the fourth waits though r1 has room
    assert where(w, w.submit(job(near("job=self,within=rack"), tasks=4))) == {"n0": 1, "n1": 2}


def test_who_is_to_be_apart_is_kept_apart_from_too() -> None:
    w = world(4, 4, 4)
    quiet = w.submit(job(apart("name=noisy,within=rack"), name="quiet"))
    assert where(w, quiet) == {"n0": 1}
    # noisy asks for nothing of that kind, and yet keeps out of rack r0; others of the same request do not
    noisy = w.submit(job(name="noisy", tasks=8))
    assert where(w, noisy) == {"n2": 4}
    assert where(w, w.submit(job(name="calm"))) == {"n0": 1}
    told = explain(w.state, w.state.jobs[noisy], w.now)
    assert told.filters == {"not_apart": 2, "too_few_free": 1}
    end(w, quiet)
    assert where(w, noisy) == {"n0": 3, "n2": 4, "n1": 1}


def test_what_waits_already_is_kept_apart_from_who_comes_later() -> None:
    w = world(1, 1)
    first = w.submit(spec(array=Array(first=1, last=2)))
    w.settle()
    noisy = w.submit(job(name="noisy", tasks=2, priority=-1))
    quiet = w.submit(job(apart("name=noisy,within=rack"), tasks=1))
    end(w, first)
    assert where(w, quiet) == {"n0": 1} and where(w, noisy) == {}
    end(w, quiet)
    assert where(w, noisy) == {"n0": 1, "n1": 1}


@pytest.mark.parametrize(
    ("terms", "node"),
    [
        # n0 and n1 are in r0, n2 in r1; db runs on n1. Weights that are met, node by node:
        (["name=db,prefer"], "n1"),  # 0 50 0
        (["name=db,within=rack,prefer=30", "label=rack:r1,prefer=40"], "n2"),  # 30 30 40
        (["name=db,within=rack,prefer=30", "label=rack:r1,prefer=20"], "n0"),  # 30 30 20, and n0 comes first
        (["name=db,prefer=10", "name=db,within=rack,prefer=30", "label=rack:r1,prefer=35"], "n1"),  # 30 40 35
        (["name=nobody,prefer=90"], "n0"),  # 0 0 0: the policy alone decides
    ],
)
def test_what_is_preferred_is_summed_up(terms: list[str], node: str) -> None:
    w = world(1, 4, 4)
    blocker = w.submit(job())
    w.submit(job(name="db"))
    end(w, blocker)
    assert where(w, w.submit(job(*map(near, terms)))) == {node: 1}


def test_preferred_apart_counts_where_none_is() -> None:
    w = world(3, 3, 3)
    db = w.submit(job(name="db"))
    assert where(w, db) == {"n0": 1}
    # rack r0: 0, rack r1: 50. Once n2 is full the others go where less is met, and do not wait.
    assert where(w, w.submit(job(apart("name=db,within=rack,prefer"), tasks=4))) == {"n0": 1, "n2": 3}


def test_labels_are_demanded_or_ruled_out() -> None:
    w = world(4, 4, 4, 4, 4)
    some = w.submit(job(near("label=rack:r1|r2"), apart("label=rack:r1"), tasks=9))
    assert where(w, some) == {"n4": 4}
    told = explain(w.state, w.state.jobs[some], w.now)
    assert told.filters == {"not_labelled": 4, "too_few_free": 1}
    assert "4 have not the labels asked for, 1 has too little free; nearest n4 lacks 1 cpu." in told.sentence
    assert told.asks.endswith("on nodes {rack: [r1, r2]}, not on nodes {rack: r1}")
    w.feed(LabelsSet("n0", {"rack": ["r2"]}))
    assert where(w, some) == {"n0": 4, "n4": 4}
    with pytest.raises(InputError, match="5 have not the labels asked for"):
        admit(w.state, job(near("label=rack:r9")), w.now)


def test_selections_that_nobody_uses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground, "FORGET_SELECTIONS", 8)
    w = world(1, 1, 4)
    waits = w.submit(job(near("label=rack:r1"), apart("label=rack:r0"), tasks=6))
    for number in range(40):
        admit(w.state, job(near(f"label=rack:r1|x{number}")), w.now)
        explain(w.state, w.state.jobs[waits], w.now)
        assert len(w.state._selections) < 12
    assert where(w, waits) == {"n2": 4}
    w.feed(LabelsSet("n2", {"rack": ["r0"]}))
    w.feed(LabelsSet("n0", {"rack": ["r1"]}))
    assert where(w, waits) == {"n0": 1, "n2": 4}


def test_who_waits_for_another_is_roused_when_that_one_starts() -> None:
    w = world(2, 2)
    web = w.submit(job(near("name=db,within=rack"), tasks=2))
    shape = w.state.classes[w.state.jobs[web].class_key].shape
    assert where(w, web) == {} and shape in w.state.asleep
    told = explain(w.state, w.state.jobs[web], w.now)
    assert told.sentence == (
        "It is to be near jobs named db within one rack, and no task of that is placed."
        " 2 nodes: 2 are not near the jobs asked for."
    )
    w.submit(job(cpu_milli=100))
    assert w.state.looked_at == 1 and shape in w.state.asleep  # what does not matter to it does not rouse it
    w.submit(job(name="db"))
    w.settle()
    assert where(w, web) == {"n1": 2} or where(w, web) == {"n0": 1, "n1": 1}


def test_who_is_apart_within_a_rack_is_roused_by_an_end_on_another_node() -> None:
    w = world(1, 1)
    loud = w.submit(job(name="loud"))
    quiet = w.submit(job(apart("name=loud,within=rack"), cpu_milli=1000))
    rest = w.submit(job())
    assert where(w, loud) == {"n0": 1} and where(w, rest) == {"n1": 1} and where(w, quiet) == {}
    end(w, rest)  # n1 is free, and too near to loud
    assert where(w, quiet) == {}
    blocked = w.submit(job(tasks=1))
    assert where(w, blocked) == {"n1": 1}
    end(w, loud)
    assert where(w, quiet) == {"n0": 1}


def test_an_ended_job_is_never_near() -> None:
    w = world(2)
    db = w.submit(job(name="db"))
    web = w.submit(job(near(f"job={db}"), tasks=3))
    end(w, db)
    end(w, web)
    told = explain(w.state, w.state.jobs[web], w.now)
    assert f"It is to be near job {db}, and that has ended; this can never be met." in told.sentence


def test_a_gang_goes_where_its_terms_let_it_and_where_more_is_met() -> None:
    w = world(2, 2, 4, 4, 4)
    db = w.submit(job(near("label=rack:r1"), name="db", cpu_milli=2000))
    assert where(w, db) == {"n2": 1}
    # n3 has 4 cores free, n2 has 2: the gang of 4 fits on n3 alone, and in n2 + n3 with more of it near db
    assert where(w, w.submit(job(gang=Gang(), tasks=4))) == {"n3": 4}
    fits = w.submit(job(near("name=db,prefer"), gang=Gang(), tasks=3))
    assert where(w, fits) == {"n2": 2, "n0": 1}
    assert where(w, w.submit(job(apart("name=db,within=rack"), gang=Gang(nodes_most=1), tasks=4))) == {"n4": 4}


def test_what_is_counted_is_restored() -> None:
    w = world(3, 3, 3)
    db = w.submit(job(name="db"))
    quiet = w.submit(job(apart("name=noisy"), near("name=db,within=rack,prefer")))
    w.settle()
    assert where(w, db) == {"n0": 1} and where(w, quiet) == {"n0": 1}
    state = load(KEYS, (0, 2), w.store.items())
    state.settle_all()
    assert list(state.sums_faults()) == []
    assert dict(state.neighbours.of(("name", "db"))) == {"n0": 1}
    assert state.neighbours.repelling == {("name", "noisy"): {"": {"n0": 1}}}
    assert job_view(state, state.jobs[quiet])["affinity"] == [
        "apart from jobs named noisy",
        "rather near jobs named db within one rack (50)",
    ]
    end(w, quiet)
    assert not w.state.neighbours.watched and not w.state.neighbours.counts and not w.state.neighbours.repelling


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "just one of them"),
        ({"name": "db", "job": 3}, "just one of them"),
        ({"labels": {"rack": "r1"}, "within": "rack"}, "no within"),
        ({"labels": {"9": "r1"}}, "is no label"),
        ({"name": "db", "weight": 0}, "greater than or equal to 1"),
        ({"job": -1}, "greater than or equal to 0"),
    ],
)
def test_a_term_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Affinity(**fields)


def test_what_can_not_be_is_refused_with_the_way_out() -> None:
    w = world(2, 2)
    for bad, sentence in (
        (job(near("job=7")), "there is no job 7 yet"),
        (job(near("name=db,within=rakc")), "there is no node with a label rakc"),
        (job(near("name=db"), apart("name=db")), "apart from jobs named db, and the contrary, exclude each other"),
        (job(apart("job=self"), gang=Gang(), tasks=2), "a gang is placed at once"),
    ):
        with pytest.raises(InputError, match=sentence):
            admit(w.state, bad, w.now)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "nothing is no part of an affinity"),
        ("db", "db is no part of an affinity"),
        ("colour=red", "colour is nothing that an affinity has"),
        ("job=0", "0 is no number of a job"),
        ("job=12x", "12x is no number of a job"),
        ("label=rack", "rack is no label with a value"),
        ("name=db,prefer=101", "101 is no weight of what is preferred"),
    ],
)
def test_what_is_typed_wrong_is_said(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        parse_affinity(text, anti=True)
    assert caught.value.fault.field == "--anti-affinity"


# --- laws -----------------------------------------------------------------------------------------------------------


@given(
    policy=st.sampled_from(BUILT_IN_POLICIES),
    free=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    tasks=st.integers(1, 9),
    data=st.data(),
)
def test_runs_that_lean_are_what_one_by_one_would_give(
    policy: str, free: list[int], tasks: int, data: st.DataObject
) -> None:
    rows = len(free)
    open_rows = data.draw(st.none() | st.lists(st.booleans(), min_size=rows, max_size=rows))
    weights = data.draw(st.none() | st.lists(st.sampled_from([0, 30, 50]), min_size=rows, max_size=rows))
    leaning = Leaning(
        None if open_rows is None else np.array(open_rows), None if weights is None else np.array(weights)
    )

    def made() -> Columns:
        columns = Columns()
        for number, cores in enumerate(free):
            columns.set_row(f"n{number}", {"cpu": 4000}, {"cpu": cores * 1000})
        return columns

    wanted = RequestClass(spec().request, {})
    columns = made()
    runs = Ranking(wanted, POLICIES[policy]).runs(columns, tasks, leaning=leaning)
    chosen = [run.row for run in runs for _ in range(run.tasks)]
    columns, after = made(), -1
    for row in chosen:
        fitting = wanted.rows_that_fit(columns)
        fitting = [r for r in fitting if open_rows is None or open_rows[r]]
        most = max(0 if weights is None else weights[r] for r in fitting)
        best = [r for r in fitting if weights is None or weights[r] == most]
        # Among those that meet most the policy's own choice, of them alone.
        mask = np.zeros(rows, dtype=np.bool_)
        mask[best] = True
        (alone,) = Ranking(wanted, POLICIES[policy]).runs(columns, 1, after, leaning=Leaning(mask))
        assert row == alone.row
        columns.take(row, wanted.line)
        after = row
    left = [r for r in wanted.rows_that_fit(columns) if open_rows is None or open_rows[r]]
    assert len(chosen) == tasks or not left


TERMS = st.builds(
    lambda name, anti, within, weight: Affinity(name=name, anti=anti, within=within, weight=weight),
    st.sampled_from("abc"),
    st.booleans(),
    st.sampled_from(["", "rack"]),
    st.sampled_from([None, None, 40]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(TERMS, max_size=2), st.integers(1, 3), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    data=st.data(),
)
def test_nobody_is_placed_against_what_is_demanded_and_nobody_sleeps_who_could_go(
    steps: list[tuple[str, list[Affinity], int, bool]], data: st.DataObject
) -> None:
    w = world(2, 2, 2)
    placed: dict[Any, str] = {}
    for name, terms, tasks, ends in steps:
        w.submit(job(*terms, name=name, tasks=tasks))
        for _ in range(3):
            w.settle()
            placed = _check_new(w, placed)
        assert list(w.state.sums_faults()) == []
        _nobody_could_go(w)
        if ends and (running := sorted({a.job for a in w.running()})):
            end(w, data.draw(st.sampled_from(running)))
            placed = _check_new(w, placed)


def _racks(w: World, node: str, within: str) -> object:
    return w.state.nodes[node].labels[within][0] if within else node


def _closed(
    w: World, name: str, terms: list[Affinity], node: str, others: list[tuple[str, str, list[Affinity]]]
) -> bool:
    """Whether the node is closed to a task, in the plainest way; others are (name, node, terms)."""
    for term in terms:
        there = [o for o in others if o[0] == term.name]
        by = any(_racks(w, o[1], term.within) == _racks(w, node, term.within) for o in there)
        if term.weight is None and (by if term.anti else not by and (there or term.name != name)):
            return True
    return any(
        t.anti and t.weight is None and t.name == name and _racks(w, o[1], t.within) == _racks(w, node, t.within)
        for o in others
        for t in o[2]
    )


def _others(w: World, but: Any = None) -> list[tuple[str, str, list[Affinity]]]:
    specs = {number: found.spec for number, found in w.state.jobs.items()}
    return [
        (specs[key.job].name, run.node, specs[key.job].affinity) for key, run in w.state.runs.items() if key != but
    ]


def _check_new(w: World, placed: dict[Any, str]) -> dict[Any, str]:
    """No task demands to be apart from one that is there, of those placed now or before."""
    for key, run in w.state.runs.items():
        found = w.state.jobs[key.job].spec
        anti = [t for t in found.affinity if t.anti]
        if key not in placed:
            assert not _closed(w, found.name, anti, run.node, _others(w, but=key)), f"{key} on {run.node}"
    return {key: run.node for key, run in w.state.runs.items()}


def _nobody_could_go(w: World) -> None:
    """What waits fits nowhere that is open to it."""
    for found in w.state.jobs.values():
        if not found.ready:
            continue
        for name, node in w.state.nodes.items():
            free = w.state.book.free(node.name, "cpu")
            could = free >= 1000 and not _closed(w, found.spec.name, found.spec.affinity, name, _others(w))
            assert not could, f"job {found.id} could go to {name}"
