"""LedgerProvider: everything that a provider of compute groups does, over a ledger and the engine.

    decide on the picture ──► commit ──► (others were quicker: read what they wrote, decide anew) ──► make ──► answer

Subclasses say what there is, and make what a group needs beside its commitment.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.base.processes import ProcessIdentity
from lavalite.groups.embedded.desk import Desk
from lavalite.groups.embedded.hooks import Hooks
from lavalite.groups.embedded.listeners import Told
from lavalite.groups.embedded.phases import Phases, first_phase, made
from lavalite.groups.embedded.sweep import dead_holders, orphans
from lavalite.groups.embedded.utilization import Utilization
from lavalite.groups.embedded.waits import Waits
from lavalite.groups.engine import decide, life, supply, views
from lavalite.groups.engine.changes import Changes, Refused
from lavalite.groups.engine.picture import Picture
from lavalite.groups.errors import UnknownGroupError
from lavalite.groups.ledger import GroupLedger
from lavalite.groups.records import NODES, GroupRecord, Holder
from lavalite.groups.requirements import Ask, read_ask

log = structlog.get_logger(__name__)
NODES_AT_ONCE, GROUPS_AT_ONCE = 16, 48
"""So many are written in one transaction, at most."""


class LedgerProvider(Hooks):
    """Make one, then `await provider.start()`. What subclasses give is in lavalite.groups.embedded.hooks."""

    _working: ClassVar[set[str]] = set()
    """Groups of which something is being made or removed in this process, by whichever of its providers."""

    def __init__(self, ledger: GroupLedger, *, clock: Clock, holder: Holder | None = None) -> None:
        """`holder` is who allocates: this process, where it is not said."""
        self._desk = Desk(ledger, clock, self._expire)
        self._clock = clock
        self._holder = holder if holder is not None else this_process()
        self._waits = Waits(self._desk)

    async def start(self) -> None:
        """Read the ledger, and look at what there is. Raises UnreachableError, ConflictError."""
        await self._desk.sync()
        await self._look_at_nodes()
        await self._sweep()

    async def close(self) -> None:
        await self._desk.close()

    @property
    def picture(self) -> Picture:
        """As of the last time that anything was asked."""
        return self._desk.picture

    # --- what there is --------------------------------------------------------------------------------------------

    async def discover_resources(self) -> dict[str, Any]:
        await self._desk.sync()
        await self._look_at_nodes()
        measured = await self._measured()
        return {"nodes": [views.node_view(self.picture, node, measured) for node in self.picture.nodes.values()]}

    async def get_resource_state(self) -> dict[str, Any]:
        await self._desk.sync()
        await self._sweep()
        measured = await self._measured()
        picture = self.picture
        records = list(picture.groups.values())
        return {
            "nodes": [views.node_view(picture, node, measured) for node in picture.nodes.values()],
            "groups": await self._views(records, measured),
            "pools": views.pools_view(picture),
        }

    async def get_group(self, group_id: str) -> dict[str, Any]:
        """Raises UnknownGroupError."""
        await self._desk.sync()
        await self._expire()
        record = self.picture.groups.get(group_id)
        if record is None:
            raise UnknownGroupError(group_id)
        return (await self._views([record], await self._measured()))[0]

    async def get_groups(self, component_name: str) -> list[dict[str, Any]]:
        await self._desk.sync()
        await self._expire()
        return await self._views(list(self.picture.groups_of(component_name)), await self._measured())

    async def _views(self, records: Sequence[GroupRecord], measured: Utilization) -> list[dict[str, Any]]:
        busy = await self._busy(records) if records else set()
        return [
            views.group_view(self.picture, each, self._environment(each), measured, busy=each.id in busy)
            for each in records
        ]

    async def _measured(self) -> Utilization:
        measured = await self._utilization()
        self._desk.tell(NODES + name for name in self.picture.set_health(measured.health))
        return measured

    async def _look_at_nodes(self) -> None:
        offers = await self._discover()
        for at in range(0, len(offers), NODES_AT_ONCE):
            some = offers[at : at + NODES_AT_ONCE]
            await self._desk.carry_out(lambda p, _, some=some: supply.put_nodes(p, some))  # type: ignore[misc]
        if self.discovers_all:
            named = {offer.node for offer in offers}
            while await self._desk.carry_out(lambda p, _: supply.drop_nodes(p, named, NODES_AT_ONCE)):
                pass

    # --- giving out ------------------------------------------------------------------------------------------------

    async def allocate_resources(self, component_name: str, resources: dict[str, Any]) -> dict[str, Any]:
        ask = read_ask(component_name, resources)
        group_id = new_id()
        if not component_name:
            return await self._given(
                lambda p, now: decide.create(p, ask, resources, now, group_id, self._holder_of(ask, ""))
            )
        holder = self._holder_of(ask, component_name)

        def try_once(waiter_id: str) -> Callable[[Picture, float], Changes | Refused]:
            return lambda p, now: decide.allocate(p, ask, resources, now, group_id, holder, waiter_id)

        if not ask.constraints.wait:
            return await self._given(try_once(""))
        return await self._waits.until_given(ask, resources, lambda waiter_id: self._given(try_once(waiter_id)))

    async def reserve_resources(
        self, component_name: str, resources: dict[str, Any], timeout_seconds: int
    ) -> dict[str, Any]:
        ask, group_id = read_ask(component_name, resources), new_id()
        return await self._given(
            lambda p, now: decide.reserve(p, ask, resources, now, group_id, timeout_seconds, Holder())
        )

    def _holder_of(self, ask: Ask, component: str) -> Holder:
        return self._holder if component and ask.constraints.lifetime == "process" else Holder()

    async def _given(self, decision: Callable[[Picture, float], Changes | Refused]) -> dict[str, Any]:
        """The group that is given out, made; whoever is cancelled meanwhile has none. Raises what decisions do."""
        await self._expire()
        giving = asyncio.create_task(self._give(decision))
        try:
            record = await asyncio.shield(giving)
        except asyncio.CancelledError:
            results = await asyncio.gather(giving, return_exceptions=True)
            if isinstance(results[0], GroupRecord):
                await self._end([results[0].id])
            raise
        return views.group_view(self.picture, record, self._environment(record))

    async def _give(self, decision: Callable[[Picture, float], Changes | Refused]) -> GroupRecord:
        answer, phases = await self._written(decision)
        if isinstance(answer, Refused):
            if not await self._sweep():
                raise answer.error()
            answer, phases = await self._written(decision)
            if isinstance(answer, Refused):
                raise answer.error()
        if not phases.to_make:
            return answer.groups[0]
        unready, holder = phases.to_make[0]
        try:
            return await self._finish_making(unready, holder)
        except LavaLiteError:
            if unready.created and unready.component:  # it was there before, and is free again
                await self._end([unready.id])
            else:
                await self._unmake(unready)
                await self._desk.carry_out(lambda p, _: life.remove(p, [unready.id]))
            raise

    async def _written(
        self, decision: Callable[[Picture, float], Changes | Refused], *, remakes: bool = True
    ) -> tuple[Changes | Refused, Phases]:
        """Carried out, as far as it can be before anything is made or removed; and what is left to do."""
        phases = Phases()

        def written(picture: Picture, now: float) -> Changes | Refused:
            nonlocal phases
            phases = Phases()
            answer = decision(picture, now)
            if isinstance(answer, Changes):
                answer, phases = first_phase(answer, self._needs_making, self._holder, now, remakes=remakes)
            return answer

        return await self._desk.carry_out(written), phases

    async def _finish_making(self, unready: GroupRecord, holder: Holder) -> GroupRecord:
        self._working.add(unready.id)
        try:
            ready = await self._make(unready)
        finally:
            self._working.discard(unready.id)
        return (await self._desk.carry_out(lambda p, _: made(p, unready, ready, holder))).groups[0]

    # --- taking back -----------------------------------------------------------------------------------------------

    async def deallocate_resources(self, component_name: str, resource_ids: list[str]) -> bool:
        if component_name:
            return await self._each(resource_ids, lambda p, ids: life.deallocate(p, component_name, ids))
        return await self._each(resource_ids, life.delete)

    async def drain_resources(self, resource_ids: list[str]) -> bool:
        await self._each(resource_ids, life.drain, remakes=False)
        for group_id in resource_ids:
            record = self.picture.groups.get(group_id)
            if record is not None and record.component and record.expires_at is None:
                await self._ask_to_end(record)
        return True

    async def resume_resources(self, resource_ids: list[str]) -> bool:
        return await self._each(resource_ids, life.resume, remakes=False)

    async def release_reservation(self, group_id: str) -> bool:
        return await self._each([group_id], lambda p, ids: life.release_reservation(p, ids[0]))

    async def _each(
        self,
        group_ids: Sequence[str],
        change: Callable[[Picture, Sequence[str]], Changes],
        *,
        remakes: bool = True,
    ) -> bool:
        """Change all of them or none; of very many, so many at a time once all are found to be as they must be."""
        await self._expire()
        ids = list(dict.fromkeys(group_ids))
        if len(ids) > GROUPS_AT_ONCE:
            await self._desk.sync()
            change(self.picture, ids)
        for at in range(0, len(ids), GROUPS_AT_ONCE):
            some = ids[at : at + GROUPS_AT_ONCE]
            _, phases = await self._written(lambda p, _, some=some: change(p, some), remakes=remakes)  # type: ignore[misc]
            await self._finish(phases)
        return True

    async def _finish(self, phases: Phases) -> None:
        ids = [record.id for record in phases.to_remove]
        mine = {*ids, *(record.id for record, _ in phases.to_make)}
        self._working.update(mine)
        try:
            for unready, holder in phases.to_make:
                await self._finish_making(unready, holder)
            for record in phases.to_remove:
                await self._unmake(record)
            if ids:
                await self._desk.carry_out(lambda p, _: life.remove(p, ids))
        finally:
            self._working.difference_update(mine)

    async def _end(self, group_ids: Sequence[str]) -> None:
        """Give these back, whatever they are and wherever they are by now."""
        _, phases = await self._written(lambda p, _: life.end(p, group_ids))
        await self._finish(phases)

    async def _expire(self) -> None:
        """What has run out is no more; nothing is written where nothing has."""
        while self.picture.due(self._clock.now()):
            _, phases = await self._written(lambda p, now: life.expire(p, now, GROUPS_AT_ONCE))
            await self._finish(phases)

    async def _sweep(self) -> bool:
        """Give back what dead processes had, and undo what they left half done; whether there was anything."""
        await self._expire()
        lost = []
        unready = orphans(self.picture, self._clock.now(), self._holder, on_one_machine=self.on_one_machine)
        for record in unready:
            if record.holder == self._holder and record.id in self._working:
                continue
            try:
                await self._unmake(record)
            except LavaLiteError as error:  # it is in use still; the next sweep tries again, and nobody waits for it
                log.warning("what a dead process left cannot be removed yet", group=record.id, reason=str(error))
            else:
                lost.append(record.id)
        for at in range(0, len(lost), GROUPS_AT_ONCE):
            await self._desk.carry_out(lambda p, _, ids=lost[at : at + GROUPS_AT_ONCE]: life.remove(p, ids))  # type: ignore[misc]
        left = dead_holders(self.picture) if self.on_one_machine else []
        busy = await self._busy(left) if left else set()
        ended = [record.id for record in left if record.id not in busy]
        for at in range(0, len(ended), GROUPS_AT_ONCE):
            try:
                await self._end(ended[at : at + GROUPS_AT_ONCE])
            except LavaLiteError as error:
                log.warning("what a dead process had cannot be given back yet", reason=str(error))
        return bool(lost or ended)

    # --- pools and changes ------------------------------------------------------------------------------------------

    async def put_pool(self, name: str, pool: dict[str, Any]) -> dict[str, Any]:
        await self._desk.carry_out(lambda p, _: supply.put_pool(p, name, pool))
        return views.one_pool(self.picture, self.picture.pools[name])

    async def delete_pool(self, name: str) -> bool:
        await self._desk.carry_out(lambda p, _: supply.delete_pool(p, name))
        return True

    async def watch_resources(self) -> AsyncIterator[dict[str, Any]]:
        told = Told(self.picture, self._environment)
        with self._desk.listening(told.listen):
            while True:
                yield await told.next()


def this_process() -> Holder:
    """This process, as records name it."""
    me = ProcessIdentity.of(os.getpid())
    return Holder() if me is None else Holder(boot_id=me.boot_id, pid=me.pid, start_ticks=me.start_ticks)


def new_id() -> str:
    """Of a group: fit for a name in DNS too."""
    return f"g{secrets.token_hex(6)}"
