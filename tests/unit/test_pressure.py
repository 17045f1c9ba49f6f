"""When submits are told to come again later, with the sums; and that what brings relief is never refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from control_world import World, offer, spec

from lavalite.base.errors import BusyError, InputError
from lavalite.control.events import CancelRequested
from lavalite.mbatchd.config import BackPressure
from lavalite.mbatchd.pressure import Pressure
from lavalite.model.job import Array
from lavalite.store.base import StoreStatus

GIB = 1024**3
SEEN = StoreStatus("etcd", "3.5.0", 1, GIB, "a:1", in_use_bytes=GIB, quota_bytes=4 * GIB)
MOST = BackPressure(jobs=5, jobs_per_user=3, commit_queue=10, store_percent=80)


def pressure(w: World, *, writes: int = 0, seen: StoreStatus = SEEN) -> Pressure:
    made = Pressure(MOST, 100, w.state, None, lambda: writes)  # type: ignore[arg-type]
    made._seen = seen
    return made


def world(**jobs: int) -> World:
    """So many jobs of each user, all held; each is an array of 10."""
    w = World()
    for user, count in jobs.items():
        for _ in range(count):
            w.submit(spec(user=user, hold=True, array=Array(first=1, last=10)))
    w.settle()
    return w


@pytest.mark.parametrize(
    ("jobs", "asked", "why", "seconds"),
    [
        ({"ada": 2}, ("ada", 1, 1), "", 0),
        ({"ada": 2}, ("ada", 2, 2), "2 jobs of ada have not ended yet, and 3 is the most.", 5),
        ({"ada": 3}, ("bob", 2, 2), "", 0),
        ({"ada": 3, "bob": 2}, ("eve", 1, 1), "5 jobs have not ended yet, and 5 is the most.", 5),
        ({"ada": 3, "bob": 2}, ("eve", 0, 0), "", 0),
        ({"ada": 3}, ("bob", 1, 71), "30 tasks have not ended yet, and 100 is the most.", 5),
        ({"ada": 3}, ("bob", 1, 70), "", 0),
    ],
)
def test_so_many_jobs_and_tasks_are_let_in(
    jobs: dict[str, int], asked: tuple[str, int, int], why: str, seconds: int
) -> None:
    limits = pressure(world(**jobs))
    if not why:
        limits.demand_room(*asked)
        return
    with pytest.raises(BusyError) as caught:
        limits.demand_room(*asked)
    assert str(caught.value).startswith(why) and "put equal jobs into one array" in str(caught.value)
    assert caught.value.retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("ada", 6, 6), "6 jobs at once, and 5 is the most that may be there. Put equal jobs into one array."),
        (("ada", 4, 4), "4 jobs at once, and 3 of ada is the most that may be there. Put equal jobs into one array."),
        (("ada", 1, 101), "101 tasks at once, and 100 is the most that may be there. Put equal jobs into one array."),
    ],
)
def test_what_can_never_be_let_in_is_not_told_to_come_again(asked: tuple[str, int, int], why: str) -> None:
    with pytest.raises(InputError) as caught:
        pressure(world()).demand_room(*asked)
    assert str(caught.value) == why


@pytest.mark.parametrize(
    ("seen", "writes", "why"),
    [
        (SEEN, 9, ""),
        (SEEN, 10, "10 writes wait for the store, and 10 is the most."),
        # 80 % of 4 GiB are 3.2 GiB; 95 % are 3.8 GiB.
        (replace(SEEN, in_use_bytes=32 * GIB // 10), 0, ""),
        (replace(SEEN, in_use_bytes=33 * GIB // 10), 0, "the store has in use 82 % of its quota of 4GiB, and 80 %"),
        (replace(SEEN, size_bytes=37 * GIB // 10), 0, ""),
        (replace(SEEN, size_bytes=39 * GIB // 10), 0, "the store takes on disk 97 % of its quota of 4GiB, and 95 %"),
        (replace(SEEN, alarms=("memberID:1 alarm:NOSPACE",)), 0, "etcd has raised its alarm NOSPACE"),
        (replace(SEEN, kind="sqlite", quota_bytes=0, in_use_bytes=0, size_bytes=9 * GIB), 0, ""),
    ],
)
def test_a_store_that_runs_full_or_late_takes_no_more(seen: StoreStatus, writes: int, why: str) -> None:
    limits = pressure(world(), writes=writes, seen=seen)
    assert limits.refuses().startswith(why) and bool(limits.refuses()) == bool(why)
    if why:
        with pytest.raises(BusyError, match=why[:30]) as caught:
            limits.demand_room("ada", 1, 1)
        assert caught.value.retry_after_seconds == (1 if writes else 30)


def test_it_is_said_how_near_each_limit_is() -> None:
    limits = pressure(world(ada=1, bob=2), writes=4)
    assert {room.what: (room.used, room.most) for room in limits.headroom()} == {
        "jobs": (3, 5),
        "jobs of bob": (2, 3),
        "tasks": (30, 100),
        "commit queue": (4, 10),
        "store": (GIB, 4 * GIB * 80 // 100),
        "store file": (GIB, 4 * GIB * 95 // 100),
    }


def test_jobs_that_end_make_room_and_a_new_leader_counts_the_same() -> None:
    w = world(ada=3)
    w.connect("n1", offer("n1", cpu=4))
    done = w.submit(spec(user="bob"))
    w.settle()
    w.change_leader()
    assert dict(w.state.unfinished_jobs) == {"ada": 3, "bob": 1}
    w.connect("n1")
    w.feed(CancelRequested(1))
    w.report("n1")
    w.settle()
    for attempt in w.running():
        w.finish(attempt)
    w.settle()
    assert not w.state.jobs[done].unfinished and dict(w.state.unfinished_jobs) == {"ada": 2}
    pressure(w).demand_room("ada", 1, 1)
    w.check()


class Sized:
    """A store of which only the size is asked: known, then not, then known."""

    def __init__(self, *answers: StoreStatus | Exception) -> None:
        self.answers = list(answers)

    async def status(self) -> StoreStatus:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_store_that_does_not_answer_is_as_full_as_it_was() -> None:
    from lavalite.store.base import StoreUnavailable

    full = replace(SEEN, in_use_bytes=4 * GIB)
    limits = Pressure(MOST, 100, world().state, Sized(full, StoreUnavailable("gone"), SEEN), lambda: 0)  # type: ignore[arg-type]
    said: list[str] = []

    class Steps:
        async def sleep(self, seconds: float) -> None:
            said.append(limits.refuses())
            if len(said) == 3:
                raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await limits.watch(Steps())  # type: ignore[arg-type]
    assert [bool(why) for why in said] == [True, True, False]
