"""One thing at a time: what becomes of a task in each case that the table and the design name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from control_world import GIB, REFUSES, World, offer, spec

from lavalite.base.errors import InputError, UnknownNameError
from lavalite.control.actions import Wake
from lavalite.control.admission import admit
from lavalite.control.events import (
    CancelRequested,
    DrainRequested,
    HoldRequested,
    MembersSeen,
    ReleaseRequested,
    RequeueRequested,
    ResumeRequested,
    SignalRequested,
    Specs,
    Tick,
)
from lavalite.control.explain import explain
from lavalite.control.hosts import composer
from lavalite.control.settings import Settings
from lavalite.control.views import counts, nodes, task
from lavalite.control.views import job as job_view
from lavalite.model.job import Array, Dependency, DependencyKind
from lavalite.model.selector import Selector
from lavalite.model.specs import HostSpec, PoolSpec, QueueSpec
from lavalite.model.task import AttemptId, TaskState
from lavalite.placement.compose import plan_hosts


def world(*offers, **settings) -> World:  # type: ignore[no-untyped-def]
    made = World(Settings(**settings))
    for one in offers or (offer("n1"),):
        made.connect(one.node, one)
    made.settle()
    return made


def states(w: World, job_id: int) -> str:
    return bytes(w.state.jobs[job_id].codes).decode()


def run_all(w: World, exit_code: int = 0) -> None:
    for agent in w.agents:
        w.report(agent)
    for attempt in w.running():
        w.finish(attempt, exit_code)
    w.settle()


def test_a_job_runs_and_leaves_nothing_behind() -> None:
    w = world()
    job = w.submit(spec(cpu_milli=2000), key="k1")
    assert states(w, job) == "A"
    w.settle()
    assert states(w, job) == "C"
    w.report("n1")
    assert states(w, job) == "R"
    run_all(w)
    assert states(w, job) == "D"
    assert w.state.book.committed("n1", "cpu") == 0
    assert [k for k in w.store if "commitments" in k] == []
    assert w.state.submit_keys == {"k1": job}
    assert task(w.state, w.state.jobs[job], 0)["exit_code"] == 0
    w.check()


def test_nothing_is_dispatched_before_its_commitment_is_durable() -> None:
    w = world()
    job = w.submit(spec())
    assert len(w.pipeline) == 2 and not w.running()  # the job's record, then the commitment
    w.write()
    assert not w.running()
    w.write()
    assert w.running() == [AttemptId(job, 0, 1)]


def test_an_array_is_placed_in_order_and_bounded() -> None:
    w = world(offer("n1", cpu=4), max_placements=3)
    job = w.submit(spec(array=Array(first=1, last=9, step=2)))
    assert states(w, job) == "AAAPP"
    w.feed(Tick())
    assert states(w, job) == "AAAAP"
    w.settle()
    assert [a.task for a in w.running()] == [1, 3, 5, 7]
    run_all(w)
    assert states(w, job) == "DDDDC"


def test_queue_priority_then_job_priority_then_submission() -> None:
    w = world(offer("n1", cpu=1))
    w.apply(Specs(queues={"slow": QueueSpec("slow", 10, default=True), "fast": QueueSpec("fast", 50)}))
    first = w.submit(spec())
    w.settle()
    later = [w.submit(spec()), w.submit(spec(priority=5)), w.submit(spec(queue="fast")), w.submit(spec())]
    order = []
    for _ in later:
        run_all(w)
        order += [a.job for a in w.running()]
    assert order == [later[2], later[1], later[0], later[3]] and states(w, first) == "D"


def test_a_class_that_does_not_fit_does_not_hold_up_the_others() -> None:
    w = world(offer("n1", cpu=2))
    big = w.submit(spec(cpu_milli=3000))
    small = w.submit(spec(cpu_milli=1000))
    assert (states(w, big), states(w, small)) == ("P", "A")


def test_retries_back_off_and_run_out() -> None:
    w = world(backoff_first_seconds=10.0)
    job = w.submit(spec(retries=1))
    w.settle()
    run_all(w, exit_code=3)
    assert states(w, job) == "W"
    assert "tried again in 10 s" in explain(w.state, w.state.jobs[job], w.now).sentence
    w.advance(9)
    assert states(w, job) == "W"
    w.advance(1)
    w.settle()
    assert w.running() == [AttemptId(job, 0, 2)]
    run_all(w, exit_code=4)
    assert states(w, job) == "F"
    assert job_view(w.state, w.state.jobs[job])["exit_code"] == 4


def test_a_refused_attempt_fails_with_the_reason() -> None:
    w = world()
    w.agents["n1"].known.add(REFUSES)
    job = w.submit(spec())
    w.settle()
    w.report("n1")
    assert states(w, job) == "F"
    assert task(w.state, w.state.jobs[job], 0)["reason"] == "no such user"


def test_cancel_in_every_state() -> None:
    w = world(offer("n1", cpu=2))
    pending, running = w.submit(spec(hold=True)), w.submit(spec())
    w.settle()
    w.report("n1")
    in_flight = w.submit(spec())
    for job in (pending, running, in_flight):
        w.feed(CancelRequested(job))
    assert states(w, pending) == "X" and states(w, in_flight) == "A"
    w.settle()
    assert states(w, in_flight) == "X"
    assert [s.id.job for s in w.stops] == [running]
    w.report("n1")
    assert states(w, running) == "X"
    assert task(w.state, w.state.jobs[running], 0)["exit_code"] == -15
    w.check()


def test_a_large_array_is_cancelled_in_slices_and_a_new_leader_goes_on_with_it() -> None:
    w = world(offer("n1", cpu=2), max_cancels=4)
    job = w.submit(spec(array=Array(first=1, last=11)))
    w.settle()
    w.report("n1")
    other = w.submit(spec())
    w.settle()
    w.feed(CancelRequested(job))
    assert states(w, job) == "RRXXPPPPPPP", "the first slice"
    w.write()  # the mark, and the first slice with it
    w.change_leader()
    w.connect("n1")
    w.settle()
    assert states(w, job) == "XXXXPPPPPPP" and w.state.jobs[job].cancelling, "nothing more of it has started"
    assert "being cancelled" in explain(w.state, w.state.jobs[job], w.now).sentence
    seen = []
    while w.state.cancels:
        actions = w.feed(Tick())
        assert any(isinstance(action, Wake) for action in actions) == bool(w.state.cancels), "who asks for the rest"
        w.settle()
        w.check()
        seen.append(states(w, job))
    assert seen == ["XXXXXXXXPPP", "XXXXXXXXXXX"]
    assert states(w, other) == "C", "what it held is free"
    assert set(w.starts) <= {AttemptId(job, 1, 1), AttemptId(job, 2, 1), AttemptId(other, 0, 1)}


def test_what_is_cancelled_while_its_node_is_lost_does_not_start_when_it_is_back() -> None:
    w = world()
    job = w.submit(spec())
    w.agents["n1"].connected = False  # the dispatch is lost
    w.settle()
    w.advance(2000, beats=False)
    assert states(w, job) == "U"
    w.feed(CancelRequested(job))
    w.connect("n1")
    w.settle()
    assert states(w, job) == "X" and not w.starts


def test_a_task_that_succeeded_before_the_stop_arrived_has_succeeded() -> None:
    w = world()
    job = w.submit(spec())
    w.settle()
    w.report("n1")
    w.feed(CancelRequested(job))
    w.finish(AttemptId(job, 0, 1), 0)
    w.settle()
    assert states(w, job) == "D"


def test_cancel_of_some_tasks_of_an_array() -> None:
    w = world(offer("n1", cpu=1))
    job = w.submit(spec(array=Array(first=0, last=3)))
    w.feed(CancelRequested(job, (2, 77)))
    assert states(w, job) == "APXP"


def test_suspend_and_resume() -> None:
    w = world()
    job = w.submit(spec())
    w.settle()
    w.report("n1")
    w.feed(SignalRequested(job, "suspend"))
    w.report("n1")
    assert states(w, job) == "S"
    w.feed(SignalRequested(job, "resume"))
    w.report("n1")
    assert states(w, job) == "R"


def test_requeue_is_not_charged() -> None:
    w = world()
    job = w.submit(spec())
    w.settle()
    w.report("n1")
    w.feed(RequeueRequested(job))
    w.settle()
    w.report("n1")
    assert states(w, job) == "W" and w.state.jobs[job].charges == {}


def test_what_is_requeued_before_it_is_sent_is_placed_again_at_once() -> None:
    w = world()
    job = w.submit(spec())
    w.feed(RequeueRequested(job))
    w.settle()  # no Tick is needed in between
    assert [attempt.attempt for attempt in w.running()] == [2]
    known = dict(w.state.jobs[job].wakes)
    w.change_leader()
    assert w.state.jobs[job].wakes == known == {}


def test_what_is_submitted_for_a_time_that_has_passed_starts_at_once() -> None:
    w = world()
    w.submit(spec(not_before=w.now))
    w.settle()
    assert len(w.running()) == 1


def test_hold_survives_a_change_of_leader() -> None:
    w = world()
    job = w.submit(spec(hold=True))
    held = w.submit(spec(not_before=w.now + 50))
    w.feed(HoldRequested(held))
    w.feed(ReleaseRequested(job))
    w.pipeline = type(w.pipeline)(a for a in w.pipeline)
    w.settle()
    w.change_leader()
    assert w.state.jobs[held].held and not w.state.jobs[job].held
    w.advance(60)
    assert states(w, held) == "P"
    assert "held" in explain(w.state, w.state.jobs[held], w.now).sentence


@pytest.mark.parametrize(
    ("kind", "exit_code", "runs"),
    [
        (DependencyKind.DONE, 0, True),
        (DependencyKind.DONE, 1, False),
        (DependencyKind.EXIT, 0, False),
        (DependencyKind.EXIT, 1, True),
        (DependencyKind.ENDED, 1, True),
    ],
)
def test_dependencies(kind: DependencyKind, exit_code: int, runs: bool) -> None:
    w = world()
    first = w.submit(spec())
    second = w.submit(spec(depends=[Dependency(kind=kind, job=first)]))
    w.settle()
    assert states(w, second) == "P"
    assert f"job {first}" in explain(w.state, w.state.jobs[second], w.now).sentence
    run_all(w, exit_code)
    assert (states(w, second) == "C") == runs
    if not runs:
        assert "never be met" in explain(w.state, w.state.jobs[second], w.now).sentence


# --- nodes --------------------------------------------------------------------------------------------------------


def started(w: World, **fields: object) -> int:
    job = w.submit(spec(**fields))
    w.settle()
    for agent in w.agents:
        w.report(agent)
    w.settle()
    assert states(w, job) == "R"
    return job


def test_a_dispatch_that_was_lost_is_sent_again_and_starts_once() -> None:
    w = world()
    job = w.submit(spec())
    w.agents["n1"].connected = False  # the connection is dead, and nobody has noticed
    w.settle()
    assert states(w, job) == "C" and not w.running()
    w.connect("n1")
    w.settle()
    w.connect("n1")
    w.settle()
    assert w.running() == [AttemptId(job, 0, 1)] and states(w, job) == "R"


def test_what_ended_while_the_leader_changed_is_told_by_the_agent() -> None:
    w = world()
    job = started(w)
    w.change_leader()
    assert states(w, job) == "R"
    w.finish(AttemptId(job, 0, 1), 7)
    w.connect("n1")
    w.settle()
    assert states(w, job) == "F"
    assert task(w.state, w.state.jobs[job], 0)["exit_code"] == 7


def test_a_lost_node_with_a_rerunnable_task_and_another() -> None:
    w = world(offer("n1"), offer("n2"))
    w.feed(DrainRequested("n2"))
    again, once = started(w, rerunnable=True), started(w)
    w.feed(ResumeRequested("n2"))
    w.disconnect("n1")
    w.advance(899)
    assert states(w, again) == "R"
    w.advance(1)
    assert states(w, again) == "U" and states(w, once) == "U"
    w.advance(59)
    assert states(w, again) == "U"
    w.advance(1)
    w.advance(5)
    w.settle()
    assert [a for a in w.running() if a.job == again] == [AttemptId(again, 0, 2)]
    assert states(w, once) == "U"
    w.connect("n1")
    w.settle()
    assert states(w, once) == "R"
    w.check()


def test_a_new_leader_counts_from_its_own_start() -> None:
    w = world()
    job = started(w, rerunnable=True)
    w.disconnect("n1")
    w.advance(890)
    w.settle()
    w.change_leader()
    w.advance(890)
    assert states(w, job) == "R"
    w.advance(10)
    assert states(w, job) == "U"


def test_a_person_gives_up_what_is_unknown() -> None:
    w = world()
    job = started(w)
    w.disconnect("n1")
    w.advance(2000)
    w.feed(CancelRequested(job))
    assert states(w, job) == "U"
    w.feed(CancelRequested(job, force=True, by="ada"))
    assert states(w, job) == "X"
    w.settle()
    w.connect("n1")
    w.settle()
    assert w.stops[-1].reason == "given up as lost"
    w.check()


def test_another_journal_after_a_reboot_loses_everything_at_once() -> None:
    w = world()
    again, once = started(w, rerunnable=True), started(w)
    w.wipe("n1", reboot=True)
    w.connect("n1")
    assert states(w, again) == "W" and states(w, once) == "F"
    assert "n1 was lost" in task(w.state, w.state.jobs[once], 0)["reason"]
    w.check()


def test_another_journal_without_a_reboot_waits_until_the_fence_has_closed() -> None:
    w = world()
    again, once = started(w, rerunnable=True), started(w)
    w.wipe("n1")
    w.connect("n1")
    assert states(w, again) == "U" and states(w, once) == "F"
    w.advance(959)
    assert states(w, again) == "U"
    w.agents["n1"].ghosts.clear()
    w.advance(1)
    assert states(w, again) == "W"


def test_silent_for_lim_stops_new_placement_and_nothing_else() -> None:
    w = world()
    job = started(w)
    w.feed(MembersSeen(frozenset(), frozenset({"n1"})))
    other = w.submit(spec())
    w.settle()
    assert states(w, other) == "P" and states(w, job) == "R"
    assert explain(w.state, w.state.jobs[other], w.now).filters == {"silent": 1}
    w.feed(MembersSeen(frozenset({"n1"}), frozenset()))
    assert states(w, other) == "A"


def test_a_node_that_does_not_beat_gets_nothing_new() -> None:
    w = world()
    w.advance(11, beats=False)
    job = w.submit(spec())
    assert states(w, job) == "P"
    assert next(nodes(w.state, w.now))["state"] == "silent"
    w.advance(1)
    assert states(w, job) == "A"


def test_a_strange_attempt_is_quarantined_and_not_killed() -> None:
    w = world()
    w.agents["n1"].running[AttemptId(99, 0, 1)] = False
    w.disconnect("n1")
    w.connect("n1")
    w.settle()
    assert list(w.state.quarantine) == [("n1", AttemptId(99, 0, 1))] and not w.stops


def test_a_node_comes_back_with_fewer_parts() -> None:
    w = world(offer("n1", cpu=4))
    started(w, cpu_milli=3000)
    w.agents["n1"].offer = offer("n1", cpu=2)
    w.disconnect("n1")
    w.connect("n1")
    assert w.state.book.overcommitted() == [("n1", "cpu")] and w.state.book.free("n1", "cpu") == 0
    other = w.submit(spec())
    assert states(w, other) == "P"
    w.check()


# --- gpus, pools, limits, hosts -------------------------------------------------------------------------------------


def test_gpus_are_given_out_by_name_whole_and_in_parts() -> None:
    w = world(offer("n1", gpus=2))
    half = w.submit(spec(cpu_milli=0, gpu_milli=500, array=Array(first=0, last=2)))
    whole = w.submit(spec(cpu_milli=0, gpu_milli=1000))
    held = [share.devices for key in w.state.runs for share in w.state.book.shares(key.owner)]
    assert held == [["n1-gpu0"], ["n1-gpu0"], ["n1-gpu1"]]
    assert states(w, half) == "AAA" and states(w, whole) == "P"
    w.check()


def test_pools_models_and_the_nearest_fit() -> None:
    gpus = PoolSpec("gpus", Selector(labels={"rack": ("r1",)}), ("gpu",), default=True)
    w = world(
        offer("n1", gpus=2, rack="r1"), offer("n2", gpus=4, rack="r2"), offer("n3", gpus=1, model="V100", rack="r1")
    )
    w.apply(Specs(pools={"gpus": gpus}))
    first = w.submit(spec(gpu_milli=1000, gpu_model="A100"))
    w.settle()
    second = w.submit(spec(gpu_milli=2000, gpu_model="A100"))
    told = explain(w.state, w.state.jobs[second], w.now)
    assert w.running()[0].job == first
    assert told.filters == {"not_in_pool": 1, "no_model": 1, "too_few_free": 1}
    assert (told.nearest, told.lacks) == ("n1", {"gpu": 1000})
    assert told.held_by == [f"job {first} (1 gpu)"]


def test_limits_of_a_user_and_floating_resources() -> None:
    w = world(offer("n1", cpu=8))
    w.apply(
        Specs(
            queues={"normal": QueueSpec("normal", tasks_per_user=2, default=True)},
            pools={"licences": PoolSpec("licences", floating={"matlab": 3})},
        )
    )
    mine = w.submit(spec(array=Array(first=0, last=3), user="ada"))
    theirs = w.submit(spec(array=Array(first=0, last=3), user="bob", floating={"matlab": 2}))
    assert states(w, mine) == "AAPP" and states(w, theirs) == "APPP"
    assert "lets ada run 2" in explain(w.state, w.state.jobs[mine], w.now).sentence
    assert "1 of 3 are free" in explain(w.state, w.state.jobs[theirs], w.now).sentence
    w.check()


def test_a_logical_host_holds_its_parts_and_jobs_on_it_debit_only_the_host() -> None:
    w = world(offer("n1", cpu=8, gpus=2), offer("n2", cpu=2))
    trainer = HostSpec("trainer", {"cpu": 4000, "gpu": 1000}, entry="trainer")
    w.apply(Specs(hosts={"trainer": trainer}))
    assert w.state.book.free("n1", "cpu") == 4000
    w.settle()
    host = w.state.hosts["trainer"]
    assert (host.state, host.anchor) == ("composed", "n1")
    job = started(w, host="trainer", cpu_milli=3000, gpu_milli=1000)
    assert w.state.book.committed("n1", "cpu") == 4000 and w.state.book.free("trainer", "cpu") == 1000
    assert [a.job for a in w.agents["n1"].running] == [job]
    w.change_leader()
    assert w.state.book.free("trainer", "cpu") == 1000
    w.connect("n1")
    w.settle()
    w.apply(Specs(), purge=True)
    assert w.state.hosts["trainer"].state == "draining"
    run_all(w)
    w.advance(1)
    w.settle()
    assert "trainer" not in w.state.hosts and w.state.book.committed("n1", "cpu") == 0
    assert not [key for key in w.store if "trainer" in key]
    w.check()


def test_a_host_that_does_not_fit_says_why_and_is_composed_when_there_is_room() -> None:
    w = world(offer("n1", cpu=4))
    job = started(w, cpu_milli=2000)
    w.apply(Specs(hosts={"big": HostSpec("big", {"cpu": 4000})}))
    w.settle()
    assert w.state.hosts["big"].state == "planned" and "n1 lacks" in w.state.hosts["big"].reason
    w.finish(AttemptId(job, 0, 1))
    w.advance(1)
    w.settle()
    assert w.state.hosts["big"].state == "composed" and w.state.hosts["big"].reason == ""


def test_hosts_that_are_asked_for_together_are_planned_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not anew for each of them that is composed: a thousand would keep the scheduler for minutes."""
    planned = []

    def counted(specs: Sequence[HostSpec], *arguments: Any, **named: Any) -> Any:
        planned.append(len(specs))
        return plan_hosts(specs, *arguments, **named)

    monkeypatch.setattr(composer, "plan_hosts", counted)
    w = world(offer("n1", cpu=100))
    w.apply(Specs(hosts={f"h{i}": HostSpec(f"h{i}", {"cpu": 1000}) for i in range(100)}))
    w.settle()
    assert {host.state for host in w.state.hosts.values()} == {"composed"}
    assert len(planned) <= 3
    w.check()


