"""ETags of collections: from counters that grow with each change, so that "nothing has changed" costs nothing.

A tag speaks for the whole collection, whichever page it came with: whoever has read all pages, and the first of them
with tag T, may go on using them for as long as T is answered with 304. Counters begin anew with each process, so a
tag of one process never holds for another.

What changes with time alone, or with every task that starts (nodes, queues, jobs), has no tag.
"""

from __future__ import annotations

from uuid import uuid4

from lavalite.control.views import node_state
from lavalite.mbatchd.hosts_here import HostNews
from lavalite.mbatchd.service import Service

USED = "resources"
"""The field of a host that says how much of it is in use."""


class Tags:
    """The tags of what the state is now."""

    def __init__(self, service: Service, news: HostNews) -> None:
        self._service, self._news = service, news
        self._process = uuid4().hex[:12]

    def hosts(self, fields: frozenset[str]) -> str:
        """Of the logical hosts, seen by these fields; all of them where none is named."""
        state = self._service.state
        seen = [state.hosts_version, self._news.version, self._service.document["version"]]
        if not fields or USED in fields:
            seen.append(state.book.changes)
        return self._tag(seen)

    def pools(self) -> str:
        state = self._service.state
        return self._tag([state.nodes_version, self._service.document["version"], state.book.changes])

    def resources(self) -> str:
        """Of what nodes have, device by device. How nodes are, and what is kept, changes with time too."""
        state, now = self._service.state, self._service.time.now()
        kept = hash(tuple((r.name, r.start <= now) for r in state.reservations.values()))
        states = hash(tuple((node.name, node_state(state, node, now)) for node in state.nodes.values()))
        return self._tag([state.nodes_version, state.book.changes, kept, states])

    def _tag(self, seen: list[int]) -> str:
        return f'"{self._process}-{".".join(str(count) for count in seen)}"'


def holds(tag: str, if_none_match: str) -> bool:
    """Whether whoever asks knows this tag already: `If-None-Match` has a list of tags, or `*`."""
    known = {one.strip().removeprefix("W/") for one in if_none_match.split(",")}
    return tag in known or "*" in known
