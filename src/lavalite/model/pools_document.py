"""pools.yml as one value: its entries, and what they mean once expanded.

    text ──► parse_yaml ──► read_document ──► PoolsDocument ──► hosts() pool_specs() queue_specs() link_specs()

Every entry is read by itself, so that one bad entry hides no fault of another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lavalite.base.errors import InputError
from lavalite.base.yamlfile import Path
from lavalite.model import specs
from lavalite.model.amounts import parse_amount
from lavalite.model.pools_entries import CapacityEntry, Connection, LinkEntry, PoolEntry, QuotaEntry
from lavalite.model.pools_faults import FaultList, did_you_mean, shown
from lavalite.model.pools_hosts import HostEntry
from lavalite.model.pools_queues import QueueEntry
from lavalite.model.resources import CPU, GPU, MEMORY, NETWORK, STORAGE, WHOLE, Device
from lavalite.model.selector import Selector

CONSTRUCTED = frozenset(
    {"keyed_groups", "groups", "compose", "strict", "use_extra_vars", "leading_separator"}
    | {"cache", "cache_plugin", "cache_timeout", "cache_connection", "cache_prefix"}
)
"""Options that belong to Ansible: let through unread."""

DEFINED = ("pools", "logical_hosts", "queues", "links")
"""The sections that are applied to a cluster; the rest says how to reach it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_SECTIONS: dict[str, type[BaseModel]] = {
    "capacity": CapacityEntry,
    "pools": PoolEntry,
    "logical_hosts": HostEntry,
    "queues": QueueEntry,
}
EntryModel = TypeVar("EntryModel", bound=BaseModel)


@dataclass(slots=True)
class PoolsDocument:
    """A read document. `raw` holds the sections as typed; `broken` names entries that could not be read."""

    connection: Connection
    raw: dict[str, Any]
    capacity: dict[str, CapacityEntry] = field(default_factory=dict)
    pools: dict[str, PoolEntry] = field(default_factory=dict)
    logical_hosts: dict[str, HostEntry] = field(default_factory=dict)
    queues: dict[str, QueueEntry] = field(default_factory=dict)
    links: dict[int, LinkEntry] = field(default_factory=dict)
    constructed: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, set[str]] = field(default_factory=dict)
    file: str = ""
    lines: Mapping[Path, int] = field(default_factory=dict)

    @property
    def cluster(self) -> str:
        return self.connection.cluster

    def pool_of(self, entry: HostEntry, kind: str) -> str:
        """The pool that a kind of a host comes from: the one named, else the default; "" where there is none."""
        named = entry.named_pools().get(kind)
        if named:
            return named[0]
        return next((name for name, pool in self.pools.items() if pool.default and kind in pool.kinds), "")

    def hosts(self) -> list[specs.HostSpec]:
        """Every logical host, entries with a `count` one by one, in the order of the document."""
        return [
            self._host(entry, name, at) for entry in self.logical_hosts for at, name in enumerate(self._names(entry))
        ]

    def _names(self, entry: str) -> list[str]:
        return self.logical_hosts[entry].expanded(entry)

    def _host(self, entry_name: str, name: str, at: int) -> specs.HostSpec:
        entry = self.logical_hosts[entry_name]
        amounts = entry.amounts()
        pools = {kind: pool for kind in amounts if (pool := self.pool_of(entry, kind))}
        return specs.HostSpec(
            name=name,
            amounts=amounts,
            entry=entry_name,
            gpu_model=entry.model_of(GPU),
            gpu_memory_bytes=entry.gpu.memory if entry.gpu else 0,
            special_models={kind: ask.model for kind, ask in entry.special.items() if ask.model},
            storage_iops=entry.storage.iops if entry.storage else 0,
            pools=pools,
            near=entry.near,
            far=entry.far_amounts(),
            limits=entry.limits.amounts(),
            topology=entry.gpu.topology if entry.gpu else "",
            strategy=entry.strategy,
            circuits=entry.circuits(),
            executor=entry.executor,
            vm=entry.vm.ask(at) if entry.vm else None,
            on_loss=entry.on_loss,
        )

    def pool_specs(self) -> list[specs.PoolSpec]:
        """Every pool, in the order of the document."""
        return [
            specs.PoolSpec(
                name=name,
                selector=pool.nodes,
                kinds=tuple(pool.kinds),
                default=pool.default,
                floating=dict(pool.floating),
                quota={tenant: read_quota(pool, quota) for tenant, quota in pool.quota.items()},
                cohort=pool.cohort,
                limits=_pool_limits(pool),
            )
            for name, pool in self.pools.items()
        ]

    def queue_specs(self) -> list[specs.QueueSpec]:
        """Every queue; where none is defined, the one that is always there. Exactly one is the default."""
        if not self.queues:
            return [specs.QueueSpec(specs.DEFAULT_QUEUE, default=True)]
        return [
            specs.QueueSpec(
                name=name,
                priority=queue.priority,
                policy=queue.policy or specs.DEFAULT_POLICY,
                default=queue.default or len(self.queues) == 1,
                walltime_seconds=queue.limits.walltime,
                tasks_per_user=queue.limits.tasks_per_user,
                fence_after_seconds=_or(queue.fence_after, specs.FENCE_AFTER_SECONDS),
                lost_after_seconds=_or(queue.lost_after, specs.LOST_AFTER_SECONDS),
                limits=queue.limits.limits(),
                fairshare=queue.fairshare.spec() if queue.fairshare else None,
                retries=queue.retries,
                retry_on=tuple(queue.retry_on),
                backoff_first_seconds=queue.backoff.first,
                backoff_factor=queue.backoff.factor,
                backoff_most_seconds=queue.backoff.most,
                planned_starts=queue.backfill.planned_starts(),
                preemption=queue.preemption.spec(),
                max_preemptions=queue.max_preemptions,
            )
            for name, queue in self.queues.items()
        ]

    def link_specs(self) -> list[specs.LinkSpec]:
        """Every link, in the order of the document."""
        found = []
        for link in self.links.values():
            selector = link.source if isinstance(link.source, Selector) else None
            switch = link.source if isinstance(link.source, str) else ""
            found.append(specs.LinkSpec(link.to, link.bandwidth, selector, switch))
        return found

    def capacity_nodes(self) -> list[specs.NodeCapacity]:
        """The nodes of `capacity`, for planning offline. Their groups are not known.

        A node that does not say its network has what the link from it is given.
        """
        return [with_link(capacity_of(name, entry), self.link_specs()) for name, entry in self.capacity.items()]

    def canonical(self) -> dict[str, Any]:
        """What is applied, as JSON: sections as typed, and `parsed`, the hosts in integers."""
        parsed = {
            spec.name: asdict(spec) | {"vm": spec.vm.model_dump() if spec.vm else None} for spec in self.hosts()
        }
        sections = {name: self.raw.get(name) or ([] if name == "links" else {}) for name in DEFINED}
        return {"cluster": self.cluster, **sections, "parsed": {"hosts": parsed}}


