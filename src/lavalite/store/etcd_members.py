"""The members of an etcd cluster: one channel each, one in use until it fails, then the next.

gRPC's own balancing would go on sending its share of calls to a member that is frozen, so it is not used: every
channel has one address. Addresses are resolved by us at each new connection, which also serves IPv6 and names.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio

from lavalite.base.clock import Clock
from lavalite.store.arguments import StoreClosed
from lavalite.store.base import OutcomeUnknown, StoreUnavailable
from lavalite.store.endpoints import Endpoint
from lavalite.store.etcd_faults import Lost, NotReached, Refused, cut_off_as, is_stale_token, judge

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the old one's back-off
    ("grpc.max_receive_message_length", -1),  # a batch of a watch has no upper bound; ranges are paged
    ("grpc.keepalive_time_ms", 10_000),  # etcd closes connections that ping more often than every 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
NEEDS_LEADER = (("hasleader", "true"),)
"""Asks a member that is cut off from its leader to say so at once."""


class Stubs(Protocol):
    """What etcd's library offers on one channel, as far as members need it."""

    async def login(self, username: str, password: str, timeout_seconds: float) -> str:
        """A token."""

    async def probe(self, timeout_seconds: float) -> None:
        """Return if the member answers."""


@dataclass(slots=True, frozen=True)
class Access:
    """How we identify the members, and ourselves to them. Certificates are PEM."""

    root_certificates: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)
    certificate_chain: bytes | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)


class Member:
    """One member and the channel to it."""

    def __init__(self, endpoint: Endpoint, access: Access, make_stubs: Callable[[Any], Stubs]) -> None:
        self.endpoint = endpoint
        self.heard_at = float("-inf")
        self._access = access
        self._make_stubs = make_stubs
        self._channel: Any = None
        self._stubs: Stubs | None = None
        self._opening = asyncio.Lock()

    async def connect(self, seconds: float) -> Stubs:
        """Stubs on a connected channel. Raises NotReached; then nothing was sent."""
        try:
            async with asyncio.timeout(seconds):
                with cut_off_as(NotReached("the connection was closed")):
                    return await self._connect()
        except TimeoutError:
            raise NotReached("no connection in time") from None
        except OSError as error:
            raise NotReached(f"{self.endpoint.host} cannot be resolved ({error.strerror})") from None
        except (grpc.aio.UsageError, grpc.aio.InternalError):
            raise NotReached("the connection was closed") from None

    async def _connect(self) -> Stubs:
        async with self._opening:
            gone = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)
            if self._channel is None or self._channel.get_state() in gone:
                await self.close()
                self._channel = self._open(await self._resolve())
                self._stubs = self._make_stubs(self._channel)
            channel, stubs = self._channel, self._stubs
        assert stubs is not None
        state = channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state in gone:
                raise NotReached("connection refused or broken")
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)
        return stubs

    async def _resolve(self) -> str:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
        families = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
        for family in families:
            hosts = [str(item[4][0]) for item in found if item[0] == family]
            if hosts:  # several addresses of one name are one member: gRPC takes the first that connects
                brackets = "[{}]:{}" if family == socket.AF_INET6 else "{}:{}"
                listed = ",".join(brackets.format(host, self.endpoint.port) for host in dict.fromkeys(hosts))
                return f"{families[family]}:{listed}"
        raise NotReached(f"{self.endpoint.host} has no address")

    def _open(self, target: str) -> Any:
        if not self.endpoint.tls:
            return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        access = self._access
        credentials = grpc.ssl_channel_credentials(
            access.root_certificates, access.private_key, access.certificate_chain
        )
        # The target is an address, so the name that the certificate must bear is said here.
        name = ("grpc.ssl_target_name_override", self.endpoint.host)
        return grpc.aio.secure_channel(target, credentials, options=(*CHANNEL_OPTIONS, name))

    async def close(self) -> None:
        channel, self._channel, self._stubs = self._channel, None, None
        if channel is not None:
            await channel.close()


Attempt = Callable[[Any, float, tuple[tuple[str, str], ...]], Any]
"""From (stubs, seconds left, metadata) to an awaitable answer."""


