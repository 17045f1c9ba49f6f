"""Looking leaves nothing behind, whatever was found."""

import pytest
from testinfra.host import Host


@pytest.mark.parametrize("path", ["/etc/lavalite", "/opt/lavalite", "/var/lib/lavalite", "/usr/sbin/lavalite-lim"])
def test_nothing_of_lavalite_is_on_it(host: Host, path: str) -> None:
    assert not host.file(path).exists
    assert not host.user("lavalite").exists


def test_no_program_of_the_role_stayed(host: Host) -> None:
    assert host.check_output("find / -xdev -name 'look.py*' ! -path '/proc/*'") == ""


def test_what_was_in_the_way_runs_on(host: Host) -> None:
    assert host.service("other.service").is_running == (host.check_output("hostname") == "n1")
