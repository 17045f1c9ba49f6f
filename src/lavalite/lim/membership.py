"""Who is there, and how well it is heard. Pure: `Pulse` is the member's side of beats, `Roster` the leader's.

Each beat carries the sender's own clock, and the ack returns it, so round trips are measured on one clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lavalite.model.resources import NodeOffer
from lavalite.wire.frames import Beat, BeatAck, EpochPair, Member

LOST_AFTER_BEATS = 3
SILENT_AFTER_BEATS = 5


@dataclass(slots=True)
class Pulse:
    """Counts the beats of one member. Times in seconds, on any clock that does not jump."""

    beat_seconds: float
    lost: int = 0
    round_trip_ms: float | None = None
    _seq: int = 0
    _outstanding: dict[int, float] = field(default_factory=dict)

    def beat(self, now: float, offer: NodeOffer, known_version: int) -> Beat:
        """The next beat. The offer travels only if the leader has another version than ours."""
        overdue = [
            seq for seq, sent in self._outstanding.items() if now - sent > LOST_AFTER_BEATS * self.beat_seconds
        ]
        for seq in overdue:
            del self._outstanding[seq]
        self.lost += len(overdue)
        self._seq += 1
        self._outstanding[self._seq] = now
        return Beat(
            seq=self._seq,
            sent=now,
            round_trip_ms=self.round_trip_ms,
            lost=self.lost,
            offer_version=offer.version,
            offer=offer if offer.version != known_version else None,
        )

    def acked(self, ack: BeatAck, now: float) -> None:
        """An answer to one that was given up for lost changes nothing."""
        sent = self._outstanding.pop(ack.seq, None)
        if sent is not None:
            self.round_trip_ms = max(0.0, now - sent) * 1000

    def disconnected(self) -> None:
        """Answers still due will not come any more."""
        self.lost += len(self._outstanding)
        self._outstanding.clear()

    def unsent(self) -> None:
        """A beat was due, and the leader could not be reached."""
        self.lost += 1


@dataclass(slots=True)
class _Heard:
    at: float
    beat: Beat
    software_version: str


@dataclass(slots=True)
class Roster:
    """All members that beat to this LIM in one leadership. Nodes are authenticated before they get here."""

    beat_seconds: float
    _epoch: EpochPair | None = None
    _heard: dict[str, _Heard] = field(default_factory=dict)
    offers: dict[str, NodeOffer] = field(default_factory=dict)

    def hear(self, node: str, software_version: str, beat: Beat, epoch: EpochPair, now: float) -> BeatAck:
        """Take in a beat. What was heard in an earlier leadership is forgotten with it."""
        if epoch != self._epoch:
            self._heard.clear()
            self.offers.clear()
            self._epoch = epoch
        if beat.offer is not None and beat.offer.node == node:
            self.offers[node] = beat.offer
        self._heard[node] = _Heard(now, beat.model_copy(update={"offer": None}), software_version)
        known = self.offers.get(node)
        want_offer = known is None or known.version != beat.offer_version
        return BeatAck(seq=beat.seq, sent=beat.sent, epoch=epoch, want_offer=want_offer)

    @property
    def silent_after_seconds(self) -> float:
        """Who has not been heard of for so long is not alive."""
        return SILENT_AFTER_BEATS * self.beat_seconds

    def members(self, epoch: EpochPair, now: float) -> list[Member]:
        if epoch != self._epoch:
            return []
        silent_after = self.silent_after_seconds
        return [
            Member(
                node=node,
                alive=now - heard.at < silent_after,
                beat_age_seconds=now - heard.at,
                round_trip_ms=heard.beat.round_trip_ms,
                lost=heard.beat.lost,
                software_version=heard.software_version,
                offer_version=heard.beat.offer_version,
            )
            for node, heard in sorted(self._heard.items())
        ]
