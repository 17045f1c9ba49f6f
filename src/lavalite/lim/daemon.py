"""lavalite-lim: membership, leadership, discovery. One process on every node."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from lavalite import __version__
from lavalite.base.clock import Clock, SystemClock
from lavalite.base.daemon import daemon_main
from lavalite.lim.beats import Beater, LeaderLine
from lavalite.lim.config import LimConfig, check_config
from lavalite.lim.discovery import OwnOffer
from lavalite.lim.election import Candidate
from lavalite.lim.identity import Identity, make_state_folder
from lavalite.lim.listener import Listener
from lavalite.lim.lockfile import LockFile
from lavalite.lim.membership import Roster
from lavalite.lim.program import ChildProgram, LockedProgram, NoProgram, Program, SystemdProgram
from lavalite.lim.socket import LocalDesk, Schedulers
from lavalite.lim.steps import Epoch
from lavalite.lim.supervise import Supervisor
from lavalite.lim.view import CandidateView, View, WorkerView
from lavalite.lim.vip import NoVip, Vip
from lavalite.wire.connection import Connection, FrameServer
from lavalite.wire.frames import Hello, Refused, Welcome

log = structlog.get_logger(__name__)

SOCKET_MODE = 0o666
"""Anybody may ask who leads; what else one may ask is decided by who asks."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command `lavalite-lim`. Returns the exit code."""
    return daemon_main(
        "lavalite-lim",
        LimConfig,
        serve,
        argv,
        description="Membership, leadership and discovery of a LavaLite node.",
        check=check_config,
    )


async def serve(config: LimConfig, stop: asyncio.Event) -> None:
    """Run until `stop` is set. Raises LavaLiteError for what a person has to mend first."""
    clock = SystemClock()
    make_state_folder(config.state_path)
    identity = Identity.load(config, clock)
    offer = OwnOffer(config, clock)
    await offer.refresh()
    await _Lim(config, identity, offer, clock).run(stop)


class _Lim:
    """The parts of one LIM, wired together. The servers listen before anything campaigns or beats."""

    def __init__(self, config: LimConfig, identity: Identity, offer: OwnOffer, clock: Clock) -> None:
        self._config, self._identity, self._offer, self._clock = config, identity, offer, clock
        self._schedulers = Schedulers()
        self._roster = Roster(config.beat_seconds)
        # Its greeter comes later: it needs the port, which is only known once the server listens.
        self._listener: Listener | None = None
        self._tcp = FrameServer(
            config.listen,
            self._greet,
            self._serve,
            ssl_context=config.tls.server_context() if config.tls else None,
        )

    async def run(self, stop: asyncio.Event) -> None:
        await self._tcp.start()
        try:
            await self._run(stop)
        finally:
            await self._tcp.close()

    async def _run(self, stop: asyncio.Event) -> None:
        config, clock = self._config, self._clock
        address = config.advertise or self._tcp.address
        hello = Hello(software_version=__version__, cluster=config.cluster, node=config.node, role="lim")
        dial = config.tls.client_context() if config.tls else None
        candidate = worker = None
        view: View
        if config.candidate:
            candidate = self._candidate(address)
            view = CandidateView(config, address, candidate)
        else:
            view = worker = WorkerView(config, hello, dial, clock)
        line = LeaderLine(view, self._identity, hello, dial)
        desk = LocalDesk(
            config.cluster,
            config.node,
            view=view,
            line=line,
            identity=self._identity,
            offer=self._offer,
            roster=self._roster,
            schedulers=self._schedulers,
            candidate=candidate,
            clock=clock,
        )
        self._listener = Listener(config.cluster, config.node, view, self._identity, self._roster, clock)
        local = FrameServer(
            f"unix:{config.local_socket_path.absolute()}", desk.greet, desk.serve, socket_mode=SOCKET_MODE
        )
        await local.start()
        log.info("LIM serves", node=config.node, address=self._tcp.address, candidate=config.candidate)
        beater = Beater(line, self._offer, config.beat_seconds, clock)
        try:
            async with asyncio.TaskGroup() as tasks:
                endless = [tasks.create_task(job) for job in (beater.run(), self._offer.run())]
                if worker is not None:
                    endless.append(tasks.create_task(worker.run()))
                if candidate is not None:
                    await candidate.run(stop)
                await stop.wait()
                for task in endless:
                    task.cancel()
        finally:
            await local.close()

    def _candidate(self, address: str) -> Candidate:
        config, clock = self._config, self._clock
        lock = LockFile(config.master_lock_path, config.node)
        return Candidate(
            config,
            address,
            clock,
            Supervisor(_program(config, clock, lock), clock),
            lock=lock,
            vip=_vip(config, clock),
            tell_deadline=self._schedulers.tell,
            rivals=self._rivals,
        )

    def _rivals(self, epoch: Epoch, led_seconds: float) -> bool:
        others = self._identity.other_candidates()
        if led_seconds < self._roster.silent_after_seconds:
            return bool(others)  # not all have found us yet
        members = self._roster.members(epoch, self._clock.boottime())
        return any(member.alive and member.node in others for member in members)

    async def _greet(self, hello: Hello, connection: Connection) -> Welcome | Refused:
        if self._listener is None:
            return Refused(code="starting", message="This LIM is just starting. Try again in a moment.")
        return await self._listener.greet(hello, connection)

    async def _serve(self, connection: Connection) -> None:
        if self._listener is not None:
            await self._listener.serve(connection)


def _vip(config: LimConfig, clock: Clock) -> Vip:
    if config.vip is None:
        return NoVip()
    # Only then: netlink costs memory that other candidates need not spend.
    from lavalite.lim.vip_link import LinkVip

    return LinkVip(config.vip, clock)


def _program(config: LimConfig, clock: Clock, lock: LockFile) -> Program:
    match config.supervise.mode:
        case "child":
            state = config.state_path
            return ChildProgram(config.supervise.command, state / "mbatchd.log", state / "mbatchd.pid")
        case "systemd":
            return SystemdProgram(config.supervise.unit, clock)
        case "lock":
            return LockedProgram(config.supervise.unit, clock, lock.remove)
        case "none":
            return NoProgram()


if __name__ == "__main__":
    raise SystemExit(main())
