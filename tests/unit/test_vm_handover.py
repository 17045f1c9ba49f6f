"""A machine goes from node to node while it runs: never do two run, wherever who looks after them is killed."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_qemu import KilledError, Qemu

from lavalite.base.clock import SystemClock
from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.roles import Made
from lavalite.sbatchd.vm import role as roles
from lavalite.sbatchd.vm.command import Machine
from lavalite.sbatchd.vm.hardware import hardware, image_digest, pairs, processor_digest
from lavalite.sbatchd.vm.images import Image
from lavalite.sbatchd.vm.qmp import QmpError
from lavalite.sbatchd.vm.role import VmRole
from lavalite.sbatchd.vm.runners import Place
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import MIB, Disk, Wanted
from lavalite.wire.frames import PartOrder

NEAR = {"part": "near-a", "bytes": 512}
THERE = {"part": "near-b", "bytes": 512, "mirrors": "near-a"}
FAR = {"part": "far", "bytes": 512, "address": "198.18.0.9", "port": 10900, "secret": "ab" * 32}
VM = {"cpu_milli": 1000, "memory_bytes": 128 * MIB, "image": "i", "network_address": "10.0.0.1/8"}


class Played(Qemu):
    """And as much as a machine that moves needs. `peer` is the QEMU that memory travels to."""

    def __init__(self, incoming: bool) -> None:
        super().__init__(copy_looks=1)
        self.status = "inmigrate" if incoming else "prelaunch"
        self.nodes = {"root": {"length": 512}}
        self.devices = {"root": "root"}
        self.migration, self.ran = "none", False
        self.peer: Played | None = None
        self.read_all = True
        """Whether the peer says so, or its word is lost."""

    def object_del(self, id: str) -> None:
        if id not in self.objects:
            raise QmpError(f"object '{id}' not found")
        super().object_del(id)

    def blockdev_mirror(self, job_id: str, device: str, target: str, sync: str, copy_mode: str, **more: Any) -> None:
        assert sync == ("top" if job_id == "hand-root" else "full")
        super().blockdev_mirror(job_id, device, target, "full", copy_mode, **{**more, "filter_node_name": job_id})

    def query_status(self) -> dict[str, Any]:
        return {"status": self.status, "running": self.status == "running"}

    def query_migrate(self) -> dict[str, Any]:
        if self.migration == "active":
            self.migration, self.status = "pre-switchover", "finish-migrate"
        return {} if self.migration == "none" else {"status": self.migration}

    def migrate_set_capabilities(self, capabilities: list[dict[str, Any]]) -> None:
        assert all(each["state"] for each in capabilities)

    def migrate_set_parameters(self, **_: Any) -> None: ...

    def nbd_server_start(self, addr: Any, tls_creds: str) -> None:
        assert tls_creds in self.objects

    def block_export_add(self, node_name: str, writable: bool, **_: Any) -> None:
        assert writable and node_name in self.nodes and self.status == "inmigrate"

    def nbd_server_stop(self) -> None: ...

    def migrate_incoming(self, uri: str) -> None:
        assert self.status == "inmigrate"
        self.migration = "setup"

    def migrate(self, uri: str) -> None:
        assert self.status == "running" and self.jobs and all(j["status"] == "ready" for j in self.jobs.values())
        self.migration = "active"

    def block_job_cancel(self, device: str, force: bool) -> None:
        assert not force and self.status == "finish-migrate", "its guest would write on"
        self.jobs[device]["status"] = "concluded"

    def migrate_continue(self, state: str) -> None:
        assert (state, self.migration) == ("pre-switchover", "pre-switchover")
        assert self.jobs and all(j["status"] == "concluded" and not j.get("error") for j in self.jobs.values())
        got = self.peer is not None and self.peer.migration == "setup"
        if got and self.peer is not None:
            self.peer.migration, self.peer.status = "completed", "paused"
        if got and self.read_all:
            self.migration, self.status = "completed", "postmigrate"
        else:
            self.migration, self.status = "failed", "running"

    def migrate_cancel(self) -> None:
        self.migration, self.status = "cancelled", "running"

    def cont(self) -> None:
        assert self.status in ("prelaunch", "paused", "postmigrate")
        self.status, self.ran = "running", True

    def announce_self(self, **_: Any) -> None: ...

    def query_hotpluggable_cpus(self) -> list[dict[str, Any]]:
        return [{"type": "cpu", "props": {"core-id": 0}, "qom-path": "/machine/0"}]

    def query_memory_size_summary(self) -> dict[str, Any]:
        return {"base-memory": 128 * MIB}

    def query_memory_devices(self) -> list[dict[str, Any]]:
        return []

    def qom_get(self, path: str, property: str) -> str:
        return "pc-q35-7.2-machine" if property == "type" else f"/machine/port{len(self.devices)}"


class Node:
    """One: its sbatchd (a role that is made anew at each order), and the QEMU that it runs, if any."""

    def __init__(self, folder: Path) -> None:
        self.state = folder
        self.qemu: Played | None = None
        self.version, self.ran = 0, False
        (folder / "i.raw").write_bytes(b"image")

    async def start(self, place: Place, wanted: Wanted) -> None:
        launch = json.loads((place.folder / "launch.json").read_text())
        self.qemu = Played(incoming=launch["incoming"])

    async def limit(self, place: Place, wanted: Wanted) -> None: ...

    async def runs(self, place: Place) -> bool:
        return self.qemu is not None

    async def how_ended(self, place: Place) -> str:
        return "killed by signal 9"

    async def kill(self, place: Place) -> None:
        self.qemu = None

    async def close(self) -> None: ...

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Played]:
        assert self.qemu
        yield self.qemu

    async def order(self, *disks: dict[str, Any], killed_after: int = -1, absent: bool = False, **vm: Any) -> Made:
        self.version += 1
        want: dict[str, Any] = {} if absent else {**VM, "disks": list(disks), **vm}
        order = PartOrder(part="h/vm", role="vm", host="h", incarnation=1, version=self.version, vm=want)
        images = VmSettings(images_path=self.state, vm_bridge="br", vm_accelerator="tcg", vm_stop_seconds=0)
        role = VmRole(self.state, images, SystemClock(), self, range(10900, 10910), lambda port: True)
        if self.qemu:
            self.qemu.left = killed_after
        if absent:
            self.qemu = None
            await role.remove(order)
            return Made()
        return await role.make(order)

    def is_gone(self) -> bool:
        return self.qemu is None

    def is_running(self) -> bool:
        return self.qemu is not None and self.qemu.status == "running"


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not QEMU is there at once."""

    def prepare(machine: Machine, settings: VmSettings, built: dict[str, Any]) -> None:
        machine.folder.mkdir(parents=True, exist_ok=True)
        launch = {"built": built, "incoming": machine.incoming}
        (machine.folder / "launch.json").write_text(json.dumps(launch))

    async def greets(address: str) -> bool:
        return True

    def connected(path: Path) -> Any:
        return AT[path.parents[2]].connected()

    monkeypatch.setattr("lavalite.sbatchd.vm.files.prepare", prepare)
    monkeypatch.setattr(roles, "_greets", greets)
    monkeypatch.setattr(roles, "connected", connected)
    for module in ("qmp", "handover"):
        monkeypatch.setattr(f"lavalite.sbatchd.vm.{module}.POLL_SECONDS", 0)


