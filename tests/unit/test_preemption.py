"""Preemption: whose tasks are stopped for whom, and whose never. Sums in comments."""

from __future__ import annotations

from signal import SIGTERM, SIGUSR1

import pytest
from control_world import GIB, World, offer, spec

from lavalite.control.events import CancelRequested, SignalRequested, Specs
from lavalite.control.explain import explain
from lavalite.control.views import job as job_view
from lavalite.control.views import tasks as task_views
from lavalite.model.job import Array, Gang
from lavalite.model.reservation import Reservation
from lavalite.model.specs import Preemption, QueueSpec
from lavalite.model.task import TaskState

LOW, MIDDLE, URGENT = "low", "middle", "urgent"


def queues(rule: Preemption | None = None, **low: object) -> dict[str, QueueSpec]:
    rule = rule or Preemption("requeue")
    return {
        LOW: QueueSpec(LOW, 10, default=True, **low),  # type: ignore[arg-type]
        MIDDLE: QueueSpec(MIDDLE, 20),
        URGENT: QueueSpec(URGENT, 30, preemption=rule),
    }


def cluster(*cpus: int, found: dict[str, QueueSpec] | None = None, gpus: int = 0) -> World:
    w = World()
    w.apply(Specs(queues=found or queues()))
    for number, cpu in enumerate(cpus, 1):
        w.connect(f"n{number}", offer(f"n{number}", cpu=cpu, memory=64 * GIB, gpus=gpus))
    w.settle()
    return w


def submit(w: World, queue: str, cpu: int = 1, **fields: object) -> int:
    job = w.submit(spec(queue=queue, cpu_milli=cpu * 1000, **{"rerunnable": True, **fields}))
    w.settle()
    return job


def stopped(w: World) -> list[str]:
    """Jobs (and tasks) that were told to end, in that order."""
    w.check()
    return [f"{s.id.job}" if not s.id.task else f"{s.id.job}.{s.id.task}" for s in w.stops]


def let_end(w: World) -> None:
    for name in w.agents:
        w.report(name)
    w.settle()
    w.check()


def ran(w: World) -> list[int]:
    return sorted({attempt.job for attempt in w.running()})


@pytest.mark.parametrize(
    ("cpus", "low", "asks", "victims"),
    [
        ((4,), [1, 1, 1, 1], 1, [4]),  # 0 free, the youngest gives 1
        ((4,), [1, 1, 2], 2, [3]),  # one that gives 2, not two that give 1
        ((4,), [2, 1, 1], 2, [1]),  # the fewest, though it is the oldest
        ((4,), [1, 1, 1], 2, [3]),  # 1 free + 1
        ((4,), [1, 1, 1, 1], 3, [2, 3, 4]),  # 3 of 1 each, the youngest
        ((4,), [1, 3], 4, [1, 2]),  # 1 + 3
        ((4,), [1, 1], 5, []),  # never fits: nobody
        ((4, 4), [4, 1, 1, 1], 4, [1]),  # of n1 one, of n2 three
        ((2, 4), [2, 1, 1, 1, 1], 3, [3, 4, 5]),  # n1 has 2 in all: three of n2, the youngest
    ],
)
def test_who_is_stopped(cpus: tuple[int, ...], low: list[int], asks: int, victims: list[int]) -> None:
    w = cluster(*cpus, found=queues())
    for cpu in low:
        submit(w, LOW, cpu)
        w.now += 1
    assert len(w.running()) == len(low)
    urgent = submit(w, URGENT, asks)
    assert sorted(int(job) for job in stopped(w)) == victims
    let_end(w)
    assert (urgent in ran(w)) == bool(victims)
    w.advance(2)
    w.settle()
    assert sorted(int(job) for job in stopped(w)) == victims  # and nobody else since


def test_the_lowest_priority_goes_first() -> None:
    """Four of one core each: queue low before middle, in it the least job priority, then the youngest."""
    w = cluster(4)
    submit(w, MIDDLE)
    submit(w, LOW, priority=1)
    old = submit(w, LOW)
    w.now += 1
    young = submit(w, LOW)
    told = []
    for _ in range(4):
        submit(w, URGENT)
        told = stopped(w)
        let_end(w)
    assert told == [str(young), str(old), "2", "1"]


