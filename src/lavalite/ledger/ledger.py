"""The book and the committer together: a commitment is assumed, written, and then confirmed or unwound.

commit ──► assume ──► one transaction ──► confirm
             │ short        │ did not happen
             ▼              ▼
         Shortage        unwind
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from lavalite.ledger.book import Book, Shortage
from lavalite.ledger.committer import Committer, Outcome
from lavalite.model.job import CommitmentRecord
from lavalite.store.keys import Keys


class Ledger:
    """Who holds what, durably. One ledger, one book, one committer."""

    def __init__(self, book: Book, committer: Committer, keys: Keys) -> None:
        self.book = book
        self._committer = committer
        self._keys = keys

    async def commit(
        self, records: Sequence[CommitmentRecord], puts: Mapping[str, bytes] | None = None
    ) -> Shortage | Outcome:
        """All these commitments in one transaction, with `puts` beside them, or none of them.

        Returns what is short, or CONFIRMED, or UNWOUND. Raises FencedError; then the book is not to be trusted.
        """
        for place, record in enumerate(records):
            short = self.book.assume(record)
            if short is not None:
                self._settle(records[:place], Outcome.UNWOUND)
                return short
        written = {self._keys.commitment(r.owner): r.model_dump_json().encode() for r in records}
        outcome = await self._committer.submit({**written, **(puts or {})}, retry=False)
        self._settle(records, outcome)
        return outcome

    def write(
        self, puts: Mapping[str, bytes], deletes: frozenset[str] = frozenset(), *, retry: bool = False
    ) -> asyncio.Future[Outcome]:
        """The middle step alone, for a caller that assumes while it plans and settles by itself (control)."""
        return self._committer.submit(puts, deletes, retry=retry)

    async def release(self, owners: Sequence[str]) -> None:
        """Give back what the owners hold. In memory at once: whoever is given it is written after this."""
        for owner in owners:
            self.book.release(owner)
        await self._committer.submit({}, frozenset(self._keys.commitment(o) for o in owners))

    def _settle(self, records: Sequence[CommitmentRecord], outcome: Outcome) -> None:
        for record in records:
            if outcome is Outcome.CONFIRMED:
                self.book.confirm(record.owner)
            else:
                self.book.unwind(record.owner)
