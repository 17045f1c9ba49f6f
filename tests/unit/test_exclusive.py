"""Tasks that have a node for themselves: who is let in beside whom, when, and what is said. Sums in comments."""

from __future__ import annotations

import json

import pytest
from control_world import GIB, KEYS, World, offer, spec

from lavalite.base.errors import InputError
from lavalite.control import reservations
from lavalite.control.admission import admit
from lavalite.control.audit import audit
from lavalite.control.decisions import record_of
from lavalite.control.estimates import Estimates
from lavalite.control.events import DrainRequested, ReservationMade, ResumeRequested, Specs
from lavalite.control.explain import explain
from lavalite.control.reservations import Asked
from lavalite.control.views import amounts, node
from lavalite.control.views import job as job_view
from lavalite.ledger.book import Book
from lavalite.model.affinity import Affinity
from lavalite.model.host import HostState
from lavalite.model.job import Array, CommitmentRecord, Gang, Request, Share
from lavalite.model.reservation import Reservation
from lavalite.model.resources import ALL_PLACES, PLACES
from lavalite.model.specs import HostSpec, Preemption, QueueSpec
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Columns
from lavalite.placement.ranking import Ranking
from lavalite.placement.reasons import Refusal
from lavalite.placement.registry import POLICIES
from lavalite.placement.replay import replay

MARGIN = 70
"""A task holds its place for its walltime and so much."""


def cluster(*cpus: int, specs: Specs | None = None) -> World:
    w = World()
    w.apply(specs or Specs())
    for number, cpu in enumerate(cpus, 1):
        w.connect(f"n{number}", offer(f"n{number}", cpu=cpu, gpus=2))
    told(w)
    return w


def told(w: World) -> None:
    for _ in range(3):
        w.settle()
        for name in w.agents:
            w.report(name)
    w.settle()
    w.check()


def submit(w: World, cpu: int = 1, **fields: object) -> int:
    job = w.submit(spec(cpu_milli=cpu * 1000, **fields))
    told(w)
    return job


def alone(w: World, cpu: int = 1, **fields: object) -> int:
    return submit(w, cpu, exclusive=True, **fields)


def where(w: World, job: int) -> list[str]:
    return sorted(run.node for key, run in w.state.runs.items() if key.job == job)


def why(w: World, job: int) -> str:
    return explain(w.state, w.state.jobs[job], w.now).sentence


# --- beside whom ----------------------------------------------------------------------------------------------------


def test_nobody_comes_beside_it_and_it_comes_beside_nobody() -> None:
    w = cluster(4, 4)
    first = submit(w)  # n1: 1 of 4
    mine = alone(w, array=Array(first=1, last=2))  # n2; the second waits for n1
    assert (where(w, first), where(w, mine)) == (["n1"], ["n2"])
    others = submit(w, array=Array(first=1, last=5))
    assert where(w, others) == ["n1", "n1", "n1"]  # 3 of 4 are left there, and 3 of n2 stay idle
    for attempt in [a for a in w.running() if a.job == mine]:
        w.finish(attempt)
    told(w)
    # Who came first in the order is first: n2 is empty again.
    assert where(w, mine) == ["n2"] and where(w, others) == ["n1", "n1", "n1"]
    for attempt in [a for a in w.running() if a.job == mine]:
        w.finish(attempt)
    told(w)
    assert where(w, others) == ["n1", "n1", "n1", "n2", "n2"]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_under_each_policy_each_task_has_a_node(policy: str) -> None:
    w = cluster(4, 2, 8, 4)
    submit(w, policy="first-fit")  # n1
    mine = alone(w, array=Array(first=1, last=4), policy=policy)
    assert where(w, mine) == ["n2", "n3", "n4"]
    record = record_of(w.state, mine, 1)
    assert replay(record) == record.chosen
    assert {found.name: found.occupied for found in record.nodes} == {"n1": "shared", "n2": "", "n3": "", "n4": ""}
    other = submit(w, array=Array(first=1, last=9), policy=policy)
    assert where(w, other) == ["n1", "n1", "n1"]
    record = record_of(w.state, other, 1)
    assert replay(record) == record.chosen
    assert {found.name: found.occupied for found in record.nodes}["n2"] == "alone"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_is_placed_at_once_is_what_is_placed_one_by_one(policy: str) -> None:
    """The columns alone, as benches and replays use them."""
    columns = Columns()
    for number in range(5):
        columns.set_row(
            f"n{number}", {"cpu": 4000}, {"cpu": 4000} | ({PLACES: ALL_PLACES - 1} if number == 3 else {})
        )
    wanted = RequestClass(Request(exclusive=True), {})
    together = Ranking(wanted, POLICIES[policy]).runs(columns, 9)
    rows, after = [], -1
    while (row := Ranking(wanted, POLICIES[policy]).best(columns, after)) >= 0:
        columns.take(row, wanted.line)
        rows, after = [*rows, row], row
    assert [run.row for run in together for _ in range(run.tasks)] == rows and sorted(rows) == [0, 1, 2, 4]
    plain = RequestClass(Request(), {})
    assert plain.rows_that_fit(columns) == [3] and plain.fits(columns).tolist() == [0, 0, 0, 4, 0]
    assert columns.free_on(0).tolist()[0] == 3000  # it took what it asks for, and no more


