"""Reservations that recur: their times by a zone's clock, what is kept at each of them, and what is in their way."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from control_world import KEYS, World, offer, spec
from test_control_jobs import world
from test_planning import submit, told

from lavalite.control.events import ReservationEnded, ReservationMade
from lavalite.control.reservations import Asked, choose_nodes
from lavalite.model.recurrence import is_on_its_day, starts
from lavalite.model.reservation import Reservation
from lavalite.placement.reasons import Reason, Refusal

BERLIN = ZoneInfo("Europe/Berlin")
DAY = 86400.0
FOR_EVER = 2.0**40


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def shown(times: list[float]) -> list[str]:
    return [datetime.fromtimestamp(time, BERLIN).strftime("%a %d.%m. %H:%M") for time in times]


def test_each_day_is_at_the_same_time_by_the_zones_clock() -> None:
    # In 2027 clocks go forward there on 28 March: that day has 23 hours. UTC has no such days.
    first = at("2027-03-26T08:00:00+01:00")
    found = starts(first, "day", BERLIN, first + 4 * DAY - 3600)
    assert shown(found) == ["Fri 26.03. 08:00", "Sat 27.03. 08:00", "Sun 28.03. 08:00", "Mon 29.03. 08:00"]
    assert [b - a for a, b in pairwise(found)] == [DAY, DAY - 3600, DAY]
    assert starts(first, "day", UTC, first + 4 * DAY) == [first + n * DAY for n in range(4)]


def test_weekdays_leave_out_the_weekend_and_weeks_are_seven_days() -> None:
    first = at("2027-03-25T22:30:00+01:00")
    found = starts(first, "weekday", BERLIN, first + 5.5 * DAY)
    assert shown(found) == ["Thu 25.03. 22:30", "Fri 26.03. 22:30", "Mon 29.03. 22:30", "Tue 30.03. 22:30"]
    weeks = starts(first, "week", BERLIN, first + 14.5 * DAY)
    assert shown(weeks) == ["Thu 25.03. 22:30", "Thu 01.04. 22:30", "Thu 08.04. 22:30"]
    assert is_on_its_day(first, "weekday", BERLIN) and not is_on_its_day(first + 2 * DAY, "weekday", BERLIN)


def test_it_recurs_for_a_year_and_stops_before_its_end() -> None:
    first = at("2027-01-01T00:00:00+00:00")
    assert len(starts(first, "day", UTC, FOR_EVER)) == 367
    assert len(starts(first, "week", UTC, FOR_EVER)) == 53
    assert starts(first, "day", UTC, first + DAY) == [first]


def recur(w: World, name: str, *, start: float, seconds: float, times: int, cores: int) -> Any:
    """Made if it fits, else the Refusal. `start` counts from now."""
    begin = w.now + start
    later = tuple(begin + n * DAY for n in range(1, times))
    amounts = {"cpu": cores * 1000}
    nodes = choose_nodes(w.state, Asked(amounts, 1, "", begin, begin + seconds, later), w.now)
    if isinstance(nodes, Refusal):
        return nodes
    fields: dict[str, Any] = {"start": begin, "end": begin + seconds}
    if times > 1:
        fields |= {"later": list(later), "first": begin, "every": "day", "zone": "UTC"}
    made = Reservation(name=name, owner="ada", amounts=amounts, nodes=nodes, **fields)
    w.feed(ReservationMade(made))
    told(w)
    return made


def running(w: World) -> list[int]:
    return [attempt.job for attempt in w.running()]


def test_what_it_keeps_is_kept_at_each_of_its_times_and_not_between() -> None:
    w = world(offer("n1", cpu=2))
    recur(w, "r", start=0, seconds=1000, times=3, cores=2)
    inside, outside = submit(w, 2, None, reservation="r"), submit(w, 1, 100)
    assert running(w) == [inside]
    w.finish(w.running()[0])
    w.advance(1000)
    told(w)
    kept = w.state.reservations["r"]
    assert (kept.start - w.now, len(kept.later)) == (DAY - 1000, 1)
    assert Reservation.model_validate_json(w.store[KEYS.reservation("r")]) == kept
    assert running(w) == [outside]
    # What ends before its next time, in 85400 s, may start: 85330 + 70 does, 85331 + 70 does not.
    endless, too_long = submit(w, 1, None), submit(w, 1, 85331)
    in_time = submit(w, 1, 85330)
    assert running(w) == [outside, in_time], too_long
    for attempt in w.running():
        w.finish(attempt)
    for _ in range(2):
        w.advance(DAY)
        told(w)
    assert not w.state.reservations and KEYS.reservation("r") not in w.store
    assert endless in running(w)


def test_what_would_be_in_the_way_of_any_of_its_times_is_refused() -> None:
    w = world(offer("n1", cpu=4))
    assert isinstance(recur(w, "daily", start=1000, seconds=500, times=5, cores=3), Reservation)
    third_day = 1000 + 2 * DAY
    refused = recur(w, "once", start=third_day + 400, seconds=500, times=1, cores=2)
    assert isinstance(refused, Refusal) and refused.turned_away == {Reason.TOO_FEW_FREE: 1}
    assert refused.lacks == {"cpu": 1000}
    assert isinstance(recur(w, "between", start=third_day + 500, seconds=500, times=1, cores=2), Reservation)
    # The other way round: one that recurs does not fit over what is there on a single day.
    assert isinstance(recur(w, "over", start=1600, seconds=100, times=5, cores=3), Refusal)
    assert isinstance(recur(w, "beside", start=1600, seconds=100, times=5, cores=2), Reservation)


def test_unused_for_too_long_it_waits_for_its_next_time() -> None:
    w = world(offer("n1", cpu=2))
    made = recur(w, "r", start=0, seconds=1000, times=2, cores=2)
    w.feed(ReservationEnded("r"))
    w.feed(ReservationMade(made.model_copy(update={"timeout_seconds": 30})))
    waiting = submit(w, 1, 60)
    w.advance(1)
    w.advance(30)
    told(w)
    assert w.state.reservations["r"].start == made.start + DAY and running(w) == [waiting]


def test_a_new_leader_goes_on_with_it() -> None:
    w = world(offer("n1", cpu=2))
    recur(w, "r", start=0, seconds=1000, times=3, cores=2)
    w.advance(1000)
    w.settle()
    before = w.state.reservations
    w.change_leader()
    assert w.state.reservations == before
    w.connect("n1")
    job = w.submit(spec(user="ada", reservation="r"))
    told(w)
    assert running(w) == []
    w.advance(DAY - 1000)
    told(w)
    assert running(w) == [job]


@pytest.mark.parametrize("every", ["", "day"])
def test_only_one_that_recurs_is_written_with_what_that_takes(every: str) -> None:
    fields: dict[str, Any] = {"every": every, "zone": "UTC", "first": 1.0, "until": 9.0, "later": [2.0]}
    made = Reservation(name="r", owner="ada", amounts={"cpu": 1}, nodes=["n"], start=1, end=1.5, **fields)
    assert ("later" in made.model_dump_json()) is bool(every)