def read_document(value: Any, faults: FaultList) -> PoolsDocument:
    """Every entry by itself. What cannot be read is a fault and is left out of the document."""
    if not isinstance(value, dict):
        faults.add("wrong_type", (), f"{shown(value)} is not a mapping", "Begin with plugin: lavalite.cluster.pools.")
        value, faults = {}, FaultList()
    own = set(Connection.model_fields)
    known = own | set(_SECTIONS) | {"links"}
    for key in value:
        if key not in known | CONSTRUCTED:
            faults.add("unknown_key", (key,), "unknown key", did_you_mean(key, known))
    connection = _read(Connection, {key: value[key] for key in value if key in own}, (), faults)
    document = PoolsDocument(connection or Connection.model_construct(cluster=""), value)
    document.file, document.lines = faults.file, faults.lines
    document.constructed = {key: value[key] for key in value if key in CONSTRUCTED}
    for section, model in _SECTIONS.items():
        entries, broken = _section(section, model, value.get(section), faults)
        setattr(document, section, entries)
        document.broken[section] = broken
    document.links = _links(value.get("links"), faults)
    return document


def _section(
    section: str, model: type[EntryModel], value: Any, faults: FaultList
) -> tuple[dict[str, EntryModel], set[str]]:
    """The entries of a section that could be read, and the names of those that could not."""
    if value is None:
        return {}, set()
    if not isinstance(value, dict):
        faults.add("wrong_type", (section,), f"{shown(value)} is not a mapping", "Write names, and what each is.")
        return {}, set()
    entries: dict[str, EntryModel] = {}
    for name, typed in value.items():
        if not _NAME.fullmatch(name):
            hint = "Write letters, digits, _, . and -, at most 63, a letter or digit first."
            faults.add("bad_name", (section, name), f"{shown(name)} is no name", hint)
        entry = _read(model, {} if typed is None else typed, (section, name), faults)
        if entry is not None:
            entries[name] = entry
    return entries, set(value) - set(entries)


