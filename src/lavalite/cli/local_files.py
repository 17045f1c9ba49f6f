"""The folder of a cluster that one user runs on one machine: what stands where, and the daemons' configurations.

STATE/  up.json            which processes run, on which ports
        store.db           the store (SQLite)
        lim/               lim.conf  lim.sock  lim.log  mbatchd.log  node.key
        mbatchd/           mbatchd.conf  api.sock
        sbatchd/           sbatchd.conf  sbatchd.log  hosts/NAME/enter  output/
"""

from __future__ import annotations

import os
import random
import re
import socket
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lavalite.base.errors import ConflictError, InputError, LavaLiteError
from lavalite.base.processes import ProcessIdentity

LOOPBACK = "127.0.0.1"
LONGEST_SOCKET = "sbatchd/keeper/keeper.sock"
SOCKET_PATH_BYTES = 107
DAEMONS = ("lim", "sbatchd")
"""What `up` starts itself; LIM starts mbatchd."""
FIRST_FREE_PORT = 10_000
"""Of those that `--port-base 0` chooses from."""


class Ports(BaseModel):
    """All on the loopback address."""

    lim: int = 7869
    mbatchd: int = 6881
    api: int = 6880

    def taken(self) -> list[int]:
        """Those on which somebody listens."""
        return [port for port in (self.lim, self.mbatchd, self.api) if not _is_free(port)]


def choose_ports(base: int | None) -> Ports:
    """The usual ports, those from `base` on, or (0) free ones. Raises ConflictError where one is taken."""
    if base == 0:
        return _free_ports()
    if base is not None and not 1 <= base <= 65533:
        raise InputError(f"{base} is no port to begin at", field="--port-base", hint="Write 1024 to 65533, or 0.")
    ports = Ports() if base is None else Ports(lim=base, mbatchd=base + 1, api=base + 2)
    taken = ports.taken()
    if taken:
        hint = "Take free ones with `lavalite up --port-base 0`, or others with --port-base N."
        raise ConflictError(f"port {taken[0]} on {LOOPBACK} is taken", code="port_taken", hint=hint)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _free_ports() -> Ports:
    """At random, below those that the kernel gives to clients: one of them might have it before we listen there."""
    untried = random.sample(range(FIRST_FREE_PORT, _first_client_port()), k=1000)
    lim, mbatchd, api = islice((port for port in untried if _is_free(port)), 3)
    return Ports(lim=lim, mbatchd=mbatchd, api=api)


def _first_client_port() -> int:
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        low = 32768
    return low if low >= FIRST_FREE_PORT + 1000 else 32768  # where clients may have nearly all, there is no below


class UpRecord(BaseModel):
    """What stands in up.json."""

    version: int = 1
    cluster: str
    node: str
    ports: Ports
    processes: dict[str, ProcessIdentity] = {}

    def alive(self) -> dict[str, ProcessIdentity]:
        return {name: process for name, process in self.processes.items() if process.is_alive()}


