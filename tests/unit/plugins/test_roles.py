"""Each role says the same in its defaults, its argument specification and its README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).resolve().parents[3] / "roles"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("role", sorted(path.name for path in ROLES.iterdir()))
def test_variables_are_named_after_the_role_and_described(role: str) -> None:
    defaults = read(ROLES / role / "defaults/main.yml")
    entries = read(ROLES / role / "meta/argument_specs.yml")["argument_specs"].values()
    options = {name for entry in entries for name in entry.get("options") or {}}
    readme = (ROLES / role / "README.md").read_text()
    assert set(defaults) == options
    assert all(name.startswith(f"{role}_") for name in defaults)
    assert [name for name in defaults if f"| `{name}` |" not in readme] == []
