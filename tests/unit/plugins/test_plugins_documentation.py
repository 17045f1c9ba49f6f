"""What modules take and what they say they take is the same, and each example is YAML that names the module."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lavalite.cluster.plugins.module_utils._arguments import CONNECTION

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
OURS = "lavalite.cluster."


def fragment(name: str) -> dict[str, Any]:
    """A fragment of ours: FILE is its DOCUMENTATION, FILE.SECTION another section of it."""
    file, section = (name.removeprefix(OURS) + ".").split(".")[:2]
    module = importlib.import_module(f"ansible_collections.lavalite.cluster.plugins.doc_fragments.{file}")
    found: dict[str, Any] = yaml.safe_load(getattr(module.ModuleDocFragment, section.upper() or "DOCUMENTATION"))
    return found


CHANGES = {"check_mode": "full", "diff_mode": "full"}
READS = {"check_mode": "full", "diff_mode": "none"}


class Caught(Exception):
    pass


def module_of(name: str) -> Any:
    return importlib.import_module(f"ansible_collections.lavalite.cluster.plugins.modules.{name}")


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
    agree(fragment("lavalite.cluster.connection")["options"], CONNECTION)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_described_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(name)
    documentation = yaml.safe_load(module.DOCUMENTATION)
    assert documentation["module"] == name
    options, attributes = dict(documentation.get("options", {})), dict(documentation.get("attributes", {}))
    for shared in map(fragment, documentation["extends_documentation_fragment"]):
        options |= shared.get("options", {})
        attributes = shared.get("attributes", {}) | attributes
    agree(options, argument_spec(module, monkeypatch))
    assert {name: attributes[name].get("support") for name in ("check_mode", "diff_mode")} in (CHANGES, READS)
    assert any(f"lavalite.cluster.{name}" in task for task in yaml.safe_load(module.EXAMPLES))
    assert yaml.safe_load(module.RETURN)


def test_the_list_of_modules_is_whole() -> None:
    listed = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs/modules.md").read_text(), re.MULTILINE)
    described = [yaml.safe_load(module_of(name).DOCUMENTATION) for name in MODULES]
    assert listed == [(each["module"], each["short_description"]) for each in described]


def test_every_module_is_in_the_action_group_and_those_that_share_options_in_another() -> None:
    groups = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())["action_groups"]
    assert groups["all"] == MODULES
    fragments = {
        name: yaml.safe_load(module_of(name).DOCUMENTATION)["extends_documentation_fragment"] for name in MODULES
    }
    assert groups["api"] == [name for name in MODULES if OURS + "connection" in fragments[name]]


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: path.name)
def test_plugins_are_written_for_the_oldest_python_that_nodes_may_have(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))
