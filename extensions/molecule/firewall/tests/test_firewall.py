"""Who reaches what on the candidate, and that nothing else of the host was touched."""

from collections.abc import Callable

import pytest
from testinfra.host import Host

UNIT = "/etc/systemd/system/lavalite-firewall.service"
PORTS = (7869, 6881, 6880, 2379, 8000)
# By host, in the order of PORTS: a worker may not ask the store, a stranger may reach what is not ours.
OPEN = {
    "ctl1": (True, True, True, True, True),
    "n1": (True, True, True, False, True),
    "stranger": (False, False, False, False, True),
}


def test_the_cluster_is_let_in_and_nobody_else(host: Host, reaches: Callable[[str, int], bool]) -> None:
    assert tuple(reaches("ctl1", port) for port in PORTS) == OPEN[host.check_output("hostname")]


def test_it_holds_now_and_after_a_restart_of_the_host(host: Host) -> None:
    closed = host.check_output("hostname") != "stranger"
    service = host.service("lavalite-firewall.service")
    assert (service.is_running and service.is_enabled) == closed
    assert host.run("nft list table inet lavalite").rc == (0 if closed else 1)


@pytest.mark.parametrize("path", ["/etc/lavalite/firewall.nft", UNIT])
def test_files_are_whose_they_should_be(host: Host, owner_and_mode: Callable[[str], str], path: str) -> None:
    if host.check_output("hostname") != "stranger":
        assert owner_and_mode(path) == "root root 644"


def test_the_table_of_somebody_else_is_there(host: Host) -> None:
    assert host.run("nft list table inet other").rc == (0 if host.check_output("hostname") == "ctl1" else 1)
