"""The store contract. One contract suite (tests/service/test_store_contract.py) runs on every implementation.

Keys are text, values are bytes. Every successful transaction that changes something gets the next revision, a
positive integer that only grows. List with `range`, then `watch` from the revision after the one it read at, and
nothing is missed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from lavalite.base.errors import LavaLiteError, UnreachableError

PAGE_LIMIT = 1000
"""Most records that one call of `range` returns."""


class StoreUnavailable(UnreachableError):
    """Nothing was done: the store could not be reached, or refused before it acted."""

    default_code = "store_unavailable"


class OutcomeUnknown(LavaLiteError):
    """The transaction may or may not have been carried out: the answer did not come."""

    default_code = "outcome_unknown"


class Compacted(LavaLiteError):
    """The revision asked for is gone. List again and watch from there."""

    default_code = "compacted"

    def __init__(self, compact_revision: int) -> None:
        self.compact_revision = compact_revision
        super().__init__(f"revisions before {compact_revision} are compacted", hint="List again.")


class LeaseLost(LavaLiteError):
    """The lease has expired or was revoked; the keys under it are gone."""

    default_code = "lease_lost"


@dataclass(slots=True, frozen=True)
class Record:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(slots=True, frozen=True)
class Page:
    """Records in key order, and the revision they were all read at. `next_after` is None on the last page."""

    records: list[Record]
    revision: int
    next_after: str | None


class Target(StrEnum):
    CREATE_REVISION = "create_revision"  # 0 where the key is absent
    MOD_REVISION = "mod_revision"  # 0 where the key is absent
    VALUE = "value"  # an absent key equals no value


@dataclass(slots=True, frozen=True)
class Compare:
    """`target` of `key` equals `expected`. Equality is all we need."""

    key: str
    target: Target
    expected: int | bytes

    @classmethod
    def absent(cls, key: str) -> Compare:
        return cls(key, Target.CREATE_REVISION, 0)

    @classmethod
    def created_at(cls, key: str, revision: int) -> Compare:
        return cls(key, Target.CREATE_REVISION, revision)

    @classmethod
    def unchanged(cls, key: str, mod_revision: int) -> Compare:
        return cls(key, Target.MOD_REVISION, mod_revision)

    @classmethod
    def equals(cls, key: str, value: bytes) -> Compare:
        return cls(key, Target.VALUE, value)


@dataclass(slots=True, frozen=True)
class Put:
    key: str
    value: bytes
    lease_id: int = 0


@dataclass(slots=True, frozen=True)
class TxnResult:
    """`succeeded` is false when a compare did not hold: then nothing was changed. `revision` is the store's then."""

    succeeded: bool
    revision: int


@dataclass(slots=True, frozen=True)
class Event:
    """A change. For a deletion `record` holds the key, empty value, and the revision of the deletion."""

    kind: Literal["put", "delete"]
    record: Record


@dataclass(slots=True, frozen=True)
class WatchBatch:
    """All events of one or more whole revisions, in order; never half of a revision."""

    revision: int
    events: list[Event] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class StoreStatus:
    kind: str
    version: str
    revision: int
    size_bytes: int
    """What the store takes of its disk, room that it will use again included."""
    endpoint: str
    in_use_bytes: int = 0
    quota_bytes: int = 0
    """Beyond this size it takes no writes; 0: it has no such limit."""
    alarms: tuple[str, ...] = ()
    """What it says is wrong with it, in its own words."""


class Store(ABC):
    """See the module's docstring. Every call ends within the store's `timeout_seconds` or raises.

    Raises StoreUnavailable where nothing was done, OutcomeUnknown (from `txn`, `lease_grant`, `lease_revoke`)
    where that is not known.
    """

    max_txn_operations: int = 128
    """Most puts and deletes in one transaction; and, counted apart, most compares."""

    @abstractmethod
    async def get(self, key: str) -> Record | None:
        """The record as of now (linearizable)."""

    @abstractmethod
    async def range(
        self, prefix: str, *, limit: int = PAGE_LIMIT, after: str | None = None, at_revision: int = 0
    ) -> Page:
        """Records whose key starts with `prefix`, after the key `after`, as of `at_revision` (0: now).

        Raises Compacted when `at_revision` is gone.
        """

    @abstractmethod
    async def txn(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> TxnResult:
        """Carry out all puts and deletes if all compares hold, else nothing. Never retried by itself.

        Raises ValueError when a key stands twice or there are more than `max_txn_operations`, and LeaseLost when
        a put names a lease that is gone (then nothing was done).
        """

    @abstractmethod
    async def lease_grant(self, ttl_seconds: int) -> int:
        """A new lease id (positive). Keys put under it vanish when it expires."""

    @abstractmethod
    async def lease_keepalive(self, lease_id: int) -> int:
        """Renew for the full time to live, which is returned. Raises LeaseLost."""

    @abstractmethod
    async def lease_revoke(self, lease_id: int) -> None:
        """End the lease and delete its keys. Revoking a lease that is gone is no error."""

    @abstractmethod
    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Every change under `prefix` from `from_revision` on (inclusive), in order, without gap or repetition.

        Survives reconnects: resumes after the last batch *delivered*. Raises Compacted when it cannot.
        Waits through outages of the store. End it by closing the generator (aclose).
        """

    @abstractmethod
    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`."""

    @abstractmethod
    async def status(self) -> StoreStatus:
        """Of the member (or file) in use."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and files. Leases are left to run out."""


async def range_all(store: Store, prefix: str) -> tuple[list[Record], int]:
    """Every record under `prefix` at one revision, page by page, and that revision."""
    page = await store.range(prefix)
    records = list(page.records)
    while page.next_after is not None:
        page = await store.range(prefix, after=page.next_after, at_revision=page.revision)
        records.extend(page.records)
    return records, page.revision
