"""What a host of any scenario is: one with a systemd of its own, its own name, and no way to the internet."""

import os
from pathlib import Path

from testinfra.host import Host


def test_it_is_itself(host: Host) -> None:
    assert host.check_output("hostname") in ("a", "b")
    assert host.check_output("systemctl is-system-running") == "running"


def test_its_connection_is_kept_open_in_its_lab_alone(host: Host) -> None:
    """In another lab there are hosts of the same names and addresses, and no other program has asked these yet."""
    assert getattr(host.backend, "controlpath", None) is None
    assert host.check_output("hostname")
    assert list(Path(os.environ["LAVALITE_LAB_INVENTORY"]).parent.glob("c/*"))


def test_it_sees_the_others(host: Host) -> None:
    for other in ("a", "b"):
        assert host.run(f"ping -c 1 -W 2 {other}").rc == 0


def test_it_has_no_way_out(host: Host) -> None:
    assert host.check_output("ip route show default") == ""
    assert host.run("ping -c 1 -W 2 192.0.2.1").rc != 0


def test_nothing_of_lavalite_is_on_it(host: Host) -> None:
    for path in ("/opt/lavalite", "/etc/lavalite", "/var/lib/lavalite", "/usr/sbin/lavalite-lim"):
        assert not host.file(path).exists
