"""Selectors: what they select, what they refuse, and that ranges mean what Ansible's ranges mean."""

from __future__ import annotations

import pytest
from ansible.inventory.data import InventoryData
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.model.selector import Selector

GPU_NODE = {"group": ["all", "lavalite_nodes", "lavalite_gpu"], "rack": ["r1"]}


@pytest.mark.parametrize(
    ("written", "node", "selected"),
    [
        ({"group": "lavalite_gpu"}, "n01", True),
        ({"group": "lavalite_gpu", "rack": "r1"}, "n01", True),
        ({"group": "lavalite_gpu", "rack": ["r2", "r1"]}, "n01", True),
        ({"group": "lavalite_gpu", "rack": "r2"}, "n01", False),
        ({"zone": "a"}, "n01", False),
        ("n[01:04]", "n01", True),
        ("n[01:04]", "n04", True),
        ("n[01:04]", "n05", False),
        ("n[01:04]", "n1", False),
        ("n[1:12]", "n012", False),
        ("n[1:12]", "n12", True),
        ("n[0:8:2]", "n4", True),
        ("n[0:8:2]", "n5", False),
        ("rack[a:c]-[01:02]", "rackb-02", True),
        ("rack[a:c]-[01:02]", "rackd-02", False),
        ("n*", "n01", True),
        ("n*", "m01", False),
        ("n0?", "n01", True),
        ("n.1", "nx1", False),
        ("m01, n01", "n01", True),
        (["m01", "n[01:02]"], "n01", True),
        ("*", "n01", True),
    ],
)
def test_what_is_selected(written: object, node: str, selected: bool) -> None:
    assert Selector.parse(written).matches(node, GPU_NODE) is selected


def test_a_number_is_a_label_value_too() -> None:
    assert Selector.parse({"rack": 1}).matches("n01", {"rack": ["1"]})


def test_unknown_groups_have_the_benefit_of_doubt() -> None:
    selector = Selector.parse({"group": "lavalite_gpu", "rack": "r1"})
    assert not selector.matches("n01", {"rack": ["r1"]})
    assert selector.may_match("n01", {"rack": ["r1"]})
    assert not selector.may_match("n01", {"rack": ["r2"]})
    assert not selector.may_match("n01", {"rack": ["r1"], "group": ["all"]})
    assert not Selector.parse("m*").may_match("n01", {})


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ({}, "an empty selector. Write '*' for all nodes."),
        (
            None,
            "this selects no nodes. Write a mapping of labels, {rack: r1}, or a pattern of node names, n[01:04].",
        ),
        ("n[04:01]", "[04:01] ends before it begins. Write it as [01:04]: first, last, both of one width where"),
        ("n[01:4]", "[01:4] is no range. Write it as [01:04]"),
        ("n[a:3]", "[a:3] is no range."),
        ("n[1-4]", "n[1-4] has brackets that are no range. Write a range as [01:04]."),
        ("n01,,n02", "a pattern is empty."),
        ("{{ x }}", "{{ x }} is no pattern of node names."),
        ({"rack": []}, "label rack has no value to match. Write rack: x, or rack: [x, y] for any of them."),
        ({"rack": True}, "label rack has no value to match."),
        ({"a b": "x"}, "'a b' is no label."),
    ],
)
def test_what_is_refused(written: object, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        Selector.parse(written)
    assert str(caught.value).startswith(sentence)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_ranges_are_ansibles(low: int, extent: int, step: int, padded: bool) -> None:
    """Law: a range selects exactly the hosts that Ansible's own inventory makes of it."""
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.inventory import BaseInventoryPlugin

    first, last = (f"{n:02d}" if padded else str(n) for n in (low, low + extent))
    pattern = f"n[{first}:{last}:{step}]x"
    plugin = BaseInventoryPlugin()
    plugin.loader, plugin.inventory = DataLoader(), InventoryData()
    expected, _ = plugin._expand_hostpattern(pattern)
    selector = Selector.parse(pattern)
    candidates = {f"n{n:0{width}d}x" for n in range(70) for width in (1, 2, 3)}
    assert {name for name in candidates if selector.matches(name, {})} == set(expected)
