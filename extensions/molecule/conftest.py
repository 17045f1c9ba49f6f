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
