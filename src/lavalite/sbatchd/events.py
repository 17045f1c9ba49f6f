"""What happens to the agent, as its core hears it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lavalite.model.resources import NodeOffer
from lavalite.sbatchd.executors import ExecutorEvent
from lavalite.wire.frames import AnyFrame, EpochPair


class Instant(NamedTuple):
    """`wall`: for records. `boot`: CLOCK_BOOTTIME, for beats and fences. Seconds."""

    wall: float
    boot: float


@dataclass(slots=True, frozen=True)
class SessionOpened:
    """A leader welcomed us. Frames carry the session's number, so that late ones of an older session fall flat."""

    session: int
    epoch: EpochPair | None
    boot_id: str
    offer: NodeOffer
    fabric_address: str = ""
    """Where other nodes reach this one's exports."""


@dataclass(slots=True, frozen=True)
class SessionClosed:
    session: int


@dataclass(slots=True, frozen=True)
class FrameReceived:
    session: int
    frame: AnyFrame


@dataclass(slots=True, frozen=True)
class BeatDue:
    pass


@dataclass(slots=True, frozen=True)
class FlushDue:
    """Nothing else is waiting: whatever has to be reported may go now."""


@dataclass(slots=True, frozen=True)
class OfferChanged:
    offer: NodeOffer


Event = SessionOpened | SessionClosed | FrameReceived | BeatDue | FlushDue | OfferChanged | ExecutorEvent
