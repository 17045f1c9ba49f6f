"""The Lab: hosts by name, and the verbs of a test."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from . import clean, identity, machines, network, ssh, state
from .kinds import verbs
from .needs import LabError, make_room, why_not
from .root import cache_folder, shared_root
from .state import Host, State

RETRY_SECONDS = 0.1
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")  # sockets of ssh have the lab's name in their path


class Lab:
    """A lab that ends with this process; `Lab.open` uses one that another process keeps.

    Every verb reads and writes the state on disk under a lock, so several processes may use one lab.
    """

    def __init__(
        self, names: Iterable[str] = (), *, kernels: Iterable[str] = (), name: str = "", owned: bool = True
    ) -> None:
        """Nothing is made before `with` or `create`. `owned=False`: kept until `destroy`.

        `kernels`: those of the hosts that get a kernel of their own.
        """
        self.name = name or f"t{secrets.token_hex(4)}"
        self._names, self._kernels = list(names), list(kernels)
        self._owned = owned
        _check_names([self.name, *self._names])

    @classmethod
    def open(cls, name: str) -> Lab:
        """Raises LabError where there is none of that name."""
        state.load(name)
        return cls(name=name, owned=False)

    def __enter__(self) -> Lab:
        self.create()
        try:
            self.add(self._names, kernels=self._kernels)
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def create(self) -> None:
        """The namespace and the key, without hosts; what killed tests left behind is ended first."""
        if reason := why_not():
            raise LabError(f"{reason[0].upper()}{reason[1:]}.")
        make_room()
        clean.clean()
        root = shared_root()
        with state.locked():
            if self.name in state.labs():
                raise LabError(f"There is a lab {self.name} already: python -m lab destroy --name {self.name}.")
            disks = cache_folder() / "disks" / self.name
            owner = state.this_process() if self._owned else None
            made = State(self.name, root, disks, state.boot_id(), owner)
            state.save(made)
        try:
            ssh.make_key(state.folder(self.name) / "key")
            ssh.write_config(made)
            network.create(self.name)
        except BaseException:
            self.destroy()
            raise

    def add(self, names: Iterable[str], *, kernels: Iterable[str] = ()) -> None:
        """New hosts, on and answering; `kernels` are those among them that get a kernel of their own.

        Those that are there already stay, and learn the new names if they are on.
        """
        names, own_kernel = _check_names(names), frozenset(kernels)
        if unknown := own_kernel.difference(names):
            raise LabError(f"{', '.join(sorted(unknown))} shall have a kernel and is not among the hosts to make.")
        if own_kernel:
            machines.check(state.load(self.name).root)
        with self._changing() as now:
            number = max((host.number for host in now.hosts.values()), default=0)
            added = [name for name in dict.fromkeys(names) if name not in now.hosts]
            if number + len(added) > network.MOST_HOSTS:
                raise LabError(f"A lab has addresses for {network.MOST_HOSTS} hosts.")
            for offset, name in enumerate(added, start=1):
                now.hosts[name] = Host(name, number + offset, own_kernel=name in own_kernel)
            state.save(now)
            ssh.write_config(now)
            for name in added:
                verbs(now.hosts[name]).prepare(now, now.hosts[name])
                verbs(now.hosts[name]).start(now, now.hosts[name])
            older = [host.name for host in now.hosts.values() if host.on and host.name not in added]
            everybody = identity.addresses(now)
        self._wait_ready(added)
        for name in older if added else ():
            self.run(name, "cat > /etc/hosts", stdin=everybody)

    def destroy(self) -> None:
        """Hosts, disks, what still runs in the namespace, and the namespace. No error if there is nothing."""
        clean.destroy(self.name)

    def remove_hosts(self) -> None:
        """As `destroy`, but the namespace and what a test runs in it stay."""
        clean.remove_hosts(self.name)

    @property
    def hosts(self) -> Mapping[str, Host]:
        return state.load(self.name).hosts

    def address(self, host: str) -> str:
        return state.load(self.name).host(host).address

    def run(
        self,
        host: str,
        command: str | Sequence[str],
        *,
        check: bool = True,
        stdin: str = "",
        timeout_seconds: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """`command` on `host`, as root, by ssh: a line for the shell, or words that are quoted.

        Raises LabError with what it wrote if `check` and it failed; subprocess.TimeoutExpired.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        target = state.load(self.name).host(host)
        return _done(ssh.command(self.name, target, line), f"{line!r} on {host}", check, stdin, timeout_seconds)

    def here(
        self, command: Sequence[str], *, check: bool = True, stdin: str = "", timeout_seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """A command on this machine, inside the lab's network, where it has the address 198.18.0.1."""
        return _done([*self.inside(), *command], shlex.join(command), check, stdin, timeout_seconds)

    def inside(self) -> list[str]:
        """What to put before a command of one's own, a server's for instance; `destroy` ends what still runs then."""
        return network.inside(self.name)

    def put(self, host: str, source: Path, target: str) -> None:
        """A file, or a folder with all in it, onto a host."""
        # Packed: an emulated host unpacks faster than it deciphers.
        packed = subprocess.run(
            ["tar", "-C", source.parent, "-I", "gzip -1", "-cf", "-", source.name], capture_output=True, check=True
        )
        unpack = f"mkdir -p {shlex.quote(target)} && tar -C {shlex.quote(target)} -xzf - --no-same-owner"
        line = ssh.command(self.name, state.load(self.name).host(host), unpack)
        subprocess.run(line, input=packed.stdout, check=True, capture_output=True, timeout=300)

    def power_off(self, host: str) -> None:
        """The plug is pulled. What was written is kept, unless `power_on` says otherwise."""
        with self._changing() as now:
            target = now.host(host)
            verbs(target).kill(now, target)

    def power_on(self, host: str, *, keep_disk: bool = True) -> None:
        """On, answering, and joined; without its disk it is a new machine under the old name and address."""
        with self._changing() as now:
            target = now.host(host)
            if target.on:
                raise LabError(f"{host} is on already.")
            if not keep_disk:
                verbs(target).discard(now, target)
                verbs(target).prepare(now, target)
            verbs(target).start(now, target)
        self._wait_ready([host])

    def cut(self, host: str) -> None:
        """Its cable is out: it runs on, and nobody hears it."""
        network.plug(self.name, state.load(self.name).host(host).number, connected=False)

    def join(self, host: str) -> None:
        network.plug(self.name, state.load(self.name).host(host).number, connected=True)

    def write_inventory(self, file: Path, groups: Mapping[str, Iterable[str]] | None = None) -> None:
        """For Ansible. Its connection variables work inside the lab's network and outside."""
        text = json.dumps(ssh.inventory(state.load(self.name), dict(groups or {})), indent=2)
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_name(file.name + ".new")
        written.write_text(text + "\n")
        written.rename(file)

    @contextmanager
    def _changing(self) -> Iterator[State]:
        """The state, read under the lab's lock and written back, also after an error."""
        with state.locked():
            now = state.load(self.name)
            try:
                yield now
            finally:
                state.save(now)

    def _wait_ready(self, names: Sequence[str]) -> None:
        """Until each has started all its units and says so by ssh. Raises LabError with a late one's console."""
        with ThreadPoolExecutor(max_workers=max(1, min(8, len(names)))) as pool:
            list(pool.map(self._wait_one, names))

    def _wait_one(self, name: str) -> None:
        now = state.load(self.name)
        ready_seconds = verbs(now.host(name)).READY_SECONDS
        deadline = time.monotonic() + ready_seconds
        while True:
            try:
                answer = self.run(
                    name, "systemctl is-system-running --wait", check=False, timeout_seconds=ready_seconds
                )
                said = answer.stdout.strip()
            except subprocess.TimeoutExpired:
                said = "still starting"
            if said == "running":
                return
            if said == "degraded":
                failed = self.run(name, "systemctl list-units --failed --no-legend --plain").stdout.split()[:1]
                raise LabError(f"{name} started, but its unit {' '.join(failed)} failed.")
            if not now.host(name).on or time.monotonic() > deadline:
                shown = now.said(now.host(name))
                raise LabError(
                    f"{name} ended or did not answer by ssh in {ready_seconds:.0f} s; its console: {shown}."
                )
            time.sleep(RETRY_SECONDS)


def _check_names(names: Iterable[str]) -> list[str]:
    """Raises LabError at the first that can be no lab's or host's."""
    checked = list(names)
    for name in checked:
        if not NAME.fullmatch(name):
            raise LabError(
                f"{name!r} cannot name a lab or a host: take up to 20 lower-case letters, digits, hyphens."
            )
    return checked


def _done(
    command: Sequence[str], label: str, check: bool, stdin: str, timeout_seconds: float
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_seconds)
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-5:]
        raise LabError(f"{label} ended with {done.returncode}: {' / '.join(said)}")
    return done
