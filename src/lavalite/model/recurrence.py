"""The times of something that is there every day, every weekday or every week, at a time of day in a zone.

The zone is given, as a tzinfo: where its rules are read from is no matter of this. A time of day
that a zone leaves out when its clocks go forward is taken as by the clock before.
"""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo

EVERY = ("day", "weekday", "week")
MOST_DAYS = 366
"""For so long it recurs at most; then it is made anew, by whoever still wants it."""
_SATURDAY = 5


def starts(first: float, every: str, zone: tzinfo, until: float) -> list[float]:
    """When it begins, `first` and after that, before `until`: at the same time of day by the zone's clock."""
    begun = datetime.fromtimestamp(first, zone)
    found = [first]
    for day in range(1, MOST_DAYS + 1):
        date = begun.date() + timedelta(days=day)
        if (every == "week" and day % 7) or (every == "weekday" and date.weekday() >= _SATURDAY):
            continue
        at = datetime.combine(date, begun.time(), zone).timestamp()
        if at >= until:
            break
        found.append(at)
    return found


def is_on_its_day(first: float, every: str, zone: tzinfo) -> bool:
    """Whether the first time is one of those that it recurs at."""
    return every != "weekday" or datetime.fromtimestamp(first, zone).weekday() < _SATURDAY
