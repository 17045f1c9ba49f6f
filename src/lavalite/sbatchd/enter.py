"""The enter program: what it is given to a shell's arguments, it runs inside a logical host's limits.

    enter.py HOST.json ARGUMENTS…        becomes  /bin/sh ARGUMENTS…

Ansible is told that this is the host's shell, so every module, command and become runs inside. It stays on the host's
cores, sees the host's devices and environment, and no process of it takes more memory than the host has. Standard
library alone, and no import that it could do without: it runs once for everything Ansible does.
"""

from __future__ import annotations

import json
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHELL = "/bin/sh"


USUAL = ("cpu", "memory", "gpu", "storage", "network")
"""Kinds that an operator did not name."""


def core_numbers(names: list[str]) -> set[int]:
    """CPU numbers of device ids: `3`, `cpu3` or `core3`."""
    return {int(name.removeprefix("cpu").removeprefix("core")) for name in names}


def confine(host: dict[str, Any]) -> dict[str, str]:
    """Put this process, and what it becomes, inside the host's limits; the environment that goes with them."""
    devices = host.get("devices", {})
    cores, gpus = devices.get("cpu", []), devices.get("gpu", [])
    if cores:
        os.sched_setaffinity(0, core_numbers(cores))
    limit = host.get("memory_bytes", 0)
    if limit:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if most != resource.RLIM_INFINITY:
            limit = min(limit, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return {
        **host_environment(host),
        "LAVALITE_CPUS": ",".join(cores),
        "LAVALITE_GPUS": ",".join(gpus),
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        **special_environment(devices),
    }


def host_environment(host: dict[str, Any]) -> dict[str, str]:
    """What tells any process of a host what that has, wherever it is: its memory near and far, its GPUs elsewhere."""
    found = {
        "LAVALITE_HOST": host["name"],
        "LAVALITE_GPU_NODES": _by_node(host.get("gpu_nodes", {})),
        "LAVALITE_MEMORY_BYTES": str(host.get("memory_bytes", 0)),
        "LAVALITE_FAR_MEMORY_BYTES": str(host.get("far_memory_bytes", 0)),
        "LAVALITE_POOLS": ",".join(host.get("pools", [])),
    }
    for kind, elsewhere in sorted(host.get("special_nodes", {}).items()):
        found[f"{_variable(kind)}_NODES"] = _by_node(elsewhere)
    if host.get("scratch"):
        found["LAVALITE_SCRATCH"] = host["scratch"]
    return found


def special_environment(devices: dict[str, list[str]]) -> dict[str, str]:
    """`LAVALITE_SPECIAL_FPGA=/dev/xdma0,/dev/xdma1`: the devices of kinds that an operator named, by kind."""
    found: dict[str, list[str]] = {}
    for kind in sorted(devices):
        if kind not in USUAL and devices[kind]:
            found.setdefault(_variable(kind), []).extend(devices[kind])
    return {name: ",".join(paths) for name, paths in found.items()}


def _variable(kind: str) -> str:
    return f"LAVALITE_SPECIAL_{kind.upper().replace('-', '_')}"


def _by_node(devices: dict[str, list[str]]) -> str:
    """`n07:UUID,UUID;n08:UUID`."""
    return ";".join(f"{node}:{','.join(devices[node])}" for node in sorted(devices))


def main(arguments: list[str]) -> int:
    """Never returns where it succeeds. A refusal is one sentence, and the shell's own code for what cannot be run."""
    try:
        with open(arguments[0], encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs more than all the rest
            host = json.load(file)
        state = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(arguments[0]))))  # noqa: PTH100, PTH120
        environment = {**os.environ, **confine(host), "LAVALITE_AGENT_SOCKET": f"{state}/inside.sock"}
    except (OSError, ValueError, KeyError, IndexError) as error:
        named = arguments[0] if arguments else "no host was named"
        print(
            f"lavalite: this logical host cannot be entered ({named}: {error}). Is it still composed?",
            file=sys.stderr,
        )
        return 126
    os.execve(SHELL, [SHELL, *arguments[1:]], environment)  # noqa: S606 - becoming a shell is what it is for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
