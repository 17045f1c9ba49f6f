"""Pools of compute groups: which nodes, whose quota, and who goes first."""

from __future__ import annotations

from typing import Any

import pytest
from groups_world import Planner, offer

from lavalite.base.errors import ConflictError, InputError, UnknownNameError
from lavalite.groups.engine import supply
from lavalite.groups.engine.changes import Refused
from lavalite.groups.errors import GroupStateError
from lavalite.groups.records import GroupRecord
from lavalite.providers.base import NotOfferedError

ONE = {"gpu": 1, "cpu": 1}


@pytest.fixture
def planner() -> Planner:
    planner = Planner()
    planner.put_nodes(
        offer("n1", 4, labels={"rack": "r1"}), offer("n2", 4, labels={"rack": "r2"}), offer("n3", 0, cpu=8)
    )
    return planner


def as_many(planner: Planner, component: str, **constraints: Any) -> int:
    """How many groups of one GPU the component is given, until it is refused."""
    count = 0
    while isinstance(last := planner.try_allocate(component, ONE, **constraints), GroupRecord):
        count += 1
    assert isinstance(last, Refused) and last.reasons
    return count


def test_a_pool_is_a_choice_of_nodes_for_some_kinds(planner: Planner) -> None:
    planner.put_pool("second", nodes={"rack": "r2"}, kinds=["gpu"])
    assert planner.allocate("decode", ONE, pool="second").node == "n2"
    assert as_many(planner, "decode", pool="second") == 3
    with pytest.raises(InputError, match="nothing of what is asked for"):
        planner.try_allocate("decode", {"cpu": 1}, pool="second")


def test_a_node_that_comes_is_in_the_pools_that_choose_it(planner: Planner) -> None:
    planner.put_pool("third", nodes={"rack": "r3"}, kinds=["cpu", "gpu"])
    refused = planner.try_allocate("decode", ONE, pool="third")
    assert isinstance(refused, Refused) and refused.reasons == {"not_in_pool": 3}
    planner.put_nodes(offer("n4", 2, labels={"rack": "r3"}))
    assert as_many(planner, "decode", pool="third") == 2
    planner.put_nodes(offer("n4", 2, labels={"rack": "r1"}))
    assert planner.picture.members("third") == []


def test_a_nominal_quota_is_the_most_a_team_has(planner: Planner) -> None:
    planner.put_pool("gpus", nodes="*", kinds=["gpu"], quota={"a": {"nominal": 2}, "b": {"nominal": 3}})
    assert as_many(planner, "a", pool="gpus") == 2
    assert as_many(planner, "work", pool="gpus", team="b") == 3
    refused = planner.try_allocate("c", ONE, pool="gpus")
    assert isinstance(refused, Refused) and not refused.ever and "no quota" in refused.sentence
    assert refused.reasons == {"pool_quota": 3}
    refused = planner.try_allocate("a", {"gpu": 3}, pool="gpus")
    assert isinstance(refused, Refused) and not refused.ever
    refused = planner.try_allocate("a", ONE, pool="gpus")
    assert isinstance(refused, Refused) and refused.ever
    planner.deallocate(next(planner.picture.groups_of("a")))
    assert as_many(planner, "a", pool="gpus") == 1


def test_where_there_are_quotas_it_is_said_of_which_pool_it_is(planner: Planner) -> None:
    planner.put_pool("gpus", nodes="*", kinds=["gpu"], quota={"a": {"nominal": 2}})
    with pytest.raises(InputError, match="of which pool"):
        planner.try_allocate("a", ONE)
    assert planner.allocate("a", {"cpu": 1}).pool == ""
    planner.put_pool("gpus", nodes="*", kinds=["gpu"], default=True, quota={"a": {"nominal": 2}})
    assert as_many(planner, "a") == 2


