"""What groups there are: jobs of components, and reservations that are groups; no others are looked at."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lavalite.api.client import Client
from lavalite.api.models import Job, NodeDevice, NodeResources, Reservation
from lavalite.base.errors import InputError
from lavalite.groups.cluster import shapes
from lavalite.groups.cluster.calls import Calls
from lavalite.groups.errors import UnknownGroupError

_JOB = re.compile(r"job-([1-9][0-9]{0,17})")


@dataclass(slots=True)
class Found:
    """A group as it is: its job, if somebody has it, and the reservation that it is of, if it is of one."""

    shape: dict[str, Any]
    job: Job | None = None
    kept: Reservation | None = None

    @property
    def id(self) -> str:
        return str(self.shape["id"])

    @property
    def state(self) -> str:
        return str(self.shape["state"])


class Looking:
    """Asks each time; remembers only what devices are."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._devices: dict[str, NodeDevice] = {}
        """By id, as they were seen last: what a device is does not change, whoever has it."""

    async def nodes(self) -> list[NodeResources]:
        found = await self._calls.every(Client.resources)
        self._devices.update({device.id: device for node in found for device in node.devices})
        return found

    async def groups(self, component: str = "") -> list[Found]:
        """Of a component, or all."""
        jobs, reservations = await asyncio.gather(
            self._calls.every(Client.jobs, component=component or "*"),
            self._calls.every(Client.reservations, groups=True),
        )
        kept = {each.name: each for each in reservations}
        taken = [job for job in jobs if shapes.is_group(job)]
        await self.know_devices(taken)
        names = {job.reservation for job in taken}
        free = [each for each in reservations if each.name not in names and not each.used]
        return [
            *(self.of_job(job, kept.get(job.reservation)) for job in taken),
            *(
                Found(shapes.group_of_reservation(each), None, each)
                for each in free
                if component in ("", each.component)
            ),
        ]

    async def know_devices(self, jobs: Sequence[Job]) -> None:
        if any(gpu not in self._devices for job in jobs for gpu in job.gpus):
            await self.nodes()

    def of_job(self, job: Job, kept: Reservation | None) -> Found:
        return Found(shapes.group_of_job(job, self._devices, kept), job, kept)

    async def find(self, group_id: str) -> Found:
        """Raises UnknownGroupError."""
        kept: Reservation | None = None
        try:
            if match := _JOB.fullmatch(group_id):
                jobs = [await self._calls(Client.job, int(match[1]))]
            else:
                kept = await self._calls(Client.reservation, group_id)
                jobs = await self._calls.every(Client.jobs, component="*", reservation=group_id)
        except InputError:
            raise UnknownGroupError(group_id) from None
        job = next((job for job in jobs if job.component and shapes.is_group(job)), None)
        if job is not None and shapes.id_of(job) == group_id:
            await self.know_devices([job])
            return self.of_job(job, kept)
        if kept is None or not kept.group:
            raise UnknownGroupError(group_id)
        return Found(shapes.group_of_reservation(kept), None, kept)
