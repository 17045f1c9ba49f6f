"""ComputeGroupManager: the seed's methods, over any provider. It checks what is asked, and answers with views.

It holds no state but which components have registered: the provider's state is the truth, and is asked each time.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from lavalite.base.clock import Clock, SystemClock
from lavalite.base.errors import InputError, LavaLiteError
from lavalite.groups.components import Component, Components
from lavalite.groups.errors import GroupStateError, UnknownGroupError
from lavalite.groups.filters import passes, read_filters
from lavalite.groups.requirements import read_ask
from lavalite.groups.views import ALLOCATED, DRAINING, FAILED, RESERVED, STATES, ComputeGroup, ComputeNode
from lavalite.providers.base import ComputeResourceProvider

POLL_FIRST_SECONDS, POLL_MOST_SECONDS = 0.02, 1.0
RESERVE_SECONDS = 300
NOBODY = " "
"""Where a component must be named: no name that anything can have."""


class ComputeGroupManager:
    """Manages compute groups across the system. Methods raise what lavalite.groups.errors lists."""

    def __init__(self, provider: ComputeResourceProvider, *, clock: Clock | None = None) -> None:
        self.provider = provider
        self._clock = clock or SystemClock()
        self._components = Components()

    async def __aenter__(self) -> ComputeGroupManager:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """What is allocated stays so."""
        await self.provider.close()

    # --- what there is ------------------------------------------------------------------------------------------

    async def list_compute_nodes(self) -> list[ComputeNode]:
        """List all compute nodes in the system."""
        await self.provider.discover_resources()
        state = await self.provider.get_resource_state()
        by_node: dict[str, list[ComputeGroup]] = {}
        for group in state["groups"]:
            by_node.setdefault(group["node"], []).append(ComputeGroup(group))
        return [ComputeNode(node, by_node.get(node["id"], [])) for node in state["nodes"]]

    async def list_compute_groups(self, filters: dict[str, Any] | None = None) -> list[ComputeGroup]:
        """List compute groups, optionally filtered by criteria: lavalite.groups.filters says which."""
        wanted = read_filters({} if filters is None else filters)
        if set(wanted) == {"component"} and wanted["component"]:
            return await self.get_component_allocations(wanted["component"])
        groups = (await self.provider.get_resource_state())["groups"]
        return [ComputeGroup(group) for group in groups if passes(group, wanted)]

    async def get_compute_group(self, group_id: str) -> ComputeGroup:
        """Get a specific compute group by ID."""
        return ComputeGroup(await self.provider.get_group(_id(group_id)))

    async def get_component_allocations(self, component_name: str) -> list[ComputeGroup]:
        """Get all compute groups allocated to a specific component."""
        groups = await self.provider.get_groups(component_name)
        return [ComputeGroup(group) for group in groups if group["state"] != RESERVED]

    async def get_allocation_summary(self) -> dict[str, Any]:
        """Get a summary of current resource allocations.

        {"nodes": int, "groups": {state: int}, "components": {name: {"groups": int, "cpu_milli": int, …}},
         "resources": {"cpu_milli": {"capacity": int, "free": int}, …}, "pools": [{…}]}
        """
        state = await self.provider.get_resource_state()
        resources: dict[str, dict[str, int]] = {}
        for node in state["nodes"]:
            for name, amount in node["resources"].items():
                line = resources.setdefault(name, {"capacity": 0, "free": 0})
                line["capacity"] += amount
                line["free"] += node["free"].get(name, 0)
        components: dict[str, dict[str, int]] = {}
        for group in state["groups"]:
            if group["component"] and group["state"] != RESERVED:
                line = components.setdefault(group["component"], {"groups": 0})
                line["groups"] += 1
                for name, amount in group["resources"].items():
                    if isinstance(amount, int):
                        line[name] = line.get(name, 0) + amount
        states = [group["state"] for group in state["groups"]]
        return {
            "nodes": len(state["nodes"]),
            "groups": {each: states.count(each) for each in STATES},
            "components": components,
            "resources": resources,
            "pools": list(state.get("pools") or []),
        }

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        """Changes as they happen, until the caller stops asking: {"kind", "id", "state", "group"}."""
        async for change in self.provider.watch_resources():
            group = change.get("group")
            yield {**change, "group": ComputeGroup(group) if group else None}

    # --- groups -------------------------------------------------------------------------------------------------

    async def create_compute_group(self, resources: dict[str, Any], node_id: str | None = None) -> ComputeGroup:
        """Create a new compute group with specified resources: they are set aside until it is deleted."""
        _demand_mapping(resources, "resources")
        asked = {**resources, "constraints": {"node": node_id}} if node_id else dict(resources)
        if "run" in resources or (node_id and "constraints" in resources):
            raise InputError("resources are amounts; say where by node_id", field="resources")
        read_ask("", asked)
        return ComputeGroup(await self.provider.allocate_resources("", asked))

    async def delete_compute_group(self, group_id: str) -> bool:
        """Delete a compute group that is nobody's: what it held is free for others."""
        return await self.provider.deallocate_resources("", [_id(group_id)])

    async def allocate_compute_group(
        self,
        component_name: str,
        resource_requirements: dict[str, Any],
        constraints: dict[str, Any] | None = None,
    ) -> ComputeGroup:
        """Allocate a compute group to a component with specific requirements.

        A free group that has what is asked for, if there is one, else new room; all of it or nothing. A component
        that registered a command is started in it, where the provider runs components.
        """
        asked = self._asked(component_name or NOBODY, resource_requirements, constraints)
        component = self._components.of(component_name)
        if component is not None and component.run and self.provider.runs_components:
            asked["run"] = dict(component.run)
        return ComputeGroup(await self.provider.allocate_resources(component_name, asked))

    async def deallocate_compute_group(self, group_id: str) -> bool:
        """Deallocate a compute group, making it available for reallocation.

        One that was created is free then; of one that was made by its allocation, what it held is.
        """
        group = await self.provider.get_group(_id(group_id))
        if group["state"] not in (ALLOCATED, DRAINING, FAILED) or not group["component"]:
            raise GroupStateError(f"compute group {group_id} is {group['state']}: no component has it")
        return await self.provider.deallocate_resources(group["component"], [group_id])

    async def drain_compute_group(self, group_id: str) -> bool:
        """Mark a compute group as draining, preventing new allocations; what runs in it is asked to end."""
        return await self.provider.drain_resources([_id(group_id)])

    async def resume_compute_group(self, group_id: str) -> bool:
        """A group that is draining may be allocated again, or is its component's as before."""
        return await self.provider.resume_resources([_id(group_id)])

    # --- for later ------------------------------------------------------------------------------------------------

    async def reserve(
        self,
        component_name: str,
        resource_requirements: dict[str, Any],
        constraints: dict[str, Any] | None = None,
        *,
        timeout_seconds: int = RESERVE_SECONDS,
    ) -> ComputeGroup:
        """Keep a group for a component, which takes it by `constraints={"group": id}`, or by asking for the same.

        Unused for so long it is free again. Without a component's name whoever names the group may take it.
        """
        asked = self._asked(component_name, resource_requirements, constraints)
        if type(timeout_seconds) is not int or not 1 <= timeout_seconds <= 366 * 86400:
            raise InputError("it is a number of seconds, at least 1", field="timeout_seconds")
        return ComputeGroup(await self.provider.reserve_resources(component_name, asked, timeout_seconds))

    async def release_reservation(self, group_id: str) -> bool:
        return await self.provider.release_reservation(_id(group_id))

    # --- pools ----------------------------------------------------------------------------------------------------

    async def put_pool(self, name: str, pool: dict[str, Any]) -> dict[str, Any]:
        """Make or change a pool, in the words of pools.yml: `nodes`, `kinds`, `quota`, `priority`."""
        _demand_mapping(pool, "pool")
        return await self.provider.put_pool(name, dict(pool))

    async def delete_pool(self, name: str) -> bool:
        return await self.provider.delete_pool(name)

    # --- components -------------------------------------------------------------------------------------------------

    async def register_component(
        self,
        component_name: str,
        resource_requirements: dict[str, Any],
        constraints: dict[str, Any] | None = None,
        *,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        drain_seconds: int = 30,
        image: str = "",
    ) -> Component:
        """What each group of the component needs, and what runs in it. With this planner, until it ends.

        `image` is of the container, where components run in such (Kubernetes).
        """
        _demand_mapping(resource_requirements, "resource_requirements")
        _demand_mapping({} if constraints is None else constraints, "constraints")
        return self._components.register(
            component_name, resource_requirements, constraints, command, environment, drain_seconds, image
        )

    async def scale_component(self, component_name: str, replicas: int) -> list[ComputeGroup]:
        """So many groups of the component, as it registered. Failed ones count: they may come back by themselves.

        Growing is all or nothing. Shrinking drains failed ones first, then those that came last, and gives them back
        once nothing runs in them, or after the component's `drain_seconds`.
        """
        component = self._components.known(component_name)
        if type(replicas) is not int or replicas < 0:
            raise InputError("it is a number of groups, 0 or more", field="replicas")
        found = await self.get_component_allocations(component_name)
        groups = [group for group in found if group.allocation_state == ALLOCATED]
        groups += [group for group in found if group.allocation_state == FAILED]
        if len(groups) > replicas:
            await self._shrink(component, groups[replicas:])
            return groups[:replicas]
        made: list[ComputeGroup] = []
        try:
            while len(groups) + len(made) < replicas:
                asked = component.resources(with_run=self.provider.runs_components)
                made.append(ComputeGroup(await self.provider.allocate_resources(component_name, asked)))
        except BaseException:
            for group in made:
                with contextlib.suppress(LavaLiteError):  # one may have ended by itself; the others go all the same
                    await self.provider.deallocate_resources(component_name, [group.id])
            raise
        return groups + made

    async def _shrink(self, component: Component, leaving: Sequence[ComputeGroup]) -> None:
        await self.provider.drain_resources([group.id for group in leaving])
        deadline = self._clock.monotonic() + component.drain_seconds
        left, pause_seconds = [group.id for group in leaving], POLL_FIRST_SECONDS
        while left and self._clock.monotonic() < deadline:
            left = [group_id for group_id in left if await self._busy(group_id)]
            if left:
                await self._clock.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, POLL_MOST_SECONDS)
        for group in leaving:
            try:
                await self.provider.deallocate_resources(component.name, [group.id])
            except UnknownGroupError:
                continue  # it ended by itself, and all that it held is free

    async def _busy(self, group_id: str) -> bool:
        try:
            return bool((await self.provider.get_group(group_id)).get("busy"))
        except UnknownGroupError:
            return False

    @staticmethod
    def _asked(
        component_name: str, requirements: dict[str, Any], constraints: dict[str, Any] | None
    ) -> dict[str, Any]:
        _demand_mapping(requirements, "resource_requirements")
        if taken := sorted({"constraints", "run"} & set(requirements)):
            raise InputError("there is no such key", field=f"requirements.{taken[0]}")
        asked = {**requirements, **({"constraints": constraints} if constraints else {})}
        read_ask(component_name, asked)
        return asked


def _id(group_id: str) -> str:
    if not isinstance(group_id, str) or not group_id:
        raise InputError("it is the id of a group, as groups answer with", field="group_id")
    return group_id


def _demand_mapping(value: object, field: str) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"a mapping is wanted, not a {type(value).__name__}", field=field)
