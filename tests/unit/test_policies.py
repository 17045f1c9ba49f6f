"""Policies choose as if the tasks were placed one by one, and the sums of their scores are these."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.model.job import Request
from lavalite.model.resources import WHOLE
from lavalite.placement.classes import RequestClass
from lavalite.placement.columns import Columns, DeviceRow
from lavalite.placement.filters import never_fits, refusal
from lavalite.placement.policies import POLICIES
from lavalite.placement.reasons import Reason

GIB = 1024**3


def columns(*rows: tuple[int, int, int]) -> Columns:
    """Rows of (cores, free cores, free GiB of 16)."""
    made = Columns()
    for number, (cores, free, memory) in enumerate(rows):
        capacity = {"cpu": cores * WHOLE, "memory": 16 * GIB}
        made.set_row(f"n{number}", capacity, {"cpu": free * WHOLE, "memory": memory * GIB})
    return made


def placed(made: Columns, policy: str, request: Request, tasks: int, after: int = -1) -> list[int]:
    wanted = RequestClass(request, {})
    return [run.row for run in POLICIES[policy].runs(wanted.choice(made, after), tasks) for _ in range(run.tasks)]


def test_first_fit_fills_in_the_order_of_rows() -> None:
    made = columns((4, 1, 16), (4, 2, 16), (4, 4, 16))
    assert placed(made, "first-fit", Request(cpu_milli=1000), 4) == [0, 1, 1, 2]
    assert placed(made, "first-fit", Request(cpu_milli=2000), 9) == [1, 2, 2]


def test_best_fit_takes_the_row_it_leaves_fullest() -> None:
    # One core more: n0 has 1 of 4 used: (1 + 1) / 4 = 50.  n1 has 5 of 8: (5 + 1) / 8 = 75.  n2 has 0 of 2: 50.
    made = columns((4, 3, 16), (8, 3, 16), (2, 2, 16))
    choice = RequestClass(Request(cpu_milli=1000), {}).choice(made)
    assert list(choice.fullness) == [50, 75, 50]
    # n1 until it is full (3 tasks); then n0, the first of the equals, until it is full; then n2.
    assert placed(made, "best-fit", Request(cpu_milli=1000), 7) == [1, 1, 1, 0, 0, 0, 2]


def test_best_fit_averages_over_what_is_asked_for() -> None:
    # cpu: (2 + 1) / 4 = 75, (1 + 1) / 4 = 50.  memory: (0 + 8) / 16 = 50, (8 + 8) / 16 = 100.
    # averages: (75 + 50) // 2 = 62, (50 + 100) // 2 = 75.
    made = columns((4, 2, 16), (4, 3, 8))
    request = Request(cpu_milli=1000, memory_bytes=8 * GIB)
    assert list(RequestClass(request, {}).choice(made).fullness) == [62, 75]
    assert placed(made, "best-fit", request, 2) == [1, 0]


def test_round_robin_goes_on_after_the_last() -> None:
    made = columns((2, 2, 16), (2, 0, 16), (2, 1, 16), (2, 2, 16))
    assert placed(made, "round-robin", Request(cpu_milli=1000), 9) == [0, 2, 3, 0, 3]
    assert placed(made, "round-robin", Request(cpu_milli=1000), 2, after=2) == [3, 0]


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
        if picked:
            assert wanted.pick_devices(made.devices(0)) == picked


ROWS = st.lists(
    st.tuples(st.integers(1, 8), st.integers(0, 8), st.integers(0, 16)).map(lambda r: (r[0], min(r[0], r[1]), r[2])),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(
    rows=ROWS,
    policy=st.sampled_from(sorted(POLICIES)),
    cpu=st.sampled_from([0, 500, 1000, 3000]),
    memory=st.sampled_from([0, GIB, 5 * GIB]),
    tasks=st.integers(0, 30),
    after=st.integers(-1, 8),
)
def test_runs_are_what_placing_one_by_one_gives(
    rows: list[tuple[int, int, int]], policy: str, cpu: int, memory: int, tasks: int, after: int
) -> None:
    request = Request(cpu_milli=cpu, memory_bytes=memory)
    assert placed(columns(*rows), policy, request, tasks, after) == _naive(rows, policy, request, tasks, after)


def _naive(rows: list[tuple[int, int, int]], policy: str, request: Request, tasks: int, after: int) -> list[int]:
    """Place one task, write the row anew, and look at all rows again."""
    free = [{"cpu": r[1] * WHOLE, "memory": r[2] * GIB} for r in rows]
    capacity = [{"cpu": r[0] * WHOLE, "memory": 16 * GIB} for r in rows]
    chosen: list[int] = []
    amounts = request.amounts()
    while len(chosen) < tasks:
        fitting = [i for i in range(len(rows)) if all(free[i][k] >= a for k, a in amounts.items())]
        if not fitting:
            break
        if policy == "first-fit":
            row = fitting[0]
        elif policy == "best-fit":
            full = {i: _fullness(capacity[i], free[i], amounts) for i in fitting}
            row = min(fitting, key=lambda i, full=full: (-full[i], i))
        else:
            row = min(fitting, key=lambda i, after=after: (i <= after, i))
        after = row
        chosen.append(row)
        for kind, amount in amounts.items():
            free[row][kind] -= amount
    return chosen


def _fullness(capacity: dict[str, int], free: dict[str, int], amounts: dict[str, int]) -> int:
    used = [(capacity[kind] - free[kind] + amount) * 100 // capacity[kind] for kind, amount in amounts.items()]
    return sum(used) // len(used) if used else 0


@settings(max_examples=100, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 4)), max_size=300))
def test_a_class_that_is_kept_up_row_by_row_says_what_a_new_one_says(changes: list[tuple[int, int]]) -> None:
    made = Columns()
    kept = RequestClass(Request(cpu_milli=1000), {})
    for name, free in changes:
        made.set_row(f"n{name}", {"cpu": 4000}, {"cpu": free * WHOLE})
        if name % 3 == 0:
            kept.fits(made)
    assert np.array_equal(kept.fits(made), RequestClass(Request(cpu_milli=1000), {}).fits(made))
