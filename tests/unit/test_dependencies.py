"""What a job waits for of others: of whole jobs, of some of their tasks, and index by index."""

from __future__ import annotations

import time
from typing import Any

import pytest
from control_world import World, offer, spec
from hypothesis import given
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.control.admission import admit
from lavalite.control.dependencies import first_missing, job_is_as_needed
from lavalite.control.events import CancelRequested, HoldRequested, ReleaseRequested
from lavalite.control.explain import explain
from lavalite.control.tasks import CODES, JobState
from lavalite.control.views import job as job_view
from lavalite.model.job import Array, Dependency, DependencyKind, JobSpec
from lavalite.model.task import AttemptId, TaskState

DONE, EXIT, ENDED, STARTED = DependencyKind


def world(cpu: int = 16) -> World:
    made = World()
    made.connect("n1", offer("n1", cpu=cpu))
    made.settle()
    return made


def letters(w: World, job: int) -> str:
    return bytes(w.state.jobs[job].codes).decode()


def end(w: World, job: int, task: int, code: int = 0) -> None:
    w.finish(next(a for a in w.running() if a[:2] == (job, task)), code)
    for _ in range(2):
        w.settle()
        w.report("n1")
    w.settle()


def submit(w: World, **fields: Any) -> int:
    job = w.submit(spec(**fields))
    w.settle()
    w.report("n1")
    w.settle()
    return job


def sentence(w: World, job: int) -> str:
    return explain(w.state, w.state.jobs[job], w.now).sentence


@pytest.mark.parametrize(
    ("dependency", "waits", "starts"),
    [
        # an array 1-4 of which the tasks end one after the other: 1 well, 2 badly, 3 well, 4 badly
        ({"kind": DONE, "tasks": Array(first=1, last=1)}, 0, True),
        ({"kind": DONE, "tasks": Array(first=1, last=3, step=2)}, 2, True),
        ({"kind": EXIT, "tasks": Array(first=1, last=2)}, 1, True),
        ({"kind": ENDED, "tasks": Array(first=2, last=3)}, 2, True),
        ({"kind": ENDED, "tasks": Array(first=2, last=4, step=2)}, 3, True),
        ({"kind": EXIT, "tasks": Array(first=3, last=4)}, 3, True),
        ({"kind": EXIT, "tasks": Array(first=3, last=3)}, 2, False),
        ({"kind": DONE, "tasks": Array(first=1, last=2)}, 1, False),
        ({"kind": DONE}, 3, False),
        ({"kind": EXIT}, 3, True),
        ({"kind": ENDED}, 3, True),
    ],
)
def test_it_starts_with_the_end_that_it_waits_for(dependency: dict[str, Any], waits: int, starts: bool) -> None:
    """`waits`: after so many more ends than the first it is there, or it is clear that it never is."""
    w = world()
    first = submit(w, array=Array(first=1, last=4))
    then = submit(w, depends=[Dependency(job=first, **dependency)])
    for number, (task, code) in enumerate([(1, 0), (2, 1), (3, 0), (4, 1)]):
        assert letters(w, then) == "P"
        assert f"It waits for {'task' if 'tasks' in dependency else 'job'}" in sentence(w, then)
        end(w, first, task, code)
        if number == waits:
            break
    assert (letters(w, then) == "R") == starts
    if not starts:
        assert sentence(w, then).endswith("this can never be met.")
    w.check()


def test_started_is_when_nothing_of_it_waits_any_more() -> None:
    w = world(cpu=2)
    first = submit(w, array=Array(first=0, last=2))
    one = submit(w, cpu_milli=0, depends=[Dependency(kind=STARTED, job=first, tasks=Array(first=0, last=1))])
    all_of_it = submit(w, cpu_milli=0, depends=[Dependency(kind=STARTED, job=first)])
    assert (letters(w, first), letters(w, one), letters(w, all_of_it)) == ("RRP", "R", "P")
    assert sentence(w, all_of_it) == f"It waits for job {first} to be started; that is running."
    end(w, first, 1)
    assert (letters(w, first), letters(w, all_of_it)) == ("RDR", "R")


def test_index_by_index() -> None:
    """Array 0-8 in twos waits for 0-9: each task for the one of its own index, and for nothing else."""
    w = world()
    first = submit(w, array=Array(first=0, last=9))
    then = submit(w, array=Array(first=0, last=8, step=2), depends=[Dependency(job=first, each=True)])
    assert letters(w, then) == "BBBBB"
    assert job_view(w.state, w.state.jobs[then])["depends"] == [f"done({first}[*])"]
    assert job_view(w.state, w.state.jobs[then])["counts"] == {"pending": 5}
    said = f"Each of its 5 tasks waits for that of the same index of job {first} to be done."
    assert sentence(w, then) == said
    end(w, first, 4)
    assert letters(w, then) == "BBRBB"
    end(w, first, 3)
    assert letters(w, then) == "BBRBB"  # 3 is no index of it
    end(w, first, 2, 1)
    assert letters(w, then) == "BBRBB"
    end(w, first, 0)
    assert letters(w, then) == "RBRBB"
    assert sentence(w, then).endswith(f"of the same index of job {first} to be done; for 1 this can never be met.")
    w.change_leader()
    w.connect("n1")
    w.settle()
    assert letters(w, then) == "RBRBB"
    w.feed(CancelRequested(then, (2, 6)))
    assert letters(w, then) == "RXRXB"
    w.check()


