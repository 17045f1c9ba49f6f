"""What makes one host out of a root that many share: name, identity, address and keys, as files of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

from . import network
from .state import Host, State, folder


def write(state: State, host: Host, upper: Path) -> None:
    """The files, below the new folder `upper`, to be laid over the root or copied into it."""
    upper.mkdir(parents=True)
    _write(state, upper, "etc/hostname", host.name + "\n")
    _write(state, upper, "etc/machine-id", uuid.uuid4().hex + "\n", mode=0o444)
    _write(state, upper, "etc/hosts", addresses(state))
    # Before systemd's own 80-container-host0.network.
    address = f"{host.address}/{network.NETWORK.prefixlen}"
    wire = f"[Match]\nName=host0\n[Network]\nAddress={address}\nLinkLocalAddressing=no\n"
    _write(state, upper, "etc/systemd/network/10-lab.network", wire)
    _write(state, upper, "root/.ssh/authorized_keys", (folder(state.name) / "key.pub").read_text(), mode=0o600)
    key = upper / "etc/ssh/ssh_host_ed25519_key"
    _folder(state, upper, key.parent)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", str(key)], check=True)


def addresses(state: State) -> str:
    """The /etc/hosts of every host: there is no other way to look up a name in a lab."""
    everybody = "".join(f"{each.address} {each.name}\n" for each in state.hosts.values())
    return f"127.0.0.1 localhost\n::1 localhost\n{network.HERE} lab-here\n{everybody}"


def _write(state: State, upper: Path, path: str, text: str, mode: int = 0o644) -> None:
    file = upper / path
    _folder(state, upper, file.parent)
    file.write_text(text)
    file.chmod(mode)


def _folder(state: State, upper: Path, wanted: Path) -> None:
    """Folders on the disk hide those of the root beneath: they take over owner and mode."""
    for part in reversed([wanted, *wanted.parents]):
        if part.is_relative_to(upper) and part != upper and not part.exists():
            part.mkdir(mode=0o700)
            below = state.root / part.relative_to(upper)
            if below.is_dir():
                shutil.copystat(below, part)
                os.chown(part, below.stat().st_uid, below.stat().st_gid)
