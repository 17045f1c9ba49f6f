"""The root program starts soon: each part of a host is made by one of its own, and one waits for the other."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType


def enter(package: str) -> None:
    """From now on modules of the package are imported by themselves, without what its `__init__` loads.

    That of pyroute2 loads 370 modules, most of a second where a node is busy, of which a few are needed. It is for a
    program of its own alone: nothing finds in the package what `__init__` would have put there.
    """
    spec = find_spec(package)
    if package in sys.modules or spec is None or spec.submodule_search_locations is None:
        return
    entered = ModuleType(package)
    entered.__spec__, entered.__path__ = spec, list(spec.submodule_search_locations)
    sys.modules[package] = entered
