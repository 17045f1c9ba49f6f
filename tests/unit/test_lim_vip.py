"""The virtual IP: how long it is held, what its neighbours are told, and what is refused."""

from __future__ import annotations

import ipaddress
import re

import pytest

from lavalite.base.config import parse_config
from lavalite.base.errors import InputError
from lavalite.lim.config import LimConfig, VipConfig, check_config
from lavalite.lim.core import Timing
from lavalite.lim.vip import arp_announcement, lifetime_seconds, neighbour_advertisement

LINK = bytes.fromhex("02005e100001")
KERNEL_LATE_SECONDS = 1.0


@pytest.mark.parametrize(("left", "seconds"), [(3.99, 3), (3.0, 3), (1.0, 1), (0.99, 0), (0.0, 0), (-5.0, 0)])
def test_it_is_held_for_whole_seconds_of_what_is_left(left: float, seconds: int) -> None:
    assert lifetime_seconds(100.0 + left, 100.0) == seconds


@pytest.mark.parametrize("ttl", range(2, 301))
def test_the_kernel_has_removed_it_before_the_lease_can_end(ttl: int) -> None:
    timing = Timing(ttl_seconds=ttl)
    after_renewal = lifetime_seconds(ttl - timing.margin_seconds, 0.0)
    assert after_renewal + KERNEL_LATE_SECONDS <= ttl
    assert after_renewal > timing.interval_seconds, "one renewal may be late"


def test_an_arp_announcement_asks_all_for_its_own_address() -> None:
    frame = arp_announcement(LINK, ipaddress.IPv4Address("198.18.0.200"))
    assert frame[:14] == b"\xff" * 6 + LINK + b"\x08\x06"
    assert frame[14:22] == bytes([0, 1, 8, 0, 6, 4, 0, 1]), "Ethernet, IPv4, their lengths, a question"
    address = bytes([198, 18, 0, 200])
    assert frame[22:] == LINK + address + bytes(6) + address


def test_a_neighbour_advertisement_overrides_what_was_known() -> None:
    address = ipaddress.IPv6Address("fd00::200")
    message = neighbour_advertisement(LINK, address)
    assert message[0] == 136 and message[4:8] == bytes([0x20, 0, 0, 0])
    assert message[8:24] == address.packed and message[24:] == bytes([2, 1]) + LINK


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("198.18.0.200", "has no prefix. Write 198.18.0.200/24"),
        ("198.18.0/24", "is no IP address"),
        ("127.0.0.1/8", "cannot move between machines"),
        ("ff02::1/64", "cannot move between machines"),
    ],
)
def test_what_can_be_no_such_address_is_refused(address: str, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        parse_config(f"{{address: {address!r}, interface: eth0}}", "x.yml", VipConfig)


def test_an_interface_that_is_not_there_is_named_with_those_that_are() -> None:
    config = LimConfig.model_validate(
        {
            "cluster": "c",
            "node": "n",
            "state_path": "/tmp/lim",
            "candidate": True,
            "store": {"kind": "sqlite", "path": "/tmp/store.db"},
            "supervise": {"mode": "none"},
            "vip": {"address": "198.18.0.200/24", "interface": "nosuch0"},
        }
    )
    with pytest.raises(InputError, match=r"no interface nosuch0.*Name one of .*lo"):
        check_config(config)
