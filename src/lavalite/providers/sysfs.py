"""Cores, NUMA nodes, memory and network cards, as /proc and /sys tell of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lavalite.model.resources import Device

ASSUMED_SPEED_MBIT = 1000
"""What a card is taken for that does not say how fast it is, as most virtual ones. Marked `speed: assumed`."""
ETHERNET, INFINIBAND = 1, 32
PCI_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class Tree:
    """Files below `root`. One that is missing or makes no sense is the default; what matters is told to `warn`."""

    def __init__(self, root: Path, warn: Callable[[str], None]) -> None:
        self.root, self.warn = root, warn

    def text(self, path: str, default: str = "") -> str:
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:  # also EINVAL, as the speed of a card that is down
            return default

    def number(self, path: str, default: int) -> int:
        try:
            return int(self.text(path))
        except ValueError:
            return default

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def names(self, path: str) -> list[str]:
        try:
            return sorted(entry.name for entry in (self.root / path).iterdir())
        except OSError:
            return []

    def field(self, path: str, name: str) -> str:
        """The value behind `name:` in a file of such lines."""
        for line in self.text(path).splitlines():
            key, colon, value = line.partition(":")
            if colon and key.strip() == name:
                return value.strip()
        return ""

    def cpu_model(self) -> str:
        return self.field("proc/cpuinfo", "model name")


def parse_list(text: str) -> list[int]:
    """`0-2,5` as the kernel writes lists: [0, 1, 2, 5]. What makes no sense is left out."""
    numbers: set[int] = set()
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            numbers.update(range(int(first), int(last or first) + 1))
    return sorted(numbers)


def find_cores(tree: Tree) -> list[Device]:
    """Each CPU that we may run on. Its id is the kernel's number, as cpusets take it."""
    allowed = parse_list(tree.field("proc/self/status", "Cpus_allowed_list"))
    online = set(parse_list(tree.text("sys/devices/system/cpu/online"))) or set(allowed)
    numa = {cpu: node for node, cpus in _numa_cpus(tree).items() for cpu in cpus}
    if not allowed:
        tree.warn("no CPU is offered: /proc/self/status does not say which we may use")
    return [
        Device(
            id=str(cpu),
            numa_node=numa.get(cpu, -1),
            attributes={
                "core": tree.text(f"sys/devices/system/cpu/cpu{cpu}/topology/core_id"),
                "socket": tree.text(f"sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id"),
            },
        )
        for cpu in allowed
        if cpu in online
    ]


def _numa_nodes(tree: Tree) -> list[int]:
    names = tree.names("sys/devices/system/node")
    return sorted(int(n.removeprefix("node")) for n in names if n.removeprefix("node").isdecimal())


def _numa_cpus(tree: Tree) -> dict[int, list[int]]:
    return {n: parse_list(tree.text(f"sys/devices/system/node/node{n}/cpulist")) for n in _numa_nodes(tree)}


def numa_memory_bytes(tree: Tree) -> dict[int, int]:
    """NUMA node → its memory."""
    return {
        n: _kilobytes(tree.field(f"sys/devices/system/node/node{n}/meminfo", f"Node {n} MemTotal"))
        for n in _numa_nodes(tree)
    }


def total_memory_bytes(tree: Tree) -> int:
    total = _kilobytes(tree.field("proc/meminfo", "MemTotal"))
    if total == 0:
        tree.warn("no memory is offered: /proc/meminfo does not say how much there is")
    return total


def _kilobytes(text: str) -> int:
    """`24684092 kB` in bytes."""
    number = text.removesuffix("kB").strip()
    return int(number) * 1024 if number.isdecimal() else 0


def find_network_cards(tree: Tree) -> list[Device]:
    """Each card that is up, with its speed in bits a second.

    Hardware counts, and bonds instead of their cards. In a container, where there is no hardware to be seen, the
    virtual cards count instead.
    """
    up = [name for name in tree.names("sys/class/net") if _is_up(tree, name)]
    bonded = [name for name in up if tree.exists(f"sys/class/net/{name}/bonding")]
    hardware = [
        name
        for name in up
        if tree.exists(f"sys/class/net/{name}/device") and not tree.exists(f"sys/class/net/{name}/bonding_slave")
    ]
    return [_card(tree, name) for name in sorted({*hardware, *bonded}) or up]


def _is_up(tree: Tree, name: str) -> bool:
    folder = f"sys/class/net/{name}"
    if tree.number(f"{folder}/type", 0) not in (ETHERNET, INFINIBAND):
        return False  # loopback and tunnels
    if any(tree.exists(f"{folder}/{mark}") for mark in ("bridge", "tun_flags")):
        return False
    return tree.text(f"{folder}/operstate") in ("up", "unknown")


def _card(tree: Tree, name: str) -> Device:
    folder = f"sys/class/net/{name}"
    mbit = tree.number(f"{folder}/speed", -1)
    known = 0 < mbit < 2**31
    return Device(
        id=name,
        numa_node=tree.number(f"{folder}/device/numa_node", -1),
        pci_address=_pci_address(tree.root / folder / "device"),
        attributes={
            "address": tree.text(f"{folder}/address"),
            "speed_bits": str((mbit if known else ASSUMED_SPEED_MBIT) * 1_000_000),
            "speed": "known" if known else "assumed",
        },
    )


def nearest_bridges(devices: Sequence[Path]) -> list[str]:
    """For each device, by its link in /sys/bus/pci/devices, the lowest PCIe bridge (of a switch, or a root port) that
    it shares with another one's; its root port where it shares none; empty where it is behind none.

    MIG instances of one GPU have one link between them.
    """
    paths = [_bridges(device) for device in devices]
    distinct = set(paths)
    return [
        next((bridge for bridge in reversed(path) if sum(bridge in other for other in distinct) > 1), path[0])
        if path
        else ""
        for path in paths
    ]


def _bridges(device: Path) -> tuple[str, ...]:
    """From the root port down to the one that the device is at; then, to tell devices apart, itself."""
    if not device.is_symlink():
        return ()
    found = tuple(name for name in device.resolve().parts if PCI_ADDRESS.fullmatch(name))
    return found if len(found) > 1 else ()


def _pci_address(device: Path) -> str:
    """Of the device that this link leads to, or of the nearest one that it hangs on (virtio). Empty: none."""
    if not device.is_symlink():
        return ""
    path = device.resolve()
    return next((p.name for p in (path, *path.parents) if PCI_ADDRESS.fullmatch(p.name)), "")
