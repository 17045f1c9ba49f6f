"""Beats: what is lost is counted once, offers travel when they have to, and a new leadership starts with nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lavalite.lim.membership import Pulse, Roster
from lavalite.lim.view import newest
from lavalite.model.resources import NodeOffer
from lavalite.wire.frames import BeatAck, Leader

OFFER = NodeOffer(node="n1", boot_id="b", version=7)


@given(st.lists(st.tuples(st.sampled_from(["beat", "ack", "drop", "wait"]), st.integers(1, 30))))
def test_every_beat_is_answered_or_lost_or_still_out(steps: list[tuple[str, int]]) -> None:
    pulse, now, sent, acked = Pulse(1.0), 0.0, 0, set()
    for step, number in steps:
        match step:
            case "beat":
                assert pulse.beat(now, OFFER, 0).seq == (sent := sent + 1)
            case "ack":
                before = set(pulse._outstanding)
                pulse.acked(BeatAck(seq=number, sent=0.0), now)
                acked |= before & {number}
            case "drop":
                pulse.disconnected()
            case "wait":
                now += number / 10
        assert sent == len(acked) + pulse.lost + len(pulse._outstanding)
        assert pulse.round_trip_ms is None or pulse.round_trip_ms >= 0


def test_a_late_answer_is_no_round_trip() -> None:
    pulse = Pulse(1.0)
    first = pulse.beat(0.0, OFFER, 0)
    second = pulse.beat(3.5, OFFER, 7)
    assert (second.lost, second.offer) == (1, None)
    pulse.acked(BeatAck(seq=first.seq, sent=0.0), 3.6)
    assert pulse.round_trip_ms is None
    pulse.acked(BeatAck(seq=second.seq, sent=3.5), 3.502)
    assert pulse.round_trip_ms is not None and 1.9 < pulse.round_trip_ms < 2.1


def test_a_leader_asks_for_an_offer_that_it_does_not_have() -> None:
    roster, pulse = Roster(1.0), Pulse(1.0)
    bare = pulse.beat(0.0, OFFER, known_version=7)
    assert bare.offer is None
    assert roster.hear("n1", "0.1", bare, (0, 1), 0.0).want_offer
    full = pulse.beat(1.0, OFFER, known_version=0)
    assert not roster.hear("n1", "0.1", full, (0, 1), 1.0).want_offer
    assert roster.offers["n1"] == OFFER
    newer = pulse.beat(2.0, OFFER.model_copy(update={"version": 8}), known_version=8)
    assert roster.hear("n1", "0.1", newer, (0, 1), 2.0).want_offer


def test_nobody_offers_in_the_name_of_another() -> None:
    roster = Roster(1.0)
    beat = Pulse(1.0).beat(0.0, OFFER, 0)
    assert roster.hear("n2", "0.1", beat, (0, 1), 0.0).want_offer
    assert roster.offers == {}


def test_members_fall_silent_and_are_forgotten_with_the_leadership() -> None:
    roster = Roster(1.0)
    roster.hear("n1", "0.1", Pulse(1.0).beat(0.0, OFFER, 0), (0, 1), 10.0)
    assert [m.alive for m in roster.members((0, 1), 14.9)] == [True]
    assert [(m.alive, m.beat_age_seconds) for m in roster.members((0, 1), 15.0)] == [(False, 5.0)]
    assert roster.members((0, 2), 11.0) == []


def test_the_highest_epoch_is_right_whoever_says_it() -> None:
    old = Leader(node="n1", epoch=(0, 9), mine=True, deadline=5.0)
    new = Leader(node="n2", epoch=(1, 2))
    assert newest([Leader(), old, new]).node == "n2"
    assert newest([old]) == Leader(node="n1", epoch=(0, 9))
    assert newest([Leader(), Leader()]).node == ""
