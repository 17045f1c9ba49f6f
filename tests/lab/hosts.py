"""One host: its disk, its start, its end.

A host's disk is a folder laid over the shared root by overlayfs, in a mount namespace that ends with the host: there
is nothing to unmount after a crash. Everything a host writes is on that disk and survives its power-off, as on a
machine of metal; only /run, /tmp and /dev/shm are lost. The overlay is mounted `volatile`: fsync costs nothing, and
is not needed, since it is hosts that lose power here and never the machine beneath them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

from . import network
from .needs import LabError
from .processes import Process
from .state import Host, State, folder

CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")
"""Where systemd keeps track of processes: the first where all is version 2, the others where it is not."""

# The machine's own systemd, where there is one, gives each host a scope. Elsewhere each gets a cgroup here: two that
# shared one would see each other's processes under the same units.
START = """
set -e
for hierarchy in $HIERARCHIES; do
    [ -e "$hierarchy/cgroup.procs" ] || continue
    mkdir -p "$hierarchy/$CGROUP"
    echo $$ > "$hierarchy/$CGROUP/cgroup.procs"
done
mkdir -p "$DISK/root"
mount -t overlay -o "volatile,lowerdir=$ROOT,upperdir=$DISK/upper,workdir=$DISK/work" overlay "$DISK/root" || {
    echo "No overlay on $DISK: set LAVALITE_LAB_CACHE to a folder on ext4, xfs or tmpfs"
    exit 1
}
exec systemd-nspawn "--directory=$DISK/root" "$@"
"""


def prepare(state: State, host: Host) -> None:
    """A new disk, on which only the host's name, address, identity and keys are written."""
    disk = state.disk(host)
    (disk / "upper").mkdir(parents=True)
    _write(state, host, "etc/hostname", host.name + "\n")
    _write(state, host, "etc/machine-id", uuid.uuid4().hex + "\n", mode=0o444)
    _write(state, host, "etc/hosts", addresses(state))
    # Before systemd's own 80-container-host0.network.
    address = f"{host.address}/{network.NETWORK.prefixlen}"
    wire = f"[Match]\nName=host0\n[Network]\nAddress={address}\nLinkLocalAddressing=no\n"
    _write(state, host, "etc/systemd/network/10-lab.network", wire)
    _write(state, host, "root/.ssh/authorized_keys", (folder(state.name) / "key.pub").read_text(), mode=0o600)
    key = disk / "upper/etc/ssh/ssh_host_ed25519_key"
    _folder(state, host, key.parent)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", str(key)], check=True)


def addresses(state: State) -> str:
    """The /etc/hosts of every host: there is no other way to look up a name in a lab."""
    everybody = "".join(f"{each.address} {each.name}\n" for each in state.hosts.values())
    return f"127.0.0.1 localhost\n::1 localhost\n{network.HERE} lab-here\n{everybody}"


def start(state: State, host: Host) -> None:
    """Power on; returns at once, with `host.process` set."""
    disk = state.disk(host)
    shutil.rmtree(disk / "work", ignore_errors=True)  # holds the mark of the volatile mount before
    (disk / "work").mkdir()
    options = [
        "--boot",
        "--quiet",
        f"--machine=h{host.number}",
        f"--hostname={host.name}",
        f"--network-bridge={network.BRIDGE}",
        "--register=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--console=read-only",
    ]
    environment = {**os.environ, "DISK": str(disk), "ROOT": str(state.root), "HIERARCHIES": ""}
    if not Path("/run/systemd/system").is_dir():
        options.append("--keep-unit")
        environment |= {"HIERARCHIES": " ".join(CGROUPS), "CGROUP": _cgroup(state, host)}
    command = [*network.inside(state.name), "unshare", "--mount", "sh", "-c", START, "start", *options]
    log = os.open(disk / "console.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    streams = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    try:  # not Popen: the host may outlive this process, and nobody waits for it
        host.process = Process.of(
            os.posix_spawnp(command[0], command, environment, file_actions=streams, setsid=True)
        )
    finally:
        os.close(log)
        os.close(nothing)


def kill(state: State, host: Host) -> None:
    """The plug is pulled: SIGKILL to nspawn and to the host's first process, with which all others die."""
    if host.process is not None:
        first = host.process.children() if host.process.alive() else []
        for process in (host.process, *first):
            process.kill()
        host.process.reap()
    network.pull_out(state.name, host.number)
    _remove_cgroups(_cgroup(state, host))
    host.process = None


def discard(state: State, host: Host) -> None:
    """The disk goes."""
    shutil.rmtree(state.disk(host), ignore_errors=True)


def console(state: State, host: Host, lines: int = 5) -> str:
    """The end of what the host's console showed."""
    file = state.disk(host) / "console.log"
    text = file.read_text(errors="replace").splitlines() if file.exists() else []
    return " / ".join(line.strip() for line in text[-lines:]) or "nothing"


def _cgroup(state: State, host: Host) -> str:
    return f"{network.PREFIX}{state.name}-{host.number}"


def _remove_cgroups(name: str) -> None:
    """From the innermost outwards; those that the machine's systemd made are its own to remove."""
    for hierarchy in CGROUPS:
        top = Path(hierarchy, name)
        for inner in sorted((Path(path) for path, _, _ in os.walk(top)), key=lambda path: -len(path.parts)):
            try:
                inner.rmdir()
            except OSError as problem:
                raise LabError(f"{inner} still has processes: {problem}.") from problem


def _write(state: State, host: Host, path: str, text: str, mode: int = 0o644) -> None:
    file = state.disk(host) / "upper" / path
    _folder(state, host, file.parent)
    file.write_text(text)
    file.chmod(mode)


def _folder(state: State, host: Host, wanted: Path) -> None:
    """Folders on the disk hide those of the root beneath: they take over owner and mode."""
    upper = state.disk(host) / "upper"
    for part in reversed([wanted, *wanted.parents]):
        if part.is_relative_to(upper) and part != upper and not part.exists():
            part.mkdir(mode=0o700)
            below = state.root / part.relative_to(upper)
            if below.is_dir():
                shutil.copystat(below, part)
                os.chown(part, below.stat().st_uid, below.stat().st_gid)
