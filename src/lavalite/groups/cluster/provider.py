"""The provider: each of its methods in a few calls of /v1."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from lavalite.api.client import Client
from lavalite.api.models import Change, EntryPut, Reservation
from lavalite.base.clock import Clock, SystemClock
from lavalite.base.errors import InputError, UnknownNameError
from lavalite.groups.cluster import ask as asks
from lavalite.groups.cluster import shapes, watching
from lavalite.groups.cluster.calls import Calls
from lavalite.groups.cluster.ending import stand, until_ended
from lavalite.groups.cluster.looking import Found, Looking
from lavalite.groups.cluster.placing import place, refused_reservation
from lavalite.groups.errors import (
    GroupStateError,
    InsufficientResourcesError,
    ReservationError,
    UnknownGroupError,
)
from lavalite.groups.requirements import Ask, read_ask
from lavalite.groups.views import ALLOCATED, DRAINING, FAILED, FREE, RESERVED
from lavalite.providers.base import ComputeResourceProvider
from lavalite.providers.place import Place, find_place


class ClusterComputeResourceProvider(ComputeResourceProvider):
    """Groups of a running LavaLite. Make it with `open`, or of a function that makes clients."""

    name = "a running LavaLite"
    runs_components = True

    def __init__(self, make_client: Callable[[], Client], *, queue: str = "", clock: Clock | None = None) -> None:
        """`queue`: of the jobs that groups are; else the default one. Whatever limits that has hold for groups."""
        self._calls = Calls(make_client)
        self._clock = clock or SystemClock()
        self._queue = queue
        self._looking = Looking(self._calls)

    @classmethod
    async def open(cls, where: str = "", *, queue: str = "") -> ClusterComputeResourceProvider:
        """`https://HOST:PORT[,…]` or `unix:SOCKET`; `up`, or nothing: as `lavalite` finds it; `up:FOLDER`: the one
        that `lavalite up` runs there. Raises InputError, UnreachableError."""
        provider = cls(place_of(where).client, queue=queue)
        try:
            await provider._calls(Client.status)
        except BaseException:
            await provider.close()
            raise
        return provider

    async def close(self) -> None:
        await self._calls.close()

    # --- what there is ------------------------------------------------------------------------------------------

    async def discover_resources(self) -> dict[str, Any]:
        return {"nodes": [shapes.node(found) for found in await self._looking.nodes()]}

    async def get_resource_state(self) -> dict[str, Any]:
        """Four questions at once: what changes between their answers may show in one and not yet in the other."""
        nodes, groups, pools = await asyncio.gather(
            self._looking.nodes(),
            self._looking.groups(),
            self._calls.every(Client.pools),
        )
        return {
            "nodes": [shapes.node(found) for found in nodes],
            "groups": [found.shape for found in groups],
            "pools": [shapes.pool(found) for found in pools],
        }

    async def get_group(self, group_id: str) -> dict[str, Any]:
        return (await self._looking.find(group_id)).shape

    async def get_groups(self, component_name: str) -> list[dict[str, Any]]:
        return [found.shape for found in await self._looking.groups(component_name)]

    # --- giving and taking back ------------------------------------------------------------------------------------

    async def allocate_resources(self, component_name: str, resources: dict[str, Any]) -> dict[str, Any]:
        ask = read_ask(component_name, resources)
        asks.demand_offered(ask)
        if not component_name:
            return (await self._keep(ask, None)).shape
        if ask.constraints.group:
            return (await self._take(ask, ask.constraints.group)).shape
        for kept in await self._calls.every(Client.reservations, groups=True):
            if asks.may_take(ask, kept):
                try:
                    return (await self._place(ask, kept, 0)).shape
                except InsufficientResourcesError:
                    continue  # somebody else has taken it, or it does not suit otherwise
        return (await self._place(ask, None, ask.constraints.wait)).shape

    async def _place(self, ask: Ask, kept: Reservation | None, wait_seconds: float) -> Found:
        pool, kinds = ask.constraints.pool, list[str]()
        if pool:
            kinds = (await self._calls(Client.pool, pool)).kinds
        spec = asks.job_of(ask, kinds, self._queue, kept)
        job = await place(self._calls, self._clock, spec, wait_seconds)
        await self._looking.know_devices([job])
        return self._looking.of_job(job, kept)

    async def _take(self, ask: Ask, group_id: str) -> Found:
        found = await self._looking.find(group_id)
        kept = found.kept
        if found.job is not None or kept is None or kept.used:
            raise GroupStateError(f"compute group {group_id} is {found.state}: it has a component already")
        if kept.component and kept.component != ask.component:
            raise ReservationError(f"compute group {group_id} is reserved for {kept.component}")
        if kept.drained:
            raise GroupStateError(f"compute group {group_id} is draining", hint="Resume it first.")
        try:
            return await self._place(ask, kept, ask.constraints.wait)
        except InsufficientResourcesError:
            if (await self._looking.find(group_id)).job is not None:
                raise GroupStateError(f"compute group {group_id} was taken by another just now") from None
            raise

    async def _keep(self, ask: Ask, timeout_seconds: int | None) -> Found:
        """A group that nobody has yet."""
        asks.demand_keepable(ask)
        nodes = await self._looking.nodes() if asks.demands_devices(ask) else None
        body = asks.reservation_of(ask, nodes, timeout_seconds)
        name = f"group-{uuid.uuid4().hex[:12]}"
        try:
            made = (await self._calls(Client.reserve, name, body)).reservation
        except UnknownNameError:
            raise
        except InputError as error:
            raise refused_reservation(error) from None
        return Found(shapes.group_of_reservation(made), None, made)

    async def deallocate_resources(self, component_name: str, resource_ids: list[str]) -> bool:
        found = [await self._looking.find(group_id) for group_id in dict.fromkeys(resource_ids)]
        if not component_name:
            await self._delete(found)
            return True
        for group in found:
            if group.job is None or group.job.component != component_name:
                raise GroupStateError(f"compute group {group.id} is {group.state}: {component_name} has it not")
        await asyncio.gather(*(self._end(group) for group in found))
        return True

    async def _delete(self, found: list[Found]) -> None:
        for group in found:
            if group.job is not None or group.kept is None or group.kept.used:
                raise GroupStateError(f"compute group {group.id} is {group.state}", hint="Deallocate it first.")
            if group.state == RESERVED:
                raise GroupStateError(f"compute group {group.id} is reserved", hint="Release its reservation.")
        for group in found:
            await self._let_go(group.id)

    async def _let_go(self, name: str) -> None:
        try:
            await self._calls(Client.unreserve, name)
        except UnknownNameError:
            raise UnknownGroupError(name) from None

    async def _end(self, group: Found) -> None:
        """Of what was created the reservation stays, and is free; what was reserved is nobody's any more."""
        job, kept = group.job, group.kept
        assert job is not None, "whoever has it was looked at"
        await self._calls(Client.cancel, job.id)
        await until_ended(self._calls, self._clock, job)
        if kept is not None and kept.timeout_seconds is not None:
            await self._let_go(kept.name)
        elif kept is not None and kept.drained:
            await self._calls(Client.resume_reservation, kept.name)

    # --- draining ---------------------------------------------------------------------------------------------------

    async def drain_resources(self, resource_ids: list[str]) -> bool:
        """A component's own process is told to end, and its group is gone when it has. Where a group is only held for
        its caller, it is marked, and held until it is deallocated."""
        found = [await self._looking.find(group_id) for group_id in dict.fromkeys(resource_ids)]
        for group in found:
            if group.state == DRAINING:
                raise GroupStateError(f"compute group {group.id} is draining already")
        for group in found:
            if (kept := group.kept) is not None and not kept.drained:
                await self._calls(Client.drain_reservation, kept.name)
            if (job := group.job) is None:
                continue
            if asks.is_holder(job.command):
                await stand(self._calls, self._clock, job, still=True)
            else:
                await self._calls(Client.cancel, job.id)
        return True

    async def resume_resources(self, resource_ids: list[str]) -> bool:
        found = [await self._looking.find(group_id) for group_id in dict.fromkeys(resource_ids)]
        for group in found:
            drained = group.kept is not None and group.kept.drained
            if group.state != DRAINING and not drained:
                raise GroupStateError(f"compute group {group.id} is {group.state}, and not draining")
            if group.job is not None and group.job.told_to_end:
                message = f"the process in compute group {group.id} was told to end already"
                raise GroupStateError(message, hint="Allocate another one.")
        for group in found:
            if (kept := group.kept) is not None and kept.drained:
                await self._calls(Client.resume_reservation, kept.name)
            if group.job is not None:
                await stand(self._calls, self._clock, group.job, still=False)
        return True

    # --- for later -----------------------------------------------------------------------------------------------

    async def reserve_resources(
        self, component_name: str, resources: dict[str, Any], timeout_seconds: int
    ) -> dict[str, Any]:
        ask = read_ask(component_name, resources)
        asks.demand_offered(ask)
        return (await self._keep(ask, timeout_seconds)).shape

    async def release_reservation(self, group_id: str) -> bool:
        found = await self._looking.find(group_id)
        if found.job is not None or found.state in (ALLOCATED, FAILED, FREE):
            raise GroupStateError(f"compute group {group_id} is {found.state}, and not reserved")
        await self._let_go(group_id)
        return True

    # --- pools -----------------------------------------------------------------------------------------------------

    async def put_pool(self, name: str, pool: dict[str, Any]) -> dict[str, Any]:
        entry = EntryPut(spec=pool)
        await self._calls(Client.put_entry, "pools", name, entry)
        return shapes.pool(await self._calls(Client.pool, name))

    async def delete_pool(self, name: str) -> bool:
        return (await self._calls(Client.delete_entry, "pools", name)).changed

    # --- changes ---------------------------------------------------------------------------------------------------

    def watch_resources(self) -> AsyncIterator[dict[str, Any]]:
        return watching.changes(self._calls, self._clock, self._everything, self._changed)

    async def _everything(self) -> list[dict[str, Any]]:
        return [found.shape for found in await self._looking.groups()]

    async def _changed(self, change: Change) -> dict[str, Any] | None:
        if change.kind == "reservation":
            return (await self._looking.find(change.name)).shape
        job = await self._calls(Client.job, int(change.name))
        if not shapes.is_group(job):
            return None
        await self._looking.know_devices([job])
        return self._looking.of_job(job, None).shape


def place_of(where: str) -> Place:
    """Raises InputError."""
    scheme, _, rest = where.partition(":")
    if scheme in ("", "up"):
        return Place(state=Path(rest).expanduser().absolute()) if rest else find_place()
    return find_place(api=where)