def test_a_host_grows_and_does_not_shrink_below_its_use() -> None:
    w = world(offer("n1", cpu=8))
    w.apply(Specs(hosts={"h": HostSpec("h", {"cpu": 2000})}))
    w.settle()
    started(w, host="h", cpu_milli=2000)
    w.apply(Specs(hosts={"h": HostSpec("h", {"cpu": 4000})}))
    w.settle()
    assert w.state.book.free("h", "cpu") == 2000 and w.state.book.committed("n1", "cpu") == 4000
    w.apply(Specs(hosts={"h": HostSpec("h", {"cpu": 1000})}))
    w.settle()
    assert w.state.hosts["h"].amount("cpu") == 4000 and "use more" in w.state.hosts["h"].reason
    w.check()


# --- admission and retention --------------------------------------------------------------------------------------


def test_a_job_that_never_fits_is_refused_with_the_nearest() -> None:
    w = world(offer("n1", cpu=4))
    with pytest.raises(InputError, match="nearest n1 lacks") as refused:
        admit(w.state, spec(cpu_milli=5000), w.now)
    assert refused.value.code == "never_fits"
    admit(w.state, spec(cpu_milli=4000, memory_bytes=8 * GIB), w.now)
    admit(World().state, spec(cpu_milli=5000), 0.0)


