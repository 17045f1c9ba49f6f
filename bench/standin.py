"""Stand-ins for agents: nodes that offer what they are told to, enter every logical host at once, and run nothing.

The scheduler that they speak to is a real one, over the real wire; only the machines are missing.
"""

from __future__ import annotations

import asyncio
import time

from lavalite import __version__
from lavalite.model.resources import NodeOffer
from lavalite.wire.connection import Connection
from lavalite.wire.frames import (
    Beat,
    EpochPair,
    Hello,
    HostsApplied,
    HostsHere,
    Register,
    Registered,
)
from lavalite.wire.tokens import AUDIENCE_MBATCHD, NodeKey, issue_token


class StandIn:
    """One node's session. `key` is a candidate's: it vouches for a node that has no LIM."""

    def __init__(self, cluster: str, offer: NodeOffer, key: NodeKey, issuer: str, epoch: EpochPair) -> None:
        self._cluster, self._offer = cluster, offer
        self._token, _ = issue_token(key, issuer, offer.node, AUDIENCE_MBATCHD, epoch, time.time())
        self._epoch = epoch

    async def run(self, address: str) -> None:
        """Register, then beat and say that hosts can be entered, until cancelled."""
        hello = Hello(
            software_version=__version__,
            cluster=self._cluster,
            node=self._offer.node,
            role="agent",
            journal_id=f"journal-{self._offer.node}",
            boot_id=self._offer.boot_id,
            token=self._token,
        )
        connection, _ = await Connection.open(address, hello)
        register = Register(boot_id=hello.boot_id, journal_id=hello.journal_id, offer=self._offer)
        await connection.send(register)
        beating: asyncio.Task[None] | None = None
        try:
            while True:
                frame = await connection.receive()
                if isinstance(frame, Registered):
                    beating = asyncio.create_task(self._beat(connection, frame.beat_seconds))
                elif isinstance(frame, HostsHere):
                    versions = {host.name: host.version for host in frame.hosts}
                    await connection.send(HostsApplied(versions=versions))
        finally:
            if beating is not None:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)
            await connection.close()

    async def _beat(self, connection: Connection, seconds: float) -> None:
        number = 0
        while True:
            number += 1
            await connection.send(Beat(seq=number, sent=time.monotonic(), offer_version=self._offer.version))
            await asyncio.sleep(seconds)
