"""The committed-resource store of compute groups, as several planners without a leader share it: the contract.

Everybody decides on a picture of all records, and writes only if nobody else has written since: one `head`, compared
and set with each change. Who comes too late reads what changed, decides anew, and tries again. One contract suite
(tests/service/test_groups_ledger.py) runs on every implementation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Changed(NamedTuple):
    """A record as it is now; `value` is None where it is gone."""

    key: str
    value: bytes | None


class GroupLedger(ABC):
    """Keys as in lavalite.groups.records. All methods raise UnreachableError where the store does not answer."""

    @abstractmethod
    async def sync(self) -> list[Changed]:
        """What changed since the last sync, the first time everything; from then on the picture is current."""

    @abstractmethod
    async def commit(self, puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> bool:
        """All of it, durably, if nobody has written since our last sync or commit; else nothing, and False.

        A commit of ours that succeeded needs no sync: the caller applies it to its picture by itself. One whose
        outcome is not known is found out about before this returns.
        """

    @abstractmethod
    async def wait(self, timeout_seconds: float) -> None:
        """Until somebody may have written, or so long."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and files."""
