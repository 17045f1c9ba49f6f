"""What the tests of all scenarios ask of a host."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from testinfra.host import Host


@pytest.fixture
def owner_and_mode(host: Host) -> Callable[[str], str]:
    """Of a file: `OWNER GROUP MODE`, the mode in octal digits."""
    return lambda path: str(host.check_output("stat -c '%%U %%G %%a' %s", path))


@pytest.fixture
def is_candidate(host: Host) -> bool:
    return "lavalite_candidates" in host.ansible.get_variables()["group_names"]


@pytest.fixture
def reaches(host: Host) -> Callable[[str, int], bool]:
    """Whether a connection to a port of another host comes about."""
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
    return lambda other, port: host.run("python3 -c %s %s %s", connect, other, str(port)).rc == 0