@pytest.mark.parametrize(
    ("rule", "victim", "stops"),
    [
        (Preemption("requeue"), {"rerunnable": True}, True),
        (Preemption("requeue"), {"rerunnable": False}, False),  # it could not be run again
        (Preemption("cancel"), {"rerunnable": False}, True),
        (Preemption("requeue", queues=("middle",)), {}, False),
        (Preemption("requeue", queues=("low",)), {}, True),
        (Preemption("requeue", below=10), {}, False),  # low has 10
        (Preemption("requeue", below=11), {}, True),
    ],
)
def test_who_may_be_preempted(rule: Preemption, victim: dict[str, object], stops: bool) -> None:
    w = cluster(1, found=queues(rule))
    low = submit(w, LOW, **victim)
    urgent = submit(w, URGENT)
    assert stopped(w) == ([str(low)] if stops else [])
    let_end(w)
    assert ran(w) == [urgent if stops else low]
    if stops:
        state = TaskState.CANCELLED if rule.mode == "cancel" else TaskState.PENDING
        assert w.state.jobs[low].state is state


@pytest.mark.parametrize(("mine", "theirs"), [(URGENT, URGENT), (MIDDLE, LOW), (LOW, URGENT)])
def test_nobody_is_preempted_by_an_equal_a_lower_or_a_queue_that_may_not(mine: str, theirs: str) -> None:
    w = cluster(1)
    first = submit(w, theirs)
    submit(w, mine)
    assert stopped(w) == [] and ran(w) == [first]


def test_it_says_why_and_by_whom() -> None:
    w = cluster(2)
    low = submit(w, LOW, array=Array(first=1, last=2))
    urgent = submit(w, URGENT, 2)
    told = explain(w.state, w.state.jobs[urgent], w.now)
    assert told.sentence == f"It waits for 2 tasks to end, preempted for it: job {low}[1], job {low}[2]."
    assert told.held_by == [f"job {low}[1]", f"job {low}[2]"]
    views = task_views(w.state, w.state.jobs[low])
    assert {v["reason"] for v in views} == {f"preempted for job {urgent} of queue urgent"}
    let_end(w)
    views = task_views(w.state, w.state.jobs[low])
    assert [(v["state"], v["reason"], v["preemptions"]) for v in views] == [
        ("pending", f"preempted for job {urgent} of queue urgent", 1)
    ] * 2
    assert job_view(w.state, w.state.jobs[low])["preemptions"] == 2
    sentence = explain(w.state, w.state.jobs[low], w.now).sentence
    assert sentence == f"Its last attempt was preempted for job {urgent} of queue urgent; it is tried again in 1 s."
    before = task_views(w.state, w.state.jobs[low])
    w.change_leader()
    assert task_views(w.state, w.state.jobs[low]) == before  # the history is durable


def test_the_grace_and_the_signal_of_the_queue() -> None:
    w = cluster(1, found=queues(Preemption("requeue", grace_seconds=90, signal=int(SIGUSR1))))
    submit(w, LOW)
    submit(w, URGENT)
    (stop,) = w.stops
    assert (stop.signal, stop.grace_seconds, stop.reason) == (SIGUSR1, 90.0, "preempt")
    w = cluster(1)
    submit(w, LOW)
    submit(w, URGENT)
    assert (w.stops[0].signal, w.stops[0].grace_seconds) == (SIGTERM, w.settings.stop_grace_seconds)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_no_more_often_than_the_limit(most: int) -> None:
    w = cluster(1, found=queues(max_preemptions=most))
    low = submit(w, LOW)
    for number in range(most + 2):
        urgent = submit(w, URGENT)
        let_end(w)
        assert (urgent in ran(w)) == (number < most)
        if urgent in ran(w):
            w.finish(next(a for a in w.running() if a.job == urgent))
            w.settle()
            w.advance(400)
            w.settle()
            assert low in ran(w)
        if number == 0:
            w.change_leader()  # the count is durable
            for name in w.agents:
                w.connect(name)
            w.settle()
    assert len(w.stops) == most
    assert w.state.jobs[low].preemptions.get(0, 0) == most


