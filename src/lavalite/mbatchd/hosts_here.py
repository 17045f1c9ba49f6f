"""Tells each agent which logical hosts are anchored on its node, whenever that changes and when it registers."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from lavalite.control.actions import PartKey
from lavalite.control.events import Event, NodeRegistered, PartsReported
from lavalite.control.hosts.holding import devices_elsewhere, offered
from lavalite.control.hosts.telling import strangers
from lavalite.control.state import ClusterState
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.resources import CPU, GPU, MEMORY
from lavalite.wire.frames import EpochPair, HostHere, HostsHere

USABLE = frozenset({HostState.COMPOSED, HostState.RESIZING, HostState.DRAINING})

MOST_WARNED = 1000
"""Parts that no record knows, of which is warned."""

log = structlog.get_logger(__name__)


class HostNews:
    """Remembers what each node was told, and what it said it has."""

    def __init__(self, state: ClusterState, epoch: EpochPair, post: Callable[..., bool]) -> None:
        self._state, self._epoch, self._post = state, epoch, post
        self._seen_version = -1
        self._told: dict[str, list[HostHere]] = {}
        self._known: dict[str, LogicalHost] = {}
        self._by_node: dict[str, dict[str, HostHere]] = {}
        self._applied: dict[str, dict[str, int]] = {}
        self._warned: set[tuple[str, PartKey]] = set()
        self.version = 0
        """Grows whenever a node says anew what can be entered there."""

    def heard(self, event: Event) -> None:
        """Look whether an event changed anything that an agent should know."""
        stale = set()
        if self._state.hosts_version != self._seen_version:
            self._seen_version = self._state.hosts_version
            stale = self._look()
        if isinstance(event, PartsReported):
            self._warn_of_strangers(event.node)
        if isinstance(event, NodeRegistered):
            self._told.pop(event.node, None)
            self._tell(event.node)
        for node in sorted(stale):
            if self._told.get(node, []) != self._here(node):
                self._tell(node)

    def _warn_of_strangers(self, node: str) -> None:
        """Parts that no record knows, of before a restore: they stay, for a person to look at."""
        for part in strangers(self._state, node):
            if (node, part.key) not in self._warned and len(self._warned) < MOST_WARNED:
                self._warned.add((node, part.key))
                words = {"node": node, "host": part.host, "part": part.part, "role": part.role}
                log.warning("a part of before a restore is known to no record, and is left as it is", **words)

    def note_applied(self, node: str, versions: dict[str, int]) -> None:
        if self._applied.get(node) != versions:
            self._applied[node] = versions
            self.version += 1

    def is_applied(self, node: str, host: str, version: int) -> bool:
        """Whether the node has said that it lets people into this version of the host."""
        return self._applied.get(node, {}).get(host) == version

    def _tell(self, node: str) -> None:
        hosts = self._here(node)
        if self._post(node, HostsHere(epoch=self._epoch, hosts=hosts)):
            self._told[node] = hosts
        else:
            self._told.pop(node, None)

    def _here(self, node: str) -> list[HostHere]:
        return [here for _, here in sorted(self._by_node.get(node, {}).items())]

    def _look(self) -> set[str]:
        """Take over the hosts that changed, and name the nodes they are or were on.

        A host is never changed in place, so one that is still the same object is still the same: thousands of hosts
        are composed one after the other, and each time all are looked at.
        """
        hosts, stale = self._state.hosts, set()
        for name, host in hosts.items():
            before = self._known.get(name)
            if before is host:
                continue
            stale |= self._forget(name) if before is not None else set()
            self._known[name] = host
            if host.state in USABLE:
                self._by_node.setdefault(host.anchor, {})[name] = _as_frame(host)
                stale.add(host.anchor)
        if len(self._known) > len(hosts):
            for name in self._known.keys() - hosts.keys():
                stale |= self._forget(name)
        return stale

    def _forget(self, name: str) -> set[str]:
        anchor = self._known.pop(name).anchor
        self._by_node.get(anchor, {}).pop(name, None)
        return {anchor}


def _as_frame(host: LogicalHost) -> HostHere:
    """What jobs may use of it now; while it is resized that is what it had and will have as well."""
    usable = offered(host)
    devices = {part.kind: usable.get(part.kind, (0, []))[1] for part in host.parts if part.provider == host.anchor}
    kept = [part for part in (host.becomes or host.holding).parts if part.id not in host.degraded]
    memory_bytes = usable.get(MEMORY, (0, []))[0]
    far_bytes = sum(part.amount for part in kept if part.kind == MEMORY and host.is_far(part))
    elsewhere = devices_elsewhere(host)
    return HostHere(
        name=host.name,
        version=host.version,
        cpu_milli=usable.get(CPU, (0, []))[0],
        memory_bytes=memory_bytes,
        far_memory_bytes=min(far_bytes, memory_bytes),
        gpu_nodes=elsewhere.pop(GPU, {}),
        special_nodes=elsewhere,
        devices=devices,
        pools=host.pools,
    )
