"""The namespace of a lab, its bridge, and the cables of its hosts.

The test's side is 198.18.0.1, host number n is 198.18.0.(10 + n): the range that RFC 2544 keeps for benchmarks. There
is no route out of the namespace, so the same addresses in two labs never meet.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
from contextlib import suppress
from pathlib import Path

from .needs import LabError
from .processes import Process

BRIDGE = "lab0"
NETWORK = ipaddress.IPv4Network("198.18.0.0/24")
HERE = str(NETWORK[1])
PREFIX = "lavalab-"
MOST_HOSTS = 200


def address(number: int) -> str:
    """Of host `number`, from 1."""
    return str(NETWORK[10 + number])


def namespace(lab: str) -> str:
    return PREFIX + lab


def inside(lab: str) -> list[str]:
    """What to put before a command so that it runs in the lab's namespace.

    Not `ip netns exec`: that mounts /sys anew, and systemd-nspawn then finds no cgroups.
    """
    return ["nsenter", f"--net=/run/netns/{namespace(lab)}"]


def create(lab: str) -> None:
    """The namespace with its bridge, up and with the test's address. Raises LabError."""
    _ip("netns", "add", namespace(lab))
    within = ("-n", namespace(lab))
    _ip(*within, "link", "set", "lo", "up")
    _ip(*within, "link", "add", BRIDGE, "type", "bridge", "stp_state", "0")
    _ip(*within, "address", "add", f"{HERE}/{NETWORK.prefixlen}", "dev", BRIDGE)
    _ip(*within, "link", "set", BRIDGE, "up")


def delete(lab: str) -> None:
    """The namespace goes; whatever still runs in it is ended first, by process id."""
    if exists(lab):
        spared = Process.of(os.getpid()).forebears()  # a lab is sometimes ended from within
        for process in processes(lab):
            if process not in spared:
                process.kill()
        _ip("netns", "delete", namespace(lab))


def exists(lab: str) -> bool:
    return Path("/run/netns", namespace(lab)).exists()


def processes(lab: str) -> list[Process]:
    """Those whose network is this lab's: its hosts' nspawns, and what a test started on its side."""
    found = []
    for pid in _ip("netns", "pids", namespace(lab)).split() if exists(lab) else ():
        with suppress(ProcessLookupError):
            found.append(Process.of(int(pid)))
    return found


def cable(number: int) -> str:
    """The name, on the bridge, of the link to host `number`; systemd-nspawn makes it from the machine's name."""
    return f"vb-h{number}"


def plug(lab: str, number: int, *, connected: bool) -> None:
    _ip("-n", namespace(lab), "link", "set", cable(number), "up" if connected else "down")


def lay_cable(lab: str, number: int) -> None:
    """A tap on the bridge for a machine of its own; systemd-nspawn lays one for a container by itself."""
    within = ("-n", namespace(lab))
    _ip(*within, "tuntap", "add", cable(number), "mode", "tap")
    _ip(*within, "link", "set", cable(number), "master", BRIDGE, "up")


def pull_out(lab: str, number: int) -> None:
    """The cable of a dead host goes at once; the kernel would take its time. No error if it is gone already."""
    subprocess.run(["ip", "-n", namespace(lab), "link", "delete", cable(number)], capture_output=True)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"ip {' '.join(arguments)}: {done.stderr.strip() or done.returncode}.")
    return done.stdout
