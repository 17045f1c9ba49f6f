"""A disk of a virtual machine is moved while that runs: real QEMU, real exports, and no guest but the firmware.

Each step is a process of its own (vm_on_node.py), so every one of them is also what an sbatchd does that was killed
and has come back. What a guest would write is written through its own device by QEMU.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from firmware_node import MIB, SIZE, Node, until
from lab import Lab

pytestmark = [pytest.mark.lab(kernel=True), pytest.mark.slow, pytest.mark.timeout(600)]


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
