"""What an application inside a logical host may ask for, and what becomes of it."""

from __future__ import annotations

import pytest
from control_world import World, offer, spec, world

from lavalite.base.errors import LavaLiteError
from lavalite.control.events import HostGrown, Specs
from lavalite.control.hosts import growth
from lavalite.model.host import HostState
from lavalite.model.job import Request
from lavalite.model.specs import HostSpec

GIB = 2**30


def asked_for(memory: int = GIB, limit: int | None = 3 * GIB, cpu: int = 1000) -> Specs:
    limits = {} if limit is None else {"memory": limit}
    return Specs(hosts={"a": HostSpec("a", {"cpu": cpu, "memory": memory}, limits=limits)})


@pytest.fixture
def composed() -> World:
    made = world(offer("n1", cpu=4, memory=4 * GIB))
    made.apply(asked_for())
    made.settle()
    assert made.state.hosts["a"].state is HostState.COMPOSED
    return made


def memory(made: World) -> int:
    return made.state.hosts["a"].amount("memory")


@pytest.mark.parametrize(
    ("amounts", "code"),
    [
        ({"memory": 4 * GIB}, "out_of_range"),  # the limit is 3 GiB
        ({"memory": GIB - 1}, "out_of_range"),  # pools.yml says 1 GiB
        ({"cpu": 2000}, "no_limit"),
        ({"memory": 2 * GIB, "colour": 1}, "bad_input"),
    ],
)
def test_what_is_beyond_its_limits_is_refused(composed: World, amounts: dict[str, int], code: str) -> None:
    with pytest.raises(LavaLiteError) as refused:
        growth.check(composed.state, "a", amounts)
    assert refused.value.code == code


def test_a_host_that_nobody_asked_for_or_that_waits_is_refused(composed: World) -> None:
    with pytest.raises(LavaLiteError, match="no logical host b"):
        growth.check(composed.state, "b", {"memory": GIB})
    composed.apply(asked_for(cpu=64_000))
    composed.state.remove_host("a")
    with pytest.raises(LavaLiteError, match="a is not there"):
        growth.check(composed.state, "a", {"memory": 2 * GIB})


def test_it_grows_while_a_job_runs_and_gives_back(composed: World) -> None:
    job = composed.submit(spec(host="a", request=Request(cpu_milli=500, memory_bytes=GIB)))
    composed.settle()
    assert composed.running()
    for amount in (3 * GIB, 2 * GIB, GIB):
        composed.feed(HostGrown("a", {"memory": amount}))
        composed.settle()
        assert memory(composed) == amount
        assert composed.state.book.capacity("a", "memory") == amount
        assert composed.state.book.free("n1", "memory") == 4 * GIB - amount
    assert [attempt.job for attempt in composed.running()] == [job]


def test_what_jobs_use_cannot_be_given_back(composed: World) -> None:
    composed.feed(HostGrown("a", {"memory": 3 * GIB}))
    composed.settle()
    composed.submit(spec(host="a", request=Request(cpu_milli=500, memory_bytes=2 * GIB)))
    composed.settle()
    composed.feed(HostGrown("a", {"memory": GIB}))
    composed.settle()
    assert memory(composed) == 3 * GIB
    assert composed.state.hosts["a"].reason == "jobs use more of it than it is to have"


def test_it_is_kept_by_the_next_leader_and_ends_with_its_limit(composed: World) -> None:
    composed.feed(HostGrown("a", {"memory": 3 * GIB}))
    composed.settle()
    composed.change_leader()
    composed.settle()
    assert memory(composed) == 3 * GIB
    composed.apply(asked_for(limit=2 * GIB))
    composed.settle()
    assert memory(composed) == 2 * GIB
    composed.apply(asked_for(limit=None))
    composed.settle()
    assert memory(composed) == GIB
