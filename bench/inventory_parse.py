"""How long the plugin's own `parse` takes, without what Ansible does before and after. Run by bench/inventory.py."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, inventory_loader


def main() -> int:
    init_plugin_loader([])
    plugin = inventory_loader.get("lavalite.cluster.pools").__class__
    parse, took = plugin.parse, {}

    def timed(*arguments: Any, **options: Any) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        parse(*arguments, **options)
        took.update(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)

    plugin.parse = timed
    InventoryManager(loader=DataLoader(), sources=sys.argv[1])
    print(json.dumps(took))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
