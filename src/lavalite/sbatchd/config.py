"""sbatchd.conf, and whether this node can be as it says."""

from __future__ import annotations

import ipaddress
import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from lavalite.base.errors import InputError
from lavalite.sbatchd.vm.settings import VmSettings
from lavalite.wire.tls import TlsConfig


class SbatchdConfig(VmSettings):
    """sbatchd.conf. Paths are absolute; times in seconds."""

    cluster: str = Field(min_length=1)
    node: str = Field(default_factory=socket.gethostname, min_length=1)
    state_path: Path
    """Journal, keeper and default output. Must survive a reboot: without its journal a node is a new node."""
    lim_socket_path: Path
    tls: TlsConfig | None = None
    """For the session with mbatchd."""
    insecure: bool = False
    """Whether plain TCP may be used to a leader on another machine."""
    allow_root: bool = False
    """Whether attempts that root submitted run as root here. Without it they are refused."""
    grace_seconds: float = Field(default=10.0, ge=0, le=3600)
    """Between TERM and KILL when an attempt's walltime is over."""
    enforce_memory: bool = True
    """Whether an attempt's memory request limits it: each process (RLIMIT_DATA), or with systemd all together."""
    executor: Literal["process", "systemd", "auto"] = "process"
    """Who runs attempts: our keeper, or the machine's systemd, which also limits them as a whole (memory, CPU, tasks,
    devices). `auto`: systemd if that is process 1 and sbatchd is root. Change it only while no attempt runs."""
    max_tasks: int = Field(default=16_384, ge=16, le=4_194_304)
    """How many processes and threads one attempt may have together, where systemd runs it."""
    keeper_idle_seconds: float = Field(default=60.0, ge=0)
    """How long the keeper stays when nothing runs and no sbatchd is there."""
    fabric_address: str = ""
    """An IP address of this node at which others reach its exports. Empty: the one it talks to the leader from."""
    export_ports: str = Field(default="10900-10999", pattern=r"^[0-9]{1,5}-[0-9]{1,5}$")
    """What this node exports to others gets a port each of this range."""
    storage_path: Path | None = None
    """Where exports and disks of logical hosts keep their bytes. Empty: STATE/storage."""
    storage_preallocate: bool = False
    """Whether that room is taken at once, and not as it is written: then nothing else can fill the disk before."""
    line_bits_per_second: int = Field(default=0, ge=0)
    """What this node's interface carries, for circuits. 0: what the interface says of itself."""

    @field_validator("export_ports")
    @classmethod
    def _is_range(cls, value: str) -> str:
        first, _, last = value.partition("-")
        if not 0 < int(first) <= int(last) < 65536:
            raise ValueError("write FIRST-LAST, two ports of 1 to 65535")
        return value

    @property
    def ports(self) -> range:
        first, _, last = self.export_ports.partition("-")
        return range(int(first), int(last) + 1)

    @field_validator("fabric_address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return str(ipaddress.ip_address(value)) if value else ""


def check_folders(config: SbatchdConfig) -> None:
    """Whether state_path, executor and certificates can be used, without touching anything. Raises InputError."""
    if config.tls is not None:
        config.tls.client_context()
    uses_systemd(config, os.geteuid())
    state = config.state_path
    if not state.is_absolute():
        raise InputError(f"{state} is not absolute", field="state_path", hint="Write it from the root on.")
    nearest = next(path for path in (state, *state.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise _unusable(state, f"{nearest} is not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _unusable(state, f"no permission in {nearest}")


def prepare_folders(config: SbatchdConfig) -> None:
    """Make state_path and its folders. Raises InputError."""
    state = config.state_path
    try:
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        (state / "keeper").mkdir(mode=0o700, exist_ok=True)
        (state / "systemd").mkdir(mode=0o700, exist_ok=True)
        (state / "output").mkdir(mode=0o711, exist_ok=True)
        probe = state / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unusable(state, error.strerror or str(error)) from None


def uses_systemd(config: SbatchdConfig, uid: int, first_process: Path = Path("/proc/1/comm")) -> bool:
    """Whether attempts are to be units of systemd. Raises InputError where they cannot be and must."""
    if config.executor == "process":
        return False
    why = ""
    if uid != 0:
        why = "it needs root"
    elif first_process.read_text(encoding="utf-8").strip() != "systemd":
        why = "process 1 is not systemd"
    elif find_spec("dbus_fast") is None:
        why = "the Python package dbus-fast is not installed"
    if why and config.executor == "systemd":
        raise InputError(
            f"attempts cannot be units of systemd here: {why}",
            field="executor",
            hint="Write `auto` or `process`, or mend that.",
        )
    return not why


def _unusable(state: Path, why: str) -> InputError:
    return InputError(
        f"{state} is not writable for uid {os.geteuid()} ({why})",
        field="state_path",
        hint="Give the folder to the user that sbatchd runs as, or name another one.",
    )
