"""EtcdStore: the store of a cluster. The only file that imports etcd's library, etcd3aio.

Of that library we use the messages and the raw stubs. Its own watch resumes after the revision of the *cluster*
when the answer was written, not after what it delivered, and hangs after a compaction; it repeats transactions; it
has no deadlines of its own. So deadlines, fail-over, keepalives and watches are ours: etcd_members.py, etcd_watch.py.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

# Read by gRPC when it is loaded. Nobody here speaks to etcd after a fork: what is started becomes another program at
# once. With gRPC's own handlers of forks such a child has died of SIGSEGV before that.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio
from etcd3aio import _protobuf as pb

from lavalite.base.clock import Clock
from lavalite.base.errors import InputError
from lavalite.store.arguments import check_ttl, check_txn, check_watch, page_limit, prefix_end
from lavalite.store.base import (
    PAGE_LIMIT,
    Compacted,
    Compare,
    Event,
    LeaseLost,
    Page,
    Put,
    Record,
    Store,
    StoreStatus,
    Target,
    TxnResult,
    WatchBatch,
)
from lavalite.store.endpoints import parse_endpoints
from lavalite.store.etcd_faults import NotReached, Refused, is_stale_token
from lavalite.store.etcd_members import Access, Member, Members
from lavalite.store.etcd_watch import StreamEnded, responses

PAGE_BYTES = 2 * 1024 * 1024
"""What a page should weigh; records are asked for by number, so the number follows their size."""

FIRST_PAGE_RECORDS = 256
DEFAULT_QUOTA_BYTES = 2 * 1024**3
"""Etcd's own, where it is given none."""
RECONNECT_SECONDS = (0.05, 1.0)
DELETE_EVENT = 1
PERMANENT = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT)


class EtcdStubs:
    """etcd's services on one channel."""

    def __init__(self, channel: Any) -> None:
        self.kv: Any = pb.KVStub(channel)
        self.lease: Any = pb.LeaseStub(channel)
        self.watch: Any = pb.WatchStub(channel)
        self.maintenance: Any = pb.MaintenanceStub(channel)
        self.auth: Any = pb.AuthStub(channel)

    async def login(self, username: str, password: str, timeout_seconds: float) -> str:
        request = pb.AuthenticateRequest(name=username, password=password)
        return str((await self.auth.Authenticate(request, timeout=timeout_seconds)).token)

    async def probe(self, timeout_seconds: float) -> None:
        await self.maintenance.Status(pb.StatusRequest(), timeout=timeout_seconds)