def test_a_gang_has_a_node_for_each_task() -> None:
    w = cluster(4, 4, 4)
    submit(w)
    waits = alone(w, array=Array(first=1, last=3), gang=Gang())
    assert where(w, waits) == []
    assert why(w, waits) == "Its 3 tasks start together, and 2 of 3 fit now."
    assert where(w, alone(w, array=Array(first=1, last=2), gang=Gang())) == ["n2", "n3"]


def test_a_part_of_a_logical_host_is_on_its_node_and_none_comes_beside_it() -> None:
    w = cluster(4, 4, specs=Specs(hosts={"small": HostSpec("small", {"cpu": 1000})}))
    assert w.state.hosts["small"].anchor == "n1"
    mine = alone(w, array=Array(first=1, last=2))
    assert where(w, mine) == ["n2"]
    assert why(w, mine) == "2 nodes: 2 are not empty; nearest n1. On n1: host small."
    w.apply(Specs(hosts={"small": HostSpec("small", {"cpu": 1000}), "big": HostSpec("big", {"cpu": 4000})}))
    told(w)
    assert w.state.hosts["big"].state is HostState.PLANNED
    assert "1 has a task that has it for itself" in w.state.hosts["big"].reason
    w.finish(w.running()[0])
    told(w)
    w.apply(Specs())  # the hosts go
    told(w)
    assert len(where(w, mine)) == 1


def test_a_task_that_is_suspended_for_others_is_still_there() -> None:
    """It held CPU alone, and gave that back."""
    queues = {
        "low": QueueSpec("low", 10, default=True),
        "high": QueueSpec("high", 30, preemption=Preemption("suspend")),
        "last": QueueSpec("last", 5),
    }
    w = cluster(4, specs=Specs(queues=queues))
    parked, high = submit(w, 4), submit(w, 4, queue="high")
    assert [run.key.job for run in w.state.runs.values() if run.parked] == [parked] and where(w, high) == ["n1"]
    w.finish(next(a for a in w.running() if a.job == high))
    mine = w.submit(spec(exclusive=True, queue="high"))
    told(w)
    assert where(w, mine) == []  # suspending it once more gives no node
    w.change_leader()
    w.connect("n1")
    told(w)
    assert where(w, mine) == [] and w.state.book.free_places("n1") == ALL_PLACES - 1
    while w.running():
        w.finish(w.running()[0])
        told(w)
    assert w.state.jobs[mine].unfinished == 0 and w.state.book.free_places("n1") == ALL_PLACES


# --- when -----------------------------------------------------------------------------------------------------------


def planning(*cpus: int) -> World:
    return cluster(*cpus, specs=Specs(queues={"normal": QueueSpec("normal", default=True, planned_starts=1)}))


def test_its_start_is_planned_for_when_the_last_has_gone_and_nobody_makes_it_later() -> None:
    w = planning(4)
    submit(w, 1, walltime_seconds=30)
    submit(w, 1, walltime_seconds=100)
    mine = alone(w, walltime_seconds=50)
    assert w.state.plan.starts[mine].at - w.now == 100 + MARGIN
    short, long = submit(w, 1, walltime_seconds=90), submit(w, 1, walltime_seconds=110)
    assert (where(w, short), where(w, long)) == (["n1"], [])  # 90 + 70 is before 170, 110 + 70 is not
    assert why(w, long) == f"There is room, but it is held by job {mine} (to start in 170 s)."
    assert w.state.plan.starts[mine].at - w.now == 100 + MARGIN


def test_others_are_planned_for_when_it_has_gone() -> None:
    w = planning(4)
    alone(w, 1, walltime_seconds=100)
    waits = submit(w, 1, walltime_seconds=50)
    assert w.state.plan.starts[waits].at - w.now == 100 + MARGIN
    assert why(w, waits) == "1 node: 1 has a task that has it for itself; nearest n1. On n1: job 1."


def test_who_keeps_it_without_an_end_is_said() -> None:
    w = cluster(4)
    submit(w)
    mine = alone(w)
    estimate = Estimates(w.state, w.now).of(w.state.jobs[mine])
    assert estimate is not None and estimate.why == "Job 1, which holds what it waits for, has no walltime."
    assert why(w, mine) == "1 node: 1 is not empty; nearest n1. On n1: job 1."