@pytest.mark.parametrize(
    ("a", "b", "used_by_b", "most_of_a"),
    [
        ({"nominal": 2}, {"nominal": 6}, 0, 8),  # all that is b's is lent, and there is no limit to borrowing
        ({"nominal": 2, "borrow": 3}, {"nominal": 6}, 0, 5),
        ({"nominal": 2}, {"nominal": 6, "lend": 1}, 0, 3),
        ({"nominal": 2, "borrow": 0}, {"nominal": 6}, 0, 2),
        ({"nominal": 2}, {"nominal": 4, "lend": 0}, 0, 4),  # two GPUs are in nobody's quota
        ({"nominal": 2}, {"nominal": 6, "lend": 2}, 5, 3),
    ],
)
def test_what_is_borrowed_and_lent_in_a_cohort(
    planner: Planner, a: dict[str, int], b: dict[str, int], used_by_b: int, most_of_a: int
) -> None:
    planner.put_pool("gpus", nodes="*", kinds=["gpu"], cohort="site", quota={"a": a, "b": b})
    for _ in range(used_by_b):
        planner.allocate("b", ONE, pool="gpus")
    assert as_many(planner, "a", pool="gpus") == most_of_a


def test_without_a_cohort_nothing_is_borrowed(planner: Planner) -> None:
    with pytest.raises(InputError, match="no cohort"):
        planner.put_pool("gpus", nodes="*", kinds=["gpu"], quota={"a": {"nominal": 2, "borrow": 1}})
    planner.put_pool("gpus", nodes="*", kinds=["gpu"], quota={"a": {"nominal": 2, "borrow": 0}})
    assert as_many(planner, "a", pool="gpus") == 2


def test_a_created_group_counts_for_its_team_whoever_has_it(planner: Planner) -> None:
    planner.put_pool("gpus", nodes="*", kinds=["gpu"], quota={"a": {"nominal": 1}, "b": {"nominal": 1}})
    group = planner.create(ONE, pool="gpus", team="a")
    with pytest.raises(GroupStateError, match="quota of team a"):
        planner.try_allocate("b", ONE, pool="gpus", group=group.id)
    assert planner.allocate("b", ONE, pool="gpus").id != group.id
    assert planner.allocate("a", ONE, pool="gpus").id == group.id
    assert isinstance(planner.try_allocate("a", ONE, pool="gpus"), Refused)


def test_a_pool_of_higher_priority_goes_first(planner: Planner) -> None:
    planner.put_pool("urgent", nodes="n1", kinds=["gpu"], priority=10)
    planner.put_pool("usual", nodes="n1", kinds=["gpu"])
    from test_groups_engine_life import wait

    wait(planner, "waits", {"gpu": 4}, 1000, pool="usual")
    planner.now += 1
    assert isinstance(planner.try_allocate("decode", ONE, pool="usual"), Refused)
    assert isinstance(planner.try_allocate("decode", ONE, pool="urgent"), GroupRecord)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"nodes": "*"}, "kinds are missing"),
        ({"kinds": ["gpu"]}, "pool of nothing"),
        ({"nodes": "*", "kinds": ["gpu"], "colour": 1}, "colour"),
        ({"nodes": "*", "kinds": ["gpu"], "priority": "high"}, "priority"),
        ({"nodes": "*", "kinds": ["gpu"], "quota": {"a": {"nominal": 9}}}, "nominal quotas come to 9"),
        ({"nodes": "*", "kinds": ["gpu"], "cohort": "x", "quota": {"a": {"nominal": 1, "lend": 2}}}, "lent"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(planner: Planner, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        planner.put_pool("gpus", **entry)
    assert not planner.picture.pools


def test_what_only_a_running_system_has_is_said_to_be(planner: Planner) -> None:
    with pytest.raises(NotOfferedError, match="floating"):
        planner.put_pool("licences", floating={"matlab": 2})
    with pytest.raises(NotOfferedError, match="limits"):
        planner.put_pool("gpus", nodes="*", kinds=["gpu"], limits={"gpu": 2})
    with pytest.raises(InputError, match="no name"):
        planner.put_pool("a pool", nodes="*", kinds=["gpu"])


def test_a_pool_goes_when_nothing_of_it_is_held(planner: Planner) -> None:
    planner.put_pool("gpus", nodes="*", kinds=["gpu"])
    group = planner.allocate("decode", ONE, pool="gpus")
    with pytest.raises(ConflictError, match="decode"):
        supply.delete_pool(planner.picture, "gpus")
    planner.deallocate(group)
    planner.carry_out(lambda p: supply.delete_pool(p, "gpus"))
    with pytest.raises(UnknownNameError):
        supply.delete_pool(planner.picture, "gpus")
    assert not planner.picture.usage.used
