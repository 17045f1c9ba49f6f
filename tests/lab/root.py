"""The root folder that all hosts share: built once by debootstrap, kept in a cache folder that git ignores.

The folder's name carries a digest of the recipe, so a changed recipe builds a new one beside the old, under which a
running lab may still lie.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .needs import LabError, os_release

# The hosts have no way to apt: what a role installs from Debian must be here already.
PACKAGES = (
    *("systemd", "systemd-sysv", "libpam-systemd", "dbus", "polkitd", "procps", "sudo", "acl"),
    *("udev", "kmod"),  # for hosts with a kernel of their own; in a container they do not start
    *("iproute2", "iputils-ping", "nftables", "openssh-server", "ca-certificates"),
    *("python3", "python3-venv", "python3-apt"),
    *("etcd-server", "etcd-client"),
    *("nbdkit", "nbd-client", "libnbd-bin", "fuse3", "e2fsprogs", "util-linux"),  # parts of other nodes
    *("qemu-system-x86", "qemu-utils"),  # logical hosts that are virtual machines
)
SERVICES_ON = ("systemd-networkd.service", "ssh.service")
SERVICES_OFF = ("etcd.service", "nftables.service", "systemd-networkd-wait-online.service", "apt-daily.timer",
                "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer")  # fmt: skip
RECIPE = 1
"""Raise it when `_settle` changes."""


def cache_folder() -> Path:
    """`LAVALITE_LAB_CACHE`, or `.lab` in the checkout."""
    given = os.environ.get("LAVALITE_LAB_CACHE")
    return Path(given).resolve() if given else Path(__file__).resolve().parents[2] / ".lab"


def shared_root() -> Path:
    """The root folder, built if there is none yet: about 90 s, 400 MB. Two that ask at once wait for one build."""
    suite = os_release().get("VERSION_CODENAME", "")
    digest = hashlib.sha256(repr((RECIPE, suite, PACKAGES, SERVICES_ON, SERVICES_OFF)).encode()).hexdigest()[:12]
    cache = cache_folder()
    folder = cache / f"root-{suite}-{digest}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "root.lock"):
        if not folder.is_dir():
            for left_over in cache.glob("building-*"):
                shutil.rmtree(left_over)
            unfinished = cache / f"building-{digest}"
            _build(unfinished, suite, cache / "root.log")
            _settle(unfinished)
            unfinished.rename(folder)
    return folder


@contextmanager
def locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# It mounts what the packages' programs need to see: where only it and they see that, and ending with it. It ends with
# this process, so that nobody else's build is written to.
CONFINED = ("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def _build(folder: Path, suite: str, log: Path) -> None:
    """debootstrap into `folder`. Raises LabError with the log's path and last line."""
    command = [
        *CONFINED,
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        suite,
        str(folder),
        mirror(suite),
    ]
    with log.open("w") as output:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        last = (log.read_text(errors="replace").splitlines() or ["no output"])[-1]
        raise LabError(f"debootstrap of the hosts' root failed: {last} (the log is {log}).")


def _settle(folder: Path) -> None:
    """Make the root fit for many hosts: none has a name, an identity or a key in it, none waits for a network."""
    for enable, services in (("enable", SERVICES_ON), ("mask", SERVICES_OFF[2:]), ("disable", SERVICES_OFF[:2])):
        subprocess.run(
            ["systemctl", "--quiet", f"--root={folder}", enable, *services], check=True, capture_output=True
        )
    for file in (*folder.glob("etc/ssh/ssh_host_*"), *folder.glob("var/cache/apt/archives/*.deb")):
        file.unlink()
    shutil.rmtree(folder / "var/lib/apt/lists")
    (folder / "var/lib/apt/lists/partial").mkdir(parents=True)
    (folder / "etc/hostname").unlink(missing_ok=True)
    (folder / "etc/machine-id").write_text("")
    (folder / "etc/resolv.conf").unlink(missing_ok=True)
    (folder / "etc/resolv.conf").write_text("")
    (folder / "etc/apt/sources.list").write_text("")


def mirror(suite: str, apt: Path = Path("/etc/apt")) -> str:
    """The first mirror that apt uses on this machine for `suite`; apt's sources of both forms are read."""
    files = [apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))]
    for file in (file for file in files if file.exists()):
        for line in file.read_text(encoding="utf-8").splitlines():
            words = [word for word in line.split() if not (word.startswith("[") or word.endswith("]"))]
            if len(words) >= 3 and words[0] == "deb" and words[2] == suite:
                return words[1]
    for file in sorted(apt.glob("sources.list.d/*.sources")):
        for stanza in file.read_text(encoding="utf-8").split("\n\n"):
            fields = dict(line.split(":", 1) for line in stanza.splitlines() if ":" in line and line[0] not in " #")
            kinds, suites = fields.get("Types", "").split(), fields.get("Suites", "").split()
            if "deb" in kinds and suite in suites and fields.get("URIs", "").split():
                return fields["URIs"].split()[0]
    raise LabError(f"No mirror for {suite} in {apt}: add one to sources.list, as apt reads it.")
