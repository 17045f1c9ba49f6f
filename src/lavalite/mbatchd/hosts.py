"""What people ask of logical hosts, beside how they are defined."""

from __future__ import annotations

from lavalite.base.errors import UnknownNameError
from lavalite.control.events import HostApplied, HostDrained
from lavalite.mbatchd.service import Service
from lavalite.model.host import LogicalHost


class HostDesk:
    """Drain, resume, apply. Each answers when it is durable; with `dry_run` nothing changes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def drain(self, name: str, *, undo: bool, dry_run: bool) -> LogicalHost:
        """Nothing new starts on the host, which stays as it is; or (`undo`) work is placed there again."""
        host = self._host(name)
        if dry_run:
            return host.model_copy(update={"drained": not undo})
        await self._service.obey(HostDrained(name, undo))
        return self._host(name)

    async def apply(self, name: str, *, dry_run: bool) -> LogicalHost:
        """One that is reserved is composed, and one that failed is tried again at once."""
        host = self._host(name)
        if not dry_run:
            await self._service.obey(HostApplied(name))
            host = self._host(name)
        return host

    def _host(self, name: str) -> LogicalHost:
        found = self._service.state.hosts.get(name)
        if found is None:
            raise UnknownNameError(f"there is no host {name}", field="host", hint="See lavalite hosts.")
        return found
