"""Compute groups of a running LavaLite, one machine or many, by /v1.

There is no second scheduler and no second supervisor here: a group of a component is a job of one task, whose
commitment is what it holds; a group that was created, or is reserved, is a reservation on one node, and who takes it
is a job in that. So quotas, priorities, preemption and `lavalite explain` are for groups as they are for jobs, and a
component's process is started, restarted, drained and ended by the agents.

    ask      what is asked for → the job, or the reservation, that gets it
    shapes   what /v1 answers → NODE, GROUP, pool (lavalite.providers.base)
    calls    the synchronous client in threads of our own
    placing  a job that is submitted → it has its place, or it is gone and why
    watching changes as they happen
"""

from lavalite.groups.cluster.provider import ClusterComputeResourceProvider

__all__ = ["ClusterComputeResourceProvider"]
