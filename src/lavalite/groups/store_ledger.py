"""StoreLedger: the ledger of compute groups over any store, shared by several planners without a leader.

    /lavalite/CLUSTER/compute/…       the records
    /lavalite/CLUSTER/compute/head    compared and set by every commit; its value names the last commits

It is for where no system runs: a store with a live leader is that leader's, and is refused, whenever that one comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping, Sequence

from lavalite.base.clock import Clock
from lavalite.base.errors import ConflictError, UnreachableError
from lavalite.groups.ledger import Changed, GroupLedger
from lavalite.store.base import (
    Compacted,
    Compare,
    OutcomeUnknown,
    Put,
    Store,
    StoreUnavailable,
    TxnResult,
    range_all,
)
from lavalite.store.keys import Keys

COMMITS_NAMED = 64
"""Whoever does not know what became of its commit finds it named, unless so many others came since."""
FIND_OUT_SECONDS = 30.0
FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.02, 1.0


class StoreLedger(GroupLedger):
    """See the module's docstring. Closing it closes the store."""

    def __init__(self, store: Store, cluster: str, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._leader = Keys(cluster).leader
        self._prefix = f"{Keys(cluster).root}compute/"
        self._head = f"{self._prefix}head"
        self._known: set[str] = set()
        """Keys that there are, as far as was told."""
        self._head_revision = -1
        """Of the head that our next commit builds on; below 0 where nothing was read yet."""
        self._told_revision = -1
        """Every change up to it was told, or is one of ours."""
        self._names: list[str] = []

    async def sync(self) -> list[Changed]:
        """Raises ConflictError where a system runs on the store, beside what the contract says."""
        await self._refuse_led()
        if self._told_revision < 0:
            return await self._list()
        head = await self._store.get(self._head)
        revision = head.mod_revision if head is not None else 0
        if revision <= self._told_revision:
            if revision != self._head_revision:  # the store is an older one, put back from a copy
                return await self._list()
            return []
        try:
            return await self._read_until(revision)
        except Compacted:
            return await self._list()

    async def commit(self, puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> bool:
        """Raises ConflictError where a system runs on the store, beside what the contract says."""
        if self._head_revision < 0:
            return False
        name = secrets.token_hex(6)
        names = [*self._names, name][-COMMITS_NAMED:]
        try:
            result = await self._write(puts, deletes, names)
        except OutcomeUnknown:
            return await self._find_out(name, puts, deletes)
        if result.succeeded:
            self._ours(puts, deletes, names, result.revision)
        return result.succeeded

    async def wait(self, timeout_seconds: float) -> None:
        # Of two that wait for the store, whoever is done first says so; the other is given up.
        changed = asyncio.ensure_future(self._next_change())
        expired = asyncio.ensure_future(self._clock.sleep(timeout_seconds))
        try:
            await asyncio.wait({changed, expired}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (changed, expired):
                task.cancel()
            await asyncio.gather(changed, expired, return_exceptions=True)

    async def close(self) -> None:
        await self._store.close()

    @property
    def most_records(self) -> int:
        """How many records one commit may change."""
        return self._store.max_txn_operations - 1

    # --- writing -----------------------------------------------------------------------------------------------

    async def _write(self, puts: Mapping[str, bytes], deletes: Sequence[str], names: Sequence[str]) -> TxnResult:
        compares = [Compare.unchanged(self._head, self._head_revision), Compare.absent(self._leader)]
        written = [Put(self._prefix + key, value) for key, value in puts.items()]
        written.append(Put(self._head, " ".join(names).encode()))
        return await self._store.txn(compares, written, [self._prefix + key for key in deletes])

    def _ours(self, puts: Mapping[str, bytes], deletes: Sequence[str], names: list[str], revision: int) -> None:
        self._head_revision = self._told_revision = revision
        self._names = names
        self._known |= puts.keys()
        self._known.difference_update(deletes)

    async def _find_out(self, name: str, puts: Mapping[str, bytes], deletes: Sequence[str]) -> bool:
        """Whether the commit of that name, whose answer did not come, has been carried out.

        While the head is as it was it may be on its way still: then we write a head of our own, after which it can
        be carried out no more. Raises UnreachableError where the store does not answer for long.
        """
        deadline, pause_seconds = self._clock.monotonic() + FIND_OUT_SECONDS, FIRST_PAUSE_SECONDS
        while True:
            with contextlib.suppress(StoreUnavailable, OutcomeUnknown):
                head = await self._store.get(self._head)
                names = head.value.decode().split() if head is not None else []
                if name in names:
                    if head is not None and names[-1] == name:
                        self._ours(puts, deletes, names, head.mod_revision)
                    # Else others came after it: what we told last stays so, and the next sync reads from there.
                    return True
                if head is not None and head.mod_revision != self._head_revision:
                    if len(names) < COMMITS_NAMED or set(names) & set(self._names):
                        return False
                    break  # so many others came since that ours would not be named any more
                fence = [*self._names, secrets.token_hex(6)][-COMMITS_NAMED:]
                result = await self._write({}, (), fence)
                if result.succeeded:
                    self._ours({}, (), fence, result.revision)
                    return False
            if self._clock.monotonic() > deadline:
                break
            await self._clock.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, MOST_PAUSE_SECONDS)
        self._told_revision = -1  # everything is read anew
        raise UnreachableError("the store did not say what became of a change", hint="Look at what there is now.")

    # --- reading -----------------------------------------------------------------------------------------------

    async def _refuse_led(self) -> None:
        if await self._store.get(self._leader) is not None:
            hint = "Connect to that system, by https://HOST:PORT or up:, as `lavalite` finds it."
            raise ConflictError("the store is in use by a running system, which gives its nodes out", hint=hint)

    async def _list(self) -> list[Changed]:
        records, revision = await range_all(self._store, self._prefix)
        found, self._names, self._head_revision = [], [], 0
        for record in records:
            if record.key == self._head:
                self._head_revision, self._names = record.mod_revision, record.value.decode().split()
            else:
                found.append(Changed(record.key.removeprefix(self._prefix), record.value))
        present = {key for key, _ in found}
        found += [Changed(key, None) for key in sorted(self._known - present)]
        self._known, self._told_revision = present, revision
        return found

    async def _read_until(self, revision: int) -> list[Changed]:
        """What changed since we told last, up to a head of that revision or a later one. Raises Compacted."""
        found: dict[str, bytes | None] = {}
        head_revision, names = self._head_revision, self._names
        told = self._told_revision
        async with contextlib.aclosing(self._store.watch(self._prefix, told + 1)) as batches:
            async for batch in batches:
                for event in batch.events:
                    value = event.record.value if event.kind == "put" else None
                    if event.record.key == self._head:
                        head_revision, names = event.record.mod_revision, (value or b"").decode().split()
                    else:
                        found[event.record.key.removeprefix(self._prefix)] = value
                told = batch.revision
                if head_revision >= revision:
                    break
        self._head_revision, self._names, self._told_revision = head_revision, names, told
        for key, value in found.items():
            if value is None:
                self._known.discard(key)
            else:
                self._known.add(key)
        return [Changed(key, value) for key, value in found.items()]

    async def _next_change(self) -> None:
        """Until there is a change that was not told. Trouble with the store is waited through."""
        from_revision = max(1, self._told_revision + 1)
        with contextlib.suppress(Compacted):
            async with contextlib.aclosing(self._store.watch(self._prefix, from_revision)) as batches:
                async for _ in batches:
                    return
