"""sbatchd's process: configuration, lock, and the tasks that make up the agent."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from lavalite.base.clock import Clock, SystemClock
from lavalite.base.config import Config
from lavalite.base.daemon import daemon_main
from lavalite.base.errors import ConflictError, InputError
from lavalite.sbatchd.agent import Agent
from lavalite.sbatchd.attach.attachments import Attachments
from lavalite.sbatchd.attach.parts import PartSettings, make_roles
from lavalite.sbatchd.attach.roles import PartRole
from lavalite.sbatchd.attach.runner import ProcessRunner, SystemdRunner
from lavalite.sbatchd.core import AgentCore
from lavalite.sbatchd.entry import restore
from lavalite.sbatchd.executors import Executor
from lavalite.sbatchd.hosts import HostFolder
from lavalite.sbatchd.inside import SOCKET_NAME, InsideDesk
from lavalite.sbatchd.journal import Journal
from lavalite.sbatchd.keeper.files import lock
from lavalite.sbatchd.keeper.proc import boot_id
from lavalite.sbatchd.launch import Launcher, Policy
from lavalite.sbatchd.process import ProcessExecutor
from lavalite.sbatchd.session import LocalLim, Session
from lavalite.wire.connection import FrameServer
from lavalite.wire.tls import TlsConfig


class SbatchdConfig(Config):
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


def make_executor(config: SbatchdConfig, clock: Clock) -> Executor:
    """Raises InputError."""
    if uses_systemd(config, os.geteuid()):
        # Only then: the message bus costs memory that other nodes need not spend.
        from lavalite.sbatchd.systemd import SystemdExecutor

        return SystemdExecutor(config.state_path / "systemd", clock, max_tasks=config.max_tasks)
    return ProcessExecutor(config.state_path / "keeper", keeper_idle_seconds=config.keeper_idle_seconds)


def make_attachments(config: SbatchdConfig, clock: Clock) -> Attachments:
    """What this node has for logical hosts; root's work is done where it is allowed."""
    folder, roles = config.state_path / "parts", dict[str, PartRole]()
    attachments = Attachments(folder, roles, clock, ports=config.ports)
    runner = SystemdRunner(folder, clock) if uses_systemd(config, os.geteuid()) else ProcessRunner(folder)
    settings = PartSettings(
        config.state_path,
        config.storage_path or config.state_path / "storage",
        config.storage_preallocate,
        config.line_bits_per_second,
    )
    roles.update(make_roles(runner, settings, clock, attachments.ports))
    return attachments


def _unusable(state: Path, why: str) -> InputError:
    return InputError(
        f"{state} is not writable for uid {os.geteuid()} ({why})",
        field="state_path",
        hint="Give the folder to the user that sbatchd runs as, or name another one.",
    )


async def serve(config: SbatchdConfig, stop: asyncio.Event) -> None:
    """Run the agent until `stop`. Attempts run on; the keeper sees to them."""
    prepare_folders(config)
    held = lock(config.state_path / "sbatchd.lock")
    if held is None:
        raise ConflictError(
            f"another sbatchd uses {config.state_path}",
            code="already_running",
            hint="Stop it first, or give this one a state_path of its own.",
        )
    journal = Journal(config.state_path)
    try:
        await _serve(config, journal, stop)
    finally:
        journal.close()
        held.close()


async def _serve(config: SbatchdConfig, journal: Journal, stop: asyncio.Event) -> None:
    clock, uid = SystemClock(), os.geteuid()
    attachments = make_attachments(config, clock)
    hosts = HostFolder(config.state_path, attachments.scratch)
    attachments.on_change = hosts.refresh
    launcher = Launcher(
        config.state_path / "output",
        Policy(uid, os.getegid(), config.allow_root),
        clock,
        grace_seconds=config.grace_seconds,
        enforce_memory=config.enforce_memory,
        find_host=hosts.find,
        inside_socket=str(config.state_path / SOCKET_NAME),
    )
    core = AgentCore(restore(await asyncio.to_thread(journal.open)), launcher.refusal, launcher.paths)
    executor = make_executor(config, clock)
    agent = Agent(core, journal, executor, launcher, clock, own_uid=uid, apply_hosts=hosts, parts=attachments)
    session = Session(
        agent,
        LocalLim(config.lim_socket_path, config.cluster, config.node),
        clock,
        cluster=config.cluster,
        node=config.node,
        boot_id=boot_id(),
        ssl_context=config.tls.client_context() if config.tls else None,
        insecure=config.insecure,
        fabric_address=config.fabric_address,
        at_address=attachments.listen_at,
    )
    inside = InsideDesk(config.node, core.entries.get, agent.post, uid)
    agent.on_answer = inside.answered
    door = FrameServer(
        f"unix:{config.state_path / SOCKET_NAME}", inside.greet, inside.serve, socket_mode=0o666, max_connections=1000
    )
    await door.start()
    # What is there by now stays: to look through it for garbage takes longer than to start an attempt.
    gc.freeze()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(agent.run())
        attaching = tasks.create_task(attachments.run())
        conversation = tasks.create_task(session.run())
        await stop.wait()
        await door.close()
        conversation.cancel()
        attaching.cancel()
        agent.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    return daemon_main("lavalite-sbatchd", SbatchdConfig, serve, argv, check=check_folders)


if __name__ == "__main__":
    sys.exit(main())
