"""Turned off, it is gone, and everybody reaches everything again."""

from collections.abc import Callable

import pytest
from testinfra.host import Host

UNIT = "/etc/systemd/system/lavalite-firewall.service"


@pytest.mark.parametrize("port", [7869, 6881, 6880, 2379, 8000])
def test_everybody_is_let_in(reaches: Callable[[str, int], bool], port: int) -> None:
    assert reaches("ctl1", port)


def test_nothing_of_it_is_left(host: Host) -> None:
    for path in (
        "/etc/lavalite/firewall.nft",
        UNIT,
        "/etc/systemd/system/multi-user.target.wants/lavalite-firewall.service",
    ):
        assert not host.file(path).exists and not host.file(path).is_symlink
    assert host.run("nft list table inet lavalite").rc == 1
    assert host.check_output("systemctl --failed --no-legend --plain") == ""


def test_the_table_of_somebody_else_is_there(host: Host) -> None:
    assert host.run("nft list table inet other").rc == (0 if host.check_output("hostname") == "ctl1" else 1)
