"""ComputeResourceProvider: the one door for capacity.

A provider holds the truth: it answers what there is, and gives it out, each time all or nothing. The four abstract
methods are enough to write one. The others have a default here, in terms of those, or say that they are not offered.

Shapes (all amounts are integers, units last):

    NODE      {"id", "resources": {"cpu_milli", "memory_bytes", "gpu_milli", …}, "free": {the same},
               "gpus": [GPU], "labels": {name: [value]}, "utilization": {name: float}, "state": "ready" or why not}
    GPU       {"id", "model", "memory_bytes", "numa_node", "pci_address", "attributes": {name: text},
               "free_milli": int, "health": "ok" or a sentence, "utilization": {name: float}}
    GROUP     {"id", "node", "resources": {"cpu_milli", …, "gpus": [GPU as far as known]}, "topology": {…},
               "utilization": {name: float}, "state": free|reserved|allocated|draining|failed,
               "component": str or None, "pool", "expires_at", "environment": {name: text},
               "reason", "busy": bool}
              `busy`: whether any process is known to use it.
    RESOURCES what is asked for: requirements as lavalite.groups.requirements reads them, and beside them, if
               wanted, "constraints": {…} and "run": {"command": [...], "environment": {…}, "drain_seconds": int}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from lavalite.base.errors import LavaLiteError, UnknownNameError


class NotOfferedError(LavaLiteError):
    """This provider cannot do that at all."""

    default_code = "not_offered"


class UnknownGroupError(UnknownNameError):
    default_code = "unknown_group"

    def __init__(self, group_id: str) -> None:
        hint = "It may have been deallocated or deleted meanwhile; list_compute_groups() says what there is."
        super().__init__(f"there is no compute group {group_id[:80]!r}", hint=hint)


class ComputeResourceProvider(ABC):
    """See the module's docstring. All methods raise LavaLiteErrors; then nothing has changed."""

    name = "a provider"
    runs_components = False
    """Whether `run` in RESOURCES is carried out: else the caller starts its processes itself."""

    async def __aenter__(self) -> ComputeResourceProvider:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of connections and files. What is allocated stays so."""
        return None

    # --- the seed's four ----------------------------------------------------------------------------------------

    @abstractmethod
    async def discover_resources(self) -> dict[str, Any]:
        """Look anew at what there is: {"nodes": [NODE]}."""

    @abstractmethod
    async def allocate_resources(self, component_name: str, resources: dict[str, Any]) -> dict[str, Any]:
        """A GROUP for the component; without a name one that is free, for later. All of it or nothing."""

    @abstractmethod
    async def deallocate_resources(self, component_name: str, resource_ids: list[str]) -> bool:
        """Take these groups from the component, all or none. Without a name, delete groups that are free."""

    @abstractmethod
    async def get_resource_state(self) -> dict[str, Any]:
        """{"nodes": [NODE], "groups": [GROUP], "pools": [{"name", "quota", "used", …}]}, all as of one moment."""

    # --- what may be had more cheaply than from all of it ---------------------------------------------------------

    async def get_group(self, group_id: str) -> dict[str, Any]:
        """Raises UnknownGroupError."""
        for group in (await self.get_resource_state())["groups"]:
            if group["id"] == group_id:
                found: dict[str, Any] = group
                return found
        raise UnknownGroupError(group_id)

    async def get_groups(self, component_name: str) -> list[dict[str, Any]]:
        groups = (await self.get_resource_state())["groups"]
        return [group for group in groups if group["component"] == component_name]

    # --- what not every provider offers -----------------------------------------------------------------------------

    async def drain_resources(self, resource_ids: list[str]) -> bool:
        """No new allocation of these groups; what runs in them is asked to end."""
        raise self._not_offered("drains groups")

    async def resume_resources(self, resource_ids: list[str]) -> bool:
        """The groups are no more draining."""
        raise self._not_offered("takes groups up again")

    async def reserve_resources(
        self, component_name: str, resources: dict[str, Any], timeout_seconds: int
    ) -> dict[str, Any]:
        """A GROUP in state reserved, for the component, or for whoever names it; free again after the time-out."""
        raise self._not_offered("reserves groups")

    async def release_reservation(self, group_id: str) -> bool:
        raise self._not_offered("reserves groups")

    async def put_pool(self, name: str, pool: dict[str, Any]) -> dict[str, Any]:
        """Make or change a pool, in the words of pools.yml; the pool as it is then."""
        raise self._not_offered("lets pools be changed by this API")

    async def delete_pool(self, name: str) -> bool:
        raise self._not_offered("lets pools be changed by this API")

    def watch_resources(self) -> AsyncIterator[dict[str, Any]]:
        """{"kind": group|node|pool, "id", "state", "group": GROUP or None} for each change from now on."""
        raise self._not_offered("tells of changes")

    def _not_offered(self, what: str) -> NotOfferedError:
        return NotOfferedError(f"{self.name} is no provider that {what}")
