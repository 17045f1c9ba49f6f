"""Tells each agent which logical hosts are anchored on its node, whenever that changes and when it registers."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from lavalite.control.events import Event, NodeRegistered
from lavalite.control.state import ClusterState
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.resources import CPU, MEMORY
from lavalite.wire.frames import EpochPair, HostHere, HostsHere

USABLE = frozenset({HostState.COMPOSED, HostState.RESIZING, HostState.DRAINING})

log = structlog.get_logger(__name__)


class HostNews:
    """Remembers what each node was told, and what it said it has."""

    def __init__(self, state: ClusterState, epoch: EpochPair, post: Callable[..., bool]) -> None:
        self._state, self._epoch, self._post = state, epoch, post
        self._seen_version = -1
        self._told: dict[str, list[HostHere]] = {}
        self._applied: dict[str, dict[str, int]] = {}

    def heard(self, event: Event) -> None:
        """Look whether an event changed anything that an agent should know."""
        if isinstance(event, NodeRegistered):
            self._told.pop(event.node, None)
            self._tell(event.node, self._hosts_by_node().get(event.node, []))
        if self._state.hosts_version == self._seen_version:
            return
        self._seen_version = self._state.hosts_version
        by_node = self._hosts_by_node()
        for node in by_node.keys() | self._told.keys():
            hosts = by_node.get(node, [])
            if self._told.get(node, []) != hosts:
                self._tell(node, hosts)

    def note_applied(self, node: str, versions: dict[str, int]) -> None:
        self._applied[node] = versions

    def is_applied(self, node: str, host: str, version: int) -> bool:
        """Whether the node has said that it lets people into this version of the host."""
        return self._applied.get(node, {}).get(host) == version

    def _tell(self, node: str, hosts: list[HostHere]) -> None:
        if self._post(node, HostsHere(epoch=self._epoch, hosts=hosts)):
            self._told[node] = hosts
        else:
            self._told.pop(node, None)

    def _hosts_by_node(self) -> dict[str, list[HostHere]]:
        found: dict[str, list[HostHere]] = {}
        for name in sorted(self._state.hosts):
            host = self._state.hosts[name]
            if host.state in USABLE:
                found.setdefault(host.anchor, []).append(_here(host))
        return found


def _here(host: LogicalHost) -> HostHere:
    devices: dict[str, list[str]] = {}
    for part in host.parts:
        if part.provider == host.anchor:
            devices.setdefault(part.kind, []).extend(part.devices)
    return HostHere(
        name=host.name,
        version=host.version,
        cpu_milli=host.amount(CPU),
        memory_bytes=host.amount(MEMORY),
        devices=devices,
        pools=host.pools,
    )
