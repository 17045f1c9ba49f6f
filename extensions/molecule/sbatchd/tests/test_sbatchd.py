"""The agent alone: its unit, its files, and that it waits for a LIM instead of ending."""

from collections.abc import Callable

import pytest
from testinfra.host import Host

UNIT = "lavalite-sbatchd.service"


def test_it_runs_and_starts_with_the_node(host: Host) -> None:
    service = host.service(UNIT)
    assert service.is_running and service.is_enabled and service.is_valid


def test_it_waits_for_its_lim_and_has_not_ended_since(host: Host) -> None:
    assert not host.file("/run/lavalite/lim.sock").exists
    assert host.service(UNIT).systemd_properties["NRestarts"] == "0"


def test_work_goes_on_while_it_restarts(host: Host) -> None:
    assert host.service(UNIT).systemd_properties["KillMode"] == "process"


def test_its_configuration_is_one_that_it_takes(host: Host) -> None:
    host.run_expect([0], "/usr/sbin/lavalite-sbatchd --check-config --config /etc/lavalite/sbatchd.conf")


def test_it_is_told_where_parts_lie_and_how_they_are_reached(host: Host) -> None:
    said = host.file("/etc/lavalite/sbatchd.conf").content_string
    assert 'storage_path: "/srv/lavalite"\n' in said and 'export_ports: "11000-11099"\n' in said
    assert 'fabric_address: "198.18.0.' in said and "vm_bridge" not in said
    assert host.file("/srv/lavalite").is_directory


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/etc/lavalite/sbatchd.conf", "root root 644"),
        ("/var/lib/lavalite/sbatchd", "root root 755"),
        (f"/etc/systemd/system/{UNIT}", "root root 644"),
    ],
)
def test_files_are_whose_they_should_be(owner_and_mode: Callable[[str], str], path: str, wanted: str) -> None:
    assert owner_and_mode(path) == wanted
