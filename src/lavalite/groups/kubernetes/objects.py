"""The objects that groups are made of: made, ended, asked to end. All of it may be done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import BusyError, ConflictError, LavaLiteError, UnreachableError
from lavalite.groups.errors import ConflictingAllocationError
from lavalite.groups.kubernetes.pods import OurPods
from lavalite.groups.kubernetes.workloads import GROUP, MADE, MANAGED, ROLE, Workload, failure_of, scheduled
from lavalite.providers.kubernetes.connection import DEPLOYMENTS, PODS, RESOURCE_CLAIMS, Connection, Kind
from lavalite.providers.kubernetes.patience import FIRST_SECONDS, Pauses, patiently

Json = dict[str, Any]
LOOK_FIRST_SECONDS, LOOK_MOST_SECONDS = 0.01, 1.0
ATTEMPTS = 10
T = TypeVar("T")


class UnplacedError(ConflictingAllocationError):
    """Kubernetes does not place the pod on the node that was chosen: others were quicker there."""

    default_code = "unplaced"


@dataclass(slots=True, frozen=True)
class Deadlines:
    """In seconds. `end` is beyond the grace period of a pod."""

    answer: float = 20.0
    schedule: float = 30.0
    end: float = 30.0


class Objects:
    """In the connection's namespace. Methods raise as the connection does."""

    def __init__(self, connection: Connection, clock: Clock, pods: OurPods, deadlines: Deadlines) -> None:
        self._connection = connection
        self._clock = clock
        self._pods = pods
        self._deadlines = deadlines
        self._evicting: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        for task in self._evicting.values():
            task.cancel()
        await asyncio.gather(*self._evicting.values(), return_exceptions=True)

    # --- making -------------------------------------------------------------------------------------------------

    async def make(self, group_id: str, workload: Workload) -> None:
        """Until its pod has its node. Raises UnplacedError."""
        for claim in (*workload.claims, *workload.shared):
            await self._made(RESOURCE_CLAIMS, claim)
        if workload.pod is not None:
            await self._ended(DEPLOYMENTS, workload.name, group_id)
            await self._made(PODS, workload.pod, group_id)
        if workload.deployment is not None:
            await self._ended(PODS, workload.name, group_id)
            await self._made(DEPLOYMENTS, workload.deployment, group_id)
        deadline, pause_seconds = self._clock.monotonic() + self._deadlines.schedule, LOOK_FIRST_SECONDS
        while True:
            there, why = scheduled(await self._patiently(partial(self._pods.look, group_id)))
            if there:
                return
            if self._clock.monotonic() >= deadline:
                raise UnplacedError(f"Kubernetes does not place group {group_id}: {why or 'nobody says why'}")
            for claim in workload.shared:  # whoever had it before us may have removed it meanwhile
                await self._made(RESOURCE_CLAIMS, claim)
            await self._clock.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, LOOK_MOST_SECONDS)

    async def _made(self, kind: Kind, obj: Json, group_id: str = "") -> None:
        name = obj["metadata"]["name"]
        for _ in range(ATTEMPTS):
            try:
                await self._patiently(partial(self._connection.create, kind, obj))
                return
            except ConflictError:
                there = await self._patiently(partial(self._connection.get, kind, name))
            if there is None:
                continue
            if _is_made_from(there, obj):
                return
            if group_id:
                await self._ended(kind, name, group_id)
            else:
                await self._patiently(partial(self._connection.delete, kind, name))
                await self._clock.sleep(FIRST_SECONDS)
        raise ConflictError(f"{kind.resource} {name} is written by others all the time", hint="Try again.")

    # --- ending -------------------------------------------------------------------------------------------------

    async def unmake(self, group_id: str, name: str, shared: Sequence[str], grace_seconds: int) -> None:
        """Until no pod of it is there any more. Raises BusyError where one does not end."""
        self.no_more_evicted(group_id)
        await self._patiently(partial(self._connection.delete, DEPLOYMENTS, name))
        await self._patiently(partial(self._connection.delete, PODS, name))
        await self._no_pods(group_id, grace_seconds)
        await self._patiently(partial(self._connection.delete, RESOURCE_CLAIMS, name))
        for claim in shared:
            await self._unshared(claim)

    async def _ended(self, kind: Kind, name: str, group_id: str) -> None:
        there = await self._patiently(partial(self._connection.get, kind, name))
        if there is not None:
            await self._patiently(partial(self._connection.delete, kind, name))
            spec = there["spec"]["template"]["spec"] if kind is DEPLOYMENTS else there["spec"]
            await self._no_pods(group_id, int(spec.get("terminationGracePeriodSeconds") or 0))

    async def _no_pods(self, group_id: str, grace_seconds: int) -> None:
        deadline = self._clock.monotonic() + grace_seconds + self._deadlines.end
        pause_seconds = LOOK_FIRST_SECONDS
        while pods := await self._patiently(partial(self._pods.look, group_id)):
            if self._clock.monotonic() >= deadline:
                names = ", ".join(pod["metadata"]["name"] for pod in pods)
                hint = "Its node may not answer; what it holds is given to nobody until it is gone."
                raise BusyError(f"pod {names} of group {group_id} does not end", code="ending", hint=hint)
            for pod in pods:
                if not pod["metadata"].get("deletionTimestamp"):
                    await self._patiently(partial(self._connection.delete, PODS, pod["metadata"]["name"]))
            await self._clock.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, LOOK_MOST_SECONDS)

    async def _unshared(self, name: str) -> None:
        """Remove the claim if no pod has it. Whoever makes one that needs it sees to it that it is there."""
        there = await self._patiently(partial(self._connection.get, RESOURCE_CLAIMS, name))
        if there is not None and not (there.get("status") or {}).get("reservedFor"):
            version = there["metadata"]["resourceVersion"]
            try:
                await self._patiently(partial(self._connection.delete, RESOURCE_CLAIMS, name, version=version))
            except ConflictError:
                return  # somebody has it by now

    # --- asking to end ------------------------------------------------------------------------------------------

    async def evict(self, group_id: str, name: str) -> None:
        """Ask the pods of the deployment to end, once now; and where a budget or the server stands against it, again
        until they are told. Once they are, none comes after them."""
        if group_id in self._evicting:
            return
        try:
            await self._evict(group_id, name)
        except (BusyError, UnreachableError) as error:
            task = asyncio.create_task(self._evict_on(group_id, name, error))
            self._evicting[group_id] = task
            task.add_done_callback(lambda done: self._no_more(group_id, done))

    def no_more_evicted(self, group_id: str) -> None:
        if (task := self._evicting.pop(group_id, None)) is not None:
            task.cancel()

    def _no_more(self, group_id: str, done: asyncio.Task[None]) -> None:
        if self._evicting.get(group_id) is done:  # else it was called off, and there may be another one by now
            del self._evicting[group_id]

    async def resume(self, group_id: str, name: str) -> None:
        self.no_more_evicted(group_id)
        await self._patiently(partial(self._connection.scale, name, 1))

    async def _evict(self, group_id: str, name: str) -> None:
        for pod in await self._pods.look(group_id):
            if pod["metadata"]["labels"][ROLE] == "component" and not pod["metadata"].get("deletionTimestamp"):
                await self._connection.evict(pod["metadata"]["name"])
        await self._connection.scale(name, 0)

    async def _evict_on(self, group_id: str, name: str, error: LavaLiteError) -> None:
        pauses = Pauses(self._clock, float("inf"))
        try:
            while True:
                await pauses.after(error)
                try:
                    await self._evict(group_id, name)
                    return
                except (BusyError, UnreachableError) as again:
                    error = again
        except LavaLiteError as other:
            structlog.get_logger(__name__).warning("drain", group=group_id, reason=str(other))

    # --- what nobody has ----------------------------------------------------------------------------------------

    async def all_ours(self) -> list[tuple[Kind, Json]]:
        """Pods, deployments and claims, as of no single moment."""
        found = []
        for kind in (PODS, DEPLOYMENTS, RESOURCE_CLAIMS):
            listed = await self._patiently(partial(self._connection.list_all, kind, labels=MANAGED))
            found += [(kind, obj) for obj in listed or []]
        return found

    async def remove_but(self, ours: Sequence[tuple[Kind, Json]], labels: set[str]) -> None:
        """Of these, what is of no group with one of these labels."""
        for kind, obj in ours:
            name, of = obj["metadata"]["name"], obj["metadata"]["labels"]
            if of.get(ROLE) == "shared":
                await self._unshared(name)
            elif of.get(GROUP) not in labels and not obj["metadata"].get("deletionTimestamp"):
                structlog.get_logger(__name__).warning("without a group", kind=kind.resource, name=name)
                await self._patiently(partial(self._connection.delete, kind, name))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        return await patiently(self._clock, self._deadlines.answer, call)


def _is_made_from(there: Json, obj: Json) -> bool:
    meta = there["metadata"]
    wanted = (obj["metadata"].get("annotations") or {}).get(MADE)
    same = wanted is None or (meta.get("annotations") or {}).get(MADE) == wanted
    return same and not meta.get("deletionTimestamp") and not (there.get("kind") == "Pod" and failure_of(there))