def test_what_stops_already_is_counted_on() -> None:
    """4 cores: the first urgent job stops one of 2; the second one, of 2, another one, and none a third."""
    w = cluster(4)
    for _ in range(2):
        submit(w, LOW, 2)
    first, second = submit(w, URGENT, 2), submit(w, URGENT, 2)
    assert len(stopped(w)) == 2
    submit(w, URGENT, 2)
    w.advance(5)
    w.settle()
    assert len(stopped(w)) == 2
    let_end(w)
    assert ran(w) == [first, second]


def test_room_that_is_being_made_is_not_taken_by_others() -> None:
    """Two of 2 cores end one after the other; a job of the middle queue that would fit into the first 2 waits."""
    w = cluster(4)
    submit(w, LOW, 2)
    submit(w, LOW, 2)
    second = w.running()[1]
    urgent = submit(w, URGENT, 4)
    assert len(stopped(w)) == 2
    middle = submit(w, MIDDLE, 2)
    agent = w.agents["n1"]
    later = {second: agent.unacked.pop(second)}
    w.report("n1")
    w.settle()
    assert middle not in ran(w) and urgent not in ran(w)
    agent.unacked.update(later)
    let_end(w)
    assert urgent in ran(w) and middle not in ran(w)


def test_nobody_is_stopped_where_a_reservation_would_keep_it_out() -> None:
    w = cluster(2)
    submit(w, LOW, 2)
    kept = Reservation(name="r", owner="ada", amounts={"cpu": 2000}, nodes=["n1"], start=1100.0, end=5000.0)
    w.state.set_reservation(kept)
    submit(w, URGENT, 2)
    assert stopped(w) == []
    submit(w, URGENT, 2, walltime_seconds=10)  # over by 1000 + 10 + 70 < 1100
    assert len(stopped(w)) == 1


def test_an_array_has_as_many_stopped_as_it_has_tasks() -> None:
    """3 tasks of 1 core on 2 nodes of 2: three of four end."""
    w = cluster(2, 2)
    submit(w, LOW, array=Array(first=1, last=4))
    urgent = submit(w, URGENT, array=Array(first=1, last=3))
    let_end(w)
    w.advance(1)
    w.settle()
    let_end(w)
    assert len(stopped(w)) == 3
    assert sum(a.job == urgent for a in w.running()) == 3


def test_a_gang_is_preempted_as_a_whole_and_preempts_for_all_its_tasks() -> None:
    w = cluster(2, 2)
    gang = submit(w, LOW, array=Array(first=1, last=4), gang=Gang())
    urgent = submit(w, URGENT, 2, array=Array(first=1, last=2), gang=Gang(nodes_least=2))
    assert sorted(stopped(w)) == [f"{gang}.{n}" for n in (1, 2, 3, 4)]
    let_end(w)
    assert ran(w) == [urgent]
    assert set(w.state.jobs[gang].preemptions.values()) == {1}


def test_a_single_task_is_stopped_rather_than_a_gang() -> None:
    w = cluster(3)
    alone = submit(w, LOW)
    submit(w, LOW, array=Array(first=1, last=2), gang=Gang())
    submit(w, URGENT)
    assert stopped(w) == [str(alone)]


def test_gpus_of_one_node_are_what_counts() -> None:
    """n1 and n2 have 2 GPUs each, one of each held: 2 GPUs at once need one end, on the node of the younger one."""
    w = cluster(8, 8, gpus=2)
    submit(w, LOW, gpu_milli=2000)
    w.now += 1
    young = submit(w, LOW, gpu_milli=1000)
    w.now += 1
    urgent = submit(w, URGENT, gpu_milli=2000)
    assert stopped(w) == [str(young)]
    let_end(w)
    assert urgent in ran(w)


def test_one_that_was_not_found_is_found_once_something_has_changed() -> None:
    """2 of 4 cores are a high task's. When that ends, 2 are free, and 4 with those of low."""
    w = cluster(4)
    high = submit(w, URGENT, 2)
    low = submit(w, LOW, 2)
    urgent = submit(w, URGENT, 4)
    assert stopped(w) == []
    w.finish(next(a for a in w.running() if a.job == high))
    w.settle()
    w.advance(2)
    w.settle()
    assert stopped(w) == [str(low)]
    let_end(w)
    assert ran(w) == [urgent]


# --- suspended for others -------------------------------------------------------------------------------------------


def book(w: World, kind: str, node: str = "n1") -> tuple[int, int]:
    """(committed, free) in the kind's unit."""
    return w.state.book.committed(node, kind), w.state.book.free(node, kind)


