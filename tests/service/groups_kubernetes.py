"""The contract on Kubernetes: a played API server, with the rights of the manifest and no more.

One node has four GPUs that DRA names, another two that a device plugin counts; they have other models.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml
from groups_on import MODEL, MakeManager
from kube_api import KubeApi, kubeconfig, running_api

from lavalite.groups import ComputeGroupManager, KubernetesComputeResourceProvider
from lavalite.groups.kubernetes.objects import Deadlines

Json = dict[str, Any]
NAMESPACE = "planner"
MANIFESTS = Path(__file__).parents[2] / "docs/examples/kubernetes"


def rules() -> list[Json]:
    """Of the manifest, each with the namespace that it is for, None of the ClusterRole."""
    found = []
    for document in yaml.safe_load_all((MANIFESTS / "rbac.yaml").read_text()):
        if document["kind"] in ("Role", "ClusterRole"):
            where = NAMESPACE if document["kind"] == "Role" else None
            found += [rule | {"namespace": where} for rule in document["rules"]]
    return found


def node(name: str, **allocatable: str) -> Json:
    amounts = {"cpu": "8", "memory": "16Gi", "ephemeral-storage": "100Gi", "pods": "110"}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "allocatable": amounts | allocatable,
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"bootID": f"boot-{name}"},
        },
    }


def gpu_slice(name: str, count: int, model: str = MODEL) -> Json:
    devices = [
        {
            "name": f"gpu-{number}",
            "attributes": {
                "type": {"string": "gpu"},
                "uuid": {"string": f"GPU-{name}-{number}"},
                "productName": {"string": model},
                "resource.kubernetes.io/pcieRoot": {"string": f"pci0000:{number // 2:02x}"},
            },
            "capacity": {"memory": {"value": "80Gi"}},
        }
        for number in range(count)
    ]
    pool = {"name": name, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": "gpu.nvidia.com", "nodeName": name, "pool": pool, "devices": devices}
    return {"metadata": {"name": f"{name}-gpu.nvidia.com"}, "spec": spec}


def furnish(api: KubeApi) -> None:
    """What the contract wants."""
    api.put("", "nodes", node("named"))
    api.put("resource.k8s.io", "resourceslices", gpu_slice("named", 4))


async def provider_on(api: KubeApi, folder: Path, **options: Any) -> KubernetesComputeResourceProvider:
    options.setdefault("deadlines", Deadlines(answer=5, schedule=5, end=5))
    return await KubernetesComputeResourceProvider.open(kubeconfig=kubeconfig(api, folder, NAMESPACE), **options)


@contextlib.asynccontextmanager
async def environment(tmp_path: Path) -> AsyncIterator[MakeManager]:
    async with running_api(rules()) as api:
        furnish(api)

        async def make() -> ComputeGroupManager:
            return ComputeGroupManager(await provider_on(api, tmp_path))

        yield make
