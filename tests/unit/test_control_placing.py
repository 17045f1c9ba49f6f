"""What finds no room sleeps until something is freed that could be enough; jobs of a policy that fails wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from control_world import World, offer, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.control.events import Specs
from lavalite.control.explain import explain
from lavalite.control.workload import workload_of
from lavalite.model.job import Array, Request
from lavalite.model.resources import WHOLE
from lavalite.model.specs import QueueSpec
from lavalite.placement import registry
from lavalite.placement.asleep import Sleepers
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Columns, Ints
from lavalite.placement.policies import Policy
from lavalite.placement.rows import Rows


def world(*offers: Any) -> World:
    made = World()
    for one in offers or (offer("n1"),):
        made.connect(one.node, one)
    made.settle()
    return made


def end_all(w: World, code: int = 0) -> None:
    for agent in w.agents:
        w.report(agent)
    for attempt in w.running():
        w.finish(attempt, code)
    w.settle()


def awake(w: World) -> list[object]:
    """The classes that the next pass looks at."""
    return [waiting.key for waiting in w.state.classes.values() if waiting.shape not in w.state.asleep]


# --- sleeping -------------------------------------------------------------------------------------------------------


def test_a_submit_does_not_look_at_all_that_wait() -> None:
    w = world(*(offer(f"n{number}", cpu=4) for number in range(20)))
    w.submit(spec(array=Array(first=1, last=20), cpu_milli=4000))
    w.settle()
    for cpu in range(1000, 1200):
        w.submit(spec(cpu_milli=cpu))
    assert len(w.state.classes) == 200 and not awake(w)
    w.submit(spec(cpu_milli=3999))
    assert w.state.looked_at == 1
    w.submit(spec(cpu_milli=1100))  # the same as one that is known to find no room
    assert w.state.looked_at == 0


def test_what_is_freed_wakes_those_for_whom_it_could_be_enough() -> None:
    w = world(offer("n1", cpu=4), offer("n2", cpu=8))
    small = w.submit(spec(cpu_milli=4000))
    large = w.submit(spec(cpu_milli=8000))
    w.settle()
    waiting = {cpu: w.submit(spec(cpu_milli=cpu)) for cpu in (3000, 4000, 5000, 8000)}
    assert not awake(w)
    first = next(a for a in w.running() if a.job == small)
    w.report("n1")
    w.finish(first)
    w.report("n1")
    # 4 cores are free on n1: 3000 comes first and takes them; 4000 was looked at too; the others were not.
    assert w.state.looked_at == 2
    assert not w.state.jobs[waiting[3000]].ready and w.state.jobs[waiting[4000]].ready
    w.settle()
    second = next(a for a in w.running() if a.job == large)
    w.report("n2")
    w.finish(second)
    w.settle()
    assert not w.state.jobs[waiting[4000]].ready
    end_all(w)
    end_all(w)
    assert not any(w.state.jobs[job].ready for job in waiting.values())


def test_a_node_that_comes_wakes_and_so_does_a_new_definition() -> None:
    w = world(offer("n1", cpu=2))
    w.submit(spec(cpu_milli=2000))
    w.settle()
    job = w.submit(spec(cpu_milli=1000))
    assert not awake(w)
    w.apply(Specs(queues={"normal": QueueSpec("normal", 30, default=True)}))
    assert w.state.looked_at == 1 and not awake(w)
    w.connect("n2", offer("n2", cpu=2))
    w.settle()
    assert not w.state.jobs[job].ready


NODES = st.integers(0, 5)
FREE = st.tuples(st.integers(0, 4), st.integers(0, 4))


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(NODES, FREE, st.booleans(), st.booleans()),
        max_size=40,
    )
)
def test_nothing_sleeps_that_fits(steps: list[tuple[int, tuple[int, int], bool, bool]]) -> None:
    """Rows change in any way; whoever is not woken finds no room, however one looks."""
    columns, sleepers = Columns(), Sleepers()
    classes = {
        (cpu, memory): RequestClass(Request(cpu_milli=cpu * WHOLE, memory_bytes=memory), {})
        for cpu in range(1, 5)
        for memory in range(4)
    }
    awake = set(classes)
    for node, (cpu, memory), drained, again in steps:
        capacity = {"cpu": 4000, "memory": 4}
        state = "draining" if drained else ""
        columns.set_row(f"n{node}", capacity, {"cpu": cpu * WHOLE, "memory": memory}, state=state)
        if again:
            columns.set_pools({})
        awake |= set(sleepers.woken(columns))
        for key in list(awake):
            if not classes[key].rows_that_fit(columns):
                sleepers.sleep(key, classes[key].line)
                awake.discard(key)
        assert all(not wanted.rows_that_fit(columns) for key, wanted in classes.items() if key in sleepers)
        assert len(sleepers) + len(awake) == len(classes)


# --- policies that fail ---------------------------------------------------------------------------------------------


def raises(wanted: RequestClass, rows: Rows) -> Any:
    raise ZeroDivisionError("division by zero")


NONSENSE: dict[str, tuple[Callable[[RequestClass, Rows], Any], str]] = {
    "raises": (raises, "Policy odd failed: ZeroDivisionError: division by zero."),
    "floats": (lambda w, r: np.ones(len(r)), "answered with an array of float64, and not with an array of integers."),
    "list": (lambda w, r: [1] * len(r), "answered with a list, and not with an array of integers."),
    "none": (lambda w, r: None, "answered with a NoneType, and not with an array of integers."),
    "long": (lambda w, r: np.ones(len(r) + 1, dtype=int), "answered with scores of shape (2,) for 1 rows."),
    "below": (lambda w, r: np.full(len(r), -1), "answered with a score of -1, which is not from 0 to 100."),
    "above": (lambda w, r: np.full(len(r), 101), "answered with a score of 101, which is not from 0 to 100."),
}


class Odd(Policy):
    name = "odd"

    def __init__(self, answer: Callable[[RequestClass, Rows], Any]) -> None:
        self.answer = answer
        self.asked = 0

    def scores(self, wanted: RequestClass, rows: Rows) -> Any:
        self.asked += 1
        return self.answer(wanted, rows)


@pytest.mark.parametrize("fault", NONSENSE)
def test_jobs_of_a_policy_that_fails_wait_and_say_why(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, sentence = NONSENSE[fault]
    odd = Odd(answer)
    monkeypatch.setitem(registry.POLICIES, "odd", odd)
    w = world()
    job = w.submit(spec(policy="odd"))
    other = w.submit(spec())
    w.settle()
    assert w.state.jobs[job].ready and not w.state.jobs[other].ready
    assert sentence in explain(w.state, w.state.jobs[job], w.now).sentence
    # Nothing has changed since: it is not asked again. Once something has, it is, and its jobs start.
    asked = odd.asked
    w.submit(spec(hold=True))
    w.advance(1)
    assert odd.asked == asked
    odd.answer = lambda wanted, rows: np.zeros(len(rows), dtype=np.int64)
    end_all(w)
    assert not w.state.jobs[job].ready


def test_a_policy_that_is_not_known_here_makes_its_jobs_wait() -> None:
    w = world()
    job = w.submit(spec(policy="gone"))
    w.settle()
    said = explain(w.state, w.state.jobs[job], w.now).sentence
    assert said.startswith("Policy gone failed: RuntimeError: there is no policy of that name here.")


class Good(Policy):
    name = "good"

    def scores(self, wanted: RequestClass, rows: Rows) -> Ints:
        return rows.numbers % 7


class TooHigh(Good):
    name = "high"
    highest = 10**10


def cannot() -> type[Policy]:
    raise ImportError("no module named x")


def test_policies_are_registered_or_it_is_said_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "POLICIES", dict(registry.POLICIES))
    found: dict[str, Callable[[], Any]] = {
        "good": lambda: Good,
        "spread": lambda: Good,
        "other": lambda: Good,
        "broken": cannot,
        "int": lambda: int,
        "high": lambda: TooHigh,
    }
    assert registry.add_policies(found) == [
        "policy spread: there is one of that name already; register it under another.",
        "policy other: it is registered as other, but calls itself good",
        "policy broken: it cannot be loaded: ImportError: no module named x",
        "policy int: what is registered is no subclass of lavalite.placement.policies.Policy",
        "policy high: its highest score is 10000000000, and may be from 0 to 1000000000",
    ]
    assert isinstance(registry.POLICIES["good"], Good)
    assert isinstance(registry.POLICIES["broken"], registry.Unusable)


# --- looking ahead --------------------------------------------------------------------------------------------------


def test_the_workload_is_what_is_asked_for_most() -> None:
    asked = [(Request(cpu_milli=1000), 3), (Request(cpu_milli=1000, gpu_milli=2000), 1), (Request(cpu_milli=1000), 5)]
    parts = workload_of(asked)
    # 8 of 9 tasks: 888; 1 of 9: 111.
    assert [(part.amounts[0], part.whole_gpus, part.weight) for part in parts] == [(1000, 0, 888), (1000, 2, 111)]


def test_fgd_goes_by_what_was_submitted_before() -> None:
    w = world(offer("n1", cpu=8, gpus=1), offer("n2", cpu=2, gpus=1))
    for _ in range(20):  # tasks of 4 cores and a whole GPU: only n1 is of use to them
        w.submit(spec(cpu_milli=4000, gpu_milli=1000, hold=True))
    job = w.submit(spec(cpu_milli=1000, gpu_milli=500, policy="fgd"))
    w.settle()
    assert [run.node for key, run in w.state.runs.items() if key.job == job] == ["n2"]
