"""What people ask of nodes."""

from __future__ import annotations

from lavalite.base.errors import UnknownNameError
from lavalite.control.events import DrainRequested, ResumeRequested
from lavalite.mbatchd.service import Service

MAX_DRAIN_REASON_CHARACTERS = 500


class NodeDesk:
    """Drain and resume. Both are durable when they return."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def drain(self, name: str, reason: str) -> None:
        """Nothing new is started on the node; what runs there runs on."""
        self._demand(name)
        await self._service.obey(DrainRequested(name, reason[:MAX_DRAIN_REASON_CHARACTERS]))

    async def resume(self, name: str) -> None:
        self._demand(name)
        await self._service.obey(ResumeRequested(name))

    def _demand(self, name: str) -> None:
        if name not in self._service.state.nodes:
            raise UnknownNameError(f"there is no node {name}", field="node", hint="See lavalite nodes.")
