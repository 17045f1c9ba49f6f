"""Our pods as they are: listed once, then watched, and listed anew where the server has forgotten where we were."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.groups.kubernetes.workloads import GROUP, label_of
from lavalite.providers.kubernetes.connection import PODS, Connection, GoneError
from lavalite.providers.kubernetes.patience import FIRST_SECONDS, MOST_SECONDS

Json = dict[str, Any]


class OurPods:
    """`on_change` is called with the label of the group whose pod is not as it was."""

    def __init__(self, connection: Connection, clock: Clock, on_change: Callable[[str], None]) -> None:
        self._connection = connection
        self._clock = clock
        self._on_change = on_change
        self._pods: dict[str, Json] = {}
        self._following: asyncio.Task[None] | None = None
        self.current = False
        """Whether what is here is what there is, but for the time that news take."""

    async def start(self) -> None:
        """Raises as the connection does."""
        version = await self._list()
        self._following = asyncio.create_task(self._follow(version))

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    def of(self, group_id: str) -> list[Json]:
        """As far as is known here."""
        label = label_of(group_id)
        return [pod for pod in self._pods.values() if pod["metadata"]["labels"][GROUP] == label]

    async def look(self, group_id: str) -> list[Json]:
        """As they are now. Raises as the connection does."""
        pods = await self._connection.list_all(PODS, labels={GROUP: label_of(group_id)}) or []
        for name in [pod["metadata"]["name"] for pod in self.of(group_id)]:
            del self._pods[name]
        self._pods |= {pod["metadata"]["name"]: pod for pod in pods}
        return pods

    async def _list(self) -> str:
        pods, version = await self._connection.list_at(PODS, labels={GROUP: None})
        self._pods = {pod["metadata"]["name"]: pod for pod in pods}
        self.current = True
        return version

    async def _follow(self, version: str) -> None:
        pause_seconds = FIRST_SECONDS
        while True:
            try:
                async for kind, pod in self._connection.watch(PODS, version=version, labels={GROUP: None}):
                    version, pause_seconds = pod["metadata"]["resourceVersion"], FIRST_SECONDS
                    self._take(kind, pod)
            except GoneError:
                version = ""
            except LavaLiteError as error:
                structlog.get_logger(__name__).info("watch", reason=str(error))
            self.current = False
            await self._clock.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, MOST_SECONDS)
            try:
                version = version or await self._list()
                self.current = True
            except LavaLiteError as error:
                structlog.get_logger(__name__).info("list", reason=str(error))

    def _take(self, kind: str, pod: Json) -> None:
        name, label = pod["metadata"]["name"], pod["metadata"]["labels"][GROUP]
        if kind == "DELETED":
            there = self._pods.get(name)
            # Another pod of that name may have been looked at since.
            if there is not None and there["metadata"]["uid"] == pod["metadata"]["uid"]:
                del self._pods[name]
        else:
            self._pods[name] = pod
        self._on_change(label)
