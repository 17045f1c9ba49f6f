"""A store with revisions, leases and compares, reached over a network that delays, and loses questions and answers.

A transaction whose answer is lost may have been carried out, and may be carried out later still.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import count
from typing import Any

from sim_world import Machine, World

from lavalite.store.base import (
    Compare,
    LeaseLost,
    OutcomeUnknown,
    Page,
    Put,
    Record,
    Store,
    StoreStatus,
    StoreUnavailable,
    Target,
    TxnResult,
    WatchBatch,
)

TIMEOUT_SECONDS = 1.0


class Server:
    """What the store holds. `on_write` is told of each transaction that was carried out, and by which client."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.records: dict[str, Record] = {}
        self.revision = 0
        self.up = True
        self.on_write: Callable[[Client, Sequence[Put], Sequence[str]], None] = lambda client, puts, deletes: None
        self.trouble = 0.0
        """The share of calls that are lost on their way, or whose answer is."""
        self._leases: dict[int, float] = {}
        self._ids = count(1)

    def _holds(self, compare: Compare) -> bool:
        found = self.records.get(compare.key)
        match compare.target:
            case Target.CREATE_REVISION:
                return (found.create_revision if found else 0) == compare.expected
            case Target.MOD_REVISION:
                return (found.mod_revision if found else 0) == compare.expected
        return found is not None and found.value == compare.expected

    def txn(
        self, client: Client, compares: Sequence[Compare], puts: Sequence[Put], deletes: Sequence[str]
    ) -> TxnResult:
        if any(put.lease_id and put.lease_id not in self._leases for put in puts):
            raise LeaseLost("the lease is gone")
        if not all(map(self._holds, compares)):
            return TxnResult(False, self.revision)
        self.revision += 1
        for put in puts:
            before = self.records.get(put.key)
            created = before.create_revision if before else self.revision
            self.records[put.key] = Record(put.key, put.value, created, self.revision, put.lease_id)
        for key in deletes:
            self.records.pop(key, None)
        self.on_write(client, puts, deletes)
        return TxnResult(True, self.revision)

    def grant(self, ttl_seconds: float) -> int:
        lease = next(self._ids)
        self._leases[lease] = self.world.now + ttl_seconds
        self.world.after(ttl_seconds, self._look, lease)
        return lease

    def keep(self, lease: int, ttl_seconds: float) -> int:
        if lease not in self._leases:
            raise LeaseLost("the lease is gone")
        self._leases[lease] = self.world.now + ttl_seconds
        self.world.after(ttl_seconds, self._look, lease)
        return int(ttl_seconds)

    def revoke(self, lease: int) -> None:
        if self._leases.pop(lease, None) is not None:
            gone = [key for key, record in self.records.items() if record.lease_id == lease]
            self.revision += bool(gone)
            for key in gone:
                del self.records[key]
            self.world.tell(f"store: lease {lease} is gone")

    def _look(self, lease: int) -> None:
        if lease in self._leases and self._leases[lease] <= self.world.now:
            self.revoke(lease)


class Client(Store):
    """As one process reaches the store. `epoch` is that under which the process schedules; None for an election."""

    def __init__(
        self, server: Server, machine: Machine, ttl_seconds: int, epoch: tuple[int, int] | None = None
    ) -> None:
        self._server, self._machine, self._ttl = server, machine, ttl_seconds
        self.epoch = epoch
        self.gone = False
        """Whether its process was killed: no answer reaches it any more."""

    async def _call(self, what: Callable[[], Any], *, writes: bool) -> Any:
        world, server, chance = self._server.world, self._server, self._server.world.random
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        there, back = chance.uniform(0.0005, 0.004), chance.uniform(0.0005, 0.004)
        lost = chance.random()
        unsure: Exception = OutcomeUnknown("no answer") if writes else StoreUnavailable("no answer")

        def settle(result: Any, error: Exception | None) -> None:
            if not answer.done() and not self.gone:
                answer.set_exception(error) if error is not None else answer.set_result(result)

        def arrive() -> None:
            if not server.up:
                # Some of what was on its way is carried out when the store is back, whoever waits for it or not.
                if writes and chance.random() < 0.3:
                    world.after(chance.uniform(0.1, 6.0), late)
                return
            carry_out()

        def late() -> None:
            if server.up:
                with contextlib.suppress(LeaseLost):
                    what()

        def carry_out() -> None:
            error: Exception | None = None
            result = None
            try:
                result = what()
            except LeaseLost as fault:
                error = fault
            if lost > server.trouble:
                world.after(back, self._machine.take, settle, result, error)

        if lost < server.trouble / 2 and not writes:
            world.after(TIMEOUT_SECONDS, self._machine.take, settle, None, StoreUnavailable("it was lost"))
            return await answer
        if lost < server.trouble / 4:
            # It comes through long after its sender has given it up.
            there = TIMEOUT_SECONDS + chance.uniform(0.1, 4.0)
        world.after(there, arrive)
        world.after(TIMEOUT_SECONDS, self._machine.take, settle, None, unsure)
        return await answer

    async def get(self, key: str) -> Record | None:
        return await self._call(lambda: self._server.records.get(key), writes=False)  # type: ignore[no-any-return]

    async def range(self, prefix: str, *, limit: int = 1000, after: str | None = None, at_revision: int = 0) -> Page:
        def read() -> Page:
            found = sorted(key for key in self._server.records if key.startswith(prefix))
            return Page([self._server.records[key] for key in found], self._server.revision, None)

        return await self._call(read, writes=False)  # type: ignore[no-any-return]

    async def txn(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> TxnResult:
        compares, puts, deletes = list(compares), list(puts), list(deletes)
        return await self._call(lambda: self._server.txn(self, compares, puts, deletes), writes=True)  # type: ignore[no-any-return]

    async def lease_grant(self, ttl_seconds: int) -> int:
        return await self._call(lambda: self._server.grant(ttl_seconds), writes=True)  # type: ignore[no-any-return]

    async def lease_keepalive(self, lease_id: int) -> int:
        return await self._call(lambda: self._server.keep(lease_id, self._ttl), writes=False)  # type: ignore[no-any-return]

    async def lease_revoke(self, lease_id: int) -> None:
        await self._call(lambda: self._server.revoke(lease_id), writes=True)

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        raise NotImplementedError("nobody here watches")

    async def compact(self, revision: int) -> None:
        raise NotImplementedError("nobody here compacts")

    async def status(self) -> StoreStatus:
        return StoreStatus("simulated", "1", self._server.revision, 0, "simulated")

    async def close(self) -> None:
        pass
