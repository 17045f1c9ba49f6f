"""Who leads, as this LIM knows: a candidate from the election, everybody else by asking the candidates."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Protocol

import structlog

from lavalite.base.clock import Clock
from lavalite.base.errors import LavaLiteError
from lavalite.lim.config import LimConfig
from lavalite.lim.election import Candidate
from lavalite.wire.connection import Connection
from lavalite.wire.frames import Hello, Leader, Ready, WhoLeads

log = structlog.get_logger(__name__)

ASK_SECONDS = 2.0
CALM_FACTOR = 5
"""How many beats a known leader is believed before the candidates are asked again."""


class View(Protocol):
    def leader(self) -> Leader:
        """`node` is empty when nobody is known to lead."""
        ...

    def doubt(self) -> None:
        """What `leader()` said did not hold: find out anew."""
        ...


class CandidateView:
    """Goes by the election. What mbatchd said of itself (`ready`) is better than what the configuration says."""

    def __init__(self, config: LimConfig, lim_address: str, candidate: Candidate) -> None:
        self._config, self._lim_address, self._candidate = config, lim_address, candidate
        self.ready: Ready | None = None

    def leader(self) -> Leader:
        election = self._candidate.election
        if self._candidate.leads():
            ready = self.ready if self.ready and self.ready.epoch == election.epoch else None
            return Leader(
                node=self._config.node,
                epoch=election.epoch,
                lim_address=self._lim_address,
                mbatchd_address=ready.mbatchd_address if ready else self._config.mbatchd_address,
                api_url=ready.api_url if ready else self._config.api_url,
                mine=True,
                leader_key=self._candidate.keys.leader,
                leader_create_revision=election.epoch[1],
                deadline=election.deadline,
            )
        seen = election.seen
        if seen is None or not seen.node:
            return Leader()
        return Leader(
            node=seen.node,
            epoch=seen.epoch,
            lim_address=seen.lim_address,
            mbatchd_address=seen.mbatchd_address,
            api_url=seen.api_url,
            leader_key=self._candidate.keys.leader,
            leader_create_revision=seen.epoch[1],
        )

    def doubt(self) -> None:
        """The election looks by itself."""


class WorkerView:
    """Asks all configured candidates; the highest epoch is right."""

    def __init__(self, config: LimConfig, hello: Hello, ssl_context: ssl.SSLContext | None, clock: Clock) -> None:
        self._addresses = config.candidates
        self._interval_seconds = config.beat_seconds
        self._hello, self._ssl_context, self._clock = hello, ssl_context, clock
        self._leader = Leader()
        self._doubted = asyncio.Event()
        self._complaints: dict[str, str] = {}

    def leader(self) -> Leader:
        return self._leader

    def doubt(self) -> None:
        self._doubted.set()

    async def run(self) -> None:
        while True:
            await self._look()
            await self._clock.sleep(self._interval_seconds)
            if self._leader.node:
                try:
                    await asyncio.wait_for(self._doubted.wait(), (CALM_FACTOR - 1) * self._interval_seconds)
                except TimeoutError:
                    continue
            self._doubted.clear()

    async def _look(self) -> None:
        answers = await asyncio.gather(*(self._ask(address) for address in self._addresses))
        if all(answer is None for answer in answers):
            if self._leader.node:
                log.warning("no candidate answers; the last known leader stands", node=self._leader.node)
            return
        found = newest(answer for answer in answers if answer is not None)
        if (found.node, found.epoch) != (self._leader.node, self._leader.epoch):
            log.info("the leader is known" if found.node else "nobody leads", node=found.node, epoch=found.epoch)
        self._leader = found

    async def _ask(self, address: str) -> Leader | None:
        connection = None
        try:
            async with asyncio.timeout(ASK_SECONDS):
                connection, _ = await Connection.open(
                    address, self._hello, timeout_seconds=ASK_SECONDS, ssl_context=self._ssl_context
                )
                await connection.send(WhoLeads())
                answer = await connection.receive()
                self._complaints.pop(address, None)
                return answer if isinstance(answer, Leader) else None
        except (LavaLiteError, TimeoutError) as error:
            self._complain(address, str(error) or f"no answer within {ASK_SECONDS:g} s")
            return None
        finally:
            if connection is not None:
                await connection.close()

    def _complain(self, address: str, reason: str) -> None:
        """Once for each reason: a candidate may be off for days."""
        if self._complaints.get(address) != reason:
            log.warning("a candidate cannot be asked who leads", address=address, reason=reason)
        self._complaints[address] = reason


def newest(answers: Iterable[Leader]) -> Leader:
    """Of what several LIMs said: the highest epoch; from the leader itself if it answered too."""
    known = [a for a in answers if a.node and a.epoch is not None]
    best = max(known, key=lambda a: (a.epoch or (0, 0), a.mine), default=Leader())
    return best.model_copy(update={"mine": False, "deadline": None})
