"""Compute groups on this machine, without daemons: what it has, and what keeps groups apart on it.

provider    LocalComputeResourceProvider: what is shared by planners, and taken back from dead ones
machine     what there is: GPUs, cores, memory, how they are and how they are used
isolation   the environment of a group's processes; processes: which those are
instances   MIG instances, mps: MPS servers: made for parts of GPUs, and removed
"""

from lavalite.groups.local.provider import LocalComputeResourceProvider as LocalComputeResourceProvider
