"""The records in a file that `etcdctl snapshot save` wrote, read without an etcd (docs/adr/0004).

    file      a bbolt database, then the SHA-256 of it (32 bytes)
    page      a header of 16 bytes (id, kind, count, overflow), then `count` elements; a node of a B+ tree
    bucket    `key` is the one we want: revision → mvccpb.KeyValue, in the order of revisions
    revision  8 bytes main, `_`, 8 bytes sub, and `t` after it where the key was deleted

Sources: https://github.com/etcd-io/bbolt (page.go, meta.go), etcd's mvcc/revision.go and mvcc/mvccpb/kv.proto. The
format is the same in etcd 3.0 to 3.6.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lavalite.store.base import Record
from lavalite.store.saved import Saved, damaged

DIGEST_BYTES = 32
SECTOR_BYTES = 512
"""Databases are whole sectors, so the digest behind them shows in the size."""

_HEADER = struct.Struct("<QHHI")
_BRANCH, _LEAF = 1, 2
_BRANCH_ELEMENT = struct.Struct("<IIQ")
_LEAF_ELEMENT = struct.Struct("<IIII")
_BUCKET = struct.Struct("<QQ")
_META = struct.Struct("<IIIIQQQQQQ")
_MAGIC, _FORMAT = 0xED0CDAED, 2
_REVISION = struct.Struct(">QxQ")
_DEEPEST = 64


class _Damaged(Exception):
    """What does not fit, in words that follow `no whole snapshot of etcd: `."""


def read_etcd_snapshot(path: Path) -> Saved:
    """Raises InputError where the file is not whole, or no snapshot; OSError where it cannot be read."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < SECTOR_BYTES or size % SECTOR_BYTES != DIGEST_BYTES:
                raise _Damaged("its size is not one of a database and its digest")
            _check_digest(file, size - DIGEST_BYTES)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data)
    except (_Damaged, struct.error, IndexError, UnicodeDecodeError) as error:
        raise damaged(path, f"no whole snapshot of etcd: {error}") from None


def _check_digest(file: BinaryIO, size: int) -> None:
    digest, left = hashlib.sha256(), size
    while left and (block := file.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    if file.read(DIGEST_BYTES) != digest.digest():
        raise _Damaged("its content does not match its digest")


def _read(data: mmap.mmap) -> Saved:
    page_bytes, root = _newest_meta(data)
    tree = _Tree(data, page_bytes)
    bucket = next((value for name, value in tree.leaves(root) if name == b"key"), None)
    if bucket is None:
        raise _Damaged("it has no bucket `key`")
    present: dict[bytes, Record] = {}
    revision = 1  # of an etcd that was never written to
    for name, value in tree.bucket(bucket):
        revision = max(revision, _REVISION.unpack_from(name)[0])
        record = _record(value)
        if name[17:] == b"t":
            present.pop(record[0], None)
        else:
            present[record[0]] = record[1]
    return Saved("etcd", revision, [present[key] for key in sorted(present)])


def _newest_meta(data: mmap.mmap) -> tuple[int, int]:
    """The size of a page, and the page of the root bucket, of the last transaction that was completed."""
    found: list[tuple[int, int, int]] = []
    page_bytes = _META.unpack_from(data, _HEADER.size)[2]
    for start in (0, page_bytes):
        magic, version, size, _, root, _, _, _, txid, checksum = _META.unpack_from(data, start + _HEADER.size)
        whole = _fnv1a(data[start + _HEADER.size : start + _HEADER.size + _META.size - 8]) == checksum
        if magic == _MAGIC and version == _FORMAT and whole:
            found.append((txid, size, root))
    if not found:
        raise _Damaged("its first pages are not those of a database")
    return max(found)[1:]


def _fnv1a(data: bytes) -> int:
    digest = 0xCBF29CE484222325
    for byte in data:
        digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return digest


class _Tree:
    def __init__(self, data: mmap.mmap, page_bytes: int) -> None:
        self._data, self._page_bytes = data, page_bytes

    def bucket(self, value: bytes) -> Iterator[tuple[bytes, bytes]]:
        """What is in a bucket, by the value that it has in the bucket above. A small one is in that value itself."""
        root, _ = _BUCKET.unpack_from(value)
        return self.leaves(root) if root else _elements(value, _BUCKET.size)

    def leaves(self, page: int, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of all below a page, in order."""
        if depth > _DEEPEST:
            raise _Damaged("its pages go in circles")
        start = page * self._page_bytes
        _, kind, count, overflow = _HEADER.unpack_from(self._data, start)
        content = self._data[start : start + (overflow + 1) * self._page_bytes]
        if kind & _LEAF:
            yield from _elements(content, 0)
        elif kind & _BRANCH:
            for number in range(count):
                yield from self.leaves(_BRANCH_ELEMENT.unpack_from(content, 16 + 16 * number)[2], depth + 1)
        else:
            raise _Damaged(f"page {page} is neither branch nor leaf")


def _elements(content: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    _, _, count, _ = _HEADER.unpack_from(content, start)
    for number in range(count):
        element = start + _HEADER.size + _LEAF_ELEMENT.size * number
        _, position, key_bytes, value_bytes = _LEAF_ELEMENT.unpack_from(content, element)
        key = element + position
        if key + key_bytes + value_bytes > len(content):
            raise _Damaged("an element is longer than its page")
        yield content[key : key + key_bytes], content[key + key_bytes : key + key_bytes + value_bytes]


def _record(message: bytes) -> tuple[bytes, Record]:
    """mvccpb.KeyValue: 1 key, 2 create_revision, 3 mod_revision, 4 version, 5 value, 6 lease."""
    texts: dict[int, bytes] = {}
    numbers: dict[int, int] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, at = _varint(message, at)
        if tag & 7 == 2:
            texts[tag >> 3] = message[at : at + number]
            at += number
        elif tag & 7 == 0:
            numbers[tag >> 3] = number
        else:
            raise _Damaged("a record is none of etcd's")
    key = texts.get(1, b"")
    created, changed, lease = (numbers.get(field, 0) for field in (2, 3, 6))
    return key, Record(key.decode(), texts.get(5, b""), created, changed, lease)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
