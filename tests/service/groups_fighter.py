"""A planner that makes random calls, and uses what it got: run by test_groups_fight.py, and killed by it.

python groups_fighter.py STATE FOLDER NAME SEED CALLS

Whoever has a device locks it: FOLDER holds a file for each half of it, with an flock that dies with its process. So
nobody has to trust what the groups say. A line is said for each call; `twice DEVICE` where another has it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import sys
from pathlib import Path
from typing import Any

from groups_local import open_planner

from lavalite.base.errors import InputError
from lavalite.groups import (
    ComputeGroup,
    ComputeGroupManager,
    GroupStateError,
    InsufficientResourcesError,
    ReservationError,
    UnknownGroupError,
)

REFUSALS = (InsufficientResourcesError, GroupStateError, ReservationError, UnknownGroupError, InputError)
ASKS: list[dict[str, Any]] = [
    {"gpu": 1},
    {"gpu": 2, "cpu": 0.1},
    {"gpu": 3},
    {"gpu": 0.5, "isolation": "none"},
    {"cpu": 0.2},
    {"gpu": 9},
    {"gpus": 1},
]


class Fighter:
    def __init__(self, manager: ComputeGroupManager, folder: Path, name: str, seed: int) -> None:
        self.manager, self.folder, self.name = manager, folder, name
        self.random = random.Random(seed)
        self.held: dict[str, list[int]] = {}
        """Group → the locks that it holds."""

    def lock(self, group: ComputeGroup) -> None:
        gpus = group.resources["gpus"]
        halves = 1 if group.resources["gpu_milli"] == 500 else 2
        for gpu in gpus:
            taken = []
            for half in range(2):
                file = os.open(self.folder / f"{gpu['id']}.{half}", os.O_RDWR | os.O_CREAT)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os.close(file)
                    continue
                taken.append(file)
                if len(taken) == halves:
                    break
            if len(taken) < halves:
                print(f"twice {gpu['id']}", flush=True)
            self.held.setdefault(group.id, []).extend(taken)

    def unlock(self, group_id: str) -> None:
        for file in self.held.pop(group_id, []):
            os.close(file)

    async def call(self) -> None:
        manager, pick = self.manager, self.random
        ask = pick.choice(ASKS)
        known = [group.id for group in await manager.list_compute_groups()] if pick.random() < 0.3 else []
        mine = [*self.held]
        some = pick.choice([*known, *mine, "no-such-group"])
        kind = pick.randrange(12)
        if kind <= 3:
            self.lock(await manager.allocate_compute_group(self.name, ask))
        elif kind <= 6 and mine:
            group_id = pick.choice(mine)
            self.unlock(group_id)
            await manager.deallocate_compute_group(group_id)
        elif kind == 7:
            await manager.create_compute_group(ask)
        elif kind == 8 and known:
            taken = await manager.allocate_compute_group(self.name, {"cpu": 0.1}, {"group": some})
            self.lock(taken)
        elif kind == 9:
            await manager.reserve(self.name, ask, timeout_seconds=1)
        elif kind == 10:
            call = pick.choice(
                [manager.drain_compute_group, manager.resume_compute_group, manager.delete_compute_group]
            )
            if some not in self.held:
                await call(some)
        else:
            await manager.get_allocation_summary()


async def main(state: str, folder: str, name: str, seed: str, calls: str) -> None:
    async with await open_planner(Path(state)) as manager:
        fighter = Fighter(manager, Path(folder), name, int(seed))
        print("ready", flush=True)
        for _ in range(int(calls)):
            try:
                await fighter.call()
            except REFUSALS as error:
                print(f"refused {type(error).__name__}", flush=True)
            else:
                print("done", flush=True)
        # What it still has goes with its process.


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
