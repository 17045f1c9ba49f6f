"""What the roles lay down, as it comes out of their templates with the roles' own defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
INVENTORY = {
    "inventory_hostname": "n1",
    "group_names": ["lavalite_candidates", "lavalite_nodes"],
    "groups": {},
    "hostvars": {"n1": {}},
}


def render(role: str, name: str, **variables: Any) -> str:
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar, trust_as_template

    def trusted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: trusted(each) for key, each in value.items()}
        return trust_as_template(value) if isinstance(value, str) else value

    defaults = trusted(yaml.safe_load((ROLES / role / "defaults/main.yml").read_text()))
    template = (ROLES / role / "templates" / f"{name}.j2").read_text()
    templar = Templar(loader=DataLoader(), variables=defaults | INVENTORY | variables)
    return str(templar.template(trust_as_template(template)))
