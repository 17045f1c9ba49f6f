"""Special kinds are placed by amount and given out whole, by name: to jobs, and to logical hosts with their jobs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from control_world import World, offer, spec, world
from hosts_world import check, define, far_world, settle
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.control.admission import admit
from lavalite.control.events import Specs
from lavalite.control.explain import explain
from lavalite.control.views import job as job_view
from lavalite.control.views import task as task_view
from lavalite.mbatchd.hosts_here import _as_frame
from lavalite.model.decision import DecisionRecord
from lavalite.model.host import HostState, LogicalHost
from lavalite.model.job import Request, Share
from lavalite.model.resources import WHOLE, Device
from lavalite.model.selector import Selector
from lavalite.model.specs import HostSpec, Limits, NodeCapacity, PoolSpec, Preemption, QueueSpec, Quota
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Columns
from lavalite.placement.compose import plan_hosts
from lavalite.placement.filters import never_fits, refusal
from lavalite.placement.ranking import Ranking
from lavalite.placement.reasons import Reason, Refusal
from lavalite.placement.registry import POLICIES

QUEUES = {"normal": QueueSpec("normal", default=True)}
ACCEL = PoolSpec("accel", Selector.parse({"class": "accel"}), ("fpga",), default=True)


def specs(*pools: PoolSpec, hosts: dict[str, HostSpec] | None = None) -> Specs:
    return Specs({pool.name: pool for pool in pools}, QUEUES, hosts or {})


def given_to(made: World, job: int) -> list[str]:
    """What its one task holds of fpga, as people see it."""
    return task_view(made.state, made.state.jobs[job], 0)["special"].get("fpga", [])


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_each_job_has_a_device_of_its_own_and_the_next_waits_and_is_told_why() -> None:
    made = world(offer("n1", fpgas=2), offer("n2", cpu=16))
    jobs = [made.submit(spec(special={"fpga": 1})) for _ in range(3)]
    made.settle()
    assert [given_to(made, job) for job in jobs] == [["/dev/n1-fpga0"], ["/dev/n1-fpga1"], []]
    told = explain(made.state, made.state.jobs[jobs[2]], made.now)
    assert told.sentence == (
        "2 nodes: 1 offers none of a kind asked for, 1 has too little free; nearest n1 lacks 1 fpga."
    )
    assert told.held_by and told.asks.startswith("1 cpu, 1 fpga")
    made.finish(made.running()[0])
    made.settle()
    assert given_to(made, jobs[2]) == ["/dev/n1-fpga0"]


def test_what_no_node_has_is_refused() -> None:
    made = world(offer("n1", fpgas=2))
    for request, words in (
        (
            {"fpga": 3},
            "1 cpu, 3 fpga can never be had here: 1 node: 1 is too small even when empty; nearest n1 lacks 1",
        ),
        ({"smartnic": 1}, "1 offers none of a kind asked for"),
    ):
        with pytest.raises(InputError) as refused:
            admit(made.state, spec(special=request), made.now)
        assert words in refused.value.fault.message
    made.apply(specs(PoolSpec("licences", floating={"matlab": 2})))
    with pytest.raises(InputError, match="matlab is of no node: it floats, in pool licences"):
        admit(made.state, spec(special={"matlab": 1}), made.now)


def test_they_are_taken_of_the_pool_that_is_for_them() -> None:
    made = world(offer("n1", fpgas=1), offer("n2", fpgas=1, **{"class": "accel"}))
    made.apply(specs(ACCEL))
    first, second = (made.submit(spec(special={"fpga": 1})) for _ in range(2))
    made.settle()
    assert (given_to(made, first), given_to(made, second)) == (["/dev/n2-fpga0"], [])
    with pytest.raises(InputError, match="pool accel has no cpu"):
        request = Request(special={"fpga": 1}, pools={"cpu": "accel"})
        admit(made.state, spec().model_copy(update={"request": request}), made.now)


def test_limits_and_quotas_count_them() -> None:
    made = world(offer("n1", fpgas=4, **{"class": "accel"}))
    made.apply(specs(replace(ACCEL, limits=Limits(per_user={"fpga": 1}))))
    first, second = (made.submit(spec(special={"fpga": 1})) for _ in range(2))
    made.settle()
    assert given_to(made, first) and not given_to(made, second)
    assert "fpga" in explain(made.state, made.state.jobs[second], made.now).sentence
    made.apply(specs(replace(ACCEL, quota={"a": {"fpga": Quota(1)}, "b": {"fpga": Quota(2)}})))
    made.settle()
    jobs = [made.submit(spec(special={"fpga": 1}, group=group, user="x")) for group in ("b", "a", "a", "b")]
    made.settle()
    assert [bool(given_to(made, job)) for job in jobs] == [True, True, False, True]
    with pytest.raises(InputError, match="group a may have 1 fpga of pool accel"):
        admit(made.state, spec(special={"fpga": 2}, group="a"), made.now)


def test_a_device_that_vanishes_is_given_to_nobody_and_its_job_keeps_it() -> None:
    made = world(offer("n1", fpgas=2))
    first = made.submit(spec(special={"fpga": 1}))
    made.settle()
    left = offer("n1", fpgas=2)
    board = left.resources[-1]
    gone = board.model_copy(update={"amount": 1, "devices": board.devices[1:]})
    made.agents["n1"].offer = left.model_copy(update={"version": 2, "resources": [*left.resources[:-1], gone]})
    made.disconnect("n1")
    made.connect("n1")
    second = made.submit(spec(special={"fpga": 1}))
    made.settle()
    assert (given_to(made, first), given_to(made, second)) == (["/dev/n1-fpga0"], [])
    assert made.state.book.overcommitted() == []
    for attempt in made.running():
        made.finish(attempt)
    made.settle()
    assert given_to(made, second) == ["/dev/n1-fpga1"]
    made.check()


def test_a_new_leader_knows_who_holds_which() -> None:
    made = world(offer("n1", fpgas=2))
    first = made.submit(spec(special={"fpga": 1}))
    made.settle()
    made.change_leader()
    made.connect("n1")
    made.settle()
    second = made.submit(spec(special={"fpga": 1}))
    made.settle()
    assert (given_to(made, first), given_to(made, second)) == (["/dev/n1-fpga0"], ["/dev/n1-fpga1"])


def test_a_job_that_waits_has_its_start_planned_by_when_devices_come_free() -> None:
    made = world(offer("n1", cpu=16, fpgas=1))
    made.submit(spec(special={"fpga": 1}, walltime_seconds=100))
    made.settle()
    waits = made.submit(spec(special={"fpga": 1}, walltime_seconds=100))
    made.settle()
    made.advance(1)
    told = job_view(made.state, made.state.jobs[waits], made.now)
    planned = made.state.plan.starts[waits]
    assert made.now + 90 < planned.at < made.now + 300 and told["why"]
    beside = made.submit(spec(special={"fpga": 1}, walltime_seconds=10))
    made.settle()
    assert not given_to(made, beside)


def test_others_are_preempted_for_a_device() -> None:
    urgent = QueueSpec("urgent", 90, preemption=Preemption("requeue"))
    made = world(offer("n1", cpu=16, fpgas=1))
    made.apply(Specs({}, QUEUES | {"urgent": urgent}, {}))
    first = made.submit(spec(special={"fpga": 1}, rerunnable=True))
    made.settle()
    second = made.submit(spec(special={"fpga": 1}, queue="urgent"))
    made.settle()
    made.report("n1")
    made.settle()
    assert (given_to(made, first), given_to(made, second)) == ([], ["/dev/n1-fpga0"])


def test_a_gang_has_all_its_devices_or_none() -> None:
    made = world(offer("n1", fpgas=1), offer("n2", fpgas=1))
    alone = made.submit(spec(special={"fpga": 1}))
    made.settle()
    gang = made.submit(spec(special={"fpga": 1}, array={"first": 0, "last": 1}, gang={}))
    made.settle()
    assert given_to(made, gang) == []
    made.finish(made.running()[0])
    made.settle()
    job = made.state.jobs[gang]
    held = [task_view(made.state, job, at)["special"]["fpga"] for at in (0, 1)]
    assert sorted(held) == [["/dev/n1-fpga0"], ["/dev/n2-fpga0"]] and not given_to(made, alone)


def test_a_decision_is_replayed_with_them() -> None:
    from lavalite.control.decisions import record_of
    from lavalite.placement.replay import replay

    made = world(offer("n1", cpu=16), offer("n2", fpgas=1), offer("n3", fpgas=2))
    job = made.submit(spec(special={"fpga": 2}))
    made.settle()
    record = DecisionRecord.model_validate_json(record_of(made.state, job, None).model_dump_json())
    assert [one.node for one in replay(record)] == ["n3"] == [one.node for one in record.chosen]


# --- rows ---------------------------------------------------------------------------------------------------------


def columns(*rows: tuple[int, int]) -> Columns:
    """Rows of (free cores of 8, boards of 3)."""
    made = Columns()
    for number, (cores, boards) in enumerate(rows):
        has = {"cpu": 8 * WHOLE} | ({"fpga": 3} if boards >= 0 else {})
        made.set_row(f"n{number}", has, {"cpu": cores * WHOLE, "fpga": max(boards, 0)})
    return made


def test_why_not() -> None:
    made = columns((8, -1), (8, 1), (1, 3))
    two = RequestClass(Request(cpu_milli=2000, special={"fpga": 2}), {})
    why = refusal(made, two)
    assert why is not None and (why.nearest, why.lacks) == ("n1", {"fpga": 1})
    assert why.turned_away == {Reason.NO_KIND: 1, Reason.TOO_FEW_FREE: 2}
    assert never_fits(made, two) is None
    never = never_fits(made, RequestClass(Request(special={"fpga": 4}), {}))
    assert never is not None and never.turned_away == {Reason.NO_KIND: 1, Reason.TOO_SMALL: 2}


ROWS = st.lists(st.tuples(st.integers(0, 8), st.integers(-1, 3)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    rows=ROWS,
    changes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(-1, 3)), max_size=8),
    policy=st.sampled_from(sorted(POLICIES)),
    boards=st.integers(1, 2),
    cores=st.sampled_from([0, 500, 3000]),
    tasks=st.integers(1, 8),
)
def test_tasks_go_where_there_are_devices_for_them(
    rows: list[tuple[int, int]],
    changes: list[tuple[int, int, int]],
    policy: str,
    boards: int,
    cores: int,
    tasks: int,
) -> None:
    """No row takes more than it has boards for, all that could be placed are, and nothing of before counts."""
    made, wanted = columns(*rows), RequestClass(Request(cpu_milli=cores, special={"fpga": boards}), {})
    ranking = Ranking(wanted, POLICIES[policy])
    ranking.best(made)
    for row, free, left in changes:
        if row < len(rows):
            rows[row] = free, left
            has = {"cpu": 8 * WHOLE} | ({"fpga": 3} if left >= 0 else {})
            made.set_row(f"n{row}", has, {"cpu": free * WHOLE, "fpga": max(left, 0)})
    room = [min(max(left, 0) // boards, free * WHOLE // cores if cores else 99) for free, left in rows]
    placed = [0] * len(rows)
    for run in ranking.runs(made, tasks):
        placed[run.row] += run.tasks
    assert all(n <= most for n, most in zip(placed, room, strict=True))
    assert sum(placed) == min(tasks, sum(room))
    assert [bool(n) for n in room] == [row in wanted.rows_that_fit(made) for row in range(len(rows))]
    assert [wanted.tasks_on(made, row) for row in range(len(rows))] == wanted.fits(made).tolist() == room


# --- logical hosts --------------------------------------------------------------------------------------------------


def node(name: str, boards: int = 0, model: str = "U250", **labels: str) -> NodeCapacity:
    devices = {"fpga": tuple(Device(id=f"/dev/{name}-fpga{n}", model=model) for n in range(boards))} if boards else {}
    amounts = {"cpu": 16 * WHOLE} | ({"fpga": boards} if boards else {})
    return NodeCapacity(name, {k: [v] for k, v in labels.items()}, amounts, devices)


def dsp(name: str = "dsp", boards: int = 1, model: str = "", pool: str = "", cpu: int = 2) -> HostSpec:
    return HostSpec(
        name,
        {"cpu": cpu * WHOLE, "fpga": boards},
        special_models={"fpga": model} if model else {},
        pools={"fpga": pool} if pool else {},
    )


def test_a_host_is_anchored_where_its_devices_are() -> None:
    nodes = [node("n1"), node("n2", 2, "U280"), node("n3", 2)]
    taken = [Share(provider="n3", kind="fpga", amount=1, devices=["/dev/n3-fpga0"])]
    planned = plan_hosts([dsp(model="u250")], nodes, [], taken=taken)["dsp"]
    assert isinstance(planned, LogicalHost) and planned.anchor == "n3"
    assert [(p.id, p.amount, p.devices) for p in planned.parts if p.kind == "fpga"] == [
        ("dsp/fpga/n3", 1, ["/dev/n3-fpga1"])
    ]


def test_who_needs_none_is_put_elsewhere() -> None:
    plan = plan_hosts([HostSpec("plain", {"cpu": 2000})], [node("n1", 1), node("n2")], [])
    assert isinstance(plan["plain"], LogicalHost) and plan["plain"].anchor == "n2"


def test_why_a_host_is_refused() -> None:
    nodes = [node("n1", 1, **{"class": "accel"}), node("n2", 3), node("n3", **{"class": "accel"})]
    for asked, words in (
        (dsp(boards=2, pool="accel"), "1 is not in the pool asked for, 1 is too small even when empty"),
        (dsp(model="U280"), "2 have no device of the model asked for"),
        (replace(dsp(), amounts={"cpu": 1000, "nic": 1}), "3 offer none of a kind asked for"),
    ):
        answer = plan_hosts([asked], nodes, [ACCEL])["dsp"]
        assert isinstance(answer, Refusal) and words in answer.sentence(), answer.sentence()
    taken = [Share(provider="n1", kind="fpga", amount=1, devices=["/dev/n1-fpga0"])]
    answer = plan_hosts([dsp(pool="accel")], nodes, [ACCEL], taken=taken)["dsp"]
    assert isinstance(answer, Refusal) and answer.sentence().endswith("nearest n1 lacks 1 fpga.")


@settings(max_examples=100, deadline=None)
@given(
    boards=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    asked=st.lists(st.integers(0, 2), max_size=6),
    again=st.lists(st.integers(0, 2), max_size=6),
)
def test_no_plan_gives_a_device_twice(boards: list[int], asked: list[int], again: list[int]) -> None:
    """Also where hosts grow and shrink from one plan to the next; and what is asked for again stays as it is."""
    nodes = [node(f"n{at}", count) for at, count in enumerate(boards)]

    def wanted(counts: list[int]) -> list[HostSpec]:
        found = [dsp(f"h{at}", count) for at, count in enumerate(counts)]
        return [one if one.amounts["fpga"] else replace(one, amounts={"cpu": 2000}) for one in found]

    hosts: dict[str, LogicalHost] = {}
    for counts in (asked, again):
        plan = plan_hosts(wanted(counts), nodes, [], hosts)
        hosts |= {name: answer for name, answer in plan.items() if isinstance(answer, LogicalHost)}
        held = [device for host in hosts.values() for part in host.parts for device in part.devices]
        assert len(held) == len(set(held))
        assert all(len(p.devices) == p.amount for host in hosts.values() for p in host.parts if p.kind == "fpga")
        same = plan_hosts([one for one in wanted(counts) if one.name in plan], nodes, [], hosts)
        assert all(same[name] == hosts[name] for name, found in plan.items() if isinstance(found, LogicalHost))


def test_jobs_on_a_host_have_its_devices_and_no_others() -> None:
    made = world(offer("n1", cpu=16, fpgas=3))
    made.apply(specs(hosts={"dsp": dsp(boards=2)}))
    made.settle()
    host = made.state.hosts["dsp"]
    assert host.state is HostState.COMPOSED
    mine = [device for part in host.parts for device in part.devices]
    assert mine == ["/dev/n1-fpga0", "/dev/n1-fpga1"]
    outside = [made.submit(spec(special={"fpga": 1})) for _ in range(2)]
    inside = [made.submit(spec(host="dsp", cpu_milli=500, special={"fpga": 1})) for _ in range(3)]
    made.settle()
    assert [given_to(made, job) for job in outside] == [["/dev/n1-fpga2"], []]
    assert [given_to(made, job) for job in inside] == [[mine[0]], [mine[1]], []]
    made.check()


def test_a_host_gets_and_gives_back_devices_while_jobs_run_on_it() -> None:
    made = world(offer("n1", cpu=16, fpgas=3))
    made.apply(specs(hosts={"dsp": dsp(boards=1)}))
    made.settle()
    job = made.submit(spec(host="dsp", cpu_milli=500, special={"fpga": 1}))
    made.settle()
    made.apply(specs(hosts={"dsp": dsp(boards=3)}))
    made.settle()
    assert made.state.hosts["dsp"].amount("fpga") == 3 and given_to(made, job) == ["/dev/n1-fpga0"]
    made.apply(specs(hosts={"dsp": dsp(boards=1)}))
    made.settle()
    (part,) = [part for part in made.state.hosts["dsp"].parts if part.kind == "fpga"]
    assert part.devices == ["/dev/n1-fpga0"] == given_to(made, job)
    made.apply(specs(hosts={"dsp": replace(dsp(), amounts={"cpu": 2000})}))
    made.settle()
    assert made.state.hosts["dsp"].amount("fpga") == 1, "what a running job holds is not taken from it"
    made.check()


# --- of other nodes -------------------------------------------------------------------------------------------------


def wide(node: NodeCapacity) -> NodeCapacity:
    """With a card of 10Gbit/s."""
    return replace(node, amounts={**node.amounts, "network": 10**10})


def far_of(host: LogicalHost) -> list[tuple[str, int, list[str]]]:
    return [(p.provider, p.amount, p.devices) for p in host.parts if p.kind == "fpga" and host.is_far(p)]


def test_what_the_anchor_lacks_comes_from_others_whole_and_over_a_circuit() -> None:
    nodes = [wide(node("n1", 1)), wide(node("n2", 1, "U280")), wide(node("n3", 3))]
    nodes[2] = replace(nodes[2], amounts={**nodes[2].amounts, "cpu": 1000})
    asked = replace(dsp(boards=3, model="U250", cpu=4), far={"fpga": 2}, circuits={"fpga": 4 * 10**9})
    planned = plan_hosts([asked], nodes, [])["dsp"]
    assert isinstance(planned, LogicalHost), planned.sentence()
    assert planned.anchor == "n1" and far_of(planned) == [("n3", 2, ["/dev/n3-fpga0", "/dev/n3-fpga1"])]
    assert [(c.provider, c.bits_per_second) for c in planned.circuits] == [("n3", 4 * 10**9)]
    assert plan_hosts([asked], nodes, [], {"dsp": planned})["dsp"] == planned
    too_far = plan_hosts([replace(asked, far={"fpga": 1})], nodes, [])["dsp"]
    assert isinstance(too_far, Refusal) and "lack more than may come from other nodes" in too_far.sentence()
    fewer = plan_hosts([replace(asked, amounts={"cpu": 4000, "fpga": 2})], nodes, [], {"dsp": planned})["dsp"]
    assert isinstance(fewer, LogicalHost) and far_of(fewer) == [("n3", 1, ["/dev/n3-fpga0"])]


@settings(max_examples=100, deadline=None)
@given(
    boards=st.lists(st.integers(0, 3), min_size=2, max_size=4),
    asked=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=4),
    again=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=4),
)
def test_no_plan_over_several_nodes_gives_a_device_twice(
    boards: list[int], asked: list[tuple[int, int]], again: list[tuple[int, int]]
) -> None:
    nodes = [wide(node(f"n{at}", count)) for at, count in enumerate(boards)]
    hosts: dict[str, LogicalHost] = {}
    for counts in (asked, again):
        specs_now = [replace(dsp(f"h{at}", n), far={"fpga": min(n, far)}) for at, (n, far) in enumerate(counts)]
        plan = plan_hosts(specs_now, nodes, [], hosts)
        hosts |= {name: answer for name, answer in plan.items() if isinstance(answer, LogicalHost)}
        held = [device for host in hosts.values() for part in host.parts for device in part.devices]
        assert len(held) == len(set(held))
        for one in specs_now:
            if isinstance(plan[one.name], LogicalHost):
                host = hosts[one.name]
                assert host.amount("fpga") == one.amounts["fpga"]
                assert sum(amount for _, amount, _ in far_of(host)) <= one.far["fpga"]
                assert all(len(devices) == amount for _, amount, devices in far_of(host))
        same = plan_hosts(specs_now, nodes, [], hosts)
        assert all(same[name] == answer for name, answer in plan.items() if isinstance(answer, LogicalHost))


def test_a_host_over_several_nodes_holds_them_and_jobs_have_those_of_the_anchor() -> None:
    made = far_world()
    for name, boards in (("n1", 1), ("n2", 2)):
        offered, more = made.agents[name].offer, offer(name, fpgas=boards).resources[-1]
        made.agents[name].offer = offered.model_copy(update={"resources": [*offered.resources, more], "version": 2})
        made.disconnect(name)
        made.connect(name)
    define(made, HostSpec("dsp", {"cpu": 2000, "fpga": 3}, far={"fpga": 2}))
    settle(made)
    host = made.state.hosts["dsp"]
    assert host.state is HostState.COMPOSED, host.reason
    near, far = {"n1": (1, 2), "n2": (2, 1)}[host.anchor]
    assert sum(amount for _, amount, _ in far_of(host)) == far and host.circuits
    inside = [made.submit(spec(host="dsp", cpu_milli=500, special={"fpga": 1})) for _ in range(3)]
    settle(made)
    assert sum(bool(given_to(made, job)) for job in inside) == near
    assert not made.state.book.free("n1", "fpga") and not made.state.book.free("n2", "fpga")
    here = _as_frame(host)
    assert sum(len(devices) for devices in here.special_nodes["fpga"].values()) == far
    assert len(here.devices["fpga"]) == near
    check(made)
