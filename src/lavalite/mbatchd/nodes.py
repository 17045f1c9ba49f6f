"""What people ask of nodes."""

from __future__ import annotations

from dataclasses import replace

from lavalite.api import models
from lavalite.base.errors import ConflictError, UnknownNameError
from lavalite.control.drain import drain_of
from lavalite.control.events import DrainRequested, LabelsSet, NodeForgotten, ResumeRequested
from lavalite.control.node_state import NodeState
from lavalite.mbatchd.service import Service
from lavalite.model.labels import changed_labels

MAX_DRAIN_REASON_CHARACTERS = 500


class NodeDesk:
    """Drain, resume, label, forget. Each answers with the node when it is durable; with `dry_run`, as it would be."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def drain(
        self, name: str, reason: str | None, deadline_seconds: int | None, *, no_deadline: bool, dry_run: bool
    ) -> NodeState:
        """Nothing new is started on the node; what runs there runs on, until the deadline where there is one."""
        node = self._node(name)
        said = None if reason is None else reason[:MAX_DRAIN_REASON_CHARACTERS]
        event = DrainRequested(name, said, deadline_seconds, no_deadline)
        if dry_run:
            return replace(node, drain=drain_of(node.drain, event, self._service.time.now()))
        await self._service.obey(event)
        return node

    async def resume(self, name: str, *, dry_run: bool) -> NodeState:
        node = self._node(name)
        if dry_run:
            return replace(node, drain=None)
        await self._service.obey(ResumeRequested(name))
        return node

    async def label(self, name: str, ask: models.LabelsPut, *, dry_run: bool) -> NodeState:
        """Change single labels, or with `purge` all of those that people gave. Raises InputError."""
        node = self._node(name)
        labels = changed_labels(node.operator_labels, ask.labels, purge=ask.purge)
        if dry_run:
            return replace(node, operator_labels=labels)
        await self._service.obey(LabelsSet(name, labels))
        return node

    async def forget(self, name: str, *, dry_run: bool) -> NodeState:
        """It was taken down for good. Raises ConflictError while it is there, or somebody holds anything of it."""
        node = self._node(name)
        if why := self._service.state.kept_by(name):
            hint = (
                "Stop its daemons first, and drain it or remove the logical hosts that hold parts of it. Tasks of a"
                " dead one are unknown after fence_after: lavalite cancel JOB --force then says that they have ended."
            )
            raise ConflictError(f"node {name} {why}", code="node_in_use", field="node", hint=hint)
        if not dry_run:
            await self._service.obey(NodeForgotten(name))
        return node

    def _node(self, name: str) -> NodeState:
        found = self._service.state.nodes.get(name)
        if found is None:
            raise UnknownNameError(f"there is no node {name}", field="node", hint="See lavalite nodes.")
        return found