class Members:
    """Calls on whichever member works. Every call ends within `timeout_seconds`."""

    def __init__(self, members: list[Member], access: Access, clock: Clock, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self.probe_after_seconds = 1.0
        self._members = members
        self._access = access
        self._clock = clock
        self._current = 0
        self._token = ""
        self._closed = False

    async def call(self, attempt: Attempt, *, repeatable: bool = True, changes: bool = False) -> Any:
        """The answer of the first member that gives one.

        A call that is not `repeatable` is sent once; before that, a member not heard from for a second must answer
        a probe, so that a frozen one is passed over while nothing is at stake. Raises Refused; OutcomeUnknown if the
        call `changes` something and may have reached a member; else StoreUnavailable.
        """
        deadline = self._clock.monotonic() + self.timeout_seconds
        order = self._order()
        reasons: list[str] = []
        lost = False
        for index, member in enumerate(order):
            left = deadline - self._clock.monotonic()
            share = left / (len(order) - index)
            try:
                stubs = await self._reach(member, share, probe=not repeatable)
                seconds = share if repeatable else deadline - self._clock.monotonic()
                return await self._attempt(member, stubs, attempt, seconds)
            except NotReached as error:
                reasons.append(f"{member.endpoint}: {error}")
            except Lost as error:
                reasons.append(f"{member.endpoint}: {error}")
                lost = True
            self.move_on(member)
            if lost and not repeatable:
                break
        message = f"etcd does not answer ({'; '.join(reasons)})"
        if lost and changes:
            raise OutcomeUnknown(message, hint="Read the keys to know.")
        raise StoreUnavailable(message, hint="Check that more than half of its members run.")

    async def stream_on(self) -> tuple[Member, Any, tuple[tuple[str, str], ...]]:
        """The member in use, its stubs and the metadata to open a stream with. Raises NotReached, Refused."""
        member = self._order()[0]
        try:
            stubs = await member.connect(self.timeout_seconds)
            return member, stubs, await self._metadata(stubs, self.timeout_seconds)
        except NotReached:
            self.move_on(member)
            raise

    def move_on(self, member: Member) -> None:
        """`member` has failed; use the next one unless that has been seen to already."""
        if self._members[self._current] is member:
            self._current = (self._current + 1) % len(self._members)

    def heard(self, member: Member) -> None:
        member.heard_at = self._clock.monotonic()

    def forget_token(self) -> None:
        self._token = ""

    @property
    def in_use(self) -> str:
        """The endpoint that the next call goes to: the one of the last good answer."""
        return str(self._members[self._current].endpoint)

    async def close(self) -> None:
        self._closed = True
        for member in self._members:
            await member.close()

    def _order(self) -> list[Member]:
        if self._closed:
            raise StoreClosed()
        return self._members[self._current :] + self._members[: self._current]

    async def _reach(self, member: Member, seconds: float, *, probe: bool) -> Stubs:
        stubs = await member.connect(seconds)
        if probe and self._clock.monotonic() - member.heard_at > self.probe_after_seconds:
            try:
                with cut_off_as(NotReached("the connection was closed")):
                    await stubs.probe(seconds)
            except grpc.aio.AioRpcError as error:
                raise NotReached(f"no sign of life ({error.code().name.lower()})") from None
            self.heard(member)
        return stubs

    async def _attempt(self, member: Member, stubs: Stubs, attempt: Attempt, seconds: float) -> Any:
        try:
            with cut_off_as(Lost("the connection was closed")):
                answer = await self._attempt_logged_in(stubs, attempt, seconds)
        except grpc.aio.AioRpcError as error:
            verdict = judge(error)
            if isinstance(verdict, Refused):
                self.heard(member)
            raise verdict from None
        except (grpc.aio.UsageError, grpc.aio.InternalError):
            raise Lost("the connection was closed") from None
        self.heard(member)
        return answer

    async def _attempt_logged_in(self, stubs: Stubs, attempt: Attempt, seconds: float) -> Any:
        try:
            return await attempt(stubs, seconds, await self._metadata(stubs, seconds))
        except grpc.aio.AioRpcError as error:
            if not (self._token and is_stale_token(error.details() or "")):
                raise
        self.forget_token()
        return await attempt(stubs, seconds, await self._metadata(stubs, seconds))

    async def _metadata(self, stubs: Stubs, seconds: float) -> tuple[tuple[str, str], ...]:
        """What goes with each call. A login that fails counts as not reached: the call itself was not sent."""
        if self._access.username is None:
            return NEEDS_LEADER
        if not self._token:
            try:
                with cut_off_as(NotReached("the connection was closed")):
                    self._token = await stubs.login(self._access.username, self._access.password or "", seconds)
            except grpc.aio.AioRpcError as error:
                verdict = judge(error)
                raise verdict if isinstance(verdict, Refused) else NotReached("no login") from None
        return (*NEEDS_LEADER, ("token", self._token))
