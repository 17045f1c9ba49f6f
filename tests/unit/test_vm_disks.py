"""Disks of a running machine, and how one takes another one's place, with a QEMU that is played."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_qemu import KilledError, Qemu

from lavalite.base.clock import SystemClock
from lavalite.base.errors import InputError, LavaLiteError
from lavalite.sbatchd.vm import places
from lavalite.sbatchd.vm.disks import Disks
from lavalite.sbatchd.vm.qmp import Qmp
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.sbatchd.vm.wanted import Disk, wanted
from lavalite.wire.frames import PartOrder

SECRET = "ab" * 32


class Node:
    def __init__(self, folder: Path, copy_looks: int = 2) -> None:
        self.folder, self.qemu = folder, Qemu(copy_looks)

    @property
    def disks(self) -> Disks:
        settings = VmSettings(vm_resize_seconds=5)
        return Disks(cast(Qmp, self.qemu), self.folder, settings, SystemClock(), runs=False)

    async def make(self, *wanted: Disk, killed_after: int = -1, overtaken: bool = False) -> None:
        self.qemu.left = killed_after
        await self.disks.plugged(list(wanted))
        await self.disks.moved(list(wanted), lambda: overtaken)

    def qemu_dies(self) -> None:
        self.qemu = Qemu(self.qemu.copy_looks)

    def stands(self) -> tuple[dict[str, str], set[str], set[str], set[str]]:
        """Devices, nodes, running copies, and what is in the folder."""
        copies = {name for name, job in self.qemu.jobs.items() if job["status"] == "ready"}
        return self.qemu.devices, set(self.qemu.nodes), copies, {path.name for path in self.folder.iterdir()}


def disk(part: str, mirrors: str = "", *, near: bool = False) -> Disk:
    far = {} if near else {"address": "198.18.0.9", "port": 10809, "secret": SECRET}
    return Disk.model_validate({"part": part, "bytes": 512, "mirrors": mirrors, **far})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavalite.sbatchd.vm.disks.POLL_SECONDS", 0)
    monkeypatch.setattr("lavalite.sbatchd.vm.qmp.POLL_SECONDS", 0)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


OLD, NEW = disk("old"), disk("new", "old")
ON_OLD = ({"disk-old": "block-disk-old"}, {"block-disk-old"}, set[str](), {"disk-old.key"})
ON_NEW = ({"disk-old": "block-disk-new"}, {"block-disk-new"}, set[str](), {"disk-new.key"})
ON_BOTH = ({"disk-old": "block-disk-old"}, {"block-disk-old", "block-disk-new"}, {"copy-disk-new"},
           {"disk-old.key", "disk-new.key"})  # fmt: skip


def seen(node: Node) -> Any:
    devices, nodes, copies, names = node.stands()
    return devices, nodes, copies, names - {places.PLACES}


@given(
    st.lists(st.tuples(st.sampled_from(["old", "both", "new"]), st.integers(0, 60), st.booleans()), max_size=6),
    st.sampled_from(["old", "both", "new"]),
)
@settings(max_examples=50, deadline=None)
async def test_wherever_it_is_killed_in_the_end_stands_what_was_ordered(
    cut: list[tuple[str, int, bool]], last: str
) -> None:
    """Old, both and new are ordered in turn; sbatchd is killed at any call, and QEMU between."""
    orders = {"old": [OLD], "both": [OLD, NEW], "new": [NEW]}
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder))
        await node.make(OLD)
        at = "old"
        for name, calls, dies in [*cut, (last, -1, False)]:
            # As a leader orders it: the new one alone when both were told to be alike, and no way back from there.
            if at == "gone" or (name == "new" and at == "old"):
                continue
            try:
                await node.make(*orders["new" if at == "new" else name], killed_after=calls)
            except KilledError:
                at = "new" if name == "new" or at == "new" else "old"
                if dies:
                    node.qemu_dies()
                continue
            at = "new" if at == "new" else name
            if dies:
                node.qemu_dies()
        await node.make(*orders[at])
        assert seen(node) == {"old": ON_OLD, "both": ON_BOTH, "new": ON_NEW}[at]


async def test_a_disk_takes_the_place_of_another_and_keeps_its_serial_for_good(node: Node) -> None:
    await node.make(OLD)
    await node.make(OLD, NEW)
    assert seen(node) == ON_BOTH
    await node.make(disk("new"))
    assert seen(node) == ON_NEW
    node.qemu_dies()
    await node.make(disk("new"))
    assert seen(node) == ON_NEW
    # And again, to a file of this node.
    third = disk("third", "new", near=True)
    await node.make(NEW, third)
    await node.make(third)
    assert seen(node) == ({"disk-old": "block-disk-third"}, {"block-disk-third"}, set(), {"disk-third.raw"})


async def test_a_machine_that_never_had_the_old_one_knows_the_new_one_by_its_name(node: Node) -> None:
    await node.make(NEW)
    assert seen(node) == ON_NEW


async def test_a_new_disk_that_fails_leaves_the_old_one_and_says_why(node: Node) -> None:
    await node.make(OLD)
    node.qemu.breaks = True
    with pytest.raises(LavaLiteError, match="the disk new does not take the place of old: Input/output error"):
        await node.make(OLD, NEW)
    assert node.stands()[:3] == ON_OLD[:3]
    node.qemu.breaks = False
    await node.make(OLD, NEW)
    assert await node.disks.not_following([OLD, NEW]) == ""
    node.qemu.breaks = True
    assert "Input/output error" in await node.disks.not_following([OLD, NEW])
    # It missed something since: no machine starts from it.
    node.qemu_dies()
    with pytest.raises(LavaLiteError, match="does not hold all that is on disk-old"):
        await node.make(NEW)
    await node.make(OLD)
    assert seen(node) == ON_OLD


async def test_what_alone_has_all_is_not_given_up_for_what_has_not(node: Node) -> None:
    """Also not its file, and not the name that the guest has for it."""
    near, far = disk("near", "old", near=True), disk("far", "near")
    await node.make(OLD)
    await node.make(OLD, near)
    await node.make(near)
    node.qemu.copy_looks = 10**9
    with pytest.raises(LavaLiteError, match="something else is ordered"):
        await node.make(near, far, overtaken=True)
    node.qemu_dies()
    with pytest.raises(LavaLiteError, match="does not hold all"):
        await node.make(far)
    await node.make(disk("near", near=True))
    assert seen(node)[0] == {"disk-old": "block-disk-near"}
    assert (node.folder / "disk-near.raw").stat().st_size == 512


async def test_a_longer_one_is_as_long_as_the_old_one_until_it_is_alone(node: Node) -> None:
    await node.make(OLD)
    longer = NEW.model_copy(update={"bytes": 1024})
    node.qemu.lengths = {"block-disk-new": 1024}
    await node.make(OLD, longer)
    assert node.qemu.resized == []
    await node.make(longer)
    await node.make(longer)
    assert node.qemu.resized == [("block-disk-new", 1024)]  # its guest is told once


async def test_what_is_ordered_meanwhile_is_not_kept_waiting(node: Node) -> None:
    node.qemu.copy_looks = 10**9
    await node.make(OLD)
    with pytest.raises(LavaLiteError, match="something else is ordered"):
        await node.make(OLD, NEW, overtaken=True)
    await node.make(OLD)
    assert seen(node) == ON_OLD


async def test_others_come_and_go_beside_a_copy(node: Node) -> None:
    other = disk("other", near=True)
    await node.make(OLD, other)
    await node.make(OLD, NEW, other)
    await node.make(OLD, NEW, disk("more"))
    assert set(node.stands()[0]) == {"disk-old", "disk-more"}
    await node.make()
    assert seen(node) == ({}, set(), set(), set())


@pytest.mark.parametrize(
    "disks",
    [
        [{"part": "a", "mirrors": "a"}],
        [{"part": "a"}, {"part": "b", "mirrors": "a"}, {"part": "c", "mirrors": "a"}],
        [{"part": f"a{n}"} for n in range(17)],
    ],
)
def test_places_that_make_no_sense_are_refused(disks: list[dict[str, Any]]) -> None:
    vm = {"cpu_milli": 1000, "memory_bytes": 2**30, "image": "i", "network_address": "10.0.0.1/8"}
    order = PartOrder(part="p", role="vm", host="h", incarnation=1,
                      vm={**vm, "disks": [{"bytes": 512, **each} for each in disks]})  # fmt: skip
    with pytest.raises(InputError):
        wanted(order)


def test_as_many_disks_may_move_as_there_are() -> None:
    vm = {"cpu_milli": 1000, "memory_bytes": 2**30, "image": "i", "network_address": "10.0.0.1/8"}
    disks = [{"part": f"{name}{n}", "bytes": 512, "mirrors": f"a{n}" if name == "b" else ""} for n in range(16)
             for name in "ab"]  # fmt: skip
    assert len(wanted(PartOrder(part="p", role="vm", host="h", incarnation=1, vm={**vm, "disks": disks})).disks) == 32


async def test_a_disk_may_come_back_to_where_it_was(node: Node) -> None:
    """A part has the name of its node, so it has the name that it had, which is also the guest's."""
    await node.make(OLD)
    back = disk("old", "new")
    for orders in ([OLD, NEW], [NEW], [NEW, back], [back], [back, NEW], [NEW]):
        try:
            await node.make(*orders)
        except LavaLiteError as error:
            raise AssertionError(orders) from error
        node.qemu_dies()
        await node.make(*orders)
    assert seen(node) == ON_NEW
