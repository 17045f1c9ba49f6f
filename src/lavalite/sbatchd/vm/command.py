"""QEMU's command line, and what is plugged into a machine that runs; pure.

Disks of parts are not on the command line: they are plugged over QMP before the guest's first instruction, in the
same way as while it runs. So no secret is ever an argument, and there is one way for a disk to come in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavalite.sbatchd.vm.images import Image
from lavalite.sbatchd.vm.settings import KVM
from lavalite.sbatchd.vm.wanted import DISKS_MOST, MIB, Disk, VmName, Wanted

QMP, CONSOLE, CONSOLE_LOG, GUEST, PID = "qmp", "console", "console.log", "guest", "pid"
OVERLAY, SEED = "root.qcow2", "seed.iso"
"""Files in the machine's folder, which is where QEMU runs: sockets have to fit into 107 characters."""
GUEST_PORT = "lavalite.guest"
SPARE, SPARE_DEVICE = "spare", "spare-memory"
"""Memory that the guest may be given while it runs, and the device that gives it."""
SPARE_STEP_MIB = 128
"""A guest of Linux takes memory in steps of so much."""
TRANSLATED_MIB = 256
"""Code that emulation keeps; QEMU would take a gigabyte."""
BLOCK, COPY = "block-", "copy-"
PSK_USER = "lavalite"
TAP_FD = 3

Arguments = dict[str, Any]


@dataclass(slots=True, frozen=True)
class Machine:
    """All that the command line depends on. `folder` is where QEMU runs."""

    name: VmName
    folder: Path
    image: Image
    wanted: Wanted
    accelerator: str


def qemu_command(qemu: Path, machine: Machine) -> list[str]:
    """The whole of it. Expects the tap as descriptor TAP_FD, and `folder` as the current one."""
    return [
        str(qemu),
        *("-name", f"guest={machine.name},process=lavalite-vm"),
        *("-pidfile", str(machine.folder / PID)),
        # First, so that they have the slots they name; the others take what is left.
        *_disks(machine),
        *_board(machine),
        *_memory(machine.wanted),
        *_wires(machine),
        *_boot(machine.image),
    ]


def _board(machine: Machine) -> list[str]:
    kvm = machine.accelerator == KVM
    wanted = machine.wanted
    return [
        *("-machine", "q35,sata=off,smbus=off,usb=off,vmport=off"),
        *("-accel", "kvm" if kvm else f"tcg,thread=multi,tb-size={TRANSLATED_MIB}"),
        # Newer ones take a third longer to emulate; older ones do not start what distributions build today.
        *("-cpu", "host" if kvm else "Nehalem"),
        *("-smp", f"cpus={wanted.cpus},maxcpus={wanted.cpus_most}"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-shutdown", "-S"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-device", "virtio-rng-pci"),
        # Every disk has a port of its own, or it could not be taken out.
        *(word for slot in range(DISKS_MOST) for word in ("-device", _port(slot))),
    ]


def _port(slot: int) -> str:
    address = f"{0x10 + slot // 8:#x}.{slot % 8}"
    return f"pcie-root-port,id={port_name(slot)},chassis={slot + 1},addr={address},multifunction=on"


def port_name(slot: int) -> str:
    return f"port{slot}"


