"""Nodes with GPUs, and planners that share a ledger in memory: for tests of what decides about compute groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memory_ledger import MemoryLedger, World

from lavalite.groups.engine import decide, life, supply
from lavalite.groups.engine.changes import Changes, Refused
from lavalite.groups.engine.picture import Picture, devices_of
from lavalite.groups.records import GroupRecord
from lavalite.groups.requirements import read_ask
from lavalite.model.resources import CPU, GPU, MEMORY, WHOLE, Device, NodeOffer, Resource, Scope

MODEL = "Test H100"
GIB = 2**30
PROFILES = "1g.10gb:142,2g.20gb:285,3g.40gb:428,7g.80gb:1000"


def gpu(
    node: str, number: int, *, model: str = MODEL, numa: int = -1, memory_bytes: int = 80 * GIB, **attributes: str
) -> Device:
    return Device(
        id=f"GPU-{node}-{number}",
        model=model,
        memory_bytes=memory_bytes,
        numa_node=numa,
        attributes=dict(attributes),
    )


def offer(
    name: str,
    gpus: int | Sequence[Device] = 0,
    *,
    cpu: int = 64,
    memory: int = 256,
    labels: Mapping[str, str] | None = None,
    closed: str = "",
) -> NodeOffer:
    """`cpu` in cores, `memory` in GiB; GPUs by number, or as they are."""
    devices = [gpu(name, number) for number in range(gpus)] if isinstance(gpus, int) else list(gpus)
    amounts = [(CPU, cpu * WHOLE, []), (MEMORY, memory * GIB, []), (GPU, WHOLE * len(devices), devices)]
    resources = [
        Resource(
            name=f"{name}/{kind}", kind=kind, amount=amount, unit="", scope=Scope.HOST, owner=name, devices=found
        )
        for kind, amount, found in amounts
        if amount
    ]
    found = NodeOffer(
        node=name, boot_id="", labels={label: [value] for label, value in (labels or {}).items()}, resources=resources
    )
    return found.model_copy(update={"closed": closed}) if closed else found


class Planner:
    """One of those who share the world: a picture of its own, kept up by a ledger of its own."""

    def __init__(self, world: World | None = None, now: float = 1000.0) -> None:
        self.ledger = MemoryLedger(world if world is not None else World())
        self.picture = Picture()
        self.picture.apply(self.ledger.sync_now())
        self.now = now
        self._number = 0
        self.name = f"p{id(self)}"

    def carry_out(self, decision: Callable[[Picture], Changes | Refused]) -> Changes | Refused:
        """As a desk does: whoever was too late reads and decides anew; what is refused was refused on what is."""
        while True:
            answer = decision(self.picture)
            if isinstance(answer, Refused):
                changed = self.ledger.sync_now()
                self.picture.apply(changed)
                if not changed:
                    return answer
            elif not answer or self.ledger.commit_now(answer.puts, answer.deletes):
                self.picture.take(answer)
                return answer
            else:
                self.picture.apply(self.ledger.sync_now())

    def sync(self) -> None:
        self.picture.apply(self.ledger.sync_now())

    def put_nodes(self, *offers: NodeOffer) -> None:
        self.carry_out(lambda p: supply.put_nodes(p, offers))

    def put_pool(self, name: str, **entry: Any) -> None:
        self.carry_out(lambda p: supply.put_pool(p, name, entry))

    def try_allocate(
        self, component: str, requirements: Mapping[str, Any], waiter_id: str = "", **constraints: Any
    ) -> GroupRecord | Refused:
        asked = {**requirements, "constraints": constraints}
        ask, group_id = read_ask(component, asked), self._new_id()
        answer = self.carry_out(lambda p: decide.allocate(p, ask, asked, self.now, group_id, waiter_id=waiter_id))
        return answer if isinstance(answer, Refused) else answer.groups[0]

    def allocate(self, component: str, requirements: Mapping[str, Any], **constraints: Any) -> GroupRecord:
        found = self.try_allocate(component, requirements, **constraints)
        assert isinstance(found, GroupRecord), found
        return found

    def create(self, requirements: Mapping[str, Any], **constraints: Any) -> GroupRecord:
        asked = {**requirements, "constraints": constraints}
        ask, group_id = read_ask("", asked), self._new_id()
        answer = self.carry_out(lambda p: decide.create(p, ask, asked, self.now, group_id))
        assert isinstance(answer, Changes), answer
        return answer.groups[0]

    def reserve(
        self, component: str, requirements: Mapping[str, Any], seconds: float = 60, **constraints: Any
    ) -> GroupRecord:
        asked = {**requirements, "constraints": constraints}
        ask, group_id = read_ask(component, asked), self._new_id()
        answer = self.carry_out(lambda p: decide.reserve(p, ask, asked, self.now, group_id, seconds))
        assert isinstance(answer, Changes), answer
        return answer.groups[0]

    def deallocate(self, *groups: GroupRecord) -> None:
        by_component: dict[str, list[str]] = {}
        for group in groups:
            by_component.setdefault(group.component, []).append(group.id)
        for component, ids in by_component.items():
            self.carry_out(lambda p, c=component, i=ids: life.deallocate(p, c, i))

    def expire(self) -> Changes:
        answer = self.carry_out(lambda p: life.expire(p, self.now, 100))
        assert isinstance(answer, Changes)
        return answer

    def state(self, group: GroupRecord) -> str:
        found = self.picture.groups.get(group.id)
        return "gone" if found is None else found.state

    def _new_id(self) -> str:
        self._number += 1
        return f"{self.name}-{self._number}"


def held(*groups: GroupRecord) -> list[str]:
    """Their GPUs."""
    return [device for group in groups for device in devices_of(group)]
