"""KubernetesComputeResourceProvider: nodes and GPUs of a cluster; groups as pods, deployments and claims in it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lavalite.base.clock import Clock, SystemClock
from lavalite.base.errors import ConflictError, LavaLiteError
from lavalite.groups.embedded import LedgerProvider
from lavalite.groups.engine.picture import devices_of
from lavalite.groups.kubernetes.ledger import KubernetesLedger
from lavalite.groups.kubernetes.objects import Deadlines, Objects
from lavalite.groups.kubernetes.pods import OurPods
from lavalite.groups.kubernetes.workloads import (
    MANAGED,
    ROLE,
    Options,
    Workload,
    failure_of,
    label_of,
    name_of,
    workload_of,
)
from lavalite.groups.records import GROUPS, GroupRecord, Holder
from lavalite.model.resources import GPU, Device, NodeOffer
from lavalite.providers.kubernetes.connection import (
    NODES,
    PODS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    Connection,
)
from lavalite.providers.kubernetes.devices import claimed_devices
from lavalite.providers.kubernetes.offers import Seen, offers_of
from lavalite.providers.kubernetes.patience import patiently
from lavalite.providers.kubernetes.usage import ENDED
from lavalite.providers.local import with_versions

Json = dict[str, Any]
LOOK_SECONDS = 10.0
"""What there is is looked at anew before something is given out, where the last look was longer ago."""


class KubernetesComputeResourceProvider(LedgerProvider):
    """Open it by `open`. Beside what the interface says its methods raise RefusedError where a right is missing."""

    name = "the Kubernetes cluster"
    runs_components = True
    on_one_machine = False

    def __init__(
        self,
        connection: Connection,
        ledger: KubernetesLedger,
        clock: Clock,
        *,
        options: Options,
        deadlines: Deadlines,
        identity: str,
    ) -> None:
        # Who allocates is a pod somewhere: it has no process that anybody could ask for.
        super().__init__(ledger, clock=clock, holder=Holder(boot_id=identity))
        self._connection = connection
        self._options = options
        self._deadlines = deadlines
        self._pods = OurPods(connection, clock, self._pod_changed)
        self._objects = Objects(connection, clock, self._pods, deadlines)
        self._offers: dict[str, NodeOffer] = {}
        self._looked_at = float("-inf")

    @classmethod
    async def open(
        cls,
        *,
        namespace: str = "",
        kubeconfig: Path | None = None,
        client: Connection | None = None,
        clock: Clock | None = None,
        options: Options | None = None,
        deadlines: Deadlines | None = None,
        identity: str = "",
    ) -> KubernetesComputeResourceProvider:
        """On the cluster of the kubeconfig, or the one that we are in. Objects of ours are in the namespace.

        What a crash has left is put right first: objects without their group are removed, groups without their
        objects get them anew. `identity`: a name that no other planner has, and that this one has again once it is
        restarted: then what it was just making is undone at once, else after some minutes.
        Raises InputError, UnreachableError, BusyError, RefusedError.
        """
        clock, deadlines = clock or SystemClock(), deadlines or Deadlines()
        connection = client or Connection.open(namespace, kubeconfig)
        try:
            ledger = await patiently(
                clock,
                deadlines.answer,
                lambda: KubernetesLedger.open(connection, clock, patience_seconds=deadlines.answer),
            )
        except BaseException:
            await connection.close()
            raise
        provider = cls(
            connection,
            ledger,
            clock,
            options=options or Options(),
            deadlines=deadlines,
            identity=f"planner/{identity or secrets.token_hex(8)}",
        )
        try:
            await provider.start()
        except BaseException:
            await provider.close()
            raise
        return provider

    async def start(self) -> None:
        await patiently(self._clock, self._deadlines.answer, self._pods.start)
        ours = await self._objects.all_ours()  # before the ledger: objects are made after their group is written
        await super().start()
        await self._end([r.id for r in self._records() if not r.ready and r.holder == self._holder])
        records = list(self._records())
        await self._objects.remove_but(ours, {label_of(record.id) for record in records})
        there = {obj["metadata"]["name"] for kind, obj in ours if kind is not RESOURCE_CLAIMS}
        for record in records:
            if record.ready and name_of(record.id) not in there:
                await self._make_anew(record)
            if record.state == "draining":
                await self._ask_to_end(record)

    async def close(self) -> None:
        await self._objects.close()
        await self._pods.close()
        await super().close()

    # --- what there is --------------------------------------------------------------------------------------------

    async def _discover(self) -> list[NodeOffer]:
        seen = Seen(
            nodes=await self._connection.list_all(NODES) or [],
            others=[pod for pod in await self._all_pods() if not self._is_ours(pod)],
            slices=await self._connection.list_all(RESOURCE_SLICES) or [],
        )
        if seen.slices:
            claims = await self._connection.list_all(RESOURCE_CLAIMS, everywhere=True) or []
            seen = replace(seen, taken=claimed_devices(claim for claim in claims if not self._is_ours(claim)))
        held = frozenset(device for record in self._records() for device in devices_of(record))
        now = int(self._clock.now())
        offers = [with_versions(offer, self._offers.get(offer.node), now) for offer in offers_of(seen, held)]
        self._offers = {offer.node: offer for offer in offers}
        self._looked_at = self._clock.monotonic()
        return offers

    async def _look_if_long_ago(self) -> None:
        """Others come and go on the nodes, and nobody tells us."""
        if self._clock.monotonic() - self._looked_at > LOOK_SECONDS:
            await self._look_at_nodes()

    async def _all_pods(self) -> list[Json]:
        return await self._connection.list_all(PODS, everywhere=True, without={"status.phase": ENDED}) or []

    def _is_ours(self, obj: Json) -> bool:
        meta = obj["metadata"]
        return (
            meta.get("namespace") == self._connection.namespace
            and MANAGED.items() <= (meta.get("labels") or {}).items()
        )

    def _records(self) -> Iterable[GroupRecord]:
        return self.picture.groups.values()

    # --- groups ---------------------------------------------------------------------------------------------------

    async def allocate_resources(self, component_name: str, resources: dict[str, Any]) -> dict[str, Any]:
        await self._look_if_long_ago()
        return await super().allocate_resources(component_name, resources)

    async def reserve_resources(
        self, component_name: str, resources: dict[str, Any], timeout_seconds: int
    ) -> dict[str, Any]:
        await self._look_if_long_ago()
        return await super().reserve_resources(component_name, resources, timeout_seconds)

    async def watch_resources(self) -> AsyncIterator[dict[str, Any]]:
        async for change in super().watch_resources():
            if change["group"] is not None:
                (group,) = await self._with_faults([change["group"]])
                change |= {"group": group, "state": group["state"]}
            yield change

    def _pod_changed(self, label: str) -> None:
        self._desk.tell(GROUPS + record.id for record in self._records() if label_of(record.id) == label)

    async def get_resource_state(self) -> dict[str, Any]:
        state = await super().get_resource_state()
        return state | {"groups": await self._with_faults(state["groups"])}

    async def get_groups(self, component_name: str) -> list[dict[str, Any]]:
        return await self._with_faults(await super().get_groups(component_name))

    async def get_group(self, group_id: str) -> dict[str, Any]:
        return (await self._with_faults([await super().get_group(group_id)]))[0]

    async def _with_faults(self, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Groups whose pod has failed, or is gone, are so too."""
        found = []
        for group in groups:
            record = self.picture.groups.get(group["id"])
            fault = await self._fault(record) if record is not None and group["state"] != "failed" else ""
            found.append(group | {"state": "failed", "reason": fault} if fault else group)
        return found

    async def _fault(self, record: GroupRecord) -> str:
        pods = self._pods.of(record.id)
        if not record.ready or not self._pods.current or any(map(_lives, pods)):
            return ""
        if failures := [why for pod in pods if (why := failure_of(pod))]:
            return failures[-1]
        if record.run and record.component:
            return ""  # the deployment sees to it that there is one again
        there = await self._pods.look(record.id)
        return "" if there else f"pod {name_of(record.id)}, which held it, is gone"

    def _needs_making(self, record: GroupRecord) -> bool:
        return True

    async def _make(self, record: GroupRecord) -> GroupRecord:
        await self._objects.make(record.id, await self._workload(record))
        return record

    async def _unmake(self, record: GroupRecord) -> None:
        try:
            shared = [claim["metadata"]["name"] for claim in (await self._workload(record)).shared]
        except LavaLiteError:
            shared = []  # it cannot be made, or its device is gone
        grace_seconds = int(record.run.get("drain_seconds", 0))
        await self._objects.unmake(record.id, name_of(record.id), shared, grace_seconds)

    async def _ask_to_end(self, record: GroupRecord) -> None:
        if record.run and record.component:
            await self._objects.evict(record.id, name_of(record.id))

    async def resume_resources(self, resource_ids: list[str]) -> bool:
        done = await super().resume_resources(resource_ids)
        for record in self._records():
            if record.id in resource_ids and record.run and record.component:
                await self._objects.resume(record.id, name_of(record.id))
        return done

    async def _busy(self, records: Sequence[GroupRecord]) -> set[str]:
        busy = set()
        for record in records:
            pods = self._pods.of(record.id) if self._pods.current else await self._pods.look(record.id)
            if any(pod["metadata"]["labels"][ROLE] == "component" and _lives(pod) for pod in pods):
                busy.add(record.id)
        return busy

    async def _workload(self, record: GroupRecord) -> Workload:
        return workload_of(record, await self._devices(record), self._options)

    async def _devices(self, record: GroupRecord) -> dict[str, Device]:
        """The GPUs that it holds. Raises ConflictError."""
        wanted = devices_of(record)
        for look in (False, True):
            if look:
                await self._discover()
            offer = self._offers.get(record.node)
            known = {device.id: device for device in (offer.devices(GPU) if offer is not None else [])}
            if all(device in known for device in wanted):
                return {device: known[device] for device in wanted}
        gone = next(device for device in wanted if device not in known)
        raise ConflictError(f"GPU {gone} of {record.node} is not there any more", hint="Allocate anew.")

    async def _make_anew(self, record: GroupRecord) -> None:
        try:
            await self._make(record)
        except LavaLiteError:
            return  # it shows as failed, with the reason


def _lives(pod: Json) -> bool:
    return (pod.get("status") or {}).get("phase") not in ENDED