def kept(start: float, end: float) -> Reservation:
    return Reservation(name="r", owner="ada", amounts={"cpu": 1000}, nodes=["n1"], start=start, end=end)


def test_it_is_gone_when_a_reservation_begins_there() -> None:
    w = cluster(4)
    w.feed(ReservationMade(kept(w.now + 200, w.now + 400)))
    assert where(w, alone(w, walltime_seconds=140)) == []  # 140 + 70 = 210
    assert where(w, alone(w, walltime_seconds=120)) == ["n1"]  # 120 + 70 = 190
    inside = submit(w, reservation="r")
    w.advance(200)
    told(w)
    w.finish(w.running()[0])
    told(w)
    assert where(w, inside) == ["n1"]


@pytest.mark.parametrize(("walltime", "given"), [(None, False), (240, False), (220, True)])
def test_no_reservation_is_made_where_it_may_still_be(walltime: int | None, given: bool) -> None:
    w = cluster(4)
    alone(w, walltime_seconds=walltime)
    found = reservations.choose_nodes(w.state, Asked({"cpu": 1000}, 1, "", w.now + 300, w.now + 400), w.now)
    if given:
        assert found == ["n1"]
    else:
        assert isinstance(found, Refusal)
        assert found.sentence() == "1 node: 1 has a task that has it for itself."


# --- preemption -----------------------------------------------------------------------------------------------------


def preempting(mode: str, *cpus: int) -> World:
    queues = {
        "low": QueueSpec("low", 10, default=True),
        "urgent": QueueSpec("urgent", 30, preemption=Preemption(mode)),
    }
    return cluster(*cpus, specs=Specs(queues=queues))


def test_all_of_the_node_with_the_fewest_are_preempted_for_it() -> None:
    w = preempting("requeue", 4, 2)
    for _ in range(4):  # n2 has 2 of 2, n1 has 2 of 4: binpacked
        submit(w, rerunnable=True)
    assert [run.node for run in w.state.runs.values()] == ["n2", "n2", "n1", "n1"]
    submit(w, rerunnable=True)  # n1: 3 of 4
    mine = w.submit(spec(exclusive=True, queue="urgent"))
    w.settle()
    assert sorted(s.id.job for s in w.stops) == [1, 2]  # two of n2, not three of n1
    told(w)
    assert where(w, mine) == ["n2"]
    w.advance(120)
    told(w)
    assert where(w, 1) + where(w, 2) == ["n1"]  # one has room there, and n2 is nobody else's


def test_it_is_preempted_for_others_and_they_get_the_node() -> None:
    w = preempting("requeue", 4)
    alone(w, rerunnable=True)
    urgent = submit(w, 3, queue="urgent")
    assert [s.id.job for s in w.stops] == [1] and where(w, urgent) == ["n1"]
    assert where(w, 1) == []


@pytest.mark.parametrize(("low", "high"), [({}, {"exclusive": True}), ({"exclusive": True}, {})])
def test_nobody_is_suspended_in_vain(low: dict[str, bool], high: dict[str, bool]) -> None:
    """Who is suspended is still on its node."""
    w = preempting("suspend", 4)
    submit(w, **low)
    assert where(w, submit(w, queue="urgent", **high)) == [] and w.stops == []


# --- what people see ------------------------------------------------------------------------------------------------


def test_places_are_shown_to_nobody() -> None:
    w = cluster(4)
    mine = alone(w)
    shown = [amounts(w.state, "n1"), node(w.state, w.state.nodes["n1"], w.now), job_view(w.state, w.state.jobs[mine])]
    waits = submit(w)
    told_now = explain(w.state, w.state.jobs[waits], w.now)
    assert PLACES not in json.dumps([*shown, told_now.lacks, told_now.sentence, told_now.filters], default=str)
    assert shown[2]["request"] == {"exclusive": True}
    assert told_now.filters == {"not_shared": 1} and told_now.held_by == ["job 1"] and told_now.lacks == {}
    assert w.state.book.committed("n1", "cpu") == 1000  # the rest stays idle, and is nobody's
    assert explain(w.state, w.state.jobs[mine], w.now).asks == "1 cpu, a node for itself"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"host": "small"}, "logical host small is a part of its node"),
        ({"reservation": "r"}, "reservation r keeps amounts on its nodes"),
        ({"affinity": [Affinity(job=0)]}, "a task is to have its node for itself, and to be near itself"),
        ({"affinity": [Affinity(name="db")]}, "to be near jobs named db"),
        (
            {"array": Array(first=1, last=3), "gang": Gang(nodes_most=2)},
            "3 tasks are to start together, each on a node for itself, and on 2 nodes at most",
        ),
        ({"cpu_milli": 9000}, "9 cpu, a node for itself can never be had here"),
    ],
)
def test_what_excludes_it_is_refused(asked: dict[str, object], says: str) -> None:
    w = cluster(4, specs=Specs(hosts={"small": HostSpec("small", {"cpu": 1000})}))
    w.feed(ReservationMade(kept(w.now, w.now + 400)))
    with pytest.raises(InputError) as refused:
        admit(w.state, spec(exclusive=True, **asked), w.now)
    assert says in " ".join(fault.message for fault in refused.value.faults)
    if "cpu_milli" not in asked:
        admit(w.state, spec(**asked), w.now)


