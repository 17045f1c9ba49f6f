"""ComputeGroups: one API for planners, over this machine, a LavaLite cluster, or a Kubernetes cluster.

    what a planner calls   manager (the seed's ComputeGroupManager), views (ComputeGroup, ComputeNode), errors,
                           requirements (what may be asked for), filters, components (who registered), connect
    what decides           engine/ (pure: what is free, what fits, quotas, reservations, who waits)
    where it is kept       ledger (the contract), store_ledger (SQLite, several processes without a leader), records
    providers              embedded/ (over a ledger and the engine), local/ (this machine) and kubernetes/ by that;
                           cluster/ (a running system, by /v1)

The class ComputeResourceProvider is in lavalite.providers.base.
"""

from lavalite.groups.connect import connect
from lavalite.groups.errors import (
    ConflictingAllocationError,
    GroupStateError,
    InsufficientResourcesError,
    ReservationError,
    UnknownGroupError,
)
from lavalite.groups.manager import ComputeGroupManager
from lavalite.groups.views import ComputeGroup, ComputeNode
from lavalite.providers.base import ComputeResourceProvider, NotOfferedError

__all__ = [
    "ClusterComputeResourceProvider",
    "ComputeGroup",
    "ComputeGroupManager",
    "ComputeNode",
    "ComputeResourceProvider",
    "ConflictingAllocationError",
    "GroupStateError",
    "InsufficientResourcesError",
    "KubernetesComputeResourceProvider",
    "LocalComputeResourceProvider",
    "NotOfferedError",
    "ReservationError",
    "UnknownGroupError",
    "connect",
]


def __getattr__(name: str) -> object:
    # Each brings libraries of its own, which who uses another one need not have.
    if name == "LocalComputeResourceProvider":
        from lavalite.groups.local import LocalComputeResourceProvider

        return LocalComputeResourceProvider
    if name == "ClusterComputeResourceProvider":
        from lavalite.groups.cluster import ClusterComputeResourceProvider

        return ClusterComputeResourceProvider
    if name == "KubernetesComputeResourceProvider":
        from lavalite.groups.kubernetes import KubernetesComputeResourceProvider

        return KubernetesComputeResourceProvider
    raise AttributeError(f"module {__name__} has no attribute {name}")
