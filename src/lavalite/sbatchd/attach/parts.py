"""The roles that the root program carries out: export, disk, swap, circuit. Here is what sbatchd sees of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.book import Beside
from lavalite.sbatchd.attach.look import is_connected, is_mounted, is_read_only, is_swap
from lavalite.sbatchd.attach.roles import Key, Made, NotYetError, PartRole
from lavalite.sbatchd.attach.runner import Runner
from lavalite.wire.frames import PartOrder

RECONNECT_SECONDS = 25.0
"""For so long a broken connection may come back: the kernel holds what waits for it for 30 s."""
RENEW_SECONDS = 300.0
"""So often the rules that keep others from an export are laid anew."""
Ports = Callable[[PartOrder], tuple[list[int], list[int]]]
DisksBeside = Callable[[PartOrder], Beside]

log = structlog.get_logger(__name__)


@dataclass(slots=True, frozen=True)
class PartSettings:
    """Of this node. `storage_path`: where its exports and local disks keep their bytes."""

    state_path: Path
    storage_path: Path
    storage_preallocate: bool = False
    line_bits_per_second: int = 0


def make_roles(
    runner: Runner, settings: PartSettings, clock: Clock, ports: Ports, beside: DisksBeside
) -> dict[str, PartRole]:
    """All roles of this room, by name. `ports`: what travels in a circuit; `beside`: what disks a host has else."""
    return {
        "export": ExportRole(runner, settings, clock),
        "disk": DiskRole(runner, settings, clock, beside),
        "swap": SwapRole(runner, settings, clock),
        "circuit": CircuitRole(runner, settings, ports),
    }


class RootRole:
    """Made and removed by the root program."""

    def __init__(self, runner: Runner, settings: PartSettings) -> None:
        self._runner, self._settings = runner, settings

    async def make(self, order: PartOrder) -> Made:
        answer = await self._run("make", order)
        if pending := answer.get("pending"):
            raise NotYetError(str(pending))
        return Made(**answer)

    async def remove(self, order: PartOrder) -> None:
        await self._run("remove", order)

    async def check(self, order: PartOrder, made: Made) -> str:
        return ""

    def more(self, order: PartOrder) -> dict[str, Any]:
        """What the root program has to know beside the order."""
        return {}

    async def _run(self, verb: str, order: PartOrder) -> dict[str, Any]:
        slug = Key.of(order).slug
        asked = {
            "slug": slug,
            "state_path": str(self._settings.state_path),
            "systemd": self._runner.systemd,
            "order": order.model_dump(mode="json"),
            "more": self.more(order),
        }
        return await self._runner.run(verb, slug, asked)

    async def _mended(self, order: PartOrder) -> str:
        """It is made again; why that does not help, or an empty text."""
        try:
            await self.make(order)
        except LavaLiteError as error:
            return str(error)
        log.warning("a part was mended", part=order.part, role=order.role, host=order.host)
        return ""


class ExportRole(RootRole):
    def __init__(self, runner: Runner, settings: PartSettings, clock: Clock) -> None:
        super().__init__(runner, settings)
        self._clock = clock
        self._renewed: dict[Key, float] = {}

    def more(self, order: PartOrder) -> dict[str, Any]:
        return {
            "storage_path": str(self._settings.storage_path),
            "preallocate": self._settings.storage_preallocate,
        }

    async def check(self, order: PartOrder, made: Made) -> str:
        key, now = Key.of(order), self._clock.boottime()
        if not await self._runner.serves(key.slug):
            return await self._mended(order)  # of memory the root program says that it is lost
        if now - self._renewed.setdefault(key, now) > RENEW_SECONDS:
            # Who reloads a firewall flushes our rules too, and that is nowhere told without rights.
            self._renewed[key] = now
            await self.make(order)
        return ""


class _Attached(RootRole):
    """What hangs on an export of another node, and may find it again when that was begun anew."""

    def __init__(self, runner: Runner, settings: PartSettings, clock: Clock) -> None:
        super().__init__(runner, settings)
        self._clock = clock
        self._broken: dict[Key, float] = {}
        """Since when, CLOCK_BOOTTIME."""

    async def _connection(self, order: PartOrder) -> str:
        key = Key.of(order)
        if is_connected(order.address, order.port):
            self._broken.pop(key, None)
            return ""
        since = self._broken.setdefault(key, self._clock.boottime())
        reason = await self._mended(order)
        if not reason or self._clock.boottime() - since > RECONNECT_SECONDS:
            del self._broken[key]
            return reason
        return ""


class DiskRole(_Attached):
    def __init__(self, runner: Runner, settings: PartSettings, clock: Clock, beside: DisksBeside) -> None:
        super().__init__(runner, settings, clock)
        self._beside = beside

    def more(self, order: PartOrder) -> dict[str, Any]:
        beside = self._beside(order)
        return {
            "storage_path": str(self._settings.storage_path),
            "preallocate": self._settings.storage_preallocate,
            "mirrors": beside.mirrors.slug if beside.mirrors else "",
            "stays": [key.slug for key in beside.stays],
            "heir": beside.heir.slug if beside.heir else "",
            "heir_is_ready": beside.heir_is_ready,
        }

    async def check(self, order: PartOrder, made: Made) -> str:
        if not is_mounted(made.path):
            return f"{made.path} is not mounted any more"
        if is_read_only(made.path):
            return f"{made.path} could not be written to, and is read-only since"
        if self._beside(order).mirrors is not None:
            # What fails on one of two is held until somebody says with which of them it goes on.
            try:
                await self.make(order)
            except NotYetError:
                return "it has to be copied anew"
            except LavaLiteError as error:
                return str(error)
        if not order.address:
            return ""
        if made.device.startswith(("/dev/nbd", "/dev/mapper/")):
            return await self._connection(order)
        # libnbd does not connect again, and what was on its way is lost.
        served = await self._runner.serves(Key.of(order).slug) and is_connected(order.address, order.port)
        return "" if served else f"the connection to the export at {order.address}:{order.port} broke"


class SwapRole(_Attached):
    async def check(self, order: PartOrder, made: Made) -> str:
        if not is_swap(made.device):
            return f"{made.device} is not swap any more"
        return await self._connection(order)


class CircuitRole(RootRole):
    def __init__(self, runner: Runner, settings: PartSettings, ports: Ports) -> None:
        super().__init__(runner, settings)
        self._ports = ports

    def more(self, order: PartOrder) -> dict[str, Any]:
        own, far = self._ports(order)
        return {
            "own_ports": own,
            "far_ports": far,
            "line_bits_per_second": self._settings.line_bits_per_second,
        }

    async def check(self, order: PartOrder, made: Made) -> str:
        if await asyncio.to_thread(_has_class, made.device):
            return ""
        # Somebody has taken the interface's discipline away, or the interface came anew.
        return await self._mended(order)


def _has_class(made: str) -> bool:
    """`eth0 1a17:10`"""
    from pyroute2 import IPRoute  # only where there is a circuit

    interface, _, handle = made.partition(" ")
    major, _, minor = handle.partition(":")
    with IPRoute() as route:
        found = route.link_lookup(ifname=interface)
        wanted = int(major, 16) << 16 | int(minor, 16)
        return bool(found) and any(each["handle"] == wanted for each in route.get_classes(found[0]))
