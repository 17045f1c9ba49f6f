"""What the agent does about each thing that happens. Pure: `handle(event, now)` returns actions, and does no I/O.

    Dispatch ──► Write(attempt) ──► Start ──► the executor says: started … ended ──► Write(report) ──► Forget
                 durable first                                                  └──► Send(Report) until ReportAck

The laws, each held by a property test:

 1. An attempt is in the journal before it is started, and one in the journal is never started (again).
 2. Each attempt that was ever accepted or refused ends in exactly one `ended` or `refused` report, which is repeated
    until it is acknowledged.
 3. No frame of an epoch lower than the highest in the journal is acted upon; it ends the session.
 4. Fences count from when the last acknowledged beat was sent. (A Register is beat number 0.)

Actions must be carried out in order, a Write durably before what follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from signal import SIGABRT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGXCPU
from typing import Any

from lavalite.model.resources import NodeOffer
from lavalite.sbatchd.actions import (
    Action,
    ApplyHosts,
    Close,
    CloseStream,
    Forget,
    OpenStream,
    RenewContact,
    Send,
    Signal,
    Start,
    Write,
)
from lavalite.sbatchd.entry import (
    Entry,
    Record,
    Restored,
    accepted,
    acknowledged_record,
    report_record,
    well_named,
)
from lavalite.sbatchd.events import (
    BeatDue,
    Event,
    FlushDue,
    FrameReceived,
    Instant,
    OfferChanged,
    SessionClosed,
    SessionOpened,
)
from lavalite.sbatchd.executors import Ended, ExecutorEvent, Known, Listed, Signalled, Started, StartFailed
from lavalite.wire.frames import (
    AnyFrame,
    Attempt,
    AttemptReport,
    Beat,
    BeatAck,
    CancelRead,
    Dispatch,
    EpochPair,
    HostsHere,
    Read,
    Register,
    Registered,
    Report,
    ReportAck,
    Stop,
)

ENDING_SIGNALS = frozenset({SIGTERM, SIGKILL, SIGINT, SIGQUIT, SIGHUP, SIGABRT, SIGXCPU})
REPORTS_PER_FRAME = 1000
MAX_REASON_CHARACTERS = 200
"""More is not kept by the leader either. All that is unsettled must fit into one Register."""
REPEAT_REPORT_SECONDS = 30.0
SILENT_BEATS = 3
"""So many beats without an answer, and the session is taken for dead."""
SETTLED_KEPT = 10_000
"""Settled attempts remembered, so that a leader restored from an old backup is answered instead of obeyed."""


Screen = Callable[[Attempt], str]
"""Why this node will not run an attempt (policy), or an empty text."""
Paths = Callable[[Attempt], tuple[str, str]]
"""Where an attempt's stdout and stderr go."""


# --- the core -------------------------------------------------------------------------------------------------


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


