"""What may be seen of parts without rights: processes, connections, mounts, swap. Linux, read from /proc and /sys."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from lavalite.sbatchd.keeper.proc import boot_id, look_at

ESTABLISHED, LISTEN = 1, 10
"""Of /proc/net/tcp."""
Address = tuple[str, int]


def unit_of(slug: str) -> str:
    return f"lavalite-part-{slug}.service"


def noted_process(note: Path) -> int | None:
    """The pid in a note, if that very process lives still."""
    try:
        pid, ticks, boot = note.read_text().split()
    except (OSError, ValueError):
        return None
    process = look_at(int(pid))
    alive = process is not None and process.alive and process.ticks == int(ticks) and boot == boot_id()
    return int(pid) if alive else None


def connections(state: int) -> Iterator[tuple[Address, Address]]:
    """Local and remote address of each TCP socket of this machine in that state."""
    for name in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if int(fields[3], 16) == state:
                yield _address(fields[1]), _address(fields[2])


def listens(port: int) -> bool:
    return any(local[1] == port for local, _ in connections(LISTEN))


def is_connected(address: str, port: int) -> bool:
    """Whether this machine has a connection there."""
    wanted = str(ipaddress.ip_address(address))
    return any(remote == (wanted, port) for _, remote in connections(ESTABLISHED))


def is_mounted(path: str) -> bool:
    return bool(_mounts(path))


def mounted_at(device: str) -> list[Path]:
    """Where a block device is mounted."""
    found = Path(device).stat().st_rdev
    number = f"{os.major(found)}:{os.minor(found)}"
    fields = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [Path(each[4].replace("\\040", " ")) for each in fields if each[2] == number]


def is_read_only(path: str) -> bool:
    """Whether the file system itself is: the kernel has found it broken."""
    return any("ro" in fields[-1].split(",") for fields in _mounts(path))


def _mounts(path: str) -> list[list[str]]:
    fields = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [each for each in fields if each[4] == path.replace(" ", "\\040")]


def is_swap(device: str) -> bool:
    return any(line.split()[:1] == [device] for line in Path("/proc/swaps").read_text().splitlines()[1:])


def _address(text: str) -> Address:
    host, _, port = text.partition(":")
    words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
    packed = struct.pack(f"{'<' if sys.byteorder == 'little' else '>'}{len(words)}I", *words)
    found = ipaddress.ip_address(socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed))
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found), int(port, 16)
