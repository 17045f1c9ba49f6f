"""The fence around everything that a scheduler writes: three compares that only the one true writer satisfies.

    leader       was created when our LIM won its lease, and has not been deleted since
    writer       was last written by us
    generation   is that of our epoch: a store that was restored in place may hold both keys above as we know them

Whoever writes `writer` shuts out whoever wrote it before, a predecessor of the same epoch and our own stragglers
included: their transactions still compare the old one, and fail.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from lavalite.base.errors import FencedError
from lavalite.store.base import Compare, OutcomeUnknown, Put, Store, StoreUnavailable
from lavalite.store.keys import Keys

TAKE_TRIES = 8


@dataclass(slots=True, frozen=True)
class Fence:
    """What must still hold in the store for a write of ours to be let through."""

    leader_key: str
    leader_create_revision: int
    writer_key: str
    writer_mod_revision: int
    writer_value: bytes
    generation: Compare

    def compares(self) -> list[Compare]:
        return [
            Compare.created_at(self.leader_key, self.leader_create_revision),
            Compare.unchanged(self.writer_key, self.writer_mod_revision),
            self.generation,
        ]


async def take_writer(
    store: Store, keys: Keys, leader_create_revision: int, epoch: tuple[int, int], nonce: str
) -> Fence:
    """Become the writer of this epoch. `nonce` is new with every process.

    Raises FencedError when the epoch is over, StoreUnavailable when the store does not answer in a few tries.
    """
    value = json.dumps({"epoch": list(epoch), "nonce": nonce, "turn": 1}).encode()
    for _ in range(TAKE_TRIES):
        generation = await _generation(store, keys, epoch)
        found = await store.get(keys.writer)
        before = (found.mod_revision, found.value) if found else (0, b"")
        fence = Fence(keys.leader, leader_create_revision, keys.writer, *before, generation)
        if fence.writer_value == value:
            return fence
        try:
            taken = await _rewrite(store, fence, value)
        except OutcomeUnknown:
            continue
        if taken is not None:
            return taken
        # Either the leadership is over, or a dead predecessor's last write came in between: then once more.
        await _leads_still(store, fence)
    raise StoreUnavailable(f"{keys.writer} could not be written in {TAKE_TRIES} tries")


async def renew_writer(store: Store, fence: Fence) -> Fence:
    """Write `writer` anew, so that whatever we sent before and has not arrived yet fails from now on.

    Raises FencedError when we are not the writer any more, OutcomeUnknown or StoreUnavailable when it is not
    known to be done; asking again with the same fence is safe and leads to the same value.
    """
    told = json.loads(fence.writer_value)
    told["turn"] += 1
    renewed = await _rewrite(store, fence, json.dumps(told).encode())
    if renewed is None:
        raise FencedError("another scheduler has taken over: the store holds its mark, not ours")
    return renewed


async def _rewrite(store: Store, fence: Fence, value: bytes) -> Fence | None:
    """Write `value` if the fence holds; also good if an earlier try of the same did arrive. None: shut out.

    No two tries can both be carried out, since both compare the same old `writer`.
    """
    try:
        await store.txn(fence.compares(), [Put(fence.writer_key, value)])
    except OutcomeUnknown:
        found = await store.get(fence.writer_key)
        if found is None or found.value != value:
            raise
    found = await store.get(fence.writer_key)
    if found is None or found.value != value:
        return None
    return replace(fence, writer_mod_revision=found.mod_revision, writer_value=value)


async def _generation(store: Store, keys: Keys, epoch: tuple[int, int]) -> Compare:
    """What must hold of the generation for this epoch to be the latest; there is no record of generation 0."""
    found = await store.get(keys.generation)
    if (found.value if found else b"0").strip() != b"%d" % epoch[0]:
        raise FencedError("this leadership is over: the store was restored from a backup since it began")
    return Compare.equals(keys.generation, found.value) if found else Compare.absent(keys.generation)


async def _leads_still(store: Store, fence: Fence) -> None:
    leader = await store.get(fence.leader_key)
    if leader is None or leader.create_revision != fence.leader_create_revision:
        raise FencedError("this leadership is over: the leader key is not ours any more")
