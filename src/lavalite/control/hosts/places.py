"""Places of a logical host beside its GPUs of other nodes, where tasks of its jobs can be: `analytics@n07`.

    H@n07     a row, and an account of the book: of GPUs alone, those that H holds of n07
    n07       whatever else a task takes that is placed there, cores and memory. They are debited where anybody else's
              are, so that nothing runs there unaccounted

So rows over one node have all in common but GPUs, and what changes the node changes the rows of its places.
"""

from __future__ import annotations

from collections.abc import Iterable

from lavalite.model.resources import GPU


class Places:
    """Which there are. No host is anchored where it has a place."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, str]] = {}
        """Host → node → the place's name."""
        self._at: dict[str, tuple[str, str]] = {}
        """Place → host and node."""
        self._on: dict[str, dict[str, None]] = {}
        """Node → places there."""

    def __contains__(self, provider: object) -> bool:
        return provider in self._at

    def put(self, host: str, nodes: Iterable[str]) -> set[str]:
        """The host has places on these nodes from now on. Those that came or went."""
        before, after = self._of.get(host, {}), {node: f"{host}@{node}" for node in nodes}
        for node in before.keys() - after.keys():
            place = before[node]
            del self._at[place], self._on[node][place]
            if not self._on[node]:
                del self._on[node]
        for node, place in after.items():
            self._at[place] = host, node
            self._on.setdefault(node, {})[place] = None
        self._of[host] = after
        if not after:
            del self._of[host]
        return set(before.values()) ^ set(after.values())

    def of(self, host: str) -> dict[str, str]:
        """The host's places by node. Not to be changed."""
        return self._of.get(host, {})

    def host(self, provider: str) -> str:
        """The host that a place is of; of anything else itself."""
        return self._at[provider][0] if provider in self._at else provider

    def node(self, provider: str) -> str:
        """The node on which a place is; of anything else itself."""
        return self._at[provider][1] if provider in self._at else provider

    def account(self, provider: str, kind: str) -> str:
        """Of whom a task takes a kind that is placed there."""
        return provider if kind == GPU else self.node(provider)

    def beside(self, provider: str) -> list[str]:
        """All others over the same node: the node itself, and places there."""
        node = self.node(provider)
        there = self._on.get(node)
        return [] if there is None else [name for name in (node, *there) if name != provider]

    def over(self, providers: Iterable[str]) -> set[str]:
        """All places on any of these nodes."""
        return {place for node in self._on.keys() & set(providers) for place in self._on[node]}
