"""Virtual machines: what is ordered and checked, QEMU's command line, and the seed. Pure."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycdlib import PyCdlib

from lavalite.base.errors import InputError
from lavalite.sbatchd.vm.command import (
    Machine,
    plug,
    processors,
    qemu_command,
    spare_bytes,
    spare_mib,
)
from lavalite.sbatchd.vm.files import local_disks, prepare_disk, remove
from lavalite.sbatchd.vm.images import Image, find_image
from lavalite.sbatchd.vm.runners import Place, begin_command
from lavalite.sbatchd.vm.seed import documents, hostname, write_seed
from lavalite.sbatchd.vm.units import OVERHEAD_BYTES, unit_properties
from lavalite.sbatchd.vm.wanted import MIB, Disk, VmName, wanted
from lavalite.wire.frames import PartOrder

GIB = 1024 * MIB
SECRET = "ab" * 32
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ operator@desk"
VM: dict[str, Any] = {
    "cpu_milli": 1500,
    "cpu_most_milli": 4000,
    "memory_bytes": 2 * GIB,
    "memory_most_bytes": 8 * GIB,
    "image": "debian-12",
    "network_address": "198.18.0.50/24",
    "gateway": "198.18.0.1",
    "ssh_keys": [KEY],
    "disks": [
        {"part": "p2", "kind": "storage", "bytes": GIB, "address": "198.18.0.12", "port": 10809, "secret": SECRET},
        {"part": "p3", "kind": "memory", "bytes": GIB, "address": "far.example", "port": 10810},
        {"part": "p4", "kind": "storage", "bytes": GIB},
    ],
}
NAME = VmName("trainer-1", 7)


def order(host: str = "trainer-1", **changed: Any) -> PartOrder:
    return PartOrder(part="p1", role="vm", host=host, incarnation=7, vm={**VM, **changed})


def machine(accelerator: str = "tcg", image: Image | None = None, **changed: Any) -> Machine:
    image = image or Image(Path("/images/debian-12.qcow2"), "qcow2")
    return Machine(NAME, Path("/state/vms/trainer-1-7"), image, wanted(order(**changed)), accelerator)


def command(*arguments: Any, **changed: Any) -> list[str]:
    return qemu_command(Path("/usr/bin/qemu-system-x86_64"), machine(*arguments, **changed))


def after(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


# --- what is ordered


def test_amounts_are_whole_cores_and_mebibytes() -> None:
    want = wanted(order())
    assert (want.cpus, want.cpus_most) == (2, 4)  # 1.5 cores take two
    assert (want.memory_mib, want.memory_most_mib) == (2048, 8192)
    small = wanted(order(cpu_most_milli=0, memory_most_bytes=0))  # no limits: what it starts with is the most
    assert (small.cpus_most, small.memory_most_mib) == (2, 2048)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"cpu_milli": 0}, "vm.cpu_milli"),
        ({"cpu_milli": "4"}, "vm.cpu_milli"),
        ({"memory_bytes": 64 * MIB}, "vm.memory_bytes"),
        ({"image": "../etc/passwd"}, "vm.image"),
        ({"image": ".hidden"}, "vm.image"),
        ({"network_address": "198.18.0.50"}, "vm.network_address"),
        ({"network_address": "198.18.0.500/24"}, "vm.network_address"),
        ({"gateway": "fe80::1"}, "vm"),
        ({"gateway": "nowhere"}, "vm"),
        ({"ssh_keys": [f"{KEY}\nssh-rsa AAAA other"]}, "vm.ssh_keys.0"),
        ({"ssh_keys": ["command=evil ssh-rsa AAAA"]}, "vm.ssh_keys.0"),
        ({"disks": [{"part": "a", "kind": "memory", "bytes": GIB}]}, "vm.disks.0"),
        ({"disks": [{"part": "a", "bytes": 1000}]}, "vm.disks.0.bytes"),
        ({"disks": [{"part": "a", "bytes": GIB, "address": "x"}]}, "vm.disks.0"),
        ({"disks": [{"part": "a", "bytes": GIB, "address": "x,y", "port": 1}]}, "vm.disks.0.address"),
        ({"disks": [{"part": "a", "bytes": GIB}] * 2}, "vm"),
        ({"disks": [{"part": f"a{n}", "bytes": GIB} for n in range(17)]}, "vm"),
        ({"disks": [{"part": f"a{n}", "bytes": GIB} for n in range(33)]}, "vm.disks"),
        ({"surprise": 1}, "vm.surprise"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_by_field(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as error:
        wanted(order(**changed))
    assert field in [fault.field for fault in error.value.faults]


def test_a_bad_secret_is_not_repeated() -> None:
    disk = {"part": "a", "bytes": GIB, "address": "x", "port": 1, "secret": "hunter2"}
    with pytest.raises(InputError) as error:
        wanted(order(disks=[disk]))
    assert "secret" in str(error.value) and "hunter2" not in str(error.value)


@pytest.mark.parametrize("host", ["", "../up", "a/b", "a b", "-x", "x\n"])
def test_a_name_that_no_folder_may_have_is_refused(host: str) -> None:
    with pytest.raises(InputError):
        VmName.of(order(host))


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True), st.integers(0, 2**40))
def test_names_on_the_node_fit_and_are_always_the_same(host: str, incarnation: int) -> None:
    name = VmName(host, incarnation)
    assert len(name.tap) <= 15
    assert re.fullmatch(r"02(:[0-9a-f]{2}){5}", name.mac)  # of one machine alone, and administered here
    assert name.tap != VmName(host, incarnation + 1).tap and name.mac != VmName(host, incarnation + 1).mac
    assert re.fullmatch(r"[A-Za-z0-9-]([A-Za-z0-9.-]*[A-Za-z0-9])?", hostname(name))


@given(st.text(min_size=1, max_size=60).filter(str.isprintable), st.sampled_from(["storage", "memory"]))
def test_any_part_has_a_serial_that_a_disk_may_have(part: str, kind: Any) -> None:
    serial = Disk(part=part, kind=kind, bytes=512, address="x", port=1).serial
    assert re.fullmatch(r"(disk|swap)-[A-Za-z0-9_][A-Za-z0-9_.-]*", serial) and len(serial) <= 20


# --- QEMU's command line


def test_the_command_line_says_what_it_may_grow_to() -> None:
    words = command()
    assert after(words, "-smp") == ["cpus=2,maxcpus=4"]
    assert after(words, "-m") == ["size=2048M,maxmem=8192M"]
    assert "memory-backend-ram,id=spare,size=6144M,reserve=off" in after(words, "-object")
    assert after(words, "-accel") == ["tcg,thread=multi,tb-size=256"]
    assert after(words, "-netdev") == ["tap,id=net,fd=3"]
    assert any(NAME.mac in word for word in words)
    assert "-S" in words  # until its disks are plugged


def test_kvm_takes_the_nodes_own_processor() -> None:
    words = command("kvm")
    assert (after(words, "-accel"), after(words, "-cpu")) == (["kvm"], ["host"])


def test_a_machine_that_may_not_grow_has_no_spare_memory() -> None:
    words = command(memory_most_bytes=0)
    assert after(words, "-m") == ["size=2048M"] and not any("virtio-mem" in word for word in words)


def test_a_kernel_beside_the_image_is_started_instead_of_the_disks_loader() -> None:
    image = Image(Path("/i/disk"), "raw", Path("/i/kernel"), Path("/i/initrd"), "root=/dev/vda")
    words = command("tcg", image)
    assert (after(words, "-kernel"), after(words, "-initrd"), after(words, "-append")) == (
        ["/i/kernel"],
        ["/i/initrd"],
        ["root=/dev/vda"],
    )
    assert "bootindex" not in " ".join(words)
    assert "bootindex=0" in " ".join(command())


def test_no_secret_and_no_export_is_on_the_command_line() -> None:
    text = " ".join(command())
    assert SECRET not in text and "198.18.0.12" not in text and KEY not in text


def test_an_encrypted_export_is_plugged_with_a_key_from_a_file_of_its_own(tmp_path: Path) -> None:
    disk = wanted(order()).disks[0]
    prepare_disk(tmp_path, disk, "")
    steps = plug(disk, tmp_path, "port3", 60)
    assert steps.credentials and steps.block["tls-creds"] == steps.credentials["id"]
    assert steps.credentials["username"] == "lavalite" and SECRET not in json.dumps(steps.credentials)
    keys = Path(steps.credentials["dir"]) / "keys.psk"
    assert keys.read_text() == f"lavalite:{SECRET}\n" and keys.stat().st_mode & 0o777 == 0o600
    assert steps.block["server"] == {"type": "inet", "host": "198.18.0.12", "port": "10809"}
    assert steps.block["reconnect-delay"] == 60
    assert steps.device["serial"] == "disk-p2" and steps.device["bus"] == "port3"


def test_a_plain_export_and_a_local_file_need_no_key(tmp_path: Path) -> None:
    swap, local = wanted(order()).disks[1:]
    assert plug(swap, tmp_path, "port0", 60).credentials is None
    prepare_disk(tmp_path, local, "")
    block = plug(local, tmp_path, "port0", 60).block
    assert block["file"]["filename"] == str(tmp_path / "disk-p4.raw")
    assert (tmp_path / "disk-p4.raw").stat().st_size == GIB
    prepare_disk(tmp_path, local.model_copy(update={"bytes": MIB}), "")
    assert (tmp_path / "disk-p4.raw").stat().st_size == GIB  # never shorter
    assert local_disks(tmp_path) == {"disk-p4"}


def test_what_is_added_to_memory_is_whole_blocks_beyond_the_base() -> None:
    assert spare_mib(wanted(order(memory_most_bytes=2 * GIB + 200 * MIB))) == 256  # 200 in steps of 128
    assert spare_bytes(3 * GIB, 2 * GIB, 2 * MIB) == GIB
    assert spare_bytes(2 * GIB + 3 * MIB, 2 * GIB, 2 * MIB) == 2 * MIB
    assert spare_bytes(GIB, 2 * GIB, 2 * MIB) == 0


def test_processors_that_are_not_there_can_be_added() -> None:
    listed = [
        {"type": "cpu", "props": {"core-id": 1, "socket-id": 0}},
        {"type": "cpu", "props": {"core-id": 0, "socket-id": 0}, "qom-path": "/machine/0"},
    ]
    absent, present = processors(listed)
    assert absent == [{"driver": "cpu", "id": "cpu-1-0", "core-id": 1, "socket-id": 0}] and present == ["/machine/0"]


def test_the_unit_has_the_hosts_own_limits() -> None:
    place = Place(NAME, Path("/state/vms/trainer-1-7"))
    properties = {name: value for name, _, value in unit_properties(place, wanted(order(cores=[0, 9])))}
    assert properties["CPUQuotaPerSecUSec"] == 1_500_000  # 1.5 cores
    assert properties["MemoryMax"] == 2 * GIB + OVERHEAD_BYTES
    assert properties["AllowedCPUs"] == bytes([1, 2])
    assert properties["ExecStart"][0][1] == begin_command(place)
    assert SECRET not in repr(properties)


# --- the seed


def test_the_seed_says_who_the_guest_is() -> None:
    texts = documents(NAME, wanted(order()))
    assert json.loads(texts["meta-data"]) == {"instance-id": "trainer-1-7", "local-hostname": "trainer-1"}
    head, _, body = texts["user-data"].partition("\n")
    assert head == "#cloud-config"
    assert json.loads(body)["users"][0]["ssh_authorized_keys"] == [KEY]
    (card,) = json.loads(texts["network-config"])["ethernets"].values()
    assert card == {
        "match": {"macaddress": NAME.mac},
        "set-name": "eth0",
        "addresses": ["198.18.0.50/24"],
        "routes": [{"to": "0.0.0.0/0", "via": "198.18.0.1"}],
    }


def test_no_secret_is_in_the_seed() -> None:
    assert SECRET not in "".join(documents(NAME, wanted(order())).values())


def test_the_seed_is_a_disk_with_the_label_and_names_that_cloud_init_looks_for(tmp_path: Path) -> None:
    texts = documents(NAME, wanted(order()))
    write_seed(tmp_path / "seed.iso", texts)
    image = PyCdlib()
    image.open(str(tmp_path / "seed.iso"))
    try:
        assert image.pvd.volume_identifier.decode().strip() == "cidata"
        for name, text in texts.items():
            found = io.BytesIO()
            image.get_file_from_iso_fp(found, rr_path=f"/{name}")
            assert found.getvalue().decode() == text
    finally:
        image.close()


# --- images and folders


def test_images_are_found_in_all_their_forms(tmp_path: Path) -> None:
    (tmp_path / "one.qcow2").write_bytes(b"QFI\xfb rest")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "disk").write_bytes(b"\0" * 8)
    (tmp_path / "two" / "kernel").touch()
    assert find_image(tmp_path, "one") == Image(tmp_path / "one.qcow2", "qcow2")
    two = find_image(tmp_path, "two")
    assert (two.format, two.kernel, two.initrd) == ("raw", tmp_path / "two" / "kernel", None)
    with pytest.raises(InputError, match=r"three\.qcow2"):
        find_image(tmp_path, "three")


def test_a_removal_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / "trainer-1-7"
    (tmp_path / ".gone-trainer-1-7" / "deep").mkdir(parents=True)
    folder.mkdir()
    remove(folder)
    remove(folder)
    assert list(tmp_path.iterdir()) == []