class EtcdStore(Store):
    """Make one with `await EtcdStore.open(endpoints, clock=clock)`."""

    def __init__(self, members: Members, clock: Clock, quota_bytes: int = DEFAULT_QUOTA_BYTES) -> None:
        self._members = members
        self._quota_bytes = quota_bytes
        self._clock = clock
        self._page_records = FIRST_PAGE_RECORDS

    @classmethod
    async def open(
        cls,
        endpoints: list[str],
        *,
        clock: Clock,
        timeout_seconds: float = 5.0,
        ca_path: Path | None = None,
        cert_path: Path | None = None,
        key_path: Path | None = None,
        username: str | None = None,
        password: str | None = None,
        quota_bytes: int | None = None,
    ) -> EtcdStore:
        """A store on `endpoints` (HOST:PORT or https://HOST:PORT). Connects at the first call.

        `quota_bytes` is etcd's --quota-backend-bytes, which members before 3.6 do not tell.
        Raises InputError for endpoints or files that cannot be used.
        """
        try:
            parsed = parse_endpoints(endpoints, tls=ca_path is not None)
        except ValueError as error:
            raise InputError(str(error), field="endpoints") from None
        access = Access(_pem(ca_path), _pem(key_path), _pem(cert_path), username, password)
        members = [Member(endpoint, access, EtcdStubs) for endpoint in parsed]
        return cls(Members(members, access, clock, timeout_seconds), clock, quota_bytes or DEFAULT_QUOTA_BYTES)

    # --- reading -----------------------------------------------------------------------------------------------

    async def get(self, key: str) -> Record | None:
        answer = await self._kv("Range", pb.RangeRequest(key=key.encode()))
        return _record(answer.kvs[0]) if answer.kvs else None

    async def range(
        self, prefix: str, *, limit: int = PAGE_LIMIT, after: str | None = None, at_revision: int = 0
    ) -> Page:
        count = min(page_limit(limit), self._page_records)
        start = prefix.encode()
        if after is not None:
            start = max(start, after.encode() + b"\0")
        request = pb.RangeRequest(
            key=start or b"\0", range_end=prefix_end(prefix) or b"\0", limit=count, revision=at_revision
        )
        try:
            answer = await self._kv("Range", request, raise_refused=True)
        except Refused as refused:
            if refused.code is grpc.StatusCode.OUT_OF_RANGE:  # compacted, or (after a restore) not reached
                raise Compacted(at_revision + 1) from None
            raise refused.unavailable() from None
        records = [_record(kv) for kv in answer.kvs]
        if records:
            fitting = PAGE_BYTES * len(records) // max(answer.ByteSize(), 1)
            self._page_records = max(8, min(PAGE_LIMIT, fitting))
        return Page(records, at_revision or answer.header.revision, records[-1].key if answer.more else None)

    async def status(self) -> StoreStatus:
        async def attempt(stubs: Any, seconds: float, metadata: Any) -> Any:
            return await stubs.maintenance.Status(pb.StatusRequest(), timeout=seconds, metadata=metadata)

        answer = await self._call(attempt)
        return StoreStatus(
            "etcd",
            answer.version,
            answer.header.revision,
            answer.dbSize,
            self._members.in_use,
            in_use_bytes=answer.dbSizeInUse,
            quota_bytes=answer.dbSizeQuota or self._quota_bytes,
            alarms=tuple(answer.errors),
        )

    # --- writing -----------------------------------------------------------------------------------------------

    async def txn(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> TxnResult:
        check_txn(compares, puts, deletes, self.max_txn_operations)
        request = _txn_request(compares, puts, deletes)
        try:
            answer = await self._kv("Txn", request, repeatable=False, changes=True, raise_refused=True)
        except Refused as refused:
            if "lease not found" in refused.details:
                raise LeaseLost("a lease of these keys has expired or was revoked", hint="Take a new one.") from None
            if refused.code is grpc.StatusCode.INVALID_ARGUMENT:
                raise ValueError(f"etcd refused the transaction: {refused.details}") from None
            raise refused.unavailable() from None
        return TxnResult(answer.succeeded, answer.header.revision)

    async def lease_grant(self, ttl_seconds: int) -> int:
        check_ttl(ttl_seconds)
        request = pb.LeaseGrantRequest(TTL=ttl_seconds)

        async def attempt(stubs: Any, seconds: float, metadata: Any) -> Any:
            return await stubs.lease.LeaseGrant(request, timeout=seconds, metadata=metadata)

        answer = await self._call(attempt, repeatable=False, changes=True)
        return int(answer.ID)

    async def lease_keepalive(self, lease_id: int) -> int:
        request = pb.LeaseKeepAliveRequest(ID=lease_id)

        async def attempt(stubs: Any, seconds: float, metadata: Any) -> Any:
            # A stream for one question and one answer, so that the deadline is that of this renewal.
            call = stubs.lease.LeaseKeepAlive(timeout=seconds, metadata=metadata)
            try:
                await call.write(request)
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    raise await _ended(call)
                return answer
            finally:
                call.cancel()

        ttl_seconds = int((await self._call(attempt)).TTL)
        if ttl_seconds <= 0:
            raise LeaseLost(f"lease {lease_id} has expired or was revoked", hint="Take a new one.")
        return ttl_seconds

    async def lease_revoke(self, lease_id: int) -> None:
        request = pb.LeaseRevokeRequest(ID=lease_id)

        async def attempt(stubs: Any, seconds: float, metadata: Any) -> Any:
            return await stubs.lease.LeaseRevoke(request, timeout=seconds, metadata=metadata)

        try:
            await self._members.call(attempt, changes=True)
        except Refused as refused:
            if refused.code is not grpc.StatusCode.NOT_FOUND:
                raise refused.unavailable() from None

    async def compact(self, revision: int) -> None:
        try:
            await self._kv("Compact", pb.CompactionRequest(revision=revision), raise_refused=True)
        except Refused as refused:
            if "future" in refused.details:
                raise ValueError(f"revision {revision} is not reached yet") from None
            if refused.code is not grpc.StatusCode.OUT_OF_RANGE:  # out of range: compacted already
                raise refused.unavailable() from None

    async def close(self) -> None:
        await self._members.close()

    async def _kv(self, method: str, request: Any, *, raise_refused: bool = False, **how: bool) -> Any:
        async def attempt(stubs: Any, seconds: float, metadata: Any) -> Any:
            return await getattr(stubs.kv, method)(request, timeout=seconds, metadata=metadata)

        if raise_refused:
            return await self._members.call(attempt, **how)
        return await self._call(attempt, **how)

    async def _call(self, attempt: Any, **how: bool) -> Any:
        try:
            return await self._members.call(attempt, **how)
        except Refused as refused:
            raise refused.unavailable() from None

    # --- watching ----------------------------------------------------------------------------------------------

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        check_watch(from_revision)
        position = from_revision
        pause_seconds, denied = RECONNECT_SECONDS[0], False
        while True:
            try:
                async with contextlib.aclosing(self._watch_once(prefix, position)) as batches:
                    async for batch in batches:
                        pause_seconds, denied = RECONNECT_SECONDS[0], False
                        position = batch.revision + 1
                        yield batch
            except (StreamEnded, NotReached):
                denied = False  # an outage: a watch waits through it
            except Refused as refused:
                if refused.code in PERMANENT:
                    # Some versions say "permission denied" to a watch whose login has run out: log in again, once.
                    if denied:
                        raise refused.unavailable() from None
                    denied = True
                    self._members.forget_token()
            await self._clock.sleep(pause_seconds * random.uniform(0.5, 1.0))  # noqa: S311  (spreads reconnects)
            pause_seconds = min(pause_seconds * 2, RECONNECT_SECONDS[1])

    async def _watch_once(self, prefix: str, position: int) -> AsyncGenerator[WatchBatch, None]:
        """Batches from `position` on one member, until StreamEnded, NotReached, Refused or Compacted."""
        member, stubs, metadata = await self._members.stream_on()
        # One revision more than is wanted: had etcd compacted at exactly `position`, it would not say so and yet
        # have dropped the deletions of that revision.
        create = pb.WatchCreateRequest(
            key=prefix.encode() or b"\0", range_end=prefix_end(prefix) or b"\0", start_revision=max(1, position - 1)
        )
        progress = pb.WatchRequest(progress_request=pb.WatchRequest().progress_request)
        try:
            call = stubs.watch.Watch(metadata=metadata)
        except grpc.aio.UsageError:
            raise NotReached("the connection was closed") from None
        stream = responses(call, pb.WatchRequest(create_request=create), progress, self._members.timeout_seconds)
        try:
            async with contextlib.aclosing(stream):
                async for answer in stream:
                    self._members.heard(member)
                    _check_canceled(answer)
                    events = [_event(e) for e in answer.events if e.kv.mod_revision >= position]
                    if events:
                        position = events[-1].record.mod_revision + 1
                        yield WatchBatch(position - 1, events)
        except StreamEnded as ended:
            if is_stale_token(str(ended)):
                self._members.forget_token()
            else:
                self._members.move_on(member)
            raise


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        hint = "Check the path and that this user may read it."
        raise InputError(f"{path} cannot be read ({error.strerror})", field="store", hint=hint) from None


def _record(kv: Any) -> Record:
    return Record(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _event(event: Any) -> Event:
    if event.type == DELETE_EVENT:
        return Event("delete", Record(event.kv.key.decode(), b"", 0, event.kv.mod_revision))
    return Event("put", _record(event.kv))


def _check_canceled(answer: Any) -> None:
    if answer.compact_revision:
        raise Compacted(answer.compact_revision)
    if answer.canceled:
        denied = "permission denied" in answer.cancel_reason
        raise (
            Refused(grpc.StatusCode.PERMISSION_DENIED, answer.cancel_reason)
            if denied
            else StreamEnded(answer.cancel_reason)
        )


async def _ended(call: Any) -> grpc.aio.AioRpcError:
    """The error with which a stream ended; one of our own where it ended politely and too early."""
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        code, details = grpc.StatusCode.UNAVAILABLE, "the stream ended without an answer"
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def _compare(compare: Compare) -> Any:
    fields: dict[Target, tuple[int, str]] = {
        Target.CREATE_REVISION: (pb.Compare.CREATE, "create_revision"),
        Target.MOD_REVISION: (pb.Compare.MOD, "mod_revision"),
        Target.VALUE: (pb.Compare.VALUE, "value"),
    }
    target, name = fields[compare.target]
    return pb.Compare(key=compare.key.encode(), target=target, result=pb.Compare.EQUAL, **{name: compare.expected})


def _txn_request(compares: Sequence[Compare], puts: Sequence[Put], deletes: Sequence[str]) -> Any:
    operations = [
        pb.RequestOp(request_put=pb.PutRequest(key=put.key.encode(), value=put.value, lease=put.lease_id))
        for put in puts
    ]
    operations += [pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key.encode())) for key in deletes]
    return pb.TxnRequest(compare=[_compare(compare) for compare in compares], success=operations)
