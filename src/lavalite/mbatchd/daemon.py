"""mbatchd: loads the state under the leadership of the local LIM, serves, and ends when that is over.

take leadership ──► take writer ──► load ──► serve ──► stop asked: drain, close, 0
                                               └─────► leadership lost, fenced, broken: 1
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import uuid
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, replace

import structlog

from lavalite import __version__
from lavalite.base.clock import Clock, SystemClock
from lavalite.base.daemon import daemon_main
from lavalite.base.errors import FencedError, InputError, LavaLiteError
from lavalite.base.plugins import POLICIES_GROUP, registered
from lavalite.base.steady import SteadyTime
from lavalite.control.events import Loaded
from lavalite.control.records import load
from lavalite.control.settings import Settings
from lavalite.control.state import ClusterState
from lavalite.ledger.committer import Committer
from lavalite.ledger.fence import take_writer
from lavalite.mbatchd.changes import Changes
from lavalite.mbatchd.config import MbatchdConfig
from lavalite.mbatchd.consoles import ConsoleDesk
from lavalite.mbatchd.definition import DefinitionDesk, go_on_removing
from lavalite.mbatchd.document import stored_specs
from lavalite.mbatchd.growth import GrowthDesk
from lavalite.mbatchd.hosts import HostDesk
from lavalite.mbatchd.hosts_here import HostNews
from lavalite.mbatchd.http import make_app
from lavalite.mbatchd.identity import Doorman
from lavalite.mbatchd.jobs import JobDesk
from lavalite.mbatchd.leadership import Lead, Leadership
from lavalite.mbatchd.nodes import NodeDesk
from lavalite.mbatchd.pressure import Pressure
from lavalite.mbatchd.reader import Reader
from lavalite.mbatchd.reservations import ReservationDesk
from lavalite.mbatchd.scheduler import Scheduler
from lavalite.mbatchd.servers import ApiServers
from lavalite.mbatchd.service import Service
from lavalite.mbatchd.sessions import AgentSessions
from lavalite.mbatchd.tags import Tags
from lavalite.placement.registry import add_policies
from lavalite.store.base import Store, range_all
from lavalite.store.keys import Keys
from lavalite.store.open import open_store
from lavalite.wire.address import check_listener, parse_address
from lavalite.wire.connection import FrameServer
from lavalite.wire.frames import EpochPair
from lavalite.wire.tokens import TrustBundle

DRAIN_SECONDS = 5.0

log = structlog.get_logger(__name__)


async def serve(config: MbatchdConfig, stop: asyncio.Event) -> None:
    """Serve until `stop`. Raises FencedError when the leadership is over first."""
    clock = SystemClock()
    _make_state_folder(config)
    leadership = Leadership(config.lim_socket_path, config.cluster, config.node, clock)
    lead = await leadership.take()
    store = await open_store(config.store, clock)
    following = asyncio.create_task(leadership.run())
    try:
        serving = asyncio.create_task(_serve_led(config, stop, clock, leadership, lead, store))
        await _first(serving, leadership.lost.wait(), _end_of(following))
        if not serving.done():
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            if following.done():
                await following  # its error is what ends us
            raise FencedError(f"mbatchd ends: {leadership.reason}")
        await serving
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await leadership.close()
        await store.close()


@dataclass(slots=True)
class _Core:
    """What holds state, as opposed to what serves it."""

    state: ClusterState
    committer: Committer
    service: Service


async def _serve_led(
    config: MbatchdConfig, stop: asyncio.Event, clock: Clock, leadership: Leadership, lead: Lead, store: Store
) -> None:
    for sentence in add_policies(registered(POLICIES_GROUP)):
        log.warning("a policy cannot be used", reason=sentence)
    core = await _load(config, clock, leadership, lead, store)
    bundle = TrustBundle.load(config.bundle_path)
    sessions = AgentSessions(
        config.cluster, config.node, leadership, bundle, clock, core.service, config.beat_seconds
    )
    core.service.connect(sessions.post, sessions.close)
    news = HostNews(core.state, lead.epoch, sessions.post)
    sessions.on_hosts_applied = news.note_applied
    sessions.on_host_ask = GrowthDesk(core.service, sessions.post).heard
    changes = Changes(core.state, core.service.time)
    core.service.on_applied += [news.heard, changes.heard]
    frames = FrameServer(
        config.listen,
        sessions.greet,
        sessions.serve,
        ssl_context=config.tls.server_context() if config.tls else None,
    )
    core.committer.start()
    try:
        core.service.apply(Loaded())
        go_on_removing(core.service)
        await frames.start()
        pressure = Pressure(
            config.back_pressure,
            config.max_unfinished_tasks,
            core.state,
            store,
            lambda: core.committer.pending,
        )
        reader = Reader(
            core.service,
            sessions,
            news,
            leadership,
            core.committer,
            store,
            pressure,
            cluster=config.cluster,
            node=config.node,
            api_url=_api_url(config, config.api_listen),
        )
        scheduler = Scheduler(
            reader,
            JobDesk(core.service, sessions.output, pressure),
            NodeDesk(core.service),
            DefinitionDesk(core.service, reader, config.cluster),
            changes,
            Tags(core.service, news),
            ReservationDesk(core.service),
            HostDesk(core.service),
            ConsoleDesk(core.service, sessions),
        )
        app = make_app(scheduler, Doorman(bundle, lead.epoch, clock))
        servers = ApiServers(app, config.api_listen, config.socket_path, config.tls)
        await servers.start()
        try:
            # What is there by now stays, all that was loaded too: to look through it for garbage takes so long that
            # jobs wait for it. What is no part of a cycle is freed all the same.
            gc.freeze()
            await leadership.announce(config.advertise or frames.address, _api_url(config, servers.address))
            log.info("mbatchd serves", version=__version__, epoch=lead.epoch, listen=frames.address)
            await _until_over(core, leadership, stop, pressure.watch(clock))
        finally:
            core.service.end()
            changes.end()
            sessions.output.end()
            await servers.close()
    finally:
        await frames.close()
        await core.committer.close()


async def _load(config: MbatchdConfig, clock: Clock, leadership: Leadership, lead: Lead, store: Store) -> _Core:
    """Become the writer, then read everything: nobody else writes any more."""
    keys = Keys(config.cluster)
    fence = await take_writer(store, keys, lead.leader_create_revision, lead.epoch, uuid.uuid4().hex)
    records, revision = await range_all(store, keys.root)
    stored, count = {record.key: record.value for record in records}, len(records)
    del records
    settings = replace(config.settings, max_txn_operations=store.max_txn_operations)
    # In a thread, since a large state takes longer than a lease: the leadership must be followed meanwhile.
    state = await asyncio.to_thread(_state_of, config.cluster, lead.epoch, stored, settings)
    log.info("state loaded", revision=revision, records=count, jobs=len(state.jobs), nodes=len(state.nodes))
    committer = Committer(store, fence, clock, may_continue=leadership.holds)
    return _Core(state, committer, Service(state, committer, SteadyTime(clock), lead.epoch, config.cluster))


def _state_of(cluster: str, epoch: EpochPair, stored: dict[str, bytes], settings: Settings) -> ClusterState:
    """What the records hold. They are let go one by one: together with what comes of them they would take more memory
    than is given back afterwards."""
    keys = Keys(cluster)
    specs = stored_specs(stored.get(keys.definition, b""), cluster)
    taken = ((key, stored.pop(key)) for key in list(stored))
    return load(keys, epoch, taken, specs=specs, settings=settings)


async def _until_over(
    core: _Core, leadership: Leadership, stop: asyncio.Event, watching: Coroutine[None, None, None]
) -> None:
    ticking = asyncio.create_task(core.service.run())
    membership = asyncio.create_task(_follow_members(core.service, leadership))
    pressure = asyncio.create_task(watching)
    try:
        await _first(
            stop.wait(),
            core.committer.fenced.wait(),
            core.service.failed.wait(),
            _end_of(ticking),
            _end_of(membership),
            _end_of(pressure),
        )
        for task in (ticking, membership, pressure):
            if task.done():
                await task  # its error is what ends us
        if core.committer.fenced.is_set():
            raise FencedError(f"mbatchd ends: {core.committer.end_reason}")
        if core.service.failed.is_set():
            raise LavaLiteError("mbatchd ends: its state broke; see the log", code="broken")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await core.committer.drain()
        log.info("mbatchd stops as asked")
    finally:
        for task in (ticking, membership, pressure):
            task.cancel()
        await asyncio.gather(ticking, membership, pressure, return_exceptions=True)


async def _follow_members(service: Service, leadership: Leadership) -> None:
    while True:
        await leadership.members_changed.wait()
        leadership.members_changed.clear()
        service.see_members(leadership.members.values())


async def _end_of(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


async def _first(*waits: Awaitable[object]) -> None:
    """Return when the first is done; the others, where they are only waits, are ended."""
    tasks = [wait if isinstance(wait, asyncio.Task) else asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, wait in zip(tasks, waits, strict=True):
            if task is not wait:
                task.cancel()


def _api_url(config: MbatchdConfig, listen: str) -> str:
    return config.api_url or f"{'https' if config.tls else 'http'}://{listen}"


def _make_state_folder(config: MbatchdConfig) -> None:
    try:
        config.state_path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make {config.state_path}: {error.strerror}",
            field="state_path",
            hint="Make it, writable for this user, or set another state_path.",
        ) from None


def check(config: MbatchdConfig) -> None:
    """What the model alone cannot know. Raises InputError."""
    for listen in (config.listen, config.api_listen):
        check_listener(listen, config.tls is not None, config.insecure)
    if config.tls is not None:
        config.tls.server_context()
    parse_address(f"unix:{config.socket_path.absolute()}", "api_socket_path")


def main(argv: list[str] | None = None) -> int:
    return daemon_main(
        "lavalite-mbatchd",
        MbatchdConfig,
        serve,
        argv,
        description="The scheduler. Started by the leading LIM.",
        check=check,
    )


if __name__ == "__main__":
    raise SystemExit(main())
