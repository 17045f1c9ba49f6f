"""What both directions of an upgrade are asked for."""

import re
from collections.abc import Callable

import pytest
from testinfra.host import Host


@pytest.fixture
def release_links(host: Host) -> Callable[[], tuple[str, str]]:
    """The versions, without what says of which source they are, that the host uses and that it used before."""

    def read() -> tuple[str, str]:
        names = [host.check_output("readlink /opt/lavalite/%s", link) for link in ("current", "previous")]
        found = [re.fullmatch(r"releases/([0-9.]+)\+[0-9a-f]{8}-(?:node|control)-py\d+", name) for name in names]
        assert all(found), names
        now, before = (str(each[1]) for each in found if each)
        return now, before

    return read


@pytest.fixture
def held_job(host: Host) -> Callable[[], None]:
    """On the worker: what was begun before the upgrade began once, and is the unit that still runs."""

    def check() -> None:
        if host.check_output("hostname") != "n1":
            return
        attempt, pid = host.check_output("cat /home/alice/begun").split()
        (unit,) = host.check_output(
            "systemctl list-units --plain --no-legend --state=running 'lavalite-*.*.*.service'"
        ).splitlines()
        assert attempt == "1"
        assert host.check_output("systemctl show --property=MainPID --value %s", unit.split()[0]) == pid

    return check
