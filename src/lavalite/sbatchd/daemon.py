"""sbatchd's process: configuration, lock, and the tasks that make up the agent."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Sequence

from lavalite.base.clock import Clock, SystemClock
from lavalite.base.daemon import daemon_main
from lavalite.base.errors import ConflictError
from lavalite.sbatchd.agent import Agent
from lavalite.sbatchd.attach.attachments import Attachments
from lavalite.sbatchd.attach.parts import PartSettings, make_roles
from lavalite.sbatchd.attach.roles import PartRole
from lavalite.sbatchd.attach.runner import ProcessRunner, SystemdRunner
from lavalite.sbatchd.config import SbatchdConfig, check_folders, prepare_folders, uses_systemd
from lavalite.sbatchd.consoles import Connect, none_here
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
    roles.update(make_roles(runner, settings, clock, attachments.ports, attachments.beside))
    if config.vm_bridge:
        # Only then: QEMU's monitor costs memory that other nodes need not spend.
        from lavalite.sbatchd.vm.role import VmRole
        from lavalite.sbatchd.vm.runners import ChildRunner
        from lavalite.sbatchd.vm.units import UnitRunner

        vm_runner = UnitRunner(clock) if uses_systemd(config, os.geteuid()) else ChildRunner(config.vm_user)
        roles["vm"] = VmRole(config.state_path, config, clock, vm_runner)
    return attachments


def make_consoles(config: SbatchdConfig) -> Connect:
    """How the consoles of this node's virtual machines are reached, where it runs any."""
    if not config.vm_bridge:
        return none_here
    from lavalite.sbatchd.vm.console import console_of
    from lavalite.sbatchd.vm.qmp import connect_unix

    async def connect(host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        path = await asyncio.to_thread(console_of, config.state_path, host)
        return await asyncio.open_unix_connection(sock=await asyncio.to_thread(connect_unix, path))

    return connect


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
    agent = Agent(
        core,
        journal,
        executor,
        launcher,
        clock,
        own_uid=uid,
        apply_hosts=hosts,
        parts=attachments,
        connect_console=make_consoles(config),
    )
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
