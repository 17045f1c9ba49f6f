"""A disk in place of another one, as the root program does it: with a device mapper of a few lines.

Whatever breaks, and wherever it is begun anew, the device is over a disk that has everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lavalite.base.errors import LavaLiteError
from lavalite.sbatchd.attach.root import disk, legs, mapper
from lavalite.sbatchd.attach.root.request import Request

SECTORS = 2048
NUMBERS = {"/dev/a": "7:0", "/dev/b": "43:0"}


class Kernel:
    """One device at most, with its table; how much is copied; which disks cannot be written to."""

    def __init__(self) -> None:
        self.name, self.table, self.loaded, self.copied, self.health = "", "", "", 0, "AA"
        self.mirrors = True
        self.crashes = False

    def run(self, command: list[str], *, text: str = "", **_: Any) -> str:
        verb = command[1]
        if verb == "targets":
            return "linear v1.4.0\n" + "mirror v1.14.0\n" * self.mirrors
        if verb == "table":
            return f"{self.name}: {self.table}" if self.table else "No devices found\n"
        if verb == "status":
            done = 4 if "nosync" in self.table else self.copied
            failed = self.health != "AA"
            return f"0 {SECTORS} mirror 2 {self.disks} {done - failed}/4 1 {self.health} 1 core\n"
        if verb == "create":
            self.name, self.table = command[2], text
        elif verb == "load":
            self.loaded = text
            if self.crashes:
                raise LavaLiteError("killed")
        elif verb == "resume":
            self.table = self.loaded
        elif verb == "remove":
            self.table = ""
        return ""

    @property
    def disks(self) -> str:
        """`7:0`, `7:0 43:0`."""
        return " ".join(number for number in NUMBERS.values() if number in self.table)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made, real = Kernel(), Path.exists
    monkeypatch.setattr(mapper, "run", made.run)
    monkeypatch.setattr(disk, "run", lambda *_, **__: "")
    monkeypatch.setattr(mapper, "number", NUMBERS.__getitem__)
    monkeypatch.setattr(mapper, "sectors", lambda device: SECTORS)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/mapper/control" or real(path))
    monkeypatch.setattr(legs, "bring", lambda request, mounted: f"/dev/{request.slug}")
    monkeypatch.setattr(legs, "found", lambda request, slug: [f"/dev/{slug}"] if f"/dev/{slug}" in NUMBERS else [])
    monkeypatch.setattr(legs, "drop", lambda request: None)
    monkeypatch.setattr(disk, "mounted_at", lambda device: [tmp_path / "mounted"] if made.table else [])
    monkeypatch.setattr(disk, "_unmount", lambda path: None)
    (tmp_path / "mounted").mkdir()
    (tmp_path / "parts").mkdir()
    return made


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    def asked(slug: str, **more: Any) -> Request:
        order = {"host": "h", "address": "", "amount": SECTORS * 512}
        return Request(slug, tmp_path, False, order, more)

    return asked


OLD, COPY = {"stays": ["b"], "heir": "b", "heir_is_ready": True}, {"mirrors": "a", "stays": ["a"]}


def copying(kernel: Kernel, ask: Any) -> None:
    assert disk.make(ask("a"))["device"] == "/dev/mapper/lavalite-a"
    assert "pending" in disk.make(ask("b", **COPY))
    assert kernel.disks == "7:0 43:0"


def whole(kernel: Kernel, ask: Any) -> None:
    copying(kernel, ask)
    kernel.copied = 3
    assert disk.make(ask("b", **COPY))["pending"].startswith("3 of 4")
    kernel.copied = 4
    assert disk.make(ask("b", **COPY)) == disk.make(ask("a", **OLD))  # the same device, at the same place


def test_once_everything_is_copied_either_of_the_two_may_go(kernel: Kernel, ask: Any) -> None:
    for gone, more, left in (("a", OLD, "43:0"), ("b", COPY, "7:0")):
        whole(kernel, ask)
        disk.remove(ask(gone, **more))
        assert kernel.disks == left
        disk.remove(ask(gone, **more))  # after a crash
        assert kernel.disks == left
        kernel.table, kernel.copied = "", 0


def test_before_that_only_the_copy_may_go(kernel: Kernel, ask: Any) -> None:
    copying(kernel, ask)
    kernel.copied = 4  # which nobody has noted yet
    with pytest.raises(LavaLiteError, match="has not everything"):
        disk.remove(ask("a", **OLD))
    disk.remove(ask("b", **COPY))
    assert kernel.disks == "7:0"
    with pytest.raises(LavaLiteError, match="has not what it holds"):
        disk.remove(ask("a", **OLD))
    assert kernel.disks == "7:0"


@pytest.mark.parametrize("health", ["AD", "DA", "DD", "FA", "AR"])
def test_what_breaks_before_everything_is_copied_ends_the_copy(kernel: Kernel, ask: Any, health: str) -> None:
    copying(kernel, ask)
    kernel.copied, kernel.health = 4, health
    with pytest.raises(LavaLiteError):
        disk.make(ask("b", **COPY))
    assert kernel.disks == "7:0"
    kernel.health = "AA"
    kernel.copied = 0
    assert "pending" in disk.make(ask("b", **COPY))  # ordered once more
    assert kernel.disks == "7:0 43:0"


def test_what_breaks_afterwards_leaves_the_other_one(kernel: Kernel, ask: Any) -> None:
    whole(kernel, ask)
    kernel.health = "DA"  # and the kernel counts what it could not write there as not copied
    assert disk.make(ask("b", **COPY))["device"] == "/dev/mapper/lavalite-a"
    assert kernel.disks == "43:0"
    with pytest.raises(LavaLiteError, match="has not what it holds"):
        disk.remove(ask("b", **COPY))
    disk.remove(ask("a", **OLD))
    assert kernel.disks == "43:0"


def test_a_copy_that_breaks_afterwards_is_none(kernel: Kernel, ask: Any) -> None:
    whole(kernel, ask)
    kernel.health = "AF"
    with pytest.raises(LavaLiteError, match="has not everything"):
        disk.remove(ask("a", **OLD))
    with pytest.raises(LavaLiteError, match="it could not be read"):
        disk.make(ask("b", **COPY))
    assert kernel.disks == "7:0"


def test_a_machine_that_began_anew_has_the_copy_alone_only_if_that_was_whole(kernel: Kernel, ask: Any) -> None:
    with pytest.raises(LavaLiteError, match="not known to hold"):
        disk.remove(ask("a", **OLD | {"heir_is_ready": False}))
    assert "not there yet" in disk.make(ask("b", **COPY))["pending"]
    disk.remove(ask("a", **OLD))
    assert disk.make(ask("b"))["device"] == "/dev/mapper/lavalite-b" and kernel.disks == "43:0"


def test_killed_before_a_table_is_in_its_place_the_one_before_counts(kernel: Kernel, ask: Any) -> None:
    disk.make(ask("a"))
    kernel.crashes = True
    with pytest.raises(LavaLiteError):
        disk.make(ask("b", **COPY))
    assert kernel.disks == "7:0"
    kernel.crashes = False
    kernel.table = ""
    whole(kernel, ask)
    kernel.crashes = True
    with pytest.raises(LavaLiteError):
        disk.remove(ask("a", **OLD))
    assert kernel.disks == "7:0 43:0"


def test_all_of_it_goes_when_nothing_stays(kernel: Kernel, ask: Any) -> None:
    whole(kernel, ask)
    disk.remove(ask("a"))
    disk.remove(ask("b", mirrors="a"))
    assert kernel.table == ""


def test_without_a_mirror_in_the_kernel_nothing_moves(kernel: Kernel, ask: Any) -> None:
    kernel.mirrors = False
    disk.make(ask("a"))
    with pytest.raises(LavaLiteError, match="cannot mirror"):
        disk.make(ask("b", **COPY))
    assert kernel.disks == "7:0"


def test_what_was_mounted_without_a_device_mapper_stays(
    kernel: Kernel, ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "is_mounted", lambda path: path.endswith("/hosts-scratch/h/a"))
    (tmp_path / "hosts-scratch/h/a").mkdir(parents=True)
    assert disk.make(ask("a"))["device"] == "/dev/a"
    with pytest.raises(LavaLiteError, match="without the device mapper"):
        disk.make(ask("b", **COPY))
    with pytest.raises(LavaLiteError, match="without the device mapper"):
        disk.remove(ask("a", **OLD))
    assert kernel.table == ""
