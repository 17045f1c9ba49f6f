"""`ansible-inventory`, but that the plugin pools sets no variables: the same hosts in the same groups, nothing else.

What Ansible itself needs for so many hosts. Run by bench/inventory.py.
"""

from __future__ import annotations

import sys
from typing import Any

import ansible.cli
from ansible.cli import inventory
from ansible.plugins.loader import init_plugin_loader, inventory_loader


def main() -> None:
    load = init_plugin_loader

    def load_bare(*arguments: Any, **options: Any) -> None:
        load(*arguments, **options)
        inventory_loader.get("lavalite.cluster.pools")
        name = "ansible_collections.lavalite.cluster.plugins.plugin_utils._populate"
        sys.modules[name].Population._variables = lambda *_: {}

    ansible.cli.init_plugin_loader = load_bare
    inventory.main()


if __name__ == "__main__":
    main()
