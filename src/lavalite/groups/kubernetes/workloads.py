"""What a group is made of, as objects of a cluster. Pure.

A group whose component runs something is a deployment of one pod: to start it anew is Kubernetes' task. Any other is
a pod that only holds what the group has, so that nobody else is given it. Both go to the group's node and no other.
GPUs that have names are asked for by a claim that says which; a part of one by a claim that its groups share.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavalite.groups.records import GroupRecord
from lavalite.model import resources as model
from lavalite.model.resources import WHOLE, Device
from lavalite.providers.base import NotOfferedError
from lavalite.providers.kubernetes.devices import DRIVER, NUMBERED

Json = dict[str, Any]
GROUP, COMPONENT, ROLE = "lavalite.io/group", "lavalite.io/component", "lavalite.io/role"
"""Labels. The role is `component`, or `hold` of a pod in which nothing runs."""
ID, MADE, PRIORITY = "lavalite.io/id", "lavalite.io/made", "lavalite.io/priority"
"""Annotations: the group's id; a sum of what the object was made from; the group's priority."""
MANAGED: dict[str, str | None] = {"app.kubernetes.io/managed-by": "lavalite"}
REQUESTS = {model.CPU: "cpu", model.MEMORY: "memory", model.STORAGE: "ephemeral-storage"}
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?")


@dataclass(slots=True, frozen=True)
class Options:
    """What an operator may choose."""

    image: str = "busybox:stable"
    """Of components that name none."""
    hold_image: str = "registry.k8s.io/pause:3.10"
    service_account: str = ""
    priority_class: str = ""
    device_class: str = ""
    """Of claims; else the one that is called as the DRA driver of the device."""


@dataclass(slots=True, frozen=True)
class Workload:
    """`claims` are to be there before `pod` or `deployment`, of which there is one."""

    name: str
    claims: tuple[Json, ...]
    shared: tuple[Json, ...]
    """Claims that groups with parts of the same GPU have together."""
    pod: Json | None
    deployment: Json | None


def label_of(text: str) -> str:
    """What a label may be; told apart by a sum where `text` may not."""
    return text if _LABEL.fullmatch(text) else "x-" + _sum(text)


def name_of(group_id: str) -> str:
    return "lavalite-" + (group_id if _NAME.fullmatch(group_id) else "x-" + _sum(group_id))


def workload_of(record: GroupRecord, devices: Mapping[str, Device], options: Options) -> Workload:
    """`devices`: the GPUs that the group holds, by id. Raises NotOfferedError."""
    name = name_of(record.id)
    runs = bool(record.run) and bool(record.component) and record.state in ("allocated", "draining")
    labels = {**MANAGED, GROUP: label_of(record.id), ROLE: "component" if runs else "hold"}
    if record.component:
        labels[COMPONENT] = label_of(record.component)
    annotations = {ID: record.id, PRIORITY: str(record.priority)}
    whole, shared = _claims(record, devices, labels, options)
    spec = _pod_spec(record, devices, [*whole, *shared], options, runs=runs)
    annotations[MADE] = _sum(json.dumps([labels, spec, [*whole, *shared]], sort_keys=True))
    meta = {"name": name, "labels": labels, "annotations": annotations}
    if not runs:
        return Workload(
            name, whole, shared, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}, None
        )
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": 1,
            # What the old pod holds the new one needs.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {GROUP: labels[GROUP], ROLE: labels[ROLE]}},
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec},
        },
    }
    return Workload(name, whole, shared, None, deployment)


def scheduled(pods: Sequence[Json]) -> tuple[bool, str]:
    """Whether one of them has its node; else why not, as far as anybody has said."""
    why = ""
    for pod in pods:
        if pod["metadata"].get("deletionTimestamp"):
            continue
        if (pod.get("spec") or {}).get("nodeName") and not failure_of(pod):
            return True, ""
        for condition in (pod.get("status") or {}).get("conditions") or []:
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                why = condition.get("message") or condition.get("reason") or why
        why = failure_of(pod) or why
    return False, why


def failure_of(pod: Json) -> str:
    """Why a pod has failed; empty where it has not."""
    status = pod.get("status") or {}
    if status.get("phase") != "Failed":
        return ""
    said = ": ".join(filter(None, [status.get("reason"), status.get("message")]))
    return f"pod {pod['metadata']['name']} has failed{': ' + said if said else ''}"


def _pod_spec(
    record: GroupRecord, devices: Mapping[str, Device], claims: Sequence[Json], options: Options, *, runs: bool
) -> Json:
    amounts = _amounts(record, devices)
    resources: Json = {"requests": amounts, "limits": amounts}
    container: Json = {"name": "component" if runs else "hold", "image": options.hold_image}
    grace_seconds = 1  # with 0 the API server would not wait for the node to have ended it
    if runs:
        told = {"LAVALITE_GROUP": record.id, "LAVALITE_COMPONENT": record.component}
        environment = told | {name: str(value) for name, value in (record.run.get("environment") or {}).items()}
        container["image"] = record.run.get("image") or options.image
        container["command"] = list(record.run["command"])
        container["env"] = [{"name": name, "value": value} for name, value in environment.items()]
        grace_seconds = max(1, int(record.run.get("drain_seconds", 30)))
    field = {"key": "metadata.name", "operator": "In", "values": [record.node]}
    spec: Json = {
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [field]}]}
            }
        },
        "terminationGracePeriodSeconds": grace_seconds,
        "automountServiceAccountToken": bool(options.service_account),
        "enableServiceLinks": False,
    }
    if claims:
        names = [claim["metadata"]["name"] for claim in claims]
        spec["resourceClaims"] = [{"name": f"gpu-{i}", "resourceClaimName": name} for i, name in enumerate(names)]
        resources["claims"] = [{"name": f"gpu-{i}"} for i in range(len(names))]
    if options.service_account:
        spec["serviceAccountName"] = options.service_account
    if options.priority_class:
        spec["priorityClassName"] = options.priority_class
    return spec | {"containers": [container | {"resources": resources}]}


def _amounts(record: GroupRecord, devices: Mapping[str, Device]) -> dict[str, str]:
    found: dict[str, int] = {}
    for share in record.shares:
        if (resource := REQUESTS.get(share.kind)) is not None:
            found[resource] = found.get(resource, 0) + share.amount
        for device_id in share.devices if share.kind == model.GPU else ():
            if resource := devices[device_id].attributes.get(NUMBERED, ""):
                if share.amount < WHOLE * len(share.devices):
                    raise NotOfferedError(
                        f"{record.node} counts its GPUs, and so gives them out whole",
                        hint="Parts need DRA (ResourceSlices) on that node; or ask for a whole GPU, or for MIG.",
                    )
                found[resource] = found.get(resource, 0) + 1
    return {resource: f"{value}m" if resource == "cpu" else str(value) for resource, value in sorted(found.items())}


def _claims(
    record: GroupRecord, devices: Mapping[str, Device], labels: Json, options: Options
) -> tuple[tuple[Json, ...], tuple[Json, ...]]:
    whole: list[Device] = []
    parts: list[Device] = []
    for share in record.shares:
        if share.kind == model.GPU:
            named = [devices[i] for i in share.devices if devices[i].attributes.get(DRIVER)]
            (whole if share.amount == WHOLE * len(share.devices) else parts).extend(named)
    if record.isolation in ("mps", "mig") and (parts or record.mig_profile):
        raise NotOfferedError(
            f"parts of a GPU are not kept apart on {record.node}",
            hint="Ask for a MIG instance that is there (gpu.mig), or say isolation: none.",
        )
    own = [_claim(name_of(record.id), labels, whole, options)] if whole else []
    both = {**MANAGED, ROLE: "shared"}
    shared = [_claim(f"lavalite-shared-{_sum(device.id)}", both, [device], options) for device in parts]
    return tuple(own), tuple(shared)


def _claim(name: str, labels: Json, devices: Sequence[Device], options: Options) -> Json:
    requests = []
    for number, device in enumerate(devices):
        driver = device.attributes[DRIVER]
        # No expression can name a device, only what it is.
        which = f"device.driver == {json.dumps(driver)} && device.attributes[{json.dumps(driver)}].uuid == "
        exactly = {
            "deviceClassName": options.device_class or driver,
            "allocationMode": "ExactCount",
            "count": 1,
            "selectors": [{"cel": {"expression": which + json.dumps(device.id)}}],
        }
        requests.append({"name": f"gpu-{number}", "exactly": exactly})
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "labels": labels},
        "spec": {"devices": {"requests": requests}},
    }


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
