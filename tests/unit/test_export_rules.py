"""Who reaches an export, in nftables' words."""

from __future__ import annotations

import pytest

from lavalite.sbatchd.attach.root.nft import only_from


def test_nobody_but_the_consumers_reaches_an_export() -> None:
    assert only_from(10900, "10.0.0.1") == [
        "tcp dport 10900 ip saddr != { 10.0.0.1 } drop",
        "tcp dport 10900 meta nfproto ipv6 drop",
    ]
    # While a machine moves: both, and each once.
    assert only_from(10900, "10.0.0.1", "10.0.0.2", "10.0.0.1") == [
        "tcp dport 10900 ip saddr != { 10.0.0.1, 10.0.0.2 } drop",
        "tcp dport 10900 meta nfproto ipv6 drop",
    ]
    assert only_from(10900, "fd00::1", "10.0.0.2") == [
        "tcp dport 10900 ip saddr != { 10.0.0.2 } drop",
        "tcp dport 10900 ip6 saddr != { fd00::1 } drop",
    ]


def test_what_is_no_address_gets_into_no_rule() -> None:
    with pytest.raises(ValueError):
        only_from(10900, "10.0.0.1", "10.0.0.2 } accept")