def test_all_faults_at_once() -> None:
    w = world()
    with pytest.raises(UnknownNameError) as refused:
        bad = spec(queue="x", host="y", gpu_milli=1500, depends=[Dependency(job=77)], policy="z")
        admit(w.state, bad, w.now)
    assert [f.field for f in refused.value.faults] == ["queue", "host", "policy", "depends", "request.gpu_milli"]


def test_finished_jobs_go_the_oldest_first_and_not_while_they_are_needed() -> None:
    w = world(keep_finished_jobs=1, max_removals=2)
    done = [started(w) for _ in range(4)]
    for job in done:
        w.finish(AttemptId(job, 0, 1))
        w.advance(1)
    assert sorted(w.state.jobs) == done[-1:]
    needs_it = w.submit(spec(hold=True, depends=[Dependency(job=done[-1], kind=DependencyKind.EXIT)]))
    others = [started(w) for _ in range(2)]
    for job in others:
        w.finish(AttemptId(job, 0, 1))
        w.advance(1)
    w.advance(1)
    w.settle()
    assert sorted(w.state.jobs) == [done[-1], needs_it, others[-1]]
    assert counts(w.state, w.now)["nodes"] == {"ready": 1}
    assert {int(k.split("/")[4]) for k in w.store if "/tasks/" in k} <= set(w.state.jobs)


