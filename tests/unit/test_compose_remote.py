"""Plans of hosts whose parts come from several nodes: what is far, over which circuits, and why it cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.model.host import HostState, LogicalHost, VmAsk
from lavalite.model.job import Share
from lavalite.model.resources import WHOLE, Device
from lavalite.model.selector import Selector
from lavalite.model.specs import STRATEGIES, HostSpec, LinkSpec, NodeCapacity, PoolSpec
from lavalite.placement.compose import nearer, plan_hosts
from lavalite.placement.fabric import Fabric, link_accounts, with_cards
from lavalite.placement.reasons import Gap, Reason, Refusal
from lavalite.placement.shares import shares_of

GIB, GBIT = 2**30, 10**9
ALL = PoolSpec("all", Selector.parse("*"), ("cpu", "memory", "gpu"))
FLASH = PoolSpec("flash", Selector.parse("s*"), ("storage",))


def node(
    name: str, rack: str = "r1", cpu: int = 8, memory: int = 32, gpu: int = 0, storage: int = 0, network: int = 25
) -> NodeCapacity:
    """Cores, GiB, GPUs, GiB and Gbit/s."""
    amounts = {"cpu": cpu * 1000, "memory": memory * GIB, "gpu": gpu * 1000, "storage": storage * GIB}
    amounts["network"] = network * GBIT
    gpus = tuple(Device(id=f"{name}-gpu{n}", model="A100", memory_bytes=80 * GIB) for n in range(gpu))
    have = {kind: amount for kind, amount in amounts.items() if amount}
    return NodeCapacity(name, {"rack": [rack]}, have, {"gpu": gpus} if gpu else {})


def spec(name: str = "a", cpu: int = 4, memory: int = 8, gpu: int = 0, storage: int = 0, **more: Any) -> HostSpec:
    amounts = {"cpu": cpu * 1000, "memory": memory * GIB, "gpu": gpu * 1000, "storage": storage * GIB}
    amounts = {kind: amount for kind, amount in amounts.items() if amount}
    pools = {kind: "flash" if kind == "storage" else "all" for kind in amounts}
    return HostSpec(name, amounts, pools=pools, **more)


def planned(
    wanted: HostSpec, nodes: Sequence[NodeCapacity], links: Sequence[LinkSpec] = (), **more: Any
) -> LogicalHost:
    answer = plan_hosts([wanted], nodes, [ALL, FLASH], links=links, **more)[wanted.name]
    assert isinstance(answer, LogicalHost), answer.sentence()
    return answer


def refused(wanted: HostSpec, nodes: Sequence[NodeCapacity], links: Sequence[LinkSpec] = (), **more: Any) -> Refusal:
    answer = plan_hosts([wanted], nodes, [ALL, FLASH], links=links, **more)[wanted.name]
    assert isinstance(answer, Refusal), answer
    return answer


def parts(host: LogicalHost) -> list[tuple[str, int, str]]:
    """Id, amount (cores, GPUs, GiB), circuit."""
    unit = {"cpu": 1000, "gpu": 1000, "memory": GIB, "storage": GIB}
    return [(part.id, part.amount // unit[part.kind], part.circuit) for part in host.parts]


def circuits(host: LogicalHost) -> list[tuple[str, int, list[str]]]:
    return [(circuit.id, circuit.bits_per_second // GBIT, circuit.links) for circuit in host.circuits]


def racks(*names: str, width: int = 25, up: int = 100) -> list[LinkSpec]:
    nodes = [LinkSpec(name, width * GBIT, Selector.parse({"rack": name})) for name in names]
    return nodes + [LinkSpec("core", up * GBIT, switch=name) for name in names]


# --- what is far -------------------------------------------------------------------------------------------------


def test_storage_of_another_node_comes_over_a_circuit() -> None:
    host = planned(
        spec(storage=100, circuits={"storage": 5 * GBIT}),
        [node("n1"), node("s1", "r2", storage=500)],
        racks("r1", "r2"),
    )
    assert host.anchor == "s1"  # where nothing is far, if there is CPU
    small = [node("n1"), node("s1", "r2", cpu=1, storage=500)]
    host = planned(spec(storage=100, circuits={"storage": 5 * GBIT}), small, racks("r1", "r2"))
    assert parts(host) == [
        ("a/cpu/n1", 4, ""),
        ("a/memory/n1", 8, ""),
        ("a/storage/s1", 100, "a/circuit/s1"),
    ]
    assert circuits(host) == [
        ("a/circuit/s1", 5, ["link/n1/r1", "link/r1/core", "link/r2/core", "link/s1/r2"]),
    ]
    assert host.pools == ["all", "flash"]


def test_a_circuit_that_nobody_speaks_of_has_the_usual_bandwidth() -> None:
    host = planned(spec(storage=100), [node("n1"), node("s1", cpu=1, storage=500)])
    assert circuits(host) == [("a/circuit/s1", 1, [])]  # and without links only cards count


def test_memory_that_is_far_is_what_the_anchor_lacks() -> None:
    wanted = spec(memory=48, far={"memory": 24 * GIB})
    host = planned(wanted, [node("n1", memory=40), node("n2", memory=32, cpu=1)])
    assert parts(host) == [
        ("a/cpu/n1", 4, ""),
        ("a/memory/n1", 40, ""),
        ("a/memory/n2", 8, "a/circuit/n2"),  # 48 - 40
    ]
    short = refused(spec(memory=48, far={"memory": 4 * GIB}), [node("n1", memory=40), node("n2", memory=32)])
    assert short.turned_away == {Reason.MAY_NOT_BE_FAR: 2}  # 8 and 16 are far more than 4
    assert (short.nearest, short.lacks) == ("n1", {"memory": 4 * GIB})  # 48 - 4 = 44 here, 40 there


def test_memory_of_several_nodes_where_none_has_enough() -> None:
    nodes = [node("n1", memory=40), *(node(f"m{n}", memory=8 * n, cpu=1) for n in (1, 2, 3))]
    host = planned(spec(memory=76, far={"memory": 40 * GIB}), nodes)
    assert parts(host)[2:] == [
        ("a/memory/m3", 24, "a/circuit/m3"),  # 76 - 40 = 36: the largest first
        ("a/memory/m2", 12, "a/circuit/m2"),  # and of those that have 12 the best fit: 16, not 8
    ]


def test_one_circuit_carries_all_that_comes_from_a_node() -> None:
    nodes = [node("n1", memory=8), node("s1", cpu=1, memory=64, storage=500)]
    wanted = spec(memory=16, storage=100, far={"memory": 8 * GIB}, circuits={"memory": 10 * GBIT, "storage": GBIT})
    host = planned(wanted, nodes, racks("r1"))
    assert circuits(host) == [("a/circuit/s1", 10, ["link/n1/r1", "link/s1/r1"])]
    assert {part.circuit for part in host.parts if host.is_far(part)} == {"a/circuit/s1"}


def test_gpus_that_are_far_are_whole_and_of_the_model() -> None:
    other = node("g2", gpu=4)
    other.devices["gpu"] = tuple(device.model_copy(update={"model": "V100"}) for device in other.devices["gpu"])
    nodes = [node("g1", gpu=2), other, node("g3", gpu=3, cpu=1)]
    host = planned(spec(gpu=4, far={"gpu": 2 * WHOLE}, gpu_model="A100"), nodes)
    assert [(p.id, p.devices) for p in host.parts if p.kind == "gpu"] == [
        ("a/gpu/g1", ["g1-gpu0", "g1-gpu1"]),
        ("a/gpu/g3", ["g3-gpu0", "g3-gpu1"]),
    ]
    assert not refused(spec(gpu=4, gpu_model="A100"), nodes).gap  # nothing may be far


def test_what_is_asked_beside_is_in_the_host() -> None:
    vm = VmAsk(image="debian.qcow2", address="10.0.0.7/24")
    host = planned(spec(executor="vm", vm=vm, on_loss="degrade"), [node("n1")])
    assert (host.executor, host.vm, host.on_loss) == ("vm", vm, "degrade")


def test_a_bare_anchor_has_one_host_with_far_memory_and_a_virtual_one_any() -> None:
    nodes = [node("n1", memory=8), node("m1", cpu=1, memory=64)]
    far: dict[str, Any] = {"cpu": 2, "memory": 8, "far": {"memory": 8 * GIB}}
    plan = plan_hosts([spec("a", **far), spec("b", **far), spec("c", **far)], nodes, [ALL])
    assert isinstance(plan["a"], LogicalHost)  # with all of n1's memory
    assert isinstance(plan["b"], LogicalHost) and plan["b"].amount("memory") == 8 * GIB
    third = plan["c"]
    assert isinstance(third, Refusal)
    assert third.turned_away == {Reason.FAR_MEMORY_TAKEN: 1, Reason.TOO_SMALL: 1}
    vms = [spec(name, executor="vm", vm=VmAsk(image="i"), **far) for name in "abc"]
    assert all(isinstance(host, LogicalHost) for host in plan_hosts(vms, nodes, [ALL]).values())


# --- where -------------------------------------------------------------------------------------------------------


def test_near_takes_the_rack_then_the_fewest_links() -> None:
    nodes = [node("n1", "r1"), *(node(f"s{n}", f"r{n}", cpu=1, storage=500) for n in (2, 3))]
    links = [*racks("r1", "r2"), LinkSpec("r3", 25 * GBIT, Selector.parse({"rack": "r3"}))]
    links += [LinkSpec("mid", 100 * GBIT, switch="r3"), LinkSpec("core", 100 * GBIT, switch="mid")]
    assert planned(spec(storage=10), nodes, links).parts[-1].provider == "s2"  # 4 links; to s3 they are 5
    assert planned(spec(storage=10), [*nodes, node("s9", "r1", cpu=1, storage=900)], links).parts[-1].provider == "s9"


@pytest.mark.parametrize(
    ("strategy", "anchor", "provider"),
    [
        ("near", "n3", "s1"),  # the anchor that is left fullest; of storage 20 of 120 are left
        ("binpack", "n2", "s3"),  # n2 has half its memory taken; s3 all of it, and a third of its storage
        ("spread", "n1", "s2"),  # n1 is the largest: 4 of 16 cores, 8 of 64 GiB; s2 is left with 3/4
    ],
)
def test_strategies(strategy: str, anchor: str, provider: str) -> None:
    nodes = [node("n1", cpu=16, memory=64), node("n2", cpu=16, memory=64), node("n3", cpu=8, memory=10)]
    nodes += [node(f"s{n}", cpu=1, memory=1, storage=size) for n, size in ((1, 120), (2, 400), (3, 300))]
    taken = [Share(provider="n2", kind="memory", amount=32 * GIB)]
    taken += [Share(provider="s3", kind="memory", amount=GIB), Share(provider="s3", kind="storage", amount=100 * GIB)]
    host = planned(spec(storage=100, strategy=strategy), nodes, taken=taken)
    assert (host.anchor, host.parts[-1].provider) == (anchor, provider)


def test_near_rack_is_the_rack_and_near_node_the_node() -> None:
    nodes = [node("n1", "r1"), node("s1", "r2", cpu=1, storage=500)]
    gap = refused(spec(storage=10, near="rack"), nodes, racks("r1", "r2"))
    assert gap.turned_away == {Reason.NOT_IN_RACK: 1, Reason.TOO_SMALL: 1}
    assert gap.sentence().endswith("; no node of pool flash in the rack of n1 offers storage.")
    none = refused(spec(storage=10, near="node"), nodes)
    assert none.turned_away == {Reason.MAY_NOT_BE_FAR: 1, Reason.TOO_SMALL: 1}


# --- why not -----------------------------------------------------------------------------------------------------


def test_a_pool_with_no_path_to_it() -> None:
    nodes = [node("n1", "r1"), node("s1", "r2", cpu=1, storage=500)]
    for links in (racks("r1"), [*racks("r1"), LinkSpec("r2", GBIT, Selector.parse({"rack": "r2"}))], racks("r2")):
        answer = refused(spec(storage=10), nodes, links)
        assert answer.turned_away == {Reason.NO_PATH: 1, Reason.TOO_SMALL: 1}, links
        assert answer.sentence() == (
            "2 nodes: 1 has no path to what it lacks, 1 is too small even when empty; nearest s1 lacks 3 cpu "
            "and 0 memory; no node of pool flash that offers storage has a path to n1."
        ).replace(" and 0 memory", "")


def test_a_circuit_over_a_full_link() -> None:
    nodes = [node("n1", "r1"), node("s1", "r2", cpu=1, storage=500)]
    wanted = spec(storage=10, circuits={"storage": 5 * GBIT})
    taken = [Share(provider="link/r1/core", kind="network", amount=98 * GBIT)]
    answer = refused(wanted, nodes, racks("r1", "r2"), taken=taken)
    assert answer.turned_away == {Reason.PATH_FULL: 1, Reason.TOO_SMALL: 1}
    assert answer.sentence().endswith(
        "; storage for n1 would come over link r1/core, which has 2Gbit/s free of 5Gbit/s asked."
    )
    for name, words in (("n1", "the network of n1"), ("s1", "the network of s1"), ("link/n1/r1", "link n1/r1")):
        taken = [Share(provider=name, kind="network", amount=21 * GBIT)]
        answer = refused(wanted, nodes, racks("r1", "r2"), taken=taken)
        assert f"over {words}, which has 4Gbit/s free of 5Gbit/s asked." in answer.sentence()


def test_what_no_other_node_has_free_and_who_has_most() -> None:
    nodes = [node("n1"), node("s1", cpu=1, storage=50), node("s2", cpu=1, storage=80)]
    answer = refused(spec(storage=100), nodes)
    assert answer.turned_away == {Reason.NO_PROVIDER: 1, Reason.TOO_SMALL: 2}
    assert answer.gap == Gap(Reason.NO_PROVIDER, "storage", 100 * GIB, "n1", "flash", provider="s2", lacks=20 * GIB,
                             hopeless_from=100 * GIB)  # fmt: skip
    assert answer.sentence().endswith("for n1 the nearest of other nodes of pool flash, s2, lacks 20GiB storage.")
    closed = {"s2": Reason.DRAINING}
    assert refused(spec(storage=60), nodes, closed=closed).gap is not None


def test_the_circuit_of_one_host_leaves_no_room_for_the_next() -> None:
    nodes = [node("n1"), node("s1", cpu=1, storage=500)]
    wide = {"storage": 15 * GBIT}
    plan = plan_hosts([spec(n, storage=10, circuits=wide) for n in "ab"], nodes, [ALL, FLASH], links=racks("r1"))
    assert isinstance(plan["a"], LogicalHost) and isinstance(plan["b"], Refusal)
    assert plan["b"].turned_away == {Reason.PATH_FULL: 1, Reason.TOO_SMALL: 1}


# --- hosts that exist ----------------------------------------------------------------------------------------------


def composed(wanted: HostSpec, nodes: Sequence[NodeCapacity], links: Sequence[LinkSpec] = ()) -> LogicalHost:
    return planned(wanted, nodes, links).model_copy(update={"state": HostState.COMPOSED})


FAR: dict[str, Any] = {"far": {"memory": 64 * GIB}}
MEMORY_NODES = [node("n1", memory=16), node("m1", cpu=1, memory=64), node("m2", "r2", cpu=1, memory=64)]


def test_far_memory_grows_by_a_further_part_and_shrinks_by_whole_ones() -> None:
    host = composed(spec(memory=24, **FAR), MEMORY_NODES)
    assert parts(host)[1:] == [("a/memory/n1", 16, ""), ("a/memory/m1", 8, "a/circuit/m1")]
    larger = planned(spec(memory=40, **FAR), MEMORY_NODES, existing={"a": host})
    assert parts(larger)[1:] == [
        ("a/memory/n1", 16, ""),
        ("a/memory/m1", 8, "a/circuit/m1"),  # as it was
        ("a/memory/m1.2", 16, "a/circuit/m1"),  # over the same circuit
    ]
    assert len(larger.circuits) == 1 and larger.version == host.version + 1
    smaller = planned(spec(memory=30, **FAR), MEMORY_NODES, existing={"a": larger})
    assert (
        parts(smaller)[1:]
        == [
            ("a/memory/n1", 6, ""),  # 10 less than 40: no part of 8 + 16 is, but the one of 8; then 2 of the anchor
            ("a/memory/m1", 8, "a/circuit/m1"),
            ("a/memory/m1.2", 16, "a/circuit/m1"),
        ]
        or parts(smaller)[1:] == [("a/memory/n1", 14, ""), ("a/memory/m1.2", 16, "a/circuit/m1")]
    )
    least = planned(spec(memory=4, **FAR), MEMORY_NODES, existing={"a": larger})
    assert (parts(least)[1:], least.circuits) == ([("a/memory/n1", 4, "")], [])


def test_memory_of_the_anchor_grows_first() -> None:
    host = composed(spec(memory=24, **FAR), MEMORY_NODES)
    roomy = [node("n1", memory=20), *MEMORY_NODES[1:]]
    after = planned(spec(memory=30, **FAR), roomy, existing={"a": host})
    assert [amount for _, amount, _ in parts(after)[1:]] == [20, 8, 2]


def test_storage_of_another_node_does_not_shrink() -> None:
    nodes = [node("n1"), node("s1", cpu=1, storage=500)]
    host = composed(spec(storage=100), nodes)
    answer = refused(spec(storage=50), nodes, existing={"a": host})
    assert answer.sentence() == "1 node: 1 has storage of another node, which does not shrink."
    assert parts(planned(spec(storage=100, cpu=5), nodes, existing={"a": host}))[-1] == parts(host)[-1]
    gone = planned(spec(), nodes, existing={"a": host})
    assert (gone.amount("storage"), gone.circuits) == (0, [])


def test_a_larger_disk_is_another_one_of_the_same_node_or_of_another() -> None:
    nodes = [node("n1"), node("s1", cpu=1, storage=500), node("s2", cpu=1, storage=900)]
    host = composed(spec(storage=300), nodes[:2], racks("r1"))
    larger = planned(spec(storage=400), nodes, racks("r1"), existing={"a": host})
    assert parts(larger)[-1] == ("a/storage/s2", 400, "a/circuit/s2")  # s1 has 200 beside the 300
    assert [circuit.provider for circuit in larger.circuits] == ["s2"] and larger.version == host.version + 1
    beside = planned(spec(storage=400), [nodes[0], node("s1", cpu=1, storage=700)], racks("r1"), existing={"a": host})
    assert parts(beside)[-1] == ("a/storage/s1.2", 400, "a/circuit/s1") and beside.circuits == host.circuits
    answer = refused(spec(storage=400), nodes[:2], racks("r1"), existing={"a": host})
    assert answer.turned_away == {Reason.NO_PROVIDER: 1} and answer.gap is not None
    assert (answer.gap.provider, answer.gap.lacks) == ("s1", 200 * GIB)


def test_a_disk_moves_by_itself_once_all_else_is_as_asked() -> None:
    nodes = [node("n1"), node("s1", cpu=1, storage=500)]
    host = composed(spec(storage=100), nodes)
    wanted = spec(storage=200, cpu=5)
    first = planned(wanted, nodes, existing={"a": host})
    assert (first.amount("cpu"), parts(first)[-1]) == (5000, parts(host)[-1])
    second = planned(wanted, nodes, existing={"a": first})
    assert parts(second) == [*parts(first)[:-1], ("a/storage/s1.2", 200, "a/circuit/s1")]
    assert planned(wanted, nodes, existing={"a": second}) == second


def test_a_disk_that_is_to_be_here_or_of_another_pool_goes_there() -> None:
    nodes = [node("n1"), node("s1", cpu=1, storage=500)]
    host = composed(spec(storage=100), nodes)
    answer = refused(spec(storage=100, near="node"), nodes, existing={"a": host})
    assert answer.turned_away == {Reason.MAY_NOT_BE_FAR: 1}
    roomy = [node("s0", storage=500), nodes[1]]
    there = composed(spec(storage=100), [node("s0"), nodes[1]])
    home = planned(spec(storage=100, near="node"), roomy, existing={"a": there})
    assert (parts(home)[-1], home.circuits) == (("a/storage/s0", 100, ""), [])
    slow = PoolSpec("slow", Selector.parse("t*"), ("storage",))
    wanted = spec(storage=100)
    wanted.pools["storage"] = "slow"
    answer = plan_hosts([wanted], [*nodes, node("t1", cpu=1, storage=500)], [ALL, FLASH, slow], {"a": host})["a"]
    assert isinstance(answer, LogicalHost) and parts(answer)[-1] == ("a/storage/t1", 100, "a/circuit/t1")
    assert answer.parts[-1].pool == "slow"


def test_another_bandwidth_is_another_bandwidth_of_the_same_circuit() -> None:
    nodes = [node("n1"), node("s1", cpu=1, storage=500)]
    host = composed(spec(storage=100), nodes, racks("r1"))
    wider = planned(spec(storage=100, circuits={"storage": 9 * GBIT}), nodes, racks("r1"), existing={"a": host})
    assert circuits(wider) == [("a/circuit/s1", 9, ["link/n1/r1", "link/s1/r1"])]
    answer = refused(spec(storage=100, circuits={"storage": 99 * GBIT}), nodes, racks("r1"), existing={"a": host})
    assert answer.turned_away == {Reason.PATH_FULL: 1}


def test_how_it_is_run_stays() -> None:
    host = composed(spec(), [node("n1")])
    answer = refused(spec(executor="vm", vm=VmAsk(image="i")), [node("n1")], existing={"a": host})
    assert answer.turned_away == {Reason.EXECUTOR_STAYS: 1}


def test_far_parts_come_home_when_there_is_room() -> None:
    wanted = spec(memory=24, **FAR)
    host = composed(wanted, MEMORY_NODES)
    assert nearer(wanted, host, MEMORY_NODES, [ALL], {"a": host}) is None
    roomy = [node("n1", memory=40), *MEMORY_NODES[1:]]
    home = nearer(wanted, host, roomy, [ALL], {"a": host})
    assert home is not None and (parts(home)[1:], home.circuits) == ([("a/memory/n1", 24, "")], [])
    assert nearer(wanted, host, roomy, [ALL], {"a": host}, closed={"n1": Reason.DRAINING}) is None


def test_far_parts_come_into_the_rack_when_there_is_room() -> None:
    wanted = spec(memory=24, **FAR)
    host = composed(wanted, [MEMORY_NODES[0], MEMORY_NODES[2]])
    assert parts(host)[-1] == ("a/memory/m2", 8, "a/circuit/m2")
    near = nearer(wanted, host, MEMORY_NODES, [ALL], {"a": host})
    assert near is not None and parts(near)[-1] == ("a/memory/m1", 8, "a/circuit/m1")
    assert [circuit.provider for circuit in near.circuits] == ["m1"]


def test_a_disk_comes_home_when_there_is_room_and_else_into_the_rack() -> None:
    away = node("s1", "r2", cpu=1, storage=500)
    wanted, here = spec(storage=100), node("s0", storage=50)
    links = racks("r1", "r2")
    host = composed(wanted, [here, away], links)
    assert parts(host)[-1] == ("a/storage/s1", 100, "a/circuit/s1")
    assert nearer(wanted, host, [here, away], [ALL, FLASH], {"a": host}, links=links) is None
    nodes = [here, away, node("s2", cpu=1, storage=500)]
    near = nearer(wanted, host, nodes, [ALL, FLASH], {"a": host}, links=links)
    assert near is not None and parts(near) == [*parts(host)[:-1], ("a/storage/s2", 100, "a/circuit/s2")]
    nodes[0] = node("s0", storage=150)
    for now in (host, near):
        home = nearer(wanted, now, nodes, [ALL, FLASH], {"a": now}, links=links)
        assert home is not None and parts(home) == [*parts(host)[:-1], ("a/storage/s0", 100, "")]
        assert home.circuits == []
        assert nearer(wanted, now, nodes, [ALL, FLASH], {"a": now}, links=links, kinds={"memory", "gpu"}) is None


def test_memory_comes_home_before_the_disk_does() -> None:
    wanted = spec(memory=24, storage=100, **FAR)
    far = [node("s1", memory=16), node("s2", "r2", cpu=1, memory=64, storage=500)]
    host = composed(wanted, far)
    assert [part[0] for part in parts(host)[2:]] == ["a/memory/s2", "a/storage/s2"] and len(host.circuits) == 1
    roomy = [node("s1", memory=40, storage=500), far[1]]
    first = nearer(wanted, host, roomy, [ALL, FLASH], {"a": host})
    assert first is not None and [part[0] for part in parts(first)[1:]] == ["a/memory/s1", "a/storage/s2"]
    second = nearer(wanted, first, roomy, [ALL, FLASH], {"a": first})
    assert second is not None and [part[0] for part in parts(second)[1:]] == ["a/memory/s1", "a/storage/s1"]
    only_disk = nearer(wanted, host, roomy, [ALL, FLASH], {"a": host}, kinds={"storage"})
    assert only_disk is not None and [part[0] for part in parts(only_disk)[2:]] == ["a/memory/s2", "a/storage/s1"]


# --- laws ------------------------------------------------------------------------------------------------------

_nodes = st.lists(
    st.tuples(
        st.sampled_from(["r1", "r1", "r2", "r3"]),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from([4, 8, 16]),
        st.sampled_from([0, 0, 2, 4]),
        st.sampled_from([0, 50, 100]),
        st.sampled_from([0, 2, 10]),
    ),
    min_size=1,
    max_size=6,
).map(lambda rows: [node(f"s{n}", *row) for n, row in enumerate(rows)])
_links = st.lists(
    st.tuples(st.sampled_from(["r1", "r2", "r3", "a"]), st.sampled_from(["a", "b"]), st.sampled_from([1, 3, 10])),
    max_size=5,
).map(
    lambda ups: (
        [LinkSpec(to, width * GBIT, switch=switch) for switch, to, width in ups if switch != to]
        + ([LinkSpec(rack, 8 * GBIT, Selector.parse({"rack": rack})) for rack in ("r1", "r2")] if ups else [])
    )
)
_wishes = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 4]),
        st.sampled_from([0, 2, 6, 12]),
        st.sampled_from([0, 0, 1, 3]),
        st.sampled_from([0, 10, 60]),
        st.sampled_from([0, 0, 50, 100]),
        st.sampled_from(["any", "any", "rack", "node"]),
        st.sampled_from(STRATEGIES),
        st.sampled_from(["bare", "vm"]),
        st.sampled_from([1, 2, 4]),
    ),
    max_size=6,
)


def specs_of(wishes: Sequence[tuple[Any, ...]]) -> list[HostSpec]:
    found = []
    for at, (cpu, memory, gpu, storage, percent, near, strategy, executor, width) in enumerate(wishes):
        far = {"memory": memory * GIB * percent // 100, "gpu": gpu * 1000 * percent // 100}
        found.append(
            spec(
                f"h{at}",
                cpu,
                memory,
                gpu,
                storage,
                far={kind: amount for kind, amount in far.items() if amount},
                near=near,
                strategy=strategy,
                executor=executor,
                circuits={"storage": width * GBIT},
                vm=VmAsk(image="i") if executor == "vm" else None,
            )
        )
    return found


def assert_lawful(
    hosts: Mapping[str, LogicalHost],
    specs: Mapping[str, HostSpec],
    nodes: Sequence[NodeCapacity],
    links: Sequence[LinkSpec],
) -> None:
    """No account above its capacity, no GPU twice, each far part over a circuit that is admitted on every link."""
    cards = with_cards(nodes, links)
    capacity = {(each.name, kind): amount for each in cards for kind, amount in each.amounts.items()}
    capacity |= {(name, "network"): width for name, width in link_accounts(links, nodes).items()}
    used: dict[tuple[str, str], int] = {}
    devices: list[str] = []
    rack = {each.name: each.labels["rack"] for each in nodes}
    swaps: dict[str, int] = {}
    for host in hosts.values():
        wanted = specs[host.name]
        for share in shares_of(host):
            used[share.provider, share.kind] = used.get((share.provider, share.kind), 0) + share.amount
            devices += share.devices
        assert {kind: host.amount(kind) for kind in wanted.amounts} == wanted.amounts
        assert sum(part.amount for part in host.parts) == sum(wanted.amounts.values())
        assert len({part.id for part in host.parts}) == len(host.parts)
        far = [part for part in host.parts if host.is_far(part)]
        assert {part.circuit for part in far} == {circuit.id for circuit in host.circuits}
        assert {part.provider for part in far} == {circuit.provider for circuit in host.circuits}
        for kind in ("memory", "gpu"):
            assert sum(part.amount for part in far if part.kind == kind) <= wanted.far.get(kind, 0)
        assert all(part.kind in ("storage", "memory", "gpu") for part in far)
        assert sum(part.kind == "storage" for part in host.parts) <= 1
        for circuit in host.circuits:
            kinds = [part.kind for part in far if part.circuit == circuit.id]
            assert circuit.bits_per_second == max(wanted.circuits.get(kind, GBIT) for kind in kinds)
            if links:
                assert circuit.links[0].startswith(f"link/{host.anchor}/")
                assert circuit.links[-1].startswith(f"link/{circuit.provider}/")
            if wanted.near != "any":
                assert wanted.near == "rack" and rack[host.anchor] == rack[circuit.provider]
        if host.executor == "bare" and any(part.kind == "memory" for part in far):
            swaps[host.anchor] = swaps.get(host.anchor, 0) + 1
    assert all(amount <= capacity.get(account, 0) for account, amount in used.items())
    assert len(set(devices)) == len(devices)
    assert all(count == 1 for count in swaps.values())


@given(_nodes, _links, _wishes, _wishes, st.randoms(use_true_random=False))
@settings(max_examples=250, deadline=None)
def test_laws_of_plans(
    nodes: list[NodeCapacity],
    links: list[LinkSpec],
    first: list[tuple[Any, ...]],
    second: list[tuple[Any, ...]],
    random: Random,
) -> None:
    """Lawful; the same whatever the order; settled; and lawful still when something else is asked for."""
    wanted = specs_of(first)
    pools = [ALL, FLASH]
    plan = plan_hosts(wanted, nodes, pools, links=links)
    hosts = {name: host for name, host in plan.items() if isinstance(host, LogicalHost)}
    known = {each.name: each for each in wanted}
    assert_lawful(hosts, known, nodes, links)
    shuffled = [list(wanted), list(nodes), list(links)]
    for each in shuffled:
        random.shuffle(each)  # type: ignore[arg-type]
    assert plan_hosts(shuffled[0], shuffled[1], pools, links=shuffled[2]) == plan  # type: ignore[arg-type]
    again = plan_hosts(wanted, nodes, pools, hosts, links=links)
    assert {name: again[name] for name in hosts} == hosts

    others = {each.name: each for each in specs_of(second)}
    changed = plan_hosts(list(others.values()), nodes, pools, hosts, links=links)
    after = {name: host for name, host in changed.items() if isinstance(host, LogicalHost)}
    kept = {name: host for name, host in hosts.items() if name not in after}
    assert_lawful(after | kept, known | {name: others[name] for name in after}, nodes, links)
    assert all(after[name].anchor == hosts[name].anchor for name in after.keys() & hosts.keys())
    for name, host in (after | kept).items():
        if name in others and name in after:
            closer = nearer(others[name], host, nodes, pools, after | kept, links=links)
            if closer is not None:
                assert closer != host and closer.anchor == host.anchor
                assert_lawful(after | kept | {name: closer}, known | {n: others[n] for n in after}, nodes, links)
                assert sum(distances(closer, nodes, links)) < sum(distances(host, nodes, links))
                assert_alone(host, closer)
            larger = replace(others[name], amounts={**others[name].amounts, "storage": 2 * host.amount("storage")})
            if host.amount("storage"):
                answer = plan_hosts([larger], nodes, pools, after | kept, links=links)[name]
                if isinstance(answer, LogicalHost):
                    assert_lawful(
                        after | kept | {name: answer},
                        known | {n: others[n] for n in after} | {name: larger},
                        nodes,
                        links,
                    )
                    assert_alone(host, answer)


def distances(host: LogicalHost, nodes: Sequence[NodeCapacity], links: Sequence[LinkSpec]) -> list[int]:
    """How far away each byte and GPU of it is: 0 here, 1 in the rack, 2 elsewhere; per mille of its kind."""
    fabric, at = Fabric.between(nodes, links), {each.name: row for row, each in enumerate(nodes)}
    near = {p.provider: int(fabric.nearness(at[host.anchor], at[p.provider])) for p in host.parts}
    return [1000 * part.amount * near[part.provider] // host.amount(part.kind) for part in host.parts]


def assert_alone(before: LogicalHost, after: LogicalHost) -> None:
    """A disk of another node moves by itself: one part leaves, one comes, and they have different names."""
    disks = [[part for part in each.parts if part.kind == "storage"] for each in (before, after)]
    if disks[0] != disks[1] and before.is_far(disks[0][0]):
        assert disks[0][0].id != disks[1][0].id
        rest = [[part for part in each.parts if part.kind != "storage"] for each in (before, after)]
        assert rest[0] == rest[1]


@given(_nodes, _links, _wishes)
@settings(max_examples=100, deadline=None)
def test_a_refusal_says_why_and_counts_every_node(
    nodes: list[NodeCapacity], links: list[LinkSpec], wishes: list[tuple[Any, ...]]
) -> None:
    for answer in plan_hosts(specs_of(wishes), nodes, [ALL, FLASH], links=links).values():
        if isinstance(answer, Refusal):
            assert answer.nodes == len(nodes) and answer.sentence().endswith(".")
