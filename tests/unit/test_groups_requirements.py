"""What may be asked of compute groups: read, refused with where and why, and what placement sees of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.groups.requirements import STRATEGIES, read_ask
from lavalite.placement.registry import POLICIES


def read(requirements: dict[str, Any], **constraints: Any) -> Any:
    return read_ask("decode", {**requirements, **({"constraints": constraints} if constraints else {})})


@pytest.mark.parametrize(
    ("asked", "amounts"),
    [
        ({"gpu": 2}, {"gpu": 2000}),
        ({"gpu": 0.5, "cpu": "0.25"}, {"gpu": 500, "cpu": 250}),
        ({"gpu": {"count": 2, "model": "H100", "topology": "nvlink"}}, {"gpu": 2000}),
        ({"memory": "16GiB", "storage": "1TB", "network": "25Gbit/s"},
         {"memory": 16 * 2**30, "storage": 10**12, "network": 25 * 10**9}),
        ({"cpu_milli": 100, "memory_bytes": 7, "gpu_milli": 3000}, {"cpu": 100, "memory": 7, "gpu": 3000}),
        ({"special": {"fpga": 2}}, {"fpga": 2}),
    ],
)  # fmt: skip
def test_amounts_are_read_as_people_write_them(asked: dict[str, Any], amounts: dict[str, int]) -> None:
    assert read(asked).request.amounts() == amounts


@given(cpu=st.integers(1, 10**6), memory=st.integers(1, 2**50), gpus=st.integers(1, 64))
def test_what_a_group_has_can_be_asked_for_again(cpu: int, memory: int, gpus: int) -> None:
    asked = {"cpu_milli": cpu, "memory_bytes": memory, "gpu_milli": gpus * 1000}
    assert read(asked).request.amounts() == {"cpu": cpu, "memory": memory, "gpu": gpus * 1000}


def test_a_level_is_demanded_of_several_whole_gpus_only() -> None:
    assert read({"gpu": 2}, topology="numa").request.gpu_topology == "numa"
    assert read({"gpu": {"count": 2, "topology": "nvlink"}}, topology="numa").request.gpu_topology == "nvlink"
    assert read({"gpu": 1}, topology="numa").request.gpu_topology == ""
    assert read({"gpu": {"count": 2, "mig": "1g.10gb"}}, topology="numa").request.gpu_topology == ""


def test_every_strategy_is_a_policy_of_placement() -> None:
    assert set(STRATEGIES.values()) <= set(POLICIES)


def test_all_faults_are_said_at_once_each_with_its_place() -> None:
    with pytest.raises(InputError) as caught:
        read_ask("-x", {"gpus": 1, "memory": 16, "constraints": {"strategy": "luck", "wait": "soon"}})
    fields = {fault.field for fault in caught.value.faults}
    assert fields >= {"component_name", "requirements.gpus", "requirements.memory", "constraints.wait"}
    assert "There are cpu" in str(caught.value)


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ({"strategy": "affinity"}, "components to be near"),
        ({"within": "rack"}, "give affinity or anti_affinity"),
        ({"nodes": 7}, "nodes"),
        ({"wait": "30d"}, "more than 7d"),
        ({"priority": 10**6}, "priority"),
        ({"affinity": ["no such/name"]}, "affinity"),
        ({"lifetime": "forever"}, "lifetime"),
    ],
)
def test_constraints_that_make_no_sense(constraints: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read({"gpu": 1}, **constraints)


@pytest.mark.parametrize("value", [True, None, [], "many", "1e9", float("nan"), -1, 0, "0", 10**30])
def test_no_amount_that_is_none(value: Any) -> None:
    for name in ("cpu", "memory", "gpu", "storage", "network", "cpu_milli", "memory_bytes", "gpu_milli"):
        with pytest.raises(InputError):
            read({name: value, "special": {"fpga": 1}} if value is not None else {name: value})
