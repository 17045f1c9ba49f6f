"""GroupLedger over objects of a Kubernetes cluster.

The API server changes one object at a time, by its resourceVersion. So a change of several is one swap of the head
(head.py), which says what is to be written: from then on it is durable. Whoever swaps the head next has first carried
out what it said before, so that a planner that dies in between leaves nothing half done:

    carry out the head's intent, if nobody has ──► swap the head ──► carry out our own

Whoever reads goes by the intents of the changes that it has not seen, which a watch of the head brings; where one of
them is missing it lists all objects. Where nobody knows whether a swap was done, the same swap is sent again until
there is an answer: it can succeed only once.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from functools import partial
from typing import TypeVar

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import BusyError, ConflictError, LavaLiteError, RefusedError, UnreachableError
from lavalite.groups.kubernetes.head import (
    HEAD,
    MOST_INTENT_CHARACTERS,
    Head,
    Intent,
    part_name,
    part_objects,
)
from lavalite.groups.kubernetes.storage import LEDGER, Storage, Where
from lavalite.groups.ledger import Changed, GroupLedger
from lavalite.providers.kubernetes.connection import CONFIG_MAPS, GROUPS, Connection, GoneError
from lavalite.providers.kubernetes.patience import FIRST_SECONDS, MOST_SECONDS, Pauses, patiently

MOST_KEPT = 64
"""Intents that the watch brought, and nobody has asked for."""
LISTS = 8
T = TypeVar("T")


class KubernetesLedger(GroupLedger):
    """Open it by `open`. Beside UnreachableError its methods raise BusyError (429) and RefusedError (403)."""

    def __init__(self, connection: Connection, clock: Clock, head: Head, *, patience_seconds: float) -> None:
        self._connection = connection
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._storage = Storage(connection, head.where)
        self._head = head
        self._seen = -1
        """The change up to which our caller's picture goes."""
        self._carried_out = 0
        """The change up to which all is known to be written."""
        self._keys: set[str] = set()
        self._kept: dict[int, Intent] = {}
        self._told = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, connection: Connection, clock: Clock, *, patience_seconds: float = 20.0) -> KubernetesLedger:
        """The ledger of the connection's namespace, made where there is none.

        Groups are of our own kind where the cluster has it and lets us list it, else ConfigMaps; once the ledger is
        made, as it was made. `patience_seconds`: for so long an answer is sought for before it is given up.
        """
        found = await connection.get(CONFIG_MAPS, HEAD)
        while found is None:
            head = Head(await _where(connection))
            try:
                found = await connection.create(CONFIG_MAPS, head.object())
            except ConflictError:
                found = await connection.get(CONFIG_MAPS, HEAD)
        return cls(connection, clock, Head.read(found), patience_seconds=patience_seconds)

    @property
    def where(self) -> Where:
        """What groups are kept as."""
        return self._storage.where

    # --- the contract -------------------------------------------------------------------------------------------

    async def sync(self) -> list[Changed]:
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
        head = await self._read_head()
        changed: dict[str, bytes | None]
        if head.change == self._seen:
            changed = {}
        elif (missed := await self._missed(head)) is not None:
            changed = {}
            for intent in missed:
                changed |= intent.puts
                changed |= dict.fromkeys(intent.deletes)
            self._storage.forget(changed)
        else:
            head, changed = await self._list(head)
        self._goes_on(head)
        for key, value in changed.items():
            if value is None:
                self._keys.discard(key)
            else:
                self._keys.add(key)
        return [Changed(key, value) for key, value in changed.items()]

    async def commit(self, puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> bool:
        before, intent = self._head, Intent(dict(puts), tuple(deletes))
        if self._seen != before.change:
            return False  # never synced
        writer, text = secrets.token_hex(8), intent.text()
        parts = 0
        if len(text.encode()) > MOST_INTENT_CHARACTERS:
            for part in (cut := part_objects(text, writer, before.change + 1)):
                await self._connection.create(CONFIG_MAPS, part)
            parts = len(cut)
            text = f'{{"parts":{parts}}}'
        await self._carry_out(before)
        head = await self._swap(before.next(intent, text, writer))
        if head is None:
            await self._remove_parts(writer, parts)
            return False
        self._goes_on(head)
        new = intent.puts.keys() - self._keys
        self._keys = (self._keys | intent.puts.keys()).difference(deletes)
        await self._remove_parts(before.writer, before.parts)
        # It is durable. What cannot be written now, whoever comes next writes.
        with contextlib.suppress(LavaLiteError):
            await self._write(head.change, intent, new)
        return True

    async def wait(self, timeout_seconds: float) -> None:
        if self._following is None or self._following.done():
            await self._clock.sleep(min(timeout_seconds, MOST_SECONDS))
            return
        told = asyncio.ensure_future(self._told.wait())
        slept = asyncio.ensure_future(self._clock.sleep(timeout_seconds))
        try:
            await asyncio.wait([told, slept], return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            slept.cancel()

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._connection.close()

    # --- reading ------------------------------------------------------------------------------------------------

    async def _read_head(self) -> Head:
        found = await self._patiently(lambda: self._connection.get(CONFIG_MAPS, HEAD))
        if found is None:
            hint = "Close the provider and open it anew, once its pods are seen to."
            raise UnreachableError(f"the ledger's ConfigMap {HEAD} is gone", hint=hint)
        return Head.read(found)

    async def _missed(self, head: Head) -> list[Intent] | None:
        """The intents from what our caller has seen up to the head, or None where one of them is not known."""
        if self._seen < 0 or head.change < self._seen:
            return None
        missed = [self._kept.get(change) for change in range(self._seen + 1, head.change)]
        if None in missed:
            return None
        last = await self._intent(head)
        return None if last is None else [*(each for each in missed if each is not None), last]

    async def _intent(self, head: Head) -> Intent | None:
        """None where its parts are gone: then it was carried out, and the head is another one by now."""
        if not head.parts:
            return Intent.read(head.intent)
        texts = []
        for number in range(head.parts):
            part = await self._connection.get(CONFIG_MAPS, part_name(head.writer, number))
            if part is None:
                return None
            texts.append(part["data"]["text"])
        return Intent.read("".join(texts))

    async def _list(self, head: Head) -> tuple[Head, dict[str, bytes | None]]:
        """All records as of one head. What was listed holds all changes before `head`, and perhaps some of later
        ones: those are laid over it."""
        for _ in range(LISTS):
            first = await self._intent(head)
            found = await self._storage.list()
            after = await self._read_head()
            last = first if after.change == head.change else await self._intent(after)
            laid = {head.change: first, after.change: last} | {
                change: self._kept.get(change) for change in range(head.change + 1, after.change)
            }
            if None not in laid.values():
                break
            head = after
        else:
            raise BusyError("the ledger changes faster than it can be listed")
        changed: dict[str, bytes | None] = dict.fromkeys(self._keys)
        for each in found:
            if after.deleted.get(each.key, -1) < each.change:
                changed[each.key] = each.value
            else:
                changed[each.key] = None  # written late, after it was deleted
                with contextlib.suppress(LavaLiteError):
                    await self._storage.remove(each.key, after.deleted[each.key])
        for change in sorted(laid):
            intent = laid[change]
            assert intent is not None
            changed |= intent.puts
            changed |= dict.fromkeys(intent.deletes)
        await self._clear_parts(after)
        return after, {key: value for key, value in changed.items() if value is not None or key in self._keys}

    def _goes_on(self, head: Head) -> None:
        self._head, self._seen = head, head.change
        self._kept = {change: intent for change, intent in self._kept.items() if change > head.change}
        if not self._kept:
            self._told.clear()

    async def _follow(self) -> None:
        """Keep the intents of changes that others make, and ring the bell."""
        pause_seconds = FIRST_SECONDS
        while True:
            try:
                head = await self._read_head()
                await self._keep(head)
                async for kind, obj in self._connection.watch(CONFIG_MAPS, version=head.version, name=HEAD):
                    pause_seconds = FIRST_SECONDS
                    if kind != "DELETED":
                        await self._keep(Head.read(obj))
            except GoneError:
                pass  # from the head as it is now on: what is missing in between is listed
            except LavaLiteError as error:
                structlog.get_logger(__name__).info("watch", reason=str(error))
            self._told.set()
            await self._clock.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, MOST_SECONDS)

    async def _keep(self, head: Head) -> None:
        if head.change <= self._seen:
            return
        if (intent := await self._intent(head)) is not None and head.change > self._seen:
            self._kept[head.change] = intent
            for change in sorted(self._kept)[:-MOST_KEPT]:
                del self._kept[change]
        self._told.set()

    # --- writing ------------------------------------------------------------------------------------------------

    async def _swap(self, head: Head) -> Head | None:
        """The head as it was written, or None where somebody else was quicker."""
        unsure, pauses = False, Pauses(self._clock, self._patience_seconds)
        while True:
            try:
                written = await self._connection.replace(CONFIG_MAPS, head.object())
                return Head.read(written) if written is not None else None
            except ConflictError:
                return await self._ours(head) if unsure else None
            except (UnreachableError, BusyError) as error:
                unsure = unsure or isinstance(error, UnreachableError)
                await pauses.after(error)

    async def _ours(self, head: Head) -> Head | None:
        """Whether it was our own swap that was quicker, its answer lost."""
        now = await self._read_head()
        if head.change > now.change:
            return None
        if head.change not in now.writers:
            raise UnreachableError(f"nobody knows any more whether change {head.change} of the ledger was ours")
        if now.writers[head.change] != head.writer:
            return None
        return now if now.change == head.change else head

    async def _carry_out(self, head: Head) -> None:
        """Write what the head says, where nobody has."""
        if head.change <= self._carried_out:
            return
        if (intent := await self._intent(head)) is not None:
            await self._write(head.change, intent)
        self._carried_out = head.change

    async def _write(self, change: int, intent: Intent, new: Set[str] | None = None) -> None:
        """`new`: of a change that we have just made, the keys that were not there before."""
        storage = self._storage
        for key, value in intent.puts.items():
            if new is not None or not await self._patiently(partial(storage.is_written, key, change)):
                is_new = new is not None and key in new
                await self._patiently(partial(storage.write, key, value, change, new=is_new))
        for key in intent.deletes:
            await self._patiently(partial(storage.remove, key, change))
        self._carried_out = change

    async def _remove_parts(self, writer: str, parts: int) -> None:
        for number in range(parts):
            with contextlib.suppress(LavaLiteError):
                await self._connection.delete(CONFIG_MAPS, part_name(writer, number))

    async def _clear_parts(self, head: Head) -> None:
        """Parts of intents that can never be, or no more be of use."""
        with contextlib.suppress(LavaLiteError):
            for part in await self._connection.list_all(CONFIG_MAPS, labels={LEDGER: "part"}) or []:
                if int(part["data"]["change"]) <= head.change and part["data"]["writer"] != head.writer:
                    await self._connection.delete(CONFIG_MAPS, part["metadata"]["name"])

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        return await patiently(self._clock, self._patience_seconds, call)


async def _where(connection: Connection) -> Where:
    try:
        return "computegroups" if await connection.list_all(GROUPS) is not None else "configmaps"
    except RefusedError:
        return "configmaps"