class StateFolder:
    """Paths of a state folder, and what is kept there about the processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lim = path / "lim"
        self.mbatchd = path / "mbatchd"
        self.sbatchd = path / "sbatchd"
        self.record_path = path / "up.json"
        self.lock_path = path / "up.lock"
        self.store_path = path / "store.db"
        self.lim_socket = self.lim / "lim.sock"
        self.api_socket = self.mbatchd / "api.sock"

    def config_path(self, daemon: str) -> Path:
        return self.path / daemon / f"{daemon}.conf"

    def log_path(self, daemon: str) -> Path:
        return self.lim / "mbatchd.log" if daemon == "mbatchd" else self.path / daemon / f"{daemon}.log"

    def create(self) -> None:
        """Make the folders. Raises InputError where this user cannot, or where a socket's path would be too long."""
        longest = len(os.fsencode(self.path)) + 1 + len(LONGEST_SOCKET)
        if longest > SOCKET_PATH_BYTES:
            hint = f"Name one of at most {SOCKET_PATH_BYTES - len(LONGEST_SOCKET) - 1} bytes with --state."
            raise self._wrong("is too long a path for Unix sockets", hint)
        try:
            for folder in (self.path, self.lim, self.mbatchd, self.sbatchd):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.path.stat().st_uid
        except FileExistsError:
            raise self._wrong("is no folder", "Name another with --state.") from None
        except OSError as error:
            raise self._wrong(f"cannot be made ({error.strerror})", "Name another with --state.") from None
        if owner != os.geteuid() or not os.access(self.path, os.W_OK):
            raise self._wrong("is not this user's to write in", "Name one of your own with --state.")

    def _wrong(self, what: str, hint: str) -> InputError:
        return InputError(f"state folder {self.path} {what}", code="bad_state_folder", field="--state", hint=hint)

    def read_record(self) -> UpRecord | None:
        """What runs, as it was written down; None where nothing was. Raises LavaLiteError where it is damaged."""
        try:
            return UpRecord.model_validate_json(self.record_path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._wrong(f"cannot be read ({error.strerror})", "Ask as its owner.") from None
        except ValidationError:
            hint = f"End LavaLite's processes by hand, and remove {self.record_path}."
            raise LavaLiteError(f"{self.record_path} is damaged", code="damaged", hint=hint) from None

    def write_record(self, record: UpRecord) -> None:
        write_private(self.record_path, record.model_dump_json(indent=2) + "\n")

    def write_configs(self, record: UpRecord) -> None:
        for daemon, config in (
            ("lim", self.lim_config(record)),
            ("mbatchd", self.mbatchd_config(record)),
            ("sbatchd", self.sbatchd_config(record)),
        ):
            write_private(self.config_path(daemon), yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def command(self, daemon: str) -> list[str]:
        """How a daemon is started. -P: what lies in the current folder is not code of ours."""
        config = str(self.config_path(daemon))
        return [sys.executable, "-P", "-m", f"lavalite.{daemon}.daemon", "--config", config]

    def lim_config(self, record: UpRecord) -> dict[str, Any]:
        return {
            "cluster": record.cluster,
            "node": record.node,
            "state_path": str(self.lim),
            "socket_path": str(self.lim_socket),
            "listen": f"{LOOPBACK}:{record.ports.lim}",
            "candidate": True,
            "candidates": [f"{LOOPBACK}:{record.ports.lim}"],
            "store": self._store(),
            "labels": {"group": ["all", "lavalite_candidates", "lavalite_nodes"]},
            "supervise": {"mode": "child", "command": self.command("mbatchd")},
            "mbatchd_address": f"{LOOPBACK}:{record.ports.mbatchd}",
            "api_url": f"http://{LOOPBACK}:{record.ports.api}",
        }

    def mbatchd_config(self, record: UpRecord) -> dict[str, Any]:
        return {
            "cluster": record.cluster,
            "node": record.node,
            "state_path": str(self.mbatchd),
            "lim_socket_path": str(self.lim_socket),
            "store": self._store(),
            "listen": f"{LOOPBACK}:{record.ports.mbatchd}",
            "api_listen": f"{LOOPBACK}:{record.ports.api}",
            "api_socket_path": str(self.api_socket),
        }

    def sbatchd_config(self, record: UpRecord) -> dict[str, Any]:
        return {
            "cluster": record.cluster,
            "node": record.node,
            "state_path": str(self.sbatchd),
            "lim_socket_path": str(self.lim_socket),
            # Who runs it as root is the only one who can submit, and means it.
            "allow_root": os.geteuid() == 0,
        }

    def _store(self) -> dict[str, Any]:
        return {"kind": "sqlite", "path": str(self.store_path)}


def write_private(path: Path, text: str) -> None:
    """Put `text` in place of the file at once, for this user's eyes. Raises LavaLiteError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.touch(mode=0o600)
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise LavaLiteError(f"{path} cannot be written ({error.strerror})", hint="Is the disk full?") from None


def node_name() -> str:
    """This machine's name as a node's: the first label of its host name."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:63].strip("-_")
    return name or "node1"