def test_a_task_is_suspended_gives_back_its_cpu_alone_and_goes_on() -> None:
    """Of 4 cores low holds 4, of 64 GiB 40: suspended, it holds 0 cores and 40 GiB."""
    w = cluster(4, found=queues(Preemption("suspend")))
    low = submit(w, LOW, 4, memory_bytes=40 * GIB, rerunnable=False)
    let_end(w)  # its agent has said that it runs
    urgent = submit(w, URGENT, 2, memory_bytes=20 * GIB)
    assert [(s.id.job, s.signal, s.reason) for s in w.stops] == [(low, 19, "suspend")]
    told = explain(w.state, w.state.jobs[urgent], w.now).sentence
    assert told == f"It waits for 1 task to be suspended, preempted for it: job {low}."
    let_end(w)
    assert w.state.jobs[low].state is TaskState.SUSPENDED and ran(w) == [low, urgent]
    assert book(w, "cpu") == (2000, 2000) and book(w, "memory") == (60 * GIB, 4 * GIB)
    told = explain(w.state, w.state.jobs[low], w.now).sentence
    assert told == (
        f"Job {low} does not wait: it is suspended. It is preempted for job {urgent} of queue urgent, and it goes on"
        " when there is CPU for it again."
    )
    w.change_leader()
    w.connect("n1")
    w.settle()
    assert book(w, "cpu") == (2000, 2000)  # also by the next leader
    w.finish(next(a for a in w.running() if a.job == urgent))
    w.settle()
    assert book(w, "cpu") == (4000, 0) and w.stops[-1].signal == 18
    let_end(w)
    assert w.state.jobs[low].state is TaskState.RUNNING and w.state.jobs[low].preemptions == {0: 1}
    w.finish(w.running()[0])
    w.settle()
    assert book(w, "cpu") == (0, 4000) and book(w, "memory") == (0, 64 * GIB)
    w.check()


def test_memory_is_not_had_by_suspending() -> None:
    """40 of 64 GiB are held, and 30 are asked for."""
    w = cluster(4, found=queues(Preemption("suspend")))
    submit(w, LOW, 4, memory_bytes=40 * GIB)
    let_end(w)
    submit(w, URGENT, 2, memory_bytes=30 * GIB)
    assert w.stops == []


def test_who_is_suspended_comes_before_its_equals_and_behind_higher_queues() -> None:
    w = cluster(2, found=queues(Preemption("suspend")))
    low = submit(w, LOW, 2)
    let_end(w)
    first = submit(w, URGENT, 2)
    let_end(w)
    equal, middle = submit(w, LOW, 2), submit(w, MIDDLE, 2)
    assert ran(w) == [low, first]

    def end(job: int) -> None:
        w.finish(next(a for a in w.running() if a.job == job))
        w.settle()
        let_end(w)

    end(first)
    assert ran(w) == [low, middle] and w.state.jobs[low].state is TaskState.SUSPENDED
    end(middle)
    assert ran(w) == [low] and w.state.jobs[low].state is TaskState.RUNNING
    end(low)
    assert ran(w) == [equal]


def test_one_that_was_suspended_may_be_cancelled_and_not_resumed_by_hand() -> None:
    w = cluster(2, found=queues(Preemption("suspend")))
    low = submit(w, LOW, 2)
    let_end(w)
    submit(w, URGENT, 2)
    let_end(w)
    before = len(w.stops)
    w.feed(SignalRequested(low, "resume"))
    w.settle()
    assert len(w.stops) == before
    w.feed(CancelRequested(low))
    w.settle()
    let_end(w)
    assert w.state.jobs[low].state is TaskState.CANCELLED and w.state.parked == {}
    assert book(w, "cpu") == (2000, 0)


def test_a_suspend_that_its_agent_missed_is_told_again() -> None:
    w = cluster(2, found=queues(Preemption("suspend")))
    low = submit(w, LOW, 2)
    let_end(w)
    w.agents["n1"].connected = False  # control has not noticed
    urgent = submit(w, URGENT, 2)
    assert w.state.jobs[low].state is TaskState.RUNNING
    w.disconnect("n1")
    w.connect("n1")
    w.settle()
    let_end(w)
    assert w.state.jobs[low].state is TaskState.SUSPENDED and urgent in ran(w)
