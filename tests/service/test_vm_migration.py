"""A virtual machine goes from node to node while it runs: two real QEMUs in two networks, joined by a cable."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from firmware_node import MIB, SIZE, Node, until
from lab import Lab, network

ROOT = "/machine/peripheral-anon/device[0]/virtio-backend"
THERE = str(network.NETWORK[2])
RUNS, STANDS, HANDED_OVER = "running", "paused", "postmigrate"

pytestmark = [pytest.mark.lab(kernel=True), pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    with Lab() as one, Lab() as other:
        joined(one, other)
        pair = Node(one, tmp_path / "a"), Node(other, tmp_path / "b", THERE)
        yield pair
        for node in pair:
            node.step("remove", {**node.order(), "want": "absent", "vm": {}})
            for process in node.running.values():
                process.kill()
                process.wait()


def joined(one: Lab, other: Lab) -> None:
    first, second = network.namespace(one.name), network.namespace(other.name)
    prefix = network.NETWORK.prefixlen
    for words in (
        f"-n {first} link add cable type veth peer name cable netns {second}",
        f"-n {second} address flush dev {network.BRIDGE}",
        f"-n {second} address add {THERE}/{prefix} dev {network.BRIDGE}",
        *(f"-n {each} link set cable master {network.BRIDGE} up" for each in (first, second)),
    ):
        subprocess.run(["ip", *words.split()], check=True)


def status(node: Node) -> str:
    return str(node.ask("query-status")["status"])


def going_to(told: dict[str, Any], **more: Any) -> dict[str, Any]:
    where = {name: told[name] for name in ("address", "port", "secret")}
    return {**where, "carried": ["near-a", "near-b"], **more}


def coming_to(node: Node, told: dict[str, Any]) -> dict[str, Any]:
    return {"address": node.address, "hardware": told["device"]}


def test_a_machine_goes_to_another_node_with_all_that_it_has(nodes: tuple[Node, Node]) -> None:
    old, new = nodes
    far, near = old.serve("far", 10809), {"part": "near-a", "bytes": SIZE}
    there = {"part": "near-b", "bytes": SIZE, "mirrors": "near-a"}
    grown = {"cpu_milli": 2000, "cpu_most_milli": 2000, "memory_most_bytes": 256 * MIB}
    old.make(far, near, **{**grown, "cpu_milli": 1000})
    told = old.made(old.order(far, near, **grown))  # a CPU more than it was started with
    old.write("disk-near-a", 0x71, 0)
    old.write(ROOT, 0x72, 0)
    old.write("disk-far", 0x73, 0)

    # What is not alike, and what is not ordered, is refused before anything is begun.
    refused = new.step("make", new.order(far, **grown, incoming=coming_to(new, told)))
    assert "the machine has a disk near-a, and nothing is ordered" in refused.stderr
    new.step("remove", {**new.order(), "want": "absent", "vm": {}})

    # It waits there, however often it is ordered, and is told to be as it was only by what it was ordered.
    coming = new.order(far, there, **grown, incoming=coming_to(new, told))
    waits = new.made(coming)
    assert new.made(coming) == waits and status(new) == "inmigrate"
    assert waits["secret"] not in Path(f"/proc/{(new.vm_folder / 'pid').read_text().strip()}/cmdline").read_text()

    going = old.order(far, near, **grown, outgoing=going_to(waits))
    old.made(going)
    assert (status(old), status(new)) == (HANDED_OVER, STANDS)
    old.made(going)  # and once more: it is as it is
    assert [node.step("check", order).stdout.strip() for node, order in ((old, going), (new, coming))] == ["", ""]

    new.make(far, there, **grown)
    assert (status(old), status(new)) == (HANDED_OVER, RUNS)
    old.step("remove", {**old.order(), "want": "absent", "vm": {}})
    assert new.reads("disk-near-a", 0x71, 0) and new.reads(ROOT, 0x72, 0) and new.reads("disk-far", 0x73, 0)
    assert len([each for each in new.ask("query-hotpluggable-cpus") if "qom-path" in each]) == 2
    new.write("disk-near-a", 0x74, MIB)
    assert new.holds(new.vm_folder / "disk-near-b.raw", 0x74, MIB)
    assert not (new.vm_folder / "moving").exists() and not (new.vm_folder / "incoming.json").exists()

    # It is a machine of that node from now on: begun anew there, and it may go again.
    new.kill_qemu()
    told = new.made(new.order(far, there, **grown))
    assert new.devices() == {"disk-near-a", "disk-far"} and new.reads(ROOT, 0x72, 0)
    back = {"part": "near-a", "bytes": SIZE, "mirrors": "near-b"}
    waits = old.made(old.order(far, back, **grown, incoming=coming_to(old, told)))
    new.make(far, there, **grown, outgoing=going_to(waits))
    old.make(far, back, **grown)
    assert (status(new), status(old)) == (HANDED_OVER, RUNS) and old.reads("disk-near-a", 0x74, MIB)


def test_a_machine_that_does_not_get_there_runs_on_where_it_was(nodes: tuple[Node, Node]) -> None:
    old, new = nodes
    near, there = {"part": "near-a", "bytes": SIZE}, {"part": "near-b", "bytes": SIZE, "mirrors": "near-a"}
    told = old.made(old.order(near))
    old.write("disk-near-a", 0x71, 0)
    before = old.nodes()

    def absent(node: Node) -> None:
        assert node.step("remove", {**node.order(), "want": "absent", "vm": {}}).returncode == 0

    # The new node's QEMU dies on the way, and sbatchd of the old one too: the next one finds that it failed.
    waits = new.made(new.order(there, incoming=coming_to(new, told)))
    slow = old.order(near, outgoing=going_to(waits, bits_per_second=400_000))
    cut = subprocess.Popen(old.command("make", slow), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: new.holds(new.vm_folder / "disk-near-b.raw", 0x71, 0), "its disk is there")
    cut.kill()
    cut.wait()
    until(lambda: old.ask("query-migrate").get("status") in (None, "active", "setup"), "it is under way, or not yet")
    new.kill_qemu()
    failed = old.step("make", slow)
    assert failed.returncode == 1 and "cannot move" in failed.stderr
    assert status(old) == RUNS and old.nodes() == before
    ended = new.step("make", new.order(there, incoming=coming_to(new, told)))
    assert "QEMU has ended while it waited" in ended.stderr  # what is there may be all that there is: it is kept
    absent(new)

    # It is told to stay, in the middle of it.
    waits = new.made(new.order(there, incoming=coming_to(new, told)))
    going = old.order(near, outgoing=going_to(waits, bits_per_second=400_000))
    cut = subprocess.Popen(old.command("make", going), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: new.holds(new.vm_folder / "disk-near-b.raw", 0x71, 0), "its disk is there")
    cut.kill()
    cut.wait()
    old.make(near)
    assert status(old) == RUNS and old.nodes() == before
    absent(new)

    # It has handed over, and whoever orders has given up before he heard: it goes on, since the other one never ran.
    waits = new.made(new.order(there, incoming=coming_to(new, told)))
    old.make(near, outgoing=going_to(waits))
    assert (status(old), status(new)) == (HANDED_OVER, STANDS)
    old.make(near)
    absent(new)
    assert status(old) == RUNS and old.nodes() == before
    old.write("disk-near-a", 0x75, 0)
    assert old.holds(old.vm_folder / "disk-near-a.raw", 0x75, 0)

    # It has handed over, and the new QEMU dies before it ran: the machine begins anew, with all that it had written.
    waits = new.made(new.order(there, incoming=coming_to(new, told)))
    old.make(near, outgoing=going_to(waits))
    new.kill_qemu()
    new.make(there)
    assert (status(old), status(new)) == (HANDED_OVER, RUNS) and new.reads("disk-near-a", 0x75, 0)
