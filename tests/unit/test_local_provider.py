"""Discovery from recorded trees: what counts, what is left out, and when versions grow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lavalite.model.resources import Device, NodeOffer
from lavalite.providers.local import discover, with_versions
from lavalite.providers.nvml import find_gpus
from lavalite.providers.sysfs import parse_list

GIB = 1 << 30

MACHINE = {
    "proc/sys/kernel/random/boot_id": "b00t",
    "proc/self/status": "Name:\tpython\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n",
    "proc/self/cgroup": "0::/\n",
    "proc/meminfo": f"MemTotal:       {16 * GIB // 1024} kB\nMemFree:  1 kB\n",
    "proc/cpuinfo": "processor : 0\nmodel name\t: Test CPU\n",
    "sys/devices/system/cpu/online": "0-3",
    "sys/devices/system/node/node0/cpulist": "0-1",
    "sys/devices/system/node/node1/cpulist": "2-3",
    "sys/devices/system/node/node0/meminfo": f"Node 0 MemTotal: {8 * GIB // 1024} kB",
    "sys/devices/system/node/node1/meminfo": f"Node 1 MemTotal: {8 * GIB // 1024} kB",
    "sys/class/net/lo/type": "772",
    "sys/class/net/lo/operstate": "unknown",
    "sys/class/net/eth0/type": "1",
    "sys/class/net/eth0/operstate": "up",
    "sys/class/net/eth0/speed": "25000",
    "sys/class/net/eth0/address": "02:00:00:00:00:01",
    "sys/class/net/eth0/device/numa_node": "1",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    record(tmp_path / "root", MACHINE)
    return tmp_path / "root"


def record(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


def look(root: Path, now: float = 1000, **options: object) -> NodeOffer:
    options.setdefault("gpus", lambda warn: [])
    return discover("n1", {"rack": ["r1"]}, now, storage_path=root, root=root, **options)  # type: ignore[arg-type]


def test_a_machine_is_offered_whole_but_for_the_reserve(root: Path) -> None:
    offer = look(root)
    assert (offer.node, offer.boot_id, offer.labels) == ("n1", "b00t", {"rack": ["r1"]})
    assert offer.amount("cpu") == 4000
    assert [(d.id, d.numa_node) for d in offer.devices("cpu")] == [("0", 0), ("1", 0), ("2", 1), ("3", 1)]
    assert offer.amount("memory") == 16 * GIB - GIB // 2, "a 32nd is kept"
    assert offer.amount("network") == 25_000_000_000
    assert [(d.id, d.numa_node) for d in offer.devices("network")] == [("eth0", 1)]
    assert offer.amount("storage") > 0
    assert offer.amount("gpu") == 0
    memory = next(r for r in offer.resources if r.kind == "memory")
    assert memory.attributes["numa1_bytes"] == str(8 * GIB)


@pytest.mark.parametrize(
    ("files", "cpu_milli"),
    [
        ({"proc/self/status": "Cpus_allowed_list: 1,3"}, 2000),
        ({"sys/devices/system/cpu/online": "0-2"}, 3000),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "150000 100000"}, 1500),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 4000),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "900000 100000"}, 4000),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            500,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4000,
        ),
    ],
)
def test_only_the_cpus_that_we_may_use_count(root: Path, files: dict[str, str], cpu_milli: int) -> None:
    record(root, files)
    assert look(root).amount("cpu") == cpu_milli


@pytest.mark.parametrize(
    ("files", "usable_bytes"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/memory.max": str(4 * GIB)}, 4 * GIB),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/unified/a/memory.max": str(4 * GIB)}, 4 * GIB),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": "max"}, 16 * GIB),
        ({"proc/self/cgroup": "4:memory:/x", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(2 * GIB)}, 2 * GIB),
        (
            {"proc/self/cgroup": "4:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"},
            16 * GIB,
        ),
    ],
)
def test_the_least_memory_limit_of_the_groups_counts(root: Path, files: dict[str, str], usable_bytes: int) -> None:
    record(root, files)
    assert look(root).amount("memory") == usable_bytes - max(usable_bytes // 32, 256 << 20)


def test_network_cards_without_speed_are_assumed_and_down_ones_left_out(root: Path) -> None:
    record(
        root,
        {
            "sys/class/net/eth0/speed": "-1",
            "sys/class/net/eth1/type": "1",
            "sys/class/net/eth1/operstate": "down",
            "sys/class/net/eth1/device/numa_node": "0",
            "sys/class/net/docker0/type": "1",
            "sys/class/net/docker0/operstate": "up",
            "sys/class/net/docker0/bridge/x": "",
        },
    )
    (card,) = look(root).devices("network")
    assert (card.id, card.attributes["speed_bits"], card.attributes["speed"]) == ("eth0", "1000000000", "assumed")


def test_a_bond_counts_instead_of_its_cards(root: Path) -> None:
    record(
        root,
        {
            "sys/class/net/eth0/bonding_slave/state": "active",
            "sys/class/net/bond0/type": "1",
            "sys/class/net/bond0/operstate": "up",
            "sys/class/net/bond0/speed": "50000",
            "sys/class/net/bond0/bonding/mode": "802.3ad 4",
        },
    )
    assert [card.id for card in look(root).devices("network")] == ["bond0"]


def test_an_unreadable_machine_offers_no_more_than_its_disk_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    offer = discover("n1", {}, 1, storage_path=tmp_path, root=tmp_path, gpus=lambda warn: [], warn=said.append)
    assert [resource.kind for resource in offer.resources] == ["storage"]
    assert [sentence.split(" is ")[0] for sentence in said] == ["no CPU", "no memory"]


def test_a_storage_folder_that_nobody_has_made_yet_is_offered_all_the_same(tmp_path: Path) -> None:
    offers = [
        discover("n1", {}, 1, storage_path=path, root=tmp_path, gpus=lambda warn: [], warn=lambda text: None)
        for path in (tmp_path, tmp_path / "not" / "yet")
    ]
    assert offers[0].amount("storage") == offers[1].amount("storage") > 0


def test_versions_grow_only_with_changes_and_never_go_back(root: Path) -> None:
    first = look(root, now=1000)
    assert first.version == 1000
    assert look(root, now=2000, previous=first) == first
    record(root, {"proc/self/status": "Cpus_allowed_list: 0-1"})
    second = look(root, now=2000.7, previous=first)
    versions = {r.kind: r.version for r in second.resources}
    assert (second.version, versions["cpu"], versions["memory"]) == (2000, 2000, 1000)
    record(root, {"proc/self/status": "Cpus_allowed_list: 0"})
    third = look(root, now=500, previous=second)
    assert third.version == 2001, "a clock that was set back does not take versions with it"
    relabelled = discover("n1", {}, 500, storage_path=root, root=root, previous=third, gpus=lambda warn: [])
    assert relabelled.version == 2002
    assert NodeOffer.model_validate_json(third.model_dump_json()) == third, "as it is after a restart"
    assert with_versions(third, third, 9999) == third


def test_kernel_lists() -> None:
    assert parse_list("0-2,5") == [0, 1, 2, 5]
    assert parse_list("") == []
    assert parse_list("3,x,1-") == [1, 3]


class FakeError(Exception):
    pass


class NVMLError_LibraryNotFound(FakeError):
    pass


class FakeNvml:
    """Two GPUs, of which `broken` ones do not answer."""

    NVMLError = FakeError

    def __init__(self, broken: tuple[int, ...] = (), init: Exception | None = None) -> None:
        self.broken, self.init, self.shut = broken, init, False

    def nvmlInit(self) -> None:
        if self.init:
            raise self.init

    def nvmlShutdown(self) -> None:
        self.shut = True

    count = 2

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.1"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.broken:
            raise FakeError("GPU is lost")
        return index

    def nvmlDeviceGetPciInfo(self, gpu: int) -> SimpleNamespace:
        return SimpleNamespace(busId=f"00000000:0{gpu}:00.0")

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return f"GPU-{gpu}"

    def nvmlDeviceGetName(self, gpu: int) -> bytes:
        return b"Test H100"

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> SimpleNamespace:
        return SimpleNamespace(total=80 * GIB)

    NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 2, 0
    linked: tuple[set[int], ...] = ()
    """Pairs that reach each other over NVLink."""

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, index: int) -> int:
        assert index == self.NVML_P2P_CAPS_INDEX_NVLINK
        return self.NVML_P2P_STATUS_OK if {one, other} in self.linked else 5

    def nvmlDeviceGetMigMode(self, gpu: int) -> tuple[int, int]:
        raise FakeError("not supported")


def test_gpus_are_named_by_uuid_and_placed_by_pci_address(root: Path) -> None:
    record(root, {"sys/bus/pci/devices/0000:01:00.0/numa_node": "1"})
    offer = look(root, gpus=lambda warn: find_gpus(warn, FakeNvml()))
    assert offer.amount("gpu") == 2000
    assert [(d.id, d.model, d.numa_node) for d in offer.devices("gpu")] == [
        ("GPU-0", "Test H100", -1),
        ("GPU-1", "Test H100", 1),
    ]


def test_gpus_tell_what_they_are_connected_by(root: Path) -> None:
    nvml = FakeNvml()
    nvml.count, nvml.linked = 5, ({0, 2}, {2, 3})
    for gpu, port in enumerate(("17:00.0", "17:00.0", "65:00.0", "65:00.0", "")):
        real = root / "sys/devices/pci0000:00" / (f"0000:{port}" if port else "") / f"0000:0{gpu}:00.0"
        real.mkdir(parents=True)
        link = root / f"sys/bus/pci/devices/0000:0{gpu}:00.0"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(real)
    found = look(root, gpus=lambda warn: find_gpus(warn, nvml)).devices("gpu")
    # 0, 2 and 3 reach each other, 0 and 3 by way of 2; 4 hangs on no port that others could share
    assert [d.attributes.get("nvlink", "") for d in found] == ["0", "", "0", "0", ""]
    ports = ["0000:17:00.0"] * 2 + ["0000:65:00.0"] * 2 + [""]
    assert [d.attributes.get("pcie", "") for d in found] == ports


class MigNvml(FakeNvml):
    """GPU 0 is whole; GPU 1 is split in two instances, with a gap between their numbers."""

    def nvmlDeviceGetMigMode(self, gpu: int) -> tuple[int, int]:
        return gpu, gpu

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: int) -> int:
        assert gpu == 1
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: int, at: int) -> int:
        if at not in (0, 3):
            raise FakeError("Not Found")
        return 10 + at

    def nvmlDeviceGetName(self, gpu: int) -> bytes:
        return {10: b"Test H100 MIG 1g.10gb", 13: b"Test H100 MIG 3g.40gb"}.get(gpu, b"Test H100")

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return f"MIG-{gpu}" if gpu >= 10 else f"GPU-{gpu}"


def test_of_a_split_gpu_its_mig_instances_are_offered(root: Path) -> None:
    record(root, {"sys/bus/pci/devices/0000:01:00.0/numa_node": "1"})
    offer = look(root, gpus=lambda warn: find_gpus(warn, MigNvml()))
    assert offer.amount("gpu") == 3000
    assert [(d.id, d.model, d.mig, d.numa_node, d.attributes.get("mig_parent")) for d in offer.devices("gpu")] == [
        ("GPU-0", "Test H100", "", -1, None),
        ("MIG-10", "Test H100", "1g.10gb", 1, "GPU-1"),
        ("MIG-13", "Test H100", "3g.40gb", 1, "GPU-1"),
    ]


def test_a_lost_gpu_is_told_and_the_others_are_offered() -> None:
    said: list[str] = []
    nvml = FakeNvml(broken=(0,))
    assert [gpu.id for gpu in find_gpus(said.append, nvml)] == ["GPU-1"]
    assert said == ["GPU 0 is not offered: NVML says GPU is lost"]
    assert nvml.shut


def test_no_driver_is_no_fault_but_a_broken_one_is_told() -> None:
    said: list[str] = []
    assert find_gpus(said.append, FakeNvml(init=NVMLError_LibraryNotFound("no library"))) == []
    assert said == []
    assert find_gpus(said.append, FakeNvml(init=FakeError("version mismatch"))) == []
    assert said == ["GPUs are not offered: NVML says version mismatch"]


def test_this_very_machine_can_be_looked_at(tmp_path: Path) -> None:
    offer = discover("here", {}, 1, storage_path=tmp_path)
    assert offer.amount("cpu") >= 100
    assert offer.amount("memory") > 0
    assert offer.boot_id
    assert all(isinstance(d, Device) for r in offer.resources for d in r.devices)
