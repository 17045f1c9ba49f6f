"""Checks of what callers pass: the same for every implementation, so that a test on one holds for the others."""

from __future__ import annotations

from collections.abc import Sequence

from lavalite.base.errors import LavaLiteError
from lavalite.store.base import PAGE_LIMIT, Compare, Put

MAX_TXN_BYTES = 1_048_576
"""Most bytes of keys and values in one transaction. Below the 1.5 MiB that an etcd takes by default."""

OPERATION_OVERHEAD_BYTES = 64


def check_txn(compares: Sequence[Compare], puts: Sequence[Put], deletes: Sequence[str], max_operations: int) -> None:
    """Raise ValueError for a key that stands twice or is empty, too many compares, operations or bytes."""
    keys = [put.key for put in puts] + list(deletes)
    if len(keys) > max_operations:
        raise ValueError(f"{len(keys)} operations in one transaction, at most {max_operations} fit")
    if len(compares) > max_operations:
        raise ValueError(f"{len(compares)} compares in one transaction, at most {max_operations} fit")
    if len(set(keys)) != len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"the key {twice[0]} stands twice in one transaction")
    if "" in keys:
        raise ValueError("a key must not be empty")
    size = sum(write_bytes(put.key, put.value) for put in puts) + sum(write_bytes(key, None) for key in deletes)
    if size > MAX_TXN_BYTES:
        raise ValueError(f"a transaction of {size} bytes, at most {MAX_TXN_BYTES} fit")


def write_bytes(key: str, value: bytes | None) -> int:
    """What a put, or a deletion where `value` is None, adds to the size of a transaction."""
    return len(key.encode()) + OPERATION_OVERHEAD_BYTES + len(value or b"")


def page_limit(limit: int) -> int:
    """`limit`, at most PAGE_LIMIT. Raises ValueError below 1."""
    if limit < 1:
        raise ValueError(f"a page of {limit} records was asked for, at least 1 is needed")
    return min(limit, PAGE_LIMIT)


def check_ttl(ttl_seconds: int) -> None:
    """Raise ValueError unless the time to live is at least a second."""
    if ttl_seconds < 1:
        raise ValueError(f"a lease of {ttl_seconds} seconds was asked for, at least 1 is needed")


def check_watch(from_revision: int) -> None:
    """Raise ValueError for a revision that no store has."""
    if from_revision < 1:
        raise ValueError(f"a watch from revision {from_revision} was asked for, the first is 1")


def prefix_end(prefix: str) -> bytes | None:
    """The first key (as bytes) after all keys that start with `prefix`; None where there is no such end."""
    end = bytearray(prefix.encode())
    while end and end[-1] == 0xFF:
        end.pop()
    if not end:
        return None
    end[-1] += 1
    return bytes(end)


class StoreClosed(LavaLiteError):
    """Our own program closed the store and then used it."""

    default_code = "store_closed"

    def __init__(self) -> None:
        super().__init__("the store is closed")
