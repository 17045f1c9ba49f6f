"""ComputeGroups on Kubernetes: the ledger in objects of the cluster, groups as pods, deployments and claims.

ledger      GroupLedger, with a head that is swapped by its resourceVersion and says what is to be written
storage     its records as objects: of our own kind where the cluster has it, else ConfigMaps
workloads   what a group is made of, as objects (pure)
provider    KubernetesComputeResourceProvider
"""

from lavalite.groups.kubernetes.provider import KubernetesComputeResourceProvider

__all__ = ["KubernetesComputeResourceProvider"]
