"""Which ends are worth another try, how many there are, and how long each waits: with the sums."""

from __future__ import annotations

from typing import Any

import pytest
from control_world import REFUSES, World, offer, spec
from hypothesis import given
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.control.events import Specs
from lavalite.control.retries import backoff_seconds
from lavalite.model.exits import format_exit, parse_exit
from lavalite.model.job import Backoff, JobSpec
from lavalite.model.pools import load_pools
from lavalite.model.specs import QueueSpec

SLOW = QueueSpec(
    "slow", retries=3, retry_on=(75,), backoff_first_seconds=60, backoff_factor=3, backoff_most_seconds=600
)


def world(queue: QueueSpec | None = None) -> World:
    made = World()
    if queue is not None:
        made.apply(Specs(queues={queue.name: queue}))
    made.connect("n1", offer("n1"))
    made.settle()
    return made


def waits(w: World, exits: list[int], **fields: Any) -> tuple[list[float], str]:
    """How long the task waited after each end, and the letter it stands at in the end."""
    job = w.state.jobs[w.submit(spec(**fields))]
    w.settle()
    seconds: list[float] = []
    for code in exits:
        w.finish(w.running()[0], code)
        w.settle()
        if job.wakes:
            seconds.append(job.wakes[0] - w.now)
            w.advance(seconds[-1])
            w.settle()
    assert len([a for a in w.starts if a.job == job.id]) == 1 + len(seconds)
    return seconds, chr(job.codes[0])


@pytest.mark.parametrize(
    ("queue", "fields", "exits", "seconds", "last"),
    [
        # the settings': 1 s, then twice as long: 1, 1×2, 1×4
        (None, {"retries": 3}, [1, 1, 1, 1], [1, 2, 4], "F"),
        # the job's: 10 s, three times as long, at most 100 s: 10, 30, 90, 270 → 100
        (None, {"retries": 4, "backoff": Backoff(first_seconds=10, factor=3, most_seconds=100)}, [1] * 5,
         [10, 30, 90, 100], "F"),
        # factor 1 waits the same each time
        (None, {"retries": 2, "backoff": Backoff(first_seconds=7, factor=1)}, [1, 1, 0], [7, 7], "D"),
        # a first one beyond the settings' most of 300 s is kept to
        (None, {"retries": 2, "backoff": Backoff(first_seconds=400)}, [1, 1, 0], [400, 400], "D"),
        # the queue's: 60 s, three times as long: 60, 180, 540, at most 600
        (SLOW, {}, [75, 75, 75, 75], [60, 180, 540], "F"),
        # the job's own number of retries, and first back-off: 5, 15 with the queue's factor
        (SLOW, {"retries": 2, "backoff": Backoff(first_seconds=5)}, [75, 75, 75], [5, 15], "F"),
        # none, said so, is none
        (SLOW, {"retries": 0}, [75], [], "F"),
        # the queue's list has 75 alone; the job may say that every end is worth a try, or another list
        (SLOW, {}, [1], [], "F"),
        (SLOW, {"retry_on": []}, [1, 0], [60], "D"),
        (SLOW, {"retry_on": ["SIGKILL", 3]}, [-9, 3, 75], [60, 180], "F"),
        (None, {"retries": 5, "retry_on": [75]}, [75, 76], [1], "F"),
    ],
)  # fmt: skip
def test_how_long_each_try_waits(
    queue: QueueSpec | None, fields: dict[str, Any], exits: list[int], seconds: list[float], last: str
) -> None:
    assert waits(world(queue), exits, **fields) == (seconds, last)


def test_an_attempt_that_never_ran_is_tried_again_whatever_the_list_says() -> None:
    w = world()
    w.agents["n1"].known.add(REFUSES)
    job = w.state.jobs[w.submit(spec(retries=1, retry_on=[75]))]
    w.settle()
    w.report("n1")
    assert bytes(job.codes) == b"W"


@given(
    st.integers(1, 10**6), st.integers(1, 100), st.integers(1, 10**6), st.integers(1, 10**6),
)  # fmt: skip
def test_a_back_off_stays_within_its_bounds(first: int, factor: int, more: int, attempt: int) -> None:
    w = World()
    job = w.state.jobs[w.submit(spec(backoff=Backoff(first_seconds=first, factor=factor, most_seconds=first + more)))]
    seconds = backoff_seconds(w.state, job, attempt)
    assert first <= seconds <= first + more
    assert seconds <= backoff_seconds(w.state, job, attempt + 1)


@given(st.integers(-64, 255).filter(bool))
def test_exit_codes_are_read_as_they_are_written(code: int) -> None:
    assert parse_exit(format_exit(code)) == parse_exit(code) == code


@pytest.mark.parametrize("wrong", ["", "0", "256", "-65", "SIGNOT", "1.5", "٣", "75,76", True, None, 1.0, [75]])
def test_what_is_no_exit_code_says_what_is_one(wrong: object) -> None:
    with pytest.raises(InputError, match="75 or SIGKILL"):
        parse_exit(wrong)


def test_a_job_says_its_codes_by_name() -> None:
    assert JobSpec(command=["true"], retry_on=["KILL", "sigterm", 75]).retry_on == [-9, -15, 75]  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"SIGNOT is no exit code\. Write a code from 1 to 255"):
        JobSpec(command=["true"], retry_on=["SIGNOT"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="a first back-off of 20 s is more than the most, 10 s"):
        Backoff(first_seconds=20, most_seconds=10)


def test_a_queue_says_it_in_pools_yml() -> None:
    text = """
plugin: lavalite.cluster.pools
cluster: c
api: [http://h:1]
queues:
  slow: {retries: 3, retry_on: [75, SIGKILL], backoff: {first: 1m, factor: 3, most: 10m}}
"""
    (queue,) = load_pools(text).queue_specs()
    assert (queue.retries, queue.retry_on) == (3, (75, -9))
    assert (queue.backoff_first_seconds, queue.backoff_factor, queue.backoff_most_seconds) == (60, 3, 600)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("retries: -1", "queues.slow.retries: -1 is too low"),
        ("retries: 101", "queues.slow.retries: 101 is too high"),
        ("retry_on: [SIGNOT]", "SIGNOT is no exit code"),
        ("backoff: {first: 10m, most: 1m}", "first is more than most"),
        ("backoff: {first: 0}", "first is 0s"),
        ("backoff: {factor: 0}", "0 is too low"),
    ],
)
def test_what_a_queue_cannot_say(wrong: str, said: str) -> None:
    text = f"plugin: lavalite.cluster.pools\ncluster: c\napi: [http://h:1]\nqueues:\n  slow: {{{wrong}}}\n"
    with pytest.raises(InputError, match=said):
        load_pools(text)
