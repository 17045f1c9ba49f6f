"""What acts behind the API server of kube_api: a scheduler, a kubelet, a DRA driver, the controllers of deployments.

Pods go from Pending to Running where they fit their node, and end after `end_seconds`, but for those that `hold_ends`
keeps. A claim gets the device whose uuid it names. An eviction asks the budgets.
"""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from lightkube.utils.quantity import parse_quantity

if TYPE_CHECKING:
    from kube_api import Key

Json = dict[str, Any]
UUID = re.compile(r'\.uuid == "([^"]+)"')


class Played:
    objects: dict[Any, Json]
    write: Callable[..., Json]

    def start_playing(self) -> None:
        self.end_seconds = 0.01
        self.hold_ends = False
        self.paused = False
        """Nobody schedules or runs anything."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._ending: set[str] = set()
        self._made = 0

    async def stop_playing(self) -> None:
        self.paused = True
        for timer in self._timers:
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def later(self, seconds: float, what: Callable[[], Any]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            what()

        timer = asyncio.get_running_loop().call_later(seconds, run)
        self._timers.add(timer)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def all_of(self, plural: str) -> list[tuple[Key, Json]]:
        return [(key, obj) for key, obj in self.objects.items() if key.plural == plural]

    # --- the turn -----------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """One step towards what is asked for; each write brings the next."""
        if self.paused:
            return
        for key, deployment in self.all_of("deployments"):
            self._replicate(key, deployment)
        for key, pod in self.all_of("pods"):
            self._step(key, pod)

    def _replicate(self, key: Key, deployment: Json) -> None:
        pods = [
            (k, p)
            for k, p in self.all_of("pods")
            if (p["metadata"].get("ownerReferences") or [{}])[0].get("uid") == deployment["metadata"]["uid"]
            and "deletionTimestamp" not in p["metadata"]
            and (p.get("status") or {}).get("phase") not in ("Failed", "Succeeded")
        ]
        wanted = deployment["spec"].get("replicas", 1)
        for pod_key, _ in pods[wanted:]:
            self.delete(pod_key)
        if len(pods) < wanted:
            self._made += 1
            template = copy.deepcopy(deployment["spec"]["template"])
            owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": key.name, "controller": True}
            name = f"{key.name}-{self._made:05d}"
            meta = template["metadata"] | {"name": name}
            meta["ownerReferences"] = [owner | {"uid": deployment["metadata"]["uid"]}]
            pod_key = key._replace(group="", plural="pods", name=name)
            self.write(pod_key, {"metadata": meta, "spec": template["spec"]}, "ADDED")

    def _step(self, key: Key, pod: Json) -> None:
        status = pod.get("status") or {}
        if "deletionTimestamp" in pod["metadata"]:
            if not self.hold_ends and pod["metadata"]["uid"] not in self._ending:
                self._ending.add(pod["metadata"]["uid"])
                self.later(self.end_seconds, lambda: self._remove(key))
        elif not status:
            self._condition(key, pod, phase="Pending")
        elif status["phase"] == "Pending" and not pod["spec"].get("nodeName"):
            if why := self._bind(key, pod):
                told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
                if told not in status.get("conditions", []):
                    self._condition(key, pod, conditions=[told])
        elif status["phase"] == "Pending":
            ready = {"type": "Ready", "status": "True"}
            self._condition(key, pod, phase="Running", conditions=[*status.get("conditions", []), ready])

    def _condition(self, key: Key, pod: Json, **status: Any) -> None:
        pod = copy.deepcopy(pod)
        pod["status"] = (pod.get("status") or {}) | status
        self.write(key, pod, "MODIFIED")

    # --- the scheduler ------------------------------------------------------------------------------------------

    def _bind(self, key: Key, pod: Json) -> str:
        """Onto the node that it asks for, or why not."""
        terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (name,) = terms["nodeSelectorTerms"][0]["matchFields"][0]["values"]
        node = next((obj for _, obj in self.all_of("nodes") if obj["metadata"]["name"] == name), None)
        if node is None:
            return f"0/1 nodes are available: node {name} not found"
        if node["spec"].get("unschedulable"):
            return "0/1 nodes are available: 1 node(s) were unschedulable"
        for resource, amount in node["status"]["allocatable"].items():
            used = sum(
                _requests(each, resource)
                for _, each in self.all_of("pods")
                if each["spec"].get("nodeName") == name
                and (each.get("status") or {}).get("phase") not in ("Failed", "Succeeded")
            )
            if used + _requests(pod, resource) > (parse_quantity(amount) or 0):
                return f"0/1 nodes are available: 1 Insufficient {resource}"
        if why := self._claim(key, pod, name):
            return why
        pod = copy.deepcopy(pod)
        pod["spec"]["nodeName"] = name
        pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
        self.write(key, pod, "MODIFIED")
        return ""

    def _claim(self, key: Key, pod: Json, node: str) -> str:
        devices = {
            device["attributes"]["uuid"]["string"]: (each["spec"]["driver"], each["spec"]["pool"]["name"], device)
            for _, each in self.all_of("resourceslices")
            if each["spec"].get("nodeName") == node
            for device in each["spec"]["devices"]
            if "uuid" in device.get("attributes", {})
        }
        for asked in pod["spec"].get("resourceClaims") or []:
            claim_key = key._replace(
                group="resource.k8s.io", plural="resourceclaims", name=asked["resourceClaimName"]
            )
            claim = copy.deepcopy(self.objects.get(claim_key))
            if claim is None:
                return f'resourceclaim "{claim_key.name}" not found'
            status = claim.setdefault("status", {})
            if "allocation" not in status:
                results = []
                for request in claim["spec"]["devices"]["requests"]:
                    found = UUID.search(request["exactly"]["selectors"][0]["cel"]["expression"])
                    if found is None or found[1] not in devices:
                        return "cannot allocate all claims"
                    driver, pool, device = devices[found[1]]
                    result = {"request": request["name"], "driver": driver, "pool": pool, "device": device["name"]}
                    results.append(result)
                if any(r["device"] in self._claimed(claim_key) for r in results):
                    return "cannot allocate all claims"
                status["allocation"] = {"devices": {"results": results}}
            consumer = {"resource": "pods", "name": key.name, "uid": pod["metadata"]["uid"]}
            status["reservedFor"] = [*(status.get("reservedFor") or []), consumer]
            self.write(claim_key, claim, "MODIFIED")
        return ""

    def _claimed(self, but: Key) -> set[str]:
        return {
            result["device"]
            for key, claim in self.all_of("resourceclaims")
            if key != but and (claim.get("status") or {}).get("allocation")
            for result in claim["status"]["allocation"]["devices"]["results"]
        }

    # --- ends ---------------------------------------------------------------------------------------------------

    def delete(self, key: Key, grace: int | None = None) -> Json:
        obj = copy.deepcopy(self.objects[key])
        if key.plural != "pods":
            self.write(key, obj, "DELETED")
            if key.plural == "deployments":
                for pod_key, pod in self.all_of("pods"):
                    owner = (pod["metadata"].get("ownerReferences") or [{}])[0]
                    if owner.get("uid") == obj["metadata"]["uid"]:
                        self.delete(pod_key)
            return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        if grace == 0:
            self._remove(key)
        elif "deletionTimestamp" not in obj["metadata"]:
            obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z"
            self.write(key, obj, "MODIFIED")
        return obj

    def _remove(self, key: Key) -> None:
        if (pod := self.objects.get(key)) is None:
            return
        for asked in pod["spec"].get("resourceClaims") or []:
            claim_key = key._replace(
                group="resource.k8s.io", plural="resourceclaims", name=asked["resourceClaimName"]
            )
            if (claim := copy.deepcopy(self.objects.get(claim_key))) is not None:
                status = claim.setdefault("status", {})
                left = [c for c in status.get("reservedFor", []) if c["uid"] != pod["metadata"]["uid"]]
                status["reservedFor"] = left
                if not left:
                    status.pop("allocation", None)
                self.write(claim_key, claim, "MODIFIED")
        self.write(key, copy.deepcopy(pod), "DELETED")

    def evict(self, key: Key, body: Json) -> Json:
        from kube_api import Refused

        if key not in self.objects:
            raise Refused(404, f'pods "{key.name}" not found')
        labels = self.objects[key]["metadata"].get("labels") or {}
        for budget_key, budget in self.all_of("poddisruptionbudgets"):
            wanted = budget["spec"]["selector"]["matchLabels"]
            if budget_key.namespace != key.namespace or not wanted.items() <= labels.items():
                continue
            healthy = [
                pod
                for _, pod in self.all_of("pods")
                if wanted.items() <= (pod["metadata"].get("labels") or {}).items()
                and (pod.get("status") or {}).get("phase") == "Running"
                and "deletionTimestamp" not in pod["metadata"]
            ]
            if len(healthy) - 1 < budget["spec"]["minAvailable"]:
                raise Refused(429, "Cannot evict pod as it would violate the pod's disruption budget.")
        self.delete(key)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}

    def fail_pod(self, key: Key, reason: str, message: str) -> None:
        pod = copy.deepcopy(self.objects[key])
        pod["status"] |= {"phase": "Failed", "reason": reason, "message": message}
        self.write(key, pod, "MODIFIED")


def _requests(pod: Json, resource: str) -> Any:
    amounts = [(c.get("resources") or {}).get("requests", {}).get(resource) for c in pod["spec"]["containers"]]
    return sum(parse_quantity(amount) or 0 for amount in amounts if amount)
