"""What docs/policies.md says is so: its sums and its example, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavalite.control.workload import workload_of
from lavalite.model.job import Request
from lavalite.model.specs import BUILT_IN_POLICIES
from lavalite.placement import registry
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Columns, DeviceRow, Ints, Workload
from lavalite.placement.policies import Policy
from lavalite.placement.ranking import Ranking
from lavalite.placement.rows import Rows

PAGE = Path(__file__).resolve().parents[2] / "docs/policies.md"


def scores(policy: str, wanted: RequestClass, columns: Columns) -> list[int]:
    return [int(score) for score in registry.POLICIES[policy].scores(wanted, Rows(columns, wanted, None))]


def test_the_sums_and_the_example_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "POLICIES", dict(registry.POLICIES))
    names: dict[str, Any] = {
        "Columns": Columns, "DeviceRow": DeviceRow, "Workload": Workload, "Request": Request, "Ints": Ints,
        "RequestClass": RequestClass, "Rows": Rows, "Policy": Policy, "Ranking": Ranking, "np": np,
        "POLICIES": registry.POLICIES, "add_policies": registry.add_policies, "workload_of": workload_of,
        "scores": scores, "__name__": "page",
    }  # fmt: skip
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)


def test_every_policy_is_on_the_page() -> None:
    rows = re.findall(r"^\| `([a-z-]+)`", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(BUILT_IN_POLICIES)
