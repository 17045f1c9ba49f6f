"""What etcd's refusals mean, and what to say about them.

A call to one member ends in one of three ways besides an answer: *not reached* (nothing was sent), *refused* (the
member answered that it did nothing), or *lost* (it may or may not have been carried out).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import grpc

from lavalite.store.base import StoreUnavailable

Code = grpc.StatusCode

REFUSALS = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.RESOURCE_EXHAUSTED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
    }
)
"""Codes with which etcd says that it did nothing."""

NO_LEADER = "etcdserver: no leader"

SENTENCES: tuple[tuple[str, str, str], ...] = (
    (
        "database space exceeded",
        "etcd's quota is full",
        "Compact and defragment it, then `etcdctl alarm disarm`; raise --quota-backend-bytes if it fills again.",
    ),
    ("too many requests", "etcd has more requests than it can apply", "Check the latency of its disks."),
    ("no leader", "etcd has no leader", "Start more of its members: more than half must run."),
    ("user name is empty", "etcd wants a user name", "Set the store's username and password_path."),
    ("authentication failed", "etcd refused the user name or password", "Check username and password_path."),
    ("permission denied", "etcd's user may not touch these keys", "Grant its role the prefix /lavalite/."),
    ("corrupt", "etcd found its data corrupt", "Replace the damaged member or restore a backup."),
)


class NotReached(Exception):
    """No connection: nothing was sent."""


class Refused(Exception):
    """The member did nothing and said so."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        self.details = details
        super().__init__(details)

    def unavailable(self) -> StoreUnavailable:
        for part, message, hint in SENTENCES:
            if part in self.details:
                return StoreUnavailable(message, hint=hint)
        return StoreUnavailable(f"etcd refused: {self.details or self.code.name}", hint="See etcd's log.")


class Lost(Exception):
    """The member may or may not have done it."""


@contextlib.contextmanager
def cut_off_as(error: Exception) -> Iterator[None]:
    """Raise `error` where gRPC says "cancelled" because the channel was closed under a call.

    It says so with CancelledError, which would silently end the caller's task. A cancellation that was asked of the
    task passes through.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise error from None


def judge(error: grpc.aio.AioRpcError) -> NotReached | Refused | Lost:
    """Which of the three ways a call that was sent ended in."""
    details = error.details() or ""
    if NO_LEADER in details:  # turned away at the door; another member may have a leader
        return NotReached("it has no leader")
    if error.code() in REFUSALS:
        return Refused(error.code(), details)
    return Lost("it did not answer in time" if error.code() is Code.DEADLINE_EXCEEDED else details or "gone")


def is_stale_token(details: str) -> bool:
    """The login has run out or users were changed: log in again. Nothing was done."""
    return "invalid auth token" in details or "revision in header is old" in details