def spare_mib(wanted: Wanted) -> int:
    """What the guest may be given on top of what it starts with, in whole steps."""
    return -(-(wanted.memory_most_mib - wanted.memory_mib) // SPARE_STEP_MIB) * SPARE_STEP_MIB


def _memory(wanted: Wanted) -> list[str]:
    spare = spare_mib(wanted)
    if not spare:
        return ["-m", f"size={wanted.memory_mib}M"]
    return [
        *("-m", f"size={wanted.memory_mib}M,maxmem={wanted.memory_mib + spare}M"),
        *("-object", f"memory-backend-ram,id={SPARE},size={spare}M,reserve=off"),
        *("-device", f"virtio-mem-pci,id={SPARE_DEVICE},memdev={SPARE},requested-size=0"),
    ]


def _disks(machine: Machine) -> list[str]:
    root = {
        "driver": "qcow2",
        "node-name": "root",
        "discard": "unmap",
        "file": {"driver": "file", "filename": OVERLAY},
    }
    seed = {"driver": "raw", "node-name": "seed", "read-only": True, "file": {"driver": "file", "filename": SEED}}
    first = "" if machine.image.kernel else ",bootindex=0"
    return [
        *("-blockdev", json.dumps(root)),
        *("-device", f"virtio-blk-pci,drive=root,addr=0x2{first}"),
        *("-blockdev", json.dumps(seed)),
        *("-device", "virtio-blk-pci,drive=seed,addr=0x3"),
    ]


def _wires(machine: Machine) -> list[str]:
    def socket(name: str, more: str = "") -> str:
        return f"socket,id={name},path={name},server=on,wait=off{more}"

    return [
        *("-netdev", f"tap,id=net,fd={TAP_FD}"),
        *("-device", f"virtio-net-pci,netdev=net,romfile=,mac={machine.name.mac}"),
        *("-chardev", socket(QMP)),
        *("-mon", f"chardev={QMP},mode=control"),
        *("-chardev", socket(CONSOLE, f",logfile={CONSOLE_LOG},logappend=on")),
        *("-serial", f"chardev:{CONSOLE}"),
        *("-chardev", socket(GUEST)),
        *("-device", "virtio-serial-pci"),
        *("-device", f"virtserialport,chardev={GUEST},name={GUEST_PORT}"),
    ]


def _boot(image: Image) -> list[str]:
    if not image.kernel:
        return []
    initrd = ["-initrd", str(image.initrd)] if image.initrd else []
    return ["-kernel", str(image.kernel), *initrd, "-append", image.cmdline]


# --- what is plugged over QMP


@dataclass(slots=True, frozen=True)
class Plug:
    """Three steps of one disk: the key to its export, if it needs one; what is behind it; what the guest sees."""

    credentials: Arguments | None
    block: Arguments
    device: Arguments


def plug(disk: Disk, folder: Path, port: str, reconnect_seconds: int, name: str = "") -> Plug:
    """`folder` of the machine: the file of a local disk, or the key of an encrypted export, lies there.

    `name` is the serial that the guest sees, where that is not the disk's own.
    """
    serial, name = disk.serial, name or disk.serial
    device = {"driver": "virtio-blk-pci", "id": name, "drive": block_name(serial), "bus": port, "serial": name}
    if not disk.address:
        behind: Arguments = {"driver": "file", "filename": str(folder / disk_file(serial)), "discard": "unmap"}
        return Plug(
            None, {"driver": "raw", "node-name": block_name(serial), "discard": "unmap", "file": behind}, device
        )
    block = {
        "driver": "nbd",
        "node-name": block_name(serial),
        "server": {"type": "inet", "host": disk.address, "port": str(disk.port)},
        "reconnect-delay": reconnect_seconds,
        "discard": "unmap",
    }
    if not disk.secret:
        return Plug(None, block, device)
    block["tls-creds"] = key_name(serial)
    key = {"qom-type": "tls-creds-psk", "id": key_name(serial), "endpoint": "client", "username": PSK_USER,
           "dir": str(folder / key_folder(serial))}  # fmt: skip
    return Plug(key, block, device)


def as_long_as(block: Arguments, serial: str, length: int) -> Arguments:
    """What is behind a disk, cut to so many bytes: QEMU copies only onto what is as long."""
    behind = block["file"] if block["driver"] == "raw" else block
    return {
        "driver": "raw",
        "node-name": block_name(serial),
        "discard": "unmap",
        "size": length,
        "file": {**behind, "node-name": wire_name(serial)},
    }


def in_full(serial: str) -> Arguments:
    """The same, as long as it is."""
    return {"driver": "raw", "node-name": block_name(serial), "discard": "unmap", "file": wire_name(serial)}


def block_name(serial: str) -> str:
    return f"{BLOCK}{serial}"


def wire_name(serial: str) -> str:
    """What is behind a disk that was cut to a length."""
    return f"wire-{serial}"


def copy_name(serial: str) -> str:
    """Of the job that copies onto this disk, and of the node through which the guest then writes to both."""
    return f"{COPY}{serial}"


def key_name(serial: str) -> str:
    return f"key-{serial}"


def disk_file(serial: str) -> str:
    return f"{serial}.raw"


def key_folder(serial: str) -> str:
    """Holds one file, `keys.psk`: QEMU takes a folder and finds that name in it."""
    return f"{serial}.key"


def processors(listed: Sequence[Arguments]) -> tuple[list[Arguments], list[str]]:
    """From query-hotpluggable-cpus: how to add each that is not there, and the paths of those that are."""
    ordered = sorted(listed, key=lambda each: sorted(each["props"].items()))
    absent = [each for each in ordered if "qom-path" not in each]
    return (
        [{"driver": each["type"], "id": cpu_name(each["props"]), **each["props"]} for each in absent],
        [each["qom-path"] for each in ordered if "qom-path" in each],
    )


def cpu_name(props: Arguments) -> str:
    return "cpu-" + "-".join(str(number) for _, number in sorted(props.items()))


def spare_bytes(wanted_bytes: int, base_bytes: int, block_bytes: int) -> int:
    """How much of the spare memory makes up the difference to what the guest started with, in whole blocks."""
    return max(wanted_bytes // MIB * MIB - base_bytes, 0) // block_bytes * block_bytes
