"""Tasks beside a host's GPUs of other nodes: those are the host's, and all else that they take is their node's.

The host has a GPU of n1, its anchor since n2 has too little memory, and two of n2. The sums are shown.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_rules import ClusterRules
from control_world import GIB, World, offer, spec
from hosts_world import QUEUES, check, define, settle
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from test_parts import job, letters, part, tell, where
from test_placing_page import Typist

from lavalite.base.errors import InputError
from lavalite.control.admission import admit
from lavalite.control.events import CancelRequested, DrainRequested, HostDrained, ResumeRequested, Specs
from lavalite.control.explain import explain
from lavalite.control.settings import Settings
from lavalite.control.starts import attempt_start
from lavalite.control.usage import Scope
from lavalite.model.host import DEGRADE, FAIL
from lavalite.model.job import Gang, JobSpec
from lavalite.model.reservation import Reservation
from lavalite.model.resources import WHOLE, NodeOffer, Resource
from lavalite.model.selector import Selector
from lavalite.model.specs import HostSpec, PoolSpec, Preemption, QueueSpec, Quota

PAGE = (Path(__file__).resolve().parents[2] / "docs/hosts.md").read_text()
NODES = ("n1", "n2", "n3")
FAR = HostSpec(
    "h", {"cpu": 2 * WHOLE, "memory": 6 * GIB, "gpu": 3 * WHOLE}, far={"gpu": 2 * WHOLE}, circuits={"gpu": 10**9}
)
BOTH = job(part("near", 1, 1, 1), part("far", 1, 2, 2), host="h")
"""The far one asks for two GPUs, and n1 has one."""


def gpu_offer(node: str, gpus: int, *, cpu: int = 4, memory: int = 8) -> NodeOffer:
    """With so many GiB of memory, and a network card."""
    made = offer(node, cpu=cpu, gpus=gpus, memory=memory * GIB)
    card = Resource(name=f"{node}/network", kind="network", amount=10**10, unit="bit/s", owner=node)
    return made.model_copy(update={"resources": [*made.resources, card]})


def gpu_world(*specs: HostSpec, settings: Settings | None = None, more: Specs | None = None) -> World:
    """n1 with a GPU, n2 with two and n3 with none, each of four cores; the host, composed."""
    made = World(settings)
    made.apply(replace(more or Specs(), queues=QUEUES, hosts={s.name: s for s in specs or (FAR,)}))
    for name, gpus in zip(NODES, (1, 2, 0), strict=True):
        made.connect(name, gpu_offer(name, gpus, memory=4 if name == "n2" else 8))
    settle(made)
    return made


def free(w: World, provider: str) -> dict[str, int]:
    return {kind: w.state.book.free(provider, kind) for kind in ("cpu", "gpu")}


def start_of(w: World, number: int, task: int) -> Any:
    run = next(run for key, run in w.state.runs.items() if (key.job, key.task) == (number, task))
    return attempt_start(w.state, run, w.now)


def said(w: World, number: int) -> str:
    return explain(w.state, w.state.jobs[number], w.now).sentence


def end_all(w: World) -> None:
    for attempt in w.running():
        w.finish(attempt)
    tell(w)


# --- where they go, and what they take ------------------------------------------------------------------------------


def test_a_task_is_beside_the_far_gpus_and_takes_cores_of_their_node() -> None:
    w = gpu_world()
    assert w.state.hosts["h"].anchor == "n1"
    assert (free(w, "h"), free(w, "h@n2"), free(w, "n2")) == (
        {"cpu": 2000, "gpu": 1000}, {"cpu": 0, "gpu": 2000}, {"cpu": 4000, "gpu": 0},
    )  # fmt: skip
    number = w.submit(BOTH)
    tell(w)
    assert where(w, number) == {"near": {"n1": 1}, "far": {"n2": 1}} and letters(w, number) == "RR"
    # 2 - 1 cores and 1 - 1 GPUs of the host on its anchor; 2 - 2 GPUs beside, and 4 - 2 cores of n2
    assert (free(w, "h"), free(w, "h@n2"), free(w, "n2")) == (
        {"cpu": 1000, "gpu": 0}, {"cpu": 0, "gpu": 0}, {"cpu": 2000, "gpu": 0},
    )  # fmt: skip
    check(w)
    end_all(w)
    assert letters(w, number) == "DD"
    assert (free(w, "h@n2"), free(w, "n2")["cpu"]) == ({"cpu": 0, "gpu": 2000}, 4000)
    check(w)


def test_each_task_is_told_its_host_its_part_and_the_gpus_that_are_its_own() -> None:
    w = gpu_world()
    number = w.submit(BOTH)
    tell(w)
    near, far = start_of(w, number, 0), start_of(w, number, 1)
    assert (near.host, near.devices["gpu"]) == ("h", ["n1-gpu0"])
    assert (far.host, far.devices) == ("h", {"gpu": ["n2-gpu0", "n2-gpu1"]})
    assert far.environment == {
        "LAVALITE_GPU_NODES": "n2:n2-gpu0,n2-gpu1",
        "LAVALITE_NODES": "n1:1 n2:1",
        "LAVALITE_NODES_near": "n1:1",
        "LAVALITE_NODES_far": "n2:1",
        "LAVALITE_PART": "far",
        "LAVALITE_PART_INDEX": "0",
    }


def test_equal_tasks_that_start_together_are_seated_on_the_anchor_and_beside() -> None:
    w = gpu_world()
    number = w.submit(spec(host="h", array={"first": 0, "last": 2}, gang=Gang(), gpu_milli=1000))
    tell(w)
    assert sorted(run.node for key, run in w.state.runs.items() if key.job == number) == ["n1", "n2", "n2"]
    check(w)


def test_what_asks_for_no_gpu_and_what_is_alone_stays_on_the_anchor() -> None:
    w = gpu_world()
    # 2 cores has the host, and 3 are asked for: the four of n2 are none of its
    number = w.submit(job(part("a", 2, 1), part("b", 1, 1), host="h"))
    alone = w.submit(spec(host="h", array={"first": 0, "last": 1}, gpu_milli=1000))
    tell(w)
    assert letters(w, number) == "PPP" and letters(w, alone) == "RP"
    assert [run.node for key, run in w.state.runs.items() if key.job == alone] == ["n1"]
    # And nobody else is placed there: n1 has the cores that its host has not, and n3 no GPU
    other = w.submit(spec(gpu_milli=1000))
    tell(w)
    assert letters(w, other) == "P"
    check(w)


def test_all_start_or_none_and_who_waits_is_told_what_the_far_node_lacks() -> None:
    w = gpu_world()
    # n1 has two cores beside the host: three are free on n2 and n3 alone
    hogs = [w.submit(spec(cpu_milli=3000)) for _ in range(2)]
    tell(w)
    hog = next(key.job for key, run in w.state.runs.items() if run.node == "n2")
    assert hog in hogs
    number = w.submit(BOTH)
    tell(w)
    assert letters(w, number) == "PP" and free(w, "h@n2")["gpu"] == 2000
    told = explain(w.state, w.state.jobs[number], w.now)
    assert (told.nearest, told.lacks, told.held_by) == ("h@n2", {"cpu": 1000}, [f"job {hog} (3 cpu)"])
    assert "h@n2" in told.sentence
    w.finish(next(attempt for attempt in w.running() if attempt.job == hog))
    tell(w)
    assert letters(w, number) == "RR"
    check(w)


def test_a_drained_node_takes_none_and_what_runs_there_ends_with_its_job() -> None:
    w = gpu_world()
    w.feed(DrainRequested("n2", reason="repair"))
    number = w.submit(BOTH)
    tell(w)
    assert letters(w, number) == "PP" and "draining" in said(w, number)
    w.feed(ResumeRequested("n2"))
    tell(w)
    assert letters(w, number) == "RR"
    w.feed(CancelRequested(number))
    tell(w)
    assert letters(w, number) == "XX" and not w.agents["n2"].running
    check(w)


def test_what_the_page_types_goes_where_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(number: int) -> NodeOffer:
        return gpu_offer(f"n{number}", {1: 1, 2: 2}.get(number, 0), cpu=8 if number == 1 else 4, memory=32)

    typed = re.findall(r"^(lavalite submit --host .*)$", PAGE, re.MULTILINE)
    typist = Typist(monkeypatch, node)
    amounts = {"cpu": 8 * WHOLE, "memory": GIB, "gpu": 3 * WHOLE}
    define(typist.world, replace(FAR, name="analytics", amounts=amounts))
    settle(typist.world)
    assert [typist.type(text) for text in typed] == [0]
    assert where(typist.world, 1) == {"solver": {"n1": 1}, "far": {"n2": 2}}


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_single_task_that_asks_for_more_than_the_anchor_has_is_told_to_ask_by_parts() -> None:
    w = gpu_world()
    with pytest.raises(InputError, match=r"2 gpu.* can never be had here") as refused:
        admit(w.state, spec(host="h", gpu_milli=2000), w.now)
    assert refused.value.faults[0].hint == (
        "h has 1 on its anchor and 2 on n2, and one process uses those of one node: ask by --part, a task for each "
        "node."
    )
    admit(w.state, BOTH, w.now)
    with pytest.raises(InputError, match="can never be had here") as refused:
        admit(w.state, job(part("a", 1, 1, 1), part("b", 1, 1, 3), host="h"), w.now)
    assert refused.value.faults[0].field == "parts.b.request" and "--part" in refused.value.faults[0].hint
    with pytest.raises(InputError) as refused:
        admit(w.state, spec(host="h", cpu_milli=9000), w.now)
    assert "--part" not in refused.value.faults[0].hint


def test_a_gang_may_span_nodes_where_the_host_does() -> None:
    w = gpu_world()
    spans = job(part("a", 1, 1, 1), part("b", 1, 1, 1), host="h", gang=Gang(nodes_least=2))
    admit(w.state, spans, w.now)
    number = w.submit(spans)
    tell(w)
    assert sorted(run.node for key, run in w.state.runs.items() if key.job == number) == ["n1", "n2"]
    define(w, replace(FAR, amounts={**FAR.amounts, "gpu": 1000}, far={}, circuits={}), purge=True)
    w = gpu_world(replace(FAR, amounts={**FAR.amounts, "gpu": 1000}, far={}, circuits={}))
    with pytest.raises(InputError, match="on one node"):
        admit(w.state, spans, w.now)


# --- what becomes of the host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_loss", [FAIL, DEGRADE])
def test_a_lost_part_ends_what_is_beside_it_and_all_of_its_job(on_loss: str) -> None:
    w = gpu_world(replace(FAR, on_loss=on_loss))
    number = w.submit(BOTH)
    tell(w)
    broken = w.agents["n2"].parts
    broken.lose(w.state.hosts["h"].circuits[0].id)
    settle(w)
    tell(w)
    assert not w.agents["n2"].running and letters(w, number) == "FF"
    assert w.state.hosts["h"].state == ("composed" if on_loss == DEGRADE else "failed")
    check(w)


def test_a_degraded_host_offers_what_it_lost_to_nobody_until_it_is_back() -> None:
    w = gpu_world(replace(FAR, on_loss=DEGRADE))
    broken = w.agents["n2"].parts
    broken.failing = {"circuit"}
    broken.lose(w.state.hosts["h"].circuits[0].id)
    settle(w)
    assert w.state.hosts["h"].degraded and free(w, "h@n2")["gpu"] == 0
    number = w.submit(BOTH)
    tell(w)
    assert letters(w, number) == "PP"
    broken.failing = set()
    for _ in range(5):
        w.advance(40)
        settle(w)
    assert not w.state.hosts["h"].degraded
    tell(w)
    assert letters(w, number) == "RR"
    check(w)


def test_a_host_waits_for_what_is_beside_its_far_gpus_before_it_goes_or_gives_them_back() -> None:
    w = gpu_world()
    number = w.submit(BOTH)
    tell(w)
    near, far = sorted(w.running())
    w.finish(near)
    w.report("n1")
    smaller = replace(FAR, amounts={**FAR.amounts, "gpu": 1000}, far={}, circuits={})
    define(w, smaller)
    settle(w)
    assert w.state.hosts["h"].reason == "jobs use more of it than it is to have"
    define(w, purge=True)
    settle(w)
    assert w.state.hosts["h"].state == "draining" and w.state.book.holds("host/h")
    w.finish(far)
    tell(w)
    w.advance(1)
    settle(w)
    assert "h" not in w.state.hosts and letters(w, number) == "DD"
    assert w.state.book.kinds("h@n2") == [] and free(w, "n2") == {"cpu": 4000, "gpu": 2000}
    check(w)


def test_a_drained_host_takes_nothing_new_beside_its_gpus() -> None:
    w = gpu_world()
    w.feed(HostDrained("h"))
    number = w.submit(BOTH)
    tell(w)
    assert letters(w, number) == "PP"
    w.feed(HostDrained("h", undo=True))
    tell(w)
    assert letters(w, number) == "RR"


def test_another_leader_knows_what_is_beside() -> None:
    w = gpu_world()
    number = w.submit(BOTH)
    tell(w)
    w.change_leader()
    for name in NODES:
        w.connect(name)
    settle(w)
    tell(w)
    assert where(w, number) == {"near": {"n1": 1}, "far": {"n2": 1}} and free(w, "h@n2")["gpu"] == 0
    check(w)


# --- what others keep, and what counts ------------------------------------------------------------------------------


def test_what_a_reservation_keeps_of_the_node_is_kept_from_who_comes_beside() -> None:
    w = gpu_world()
    w.state.set_reservation(
        Reservation(
            name="r", owner="ada", nodes=["n2"], amounts={"cpu": 3000}, start=w.now, end=w.now + 500, made_at=w.now
        )
    )
    number = w.submit(BOTH)
    tell(w)
    assert letters(w, number) == "PP"  # 4 - 3 cores are left, and two are asked for
    w.advance(600)
    tell(w)
    assert letters(w, number) == "RR"
    check(w)


def test_a_planned_start_beside_keeps_cores_of_the_node_and_no_gpus_of_it() -> None:
    w = gpu_world(more=Specs())
    w.specs = replace(w.specs, queues={"normal": replace(QUEUES["normal"], planned_starts=1)})
    w.apply(w.specs)
    for _ in range(2):  # three cores of n2 and of n3; n1 has two left beside the host
        w.submit(spec(cpu_milli=3000, walltime_seconds=100))
    tell(w)
    first = w.submit(BOTH)
    tell(w)
    start = w.state.plan.starts.get(first)
    assert letters(w, first) == "PP" and start is not None and start.seats == {"h": 1, "h@n2": 1}
    # A core of n2 is free, one is free of n3: they would last past the start that is planned, at which two of n2's
    # four are kept and two are left
    behind = [w.submit(spec(cpu_milli=1000, walltime_seconds=1000)) for _ in range(6)]
    tell(w)
    there = [run.node for key, run in w.state.runs.items() if key.job in behind]
    assert sorted(there) == ["n1", "n1", "n2", "n3"], there
    w.advance(50)
    for attempt in w.running():
        if attempt.job < first:
            w.finish(attempt)
            tell(w)
    assert letters(w, first) == "RR", said(w, first)
    check(w)


def test_what_would_last_too_long_beside_a_planned_start_is_kept_off_its_node() -> None:
    w = gpu_world(more=Specs())
    w.apply(replace(w.specs, queues={"normal": replace(QUEUES["normal"], planned_starts=1)}))
    while not any(run.node == "n2" for run in w.state.runs.values()):
        w.submit(spec(cpu_milli=2000, walltime_seconds=100))
        tell(w)
    whole = job(part("near", 1, 1, 1), part("far", 1, 4, 2), host="h")  # all cores of n2
    first = w.submit(whole)
    tell(w)
    start = w.state.plan.starts.get(first)
    assert letters(w, first) == "PP" and start is not None and start.seats == {"h": 1, "h@n2": 1}
    behind = [w.submit(spec(cpu_milli=1000, walltime_seconds=1000)) for _ in range(10)]
    tell(w)
    assert all(run.node != "n2" for key, run in w.state.runs.items() if key.job in behind)
    check(w)


def test_who_is_beside_is_preempted_for_a_job_of_a_higher_queue() -> None:
    w = gpu_world()
    high = QueueSpec("high", 90, preemption=Preemption("requeue"))
    w.apply(replace(w.specs, queues=QUEUES | {"high": high}))
    low = w.submit(BOTH.model_copy(update={"rerunnable": True}))
    tell(w)
    assert letters(w, low) == "RR"
    number = w.submit(BOTH.model_copy(update={"queue": "high"}))
    tell(w)
    w.advance(1)
    tell(w)
    assert letters(w, number) == "RR" and set(letters(w, low)) <= {"P", "W"}, said(w, number)
    check(w)


def test_what_it_takes_of_the_node_counts_in_its_pool_and_what_is_the_hosts_does_not() -> None:
    quota = {"ml": {"cpu": Quota(4000)}}
    pools = {"all": PoolSpec("all", Selector.parse("*"), ("cpu", "memory", "gpu"), default=True, quota=quota)}
    w = gpu_world(more=Specs(pools=pools))
    number = w.submit(BOTH.model_copy(update={"group": "ml"}))
    tell(w)
    assert letters(w, number) == "RR"
    held = w.state.usage.of(Scope("pool", "all", "group", "ml"))
    assert {kind: n for kind, n in held.items() if n} == {"cpu": 2000, "tasks": 1}
    check(w)
    end_all(w)
    other = w.submit(BOTH.model_copy(update={"group": "others"}))
    tell(w)
    assert letters(w, other) == "PP" and "Quota" in said(w, other)


def test_the_cores_are_of_the_pool_that_is_named() -> None:
    pools = {name: PoolSpec(name, Selector.parse(node), ("cpu",)) for name, node in (("others", "n3"), ("far", "n2"))}
    w = gpu_world(more=Specs(pools=pools))

    def asks(pool: str) -> JobSpec:
        return job(part("near", 1, 1, 1), part("far", 1, 2, 2, pools={"cpu": pool}), host="h")

    refused = w.submit(asks("others"))
    tell(w)
    assert letters(w, refused) == "PP" and "not in the pool" in said(w, refused)
    number = w.submit(asks("far"))
    tell(w)
    assert letters(w, number) == "RR"


# --- whatever happens -----------------------------------------------------------------------------------------------


class Beside(ClusterRules):
    """Jobs on two hosts that have GPUs of n2, and others; nodes go and come, hosts are asked for and are not."""

    @initialize(limit=st.sampled_from([3, 128]), on_loss=st.sampled_from([FAIL, DEGRADE]))
    def begin(self, limit: int, on_loss: str) -> None:
        self.hosts = {"h": replace(FAR, on_loss=on_loss)}
        self.world = gpu_world(*self.hosts.values(), settings=Settings(max_txn_operations=limit))

    @rule(near=st.integers(0, 1), far=st.integers(1, 2), cpu=st.integers(1, 3), rerunnable=st.booleans())
    def submit_parts(self, near: int, far: int, cpu: int, rerunnable: bool) -> None:
        parts = [part("a", 1, 1, near), part("b", 1, cpu, far)]
        self.world.submit(job(*parts, host="h", rerunnable=rerunnable))

    @rule(tasks=st.integers(1, 3), gpu=st.sampled_from([500, 1000]))
    def submit_gang(self, tasks: int, gpu: int) -> None:
        array = {"first": 0, "last": tasks - 1}
        self.world.submit(spec(host="h", array=array, gang=Gang(), gpu_milli=gpu, walltime_seconds=60))

    @rule(cpu=st.integers(1, 4), gpu=st.sampled_from([0, 0, 1000]), host=st.sampled_from(["", "", "h"]))
    def submit(self, cpu: int, gpu: int, host: str) -> None:
        self.world.submit(spec(cpu_milli=cpu * 1000, gpu_milli=gpu, host=host, walltime_seconds=60))

    @rule(name=st.sampled_from(NODES), what=st.sampled_from(["cut", "connect", "connect", "reboot"]))
    def node(self, name: str, what: str) -> None:
        if what == "cut" and self.world.agents[name].connected:
            self.world.disconnect(name)
        elif what == "connect":
            self.world.connect(name)
        elif what == "reboot":
            self.world.reboot(name)
            self.world.agents[name].parts.reboot()

    @rule(gpus=st.sampled_from([1000, 2000, 3000]), on_loss=st.sampled_from([FAIL, DEGRADE]), gone=st.booleans())
    def ask_for(self, gpus: int, on_loss: str, gone: bool) -> None:
        self.hosts = {"h": replace(FAR, amounts={**FAR.amounts, "gpu": gpus}, on_loss=on_loss)}
        define(self.world, *({} if gone else self.hosts).values(), purge=gone)

    @rule(name=st.sampled_from(["n1", "n2"]), mended=st.booleans())
    def break_circuit(self, name: str, mended: bool) -> None:
        parts = self.world.agents[name].parts
        parts.failing = set() if mended else {"circuit"}
        for key in list(parts.has):
            parts.lose(key[0])
        self.world.parts_of(name)

    @rule()
    def all_carry_out(self) -> None:
        settle(self.world)

    @rule()
    def change_leader(self) -> None:
        self.world.now += 0.01
        self.world.change_leader()

    @invariant()
    def laws(self) -> None:
        if not hasattr(self, "world"):
            return
        check(self.world)
        held: dict[str, str] = {}
        state = self.world.state
        for key, run in state.runs.items():
            for share in state.book.shares(key.owner):
                for device in share.devices if share.amount >= WHOLE else ():
                    assert held.setdefault(device, key.owner) == key.owner, f"{device} is held twice"
                    assert device.startswith(run.node), f"{key} is on {run.node}, and holds {device}"

    def teardown(self) -> None:
        """Everything comes back, and everybody who works ends: nothing is held of a place any more."""
        if not hasattr(self, "world"):
            return
        w = self.world
        for agent in w.agents.values():
            agent.parts.failing = set()
        for _ in range(12):
            for name in NODES:
                if not w.agents[name].connected:
                    w.connect(name)
                w.report(name)
            settle(w)
            for attempt in w.running():
                w.finish(attempt)
            settle(w)
            w.advance(40)
            check(w)
        define(w, purge=True)
        for _ in range(6):
            for attempt in w.running():
                w.finish(attempt)
            settle(w)
            w.advance(40)
        check(w)
        assert not w.state.hosts and not [p for p, _, _ in w.state.book.accounts() if "@" in p]


TestBeside = Beside.TestCase
TestBeside.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
