"""A real LIM and mbatchd on loopback, with nodes that are stand-ins, and logical hosts composed by the scheduler.

async with ClusterOf(folder, hosts=10_000).running() as cluster:
    …  cluster.socket, cluster.nodes
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/service"))

from cluster import CLUSTER, until  # noqa: E402
from standin import StandIn  # noqa: E402
from whole import Whole  # noqa: E402

from lavalite.base.clock import SystemClock  # noqa: E402
from lavalite.control.supply import host_owner  # noqa: E402
from lavalite.mbatchd.document import decode_document, sections  # noqa: E402
from lavalite.model.host import HostState, LogicalHost  # noqa: E402
from lavalite.model.job import CommitmentRecord, Share  # noqa: E402
from lavalite.model.node import NodeRecord  # noqa: E402
from lavalite.model.pools import load_pools  # noqa: E402
from lavalite.model.resources import WHOLE, NodeOffer, Resource  # noqa: E402
from lavalite.model.specs import NodeCapacity  # noqa: E402
from lavalite.placement.compose import plan_hosts  # noqa: E402
from lavalite.store.base import Put  # noqa: E402
from lavalite.store.keys import Keys  # noqa: E402
from lavalite.store.sqlite import SqliteStore  # noqa: E402
from lavalite.wire.tokens import NodeKey  # noqa: E402

GIB = 1024**3
CANDIDATE = "ctl"
HOSTS_PER_NODE = 100
BATCH = 500
POOLS = """\
cluster: {cluster}
pools:
  general: {{nodes: "node*", kinds: [cpu, memory], default: true}}
logical_hosts:
  web: {{count: {hosts}, cpu: 1, memory: 2GiB}}
queues:
  normal: {{priority: 30, policy: best-fit, default: true}}
"""


class ClusterOf:
    """So many logical hosts, a hundred to a node."""

    def __init__(self, folder: Path, hosts: int) -> None:
        self.hosts = hosts
        self.nodes = [f"node{number:04d}" for number in range(1, hosts // HOSTS_PER_NODE + 2)]
        self._store_path = folder / "store.db"
        store = {"kind": "sqlite", "path": str(self._store_path)}
        self.whole = Whole(folder, {CANDIDATE: 9}, store=store, lease_ttl_seconds=60)
        self.whole.agents.clear()  # stand-ins take their place
        self._trust_stand_ins()
        self.socket = folder / CANDIDATE / "m/api.sock"

    def _trust_stand_ins(self) -> None:
        path = self.whole.lims.bundle_path
        bundle = json.loads(path.read_text())
        path.write_text(json.dumps(bundle | {node: {**bundle[CANDIDATE], "role": "worker"} for node in self.nodes}))

    @contextlib.asynccontextmanager
    async def running(self, seconds: float = 600) -> AsyncIterator[ClusterOf]:
        """With all hosts composed. Raises AssertionError when that takes longer than `seconds`."""
        await self._fill()
        with self.whole.running():
            lim = await self.whole.serving()
            epoch = (await lim.leader()).epoch
            assert epoch is not None, "whoever leads has an epoch"
            key = NodeKey.load_or_create(lim.folder / "node.key")
            agents = [StandIn(CLUSTER, offer(name), key, CANDIDATE, epoch) for name in self.nodes]
            address = str(lim.config["mbatchd_address"])
            async with asyncio.TaskGroup() as group:
                serving = [group.create_task(agent.run(address)) for agent in agents]
                await self._entered(seconds)
                yield self
                for task in serving:
                    task.cancel()

    async def _entered(self, seconds: float) -> None:
        """Wait until every host can be entered: its node has said so."""
        with self.whole.client(self.whole.lims[CANDIDATE]) as client:

            async def composed() -> bool:
                found = await asyncio.to_thread(lambda: sum(host.state == "composed" for host in client.hosts()))
                return found >= self.hosts

            await until(composed, seconds, f"{self.hosts} hosts are composed")

    async def _fill(self) -> None:
        """What a scheduler leaves in its store when it has composed all hosts: done here at once, as it would."""
        keys, document = Keys(CLUSTER), load_pools(POOLS.format(cluster=CLUSTER, hosts=self.hosts), "pools.yml")
        offers = [offer(name) for name in self.nodes]
        nodes = [NodeCapacity.from_offer(found) for found in offers]
        plans = plan_hosts(document.hosts(), nodes, document.pool_specs())
        asked = document.canonical()
        owned = {section: sorted(asked[section]) for section in ("pools", "logical_hosts", "queues")}
        stored = {**decode_document(b"", CLUSTER), **sections(asked), "owned": owned, "version": 1}
        puts = [Put(keys.definition, json.dumps(stored, sort_keys=True).encode())]
        for found in offers:
            record = NodeRecord(offer=found, journal_id=f"journal-{found.node}")
            puts.append(Put(keys.resources(found.node), record.model_dump_json().encode()))
        for plan in plans.values():
            assert isinstance(plan, LogicalHost), plan
            composed = plan.model_copy(update={"state": HostState.COMPOSED})
            puts.append(Put(keys.host(plan.name), composed.model_dump_json().encode()))
            puts.append(Put(keys.commitment(host_owner(plan.name)), _commitment(plan).model_dump_json().encode()))
        store = await SqliteStore.open(self._store_path, clock=SystemClock())
        try:
            for group in batched(puts, min(BATCH, store.max_txn_operations)):
                await store.txn([], group)
        finally:
            await store.close()


def _commitment(plan: LogicalHost) -> CommitmentRecord:
    shares = [
        Share(provider=part.provider, kind=part.kind, amount=part.amount, devices=part.devices, pool=part.pool)
        for part in plan.parts
    ]
    return CommitmentRecord(
        owner=host_owner(plan.name), epoch=(0, 1), shares=shares, committed_at=0.0, node=plan.anchor
    )


def batched(items: list[Put], size: int) -> Iterator[list[Put]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def offer(node: str) -> NodeOffer:
    """Room for HOSTS_PER_NODE hosts."""
    amounts = {"cpu": (HOSTS_PER_NODE * WHOLE, "milli-core"), "memory": (2 * HOSTS_PER_NODE * GIB, "byte")}
    resources = [
        Resource(name=f"{node}/{kind}", kind=kind, amount=amount, unit=unit, owner=node)
        for kind, (amount, unit) in amounts.items()
    ]
    return NodeOffer(node=node, boot_id=f"boot-{node}", labels={"rack": ["r1"]}, resources=resources)
