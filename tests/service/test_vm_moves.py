"""A disk of a virtual machine is moved while that runs: real QEMU, real exports, and no guest but the firmware.

Each step is a process of its own (vm_on_node.py), so every one of them is also what an sbatchd does that was killed
and has come back. What a guest would write is written through its own device by QEMU.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, network

from lavalite.sbatchd.vm.qmp import connected
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import VmName

MIB = 1024 * 1024
DRIVER = Path(__file__).with_name("vm_on_node.py")
NAME = VmName("trainer-1", 7)
PATIENCE_SECONDS = 90.0
SIZE = 16 * MIB
SSHD = """
import socket
server = socket.create_server(("127.0.0.1", 22))
print("listens", flush=True)
while True:
    server.accept()[0].sendall(b"SSH-2.0-nobody\\r\\n")
"""

pytestmark = [pytest.mark.lab(kernel=True), pytest.mark.slow, pytest.mark.timeout(600)]


def until(done: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:.0f} s: {what}"
        time.sleep(0.1)


class Node:
    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder, self.state = lab, folder, folder / "state"
        self.settings = VmSettings(
            images_path=folder / "images",
            vm_bridge=network.BRIDGE,
            vm_accelerator="tcg",
            vm_boot_seconds=PATIENCE_SECONDS,
            vm_stop_seconds=0,
            vm_resize_seconds=PATIENCE_SECONDS,
            vm_reconnect_seconds=2,
        )
        self.state.mkdir()
        self.settings.images_path.mkdir()
        with (self.settings.images_path / "nothing.raw").open("wb") as image:
            image.truncate(MIB)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.vm: dict[str, Any] = {"cpu_milli": 1000, "memory_bytes": 128 * MIB, "image": "nothing",
                                   "network_address": "127.0.0.1/8"}  # fmt: skip
        self.version = 0
        self.secrets: dict[str, str] = {}
        sshd = subprocess.Popen([*lab.inside(), sys.executable, "-c", SSHD], stdout=subprocess.PIPE)
        self.running["sshd"] = sshd
        assert sshd.stdout and sshd.stdout.readline()

    @property
    def vm_folder(self) -> Path:
        return NAME.folder(self.state / "vms")

    def serve(self, part: str, port: int, *filters: str, size: int = SIZE) -> dict[str, Any]:
        """An export of `part`, encrypted, and its entry in an order."""
        key, file = self.folder / f"{part}.psk", self.folder / f"{part}.bytes"
        if part not in self.secrets:
            self.secrets[part] = secrets.token_hex(32)
            key.touch(mode=0o600)
            key.write_text(f"lavalite:{self.secrets[part]}\n")
            with file.open("wb") as made:
                made.truncate(size)
        words = [item for each in filters if not each.startswith("rate=") for item in ("--filter", each)]
        command = ["nbdkit", "--foreground", "--exit-with-parent", f"--port={port}", "--ipaddr", network.HERE,
                   "--tls=require", f"--tls-psk={key}", *words, "file", f"file={file}",
                   *(each for each in filters if each.startswith("rate="))]  # fmt: skip
        self.running[part] = subprocess.Popen([*self.lab.inside(), *command])
        until(lambda: str(port) in self.lab.here(["ss", "-ltnH", f"sport = :{port}"]).stdout, "nbdkit listens")
        return {"part": part, "bytes": size, "address": network.HERE, "port": port, "secret": self.secrets[part]}

    def end(self, part: str) -> None:
        self.running[part].kill()
        self.running[part].wait()

    def order(self, *disks: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        return {"part": "p1", "role": "vm", "host": NAME.host, "incarnation": NAME.incarnation,
                "version": self.version, "vm": {**self.vm, "disks": list(disks)}}  # fmt: skip

    def command(self, verb: str, order: dict[str, Any]) -> list[str]:
        words = [verb, str(self.state), self.settings.model_dump_json(), json.dumps(order)]
        return [*self.lab.inside(), sys.executable, str(DRIVER), *words]

    def step(self, verb: str, order: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(verb, order), capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS)

    def make(self, *disks: dict[str, Any]) -> dict[str, Any]:
        order = self.order(*disks)
        done = self.step("make", order)
        assert done.returncode == 0, done.stderr
        return order

    def ask(self, command: str, **arguments: Any) -> Any:
        async def asked() -> Any:
            async with connected(self.vm_folder / "qmp") as qmp:
                return await qmp.call(command, arguments or None)

        return asyncio.run(asked())

    def write(self, device: str, byte: int, at: int) -> None:
        """A MiB, as the guest would."""
        line = f'qemu-io -d /machine/peripheral/{device}/virtio-backend "write -P {byte} {at} {MIB}"'
        self.ask("human-monitor-command", **{"command-line": line})

    def holds(self, file: Path, byte: int, at: int) -> bool:
        with file.open("rb") as opened:
            opened.seek(at)
            return opened.read(MIB) == bytes([byte]) * MIB

    def bytes_of(self, part: str) -> Path:
        return self.folder / f"{part}.bytes"

    def nodes(self) -> set[str]:
        listed = self.ask("query-named-block-nodes", flat=True)
        return {
            each["node-name"] for each in listed if not each["node-name"].startswith(("#", "root", "seed", "wire-"))
        }

    def devices(self) -> set[str]:
        listed = self.ask("qom-list", path="/machine/peripheral")
        return {each["name"] for each in listed if each["name"].startswith(("disk-", "swap-"))}

    def kill_qemu(self) -> None:
        pid = int((self.vm_folder / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}/exe").exists(), "it is dead")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Lab() as lab:
        node = Node(lab, tmp_path)
        yield node
        node.step("remove", {**node.order(), "want": "absent", "vm": {}})
        for process in node.running.values():
            process.kill()
            process.wait()


def test_a_disk_goes_from_node_to_node_and_here_while_the_machine_runs(node: Node) -> None:
    first = node.serve("first", 10809)
    node.make(first)
    node.write("disk-first", 0x51, 0)

    # Both of them get what is written, once the order is met.
    second = {**node.serve("second", 10810, size=2 * SIZE), "mirrors": "first"}
    order = node.make(first, second)
    assert node.holds(node.bytes_of("second"), 0x51, 0)
    node.write("disk-first", 0x52, 4 * MIB)
    assert all(node.holds(node.bytes_of(part), 0x52, 4 * MIB) for part in ("first", "second"))
    assert node.step("check", order).stdout.strip() == ""

    # Alone, and still the disk that the guest knows; also when QEMU is started anew.
    for _ in range(2):
        node.make({**second, "mirrors": ""})
        assert (node.devices(), node.nodes()) == ({"disk-first"}, {"block-disk-second"})
        assert [path.parent.name for path in node.vm_folder.rglob("keys.psk")] == ["disk-second.key"]
        node.write("disk-first", 0x53, 8 * MIB)
        node.write("disk-first", 0x53, 2 * SIZE - MIB)  # it is as long as it was ordered, and its guest may use it
        assert node.holds(node.bytes_of("second"), 0x53, 2 * SIZE - MIB)
        assert node.holds(node.bytes_of("second"), 0x53, 8 * MIB)
        assert not node.holds(node.bytes_of("first"), 0x53, 8 * MIB)
        node.kill_qemu()

    # To a file of this node, and not after all.
    near = {"part": "near", "bytes": 2 * SIZE, "mirrors": "second"}
    node.make(second)
    node.make(second, near)
    file = node.vm_folder / "disk-near.raw"
    assert node.holds(file, 0x53, 8 * MIB)
    node.make(second)
    assert (node.devices(), node.nodes(), file.exists()) == ({"disk-first"}, {"block-disk-second"}, False)

    # Its old place dies when both are alike: the new one goes on, and nothing waits for the old one.
    node.make(second, near)
    node.end("second")
    node.make(near)
    assert (node.devices(), node.nodes()) == ({"disk-first"}, {"block-disk-near"})
    node.write("disk-first", 0x54, 0)
    assert node.holds(file, 0x54, 0) and node.holds(file, 0x52, 4 * MIB)


def test_a_move_that_is_cut_anywhere_goes_on_or_leaves_the_guest_where_it_was(node: Node) -> None:
    near = {"part": "near", "bytes": SIZE}
    node.make(near)
    for at in range(0, SIZE, MIB):
        node.write("disk-near", 0x61, at)
    slow = {**node.serve("far", 10811, "rate", "rate=8M"), "mirrors": "near"}  # bits a second: 16 s

    # sbatchd is killed in mid-copy; the next one goes on with the same copy.
    order = node.order(near, slow)
    cut = subprocess.Popen(node.command("make", order), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def copied() -> int:
        if not (node.vm_folder / "disk-far.key").exists():
            return 0
        # One at a time speaks with QEMU, so it is looked at from outside.
        return sum(1 for at in range(0, SIZE, MIB) if node.holds(node.bytes_of("far"), 0x61, at))

    until(copied, "some of it is copied")
    cut.kill()
    cut.wait()
    (job,) = node.ask("query-jobs")
    assert (job["id"], job["status"]) == ("copy-disk-far", "running")

    # QEMU dies in mid-copy: it starts with the old disk, and is copied from the start.
    node.kill_qemu()
    done = node.step("make", order)
    assert done.returncode == 0, done.stderr
    assert copied() == SIZE // MIB

    # The new place dies: it is said, and the guest goes on with the old one.
    node.end("far")
    node.write("disk-near", 0x62, 0)
    until(lambda: "does not take the place of near" in node.step("check", order).stdout, "the move is lost")
    failed = node.step("make", node.order(near, slow))
    assert failed.returncode == 1 and "the disk far of 198.18.0.1:10811 cannot be attached" in failed.stderr
    # What does not hold all may not be what a machine starts from.
    node.kill_qemu()
    node.serve("far", 10811)
    refused = node.step("make", node.order({**slow, "mirrors": ""}))
    assert refused.returncode == 1 and "does not hold all" in refused.stderr
    node.kill_qemu()
    node.make(near)
    assert (node.devices(), node.nodes()) == ({"disk-near"}, {"block-disk-near"})
    assert node.holds(node.vm_folder / "disk-near.raw", 0x62, 0)