def test_what_does_not_exclude_it_is_taken() -> None:
    w = cluster(4)
    near = [Affinity(name="db", anti=True), Affinity(name="db", weight=5), Affinity(labels={"x": "y"}, weight=3)]
    admit(w.state, spec(exclusive=True, affinity=near), w.now)


# --- the book, leaders, restores ------------------------------------------------------------------------------------


def record(owner: str, *providers: str, exclusive: bool = False) -> CommitmentRecord:
    shares = [Share(provider=provider, kind="cpu", amount=1) for provider in providers]
    return CommitmentRecord(owner=owner, epoch=(0, 1), shares=shares, committed_at=0.0, exclusive=exclusive)


def test_the_book_lets_nobody_in_beside_one() -> None:
    book = Book()
    for name in ("n1", "n2"):
        book.set_capacity(name, "cpu", 10)
    assert book.assume(record("job/1/0", "n1", exclusive=True)) is None
    short = book.assume(record("job/2/0", "n2", "n1"))
    assert short is not None and short.sentence() == "n1: somebody has it for itself, or it is not empty."
    assert book.assume(record("job/2/0", "n2")) is None
    assert book.assume(record("job/3/0", "n2", exclusive=True)) is not None
    assert book.assume(record("job/3/0", "n2")) is None
    assert book.holders("n2", PLACES) == {"job/2/0": 1, "job/3/0": 1} and not book.crowded()
    book.check()
    book.restore(record("job/4/0", "n1"))
    assert book.crowded() == ["n1"] and book.free_places("n1") == 0
    book.check()
    book.unwind("job/1/0")
    assert not book.crowded() and book.free_places("n1") == ALL_PLACES - 1
    assert book.assume(record("job/5/0", "n1")) is None
    for owner in list(book.owners()):
        book.confirm(owner)
        book.release(owner)
    assert book.free_places("n1") == book.free_places("n2") == ALL_PLACES
    book.check()


def test_a_new_leader_and_a_node_that_comes_back_keep_it_alone() -> None:
    w = cluster(4)
    mine = alone(w)
    w.change_leader()
    w.connect("n1")
    other = submit(w)
    assert where(w, mine) == ["n1"] and where(w, other) == []
    w.disconnect("n1")
    w.connect("n1", offer("n1", cpu=8))
    w.feed(DrainRequested("n1"))
    w.feed(ResumeRequested("n1"))
    told(w)
    assert where(w, other) == []
    w.finish(w.running()[0])
    told(w)
    assert where(w, other) == ["n1"]


def test_what_a_restore_brings_together_ends_by_itself_and_nobody_comes_to_it() -> None:
    """It was started when the host was gone, and the restored store has the host."""
    small = Specs(hosts={"small": HostSpec("small", {"cpu": 1000})})
    w = cluster(4, specs=small)
    mine = w.submit(spec(exclusive=True, hold=True, memory_bytes=GIB))
    told(w)
    saved = dict(w.store)
    w.apply(Specs(), purge=True)
    told(w)
    w.state.set_held(w.state.jobs[mine], False)
    w.advance(1)
    told(w)
    assert where(w, mine) == ["n1"] and "small" not in w.state.hosts
    w.specs = small
    w.restore(saved)
    w.connect("n1")
    w.settle()
    assert where(w, mine) == ["n1"] and w.state.book.crowded() == ["n1"]
    found = audit(KEYS, w.store, w.specs)
    assert found.faults == []
    assert found.notes == [
        f"n1 is for one task alone, and these hold something of it: host/small, job/{mine}/0; since a restore, and"
        " until they end"
    ]
    other = w.submit(spec())
    w.settle()
    assert where(w, other) == []
    w.finish(w.running()[0])
    w.settle()
    assert where(w, other) == ["n1"] and audit(KEYS, w.store, w.specs).notes == []


def test_the_audit_finds_one_that_is_not_alone() -> None:
    w = cluster(4)
    for _ in range(2):
        submit(w)
    assert audit(KEYS, w.store, w.specs).faults == []
    key = KEYS.commitment("job/2/0")
    w.store[key] = json.dumps(json.loads(w.store[key]) | {"exclusive": True}).encode()
    assert audit(KEYS, w.store, w.specs).faults == [
        "n1 is for one task alone, and these hold something of it: job/1/0, job/2/0"
    ]
