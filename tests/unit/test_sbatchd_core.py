"""The agent's mind: cases worth naming, then the laws, under crashes at every step."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lavalite.model.resources import NodeOffer
from lavalite.sbatchd import link as link_module
from lavalite.sbatchd.actions import (
    Action,
    ApplyParts,
    Close,
    Forget,
    OpenStream,
    RenewContact,
    Send,
    ShowParts,
    Signal,
    Start,
    Write,
)
from lavalite.sbatchd.core import AgentCore
from lavalite.sbatchd.entry import Restored, restore
from lavalite.sbatchd.events import BeatDue, Event, FlushDue, FrameReceived, Instant, SessionClosed, SessionOpened
from lavalite.sbatchd.executors import Ended, Known, Listed, Signalled, Started, StartFailed
from lavalite.wire.frames import (
    AnyFrame,
    Attempt,
    AttemptReport,
    Beat,
    BeatAck,
    Dispatch,
    PartsHere,
    Read,
    Register,
    Registered,
    Report,
    ReportAck,
    Stop,
)

JOURNAL = "journal-1"
OFFER = NodeOffer(node="n1", boot_id="boot")


def attempt(name: str, **more: Any) -> Attempt:
    return Attempt(id=name, command=["true"], **({"journal_id": JOURNAL} | more))


class Mind:
    """A core, its journal as a list, and a clock that the test moves."""

    def __init__(self, records: list[dict[str, Any]] | None = None) -> None:
        self.records = records or [{"type": "journal", "id": JOURNAL}]
        self.now = 100.0
        self.session = 0
        self.core = AgentCore(restore(self.records), lambda a: "policy: no" if a.uid == 13 else "", self.paths)

    @staticmethod
    def paths(asked: Attempt) -> tuple[str, str]:
        return f"/out/{asked.id}.stdout", f"/out/{asked.id}.stderr"

    def do(self, event: Event) -> list[Action]:
        actions = self.core.handle(event, Instant(1000 + self.now, self.now))
        self.records += [record for action in actions if isinstance(action, Write) for record in action.records]
        return actions

    def open(self, epoch: tuple[int, int] = (1, 5), *, registered: bool = True) -> list[Action]:
        self.session += 1
        actions = self.do(SessionOpened(self.session, epoch, "boot", OFFER))
        return actions + (self.hear(Registered(epoch=epoch, beat_seconds=2.0)) if registered else [])

    def hear(self, frame: AnyFrame) -> list[Action]:
        return self.do(FrameReceived(self.session, frame))

    def dispatch(self, *attempts: Attempt, epoch: tuple[int, int] = (1, 5)) -> list[Action]:
        return self.hear(Dispatch(epoch=epoch, attempts=list(attempts)))

    def flush(self) -> list[AttemptReport]:
        return [r for action in self.do(FlushDue()) if isinstance(action, Send) for r in reports_of(action.frame)]

    def restart(self) -> Mind:
        mind = Mind(self.records)
        mind.now, mind.session = self.now, self.session
        return mind


def reports_of(frame: AnyFrame) -> list[AttemptReport]:
    return frame.attempts if isinstance(frame, Register | Report) else []


def journalled_reports(records: list[dict[str, Any]], name: str) -> list[AttemptReport]:
    """All that a journal which was never compacted has of an attempt, also what was acknowledged since."""
    found = [record for record in records if record["type"] == "report" and record["id"] == name]
    return [AttemptReport.model_validate({k: v for k, v in record.items() if k != "type"}) for record in found]


def said(reports: list[AttemptReport]) -> list[tuple[str, str, str]]:
    return [(report.id, report.state, report.reason) for report in reports]


@pytest.fixture
def mind() -> Mind:
    mind = Mind()
    mind.open()
    return mind


# --- attempts -------------------------------------------------------------------------------------------------


def test_journalled_then_started(mind: Mind) -> None:
    write, start = mind.dispatch(attempt("1.0.1"))
    assert isinstance(write, Write) and write.records[0]["id"] == "1.0.1"
    assert isinstance(start, Start) and start.attempt.id == "1.0.1"
    assert start.stdout_path == "/out/1.0.1.stdout"


def test_one_write_for_a_whole_dispatch(mind: Mind) -> None:
    actions = mind.dispatch(*(attempt(f"{job}.0.1") for job in range(1, 50)))
    assert [type(action) for action in actions] == [Write] + [Start] * 49


def test_from_start_to_acknowledged_end(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1"))
    mind.do(Started("1.0.1", pid=77, at=50.0))
    assert [(r.state, r.pid) for r in mind.flush()] == [("started", 77)]
    write, forget = mind.do(Ended("1.0.1", 3, "exit", 60.0))
    assert isinstance(write, Write) and forget == Forget("1.0.1")
    assert [(r.state, r.exit_code) for r in mind.flush()] == [("started", None), ("ended", 3)]
    assert mind.flush() == []
    mind.hear(ReportAck(epoch=(1, 5), seq=2))
    assert mind.core.entries["1.0.1"].settled
    assert mind.hear(ReportAck(epoch=(1, 5), seq=1)) == []


def test_a_second_dispatch_restates_and_starts_nothing(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1"))
    mind.do(Started("1.0.1", 7, 50.0))
    mind.flush()
    mind.hear(ReportAck(epoch=(1, 5), seq=1))
    assert mind.dispatch(attempt("1.0.1")) == []
    assert said(mind.flush()) == [("1.0.1", "started", "")]
    mind.do(Ended("1.0.1", 0, "exit", 60.0))
    mind.flush()
    mind.hear(ReportAck(epoch=(1, 5), seq=3))
    for again in (mind, mind.restart()):
        again.open()
        assert again.dispatch(attempt("1.0.1")) == []
        assert said(again.flush()) == [("1.0.1", "ended", "exit")]


def test_another_journal_is_refused_for_good(mind: Mind) -> None:
    (write,) = mind.dispatch(attempt("1.0.1", journal_id="older"))
    assert isinstance(write, Write)
    ((name, state, reason),) = said(mind.flush())
    assert (name, state) == ("1.0.1", "refused") and reason.startswith("journal: ")
    assert mind.dispatch(attempt("1.0.1")) == []


def test_what_policy_forbids_is_refused(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1", uid=13), attempt("2.0.1"))
    assert said(mind.flush()) == [("1.0.1", "refused", "policy: no")]
    assert not mind.core.entries["2.0.1"].final


def test_a_name_that_is_a_path_is_nothing(mind: Mind) -> None:
    assert mind.dispatch(attempt("../../etc/passwd")) == []
    assert mind.hear(Stop(epoch=(1, 5), id="../x", signal=9)) == []
    (opened,) = mind.hear(Read(epoch=(1, 5), stream_id=1, attempt="../x", stream="stdout"))
    assert isinstance(opened, OpenStream) and opened.entry is None


def test_a_failed_start_is_refused(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1"))
    mind.do(StartFailed("1.0.1", "fork: no memory"))
    assert said(mind.flush()) == [("1.0.1", "refused", "fork: no memory")]


def test_stop_before_dispatch_forbids_the_start(mind: Mind) -> None:
    mind.hear(Stop(epoch=(1, 5), id="1.0.1", signal=signal.SIGTERM))
    assert mind.dispatch(attempt("1.0.1")) == []
    assert mind.flush()[0].state == "refused"


def test_signals(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1"))
    mind.do(Started("1.0.1", 7, 50.0))
    stop = Stop(epoch=(1, 5), id="1.0.1", signal=signal.SIGTERM, grace_seconds=3, reason="cancel")
    assert mind.hear(stop) == [Signal("1.0.1", signal.SIGTERM, True, 3, "cancel")]
    suspend = Stop(epoch=(1, 5), id="1.0.1", signal=signal.SIGSTOP)
    assert mind.hear(suspend) == [Signal("1.0.1", signal.SIGSTOP, False, 0.0, "stop")]
    mind.do(Signalled("1.0.1", suspended=True))
    assert mind.do(Signalled("1.0.1", suspended=True)) == []
    mind.do(Signalled("1.0.1", suspended=False))
    assert [report.state for report in mind.flush()] == ["started", "suspended", "resumed"]


# --- crashes --------------------------------------------------------------------------------------------------


def test_journalled_and_no_trace_is_lost(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1"))
    again = mind.restart()
    assert [type(action) for action in again.do(Listed(()))] == [Write]
    (_, register, *_) = [None, *[action for action in again.open() if isinstance(action, Send)]]
    assert said(reports_of(register.frame)) == [("1.0.1", "ended", "lost")]
    assert again.dispatch(attempt("1.0.1")) == []


def test_what_happened_meanwhile_is_told_in_order(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1"), attempt("2.0.1"), attempt("3.0.1"))
    again = mind.restart()
    ended = Known("1.0.1", "ended", 7, 50.0, -9, "walltime", 60.0)
    actions = again.do(Listed((ended, Known("2.0.1", "running", 8, 51.0), Known("3.0.1", "suspended", 9, 52.0))))
    assert Forget("1.0.1") in actions
    sends = [action for action in again.open() if isinstance(action, Send)]
    assert [(r.id, r.state, r.exit_code) for r in reports_of(sends[0].frame)] == [
        ("1.0.1", "started", None),
        ("1.0.1", "ended", -9),
        ("2.0.1", "started", None),
        ("3.0.1", "started", None),
        ("3.0.1", "suspended", None),
    ]


def test_an_end_that_is_durable_is_forgotten_however_often_it_is_told(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1"))
    mind.do(Ended("1.0.1", 0, "exit", 60.0, 7, 50.0))
    again = mind.restart()  # the crash came before the executor was told to forget
    assert again.do(Listed((Known("1.0.1", "ended", 7, 50.0, 0, "exit", 60.0),))) == [Forget("1.0.1")]
    assert again.do(Ended("1.0.1", 0, "exit", 60.0, 7, 50.0)) == [Forget("1.0.1")]


def test_a_stray_of_another_journal_is_ended(mind: Mind) -> None:
    assert mind.do(Listed((Known("8.0.1", "running", 7, 50.0),))) == [
        RenewContact(100.0),
        Signal("8.0.1", signal.SIGKILL, True, 0.0, "lost"),
    ]


def test_register_tells_of_all_that_is_unsettled(mind: Mind) -> None:
    one, two, three = ("1000000001.0.1", "1000000002.0.1", "1000000003.0.1")
    mind.dispatch(attempt(one), attempt(two), attempt(three, uid=13))
    mind.do(Started(one, 7, 50.0))
    mind.flush()
    mind.hear(ReportAck(epoch=(1, 5), seq=1))
    register = next(a.frame for a in mind.open() if isinstance(a, Send))
    assert isinstance(register, Register) and register.highest_epoch == (1, 5)
    # The refused one is settled; of the others the last word, or that it is being started.
    assert said(register.attempts) == [(one, "started", ""), (two, "started", "starting")]


def test_register_tells_of_what_was_settled_with_a_store_that_was_restored_since(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1", uid=13), attempt("1000000001.0.1", uid=13))
    mind.flush()
    mind.hear(ReportAck(epoch=(1, 5), seq=1))
    for epoch in ((1, 5), (2, 1)):
        register = next(a.frame for a in mind.open(epoch) if isinstance(a, Send))
        assert isinstance(register, Register)
        told = ["1.0.1"] if epoch[0] == 1 else ["1.0.1", "1000000001.0.1"]
        assert [report.id for report in register.attempts] == told


def test_register_is_acknowledged_as_report_0(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1", uid=13))
    mind.open()
    assert not mind.core.entries["1.0.1"].settled
    mind.hear(ReportAck(epoch=(1, 5), seq=0))
    assert mind.core.entries["1.0.1"].settled


def test_a_report_is_repeated_when_nobody_acknowledges(mind: Mind) -> None:
    mind.dispatch(attempt("1.0.1", uid=13))
    assert len(mind.flush()) == 1
    mind.now += link_module.REPEAT_REPORT_SECONDS - 1
    assert mind.flush() == []
    mind.now += 2
    assert len(mind.flush()) == 1


def test_only_so_many_settled_attempts_are_remembered(mind: Mind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "SETTLED_KEPT", 5)
    mind.dispatch(*(attempt(f"{job}.0.1", uid=13) for job in range(1, 9)))
    mind.flush()
    mind.hear(ReportAck(epoch=(1, 5), seq=1))
    assert sorted(mind.core.entries) == [f"{job}.0.1" for job in range(4, 9)]
    assert sorted(mind.restart().core.entries) == sorted(mind.core.entries)
    assert restore(mind.core.snapshot()) == restore(mind.records)


# --- epochs, beats --------------------------------------------------------------------------------------------


def test_parts_are_obeyed_of_a_good_epoch_alone(mind: Mind) -> None:
    assert mind.hear(PartsHere(epoch=(1, 5), orders=[])) == [ApplyParts(())]
    (close,) = mind.hear(PartsHere(epoch=(1, 4), orders=[]))
    assert isinstance(close, Close)


def test_a_new_epoch_is_durable_before_anything_else(mind: Mind) -> None:
    write, start_write, start = mind.dispatch(attempt("1.0.1"), epoch=(1, 6))
    assert isinstance(write, Write) and write.records == ({"type": "epoch", "epoch": [1, 6]},)
    assert isinstance(start_write, Write) and isinstance(start, Start)
    assert mind.restart().core.highest_epoch == (1, 6)


@pytest.mark.parametrize("again", [False, True])
def test_a_lower_epoch_ends_the_session(mind: Mind, again: bool) -> None:
    mind.open((2, 1))
    mind = mind.restart() if again else mind
    actions = mind.open((1, 9), registered=False)
    assert [type(action) for action in actions] == [Close]
    assert mind.dispatch(attempt("1.0.1"), epoch=(1, 9)) == []


def test_a_frame_of_a_lower_epoch_ends_the_session(mind: Mind) -> None:
    mind.hear(BeatAck(seq=1, sent=0, epoch=(1, 7)))
    assert [type(a) for a in mind.dispatch(attempt("1.0.1"))] == [Close]
    assert mind.dispatch(attempt("1.0.1"), epoch=(1, 7)) == []  # the session is over
    assert "1.0.1" not in mind.core.entries


def test_frames_of_an_older_session_fall_flat(mind: Mind) -> None:
    mind.open()
    assert mind.do(FrameReceived(1, Dispatch(epoch=(1, 5), attempts=[attempt("1.0.1")]))) == []
    assert mind.do(SessionClosed(1)) == []
    assert mind.core.registered


def test_contact_is_when_the_acknowledged_beat_was_sent(mind: Mind) -> None:
    mind.now = 110
    (beat,) = [a.frame for a in mind.do(BeatDue()) if isinstance(a, Send)]
    assert isinstance(beat, Beat) and beat.sent == 110
    mind.now = 112
    mind.do(BeatDue())
    mind.now = 113
    # What the peer says of the time does not count, and an answer counts once.
    assert mind.hear(BeatAck(seq=beat.seq, sent=113, epoch=(1, 5))) == [RenewContact(110)]
    assert mind.hear(BeatAck(seq=beat.seq, sent=113, epoch=(1, 5))) == []
    start = mind.dispatch(attempt("1.0.1", fence_after_seconds=60))[-1]
    assert isinstance(start, Start) and start.contact == 110


def test_registering_is_contact_from_when_it_was_sent() -> None:
    mind = Mind()
    mind.open(registered=False)
    mind.now += 3
    assert mind.hear(Registered(epoch=(1, 5), beat_seconds=1)) == [RenewContact(100), ShowParts()]


def test_a_silent_leader_is_left(mind: Mind) -> None:
    for _ in range(3):
        mind.now += 2
        assert not any(isinstance(action, Close) for action in mind.do(BeatDue()))
    mind.now += 3
    assert [type(action) for action in mind.do(BeatDue())] == [Close]
    assert mind.do(BeatDue()) == []


# --- the laws, with crashes at every step -----------------------------------------------------------------------

NAMES = [f"{job}.0.1" for job in range(1, 6)]


class World(RuleBasedStateMachine):
    """An agent that may crash between any two actions, an executor that outlives it, leaders that come and go.

    It acts as the body does: events that wait for each other are taken together, and what they write goes first; what
    is not urgent of it waits, and is lost in a crash.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mind = Mind()
        self.running: dict[str, str] = {}
        """In the executor: starting, running, suspended, ended."""
        self.starts: dict[str, int] = {}
        self.dispatched: set[str] = set()
        self.finals: dict[str, set[tuple[str, str, int | None]]] = {}
        self.epoch = (1, 1)
        self.unanswered: list[AnyFrame] = []
        self.crash_after: int | None = None
        self.waiting: list[Event] = []
        self.company = 0
        """So many events wait for one more."""
        self.later: list[dict[str, Any]] = []
        self._restart()

    def _restart(self) -> None:
        self.waiting.clear()
        self.later.clear()
        self.company = 0
        self.mind = self.mind.restart()
        self.unanswered.clear()
        self.crash_after = None
        states = {"running": "running", "suspended": "suspended", "ended": "ended", "starting": "running"}
        known = [Known(n, states[s], 7, 50.0, 0, "exit", 60.0) for n, s in self.running.items()]  # type: ignore[arg-type]
        self.running = {name: "running" if s == "starting" else s for name, s in self.running.items()}
        self.do(Listed(tuple(known)))

    def do(self, event: Event) -> None:
        self.waiting.append(event)
        if len(self.waiting) > self.company:
            self.settle()

    def settle(self) -> None:
        now = Instant(1000 + self.mind.now, self.mind.now)
        events, self.waiting, self.company = self.waiting, [], 0
        actions = [action for event in events for action in self.mind.core.handle(event, now)]
        writes = [action for action in actions if isinstance(action, Write)]
        if writes and self._crashes():
            return
        self.later += [record for write in writes for record in write.records]
        if any(write.urgent for write in writes):
            self.mind.records += self.later
            self.later.clear()
        for action in actions:
            if not isinstance(action, Write):
                if self._crashes():
                    return
                self.carry_out(action)

    def _crashes(self) -> bool:
        if self.crash_after == 0:
            self._restart()
            return True
        if self.crash_after is not None:
            self.crash_after -= 1
        return False

    def carry_out(self, action: Action) -> None:
        durable = restore(self.mind.records)
        if isinstance(action, Start):
            name = action.attempt.id
            assert name in durable.entries and action.attempt.journal_id == JOURNAL
            self.starts[name] = self.starts.get(name, 0) + 1
            self.running[name] = "starting"
        elif isinstance(action, Signal) and action.ending and action.id in self.running:
            self.running[action.id] = "ended"
        elif isinstance(action, Forget):
            assert durable.entries[action.id].final or action.id not in durable.entries
            self.running.pop(action.id, None)
        elif isinstance(action, Send):
            if reports_of(action.frame):
                self.unanswered.append(action.frame)
            self.check_told(reports_of(action.frame), durable)
            for report in reports_of(action.frame):
                if report.state in ("ended", "refused"):
                    final = (report.state, report.reason, report.exit_code)
                    self.finals.setdefault(report.id, set()).add(final)

    def check_told(self, reports: list[AttemptReport], durable: Restored) -> None:
        """What is told of an attempt is durable, in order, and leaves out no later word and none that is waited for.

        The leader may have acknowledged some of it before: it asked again, and then the attempt went on.
        """
        told: dict[str, list[AttemptReport]] = {}
        for report in reports:
            told.setdefault(report.id, []).append(report)
        for name, said_of_it in told.items():
            journalled = journalled_reports(self.mind.records, name)
            if not journalled:
                assert name in durable.entries and [report.reason for report in said_of_it] == ["starting"]
                continue
            assert said_of_it == journalled[-len(said_of_it) :], "told before it was durable, or out of order"
            waited_for = restore([*self.mind.records, *self.later]).entries[name].unacknowledged
            assert len(said_of_it) >= len(waited_for), "not all that is waited for"

    @rule(steps=st.integers(0, 3))
    def crash_soon(self, steps: int) -> None:
        self.crash_after = steps

    @rule(events=st.integers(1, 4))
    def wait_for_company(self, events: int) -> None:
        self.company = events

    @rule()
    def crash(self) -> None:
        self._restart()

    @rule(newer=st.booleans())
    def connect(self, newer: bool) -> None:
        self.settle()
        if newer:
            self.epoch = (self.epoch[0], self.epoch[1] + 1)
        self.unanswered.clear()
        self.mind.session += 1
        self.do(SessionOpened(self.mind.session, self.epoch, "boot", OFFER))
        self.hear(Registered(epoch=self.epoch, beat_seconds=1))
        self.settle()

    @rule()
    def disconnect(self) -> None:
        self.settle()
        self.do(SessionClosed(self.mind.session))
        self.unanswered.clear()

    def hear(self, frame: AnyFrame) -> None:
        self.do(FrameReceived(self.mind.session, frame))

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), right=st.booleans())
    def dispatch(self, names: list[str], right: bool) -> None:
        self.dispatched.update(names)
        journal = JOURNAL if right else "older"
        self.hear(Dispatch(epoch=self.epoch, attempts=[attempt(name, journal_id=journal) for name in names]))

    @rule(name=st.sampled_from(NAMES))
    def dispatch_of_the_past(self, name: str) -> None:
        if self.mind.core.highest_epoch is None:
            return
        self.settle()
        before = (len(self.mind.records), dict(self.starts))
        past = (self.mind.core.highest_epoch[0], self.mind.core.highest_epoch[1] - 1)
        self.mind.session += 1
        self.mind.do(SessionOpened(self.mind.session, past, "boot", OFFER))
        self.hear(Dispatch(epoch=past, attempts=[attempt(name)]))
        self.hear(Stop(epoch=past, id=name, signal=9))
        assert before == (len(self.mind.records), self.starts)

    @rule(name=st.sampled_from(NAMES), number=st.sampled_from([signal.SIGTERM, signal.SIGSTOP, signal.SIGCONT]))
    def stop(self, name: str, number: int) -> None:
        self.hear(Stop(epoch=self.epoch, id=name, signal=number))
        self.settle()
        if self.running.get(name) == "ended":
            self.do(Ended(name, -15, "stop", 60.0, 7, 50.0))

    @rule(name=st.sampled_from(NAMES))
    def executor_starts(self, name: str) -> None:
        if self.running.get(name) == "starting":
            self.running[name] = "running"
            self.do(Started(name, 7, 50.0))

    @rule(name=st.sampled_from(NAMES))
    def executor_suspends(self, name: str) -> None:
        if self.running.get(name) in ("running", "suspended"):
            suspended = self.running[name] == "running"
            self.running[name] = "suspended" if suspended else "running"
            self.do(Signalled(name, suspended))

    @rule(name=st.sampled_from(NAMES))
    def executor_ends(self, name: str) -> None:
        if self.running.get(name) in ("running", "suspended"):
            self.running[name] = "ended"
            self.do(Ended(name, 0, "exit", 60.0, 7, 50.0))

    @rule(name=st.sampled_from(NAMES))
    def executor_loses(self, name: str) -> None:
        if self.running.pop(name, None):
            self._restart()

    @rule()
    def flush(self) -> None:
        self.do(FlushDue())

    @precondition(lambda self: self.unanswered)
    @rule()
    def acknowledge(self) -> None:
        self.settle()
        if not self.unanswered:
            return
        frame = self.unanswered.pop(0)
        self.hear(ReportAck(epoch=self.epoch, seq=frame.seq if isinstance(frame, Report) else 0))

    @invariant()
    def started_at_most_once(self) -> None:
        assert all(count == 1 for count in self.starts.values())

    @invariant()
    def one_end_at_most(self) -> None:
        assert all(len(ends) == 1 for ends in self.finals.values()), self.finals

    @invariant()
    def the_journal_says_what_the_mind_knows(self) -> None:
        restored = restore(self.mind.records)
        assert restored.highest_epoch == self.mind.core.highest_epoch
        for name, entry in self.mind.core.entries.items():
            assert (restored.entries[name].state, restored.entries[name].last) == (entry.state, entry.last)
        again = restore(self.mind.core.snapshot())
        for name, entry in self.mind.core.entries.items():
            assert again.entries[name] == entry

    def teardown(self) -> None:
        """Everything comes to rest: then each attempt has ended once, and the leader knows."""
        self.crash_after = None
        self.connect(newer=False)
        for name in NAMES:
            self.executor_starts(name)
            self.executor_ends(name)
        for _ in range(5):
            self.flush()
            self.settle()
            while self.unanswered:
                self.acknowledge()
                self.settle()
        entries = self.mind.core.entries
        assert all(entry.settled for entry in entries.values()), entries
        assert set(entries) == set(self.finals) and set(self.starts) <= set(entries)
        assert not self.running


def test_what_was_acknowledged_is_told_again_before_what_follows() -> None:
    """A leader that asks again has not heard it; what was told and what is new make one report."""
    world = World()
    world.connect(newer=False)
    world.dispatch(names=["1.0.1"], right=True)
    world.executor_starts(name="1.0.1")
    world.flush()
    while world.unanswered:
        world.acknowledge()
    world.dispatch(names=["1.0.1"], right=True)
    world.executor_ends(name="1.0.1")
    world.flush()
    (report,) = world.unanswered
    assert said(reports_of(report)) == [("1.0.1", "started", ""), ("1.0.1", "ended", "exit")]
    world.teardown()


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
