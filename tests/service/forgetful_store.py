"""A store whose answers are lost now and then, and that counts what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavalite.store.base import Compare, OutcomeUnknown, Put, Store, StoreUnavailable, TxnResult


class Forgetful(Store):
    """Its answers are lost, before it has done what it was told, or after; or it is not there at all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.lose: list[str] = []
        """What becomes of the next transactions: `before`, `after`, `down`, or `late`: done when we have asked."""
        self.transactions = self.reads = 0
        self._late: tuple[Sequence[Compare], Sequence[Put], Sequence[str]] | None = None
        self.late_succeeded: bool | None = None

    async def txn(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> TxnResult:
        self.transactions += 1
        how = self.lose.pop(0) if self.lose else ""
        if how == "down":
            raise StoreUnavailable("it is down")
        if how == "after":
            await self._store.txn(compares, puts, deletes)
        if how == "late":
            self._late = (compares, puts, deletes)
        if how:
            raise OutcomeUnknown("the answer is lost")
        result = await self._store.txn(compares, puts, deletes)
        if self._late is not None:
            late, self._late = self._late, None
            self.late_succeeded = (await self._store.txn(*late)).succeeded
        return result

    async def get(self, key: str) -> Any:
        self.reads += 1
        return await self._store.get(key)

    async def range(self, *arguments: Any, **named: Any) -> Any:
        self.reads += 1
        return await self._store.range(*arguments, **named)

    def watch(self, prefix: str, from_revision: int) -> Any:
        self.reads += 1
        return self._store.watch(prefix, from_revision)

    async def lease_grant(self, ttl_seconds: int) -> int:
        return await self._store.lease_grant(ttl_seconds)

    async def lease_keepalive(self, lease_id: int) -> int:
        return await self._store.lease_keepalive(lease_id)

    async def lease_revoke(self, lease_id: int) -> None:
        await self._store.lease_revoke(lease_id)

    async def compact(self, revision: int) -> None:
        await self._store.compact(revision)

    async def status(self) -> Any:
        return await self._store.status()

    async def close(self) -> None:
        await self._store.close()
