"""The limits that the control groups above us set, in both versions of cgroups.

A limit counts wherever it is set between our group and the top, so all of them are read, and the least is true.
In a container the path that /proc names may not be below the mount; then only the mount's top is there to be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from lavalite.model.resources import WHOLE
from lavalite.providers.sysfs import Tree

MOUNT = "sys/fs/cgroup"


def memory_limit_bytes(tree: Tree) -> int | None:
    """None: unlimited. (Version 1 writes a huge number for that; whoever compares it with the memory is right.)"""
    limits = [
        int(text)
        for folder, v2 in _groups(tree, "memory")
        if (text := tree.text(f"{folder}/{'memory.max' if v2 else 'memory.limit_in_bytes'}")).isdecimal()
    ]
    return min(limits, default=None)


def cpu_quota_milli(tree: Tree) -> int | None:
    """Milli-cores that may be used at a time. None: unlimited."""
    quotas = []
    for folder, v2 in _groups(tree, "cpu"):
        if v2:
            quota, _, period = tree.text(f"{folder}/cpu.max").partition(" ")
        else:
            quota, period = tree.text(f"{folder}/cpu.cfs_quota_us"), tree.text(f"{folder}/cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            quotas.append(int(quota) * WHOLE // int(period))
    return min(quotas, default=None)


def _groups(tree: Tree, controller: str) -> Iterator[tuple[str, bool]]:
    """(folder, is version 2) of each group that we are in, from our own to the top."""
    for line in tree.text("proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            tops, v2 = [MOUNT, f"{MOUNT}/unified"], True
        elif controller in controllers.split(","):
            tops, v2 = [f"{MOUNT}/{controllers}", f"{MOUNT}/{controller}"], False
        else:
            continue
        group = PurePosixPath("/", path)
        for top in tops:
            for step in (group, *group.parents):
                yield f"{top}{step}".rstrip("/"), v2
