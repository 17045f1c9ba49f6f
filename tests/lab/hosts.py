"""A host that shares this machine's kernel: its disk, its start, its end.

A host's disk is a folder laid over the shared root by overlayfs, in a mount namespace that ends with the host: there
is nothing to unmount after a crash. Everything a host writes is on that disk and survives its power-off, as on a
machine of metal; only /run, /tmp and /dev/shm are lost. The overlay is mounted `volatile`: fsync costs nothing, and
is not needed, since it is hosts that lose power here and never the machine beneath them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import identity, network
from .needs import LabError
from .processes import Process
from .state import Host, State

READY_SECONDS = 60.0

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
    identity.write(state, host, disk / "upper")


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
    host.process = Process.spawn(command, environment, state.console(host))


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
