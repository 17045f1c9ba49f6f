"""A virtual machine on this node, under emulation, from its order until nothing is left of it.

Each step is a process of its own (vm_on_node.py), so every one of them is also what an sbatchd does that was killed
and has come back. The network is a lab's, without hosts: its bridge stands for the node's.
"""

from __future__ import annotations

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
from lab.guest import lay_down_guest
from lab.processes import Process

from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import VmName

MIB = 1024 * 1024
DRIVER = Path(__file__).with_name("vm_on_node.py")
GUEST = "198.18.0.150"
NAME = VmName("trainer-1", 7)
PATIENCE_SECONDS = 60.0
BOOT_SECONDS = 280.0

pytestmark = [pytest.mark.lab(kernel=True), pytest.mark.slow, pytest.mark.timeout(600)]


class Node:
    """What the test does on the node, and in its guest."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder, self.state = lab, folder, folder / "state"
        self.settings = VmSettings(
            images_path=folder / "images",
            vm_bridge=network.BRIDGE,
            vm_accelerator="tcg",
            vm_boot_seconds=BOOT_SECONDS,
        )
        self.state.mkdir()
        lay_down_guest(folder / "images", "debian-12")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
        self.servers: dict[int, subprocess.Popen[bytes]] = {}

    def command(self, verb: str, order: dict[str, Any]) -> list[str]:
        words = [verb, str(self.state), self.settings.model_dump_json(), json.dumps(order)]
        return [*self.lab.inside(), sys.executable, str(DRIVER), *words]

    def step(self, verb: str, order: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(verb, order), capture_output=True, text=True, timeout=BOOT_SECONDS + 60)

    def make(self, order: dict[str, Any]) -> dict[str, Any]:
        done = self.step("make", order)
        assert done.returncode == 0, done.stderr + self.said()
        return json.loads(done.stdout.splitlines()[-1])

    def said(self) -> str:
        log = NAME.folder(self.state / "vms") / "console.log"
        return log.read_text(errors="replace")[-2000:] if log.exists() else ""

    def guest(self, line: str, *, check: bool = True) -> str:
        ssh = ["ssh", "-i", str(self.folder / "key"), "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes",
               "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", f"root@{GUEST}", line]  # fmt: skip
        return self.lab.here(ssh, check=check, timeout_seconds=90).stdout

    def memory_mib(self) -> int:
        return int(self.guest("awk '/MemTotal/ { print $2 }' /proc/meminfo")) // 1024

    def serve(self, port: int, key: Path, *plugin: str) -> None:
        """An export that opens only to `key`."""
        command = ["nbdkit", "--foreground", "--exit-with-parent", f"--port={port}", "--ipaddr", network.HERE,
                   "--tls=require", f"--tls-psk={key}", *plugin]  # fmt: skip
        self.servers[port] = subprocess.Popen([*self.lab.inside(), *command])
        until(lambda: str(port) in self.lab.here(["ss", "-ltnH", f"sport = :{port}"]).stdout, "nbdkit listens")

    def machines(self) -> list[Process]:
        return [each for each in network.processes(self.lab.name) if each.alive() and each.command() == "lavalite-vm"]

    def links(self) -> set[str]:
        return {each["ifname"] for each in json.loads(self.lab.here(["ip", "-json", "link"]).stdout)}

    def mounts(self) -> list[str]:
        """Of its own: others come and go on this machine."""
        return [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.folder) in line]


def until(done: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:.0f} s: {what}"
        time.sleep(0.1)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Lab() as lab:
        node = Node(lab, tmp_path)
        yield node
        for server in node.servers.values():
            server.kill()
            server.wait()


def key_of(file: Path) -> str:
    secret = secrets.token_hex(32)
    file.touch(mode=0o600)
    file.write_text(f"lavalite:{secret}\n")
    return secret


def test_a_host_is_a_virtual_machine_that_grows_shrinks_and_leaves_nothing(node: Node) -> None:
    storage, memory = (key_of(node.folder / name) for name in ("storage.psk", "memory.psk"))
    (node.folder / "export").touch()
    os.truncate(node.folder / "export", 64 * MIB)
    node.serve(10809, node.folder / "storage.psk", "file", f"file={node.folder / 'export'}")
    node.serve(10810, node.folder / "memory.psk", "memory", "size=96M")
    far = {
        "part": "far",
        "kind": "storage",
        "bytes": 64 * MIB,
        "address": network.HERE,
        "port": 10809,
        "secret": storage,
    }
    swap = {
        "part": "ram",
        "kind": "memory",
        "bytes": 96 * MIB,
        "address": network.HERE,
        "port": 10810,
        "secret": memory,
    }
    near = {"part": "near", "kind": "storage", "bytes": 32 * MIB}
    vm: dict[str, Any] = {
        "cpu_milli": 1000, "cpu_most_milli": 2000, "memory_bytes": 384 * MIB, "memory_most_bytes": 640 * MIB,
        "image": "debian-12", "network_address": f"{GUEST}/24", "gateway": network.HERE,
        "ssh_keys": [(node.folder / "key.pub").read_text().strip()], "disks": [far, swap],
    }  # fmt: skip
    order: dict[str, Any] = {"part": "p1", "role": "vm", "host": NAME.host, "incarnation": NAME.incarnation, "vm": vm}
    links, mounts = node.links(), node.mounts()
    folder = NAME.folder(node.state / "vms")

    # sbatchd is killed as soon as there is a machine; the next one finds that, and goes on.
    first = subprocess.Popen(node.command("make", order), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(node.machines, "QEMU runs")
    first.kill()
    first.wait()
    (machine,) = node.machines()
    made = node.make(order)
    assert node.machines() == [machine]
    assert (made["address"], made["port"]) == (GUEST, 22)
    assert node.step("check", order).stdout.strip() == ""

    # What it was ordered to be, seen from within.
    assert node.guest("hostname; nproc").split() == ["trainer-1", "1"]
    until(lambda: "/data/far ext4" in node.guest("cat /proc/mounts"), "the disk is mounted")
    until(lambda: "98300" in node.guest("cat /proc/swaps"), "far memory is swap")
    assert "via 198.18.0.1" in node.guest("ip route show default")
    node.guest("echo kept > /data/far/file; sync")

    # No secret where others see it.
    arguments = Path(f"/proc/{machine.pid}/cmdline").read_bytes().decode()
    assert storage not in arguments and memory not in arguments
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.rglob("keys.psk"))

    # More of all, while it runs.
    before = node.memory_mib()
    grown = {**vm, "cpu_milli": 2000, "memory_bytes": 640 * MIB, "disks": [far, swap, near]}
    node.make({**order, "version": 2, "vm": grown})
    until(lambda: node.guest("nproc").strip() == "2", "two CPUs")
    until(lambda: node.memory_mib() == before + 256, "the memory is there")  # 640 - 384
    until(lambda: "/data/near ext4" in node.guest("cat /proc/mounts"), "the new disk is mounted")
    assert node.machines() == [machine]

    # The export is away for a moment, and the guest only waits.
    node.servers[10809].kill()
    node.servers[10809].wait()
    node.serve(10809, node.folder / "storage.psk", "file", f"file={node.folder / 'export'}")
    assert node.guest("echo 3 > /proc/sys/vm/drop_caches; cat /data/far/file").strip() == "kept"

    # What is in use stays, and it is said why.
    node.guest("sleep 600 < /data/far/file > /dev/null 2>&1 &")
    refused = node.step("make", {**order, "version": 3, "vm": {**grown, "disks": [swap, near]}})
    assert "the guest keeps its disk disk-far" in refused.stderr and "busy" in refused.stderr
    node.guest("kill $(pidof sleep)")

    # Less of all.
    node.make({**order, "version": 4, "vm": {**vm, "disks": [near]}})
    assert node.guest("nproc").strip() == "1"
    assert "disk-far" not in node.guest("ls /dev/disk/by-id") and "vd" not in node.guest("cat /proc/swaps")
    assert not list(folder.rglob("keys.psk"))

    # The console carries what the guest says to the terminal.
    console = [sys.executable, "-m", "lavalite.sbatchd.vm.console", NAME.host, "--state", str(node.state)]
    with subprocess.Popen(console, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as terminal:
        assert terminal.stdin and terminal.stdout
        until(lambda: node.guest("echo the guest speaks > /dev/ttyS0") is not None, "it speaks")
        assert b"the guest speaks" in terminal.stdout.readline()
        terminal.stdin.write(b"\x1d")
        terminal.stdin.flush()
        assert terminal.wait(PATIENCE_SECONDS) == 0

    # Its process is killed, and that is told.
    os.kill(machine.pid, signal.SIGKILL)
    until(lambda: not machine.alive(), "it is dead")
    assert node.step("check", order).stdout.strip() == "the virtual machine of trainer-1 has ended"

    # Nothing is left, and to remove nothing is no error.
    for _ in range(2):
        assert node.step("remove", {**order, "want": "absent", "vm": {}}).returncode == 0
    assert (node.machines(), node.links(), node.mounts()) == ([], links, mounts)
    assert list(node.state.rglob("*")) == [node.state / "vms"]


def test_a_machine_that_cannot_be_says_why_and_its_rest_can_be_removed(node: Node) -> None:
    vm: dict[str, Any] = {"cpu_milli": 1000, "memory_bytes": 256 * MIB, "image": "debian-12",
                          "network_address": f"{GUEST}/24"}  # fmt: skip
    order: dict[str, Any] = {"part": "p1", "role": "vm", "host": NAME.host, "incarnation": NAME.incarnation}
    gone = {"part": "far", "bytes": MIB, "address": network.HERE, "port": 10899}
    for changed, why in (
        ({"image": "debian-11"}, "there is no image debian-11"),
        ({"disks": [gone]}, "the disk far of 198.18.0.1:10899 cannot be attached"),
        ({"disks": [{**gone, "address": ""}], "cpu_milli": 0}, "cpu_milli"),
    ):
        done = node.step("make", {**order, "vm": {**vm, **changed}})
        assert done.returncode == 1 and why in done.stderr
    assert len(node.machines()) == 1  # as far as it came: paused, until its disk is there
    # A bridge that is not there: who would connect it says so.
    node.settings = node.settings.model_copy(update={"vm_bridge": "no-bridge"})
    done = node.step("make", {**order, "incarnation": 8, "vm": vm})
    assert "bridge no-bridge: No such device" in done.stderr
    for incarnation in (NAME.incarnation, 8):
        assert node.step("remove", {**order, "incarnation": incarnation}).returncode == 0
    assert node.machines() == [] and list((node.state / "vms").iterdir()) == []