AT: dict[Path, Node] = {}


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    with tempfile.TemporaryDirectory() as folder:
        pair = []
        for name in "ab":
            state = Path(folder) / name
            (state / "vms").mkdir(parents=True)
            AT[state] = Node(state)
            pair.append(AT[state])
        yield pair[0], pair[1]
        AT.clear()


class Leader:
    """Orders as ADR 13 says, and looks after each order that nobody runs twice."""

    def __init__(self, old: Node, new: Node, kills: list[int]) -> None:
        self.old, self.new, self.kills = old, new, kills

    async def ordered(self, node: Node, *disks: dict[str, Any], **vm: Any) -> Made:
        """Until it was carried out, or failed: sbatchd is killed on the way, and comes back."""
        while True:
            try:
                return await node.order(*disks, killed_after=self.kills.pop() if self.kills else -1, **vm)
            except KilledError:
                if node.qemu:
                    node.qemu.left = -1
            finally:
                self.look()

    def look(self) -> None:
        assert not (self.old.is_running() and self.new.is_running()), "two run"


def devices_of(node: Node) -> dict[str, str]:
    assert node.qemu
    return node.qemu.devices


def left_of_the_move(node: Node) -> list[str]:
    assert node.qemu
    hands = [name for name in node.qemu.nodes if name.startswith("hand-")]
    return [*hands, *node.qemu.jobs, *(name for name in node.qemu.objects if name == "moving")]