def _links(value: Any, faults: FaultList) -> dict[int, LinkEntry]:
    if value is None:
        return {}
    if not isinstance(value, list):
        faults.add(
            "wrong_type", ("links",), f"{shown(value)} is not a list", "Write - {from: …, to: …, bandwidth: …}."
        )
        return {}
    read = {at: _read(LinkEntry, typed, ("links", at), faults) for at, typed in enumerate(value)}
    return {at: link for at, link in read.items() if link is not None}


def _read(model: type[EntryModel], typed: Any, path: Path, faults: FaultList) -> EntryModel | None:
    try:
        return model.model_validate(typed)
    except ValidationError as error:
        faults.add_validation(path, error, model)
        return None


def read_quota(pool: PoolEntry, entry: QuotaEntry) -> dict[str, specs.Quota]:
    """A tenant's quota by kind. Raises InputError, whose field is `nominal`, `borrow` or `lend`."""
    columns: dict[str, dict[str, int]] = {}
    for column in ("nominal", "borrow", "lend"):
        try:
            columns[column] = _quota_amounts(pool, getattr(entry, column))
        except InputError as error:
            fault = error.fault
            raise InputError(fault.message, code=fault.code, field=column, hint=fault.hint) from error
    kinds = [kind for kind in pool.kinds if any(kind in amounts for amounts in columns.values())]
    return {
        kind: specs.Quota(columns["nominal"].get(kind, 0), columns["borrow"].get(kind), columns["lend"].get(kind))
        for kind in kinds
    }


def _quota_amounts(pool: PoolEntry, typed: Any) -> dict[str, int]:
    if typed is None:
        return {}
    if isinstance(typed, dict):
        for kind in typed:
            if kind not in pool.kinds:
                hint = did_you_mean(kind, pool.kinds)
                raise InputError(f"the pool is not for {shown(kind)}", code="unknown_value", hint=hint)
        return {kind: parse_amount(kind, amount) for kind, amount in typed.items()}
    if len(pool.kinds) != 1:
        hint = "Write {" + ", ".join(f"{kind}: …" for kind in pool.kinds) + "}."
        raise InputError("of which kind is not said", code="missing", hint=hint)
    return {pool.kinds[0]: parse_amount(pool.kinds[0], typed)}


def capacity_of(name: str, entry: CapacityEntry, labels: Mapping[str, list[str]] | None = None) -> specs.NodeCapacity:
    """A node as its `capacity` entry (or lavalite_capacity in its variables) says; `labels` are added."""
    typed = entry.gpu
    count = typed.count if typed else 0
    gpus = tuple(Device(id=f"gpu{n}", model=typed.model, memory_bytes=typed.memory) for n in range(count) if typed)
    amounts = {
        CPU: entry.cpu,
        MEMORY: entry.memory,
        GPU: count * WHOLE,
        STORAGE: entry.storage,
        NETWORK: entry.network,
    }
    special = {
        kind: tuple(Device(id=f"{kind}{n}", model=found.model) for n in range(found.count))
        for kind, found in entry.special.items()
        if found.count
    }
    amounts |= {kind: len(devices) for kind, devices in special.items()}
    return specs.NodeCapacity(
        name=name,
        labels={**entry.labels(), **(labels or {})},
        amounts={kind: amount for kind, amount in amounts.items() if amount},
        devices=special | ({GPU: gpus} if gpus else {}),
    )


def with_link(node: specs.NodeCapacity, links: list[specs.LinkSpec]) -> specs.NodeCapacity:
    """The node, with the widest link from it where its network is not known."""
    widths = [
        link.bits_per_second
        for link in links
        if link.selector is not None and link.selector.matches(node.name, node.labels)
    ]
    if node.amounts.get(NETWORK) or not widths:
        return node
    return replace(node, amounts={**node.amounts, NETWORK: max(widths)})


def _pool_limits(pool: PoolEntry) -> specs.Limits:
    limits, short = pool.limits.limits(), pool.limits.tasks_per_user
    return limits if short is None else replace(limits, per_user={specs.TASKS: short} | limits.per_user)


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
