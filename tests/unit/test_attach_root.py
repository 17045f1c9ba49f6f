"""The program that makes parts as root: what it loads, and what it takes for the same export."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.root import handshake, nbd
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


def head(kind: str, uuid: bytes) -> bytes:
    """The first bytes of a file system, or of swap, as mkfs.ext4 and mkswap lay them down."""
    found = bytearray(nbd.HEAD_BYTES)
    if kind == "ext4":
        found[1024 + 0x38 : 1024 + 0x3A], found[1024 + 0x68 : 1024 + 0x78] = b"\x53\xef", uuid
    elif kind == "swap":
        found[-10:], found[1036:1052] = b"SWAPSPACE2", uuid
    return bytes(found)


OURS, OTHER = bytes(range(16)), bytes(range(16, 32))


@pytest.mark.parametrize(
    ("exported", "said"),
    [
        (head("ext4", OURS), ""),
        (head("ext4", OTHER), "is another thing"),
        (head("swap", OURS), "is another thing"),
        (head("", b""), "is another thing"),
    ],
    ids=["the same", "another's", "of another kind", "made anew"],
)
def test_a_device_is_connected_again_to_what_it_held_and_to_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exported: bytes, said: str
) -> None:
    """A node that came back without what it had may serve something else at the same port."""
    sent: list[int] = []
    monkeypatch.setattr(nbd, "REMEMBERED", tmp_path)
    monkeypatch.setattr(nbd, "find", lambda slug: "/dev/nbd3")
    monkeypatch.setattr(nbd, "connect", lambda address, port: socket.socket())
    monkeypatch.setattr(nbd, "negotiate", lambda connection, what: (2**20, 0))
    monkeypatch.setattr(nbd, "read", lambda connection, count, what: exported)
    monkeypatch.setattr(nbd, "_command", lambda command, attributes: sent.append(command))
    (tmp_path / "a").write_text(nbd.identity(head("ext4", OURS)))
    try:
        nbd.attach("a", "192.0.2.1", 10900, connected=False)
    except LavaLiteError as error:
        assert said and said in str(error) and "192.0.2.1:10900" in str(error)
    else:
        assert not said
    assert sent == ([] if said else [nbd.RECONFIGURE])


def test_the_first_bytes_of_an_export_are_read_as_nbd_says() -> None:
    ours, theirs = socket.socketpair()
    content = bytes(range(256)) * 16

    def serve() -> None:
        magic, _, kind, _, at, count = struct.unpack(">IHHQQI", theirs.recv(28))
        assert (magic, kind, at) == (handshake.REQUEST_MAGIC, handshake.READ, 0)
        theirs.sendall(struct.pack(">IIQ", handshake.SIMPLE_REPLY_MAGIC, 0, 0) + content[:count])

    with ours, theirs, ThreadPoolExecutor() as pool:
        served = pool.submit(serve)
        assert handshake.read(ours, 4096, "the export") == content
        served.result()
        assert ours.gettimeout() is None, "the kernel takes it over"
        theirs.close()
        with pytest.raises(LavaLiteError, match="the export broke off"):
            handshake.read(ours, 4096, "the export")
