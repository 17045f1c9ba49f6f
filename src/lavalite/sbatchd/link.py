"""The agent's talk with the leader: its session, whose epoch counts, the beats, and reports until they are known.

    SessionOpened ──► Send(Register) ──► Registered ──► Beat ◄──► BeatAck: the fences count from when it was sent
                                             └────────► Report, repeated until its ReportAck

Pure, as the core is that it is a part of.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lavalite.model.resources import NodeOffer
from lavalite.model.task import AttemptId, before_restore
from lavalite.sbatchd.actions import Action, Close, RenewContact, Send, Write
from lavalite.sbatchd.entry import Entry, Record, Restored, acknowledged_record, report_record
from lavalite.sbatchd.events import Instant, SessionOpened
from lavalite.wire.frames import (
    MAX_REASON_CHARACTERS,
    AttemptReport,
    Beat,
    BeatAck,
    EpochPair,
    Register,
    Registered,
    Report,
    ReportAck,
)

REPORTS_PER_FRAME = 1000
REPEAT_REPORT_SECONDS = 30.0
SILENT_BEATS = 3
"""So many beats without an answer, and the session is taken for dead."""
SETTLED_KEPT = 10_000
"""Settled attempts remembered, so that a leader restored from an old backup is answered instead of obeyed."""


@dataclass(slots=True)
class _Session:
    number: int
    opened: float
    """When the Register was sent, CLOCK_BOOTTIME."""
    registered: bool = False
    beat_seq: int = 0
    report_seq: int = 0
    offer_told: int = 0
    beats: dict[int, float] = field(default_factory=dict)
    """When each unanswered beat was sent."""
    in_flight: dict[int, tuple[float, dict[str, int]]] = field(default_factory=dict)
    """By report: when it was sent, and how many reports of each attempt the leader has once it acknowledges."""


class LeaderLink:
    """`contact` is when the last beat was sent that was acknowledged, CLOCK_BOOTTIME; None before the first."""

    def __init__(self, restored: Restored) -> None:
        self.journal_id = restored.journal_id
        self.highest_epoch = restored.highest_epoch
        self.beat_seconds = 1.0
        self.contact: float | None = None
        self.offer: NodeOffer | None = None
        self._entries = restored.entries
        self._session: _Session | None = None
        self._dirty: set[str] = {entry.id for entry in self._entries.values() if entry.unacknowledged}
        self._settled = {entry.id: None for entry in self._entries.values() if entry.settled}

    @property
    def registered(self) -> bool:
        return self._session is not None and self._session.registered

    @property
    def has_reports(self) -> bool:
        return bool(self._dirty) and self.registered

    @property
    def opened(self) -> float | None:
        """When the session began, CLOCK_BOOTTIME; None where there is none."""
        return self._session.opened if self._session else None

    def is_at(self, session: int) -> bool:
        """Whether this is the session that counts."""
        return self._session is not None and self._session.number == session

    def end(self, session: int) -> None:
        if self.is_at(session):
            self._session = None

    def open(self, event: SessionOpened, now: Instant) -> list[Action]:
        self.offer = event.offer
        epoch = event.epoch
        if epoch is None or (self.highest_epoch and epoch < self.highest_epoch):
            self._session = None
            return [Close(f"epoch {epoch} is behind {self.highest_epoch}")]
        session = self._session = _Session(event.session, now.boot, offer_told=event.offer.version)
        # Before the Register: whoever reads the journal after a crash must know whom we have talked to.
        actions = self._raise_epoch(epoch)
        # A store that was restored may have forgotten what was settled with it.
        told = [
            e for e in self._entries.values() if not e.settled or before_restore(AttemptId.parse(e.id).job, epoch)
        ]
        # The answer to what a Register says is ReportAck number 0.
        session.in_flight[0] = (now.boot, {entry.id: _told(entry) for entry in told})
        self._dirty.clear()
        register = Register(
            boot_id=event.boot_id,
            journal_id=self.journal_id,
            highest_epoch=self.highest_epoch,
            offer=event.offer,
            fabric_address=event.fabric_address,
            knows=["console"],
            attempts=[report for entry in told for report in entry.restated()],
        )
        return [*actions, Send(register)]

    def take_epoch(self, epoch: EpochPair, what: str) -> list[Action]:
        """A frame came from a leader of this epoch. One that is behind is not obeyed: its session is over."""
        if self.highest_epoch and epoch < self.highest_epoch:
            self._session = None
            return [Close(f"a {what} of epoch {epoch}, and {self.highest_epoch} is known")]
        return self._raise_epoch(epoch)

    def hear(self, frame: Registered | BeatAck | ReportAck) -> list[Action]:
        """What the leader answers to the link's own frames."""
        session = self._session
        if session is None:
            return []
        match frame:
            case Registered():
                session.registered = True
                self.beat_seconds = max(0.05, frame.beat_seconds)
                return self._renew(session.opened)
            case BeatAck():
                return self._hear_beat(session, frame)
            case ReportAck():
                return self._acknowledged(session, frame.seq)

    def _raise_epoch(self, epoch: EpochPair) -> list[Action]:
        if self.highest_epoch is not None and epoch <= self.highest_epoch:
            return []
        self.highest_epoch = epoch
        return [Write(({"type": "epoch", "epoch": list(epoch)},))]

    def beat(self, now: Instant) -> list[Action]:
        session = self._session
        if session is None:
            return []
        oldest = min(session.beats.values(), default=now.boot) if session.registered else session.opened
        if now.boot - oldest > max(SILENT_BEATS * self.beat_seconds, 5.0):
            self._session = None
            return [Close("the leader has stopped answering")]
        if not session.registered:
            return []
        session.beat_seq += 1
        session.beats[session.beat_seq] = now.boot
        offer = self.offer if self.offer and self.offer.version != session.offer_told else None
        version = self.offer.version if self.offer else 0
        session.offer_told = version
        return [Send(Beat(seq=session.beat_seq, sent=now.boot, offer_version=version, offer=offer))]

    def _hear_beat(self, session: _Session, ack: BeatAck) -> list[Action]:
        # Our own record of when it was sent counts, not what the peer says of it.
        sent = session.beats.pop(ack.seq, None)
        if sent is None:
            return []
        session.beats = {seq: at for seq, at in session.beats.items() if seq > ack.seq}
        if ack.want_offer:
            session.offer_told = 0
        return self._renew(sent)

    def _renew(self, sent: float) -> list[Action]:
        if self.contact is not None and sent <= self.contact:
            return []
        self.contact = sent
        return [RenewContact(sent)]

    # --- reports

    def report(self, entry: Entry, state: Any, at: float, *, reason: str = "", **more: Any) -> list[Record]:
        """Tell the leader what became of an attempt, once the records are in the journal."""
        report = AttemptReport(id=entry.id, state=state, at=at, reason=reason[:MAX_REASON_CHARACTERS], **more)
        entry.report(report)
        self._dirty.add(entry.id)
        return [report_record(report)]

    def restate(self, entry: Entry) -> None:
        """Say again what is known: whoever asks twice has not heard it."""
        if not entry.unacknowledged and entry.last:
            entry.acknowledged -= 1
            entry.unacknowledged.append(entry.last)
        self._dirty.add(entry.id)

    def flush(self, now: Instant) -> list[Action]:
        session = self._session
        if session is None or not session.registered:
            return []
        for seq, (sent, counts) in list(session.in_flight.items()):
            if now.boot - sent > REPEAT_REPORT_SECONDS:
                del session.in_flight[seq]
                self._dirty |= counts.keys() & self._entries.keys()
        actions: list[Action] = []
        waiting = [self._entries[name] for name in sorted(self._dirty) if name in self._entries]
        self._dirty.clear()
        for start in range(0, len(waiting), REPORTS_PER_FRAME):
            group = [entry for entry in waiting[start : start + REPORTS_PER_FRAME] if entry.unacknowledged]
            if not group:
                continue
            session.report_seq += 1
            session.in_flight[session.report_seq] = (now.boot, {entry.id: _told(entry) for entry in group})
            reports = [report for entry in group for report in entry.unacknowledged]
            actions.append(Send(Report(seq=session.report_seq, attempts=reports)))
        return actions

    def _acknowledged(self, session: _Session, seq: int) -> list[Action]:
        _, counts = session.in_flight.pop(seq, (0.0, {}))
        records: list[Record] = []
        for name, count in counts.items():
            entry = self._entries.get(name)
            if entry is None or not entry.unacknowledged or count <= entry.acknowledged:
                continue
            entry.acknowledge(count)
            records.append(acknowledged_record(entry))
            if entry.settled:
                self._settled[entry.id] = None
        while len(self._settled) > SETTLED_KEPT:
            oldest = next(iter(self._settled))
            del self._settled[oldest]
            if oldest in self._entries and self._entries[oldest].settled:
                del self._entries[oldest]
                records.append({"type": "forgotten", "id": oldest})
        # Without them the leader is told again, and acknowledges again.
        return [Write(tuple(records), urgent=False)] if records else []


def _told(entry: Entry) -> int:
    return entry.acknowledged + len(entry.unacknowledged)
