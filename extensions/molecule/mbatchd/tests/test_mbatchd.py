"""The scheduler, laid down and not started: that is for the leading LIM to do."""

from collections.abc import Callable

import pytest
from testinfra.host import Host

UNIT = "lavalite-mbatchd.service"


def test_it_starts_neither_now_nor_with_the_node(host: Host) -> None:
    service = host.service(UNIT)
    assert service.exists and service.is_valid
    assert not service.is_running
    assert host.check_output("systemctl is-enabled %s", UNIT) == "static"


def test_it_does_not_start_where_the_lim_does_not_lead(host: Host) -> None:
    host.run_expect([0], f"systemctl start {UNIT}")
    assert not host.service(UNIT).is_running
    assert host.service(UNIT).systemd_properties["ConditionResult"] == "no"


def test_it_would_run_as_its_user(host: Host) -> None:
    assert host.service(UNIT).systemd_properties["User"] == "lavalite"
    assert host.user("lavalite").shell == "/usr/sbin/nologin"


def test_its_configuration_is_one_that_it_takes(host: Host) -> None:
    host.run_expect([0], "/usr/sbin/lavalite-mbatchd --check-config --config /etc/lavalite/mbatchd.conf")


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/etc/lavalite/mbatchd.conf", "root root 644"),
        ("/var/lib/lavalite/mbatchd", "lavalite lavalite 755"),
        (f"/etc/systemd/system/{UNIT}", "root root 644"),
    ],
)
def test_files_are_whose_they_should_be(owner_and_mode: Callable[[str], str], path: str, wanted: str) -> None:
    assert owner_and_mode(path) == wanted