def test_the_state_of_a_large_array_is_kept_in_chunks() -> None:
    w = world(offer("n1", cpu=1))
    job = w.submit(spec(array=Array(first=0, last=20_000)))
    w.feed(CancelRequested(job, tuple(range(8000, 20_001))))
    w.settle()
    w.change_leader()
    assert w.state.jobs[job].state_of(8191) is TaskState.CANCELLED
    assert w.state.jobs[job].state_of(7999) is TaskState.PENDING
    assert sorted(k.rpartition("/")[2] for k in w.store if "/tasks/" in k) == ["0000", "0001", "0002"]


def test_the_chunks_of_a_large_array_stay_small() -> None:
    w = world(offer("n1", cpu=2))
    job = w.submit(spec(array=Array(first=0, last=8191), cpu_milli=1000, retries=0))
    w.settle()
    w.finish(AttemptId(job, 0, 1), 0)
    w.finish(AttemptId(job, 1, 1), 9)
    w.feed(CancelRequested(job))
    w.settle()
    w.report("n1")
    w.settle()
    assert max(len(value) for key, value in w.store.items() if "/tasks/" in key) < 10_000
    before = job_view(w.state, w.state.jobs[job])
    w.change_leader()
    after = job_view(w.state, w.state.jobs[job])
    assert before == after and after["ended_at"] == w.now
    assert task(w.state, w.state.jobs[job], 1)["exit_code"] == 9
    assert list(w.state.finished) == [job]


def test_a_job_on_a_host_that_is_not_there_says_so() -> None:
    w = world(offer("n1", cpu=2))
    w.apply(Specs(hosts={"big": HostSpec("big", {"cpu": 4000})}))
    job = w.submit(spec(host="big"))
    assert "Logical host big is planned" in explain(w.state, w.state.jobs[job], w.now).sentence


def test_a_commitment_for_a_journal_that_is_gone_is_never_dispatched() -> None:
    w = world(offer("n1"))
    job = w.submit(spec())
    w.wipe("n1")
    w.connect("n1")  # before the commitment is durable
    w.settle()
    assert w.running() == [AttemptId(job, 0, 2)] and w.starts == {AttemptId(job, 0, 2): 1}
    w.check()
