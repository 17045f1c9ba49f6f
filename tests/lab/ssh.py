"""The key of a lab, its ssh configuration, and running a command on a host.

The configuration enters the lab's namespace by itself, so that `ssh -F FILE HOST`, Ansible and testinfra reach the
hosts from inside and from outside alike.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import network
from .state import Host, State, folder

CONNECT_SECONDS = 5


def make_key(file: Path) -> None:
    file.unlink(missing_ok=True)  # else ssh-keygen asks
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(file)], check=True)


def config_file(lab: str) -> Path:
    return folder(lab) / "ssh_config"


def write_config(state: State) -> None:
    """Connections that outlive a command lie in the lab's folder: another lab has hosts at the same addresses."""
    common = {
        "User": "root",
        "IdentityFile": folder(state.name) / "key",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "ConnectTimeout": CONNECT_SECONDS,
        "ServerAliveInterval": 5,
        "ControlPath": control_folder(state.name) / "%C",
        "ProxyCommand": shlex.join(network.inside(state.name)) + " nc -F %h %p",
        "ProxyUseFdpass": "yes",
    }
    hosts = [f"Host {host.name}\n  HostName {host.address}" for host in state.hosts.values()]
    shared = "\n".join(f"  {key} {value}" for key, value in common.items())
    control_folder(state.name).mkdir(exist_ok=True)
    config_file(state.name).write_text("\n".join([*hosts, "Host *", shared, ""]))


def control_folder(lab: str) -> Path:
    return folder(lab) / "c"


def command(lab: str, host: Host, line: str) -> list[str]:
    return ["ssh", "-F", str(config_file(lab)), "-o", "ControlPath=none", host.name, "--", line]


def end_shared_connections(lab: str) -> None:
    """Ask each ssh that keeps a connection open for later commands to end now."""
    for socket in control_folder(lab).glob("*"):
        subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "none"], capture_output=True)


def variables(lab: str, host: Host) -> dict[str, str]:
    """What Ansible needs to know about a host."""
    return {
        "ansible_host": host.address,
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(folder(lab) / "key"),
        "ansible_ssh_common_args": f"-F {config_file(lab)}",
        "ansible_control_path_dir": str(control_folder(lab)),
    }


def inventory(state: State, groups: Mapping[str, Iterable[str]]) -> dict[str, object]:
    """An inventory for Ansible, to be written as JSON: all hosts in the group `lab`, and in `groups` as asked for."""
    hosts = {name: variables(state.name, host) for name, host in state.hosts.items()}
    children: dict[str, object] = {"lab": {"hosts": hosts}}
    for group, names in groups.items():
        children[group] = {"hosts": {name: {} for name in names}}
    return {"all": {"children": children}}
