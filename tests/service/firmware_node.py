"""A node with virtual machines that have nothing but their firmware: real QEMU, real exports, cheap to start.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def until(done: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:.0f} s: {what}"
        time.sleep(0.1)


class Node:
    def __init__(self, lab: Lab, folder: Path, address: str = network.HERE) -> None:
        self.lab, self.folder, self.state, self.address = lab, folder, folder / "state", address
        folder.mkdir(exist_ok=True)
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
        command = ["nbdkit", "--foreground", "--exit-with-parent", f"--port={port}", "--ipaddr", self.address,
                   "--tls=require", f"--tls-psk={key}", *words, "file", f"file={file}",
                   *(each for each in filters if each.startswith("rate="))]  # fmt: skip
        self.running[part] = subprocess.Popen([*self.lab.inside(), *command])
        until(lambda: str(port) in self.lab.here(["ss", "-ltnH", f"sport = :{port}"]).stdout, "nbdkit listens")
        return {"part": part, "bytes": size, "address": self.address, "port": port, "secret": self.secrets[part]}

    def end(self, part: str) -> None:
        self.running[part].kill()
        self.running[part].wait()

    def order(self, *disks: dict[str, Any], **vm: Any) -> dict[str, Any]:
        self.version += 1
        return {"part": "p1", "role": "vm", "host": NAME.host, "incarnation": NAME.incarnation,
                "version": self.version, "vm": {**self.vm, "disks": list(disks), **vm}}  # fmt: skip

    def command(self, verb: str, order: dict[str, Any]) -> list[str]:
        words = [verb, str(self.state), self.settings.model_dump_json(), json.dumps(order)]
        return [*self.lab.inside(), sys.executable, str(DRIVER), *words]

    def step(self, verb: str, order: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(verb, order), capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS)

    def make(self, *disks: dict[str, Any], **vm: Any) -> dict[str, Any]:
        order = self.order(*disks, **vm)
        self.made(order)
        return order

    def made(self, order: dict[str, Any]) -> dict[str, Any]:
        """What is told of it."""
        done = self.step("make", order)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    def ask(self, command: str, **arguments: Any) -> Any:
        async def asked() -> Any:
            async with connected(self.vm_folder / "qmp") as qmp:
                return await qmp.call(command, arguments or None)

        return asyncio.run(asked())

    def write(self, device: str, byte: int, at: int) -> None:
        """A MiB, as the guest would."""
        path = device if "/" in device else f"/machine/peripheral/{device}/virtio-backend"
        self.said(f'qemu-io -d {path} "write -P {byte} {at} {MIB}"')

    def reads(self, device: str, byte: int, at: int) -> bool:
        """Whether the guest would find that MiB there."""
        log = self.vm_folder / "qemu.log"  # where QEMU says what comes of it
        before = log.stat().st_size
        path = device if "/" in device else f"/machine/peripheral/{device}/virtio-backend"
        self.said(f'qemu-io -d {path} "read -P {byte} {at} {MIB}"')
        until(lambda: b"ops" in log.read_bytes()[before:], "it was read")
        return b"failed" not in log.read_bytes()[before:]

    def said(self, line: str) -> str:
        return str(self.ask("human-monitor-command", **{"command-line": line}))

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