def test_index_by_index_on_two_jobs_and_a_third_as_a_whole() -> None:
    w = world()
    a, b = submit(w, array=Array(first=1, last=2)), submit(w, array=Array(first=1, last=3))
    c = submit(w)
    depends = [Dependency(job=a, each=True), Dependency(kind=ENDED, job=b, each=True), Dependency(job=c)]
    then = submit(w, array=Array(first=1, last=2), depends=depends)
    end(w, a, 1)
    end(w, b, 2, 1)
    assert letters(w, then) == "BB"
    end(w, a, 2)
    assert letters(w, then) == "BP"  # free of its elements, held by the third job
    end(w, c, 0)
    assert letters(w, then) == "BR"
    end(w, b, 1)
    assert letters(w, then) == "RR"


def test_a_hold_and_a_release_let_nothing_past_what_it_waits_for() -> None:
    w = world()
    first = submit(w, array=Array(first=1, last=2))
    then = submit(w, array=Array(first=1, last=2), depends=[Dependency(job=first, each=True)])
    w.feed(HoldRequested(then))
    end(w, first, 1)
    assert letters(w, then) == "PB"
    w.feed(ReleaseRequested(then))
    w.settle()
    assert [a for a in w.running() if a.job == then] == [AttemptId(then, 1, 1)]


@pytest.mark.parametrize(
    ("depends", "array", "said"),
    [
        ([Dependency(job=9)], None, "there is no job 9 yet, and a job never waits for itself or for a later one"),
        # two jobs are there, so this one would be job 3: it cannot wait for itself, and thus there are no circles
        ([Dependency(job=3)], None, "there is no job 3 yet"),
        (
            [Dependency(job=1, tasks=Array(first=5, last=5))],
            None,
            r"has the tasks 1-4: not all of done\(1\[5\]\)",
        ),
        ([Dependency(job=1, tasks=Array(first=0, last=2))], None, r"not all of done\(1\[0-2\]\)"),
        (
            [Dependency(job=2, tasks=Array(first=1, last=2))],
            None,
            r"tasks 0-8:2: not all of done\(2\[1-2\]\)",
        ),
        (
            [Dependency(job=1, each=True)],
            Array(first=1, last=5),
            "has the tasks 1-4: this one goes from 1 to 5",
        ),
        ([Dependency(job=1, each=True)], None, "job 1 has the tasks 1-4: this one goes from 0 to 0"),
    ],
)
def test_what_cannot_be_waited_for_is_refused(depends: list[Dependency], array: Array | None, said: str) -> None:
    w = world()
    submit(w, array=Array(first=1, last=4))
    submit(w, array=Array(first=0, last=8, step=2))
    with pytest.raises(InputError, match=said):
        admit(w.state, spec(depends=depends, array=array), w.now)


def test_tasks_and_each_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        Dependency(job=1, each=True, tasks=Array(first=1, last=1))


_LETTERS = st.text("PCRSUDFX", min_size=1, max_size=12)


@given(_LETTERS, st.data(), st.sampled_from(DependencyKind))
def test_a_cursor_sees_what_looking_at_all_sees(codes: str, data: st.DataObject, kind: DependencyKind) -> None:
    job = JobState.new(1, JobSpec(command=["true"], array=Array(first=3, last=3 + 2 * len(codes) - 1, step=2)), 0.0)
    for position, letter in enumerate(codes):
        job.set_code(position, ord(letter))
    low = data.draw(st.integers(0, len(codes) - 1))
    high = data.draw(st.integers(low, len(codes) - 1))
    stride = data.draw(st.integers(1, 3))
    named = Array(first=3 + 2 * low, last=3 + 2 * high, step=2 * stride)
    seen = codes[low : high + 1 : stride]
    wanted = {
        DONE: set(seen) == {"D"},
        EXIT: set(seen) <= {"D", "F", "X"} and set(seen) != {"D"},
        ENDED: set(seen) <= {"D", "F", "X"},
        STARTED: set(seen) <= {"R", "S", "D", "F", "X"},
    }[kind]
    assert (first_missing(job, Dependency(kind=kind, job=1, tasks=named)) is None) == wanted
    everything = Dependency(kind=kind, job=1, tasks=job.spec.array)
    assert job_is_as_needed(job, kind) == (first_missing(job, everything) is None)


def test_a_million_tasks_cost_what_they_move() -> None:
    """Taken in, and let go one by one, with a byte a task and no object: 20,000 ends in the time of a blink."""
    w = world(cpu=1)
    many = Array(first=1, last=1_000_000)
    first = w.submit(spec(array=many, hold=True))
    began = time.process_time()
    then = w.submit(spec(array=many, depends=[Dependency(job=first, each=True)], hold=True))
    ranged = w.submit(spec(depends=[Dependency(job=first, tasks=Array(first=1, last=999_999, step=2))], hold=True))
    taken_in = time.process_time() - began
    source, waiting = w.state.jobs[first], w.state.jobs[then]
    assert waiting.counts[ord("B")] == 1_000_000
    began = time.process_time()
    for position in range(20_000):
        source.set_code(position, CODES[TaskState.SUCCEEDED])
        w.state._task_moved(source, position)
    moved = time.process_time() - began
    assert waiting.ready == 20_000
    assert w.state.jobs[ranged].unmet == {0}
    assert taken_in < 2.0, taken_in
    assert moved < 2.0, moved
