"""The generation: the first half of the epoch, raised whenever a store is put back to what it was.

Revisions begin again where the backup ended, so a leader key could come into being under a revision that another
leadership had before. With a higher generation no epoch is ever seen twice, nor one lower than before: agents refuse
those. It also keeps the ids of new jobs away from those that were given out and are forgotten (control.records).
"""

from __future__ import annotations

from lavalite.base.errors import LavaLiteError
from lavalite.store.base import Compare, OutcomeUnknown, Put, Store, StoreUnavailable
from lavalite.store.keys import Keys

HIGHEST = 999
"""Job ids of later ones would not sort any more: keys hold twelve digits."""
TRIES = 8


async def generation_of(store: Store, keys: Keys) -> int:
    """0 in a store that was never restored. Raises LavaLiteError, StoreUnavailable."""
    found = await store.get(keys.generation)
    text = found.value.strip() if found else b"0"
    if not text.isdigit():
        hint = "Restore a backup: nobody can lead before."
        raise LavaLiteError(f"the record {keys.generation} is no number", hint=hint)
    return int(text)


async def raise_generation(store: Store, keys: Keys, above: int = 0) -> int:
    """Begin a generation that is higher than the store's and than `above`; whoever leads is deposed by that.

    Raises LavaLiteError where there is none left, StoreUnavailable.
    """
    for _ in range(TRIES):
        before = await store.get(keys.generation)
        raised = max(await generation_of(store, keys), above) + 1
        if raised > HIGHEST:
            raise LavaLiteError(f"generation {raised} is more than {HIGHEST}", hint="Set the cluster up anew.")
        unchanged = Compare.unchanged(keys.generation, before.mod_revision if before else 0)
        try:
            done = await store.txn([unchanged], [Put(keys.generation, b"%d" % raised)], [keys.leader])
        except OutcomeUnknown:
            continue  # done or not: to skip a number harms nobody
        if done.succeeded:
            return raised
    raise StoreUnavailable(f"{keys.generation} could not be written in {TRIES} tries")
