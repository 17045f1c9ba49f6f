"""The virtual IP on an interface of this machine: netlink through pyroute2, and the frames that announce it.

Each step is done in a thread and in its order; the election does not wait for it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import structlog
from pyroute2 import IPRoute

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.lim.config import VipConfig
from lavalite.lim.vip import ANNOUNCEMENTS, ARP, arp_announcement, lifetime_seconds, neighbour_advertisement

FOREVER_SECONDS = 2**32 - 1
NO_DUPLICATE_CHECK = 0x02
"""IFA_F_NODAD: for the check an IPv6 address would wait a second or two before it answers."""
ETHERNET_ADDRESS_BYTES = 6
ALL_NODES = "ff02::1"
NEIGHBOUR_HOPS = 255

log = structlog.get_logger(__name__)


class LinkVip:
    """One address on one interface. What goes wrong is logged, and tried again with the next renewal."""

    def __init__(self, config: VipConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._address = ipaddress.ip_interface(config.address)
        self._deadline = 0.0
        self._changed = asyncio.Event()
        self._closing = False
        self._following: asyncio.Task[None] | None = None
        self._announced = 0
        self._complaint = ""

    def hold(self, deadline: float) -> None:
        self._want(deadline)

    def drop(self) -> None:
        self._want(0.0)

    async def close(self) -> None:
        self._closing = True
        self._want(0.0)
        if self._following is not None:
            await self._following

    def _want(self, deadline: float) -> None:
        self._deadline = deadline
        self._changed.set()
        if self._following is None:
            self._following = asyncio.create_task(self._follow(), name="virtual IP")

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            last = self._closing
            try:
                await asyncio.to_thread(self._apply, self._deadline)
                self._complaint = ""
            except (
                Exception
            ) as error:  # whatever it is: the next renewal tries again, and the lease decides who leads
                self._complain(str(error) or type(error).__name__)
            if last:
                return

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            log.error("the virtual IP cannot be set", address=str(self._address), reason=reason)
        self._complaint = reason

    # --- in a thread

    def _apply(self, deadline: float) -> None:
        """Raises LavaLiteError, OSError, and what pyroute2 raises."""
        with IPRoute() as route:
            index, link_address = self._link(route)
            there = self._there(route, index)
            if not there:
                self._announced = 0  # also where the kernel has removed it: another may have had it since
            seconds = lifetime_seconds(deadline, self._clock.boottime())
            if seconds > 0:
                self._add(route, index, seconds)
                there = True
            # Also where the last step took so long that it may not be here any more.
            if there and self._clock.boottime() >= deadline:
                route.addr("del", index=index, address=str(self._address.ip), prefixlen=self._prefix_length)
                log.info("the virtual IP is given up", address=str(self._address))
            elif seconds > 0 and self._announced < ANNOUNCEMENTS:
                if self._announced == 0:
                    log.info("the virtual IP is held", address=str(self._address), interface=self._config.interface)
                self._announced += 1
                self._announce(link_address)

    def _link(self, route: Any) -> tuple[int, bytes]:
        found = route.link_lookup(ifname=self._config.interface)
        if not found:
            raise LavaLiteError(f"there is no interface {self._config.interface}", hint="Set vip.interface.")
        (link,) = route.link("get", index=found[0])
        return found[0], bytes.fromhex((link.get("address") or "").replace(":", ""))

    def _there(self, route: Any, index: int) -> bool:
        """Whether it is on the interface. Raises LavaLiteError where it is for good, and so not ours to touch."""
        for found in route.get_addr(index=index):
            if ipaddress.ip_address(found.get("address")) == self._address.ip:
                if found.get("cacheinfo")["ifa_valid"] == FOREVER_SECONDS:
                    raise LavaLiteError(
                        f"it is {self._config.interface}'s own address", hint="Take one that no machine has."
                    )
                return True
        return False

    def _add(self, route: Any, index: int, seconds: int) -> None:
        flags = {"IFA_FLAGS": NO_DUPLICATE_CHECK} if self._address.version == 6 else {}
        route.addr(
            "replace",
            index=index,
            address=str(self._address.ip),
            prefixlen=self._prefix_length,
            IFA_CACHEINFO={"ifa_preferred": seconds, "ifa_valid": seconds},
            **flags,
        )

    @property
    def _prefix_length(self) -> int:
        return self._address.network.prefixlen

    def _announce(self, link_address: bytes) -> None:
        if len(link_address) != ETHERNET_ADDRESS_BYTES:
            return  # no Ethernet: no neighbours that remember another
        interface, address = self._config.interface, self._address.ip
        if isinstance(address, ipaddress.IPv4Address):
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                raw.bind((interface, ARP))
                raw.send(arp_announcement(link_address, address))
            return
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, NEIGHBOUR_HOPS)
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(interface))
            raw.bind((str(address), 0))
            raw.sendto(neighbour_advertisement(link_address, address), (ALL_NODES, 0))
