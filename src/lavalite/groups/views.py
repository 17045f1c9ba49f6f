"""ComputeGroup and ComputeNode, as the seed names their properties: each a picture of the moment it was asked for.

Amounts are integers, units last: `cpu_milli`, `memory_bytes`, `gpu_milli`. Utilisation is from 0 to 1, but for
temperatures, in degrees Celsius, which say so in their name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FREE, RESERVED, ALLOCATED, DRAINING, FAILED = "free", "reserved", "allocated", "draining", "failed"
STATES = (FREE, RESERVED, ALLOCATED, DRAINING, FAILED)


class ComputeGroup:
    """A logical grouping of compute resources, on one node."""

    __slots__ = ("_group",)

    def __init__(self, group: Mapping[str, Any]) -> None:
        """`group` is a GROUP of lavalite.providers.base."""
        self._group = dict(group)

    @property
    def id(self) -> str:
        """Unique identifier for this compute group."""
        return str(self._group["id"])

    @property
    def node_id(self) -> str:
        return str(self._group["node"])

    @property
    def resources(self) -> dict[str, Any]:
        """Types and quantities; `gpus` lists its devices."""
        return dict(self._group["resources"])

    @property
    def topology(self) -> dict[str, Any]:
        """What its devices have in common: `level` is nvlink, pcie, numa or empty."""
        return dict(self._group.get("topology") or {})

    @property
    def utilization(self) -> dict[str, float]:
        """Current utilization metrics for the resources in this group."""
        return dict(self._group.get("utilization") or {})

    @property
    def allocation_state(self) -> str:
        """free, reserved, allocated, draining, or failed: a device of it has vanished or is sick."""
        return str(self._group["state"])

    @property
    def component(self) -> str | None:
        """Component currently using this compute group, if any."""
        return self._group.get("component") or None

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this group and nothing else, as CUDA_VISIBLE_DEVICES."""
        return dict(self._group.get("environment") or {})

    @property
    def pool(self) -> str:
        return str(self._group.get("pool") or "")

    @property
    def expires_at(self) -> float | None:
        """When a reservation runs out; seconds since the Unix epoch."""
        found = self._group.get("expires_at")
        return None if found is None else float(found)

    @property
    def reason(self) -> str:
        """Why it is as it is, where that is no matter of course."""
        return str(self._group.get("reason") or "")

    def __repr__(self) -> str:
        of = f" of {self.component}" if self.component else ""
        return f"<ComputeGroup {self.id} on {self.node_id}: {self.allocation_state}{of}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComputeGroup) and self._group == other._group

    def __hash__(self) -> int:
        return hash(self.id)


class ComputeNode:
    """A physical or virtual machine with compute resources."""

    __slots__ = ("_groups", "_node")

    def __init__(self, node: Mapping[str, Any], groups: list[ComputeGroup]) -> None:
        """`node` is a NODE of lavalite.providers.base, `groups` are those on it."""
        self._node, self._groups = dict(node), list(groups)

    @property
    def id(self) -> str:
        """Unique identifier for this compute node."""
        return str(self._node["id"])

    @property
    def compute_groups(self) -> list[ComputeGroup]:
        """Compute groups on this node."""
        return list(self._groups)

    @property
    def resources(self) -> dict[str, Any]:
        """Total resources of this node; `gpus` lists its devices."""
        return {**self._node["resources"], "gpus": list(self._node.get("gpus") or [])}

    @property
    def free(self) -> dict[str, int]:
        """What no group holds."""
        return dict(self._node["free"])

    @property
    def utilization(self) -> dict[str, float]:
        """Current utilization metrics for this node."""
        return dict(self._node.get("utilization") or {})

    @property
    def labels(self) -> dict[str, list[str]]:
        return dict(self._node.get("labels") or {})

    @property
    def state(self) -> str:
        """`ready`, or why nothing new is placed there."""
        return str(self._node.get("state") or "ready")

    def __repr__(self) -> str:
        return f"<ComputeNode {self.id}: {len(self._groups)} groups>"
