"""Whether this machine can carry a lab, and if not, why."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("debootstrap", "ip", "nc", "nsenter", "ssh", "ssh-keygen", "systemd-nspawn", "unshare")
KERNEL_PROGRAMS = ("mke2fs", "qemu-system-x86_64")
"""For hosts with a kernel of their own."""
INOTIFY_LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_INSTANCES = 8192


class LabError(Exception):
    """One sentence for people: what failed, on which host or file, and the way out."""


@functools.cache
def why_not() -> str:
    """The reason why no lab can be made here; empty if one can."""
    if sys.platform != "linux":
        return "the lab needs Linux"
    if os.geteuid() != 0:
        return "the lab needs root"
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return f"the lab needs {', '.join(missing)}: run make lab-deps"
    if os_release().get("ID") != "debian":
        return "the lab needs Debian, from whose mirror its hosts' root is built"
    trial = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "ip", "link", "add", "trial0", "type", "veth"],
        capture_output=True,
        text=True,
    )
    if trial.returncode:
        return "the lab needs namespaces and veth: " + " ".join(trial.stderr.split())
    return ""


@functools.cache
def why_no_kernel() -> str:
    """The reason why no host can have a kernel of its own here; empty if one can."""
    if reason := why_not():
        return reason
    missing = [program for program in KERNEL_PROGRAMS if not shutil.which(program)]
    if missing:
        return f"hosts with a kernel of their own need {', '.join(missing)}: run make lab-deps"
    if os.uname().machine != "x86_64":
        return "hosts with a kernel of their own need an x86-64 machine"
    if not Path("/dev/net/tun").exists():
        return "hosts with a kernel of their own need /dev/net/tun"
    return ""


def os_release() -> dict[str, str]:
    """`/etc/os-release` as a mapping; empty where there is none."""
    file = Path("/etc/os-release")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {key: value.strip("\"'") for key, value in pairs}


def make_room() -> None:
    """Let root have as many inotify instances as 200 hosts need, until this machine starts anew.

    A host takes about ten. Of the 128 that a kernel grants by default a dozen hosts leave none, and then some unit of
    the next one fails, a login or a console, for no reason that it tells.
    """
    if int(INOTIFY_LIMIT.read_text()) < INOTIFY_INSTANCES:
        INOTIFY_LIMIT.write_text(f"{INOTIFY_INSTANCES}\n")
