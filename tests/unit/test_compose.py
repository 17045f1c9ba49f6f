"""Plans of logical hosts: where they go, what they take, why they do not fit; and the laws of every plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.model.host import HostState, LogicalHost
from lavalite.model.job import Share
from lavalite.model.resources import WHOLE, Device
from lavalite.model.selector import Selector
from lavalite.model.specs import BUILT_IN_POLICIES, HostSpec, NodeCapacity, PoolSpec
from lavalite.placement.compose import plan_hosts
from lavalite.placement.reasons import WORDS, Reason, Refusal
from lavalite.placement.registry import POLICIES
from lavalite.placement.room import natural

GIB = 2**30
ALL = PoolSpec("all", Selector.parse("*"), ("cpu", "memory", "gpu"), default=True)


def node(name: str, cores: int = 16, gpus: int = 0, model: str = "A100", named_cores: bool = True) -> NodeCapacity:
    """So many cores (two NUMA nodes), 4 GiB a core, GPUs of 80 GiB spread over both."""
    devices: dict[str, tuple[Device, ...]] = {}
    if named_cores:
        devices["cpu"] = tuple(Device(id=f"core{n}", numa_node=n * 2 // cores) for n in range(cores))
    if gpus:
        devices["gpu"] = tuple(
            Device(id=f"{name}-gpu{n}", model=model, memory_bytes=80 * GIB, numa_node=n * 2 // gpus)
            for n in range(gpus)
        )
    amounts = {"cpu": cores * 1000, "memory": cores * 4 * GIB}
    return NodeCapacity(name, {"group": ["all"]}, amounts | ({"gpu": gpus * 1000} if gpus else {}), devices)


def spec(
    name: str, cpu: int = 4000, memory: int = 8 * GIB, gpu: int = 0, model: str = "", pool: str = ""
) -> HostSpec:
    amounts = {kind: amount for kind, amount in {"cpu": cpu, "memory": memory, "gpu": gpu}.items() if amount}
    return HostSpec(name, amounts, gpu_model=model, pools=dict.fromkeys(amounts, pool) if pool else {})


def host(answer: LogicalHost | Refusal) -> LogicalHost:
    assert isinstance(answer, LogicalHost), answer.sentence()
    return answer


def devices(planned: LogicalHost, kind: str) -> list[str]:
    return [device for part in planned.parts if part.kind == kind for device in part.devices]


# --- where, and what -------------------------------------------------------------------------------------------


def test_all_parts_are_of_one_anchor_and_cores_are_named() -> None:
    [planned] = plan_hosts([spec("a", pool="all")], [node("n01")], [ALL]).values()
    a = host(planned)
    assert (a.state, a.anchor, a.pools, a.version) == (HostState.PLANNED, "n01", ["all"], 1)
    assert [(p.id, p.kind, p.amount, p.provider, p.pool) for p in a.parts] == [
        ("a/cpu/n01", "cpu", 4000, "n01", "all"),
        ("a/memory/n01", "memory", 8 * GIB, "n01", "all"),
    ]
    assert devices(a, "cpu") == ["core0", "core1", "core2", "core3"]


def test_part_of_a_core_takes_no_core_of_its_own() -> None:
    plan = plan_hosts([spec("a", cpu=1500), spec("b", cpu=14_000)], [node("n01")], [])
    assert devices(host(plan["a"]), "cpu") == []
    assert len(devices(host(plan["b"]), "cpu")) == 14
    assert isinstance(plan_hosts([spec("a", cpu=1500), spec("b", cpu=15_000)], [node("n01")], [])["a"], Refusal)


def test_gpus_are_of_the_model_asked_for_and_cores_are_near_them() -> None:
    nodes = [node("n01", gpus=4, model="NVIDIA V100"), node("n02", gpus=4, model="NVIDIA A100-SXM4-80GB")]
    taken = [Share(provider="n02", kind="gpu", amount=1000, devices=["n02-gpu0"])]
    planned = host(plan_hosts([spec("t", gpu=2000, model="a100")], nodes, [], taken=taken)["t"])
    assert planned.anchor == "n02"
    assert devices(planned, "gpu") == ["n02-gpu2", "n02-gpu3"]  # both on NUMA node 1
    assert devices(planned, "cpu") == ["core8", "core9", "core10", "core11"]  # NUMA node 1 too


def test_a_part_of_a_gpu_goes_where_least_is_left() -> None:
    taken = [Share(provider="n01", kind="gpu", amount=500, devices=["n01-gpu1"])]
    planned = host(plan_hosts([spec("a", gpu=500)], [node("n01", gpus=2)], [], taken=taken)["a"])
    assert devices(planned, "gpu") == ["n01-gpu1"]


def test_a_host_without_gpus_strands_none() -> None:
    nodes = [node("n01", gpus=4), node("n02")]
    assert host(plan_hosts([spec("a")], nodes, [])["a"]).anchor == "n02"


def test_the_node_that_is_left_fullest_is_taken() -> None:
    nodes = [node("n01", cores=16), node("n02", cores=8), node("n03", cores=4)]
    # n02 is left with (8-5)/8 + (32-8)/32 GiB; n01 with more; n03 has too few cores.
    assert host(plan_hosts([spec("a", cpu=5000)], nodes, [])["a"]).anchor == "n02"


def test_the_largest_go_first_whatever_the_order() -> None:
    plan = plan_hosts([spec("small", cpu=2000), spec("large", cpu=16_000)], [node("n01"), node("n02", cores=2)], [])
    assert host(plan["large"]).anchor == "n01"
    assert host(plan["small"]).anchor == "n02"
    assert list(plan) == ["small", "large"]  # and the answer is in the order of the question


def test_pools_bind_every_kind() -> None:
    pool = PoolSpec("p", Selector.parse("n02"), ("cpu", "memory"))
    assert host(plan_hosts([spec("a", pool="p")], [node("n01"), node("n02")], [pool])["a"]).anchor == "n02"


# --- hosts that exist --------------------------------------------------------------------------------------------


def planned_once(wanted: HostSpec, nodes: Sequence[NodeCapacity]) -> LogicalHost:
    return host(plan_hosts([wanted], nodes, [])[wanted.name]).model_copy(update={"state": HostState.COMPOSED})


def test_what_is_as_asked_stays_as_it_is_even_on_a_closed_or_vanished_node() -> None:
    before = planned_once(spec("a"), [node("n02")])
    nodes = [node("n01"), node("n02")]
    for now, closed in ((nodes, {}), (nodes, {"n02": Reason.DRAINING}), ([node("n01")], {})):
        assert plan_hosts([spec("a")], now, [], {"a": before}, closed=closed)["a"] == before


def test_growing_keeps_anchor_and_devices() -> None:
    before = planned_once(spec("a", cpu=2000), [node("n01")])
    after = host(plan_hosts([spec("a", cpu=6000)], [node("n01"), node("n00", cores=6)], [], {"a": before})["a"])
    assert (after.anchor, after.version, after.state) == ("n01", 2, HostState.COMPOSED)
    assert set(devices(before, "cpu")) < set(devices(after, "cpu"))


def test_shrinking_gives_room_to_what_grows() -> None:
    both = plan_hosts([spec("a", cpu=8000), spec("b", cpu=8000)], [node("n01")], [])
    existing = {name: host(planned) for name, planned in both.items()}
    plan = plan_hosts([spec("a", cpu=12_000), spec("b", cpu=4000)], [node("n01")], [], existing)
    assert [host(plan[name]).amount("cpu") for name in "ab"] == [12_000, 4000]


def test_growth_that_does_not_fit_is_refused_and_the_host_keeps_what_it_has() -> None:
    both = plan_hosts([spec("a", cpu=8000), spec("b", cpu=7000)], [node("n01")], [])
    existing = {name: host(planned) for name, planned in both.items()}
    plan = plan_hosts([spec("a", cpu=10_000), spec("b", cpu=7000), spec("c", cpu=2000)], [node("n01")], [], existing)
    refused = plan["a"]
    assert isinstance(refused, Refusal)
    assert refused.turned_away == {Reason.TOO_FEW_FREE: 1}
    assert (refused.nearest, refused.lacks) == ("n01", {"cpu": 1000})  # 16 - 7 = 9, 10 asked
    assert isinstance(plan["c"], Refusal)  # 16 - 8 - 7 = 1 free


def test_what_nobody_asks_for_any_more_still_holds_what_it_has() -> None:
    before = planned_once(spec("old", cpu=16_000), [node("n01")])
    assert isinstance(plan_hosts([spec("a")], [node("n01")], [], {"old": before})["a"], Refusal)
    released = before.model_copy(update={"state": HostState.RELEASED})
    assert isinstance(plan_hosts([spec("a")], [node("n01")], [], {"old": released})["a"], LogicalHost)


# --- reasons -------------------------------------------------------------------------------------------------------


def test_every_node_is_counted_under_its_first_reason() -> None:
    nodes = [node("n01"), node("n02", gpus=2), node("n03", gpus=4, model="V100"), node("n04", gpus=4)]
    nodes += [node("n05", gpus=4), node("n06", gpus=4), node("m01", gpus=4)]
    taken = [Share(provider="n04", kind="gpu", amount=3000, devices=[f"n04-gpu{n}" for n in range(3)])]
    wanted = spec("t", gpu=4000, model="A100", pool="p")
    closed = {"n05": Reason.DRAINING, "n06": Reason.SILENT}
    pool = PoolSpec("p", Selector.parse("n*"), ("cpu", "memory", "gpu"))
    refused = plan_hosts([wanted], nodes, [pool], taken=taken, closed=closed)["t"]
    assert isinstance(refused, Refusal)
    assert refused.turned_away == {
        Reason.NOT_IN_POOL: 1,  # m01
        Reason.NO_KIND: 1,  # n01 has no GPU at all
        Reason.NO_MODEL: 1,  # n03
        Reason.TOO_SMALL: 1,  # n02 has 2
        Reason.DRAINING: 1,
        Reason.SILENT: 1,
        Reason.TOO_FEW_FREE: 1,  # n04 has 1 free of 4
    }
    assert (refused.nearest, refused.lacks) == ("n04", {"gpu": 3000})
    assert refused.sentence() == (
        "7 nodes: 1 is draining, 1 offers none of a kind asked for, 1 has no device of the model asked for, "
        "1 is not in the pool asked for, 1 is silent, 1 has too little free, 1 is too small even when empty; "
        "nearest n04 lacks 3 gpu."
    )
    assert refused.asked == "4 A100, 4 cpu, 8GiB memory, pool p"


def test_without_nodes_that_is_said() -> None:
    refused = plan_hosts([spec("a")], [], [])["a"]
    assert isinstance(refused, Refusal)
    assert refused.sentence() == "There are no nodes to choose from."


def test_every_reason_has_words_and_every_policy_a_name() -> None:
    assert set(WORDS) == set(Reason)
    assert set(POLICIES) == set(BUILT_IN_POLICIES)


@pytest.mark.parametrize("names", [["n2", "n10", "n1"], ["a", "a1", "1"], ["n01", "n1"], ["n²", "n3"]])
def test_natural_order(names: list[str]) -> None:
    assert len({natural(name) for name in names}) == len(names)
    assert sorted(["n10", "n2", "n1"], key=natural) == ["n1", "n2", "n10"]


# --- laws -------------------------------------------------------------------------------------------------------

_nodes = st.lists(
    st.builds(
        lambda cores, gpus, model, named: (cores, gpus, model, named),
        st.sampled_from([2, 4, 8]),
        st.sampled_from([0, 2, 4]),
        st.sampled_from(["A100", "V100"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
).map(lambda rows: [node(f"n{n}", *row) for n, row in enumerate(rows)])
_wishes = st.lists(
    st.tuples(
        st.sampled_from([500, 1000, 2000, 3000, 4000]),
        st.sampled_from([0, GIB, 6 * GIB]),
        st.sampled_from([0, 0, 300, 500, 1000, 2000]),
        st.sampled_from(["", "A100"]),
        st.sampled_from(["", "all"]),
    ),
    max_size=7,
)


def specs_of(wishes: Iterable[tuple[int, int, int, str, str]]) -> list[HostSpec]:
    return [spec(f"h{n}", *wish) for n, wish in enumerate(wishes)]


def assert_lawful(plan: Mapping[str, LogicalHost | Refusal], nodes: Sequence[NodeCapacity]) -> None:
    """Never over capacity, and no device beyond the whole of it."""
    by_name = {each.name: each for each in nodes}
    used: dict[tuple[str, str], int] = {}
    loads: dict[tuple[str, str], int] = {}
    for planned in plan.values():
        for part in planned.parts if isinstance(planned, LogicalHost) else []:
            assert part.provider == planned.anchor  # type: ignore[union-attr]
            used[part.provider, part.kind] = used.get((part.provider, part.kind), 0) + part.amount
            for device in part.devices:
                assert device in {d.id for d in by_name[part.provider].devices[part.kind]}
                key = (part.provider, device)
                loads[key] = loads.get(key, 0) + part.amount // len(part.devices)
    assert all(amount <= by_name[name].amounts.get(kind, 0) for (name, kind), amount in used.items())
    assert all(load <= WHOLE for load in loads.values())


@given(_nodes, _wishes, _wishes, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_laws_of_plans(
    nodes: list[NodeCapacity],
    first: list[tuple[int, int, int, str, str]],
    second: list[tuple[int, int, int, str, str]],
    random: Random,
) -> None:
    """Lawful; the same for the same; whatever the order; settled: planning a plan again changes nothing."""
    wanted = specs_of(first)
    plan = plan_hosts(wanted, nodes, [ALL])
    assert_lawful(plan, nodes)
    shuffled_nodes, shuffled_specs = list(nodes), list(wanted)
    random.shuffle(shuffled_nodes)
    random.shuffle(shuffled_specs)
    assert plan_hosts(shuffled_specs, shuffled_nodes, [ALL]) == plan

    existing = {name: planned for name, planned in plan.items() if isinstance(planned, LogicalHost)}
    again = plan_hosts(wanted, nodes, [ALL], existing)
    assert {name: again[name] for name in existing} == existing

    changed = plan_hosts(specs_of(second), nodes, [ALL], existing)
    kept = {name: existing[name] for name in existing if not isinstance(changed.get(name), LogicalHost)}
    assert_lawful({**changed, **kept}, nodes)
    assert all(host(changed[name]).anchor == existing[name].anchor for name in existing.keys() - kept.keys())


@given(_nodes, _wishes)
@settings(max_examples=80, deadline=None)
def test_what_is_refused_truly_does_not_fit_and_says_so(
    nodes: list[NodeCapacity], wishes: list[tuple[int, int, int, str, str]]
) -> None:
    """Law: on empty nodes, one host alone is refused only if no node is large enough; every node has a reason."""
    for wanted in specs_of(wishes):
        answer = plan_hosts([wanted], nodes, [ALL])[wanted.name]
        if isinstance(answer, Refusal):
            assert answer.nodes == len(nodes)
            assert set(answer.turned_away) <= {Reason.NO_KIND, Reason.NO_MODEL, Reason.TOO_SMALL}
            assert answer.sentence().endswith(".")
        else:
            assert {part.kind: part.amount for part in answer.parts} == wanted.amounts
