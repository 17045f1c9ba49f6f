"""From configuration to a store, and what is said about wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from lavalite.base.clock import SystemClock
from lavalite.base.errors import InputError
from lavalite.store.endpoints import parse_endpoint
from lavalite.store.open import StoreConfig, open_store


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "sqlite"}, "needs a path"),
        ({"kind": "sqlite", "path": "s.db", "endpoints": ["n01"]}, "endpoints belong to kind etcd"),
        ({"kind": "etcd"}, "No endpoint is given"),
        ({"kind": "etcd", "endpoints": ["n01"], "path": "s.db"}, "path belongs to kind sqlite"),
        ({"kind": "etcd", "endpoints": ["n01:x"]}, "is not an endpoint"),
        ({"kind": "etcd", "endpoints": ["http://n01", "https://n02"]}, "Use one kind for all"),
        ({"kind": "etcd", "endpoints": ["n01"], "cert_path": "c"}, "go together"),
        ({"kind": "etcd", "endpoints": ["http://n01"], "ca_path": "c"}, "Write https"),
        ({"kind": "etcd", "endpoints": ["n01"], "username": "u"}, "go together"),
        ({"kind": "etcd", "endpoints": ["n01"], "endpoint": "n02"}, "Extra inputs"),
        ({"kind": "etcd", "endpoints": ["n01"], "timeout_seconds": 0}, "greater than 0"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        StoreConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("n01", "http://n01:2379"),
        ("10.0.0.1:4001", "http://10.0.0.1:4001"),
        ("https://[fd00::1]:2379", "https://[fd00::1]:2379"),
        ("[::1]", "http://[::1]:2379"),
        ("fd00::1:2379", None),
        ("http://n01/path", None),
        ("ftp://n01", None),
        (":2379", None),
        ("", None),
    ],
)
def test_endpoints(text: str, url: str | None) -> None:
    if url is None:
        with pytest.raises(ValueError, match="is not an endpoint"):
            parse_endpoint(text)
    else:
        assert str(parse_endpoint(text)) == url


async def test_a_password_file_that_is_absent_is_named(tmp_path: Path) -> None:
    config = StoreConfig(kind="etcd", endpoints=("n01",), username="u", password_path=tmp_path / "absent")
    with pytest.raises(InputError, match="absent cannot be read"):
        await open_store(config, SystemClock())


def test_agents_do_not_load_the_etcd_library() -> None:
    program = "import sys, lavalite.store.open; sys.exit('grpc' in sys.modules or 'etcd3aio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
