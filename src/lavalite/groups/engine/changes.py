"""What a decision answers: what is to be written, all of it or nothing; or that it does not fit, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lavalite.groups.errors import InsufficientResourcesError
from lavalite.groups.records import GROUPS, NODES, POOLS, WAITING, GroupRecord, PoolRecord, WaitingRecord
from lavalite.model.resources import NodeOffer, Stored


@dataclass(slots=True)
class Changes:
    """`groups` are those that are put, as they are once it is written; `gone` those that go, as they were."""

    puts: dict[str, bytes] = field(default_factory=dict)
    deletes: list[str] = field(default_factory=list)
    groups: list[GroupRecord] = field(default_factory=list)
    gone: list[GroupRecord] = field(default_factory=list)
    records: dict[str, Stored] = field(default_factory=dict)
    """What `puts` holds, read: so that who wrote it need not read it again."""

    def __bool__(self) -> bool:
        return bool(self.puts or self.deletes)

    def put(self, record: GroupRecord | NodeOffer | PoolRecord | WaitingRecord) -> None:
        key = key_of(record)
        self.records[key] = record
        self.puts[key] = record.model_dump_json().encode()
        if isinstance(record, GroupRecord):
            self.groups.append(record)

    def delete(self, record: GroupRecord | NodeOffer | PoolRecord | WaitingRecord) -> None:
        self.deletes.append(key_of(record))
        if isinstance(record, GroupRecord):
            self.gone.append(record)

    def join(self, others: Iterable[Changes]) -> Changes:
        """With what the others change too; no key may be changed twice."""
        for other in others:
            self.puts |= other.puts
            self.deletes += other.deletes
            self.groups += other.groups
            self.gone += other.gone
            self.records |= other.records
        return self


@dataclass(slots=True, frozen=True)
class Refused:
    """It does not fit now. `reasons`: how many nodes stand against it, by reason; `ever`: whether it would fit if
    nobody held anything."""

    sentence: str
    reasons: Mapping[str, int] = field(default_factory=dict)
    ever: bool = True
    hint: str = ""

    def error(self) -> InsufficientResourcesError:
        return InsufficientResourcesError(
            self.sentence.removesuffix("."), reasons=self.reasons, ever=self.ever, hint=self.hint
        )


def key_of(record: GroupRecord | NodeOffer | PoolRecord | WaitingRecord) -> str:
    """Where the record is kept, as lavalite.groups.records has it."""
    if isinstance(record, GroupRecord):
        return GROUPS + record.id
    if isinstance(record, NodeOffer):
        return NODES + record.node
    if isinstance(record, PoolRecord):
        return POOLS + record.name
    return WAITING + record.id
