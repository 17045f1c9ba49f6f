"""Where groups are: one line of text, so that the caller's code is the same everywhere."""

from __future__ import annotations

import os
from pathlib import Path

from lavalite.base.errors import InputError
from lavalite.groups.manager import ComputeGroupManager

ENVIRONMENT = "LAVALITE_GROUPS"
_HINT = "Write local:PATH, https://HOST:PORT, unix:SOCKET, or kubernetes:NAMESPACE."


async def connect(where: str = "") -> ComputeGroupManager:
    """A manager over the provider that `where`, or else LAVALITE_GROUPS, names; this machine if neither does.

        local:[PATH]             this machine, without daemons; state in the file PATH
        https://HOST:PORT[,…]    a running system, with LAVALITE_TOKEN; or unix:SOCKET; or up: as `lavalite` finds it
        kubernetes:[NAMESPACE]   the cluster of the kubeconfig, or of the pod that we are in

    Close it, or use it by `async with`. Raises InputError, UnreachableError.
    """
    where = where or os.environ.get(ENVIRONMENT, "") or "local:"
    scheme, _, rest = where.partition(":")
    if scheme == "local":
        from lavalite.groups.local import LocalComputeResourceProvider

        return ComputeGroupManager(await LocalComputeResourceProvider.open(Path(rest) if rest else None))
    if scheme in ("http", "https", "unix", "up"):
        from lavalite.groups.cluster import ClusterComputeResourceProvider

        return ComputeGroupManager(await ClusterComputeResourceProvider.open(where))
    if scheme == "kubernetes":
        from lavalite.groups.kubernetes import KubernetesComputeResourceProvider

        return ComputeGroupManager(await KubernetesComputeResourceProvider.open(namespace=rest))
    raise InputError(f"{where[:80]!r} is nowhere that groups could be", field="where", hint=_HINT)
