"""Policies choose as if the tasks were placed one by one, and the sums of their scores are these."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.model.job import Request
from lavalite.model.resources import WHOLE
from lavalite.placement import board
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Columns, DeviceRow, Workload, WorkloadPart
from lavalite.placement.filters import never_fits, refusal
from lavalite.placement.ranking import Bounds, Ranking
from lavalite.placement.reasons import Reason
from lavalite.placement.registry import POLICIES, Rankings
from lavalite.placement.rows import Rows

GIB = 1024**3


def columns(*rows: tuple[int, int, int]) -> Columns:
    """Rows of (cores, free cores, free GiB of 16)."""
    made = Columns()
    for number, (cores, free, memory) in enumerate(rows):
        capacity = {"cpu": cores * WHOLE, "memory": 16 * GIB}
        made.set_row(f"n{number}", capacity, {"cpu": free * WHOLE, "memory": memory * GIB})
    return made


def gpu_columns(*rows: tuple[int, list[int]]) -> Columns:
    """Rows of (free cores of 8, what is free of each GPU)."""
    made = Columns()
    for number, (cores, gpus) in enumerate(rows):
        devices = [DeviceRow(f"g{at}", "A100", 80 * GIB, free) for at, free in enumerate(gpus)]
        capacity = {"cpu": 8000, "gpu": len(gpus) * WHOLE}
        made.set_row(f"n{number}", capacity, {"cpu": cores * WHOLE, "gpu": sum(gpus)}, devices)
    return made


def scores(made: Columns, policy: str, request: Request) -> list[int]:
    wanted = RequestClass(request, {})
    rows = np.array(wanted.rows_that_fit(made), dtype=np.int64)
    return [int(score) for score in POLICIES[policy].scores(wanted, Rows(made, wanted, rows))]


def placed(made: Columns, policy: str, request: Request, tasks: int, after: int = -1) -> list[int]:
    ranking = Ranking(RequestClass(request, {}), POLICIES[policy])
    return [run.row for run in ranking.runs(made, tasks, after) for _ in range(run.tasks)]


def test_first_fit_fills_in_the_order_of_rows() -> None:
    made = columns((4, 1, 16), (4, 2, 16), (4, 4, 16))
    assert placed(made, "first-fit", Request(cpu_milli=1000), 4) == [0, 1, 1, 2]
    assert placed(made, "first-fit", Request(cpu_milli=2000), 9) == [1, 2, 2]


def test_best_fit_takes_the_row_it_leaves_fullest() -> None:
    # One core more: n0 has 1 of 4 used: (1 + 1) / 4 = 50.  n1 has 5 of 8: (5 + 1) / 8 = 75.  n2 has 0 of 2: 50.
    made = columns((4, 3, 16), (8, 3, 16), (2, 2, 16))
    assert scores(made, "best-fit", Request(cpu_milli=1000)) == [50, 75, 50]
    # n1 until it is full (3 tasks); then n0, the first of the equals, until it is full; then n2.
    assert placed(made, "best-fit", Request(cpu_milli=1000), 7) == [1, 1, 1, 0, 0, 0, 2]


def test_best_fit_adds_up_what_is_asked_for() -> None:
    # cpu: (2 + 1) / 4 = 75, (1 + 1) / 4 = 50.  memory: (0 + 8) / 16 = 50, (8 + 8) / 16 = 100.
    # sums: 75 + 50 = 125, 50 + 100 = 150.
    made = columns((4, 2, 16), (4, 3, 8))
    request = Request(cpu_milli=1000, memory_bytes=8 * GIB)
    assert scores(made, "best-fit", request) == [125, 150]
    assert placed(made, "best-fit", request, 2) == [1, 0]


def test_round_robin_goes_on_after_the_last() -> None:
    made = columns((2, 2, 16), (2, 0, 16), (2, 1, 16), (2, 2, 16))
    assert placed(made, "round-robin", Request(cpu_milli=1000), 9) == [0, 2, 3, 0, 3]
    assert placed(made, "round-robin", Request(cpu_milli=1000), 2, after=2) == [3, 0]


def test_binpack_counts_what_is_not_asked_for_too() -> None:
    # n0: cpu (0 + 1) / 4 = 25, memory 0 / 16 = 0: (25 + 0) // 2 = 12.
    # n1: cpu (0 + 1) / 4 = 25, memory 8 / 16 = 50: (25 + 50) // 2 = 37.  best-fit sees only the cpu: 25 and 25.
    made = columns((4, 4, 16), (4, 4, 8))
    assert scores(made, "binpack", Request(cpu_milli=1000)) == [12, 37]
    assert placed(made, "binpack", Request(cpu_milli=1000), 5) == [1, 1, 1, 1, 0]
    assert placed(made, "best-fit", Request(cpu_milli=1000), 5) == [0, 0, 0, 0, 1]


def test_spread_takes_the_row_it_leaves_emptiest() -> None:
    # 100 - (1 + 1) / 4 = 50;  100 - (0 + 1) / 4 = 75;  100 - (6 + 1) / 8 = 100 - 87 = 13.
    made = columns((4, 3, 16), (4, 4, 16), (8, 2, 16))
    assert scores(made, "spread", Request(cpu_milli=1000)) == [50, 75, 13]
    # n1 75; then n0 and n1 are at 50: n0, then 25 against 50: n1, and so on in turns.
    assert placed(made, "spread", Request(cpu_milli=1000), 5) == [1, 0, 1, 0, 1]


def test_no_more_are_placed_than_asked_for_however_often_a_row_comes_again() -> None:
    # n1 takes one and is full; n0 has room for three more then, and one is left.
    made = columns((4, 4, 16), (4, 1, 16))
    assert placed(made, "round-robin", Request(cpu_milli=1000), 3) == [0, 1, 0]


def test_spread_goes_by_the_kind_that_is_scarcest() -> None:
    # n0: cpu (0 + 1) / 4 = 25, memory (12 + 2) / 16 = 87: 100 - 87 = 13.  n1: cpu 50, memory 2 / 16 = 12: 50.
    made = columns((4, 4, 4), (4, 3, 16))
    assert scores(made, "spread", Request(cpu_milli=1000, memory_bytes=2 * GIB)) == [13, 50]


def test_gpu_packing_puts_parts_where_a_gpu_is_begun() -> None:
    # Half a GPU and no cpu: level × 100000 - what is left of that GPU.
    # n0: no GPU in use: 1, 1000 - 500 left.  n1: one in use, too little left of it: 2, an idle one: 500 left.
    # n2: one begun with room: 3, 700 - 500 = 200 left.  n3: the same, none left.
    made = gpu_columns((8, [1000, 1000]), (8, [400, 1000]), (8, [700, 1000]), (8, [500]))
    half = Request(cpu_milli=0, gpu_milli=500)
    assert scores(made, "gpu-packing", half) == [99_500, 199_500, 299_800, 300_000]
    # n3 is full then; n2's begun one; then n1 and n2 are both at 199500: n1's idle one is begun and, at 300000,
    # filled; n2's likewise; then n0.
    assert placed(made, "gpu-packing", half, 8) == [3, 2, 1, 1, 2, 2, 0, 0]


def test_gpu_packing_keeps_idle_nodes_for_those_that_need_many() -> None:
    # Whole GPUs.  n0: none in use: 1, 1000 of 2000 left.  n1: one in use: 2, 500 + 1000 - 1000 = 500 left.
    made = gpu_columns((8, [1000, 1000]), (8, [500, 1000]))
    assert scores(made, "gpu-packing", Request(cpu_milli=0, gpu_milli=1000)) == [99_000, 199_500]
    # No GPU: nodes without GPUs 3, nodes that have none left 2, others 1, less what is free there.
    made = gpu_columns((8, [1000]), (8, [0]), (8, []), (8, [300]))
    assert scores(made, "gpu-packing", Request(cpu_milli=1000)) == [99_000, 200_000, 300_000, 99_700]


def workload(*parts: tuple[int, int, int]) -> Workload:
    """Parts of (cores, milli-GPUs, weight)."""
    made = []
    for cores, gpu, weight in parts:
        wanted = RequestClass(Request(cpu_milli=cores * WHOLE, gpu_milli=gpu), {})
        made.append(WorkloadPart(tuple(wanted.need[:, 0].tolist()), wanted.gpu, wanted.whole_gpus, weight))
    return Workload(tuple(made), 1)


def test_fgd_adds_least_to_what_the_usual_tasks_cannot_use() -> None:
    # The usual task is one whole GPU with 4 cores.  A task of half a GPU and no cpu:
    # n0, 8 cores, [1000, 1000]: fragment 0 before, 500 after (what is left of the begun one): +500.
    # n1, 8 cores, [500, 1000]: 500 before; after 0 (the begun one is used up): -500.
    # n2, 2 cores, [1000]: such a task never fits there: all is fragment, 1000 before, 500 after: -500.
    made = gpu_columns((8, [1000, 1000]), (8, [500, 1000]), (2, [1000]))
    made.workload = workload((4, 1000, 1))
    half = Request(cpu_milli=0, gpu_milli=500)
    assert [score - 500_000_000 for score in scores(made, "fgd", half)] == [-500, 500, 500]
    assert placed(made, "fgd", half, 3) == [1, 2, 2]


def test_fgd_weighs_the_tasks_by_how_often_they_come() -> None:
    # Half a GPU on n0 [1000] and n1 [700], of 8 cores each.  Usual: 3 × 300 milli-GPUs, 1 × a whole GPU.
    # n0: for the 300s 0 before, 500 left serves one: 0.  For the whole 0 before, 500 after: +500.  Sum 1 × 500.
    # n1: for the 300s 0 before, 200 left serves none: +200.  For the whole 700 before, 200 after: -500.
    #     Sum 3 × 200 - 1 × 500 = 100.
    made = gpu_columns((8, [1000]), (8, [700]))
    made.workload = workload((0, 300, 3), (0, 1000, 1))
    half = Request(cpu_milli=0, gpu_milli=500)
    assert [score - 500_000_000 for score in scores(made, "fgd", half)] == [-500, -100]


def test_fgd_keeps_cores_beside_free_gpus() -> None:
    # The usual task is one GPU with 4 cores.  A task of 5 cores and no GPU leaves 3 of 8 on n0: its GPU is of no use
    # any more, +1000.  On n1 the GPU is taken already: 0.  With no workload known, the fuller row is better.
    made = gpu_columns((8, [1000]), (8, [0]))
    made.workload = workload((4, 1000, 1))
    assert [score - 500_000_000 for score in scores(made, "fgd", Request(cpu_milli=5000))] == [-1000, 0]
    assert placed(made, "fgd", Request(cpu_milli=5000), 1) == [1]


def test_filters_count_each_node_once_under_its_first_reason() -> None:
    made = columns((4, 1, 16), (1, 1, 16), (4, 0, 2))
    made.set_row("n3", {"cpu": 4000, "memory": GIB}, {"cpu": 4000, "memory": GIB}, state=Reason.DRAINING)
    made.set_row("n4", {"cpu": 4000}, {"cpu": 4000})
    why = refusal(made, RequestClass(Request(cpu_milli=2000, memory_bytes=GIB), {}))
    assert why is not None
    assert why.turned_away == {Reason.NO_KIND: 1, Reason.TOO_SMALL: 1, Reason.DRAINING: 1, Reason.TOO_FEW_FREE: 2}
    # n0 lacks 1000 of 2000 milli-cores: 50.  n1 as much.  n2 lacks 2000: 100.  The first of the least is n0.
    assert (why.nearest, why.lacks) == ("n0", {"cpu": 1000})


def test_never_and_not_now_are_told_apart() -> None:
    made = columns((4, 0, 16))
    assert never_fits(made, RequestClass(Request(cpu_milli=4000), {})) is None
    why = never_fits(made, RequestClass(Request(cpu_milli=6000), {}))
    assert why is not None and (why.nearest, why.lacks) == ("n0", {"cpu": 2000})
    assert never_fits(Columns(), RequestClass(Request(), {})) is not None


def test_gpus_match_by_model_memory_and_what_is_left_of_each() -> None:
    made = Columns()
    devices = [
        DeviceRow("a0", "NVIDIA A100-SXM4-80GB", 80 * GIB, 1000),
        DeviceRow("a1", "NVIDIA A100-SXM4-80GB", 80 * GIB, 400),
        DeviceRow("v0", "Tesla V100", 16 * GIB, 1000),
    ]
    made.set_row("n0", {"gpu": 3000}, {"gpu": 2400}, devices)
    for fields, fits, picked in (
        ({"gpu_milli": 1000, "gpu_model": "a100"}, 1, ["a0"]),
        ({"gpu_milli": 2000, "gpu_model": "A100"}, 0, None),
        ({"gpu_milli": 2000}, 1, ["a0", "v0"]),
        ({"gpu_milli": 400}, 2 + 1 + 2, ["a1"]),
        ({"gpu_milli": 1000, "gpu_memory_bytes": 81 * GIB}, 0, None),
    ):
        wanted = RequestClass(Request(cpu_milli=0, **fields), {})  # type: ignore[arg-type]
        assert list(wanted.fits(made)) == [fits], fields
        assert wanted.tasks_on(made, 0) == fits, fields
        if picked:
            assert wanted.pick_devices(made.devices(0)) == picked


# --- laws -----------------------------------------------------------------------------------------------------------

NODES = st.lists(
    st.tuples(
        st.integers(1, 8),
        st.integers(0, 8),
        st.integers(0, 16),
        st.lists(st.sampled_from([0, 300, 500, 700, 1000]), max_size=3),
        st.sampled_from(["A100", "V100"]),
    ),
    max_size=8,
)
REQUESTS = st.builds(
    Request,
    cpu_milli=st.sampled_from([0, 500, 1000, 3000]),
    memory_bytes=st.sampled_from([0, GIB, 5 * GIB]),
    gpu_milli=st.sampled_from([0, 0, 300, 500, 1000, 2000]),
    gpu_model=st.just(""),
) | st.just(Request(cpu_milli=500, gpu_milli=500, gpu_model="V100"))


def fleet(nodes: list[tuple[int, int, int, list[int], str]]) -> Columns:
    made = Columns()
    for number, (cores, free, memory, gpus, model) in enumerate(nodes):
        devices = [DeviceRow(f"g{at}", model, 80 * GIB, left) for at, left in enumerate(gpus)]
        capacity = {"cpu": cores * WHOLE, "memory": 16 * GIB, "gpu": len(gpus) * WHOLE}
        left = {"cpu": min(cores, free) * WHOLE, "memory": memory * GIB, "gpu": sum(gpus)}
        made.set_row(f"n{number}", capacity, left, devices)
    made.workload = workload((1, 300, 3), (1, 1000, 2), (2, 2000, 1), (3, 0, 2))
    return made


def naive(made: Columns, policy: str, request: Request, tasks: int, after: int, most: dict[int, int]) -> list[int]:
    """Place one task, write the row, forget everything, and look at all rows again, one at a time."""
    chosen: list[int] = []
    wanted = RequestClass(request, {})
    while len(chosen) < tasks:
        found: list[tuple[int, bool, int]] = []
        for row in range(len(made)):
            if wanted.tasks_on(made, row) and chosen.count(row) < most.get(row, tasks):
                score = int(POLICIES[policy].scores(wanted, Rows(made, wanted, np.array([row])))[0])
                found.append((-score, POLICIES[policy].turns and row <= after, row))
        if not found:
            break
        after = min(found)[2]
        chosen.append(after)
        picked = wanted.pick_devices(made.devices(after))
        made.take(after, wanted.line, picked, min(WHOLE, request.gpu_milli))
    return chosen


@settings(max_examples=300, deadline=None)
@given(
    nodes=NODES,
    policy=st.sampled_from(sorted(POLICIES)),
    request=REQUESTS,
    tasks=st.integers(0, 30),
    after=st.integers(-1, 8),
    most=st.dictionaries(st.integers(0, 7), st.integers(0, 3), max_size=2),
)
def test_runs_are_what_placing_one_by_one_gives(
    nodes: list[tuple[int, int, int, list[int], str]],
    policy: str,
    request: Request,
    tasks: int,
    after: int,
    most: dict[int, int],
) -> None:
    most = {row: count for row, count in most.items() if row < len(nodes)}
    ranking = Ranking(RequestClass(request, {}), POLICIES[policy])
    runs = ranking.runs(fleet(nodes), tasks, after, Bounds(most) if most else None)
    assert [run.row for run in runs for _ in range(run.tasks)] == naive(
        fleet(nodes), policy, request, tasks, after, most
    )


@settings(max_examples=150, deadline=None)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    changes=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 4), st.sampled_from([[], [1000], [400]]))),
    request=REQUESTS,
)
def test_scores_that_are_kept_up_row_by_row_are_what_new_ones_are(
    policy: str, changes: list[tuple[int, int, list[int]]], request: Request
) -> None:
    made = Columns()
    made.workload = workload((1, 300, 3), (1, 1000, 2))
    wanted = RequestClass(request, {})
    kept = Ranking(wanted, POLICIES[policy])
    for at, (name, free, gpus) in enumerate(changes):
        devices = [DeviceRow("g0", "A100", 80 * GIB, left) for left in gpus]
        capacity = {"cpu": 4000, "memory": 8 * GIB, "gpu": 1000 * len(gpus)}
        left = {"cpu": free * WHOLE, "memory": 6 * GIB, "gpu": sum(gpus)}
        made.set_row(f"n{name}", capacity, left, devices, is_host=name == 7)
        if name % 3 == 0:
            assert kept.best(made, at) == Ranking(wanted, POLICIES[policy]).best(made, at)
    assert kept.runs(made, 20) == Ranking(wanted, POLICIES[policy]).runs(made, 20)


HUNDREDTH = 2**49
"""Doubles cannot tell a hundredfold of this from one more."""


@pytest.mark.parametrize("seed", range(24))
def test_classes_that_are_kept_up_together_choose_as_each_does_by_itself(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(board, "TOGETHER", chance.choice([0, 1, 3, 8, 64]))
    wide = seed % 3 == 0
    unit = HUNDREDTH if wide else GIB
    made, known = Columns(), Rankings(most=chance.choice([2, 3, 9]))
    asked = []
    for _ in range(8):
        memory = chance.choice([0, unit, 2 * unit - 1, 3 * unit])
        request = Request(
            cpu_milli=chance.choice([0, 300, 1000]), memory_bytes=memory, storage_bytes=chance.choice([0, 3])
        )
        asked.append(RequestClass(request, chance.choice([{}, {}, {"cpu": "a"}, {"cpu": "a", "memory": "b"}])))
    held, nodes = [known.of(wanted, "best-fit") for wanted in asked], chance.choice([4, 12, 90])
    for step in range(250):
        wanted = chance.choice(asked)
        kept = chance.choice(held) if step % 3 == 0 else known.of(wanted, "best-fit")
        anew = Ranking(kept.wanted, POLICIES["best-fit"])
        if step % 2:
            assert kept.runs(made, 4) == anew.runs(made, 4), step
        row = kept.best(made) if step % 5 else -1
        assert not step % 5 or row == anew.best(made), step
        what = chance.random()
        if what < 0.7 and row >= 0:
            made.take(row, kept.wanted.line)
        elif what > 0.98:
            pools = {name: [f"n{n}" for n in range(nodes) if chance.random() < 0.7] for name in ("a", "b")}
            made.set_pools(pools)
        else:
            capacity = {"cpu": 4000, "memory": 100 * unit, "storage": chance.choice([50, 60])}
            left = {"cpu": chance.choice([1, 4]) * WHOLE, "memory": chance.choice([70, 71]) * unit, "storage": 40}
            state, is_host = chance.choice(["", "", "", "", "draining"]), chance.random() < 0.1
            made.set_row(f"n{chance.randrange(nodes)}", capacity, left, state=state, is_host=is_host)


def test_a_million_tasks_are_placed_as_runs_and_not_one_by_one() -> None:
    made = Columns()
    for number in range(3):
        made.set_row(f"n{number}", {"cpu": 10**9}, {"cpu": 10**9})
    ranking = Ranking(RequestClass(Request(cpu_milli=1000), {}), POLICIES["best-fit"])
    assert ranking.runs(made, 2_500_000) == [(0, 1_000_000), (1, 1_000_000), (2, 500_000)]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_workload_that_changes_changes_only_who_looks_ahead(policy: str) -> None:
    made = gpu_columns((8, [1000]), (8, [700]))
    half = RequestClass(Request(cpu_milli=0, gpu_milli=500), {})
    kept = Ranking(half, POLICIES[policy])
    made.workload = workload((0, 300, 3), (0, 1000, 1))
    assert kept.best(made) == Ranking(half, POLICIES[policy]).best(made)
    # Only whole GPUs are asked for now: n0 is to be kept whole all the more, whatever 300s would lose on n1.
    made.workload = replace(workload((0, 300, 30), (0, 1000, 1)), version=2)
    assert kept.best(made) == Ranking(half, POLICIES[policy]).best(made)
