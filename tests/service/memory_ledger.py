"""A ledger of compute groups in memory, for as many pictures as a test likes: one world, a ledger for each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from lavalite.groups.ledger import Changed, GroupLedger


class World:
    """What all ledgers of it share: the records, and every change so far."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.log: list[Changed] = []
        self.commits = 0
        self.changed = asyncio.Event()


class MemoryLedger(GroupLedger):
    """One planner's view of the world. `transactions` and `syncs` count what it was asked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.transactions = self.syncs = 0
        self._told = self._commits = -1

    async def sync(self) -> list[Changed]:
        return self.sync_now()

    def sync_now(self) -> list[Changed]:
        self.syncs += 1
        world = self.world
        if self._told < 0:
            found = [Changed(key, value) for key, value in sorted(world.records.items())]
        else:
            found = [Changed(key, value) for key, value in dict(world.log[self._told :]).items()]
        self._told, self._commits = len(world.log), world.commits
        return found

    async def commit(self, puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> bool:
        return self.commit_now(puts, deletes)

    def commit_now(self, puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> bool:
        self.transactions += 1
        world = self.world
        if self._commits != world.commits:
            return False
        assert not set(puts) & set(deletes), "a key stands twice"
        world.records |= puts
        for key in deletes:
            world.records.pop(key, None)
        world.log += [*(Changed(key, value) for key, value in puts.items()), *(Changed(key, None) for key in deletes)]
        world.commits += 1
        self._told, self._commits = len(world.log), world.commits
        changed, world.changed = world.changed, asyncio.Event()
        changed.set()
        return True

    async def wait(self, timeout_seconds: float) -> None:
        if self._commits != self.world.commits:
            return
        waiting = asyncio.ensure_future(self.world.changed.wait())
        await asyncio.wait({waiting}, timeout=timeout_seconds)
        waiting.cancel()

    async def close(self) -> None:
        return None
