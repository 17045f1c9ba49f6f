"""A planner as a process of its own: `python groups_planner.py WHERE WHAT`.

take      four times one GPU, as many as there are left; prints [[group, device], …]
stop      asks for a GPU and stops for good when the job is submitted; prints `submitted`
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from lavalite.groups import InsufficientResourcesError, connect
from lavalite.groups.cluster import ask, placing

ONE = {"gpu": 1, "cpu": 0.05}


async def take(where: str) -> None:
    got = []
    async with await connect(where) as manager:
        for _ in range(4):
            try:
                group = await manager.allocate_compute_group("decode", ONE)
            except InsufficientResourcesError:
                break
            got.append([group.id, group.resources["gpus"][0]["id"]])
    print(json.dumps(got))


async def stop(where: str) -> None:
    async def forever(*_: Any) -> Any:
        print("submitted", flush=True)
        await asyncio.sleep(3600)

    placing._placed = forever
    ask.PATIENCE_SECONDS = 1
    async with await connect(where) as manager:
        await manager.allocate_compute_group("decode", ONE)


if __name__ == "__main__":
    asyncio.run({"take": take, "stop": stop}[sys.argv[2]](sys.argv[1]))
