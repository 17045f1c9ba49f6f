"""What the election asks of the store. Every request has a deadline of its own, and ends in exactly one event."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from lavalite import __version__
from lavalite.base.clock import Clock
from lavalite.base.errors import InputError, LavaLiteError
from lavalite.lim.config import LimConfig
from lavalite.lim.steps import (
    Campaign,
    CampaignUnknown,
    Elected,
    Event,
    KeyLost,
    LeaderKey,
    LeaderRead,
    NotElected,
    ReadFailed,
    ReadLeader,
    Renew,
    RenewalFailed,
    Renewed,
    Revoke,
    RevokeEnded,
)
from lavalite.store.base import Compare, LeaseLost, OutcomeUnknown, Put, Record, Store
from lavalite.store.keys import Keys
from lavalite.store.open import open_store

log = structlog.get_logger(__name__)

T = TypeVar("T")
OPEN_AGAIN_SECONDS = 2.0


class LeaderValue(BaseModel):
    """What stands in the leader key. The epoch is `generation` and the key's create revision."""

    model_config = ConfigDict(extra="allow")

    node: str
    nonce: str
    generation: int = 0
    lim_address: str = ""
    mbatchd_address: str = ""
    api_url: str = ""
    software_version: str = ""


def leader_key(record: Record | None) -> LeaderKey | None:
    """The leader key's record as the core sees it. What cannot be read is a leader without a name."""
    if record is None:
        return None
    try:
        value = LeaderValue.model_validate_json(record.value)
    except ValidationError:
        return LeaderKey("", "", (0, record.create_revision), record.lease_id)
    return LeaderKey(
        node=value.node,
        nonce=value.nonce,
        epoch=(value.generation, record.create_revision),
        lease_id=record.lease_id,
        lim_address=value.lim_address,
        mbatchd_address=value.mbatchd_address,
        api_url=value.api_url,
    )


def _generation(record: Record | None) -> int:
    """0 in a cluster that was never restored from a backup. Raises LavaLiteError."""
    try:
        return int(record.value) if record else 0
    except ValueError:
        hint = "Restore the cluster's records again: nobody can lead before."
        raise LavaLiteError(f"the record {record.key if record else ''} is no number", hint=hint) from None


class LeaderStore:
    """The leader key, for one candidate. Open it first."""

    def __init__(self, config: LimConfig, lim_address: str, clock: Clock) -> None:
        assert config.store is not None, "candidates have a store"
        call_seconds = config.lease_ttl_seconds / 3
        timeout = min(config.store.timeout_seconds, call_seconds)
        self._config = config.store.model_copy(update={"timeout_seconds": timeout})
        self._call_seconds = call_seconds * 1.2  # the store's own deadline comes first; this one is for its faults
        self._ttl_seconds = config.lease_ttl_seconds
        self._keys = Keys(config.cluster)
        self._value = LeaderValue(
            node=config.node,
            nonce="",
            lim_address=lim_address,
            mbatchd_address=config.mbatchd_address,
            api_url=config.api_url,
            software_version=__version__,
        )
        self._clock = clock
        self._answers = True
        self._store: Store

    async def open(self, stop: asyncio.Event) -> bool:
        """Try until the store is open, or `stop` is set. Raises InputError for what trying again does not mend."""
        while not stop.is_set():
            try:
                self._store = await open_store(self._config, self._clock)
                return True
            except InputError:
                raise
            except LavaLiteError as error:
                self._note(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), OPEN_AGAIN_SECONDS)
        return False

    async def close(self) -> None:
        await self._store.close()

    async def ask(self, request: ReadLeader | Campaign | Renew | Revoke) -> Event:
        """Carry one request out. Never raises for what the store does."""
        match request:
            case ReadLeader(number):
                return await self._read(number)
            case Campaign(number, nonce):
                return await self._try_to_lead(number, nonce)
            case Renew(number, lease_id, create_revision):
                return await self._renew(number, lease_id, create_revision)
            case Revoke(number, lease_id):
                return await self._revoke(number, lease_id)

    async def changes(self) -> AsyncGenerator[None, None]:
        """Something for each change of the leader key, until the store fails."""
        with contextlib.suppress(LavaLiteError):
            page = await self._within(self._store.range(self._keys.leader))
            batches = self._store.watch(self._keys.leader, page.revision + 1)
            async with contextlib.aclosing(batches):
                async for _ in batches:
                    yield

    async def _read(self, request: int) -> Event:
        try:
            record = await self._within(self._store.get(self._keys.leader))
        except LavaLiteError as error:
            self._note(error)
            return ReadFailed(request)
        self._note(None)
        return LeaderRead(request, leader_key(record))

    async def _try_to_lead(self, request: int, nonce: str) -> Event:
        lease_id = 0
        try:
            found = await self._within(self._store.get(self._keys.generation))
            generation = _generation(found)
            sent_at = self._clock.boottime()
            lease_id = await self._within(self._store.lease_grant(self._ttl_seconds))
        except LavaLiteError as error:
            self._note(error)
            return NotElected(request, lease_id)
        value = self._value.model_copy(update={"nonce": nonce, "generation": generation})
        compares = [
            Compare.absent(self._keys.leader),
            Compare.unchanged(self._keys.generation, found.mod_revision if found else 0),
        ]
        put = Put(self._keys.leader, value.model_dump_json().encode(), lease_id)
        try:
            result = await self._within(self._store.txn(compares, [put]))
        except OutcomeUnknown as error:
            self._note(error)
            return CampaignUnknown(request, sent_at, lease_id)
        except LavaLiteError as error:
            self._note(error)
            return NotElected(request, lease_id)
        if not result.succeeded:
            return NotElected(request, lease_id)
        return Elected(request, sent_at, lease_id, (generation, result.revision))

    async def _renew(self, request: int, lease_id: int, create_revision: int) -> Event:
        sent_at = self._clock.boottime()
        try:
            await self._within(self._store.lease_keepalive(lease_id))
            record = await self._within(self._store.get(self._keys.leader))
        except LeaseLost:
            return KeyLost(request)
        except LavaLiteError as error:
            self._note(error)
            return RenewalFailed(request)
        self._note(None)
        if record is None or record.create_revision != create_revision:
            return KeyLost(request)
        return Renewed(request, sent_at)

    async def _revoke(self, request: int, lease_id: int) -> Event:
        with contextlib.suppress(LavaLiteError):  # it ends by itself then
            await self._within(self._store.lease_revoke(lease_id))
        return RevokeEnded(request)

    async def _within(self, call: Awaitable[T]) -> T:
        """A call of the store that was given up is one whose outcome is not known."""
        try:
            async with asyncio.timeout(self._call_seconds):
                return await call
        except TimeoutError:
            raise OutcomeUnknown(f"the store gave no answer in {self._call_seconds:.1f} s") from None

    def _note(self, error: LavaLiteError | None) -> None:
        """One sentence when the store stops answering, and one when it answers again."""
        if error is not None and self._answers:
            log.warning("the store does not answer; trying again", reason=str(error))
        elif error is None and not self._answers:
            log.info("the store answers again")
        self._answers = error is None
