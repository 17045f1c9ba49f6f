"""Where groups go: by strategy, by closeness, near and apart, by node; and parts of GPUs. Sums as tables."""

from __future__ import annotations

from typing import Any

import pytest
from groups_world import MODEL, PROFILES, Planner, gpu, held, offer

from lavalite.base.errors import InputError, UnknownNameError
from lavalite.groups.engine.changes import Refused
from lavalite.groups.records import GroupRecord

ONE = {"gpu": 1, "cpu": 4}


def three_nodes() -> Planner:
    """n1 and n2 have 8 GPUs and n3 has 4; each has 64 cores and 256 GiB. With one GPU and 4 cores more:

            gpu              cpu               memory         asked for   all it has
    n1   (6+1)/8 = 87    (8+4)/64 = 18    128/256 = 50       105         155 / 3 = 51
    n2   (2+1)/8 = 37   (48+4)/64 = 81      0/256 =  0       118         118 / 3 = 39
    n3   (0+1)/4 = 25    (0+4)/64 =  6      0/256 =  0        31          31 / 3 = 10
    """
    planner = Planner()
    planner.put_nodes(offer("n1", 8), offer("n2", 8), offer("n3", 4))
    planner.allocate("old", {"gpu": 6, "cpu": 8, "memory": "128GiB"}, node="n1")
    planner.allocate("old", {"gpu": 2, "cpu": 48}, node="n2")
    return planner


@pytest.mark.parametrize(
    ("strategy", "node", "why"),
    [
        ("", "n2", "fullest in what is asked for: 118, 105, 31"),
        ("best-fit", "n2", "the same"),
        ("priority", "n2", "the same: who goes first is another matter"),
        ("topology", "n2", "the same: the devices are as near as can be anyway"),
        ("binpack", "n1", "fullest in all that it has: 51, 39, 10"),
        ("spread", "n3", "emptiest where it is fullest: 100 - 25, 100 - 81, 100 - 87"),
        ("gpu-packing", "n1", "GPUs in use, and least left: 1 of n1, 5 of n2; n3 has none in use"),
        ("first-fit", "n1", "came first"),
        ("round-robin", "n3", "the next after n2, where the last one went"),
    ],
)
def test_a_strategy_is_a_policy_of_placement(strategy: str, node: str, why: str) -> None:
    assert three_nodes().allocate("decode", ONE, strategy=strategy).node == node, why


def test_round_robin_goes_round() -> None:
    planner = Planner()
    planner.put_nodes(offer("n1", 2), offer("n2", 2), offer("n3", 2))
    nodes = [planner.allocate("decode", {"gpu": 1}, strategy="round-robin").node for _ in range(6)]
    assert sorted(nodes[:3]) == ["n1", "n2", "n3"] and nodes[:3] == nodes[3:]


# --- which devices ------------------------------------------------------------------------------------------------


