"""LocalComputeResourceProvider: compute groups on this machine, without daemons.

Several planners share one state file; each discovers, allocates and gives back by itself. What they leave when they
die is taken back by whoever looks next: a group that ends with its process is kept as long as that lives, or any
process that carries the group's mark in its environment. A boot ends them all.

    groups.db           the ledger (SQLite)
    groups.db.mig/      MIG instances that were made for groups
    groups.db.sick      GPUs that are not trusted until the machine boots
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from lavalite.base.clock import Clock, SystemClock
from lavalite.base.errors import LavaLiteError, UnreachableError
from lavalite.groups.embedded import LedgerProvider
from lavalite.groups.embedded.phases import made
from lavalite.groups.embedded.utilization import Utilization
from lavalite.groups.ledger import GroupLedger
from lavalite.groups.local.instances import Instances
from lavalite.groups.local.isolation import environment, gpus_of
from lavalite.groups.local.machine import Discover, Machine, node_name
from lavalite.groups.local.mps import MpsServers
from lavalite.groups.local.processes import ask_to_end, marked
from lavalite.groups.records import GROUPS, GroupRecord
from lavalite.groups.store_ledger import StoreLedger
from lavalite.model.resources import GPU, Device, NodeOffer
from lavalite.store.sqlite import SqliteStore

log = structlog.get_logger(__name__)
CHECK_SECONDS = 5.0
LEDGER = "groups"
"""What the ledger is called in its store."""


class LocalComputeResourceProvider(LedgerProvider):
    """Make one with `await LocalComputeResourceProvider.open()`; close it, or use it by `async with`."""

    name = "this machine"

    def __init__(
        self, ledger: GroupLedger, machine: Machine, instances: Instances, servers: MpsServers, clock: Clock
    ) -> None:
        super().__init__(ledger, clock=clock)
        self._machine, self._instances, self._servers = machine, instances, servers
        self._checking: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        path: Path | None = None,
        *,
        clock: Clock | None = None,
        discover: Discover | None = None,
        nvml: Any = None,
        check_seconds: float | None = CHECK_SECONDS,
    ) -> LocalComputeResourceProvider:
        """`path` is the state file: /var/lib/lavalite/groups.db for root, else in the user's XDG state folder.

        So often as `check_seconds` says it is looked whether the GPUs are well, and whether holders still live; never
        by itself if it is None. `discover` and `nvml` stand in for lavalite.providers.local.discover and the module
        pynvml. Raises UnreachableError if the file is damaged, locked, or cannot be written.
        """
        file, clock = (path or state_path()).absolute(), clock or SystemClock()
        try:
            await asyncio.to_thread(file.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            hint = "Name another file, as local:PATH."
            raise UnreachableError(f"{file.parent} cannot be made ({error.strerror})", hint=hint) from None
        store = await SqliteStore.open(file, clock=clock)
        machine = Machine(node_name(), file, nvml=nvml, discover=discover)
        provider = cls(
            StoreLedger(store, LEDGER, clock=clock),
            machine,
            Instances(file.with_name(f"{file.name}.mig"), nvml),
            MpsServers(mps_folder(file)),
            clock,
        )
        try:
            await provider.start()
            await provider._measured()  # before anything is given out
            await provider._restore()
        except BaseException:
            await provider.close()
            raise
        if check_seconds is not None:
            provider._checking = asyncio.create_task(
                provider._keep_checking(check_seconds), name="lavalite-groups-check"
            )
        return provider

    async def close(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._checking
            self._checking = None
        await asyncio.to_thread(self._machine.close)
        await super().close()

    # --- what really is ---------------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Look at what there really is, and bring the records to that: what dead processes had is taken back, what
        groups need is there, GPUs are as they are. Raises LavaLiteError."""
        await self.discover_resources()
        await self._sweep()
        await self._restore()

    async def check(self) -> None:
        """Look at the GPUs once; what has fallen sick, vanished, or is well again is told, with the groups on it.
        Then take back what dead processes had."""
        before = dict(self.picture.health)
        await asyncio.to_thread(self._machine.look)
        await self._measured()
        after = self.picture.health
        if changed := {gpu for gpu in before.keys() | after.keys() if before.get(gpu) != after.get(gpu)}:
            await self._look_at_nodes()
            groups = self.picture.groups.values()
            self._desk.tell(GROUPS + record.id for record in groups if changed & set(gpus_of(record)))
        await self._desk.sync()
        await self._sweep()

    async def _keep_checking(self, seconds: float) -> None:
        while True:
            await self._clock.sleep(seconds)
            try:
                await self.check()
            except LavaLiteError as error:
                log.warning("this machine cannot be looked at", reason=str(error))

    async def _restore(self) -> None:
        """After a boot: groups that stay have their MIG instances and MPS servers again."""
        for record in list(self.picture.groups.values()):
            if not record.ready or not self._needs_making(record):
                continue
            try:
                again = await self._make(record)
                if again != record:
                    await self._rewrite(record, again)
            except LavaLiteError as error:
                log.warning("a group has not what it needs", group=record.id, reason=str(error))

    async def _rewrite(self, record: GroupRecord, again: GroupRecord) -> None:
        await self._desk.carry_out(lambda picture, _: made(picture, record, again, record.holder))

    # --- what LedgerProvider asks for -------------------------------------------------------------------------------

    async def _discover(self) -> list[NodeOffer]:
        return [await asyncio.to_thread(self._look)]

    def _look(self) -> NodeOffer:
        node = self.picture.nodes.get(self._machine.node)
        groups = list(self.picture.groups.values())
        instances = {each for ids in self._instances.ours().values() for each in ids}
        held = {gpu for record in groups for gpu in gpus_of(record)}
        return self._machine.offer(node.offer if node else None, instances, held, self._clock.now())

    async def _utilization(self) -> Utilization:
        if self._checking is None:
            await asyncio.to_thread(self._machine.look)
        return await asyncio.to_thread(self._machine.utilization, self._gpus())

    async def _make(self, record: GroupRecord) -> GroupRecord:
        if record.isolation == "mig" and record.mig_profile:
            wanted = self._wanted_instances(record)
            instances = await asyncio.to_thread(self._instances.make, record.id, wanted)
            return record.model_copy(update={"instances": instances})
        if record.isolation == "mps":
            for gpu in gpus_of(record):
                await asyncio.to_thread(self._servers.use, gpu, record.id)
        return record

    async def _unmake(self, record: GroupRecord) -> None:
        if record.isolation == "mig":
            await asyncio.to_thread(self._instances.remove, record.id)
        elif record.isolation == "mps":
            for gpu in gpus_of(record):
                await asyncio.to_thread(self._servers.release, gpu, record.id)

    async def _ask_to_end(self, record: GroupRecord) -> None:
        def ask() -> None:
            ask_to_end(marked([record.id]).get(record.id, []))

        await asyncio.to_thread(ask)

    def _environment(self, record: GroupRecord) -> dict[str, str]:
        return environment(record, self._gpus(), self._servers.directory)

    async def _busy(self, records: Sequence[GroupRecord]) -> set[str]:
        return set(await asyncio.to_thread(marked, {record.id for record in records}))

    def _gpus(self) -> dict[str, Device]:
        node = self.picture.nodes.get(self._machine.node)
        return {gpu.id: gpu for gpu in node.offer.devices(GPU)} if node is not None else {}

    def _wanted_instances(self, record: GroupRecord) -> list[tuple[str, str]]:
        """So many on each GPU as what is held of it comes to."""
        node, wanted = self.picture.nodes.get(record.node), list[tuple[str, str]]()
        for share in record.shares:
            for gpu in share.devices if share.kind == GPU else ():
                state = node.gpus.get(gpu) if node is not None else None
                load = state.profiles.get(record.mig_profile, 0) if state is not None else 0
                if not load:
                    raise LavaLiteError(f"GPU {gpu} makes no MIG instances {record.mig_profile} any more")
                each = share.amount // len(share.devices)
                wanted += [(gpu, record.mig_profile)] * max(1, each // load)
        return wanted


def state_path() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/lavalite/groups.db")
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".local/state") / "lavalite" / "groups.db"


def mps_folder(state: Path) -> Path:
    """A short path on a file system of this boot, another for each state file."""
    name = hashlib.sha256(os.fsencode(state)).hexdigest()[:12]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0:
        return Path("/run/lavalite/mps") / name
    return (Path(runtime) if runtime.startswith("/") else Path(f"/tmp/lavalite-{os.geteuid()}")) / "mps" / name  # noqa: S108 - its owner is looked at
