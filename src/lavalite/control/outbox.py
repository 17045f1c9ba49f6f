"""What one decision wants done, collected by the reconcilers and put in order at the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lavalite.control.actions import Action, Commit, Effect, Persist
from lavalite.control.records import take_writes
from lavalite.control.state import Batch, ClusterState
from lavalite.model.job import CommitmentRecord
from lavalite.store.arguments import write_bytes


@dataclass(slots=True)
class Outbox:
    """`at_once`: effects of what is durable already. `durable`: effects of what this decision writes."""

    at_once: list[Effect] = field(default_factory=list)
    durable: list[Effect] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)

    def commit(
        self,
        state: ClusterState,
        batch: Batch,
        records: list[CommitmentRecord],
        beside: dict[str, bytes] | None = None,
        *,
        retry: bool = False,
    ) -> None:
        """One transaction of commitments that are assumed already, and of what is written beside them."""
        puts = {state.keys.commitment(r.owner): r.model_dump_json().encode() for r in records}
        number = state.next_batch(batch)
        self.commits.append(Commit(number, tuple(records), {**puts, **(beside or {})}, retry=retry))

    def actions(self, state: ClusterState) -> list[Action]:
        """Writes first, since a commitment may stand on what they free; then commitments; then effects."""
        writes: list[Action] = list(self._persists(state))
        return [*writes, *self.commits, *self.at_once]

    def _persists(self, state: ClusterState) -> Iterator[Persist]:
        """As few as the store's limits allow; the last one carries the effects, or a barrier does."""
        settings = state.settings
        puts: dict[str, bytes] = {}
        deletes: set[str] = set()
        size_bytes = 0
        for key, value in take_writes(state):
            more_bytes = write_bytes(key, value)
            full = len(puts) + len(deletes) >= settings.max_txn_operations
            if full or (size_bytes and size_bytes + more_bytes > settings.max_txn_bytes):
                yield Persist(puts, frozenset(deletes))
                puts, deletes, size_bytes = {}, set(), 0
            if value is None:
                deletes.add(key)
            else:
                puts[key] = value
            size_bytes += more_bytes
        if puts or deletes or self.durable:
            yield Persist(puts, frozenset(deletes), tuple(self.durable))
