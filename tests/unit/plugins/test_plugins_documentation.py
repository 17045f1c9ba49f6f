"""What modules take and what they say they take is the same, and each example is YAML that names the module."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lavalite.cluster.plugins.doc_fragments.connection import ModuleDocFragment
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import CONNECTION

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
FRAGMENT = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]


class Caught(Exception):
    pass


def argument_spec(module: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a module hands to AnsibleModule."""
    caught: dict[str, Any] = {}

    def catch(**options: Any) -> None:
        caught.update(options)
        raise Caught

    monkeypatch.setattr(module, "AnsibleModule", catch)
    with pytest.raises(Caught):
        module.main()
    assert caught["supports_check_mode"] is True
    spec: dict[str, Any] = caught["argument_spec"]
    return spec


def agree(documented: dict[str, Any], taken: dict[str, Any]) -> None:
    assert set(documented) == set(taken)
    for name, option in taken.items():
        said = documented[name]
        assert said["type"] == option["type"], name
        assert said.get("elements") == option.get("elements"), name
        assert said.get("choices") == option.get("choices"), name
        assert said.get("default") == option.get("default"), name
        assert bool(said.get("required")) == bool(option.get("required")), name
        if "options" in option:
            agree(said["suboptions"], option["options"])


def test_the_shared_options_are_described() -> None:
    agree(FRAGMENT, CONNECTION)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_described_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"ansible_collections.lavalite.cluster.plugins.modules.{name}")
    documentation = yaml.safe_load(module.DOCUMENTATION)
    assert documentation["module"] == name
    own = documentation["options"]
    shared = FRAGMENT if "lavalite.cluster.connection" in documentation["extends_documentation_fragment"] else {}
    agree({**shared, **own}, argument_spec(module, monkeypatch))
    assert any(f"lavalite.cluster.{name}" in task for task in yaml.safe_load(module.EXAMPLES))
    assert yaml.safe_load(module.RETURN)


def test_every_module_is_in_the_action_group() -> None:
    groups = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]
    assert groups["all"] == MODULES


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: path.name)
def test_plugins_are_written_for_the_oldest_python_that_nodes_may_have(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))
