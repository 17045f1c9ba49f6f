"""The program that makes parts as root: it starts without what it does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lavalite.sbatchd.attach.runner import PROGRAM

ALL_OF_IT = "pyroute2.ndb.main"
"""Loaded by the package's own __init__, and nowhere else."""


def started(tmp_path: Path, role: str, **order: str) -> tuple[dict[str, str], str]:
    """What it answers to an order that nothing can be made of, and what it loaded meanwhile."""
    (tmp_path / "parts").mkdir(exist_ok=True)
    asked = {
        "slug": "a",
        "state_path": str(tmp_path),
        "systemd": False,
        "order": {"part": "a", "role": role, "host": "h", "amount": 1, "kind": "storage", **order},
        "more": {"storage_path": str(tmp_path)},
    }
    command = [sys.executable, "-I", "-X", "importtime", str(PROGRAM), "make"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(("peer", "said"), [("nowhere", "'nowhere' is none"), ("127.0.0.1", "is this node itself")])
def test_a_circuit_speaks_to_the_kernel_without_loading_all_of_pyroute2(tmp_path: Path, peer: str, said: str) -> None:
    answer, loaded = started(tmp_path, "circuit", peer_address=peer)
    assert said in answer["error"]
    assert "pyroute2.iproute" in loaded and ALL_OF_IT not in loaded


def test_the_messages_of_the_nbd_client_need_only_their_own_part_of_pyroute2() -> None:
    lines = ["import sys", "from lavalite.sbatchd.attach.root import light", "light.enter('pyroute2')"]
    lines += ["from lavalite.sbatchd.attach.root import nbd_netlink", "message = nbd_netlink.nbdmsg()"]
    lines += ["message['cmd'], message['version'], message['attrs'] = 1, 1, [['NBD_ATTR_INDEX', 3]]"]
    lines += ["message.encode()", f"print(len(message.data), {ALL_OF_IT!r} in sys.modules)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    size, loaded = done.stdout.split()
    assert int(size) > 0 and loaded == "False", done.stderr


def test_a_disk_needs_none_of_it(tmp_path: Path) -> None:
    answer, loaded = started(tmp_path, "disk", address="127.0.0.1", port="1", tls="yes")
    assert "cannot be a disk of a bare host" in answer["error"]
    assert "pyroute2" not in loaded