class AgentCore:
    """The agent's mind. `entries` may be read by anybody, and is changed here alone."""

    def __init__(self, restored: Restored, screen: Screen, paths: Paths) -> None:
        self.journal_id = restored.journal_id
        self.highest_epoch = restored.highest_epoch
        self.entries = restored.entries
        self.beat_seconds = 1.0
        self._screen, self._paths = screen, paths
        self._session: _Session | None = None
        self._contact: float | None = None
        self._offer: NodeOffer | None = None
        self._dirty: set[str] = {entry.id for entry in self.entries.values() if entry.unacknowledged}
        self._settled = {entry.id: None for entry in self.entries.values() if entry.settled}

    @property
    def registered(self) -> bool:
        return self._session is not None and self._session.registered

    @property
    def has_reports(self) -> bool:
        return bool(self._dirty) and self.registered

    def live(self) -> list[Entry]:
        return [entry for entry in self.entries.values() if not entry.final]

    def snapshot(self) -> list[Record]:
        """The journal in as few records as can be: what compaction writes."""
        records: list[Record] = [{"type": "journal", "id": self.journal_id}]
        if self.highest_epoch:
            records.append({"type": "epoch", "epoch": list(self.highest_epoch)})
        return records + [record for entry in self.entries.values() for record in entry.records()]

    def handle(self, event: Event, now: Instant) -> list[Action]:
        match event:
            case SessionOpened():
                return self._open(event, now)
            case SessionClosed(session):
                if self._session and self._session.number == session:
                    self._session = None
                return []
            case FrameReceived(session, frame):
                if not self._session or self._session.number != session:
                    return []
                return self._hear(frame, now)
            case BeatDue():
                return self._beat(now) + self._flush(now)
            case FlushDue():
                return self._flush(now)
            case OfferChanged(offer):
                self._offer = offer
                return []
            case Listed(known):
                return self._reconcile(known, now)
            case _:
                return self._learn(event, now)

    # --- the session

    def _open(self, event: SessionOpened, now: Instant) -> list[Action]:
        self._offer = event.offer
        epoch = event.epoch
        if epoch is None or (self.highest_epoch and epoch < self.highest_epoch):
            self._session = None
            return [Close(f"epoch {epoch} is behind {self.highest_epoch}")]
        session = self._session = _Session(event.session, now.boot, offer_told=event.offer.version)
        # Before the Register: whoever reads the journal after a crash must know whom we have talked to.
        actions = self._raise_epoch(epoch)
        told = [entry for entry in self.entries.values() if not entry.settled]
        # The answer to what a Register says is ReportAck number 0.
        session.in_flight[0] = (now.boot, {entry.id: _told(entry) for entry in told})
        self._dirty.clear()
        register = Register(
            boot_id=event.boot_id,
            journal_id=self.journal_id,
            highest_epoch=epoch,
            offer=event.offer,
            attempts=[report for entry in told for report in entry.restated()],
        )
        return [*actions, Send(register)]

    def _raise_epoch(self, epoch: EpochPair) -> list[Action]:
        if self.highest_epoch is not None and epoch <= self.highest_epoch:
            return []
        self.highest_epoch = epoch
        return [Write(({"type": "epoch", "epoch": list(epoch)},))]

    def _hear(self, frame: AnyFrame, now: Instant) -> list[Action]:
        session = self._session
        assert session is not None
        epoch: EpochPair | None = getattr(frame, "epoch", None)
        if epoch is None:
            return []  # a frame that commands nothing (Bye), or is not for an agent
        if self.highest_epoch and epoch < self.highest_epoch:
            self._session = None
            return [Close(f"a {frame.type} of epoch {epoch}, and {self.highest_epoch} is known")]
        actions = self._raise_epoch(epoch)
        match frame:
            case Registered():
                session.registered = True
                self.beat_seconds = max(0.05, frame.beat_seconds)
                actions += self._renew(session.opened)
            case BeatAck():
                actions += self._hear_beat(session, frame)
            case Dispatch():
                actions += self._dispatch(frame.attempts, session.opened, now)
            case Stop():
                actions += self._stop(frame, now)
            case ReportAck():
                actions += self._acknowledged(session, frame.seq)
            case Read():
                actions.append(OpenStream(frame, self.entries.get(frame.attempt)))
            case CancelRead():
                actions.append(CloseStream(frame.stream_id))
            case HostsHere():
                actions.append(ApplyHosts(frame))
            case _:
                pass
        return actions

    def _beat(self, now: Instant) -> list[Action]:
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
        offer = self._offer if self._offer and self._offer.version != session.offer_told else None
        version = self._offer.version if self._offer else 0
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
        if self._contact is not None and sent <= self._contact:
            return []
        self._contact = sent
        return [RenewContact(sent)]

    # --- attempts

    def _dispatch(self, attempts: Iterable[Attempt], opened: float, now: Instant) -> list[Action]:
        records: list[Record] = []
        starts: list[Action] = []
        for attempt in attempts:
            if not well_named(attempt.id):
                continue  # no leader of ours names one so, and its name would be a part of a path
            known = self.entries.get(attempt.id)
            if known:
                self._restate(known)
                continue
            records += self._decide(attempt, now)
            entry = self.entries[attempt.id]
            if not entry.final:
                contact = self._contact if self._contact is not None else opened
                starts.append(Start(attempt, entry.stdout_path, entry.stderr_path, contact))
        return [Write(tuple(records)), *starts] if records else []

    def _decide(self, attempt: Attempt, now: Instant) -> list[Record]:
        """Accept or refuse an attempt that the journal does not have."""
        if attempt.journal_id != self.journal_id:
            return self._refuse(attempt.id, "journal: it was committed to another journal of this node", now)
        reason = self._screen(attempt)
        if reason:
            return self._refuse(attempt.id, reason, now)
        entry = self.entries[attempt.id] = accepted(attempt, *self._paths(attempt), now.wall)
        return [entry.record()]

    def _refuse(self, attempt: str, reason: str, now: Instant) -> list[Record]:
        entry = self.entries[attempt] = Entry(attempt, journalled_at=now.wall)
        return [entry.record(), *self._report(entry, "refused", now.wall, reason=reason)]

    def _restate(self, entry: Entry) -> None:
        """Say again what is known: whoever asks twice has not heard it."""
        if not entry.unacknowledged and entry.last:
            entry.acknowledged -= 1
            entry.unacknowledged.append(entry.last)
        self._dirty.add(entry.id)

    def _stop(self, stop: Stop, now: Instant) -> list[Action]:
        ending = stop.signal in ENDING_SIGNALS
        entry = self.entries.get(stop.id)
        if entry is None:
            if not ending or not well_named(stop.id):
                return []
            # Its Dispatch may still be on the way: the journal must know that it is not to be started.
            return [Write(tuple(self._refuse(stop.id, "stop: it was stopped before it came here", now)))]
        if entry.final:
            self._restate(entry)
            return []
        return [Signal(stop.id, stop.signal, ending, stop.grace_seconds, stop.reason)]

    def _learn(self, event: ExecutorEvent, now: Instant) -> list[Action]:
        """The executor says what became of an attempt."""
        entry = self.entries.get(event.id) if not isinstance(event, Listed) else None
        if entry is None or isinstance(event, Listed):
            return []
        if entry.final:
            if isinstance(event, Started):
                # It was told to be over, and may be tried elsewhere: an order to the executor came through late.
                return [Signal(entry.id, SIGKILL, True, 0.0, "lost")]
            return [Forget(entry.id)] if isinstance(event, Ended) else []
        match event:
            case Started():
                if entry.state != "journalled":
                    return []
                records = self._report(entry, "started", event.at, pid=event.pid)
            case StartFailed():
                records = self._report(entry, "refused", now.wall, reason=event.reason)
            case Signalled():
                if event.suspended == (entry.state == "suspended"):
                    return []
                records = self._report(entry, "suspended" if event.suspended else "resumed", now.wall)
            case Ended():
                records = self._ended(entry, event)
                return [Write(tuple(records)), Forget(entry.id)]
        return [Write(tuple(records))]

    def _ended(self, entry: Entry, event: Ended) -> list[Record]:
        records: list[Record] = []
        if entry.state == "journalled" and event.started_at is not None:
            records += self._report(entry, "started", event.started_at, pid=event.pid)
        return records + self._report(entry, "ended", event.at, exit_code=event.exit_code, reason=event.reason)

    def _reconcile(self, known: tuple[Known, ...], now: Instant) -> list[Action]:
        """The executor was (re)connected, and this is all it has."""
        actions: list[Action] = []
        here = {attempt.id: attempt for attempt in known}
        if self._contact is not None:
            actions.append(RenewContact(self._contact))
        for entry in self.live():
            found = here.get(entry.id)
            if found is None:
                # Between the journal and the executor something crashed. It may have run: it is not started again.
                actions.append(Write(tuple(self._report(entry, "ended", now.wall, reason="lost"))))
                continue
            if found.state != "ended" and entry.state == "journalled":
                actions += self._learn(Started(found.id, found.pid, found.started_at), now)
            if found.state != "ended":
                actions += self._learn(Signalled(found.id, suspended=found.state == "suspended"), now)
        for attempt in known:
            actions += self._reconcile_one(attempt, now)
        return actions

    def _reconcile_one(self, attempt: Known, now: Instant) -> list[Action]:
        entry = self.entries.get(attempt.id)
        if attempt.state == "ended":
            if entry is None:
                return [Forget(attempt.id)]
            return self._learn(attempt.end(), now)
        if entry is None or entry.final:
            # The leader was told that it is over, or an older journal began it: it must not go on unseen.
            return [Signal(attempt.id, SIGKILL, True, 0.0, "lost")]
        return []

    # --- reports

    def _report(self, entry: Entry, state: Any, at: float, *, reason: str = "", **more: Any) -> list[Record]:
        report = AttemptReport(id=entry.id, state=state, at=at, reason=reason[:MAX_REASON_CHARACTERS], **more)
        entry.report(report)
        self._dirty.add(entry.id)
        return [report_record(report)]

    def _flush(self, now: Instant) -> list[Action]:
        session = self._session
        if session is None or not session.registered:
            return []
        for seq, (sent, counts) in list(session.in_flight.items()):
            if now.boot - sent > REPEAT_REPORT_SECONDS:
                del session.in_flight[seq]
                self._dirty |= counts.keys() & self.entries.keys()
        actions: list[Action] = []
        waiting = [self.entries[name] for name in sorted(self._dirty) if name in self.entries]
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
            entry = self.entries.get(name)
            if entry is None or not entry.unacknowledged or count <= entry.acknowledged:
                continue
            entry.acknowledge(count)
            records.append(acknowledged_record(entry))
            if entry.settled:
                self._settled[entry.id] = None
        while len(self._settled) > SETTLED_KEPT:
            oldest = next(iter(self._settled))
            del self._settled[oldest]
            if oldest in self.entries and self.entries[oldest].settled:
                del self.entries[oldest]
                records.append({"type": "forgotten", "id": oldest})
        return [Write(tuple(records))] if records else []


def _told(entry: Entry) -> int:
    return entry.acknowledged + len(entry.unacknowledged)
