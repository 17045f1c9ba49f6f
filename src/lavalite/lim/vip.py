"""The virtual IP that follows the leader: how long it may be held, and what its neighbours are told. Pure.

The address lies on an interface with the rest of the lease as its lifetime. The kernel removes it when nobody renews
it, so that a LIM that is frozen or dead does not hold it on. vip_link.py puts it there.
"""

from __future__ import annotations

import ipaddress
import math
import struct
from typing import Protocol

ANNOUNCEMENTS = 3
"""So many times neighbours are told, once with each renewal: a frame may be lost."""
ETHERNET, ARP, IPV4, ASK = 1, 0x0806, 0x0800, 1
ADVERTISEMENT, OVERRIDE, TARGET_LINK_ADDRESS = 136, 0x20000000, 2

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Vip(Protocol):
    """What the election does with it. Nothing here waits or fails: the lease decides who leads, not the address."""

    def hold(self, deadline: float) -> None:
        """This LIM leads until `deadline` (CLOCK_BOOTTIME): so long, and no longer, the address is here."""

    def drop(self) -> None:
        """It is given up now."""

    async def close(self) -> None:
        """Return when it is gone."""


class NoVip:
    """None is configured."""

    def hold(self, deadline: float) -> None:
        pass

    def drop(self) -> None:
        pass

    async def close(self) -> None:
        pass


def lifetime_seconds(deadline: float, now: float) -> int:
    """What the kernel is told, which counts in whole seconds and may be late by one; 0: not worth holding."""
    return max(0, math.floor(deadline - now))


def arp_announcement(link_address: bytes, address: ipaddress.IPv4Address) -> bytes:
    """An Ethernet frame to all: who asks for its own address says where it is (RFC 5227)."""
    everybody, nobody = b"\xff" * 6, b"\0" * 6
    question = struct.pack("!HHBBH", ETHERNET, IPV4, len(link_address), len(address.packed), ASK)
    frame = everybody + link_address + struct.pack("!H", ARP)
    return frame + question + link_address + address.packed + nobody + address.packed


def neighbour_advertisement(link_address: bytes, address: ipaddress.IPv6Address) -> bytes:
    """An ICMPv6 message to all nodes, unasked (RFC 4861, 7.2.6). The kernel fills in its checksum."""
    option = struct.pack("!BB", TARGET_LINK_ADDRESS, 1) + link_address
    return struct.pack("!BBHI", ADVERTISEMENT, 0, 0, OVERRIDE) + address.packed + option
