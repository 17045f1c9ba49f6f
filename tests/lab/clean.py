"""How a lab ends: on purpose, or because the test that made it was killed."""

from __future__ import annotations

import shutil

from . import network, ssh, state
from .kinds import PROGRAMS, verbs
from .root import cache_folder


def clean(*, everything: bool = False) -> list[str]:
    """End the labs that nobody can want any more, or all of them. Returns their names.

    Also the disks of labs that are not known any more, as after the machine's own restart.
    """
    with state.locked():
        ended = [lab for lab in state.labs() if everything or state.load(lab).stale()]
        for lab in ended:
            _destroy(lab)
        for disks in cache_folder().glob("disks/*"):
            if disks.name not in state.labs():
                shutil.rmtree(disks)
    return ended


def destroy(lab: str) -> None:
    """All of a lab. No error if there is nothing, or if another process was quicker."""
    with state.locked():
        if lab in state.labs():
            _destroy(lab)


def remove_hosts(lab: str) -> None:
    """Hosts and disks alone. No error if there is no such lab."""
    with state.locked():
        if lab in state.labs():
            _remove_hosts(lab)


def _destroy(lab: str) -> None:
    _remove_hosts(lab)
    network.delete(lab)
    shutil.rmtree(state.folder(lab))


def _remove_hosts(lab: str) -> None:
    now = state.load(lab)
    ssh.end_shared_connections(lab)
    for process in network.processes(lab):  # also one that was started and not yet written down
        if process.command() in PROGRAMS:
            for each in (process, *process.children()):
                each.kill()
            process.reap()
    for host in now.hosts.values():
        if now.boot == state.boot_id():
            verbs(host).kill(now, host)
    shutil.rmtree(now.disks, ignore_errors=True)
    now.hosts.clear()
    state.save(now)
    ssh.write_config(now)
