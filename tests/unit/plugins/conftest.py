"""The checkout as a collection, and a small API to speak to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_api import SmallApi

ROOT = Path(__file__).resolve().parents[3]
LINK = ROOT / ".ansible/collections/ansible_collections/lavalite/cluster"
if not LINK.exists():
    LINK.parent.mkdir(parents=True, exist_ok=True)
    LINK.symlink_to("../../../..")
sys.path.insert(0, str(ROOT / ".ansible/collections"))


@pytest.fixture
def api() -> Iterator[SmallApi]:
    server = SmallApi()
    yield server
    server.close()


@pytest.fixture
def second_api() -> Iterator[SmallApi]:
    server = SmallApi()
    yield server
    server.close()