@given(
    st.lists(st.integers(0, 60), max_size=6),
    st.booleans(),
    st.sampled_from(["", "new dies", "gives up", "new dies when it has all"]),
)
@settings(max_examples=80, deadline=None)
async def test_never_do_two_run_and_one_does_in_the_end(kills: list[int], read_all: bool, fault: str) -> None:
    with two_nodes() as (old, new):
        leader = Leader(old, new, [])
        told = await leader.ordered(old, NEAR, FAR)
        leader.kills = kills
        coming = {"address": "10.0.0.2", "hardware": told.device}
        waits = await leader.ordered(new, THERE, FAR, incoming=coming)
        assert not new.is_running() and old.is_running() and old.qemu
        old.qemu.peer, old.qemu.read_all = new.qemu, read_all
        if fault == "new dies":
            new.qemu = old.qemu.peer = None
        going = {"address": waits.address, "port": waits.port, "secret": waits.secret, "carried": ["near-a"]}
        try:
            await leader.ordered(old, NEAR, FAR, outgoing=going)
            handed_over = True
        except LavaLiteError:
            handed_over = False
        assert handed_over == (not old.is_running()) and handed_over == (read_all and fault != "new dies")
        if not handed_over or fault == "gives up":
            await leader.ordered(old, NEAR, FAR)
            await leader.ordered(new, absent=True)
            assert old.is_running() and new.is_gone()
            assert not left_of_the_move(old)
            return
        if fault:
            new.qemu = None
        await leader.ordered(new, THERE, FAR)
        await leader.ordered(old, absent=True)
        assert new.is_running() and old.is_gone()
        assert set(devices_of(new)) == {"root", "disk-near-a", "disk-far"}
        assert not (new.state / "vms/h-1/incoming.json").exists()


async def test_what_may_be_all_that_there_is_of_a_machine_is_not_begun_anew() -> None:
    with two_nodes() as (old, new):
        told = await old.order(NEAR)
        coming = {"address": "10.0.0.2", "hardware": told.device}
        with pytest.raises(LavaLiteError, match="is on this node already"):
            await old.order(NEAR, incoming=coming)
        await new.order(THERE, incoming=coming)
        new.qemu = None
        with pytest.raises(LavaLiteError, match="ended while it waited for the machine: killed by signal 9"):
            await new.order(THERE, incoming=coming)
        with pytest.raises(LavaLiteError, match="QEMU has ended"):
            await new.order(THERE, outgoing={"address": "10.0.0.3", "port": 1, "secret": "ab" * 32})


async def test_a_machine_goes_only_to_where_it_would_be_the_same() -> None:
    with two_nodes() as (old, new):
        told = json.loads((await old.order(NEAR)).device)
        for changed, why in (
            ({"built": {**told["built"], "image": "0" * 64}}, "another image"),
            ({"built": {**told["built"], "accelerator": "kvm"}}, "another accelerator"),
            ({"machine": "pc-q35-7.2,usb=on"}, "not known what the machine is built of"),
            ({"disks": {"disk-other": {"part": "other", "port": "port0"}}}, "a disk other, and nothing is ordered"),
        ):
            with pytest.raises(LavaLiteError, match=why):
                await new.order(THERE, incoming={"address": "10.0.0.2", "hardware": json.dumps({**told, **changed})})
            await new.order(absent=True)


def test_each_disk_of_the_machine_is_found_by_its_part_or_whose_place_it_takes() -> None:
    built = {"accelerator": "tcg", "processor": "Nehalem", "image": "0" * 64, "cpus": 1, "cpus_most": 1,
             "memory_mib": 128, "memory_most_mib": 128}  # fmt: skip
    told = hardware(json.dumps({
        "built": built, "machine": "pc-q35-7.2", "cpus_now": 1,
        "disks": {"disk-x": {"part": "near-a", "port": "port1"}, "disk-far": {"part": "far", "port": "port0"}},
    }))  # fmt: skip
    disks = [Disk.model_validate(each) for each in (THERE, FAR)]
    found = [(disk.part, name, slot.port) for disk, name, slot in pairs(told, disks)]
    assert found == [("far", "disk-far", "port0"), ("near-b", "disk-x", "port1")]


def test_images_and_processors_are_told_apart(tmp_path: Path) -> None:
    image, info = tmp_path / "i", tmp_path / "cpuinfo"
    image.write_bytes(b"one" * MIB)
    first = image_digest(Image(image, "raw"))
    assert first == image_digest(Image(image, "qcow2")) != image_digest(Image(image, "raw", cmdline="quiet"))
    image.write_bytes(b"one" * MIB + b".")
    assert image_digest(Image(image, "raw")) != first
    info.write_text("model name : A\nflags : sse avx\n\nmodel name : A\nflags : avx sse\n")
    digest = processor_digest(info)
    info.write_text("model name : A\nflags : avx\n")
    assert processor_digest(info) != digest
