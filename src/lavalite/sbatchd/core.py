"""What the agent does about each thing that happens. Pure: `handle(event, now)` returns actions, and does no I/O.

    Dispatch ──► Write(attempt) ──► Start ──► the executor says: started … ended ──► Write(report) ──► Forget
                 durable first                                                  └──► Send(Report) until ReportAck

The laws, each held by a property test:

 1. An attempt is in the journal before it is started, and one in the journal is never started (again).
 2. Each attempt that was ever accepted or refused ends in exactly one `ended` or `refused` report, which is repeated
    until it is acknowledged.
 3. No frame of an epoch lower than the highest in the journal is acted upon; it ends the session.
 4. Fences count from when the last acknowledged beat was sent. (A Register is beat number 0.)

Actions must be carried out in order, an urgent Write durably before what follows it. What was decided together may be
written together, before all else of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from signal import SIGABRT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGXCPU

from lavalite.sbatchd.actions import (
    Action,
    ApplyHosts,
    ApplyParts,
    CloseStream,
    Forget,
    OpenConsole,
    OpenStream,
    PassOn,
    RenewContact,
    ShowParts,
    Signal,
    Start,
    TypeIn,
    Write,
)
from lavalite.sbatchd.entry import (
    Entry,
    Record,
    Restored,
    accepted,
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
from lavalite.sbatchd.link import LeaderLink
from lavalite.wire.frames import (
    AnyFrame,
    Attempt,
    BeatAck,
    CancelRead,
    Console,
    Dispatch,
    EpochPair,
    HostAnswer,
    HostsHere,
    PartsHere,
    Read,
    Registered,
    ReportAck,
    Stop,
    Typed,
)

ENDING_SIGNALS = frozenset({SIGTERM, SIGKILL, SIGINT, SIGQUIT, SIGHUP, SIGABRT, SIGXCPU})

Screen = Callable[[Attempt], str]
"""Why this node will not run an attempt (policy), or an empty text."""
Paths = Callable[[Attempt], tuple[str, str]]
"""Where an attempt's stdout and stderr go."""


class AgentCore:
    """The agent's mind. `entries` may be read by anybody, and is changed here and in its link alone."""

    def __init__(self, restored: Restored, screen: Screen, paths: Paths) -> None:
        self.journal_id = restored.journal_id
        self.entries = restored.entries
        self._screen, self._paths = screen, paths
        self._link = LeaderLink(restored)

    @property
    def highest_epoch(self) -> EpochPair | None:
        return self._link.highest_epoch

    @property
    def beat_seconds(self) -> float:
        return self._link.beat_seconds

    @property
    def registered(self) -> bool:
        return self._link.registered

    @property
    def has_reports(self) -> bool:
        return self._link.has_reports

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
                return self._link.open(event, now)
            case SessionClosed(session):
                self._link.end(session)
                return []
            case FrameReceived(session, frame):
                return self._hear(frame, now) if self._link.is_at(session) else []
            case BeatDue():
                return self._link.beat(now) + self._link.flush(now)
            case FlushDue():
                return self._link.flush(now)
            case OfferChanged(offer):
                self._link.offer = offer
                return []
            case Listed(known):
                return self._reconcile(known, now)
            case _:
                return self._learn(event, now)

    def _hear(self, frame: AnyFrame, now: Instant) -> list[Action]:
        epoch: EpochPair | None = getattr(frame, "epoch", None)
        if epoch is None:
            return []  # a frame that commands nothing (Bye), or is not for an agent
        actions = self._link.take_epoch(epoch, frame.type)
        opened = self._link.opened
        if opened is None:
            return actions
        match frame:
            case Registered():
                actions += [*self._link.hear(frame), ShowParts()]
            case BeatAck() | ReportAck():
                actions += self._link.hear(frame)
            case Dispatch():
                actions += self._dispatch(frame.attempts, opened, now)
            case Stop():
                actions += self._stop(frame, now)
            case Read():
                actions.append(OpenStream(frame, self.entries.get(frame.attempt)))
            case CancelRead():
                actions.append(CloseStream(frame.stream_id))
            case Console():
                actions.append(OpenConsole(frame))
            case Typed():
                actions.append(TypeIn(frame))
            case HostsHere():
                actions.append(ApplyHosts(frame))
            case PartsHere():
                actions.append(ApplyParts(tuple(frame.orders)))
            case HostAnswer():
                actions.append(PassOn(frame))
            case _:
                pass
        return actions

    # --- attempts

    def _dispatch(self, attempts: Iterable[Attempt], opened: float, now: Instant) -> list[Action]:
        records: list[Record] = []
        starts: list[Action] = []
        for attempt in attempts:
            if not well_named(attempt.id):
                continue  # no leader of ours names one so, and its name would be a part of a path
            known = self.entries.get(attempt.id)
            if known:
                self._link.restate(known)
                continue
            records += self._decide(attempt, now)
            entry = self.entries[attempt.id]
            if not entry.final:
                contact = self._link.contact if self._link.contact is not None else opened
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
        return [entry.record(), *self._link.report(entry, "refused", now.wall, reason=reason)]

    def _stop(self, stop: Stop, now: Instant) -> list[Action]:
        ending = stop.signal in ENDING_SIGNALS or stop.grace_seconds > 0  # then KILL follows
        entry = self.entries.get(stop.id)
        if entry is None:
            if not ending or not well_named(stop.id):
                return []
            # Its Dispatch may still be on the way: the journal must know that it is not to be started.
            return [Write(tuple(self._refuse(stop.id, "stop: it was stopped before it came here", now)))]
        if entry.final:
            self._link.restate(entry)
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
                records = self._link.report(entry, "started", event.at, pid=event.pid)
            case StartFailed():
                records = self._link.report(entry, "refused", now.wall, reason=event.reason)
            case Signalled():
                if event.suspended == (entry.state == "suspended"):
                    return []
                records = self._link.report(entry, "suspended" if event.suspended else "resumed", now.wall)
            case Ended():
                records = self._ended(entry, event)
                return [Write(tuple(records)), Forget(entry.id)]
        return [Write(tuple(records))]

    def _ended(self, entry: Entry, event: Ended) -> list[Record]:
        records: list[Record] = []
        if entry.state == "journalled" and event.started_at is not None:
            records += self._link.report(entry, "started", event.started_at, pid=event.pid)
        return records + self._link.report(entry, "ended", event.at, exit_code=event.exit_code, reason=event.reason)

    def _reconcile(self, known: tuple[Known, ...], now: Instant) -> list[Action]:
        """The executor was (re)connected, and this is all it has."""
        actions: list[Action] = []
        here = {attempt.id: attempt for attempt in known}
        if self._link.contact is not None:
            actions.append(RenewContact(self._link.contact))
        for entry in self.live():
            found = here.get(entry.id)
            if found is None:
                # Between the journal and the executor something crashed. It may have run: it is not started again.
                actions.append(Write(tuple(self._link.report(entry, "ended", now.wall, reason="lost"))))
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
