"""A process of its own that writes to a store: `store_writer.py KIND TARGET PREFIX COUNT`.

Transaction N puts N under two keys, `PREFIXleft` and `PREFIXright`, and swaps `PREFIXodd` for `PREFIXeven`. The
revision of each is printed once it is acknowledged.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from lavalite.base.clock import SystemClock
from lavalite.store.base import Put
from lavalite.store.open import StoreConfig, open_store


async def write(kind: str, target: str, prefix: str, count: int) -> None:
    if kind == "sqlite":
        config = StoreConfig(kind="sqlite", path=Path(target))
    else:
        config = StoreConfig(kind="etcd", endpoints=(target,))
    store = await open_store(config, SystemClock())
    for number in range(1, count + 1):
        value = str(number).encode()
        here, gone = ("odd", "even") if number % 2 else ("even", "odd")
        puts = [Put(prefix + name, value) for name in ("left", "right", here)]
        result = await store.txn([], puts, [prefix + gone])
        print(result.revision, flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
