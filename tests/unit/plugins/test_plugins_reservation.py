"""What the module reservation asks of the API, and what it makes of its answers."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lavalite.cluster.plugins.module_utils._client import Client
from ansible_collections.lavalite.cluster.plugins.module_utils._errors import ApiError
from ansible_collections.lavalite.cluster.plugins.modules import reservation

from lavalite.api.models import ReservationPut

PARAMS: dict[str, Any] = dict.fromkeys(
    ("start", "cpu", "memory", "gpu", "storage", "pool", "timeout", "every", "zone", "until")
)
PARAMS |= {"name": "course", "state": "present", "duration": "2h", "nodes": 1, "users": []}
MADE = {"name": "course", "state": "active", "amounts": {"cpu": 1000}, "nodes": ["n1"], "used": {"cpu": 500}}


def test_what_is_asked_is_what_the_api_takes() -> None:
    params = PARAMS | {"cpu": "0.5", "memory": "2GiB", "gpu": "2", "storage": "1TiB", "nodes": 3, "pool": "gpus"}
    params |= {"users": ["ada"], "timeout": "15m", "start": "2026-12-24T08:00:00+01:00"}
    asked = ReservationPut.model_validate(reservation.asked(params))
    assert asked.amounts() == {"cpu": 500, "memory": 2 * 1024**3, "gpu": 2000, "storage": 1024**4}
    assert (asked.count, asked.pool, asked.users, asked.duration_seconds) == (3, "gpus", ["ada"], 7200)
    assert (asked.start, asked.timeout_seconds) == (1798095600.0, 900)
    params |= {"every": "weekday", "zone": "Europe/Berlin", "until": "2027-01-31T00:00:00+01:00"}
    recurs = ReservationPut.model_validate(reservation.asked(params))
    assert (recurs.every, recurs.zone, recurs.until) == ("weekday", "Europe/Berlin", 1801350000.0)
    assert reservation.seconds_of("2026-12-24T07:00:00Z") == asked.start


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"duration": "long"}, "duration"),
        ({"cpu": "many"}, "cpu"),
        ({"timeout": "x"}, "timeout"),
        ({"start": "tomorrow"}, "no time with a zone"),
        ({"start": "2026-12-24T08:00:00"}, "no time with a zone"),
        ({"until": "never"}, "until: never is no time with a zone"),
    ],
)
def test_what_is_not_understood_names_the_option(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ApiError, match=message):
        reservation.asked(PARAMS | wrong)


def test_it_is_made_once_and_left_as_it_is(api: Any) -> None:
    client = Client(urls=[api.url])
    api.answer = lambda *_: (200, {}, {"changed": True, "reservation": MADE})
    made = reservation.apply(client, PARAMS | {"cpu": "1"}, True)
    assert (made["changed"], made["diff"]["before"]) == (True, {})
    assert api.asked[0][:2] == ("PUT", "/v1/reservations/course?dry_run=true")
    api.answer = lambda *_: (200, {}, {"changed": False, "reservation": MADE})
    again = reservation.apply(client, PARAMS | {"cpu": "1"}, False)
    assert again["changed"] is False and again["diff"]["before"] == again["diff"]["after"]
    assert "used" not in again["diff"]["after"], "that changes without anybody asking for it"


def test_it_is_ended_where_it_is_there(api: Any) -> None:
    client = Client(urls=[api.url])
    api.answer = lambda *_: (200, {}, MADE)
    gone = reservation.apply(client, PARAMS | {"state": "absent"}, False)
    assert gone["changed"] and [call[0] for call in api.asked] == ["GET", "DELETE"]
    api.answer = lambda *_: (404, {}, {"errors": [{"code": "unknown_name", "message": "no reservation"}]})
    assert reservation.apply(client, PARAMS | {"state": "absent"}, False)["changed"] is False
