"""Reservations over the API and the command line of a real scheduler, and jobs that run in them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_calls import NOBODY, UnixHttp, as_user, call, open_folder, wait_for
from whole import Whole

from lavalite.api.client import Client
from lavalite.api.models import ReservationPut, Submit
from lavalite.base.errors import ConflictError, InputError, RefusedError, UnknownNameError
from lavalite.model.job import JobSpec, Request

SOME = {"cpu_milli": 10}


class One:
    def __init__(self, folder: Path, client: Client) -> None:
        self.client = client
        self.socket = folder / "n1/m/api.sock"

    def submit(self, *command: str, **fields: Any) -> int:
        spec = JobSpec(command=list(command), request=Request(cpu_milli=10), **fields)
        return self.client.submit([Submit(spec=spec)]).ids[0]

    def reach(self, job: int, state: str) -> None:
        wait_for(lambda: self.client.job(job).state == state, 30, f"job {job} is {state}")

    def lavalite(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lavalite.cli.main", *words]
        environment = {**os.environ, "LAVALITE_API": f"unix:{self.socket}", "COLUMNS": "200"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def one() -> Iterator[One]:
    with open_folder() as folder:
        store = {"kind": "sqlite", "path": str(folder / "store.db")}
        with Whole(folder, {"n1": 9}, store=store).running() as cluster:
            lim = asyncio.run(cluster.serving())
            (folder / "n1").chmod(0o755)
            with cluster.client(lim) as client:
                yield One(folder, client)


@pytest.fixture(autouse=True)
def none_left(one: One) -> Iterator[None]:
    yield
    for found in one.client.reservations():
        one.client.unreserve(found.name)


def free(one: One) -> int:
    return one.client.node("n1").resources["cpu"].free


def test_it_is_made_listed_used_and_ended(one: One) -> None:
    client, all_of_it = one.client, ReservationPut(cpu_milli=free(one), duration_seconds=600)
    would = client.reserve("all", all_of_it, dry_run=True)
    assert would.changed and not list(client.reservations())
    made = client.reserve("all", all_of_it)
    assert made.changed and made.reservation.nodes == ["n1"] and made.reservation.state == "active"
    assert client.reserve("all", all_of_it).changed is False
    outside, inside = one.submit("true"), one.submit("sleep", "600", reservation="all")
    one.reach(inside, "running")
    assert client.reservation("all").used == {"cpu": 10}
    assert "held by reservation all" in client.job(outside).why
    assert client.job(inside).reservation == "all"
    client.cancel(inside)
    one.reach(inside, "cancelled")
    assert client.unreserve("all").reservation.name == "all"
    one.reach(outside, "succeeded")
    with pytest.raises(UnknownNameError):
        client.reservation("all")


def test_it_ends_by_itself_and_its_tasks_with_it(one: One) -> None:
    one.client.reserve("brief", ReservationPut(cpu_milli=10, duration_seconds=8))
    job = one.submit("sleep", "600", reservation="brief")
    one.reach(job, "failed")
    (task,) = one.client.tasks(job)
    assert task.reason == "walltime"
    wait_for(lambda: not list(one.client.reservations()), 10, "it is over")


def test_what_cannot_be_is_refused_with_its_reason(one: One) -> None:
    client, fits = one.client, ReservationPut(cpu_milli=10, duration_seconds=60)
    client.reserve("there", fits)
    for ask, message in (
        (ReservationPut(cpu_milli=2**40, duration_seconds=60), "too small even when empty"),
        (ReservationPut(cpu_milli=free(one), duration_seconds=60), "has too little free; nearest n1 lacks 0.01 cpu"),
        (ReservationPut(duration_seconds=60), "nothing is asked for"),
        (ReservationPut(gpu_milli=500, duration_seconds=60), "GPUs are kept whole"),
        (ReservationPut(cpu_milli=10, duration_seconds=60, start=1.0), "in the past"),
        (ReservationPut(cpu_milli=10, duration_seconds=60, pool="none"), "there is no pool none"),
    ):
        with pytest.raises(InputError, match=message):
            client.reserve("new", ask)
    with pytest.raises(ConflictError, match="with another duration_seconds"):
        client.reserve("there", ReservationPut(cpu_milli=10, duration_seconds=61))
    with pytest.raises(ConflictError, match="with another start"):
        client.reserve("there", ReservationPut(cpu_milli=10, duration_seconds=60, start=time.time() + 900))
    with pytest.raises(InputError, match="no reservation nowhere"):
        one.submit("true", reservation="nowhere")
    for body in ({"duration_seconds": 0}, {"duration_seconds": 2**70}, {"duration_seconds": 9, "colour": 1}, [], "x"):
        assert call(UnixHttp(one.socket), "PUT", "/v1/reservations/x", body)[0] == 400
    assert call(UnixHttp(one.socket), "PUT", "/v1/reservations/..%2Fx", {"duration_seconds": 9})[0] in (400, 404)


def test_only_operators_make_them_and_only_their_users_use_them(one: One) -> None:
    asked = {"duration_seconds": 60, **SOME}
    status, _ = as_user(NOBODY, lambda: call(UnixHttp(one.socket), "PUT", "/v1/reservations/x", asked))
    assert status == 403
    one.client.reserve("mine", ReservationPut(duration_seconds=60, **SOME))
    body = {"jobs": [{"spec": {"command": ["true"], "reservation": "mine", "request": SOME}}]}
    status, error = as_user(NOBODY, lambda: call(UnixHttp(one.socket), "POST", "/v1/jobs", body))
    assert status == 400 and "mine is not for" in json.dumps(error)
    status, _ = as_user(NOBODY, lambda: call(UnixHttp(one.socket), "DELETE", "/v1/reservations/mine"))
    assert status == 403
    with pytest.raises((RefusedError, ConflictError)):
        one.client.reserve("mine", ReservationPut(duration_seconds=60, users=["nobody"], **SOME))


def test_by_the_command_line(one: One) -> None:
    later = f"{time.time() + 3600:.0f}"
    done = one.lavalite("reserve", "course", "--for", "2h", "--cpu", "0.01", "--start", later, "--user", "bob")
    assert done.returncode == 0 and "reservation course: kept on n1" in done.stdout, done.stderr
    listed = one.lavalite("reservations")
    assert "course" in listed.stdout and "planned" in listed.stdout
    waiting = one.lavalite("submit", "--cpu", "0.01", "--reservation", "course", "--", "true")
    assert waiting.returncode == 0, waiting.stderr
    job = int(waiting.stdout.split()[1])
    assert "begins in" in one.client.job(job).why
    one.client.cancel(job)
    assert one.lavalite("unreserve", "course").returncode == 0
    wrong = one.lavalite("reserve", "x", "--for", "2h", "--cpu", "1", "--start", "tomorrow")
    assert wrong.returncode == 2 and "tomorrow is no time" in wrong.stderr


MONDAY = 4076121600.0
"""2 March 2099, nine in Berlin, which is eight by UTC until clocks go forward there on the 29th."""


def test_one_that_recurs_is_made_once_and_says_so(one: One) -> None:
    day = 86400
    ask = ReservationPut(
        cpu_milli=10,
        duration_seconds=3600,
        start=MONDAY,
        every="weekday",
        zone="Europe/Berlin",
        until=MONDAY + 30 * day,
    )
    made = one.client.reserve("calls", ask)
    assert made.changed and (made.reservation.start, made.reservation.end) == (MONDAY, MONDAY + 3600)
    assert (made.reservation.every, made.reservation.zone) == ("weekday", "Europe/Berlin")
    assert one.client.reserve("calls", ask).changed is False
    with pytest.raises(ConflictError, match="another zone"):
        one.client.reserve("calls", ask.model_copy(update={"zone": ""}))
    full = ReservationPut(cpu_milli=one.client.node("n1").resources["cpu"].capacity, duration_seconds=60)
    with pytest.raises(InputError, match="cannot be had at that time"):
        one.client.reserve("friday", full.model_copy(update={"start": MONDAY + 4 * day + 1800}))
    assert one.client.reserve("saturday", full.model_copy(update={"start": MONDAY + 5 * day + 1800})).changed
    # From the 29th on nine in Berlin is seven by UTC.
    with pytest.raises(InputError, match="cannot be had at that time"):
        one.client.reserve("summer", full.model_copy(update={"start": MONDAY + 28 * day - 3600}))
    assert one.client.reserve("later", full.model_copy(update={"start": MONDAY + 28 * day})).changed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every": "day", "zone": "Mars/Olympus"}, "there is no zone Mars/Olympus"),
        ({"every": "day", "zone": "../../etc/passwd"}, "there is no zone"),
        ({"zone": "UTC"}, "zone is for reservations that recur"),
        ({"every": "day", "until": MONDAY}, "until is not after the start"),
        ({"every": "day", "duration_seconds": 82801}, "it lasts longer than from one day to the next"),
        ({"every": "weekday", "start": MONDAY - 86400}, "its start is no weekday there"),
    ],
)
def test_what_cannot_recur_is_refused_with_a_sentence(one: One, wrong: dict[str, Any], message: str) -> None:
    fields = {"cpu_milli": 10, "duration_seconds": 60, "start": MONDAY, **wrong}
    with pytest.raises(InputError, match=message):
        one.client.reserve("wrong", ReservationPut(**fields))
    assert not list(one.client.reservations())