def islands(name: str = "n1") -> list[Any]:
    """Eight GPUs: two NVLink islands of four, each of two PCIe pairs, one on each NUMA node."""
    return [gpu(name, at, numa=at // 4, nvlink=f"i{at // 4}", pcie=f"p{at // 2}") for at in range(8)]


def numbers(group: GroupRecord) -> set[int]:
    return {int(device.rsplit("-", 1)[1]) for device in held(group)}


def test_devices_are_as_near_as_can_be_and_singles_leave_islands_whole() -> None:
    planner = Planner()
    planner.put_nodes(offer("n1", islands()))
    first = planner.allocate("decode", {"gpu": 1})
    second = planner.allocate("decode", {"gpu": 1})
    assert {at // 2 for at in numbers(first) | numbers(second)} == {next(iter(numbers(first))) // 2}, "one pair"
    four = planner.allocate("prefill", {"gpu": 4})
    assert len({at // 4 for at in numbers(four)}) == 1, "one island of NVLink"
    pair = planner.allocate("prefill", {"gpu": 2})
    assert len({at // 2 for at in numbers(pair)}) == 1, "a pair"
    assert len({*numbers(first), *numbers(second), *numbers(four), *numbers(pair)}) == 8


def test_a_level_that_is_demanded_is_kept_or_it_is_refused() -> None:
    planner = Planner()
    planner.put_nodes(offer("n1", islands()))
    planner.allocate("old", {"gpu": 1})
    planner.allocate("old", {"gpu": 4})
    refused = planner.try_allocate("decode", {"gpu": {"count": 4, "topology": "nvlink"}})
    assert isinstance(refused, Refused) and refused.ever
    refused = planner.try_allocate("decode", {"gpu": 8}, topology="nvlink")
    assert isinstance(refused, Refused) and not refused.ever
    assert refused.reasons == {"no_topology": 1}
    assert len(numbers(planner.allocate("decode", {"gpu": {"count": 3, "topology": "numa"}}))) == 3


def test_models_and_memory_are_asked_for_of_each_gpu() -> None:
    planner = Planner()
    planner.put_nodes(
        offer("n1", [gpu("n1", 0, model="NVIDIA A100-SXM4-80GB")]), offer("n2", [gpu("n2", 0, memory_bytes=2**34)])
    )
    assert planner.allocate("decode", {"gpu": {"count": 1, "model": "A100"}}).node == "n1"
    assert planner.allocate("decode", {"gpu": {"count": 1, "memory": "16GiB"}}).node == "n2"
    refused = planner.try_allocate("decode", {"gpu": {"count": 1, "model": "B200"}})
    assert isinstance(refused, Refused) and not refused.ever and refused.reasons == {"no_model": 2}


# --- where --------------------------------------------------------------------------------------------------------


def racks() -> Planner:
    planner = Planner()
    planner.put_nodes(
        offer("n1", 2, labels={"rack": "r1"}),
        offer("n2", 2, labels={"rack": "r1"}),
        offer("n3", 2, labels={"rack": "r2"}),
        offer("n4", 2),
    )
    return planner


@pytest.mark.parametrize(
    ("constraints", "nodes"),
    [
        ({"node": "n2"}, {"n2"}),
        ({"nodes": {"rack": "r2"}}, {"n3"}),
        ({"nodes": "n[03:04]"}, set()),
        ({"nodes": "n[3:4]"}, {"n3", "n4"}),
        ({"affinity": ["decode"]}, {"n1"}),
        ({"affinity": ["decode"], "within": "rack"}, {"n1", "n2"}),
        ({"anti_affinity": ["decode"]}, {"n2", "n3", "n4"}),
        ({"anti_affinity": ["decode"], "within": "rack"}, {"n3", "n4"}),
        ({"affinity": ["decode"], "node": "n3"}, set()),
        ({"affinity": ["nobody"]}, set()),
        ({"anti_affinity": ["nobody"], "node": "n4"}, {"n4"}),
        (
            {"strategy": "affinity", "affinity": ["decode"], "anti_affinity": ["other"], "within": "rack"},
            {"n1", "n2"},
        ),
    ],
)
def test_where_it_may_be(constraints: dict[str, Any], nodes: set[str]) -> None:
    planner = racks()
    planner.allocate("decode", {"gpu": 1}, node="n1")
    planner.allocate("other", {"gpu": 1}, node="n3")
    found: set[str] = set()
    while isinstance(group := planner.try_allocate("new", {"gpu": 1}, **constraints), GroupRecord):
        found.add(group.node)
    assert found == nodes
    assert isinstance(group, Refused) and group.reasons


def test_a_node_that_is_closed_takes_nothing_new_and_one_that_is_not_there_is_said() -> None:
    planner = Planner()
    planner.put_nodes(offer("n1", 2, closed="It is cordoned."), offer("n2", 1))
    assert planner.allocate("decode", {"gpu": 1}).node == "n2"
    refused = planner.try_allocate("decode", {"gpu": 1})
    assert isinstance(refused, Refused) and refused.ever and refused.reasons == {"draining": 1, "too_few_free": 1}
    with pytest.raises(UnknownNameError, match="n9"):
        planner.try_allocate("decode", {"gpu": 1}, node="n9")


# --- parts of GPUs ------------------------------------------------------------------------------------------------


def mixed() -> Planner:
    """m is in MIG mode, s serves parts by MPS, b does neither: two GPUs each."""
    planner = Planner()
    planner.put_nodes(
        offer("b", 2),
        offer("m", [gpu("m", at, mig="on", mig_profiles=PROFILES) for at in range(2)]),
        offer("s", [gpu("s", at, mig="off", mps="yes") for at in range(2)]),
    )
    return planner


@pytest.mark.parametrize(
    ("part", "profile", "load"),
    [
        (0.1, "1g.10gb", 142),
        (0.142, "1g.10gb", 142),
        (0.15, "2g.20gb", 285),
        (0.4, "3g.40gb", 428),
        (0.5, "7g.80gb", 1000),
    ],
)
def test_auto_is_the_smallest_mig_instance_that_has_the_part(part: float, profile: str, load: int) -> None:
    group = mixed().allocate("small", {"gpu": part})
    assert (group.node, group.isolation, group.mig_profile) == ("m", "mig", profile)
    assert [(share.amount, len(share.devices)) for share in group.shares] == [(load, 1)]


def test_auto_is_mps_where_no_mig_instance_is_left_and_never_nothing() -> None:
    planner = mixed()
    groups = []
    while isinstance(group := planner.try_allocate("small", {"gpu": 0.4}), GroupRecord):
        groups.append(group)
    assert [(g.node, g.isolation) for g in groups] == [("m", "mig")] * 4 + [("s", "mps")] * 4
    planner.picture.book.check()
    assert isinstance(group, Refused) and group.ever
    bare = planner.allocate("small", {"gpu": 0.4, "isolation": "none"})
    assert (bare.node, bare.isolation) == ("b", "none")


def test_one_gpu_has_parts_of_one_isolation_at_a_time() -> None:
    planner = Planner()
    planner.put_nodes(offer("s", [gpu("s", at, mps="yes") for at in range(2)]))
    first = planner.allocate("small", {"gpu": 0.25, "isolation": "mps"})
    second = planner.allocate("small", {"gpu": 0.25, "isolation": "none"})
    assert set(held(first)).isdisjoint(held(second))
    third = planner.allocate("small", {"gpu": 0.25, "isolation": "mps"})
    assert held(third) == held(first), "a begun one first"
    refused = planner.try_allocate("large", {"gpu": 1})
    assert isinstance(refused, Refused) and refused.ever
    planner.deallocate(second)
    assert held(planner.allocate("large", {"gpu": 1})) == held(second)


def test_parts_that_nothing_keeps_apart_are_refused_with_the_way_out() -> None:
    planner = Planner()
    planner.put_nodes(offer("n1", 4))
    for isolation in ("auto", "mig", "mps"):
        refused = planner.try_allocate("small", {"gpu": 0.5, "isolation": isolation})
        assert isinstance(refused, Refused) and not refused.ever
        assert refused.reasons == {"no_isolation": 1} and 'isolation: "none"' in refused.hint
    assert planner.allocate("small", {"gpu": 0.5, "isolation": "none"}).isolation == "none"


def test_mig_instances_by_their_profile_made_or_there_already() -> None:
    planner = mixed()
    made = planner.allocate("small", {"gpu": {"count": 3, "mig": "3g.40gb"}})
    assert (made.isolation, made.mig_profile) == ("mig", "3g.40gb")
    assert sorted(share.amount for share in made.shares if share.kind == "gpu") == [428, 856]
    planner.put_nodes(offer("t", [gpu("t", at, mig_profile="3g.40gb") for at in range(2)]))
    there = planner.allocate("small", {"gpu": {"count": 2, "mig": "3g.40gb"}})
    assert (there.node, there.isolation, there.mig_profile) == ("t", "", "")
    refused = planner.try_allocate("small", {"gpu": {"count": 1, "mig": "4g.40gb"}})
    assert isinstance(refused, Refused) and not refused.ever
    planner.picture.book.check()


def test_a_whole_gpu_is_none_that_is_in_mig_mode() -> None:
    planner = Planner()
    planner.put_nodes(offer("m", [gpu("m", 0, mig="on", mig_profiles=PROFILES)]))
    refused = planner.try_allocate("large", {"gpu": 1})
    assert isinstance(refused, Refused) and not refused.ever


# --- what there is changes ----------------------------------------------------------------------------------------


def test_what_vanishes_is_over_committed_and_its_groups_have_failed() -> None:
    planner = Planner()
    planner.put_nodes(offer("n1", 2))
    group = planner.allocate("decode", {"gpu": 2, "cpu": 4})
    planner.put_nodes(offer("n1", 1, cpu=2))
    assert "GPU-n1-1" in planner.picture.fault_of(group)
    assert sorted(planner.picture.book.overcommitted()) == [("n1", "cpu"), ("n1", "gpu")]
    refused = planner.try_allocate("decode", {"cpu": 1})
    assert isinstance(refused, Refused)
    planner.put_nodes(offer("n1", 2))
    assert planner.picture.fault_of(group) == ""
    planner.deallocate(group)
    planner.picture.book.check()


def test_a_sick_gpu_is_given_to_nobody() -> None:
    planner = Planner()
    planner.put_nodes(offer("n1", 2))
    free = planner.create({"gpu": 1})
    assert planner.picture.set_health({held(free)[0]: "it has fallen off the bus"}) == ["n1"]
    other = planner.allocate("decode", {"gpu": 1})
    assert held(other) != held(free) and other.id != free.id
    assert isinstance(planner.try_allocate("decode", {"gpu": 1}), Refused)
    assert "fallen off" in planner.picture.fault_of(free)
    assert planner.picture.set_health({}) == ["n1"]
    assert planner.allocate("decode", {"gpu": 1}).id == free.id


def test_odd_asks_are_said_to_be_odd() -> None:
    planner = three_nodes()
    with pytest.raises(UnknownNameError, match="no pool"):
        planner.try_allocate("decode", ONE, pool="none")
    with pytest.raises(InputError, match="nothing is asked for"):
        planner.try_allocate("decode", {})
    assert MODEL in planner.picture.nodes["n1"].gpus["GPU-n1-0"].device.model
