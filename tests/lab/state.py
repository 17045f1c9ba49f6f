"""What is on disk about each lab, so that a later process can use it or end it.

    /run/lavalite-lab/NAME/     state.json, the ssh key and configuration, Ansible's inventory
    CACHE/disks/NAME/HOST/      what the host wrote, and its console's log

The folder under /run is made before anything else of a lab and removed after everything else: what a crash leaves
behind can be found by it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import network
from .needs import LabError
from .processes import Process

RUN = Path("/run/lavalite-lab")


@dataclass(slots=True)
class Host:
    """`number` gives the address and the machine's name; `process` is its nspawn or QEMU, None while it is off."""

    name: str
    number: int
    process: Process | None = None
    own_kernel: bool = False
    """Whether it is a machine of its own (machines.py) and not a container (hosts.py)."""

    @property
    def address(self) -> str:
        return network.address(self.number)

    @property
    def on(self) -> bool:
        return self.process is not None and self.process.alive()


@dataclass(slots=True)
class State:
    """One lab. `owner` is the process with which it ends; without one it is kept until somebody destroys it."""

    name: str
    root: Path
    disks: Path
    boot: str
    owner: Process | None = None
    hosts: dict[str, Host] = field(default_factory=dict)

    def stale(self) -> bool:
        """Nobody can want it any more: its owner has died, or the machine was started anew."""
        return self.boot != boot_id() or (self.owner is not None and not self.owner.alive())

    def host(self, name: str) -> Host:
        """Raises LabError with the names that there are."""
        if name not in self.hosts:
            raise LabError(f"Lab {self.name} has no host {name}: it has {', '.join(self.hosts) or 'none'}.")
        return self.hosts[name]

    def disk(self, host: Host) -> Path:
        return self.disks / host.name

    def console(self, host: Host) -> Path:
        return self.disk(host) / "console.log"

    def said(self, host: Host, lines: int = 5) -> str:
        """The end of what the host's console showed, in one line."""
        file = self.console(host)
        text = file.read_text(errors="replace").splitlines() if file.exists() else []
        return " / ".join(line.strip() for line in text[-lines:]) or "nothing"


def folder(lab: str) -> Path:
    return RUN / lab


def labs() -> list[str]:
    return sorted(file.parent.name for file in RUN.glob("*/state.json"))


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def load(lab: str) -> State:
    """Raises LabError where there is no such lab."""
    try:
        fields = json.loads((folder(lab) / "state.json").read_text())
    except FileNotFoundError:
        raise LabError(f"There is no lab {lab}: there are {', '.join(labs()) or 'none'}.") from None
    hosts = {
        name: Host(name, each["number"], _process(each["process"]), each.get("own_kernel", False))
        for name, each in fields["hosts"].items()
    }
    return State(
        fields["name"], Path(fields["root"]), Path(fields["disks"]), fields["boot"], _process(fields["owner"]), hosts
    )


def save(state: State) -> None:
    """Whole or not at all."""
    folder(state.name).mkdir(parents=True, exist_ok=True)
    written = folder(state.name) / "state.json.new"
    written.write_text(json.dumps(asdict(state), default=str, indent=1))
    written.rename(folder(state.name) / "state.json")


@contextmanager
def locked() -> Iterator[None]:
    """One process at a time changes labs: what is done under the lock takes well under a second."""
    RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (RUN / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def this_process() -> Process:
    return Process.of(os.getpid())


def _process(fields: dict[str, int] | None) -> Process | None:
    return Process(**fields) if fields else None
