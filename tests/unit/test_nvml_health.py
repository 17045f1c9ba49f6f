"""Whether GPUs are well: what makes one sick, how it gets well again, and that it does not flap."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played_nvml import RECORDINGS, Recording, playing

from lavalite.providers.health import CLEAN_LOOKS, WELL, Counters, HealthWatch, Verdict, judge, why_sick


@pytest.fixture
def box(tmp_path: Path) -> Recording:
    shutil.copy(RECORDINGS / "hgx8.json", tmp_path / "box.json")
    return Recording(tmp_path / "box.json")


def change(box: Recording, gpu: int, **answers: Any) -> None:
    with box.changed() as data:
        data["gpus"][gpu] |= answers


def test_what_it_is_used_for_is_told_from_0_to_1(box: Recording) -> None:
    watch = HealthWatch(events=False)
    with playing(box.path):
        states = list(watch.look(pytest.fail).values())
    assert len(states) == 8 and not any(state.sick for state in states)
    assert states[0].pids == (4242,) and states[1].pids == ()
    assert states[0].utilization == {
        "gpu": 0.97,
        "memory": pytest.approx(0.7533, abs=1e-4),
        "power": pytest.approx(0.8743, abs=1e-4),
        "temperature_celsius": 61.0,
    }


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    with playing(RECORDINGS / "mig2.json"):
        states = HealthWatch(events=False).look(pytest.fail)
    assert all(set(state.utilization) == {"memory", "power", "temperature_celsius"} for state in states.values())


def test_counters_make_sick_until_they_are_clean_for_some_looks(box: Recording) -> None:
    watch = HealthWatch(events=False)
    with playing(box.path):
        first = next(iter(watch.look(pytest.fail)))
        change(box, 0, ecc_uncorrected_volatile=2)
        assert "2 uncorrectable memory errors" in watch.look(pytest.fail)[first].sick
        change(box, 0, ecc_uncorrected_volatile=0)
        seen = [bool(watch.look(pytest.fail)[first].sick) for _ in range(CLEAN_LOOKS + 1)]
    assert seen == [True] * (CLEAN_LOOKS - 1) + [False, False]


def test_one_that_falls_off_is_sick_by_its_name_and_so_is_one_that_is_gone(box: Recording) -> None:
    watch = HealthWatch(events=False)
    with playing(box.path):
        ids = list(watch.look(pytest.fail))
        with box.changed() as data:
            data["gpus"][3] = {"error": 15}
            del data["gpus"][7]
        states = watch.look(pytest.fail)
    assert {gpu: state.sick.partition(";")[0] for gpu, state in states.items() if state.sick} == {
        ids[3]: "NVML says GPU is lost",
        ids[7]: "it is there no more",
    }


@pytest.mark.parametrize(("xid", "sick"), [(79, True), (48, True), (31, False), (43, False)])
def test_a_critical_xid_makes_sick_until_the_boot_and_one_of_a_program_does_not(
    box: Recording, xid: int, sick: bool
) -> None:
    watch = HealthWatch(events=True)
    with playing(box.path) as library:
        ids = list(watch.look(pytest.fail))
        assert library.open == 1, "it listens between looks"
        change(box, 5, events=[{"type": 8, "data": xid}])
        assert bool(watch.look(pytest.fail)[ids[5]].sick) is sick
        for _ in range(CLEAN_LOOKS + 2):
            states = watch.look(pytest.fail)
        assert {gpu for gpu, state in states.items() if state.sick} == ({ids[5]} if sick else set())
        assert list(watch.sick_until_boot) == ([ids[5]] if sick else [])
        watch.close()
        later = HealthWatch(events=False)
        later.add(watch.sick_until_boot)
        assert bool(later.look(pytest.fail)[ids[5]].sick) is sick


def test_events_of_others_are_heard_after_one_is_lost(box: Recording) -> None:
    watch = HealthWatch(events=True)
    with playing(box.path) as library:
        ids = list(watch.look(pytest.fail))
        with box.changed() as data:
            data["gpus"][0] = {"error": 15}
        watch.look(pytest.fail)
        change(box, 1, events=[{"type": 8, "data": 63}])
        assert "XID 63" in watch.look(pytest.fail)[ids[1]].sick
        watch.close()
        assert library.open == 0


def test_an_nvml_that_fails_makes_all_sick_that_were_known(box: Recording) -> None:
    watch, said = HealthWatch(events=True), list[str]()
    with playing(box.path):
        ids = list(watch.look(said.append))
        watch.close()
        with box.changed() as data:
            data["init_error"] = 9
        assert {gpu for gpu, state in watch.look(said.append).items() if state.sick} == set(ids)


@pytest.mark.parametrize("name", sorted(path.name for path in RECORDINGS.glob("*.json")))
def test_any_function_may_be_missing(name: str) -> None:
    """An older driver has not all of them."""
    calls = json.loads((RECORDINGS / name).read_text())
    assert calls["gpus"]
    optional = (
        "TotalEcc",
        "RemappedRows",
        "RetiredPages",
        "Utilization",
        "Power",
        "Processes",
        "Event",
        "Temperature",
    )

    def missing(of: str) -> Callable[[str, int], int]:
        return lambda function, gpu: 13 if of in function else 0

    for each in optional:
        watch = HealthWatch(events=True)
        with playing(RECORDINGS / name, missing(each)):
            states = watch.look(pytest.fail)
            watch.close()
        assert states and all(value >= 0 for state in states.values() for value in state.utilization.values())


SEEN = st.sampled_from(["", "", "", "errors"])
STEPS = st.lists(st.tuples(SEEN, st.sampled_from(["", "", "", "", "", "XID 79"])), max_size=40)


@given(steps=STEPS)
def test_it_is_well_only_after_enough_clean_looks_and_never_after_an_event(steps: list[tuple[str, str]]) -> None:
    verdict, clean = WELL, CLEAN_LOOKS
    reported = False
    for seen, event in steps:
        verdict = judge(verdict, seen, event)
        reported |= bool(event)
        clean = 0 if seen or event else clean + 1
        assert bool(verdict.reason) == (reported or clean < CLEAN_LOOKS)
        assert verdict.until_boot == reported


@given(
    st.builds(
        Counters,
        ecc_uncorrected=st.one_of(st.none(), st.integers(0, 3)),
        pages_pending=st.booleans(),
        rows_pending=st.booleans(),
        rows_failed=st.booleans(),
    )
)
def test_it_is_sick_exactly_if_any_counter_says_so(counters: Counters) -> None:
    bad = counters.ecc_uncorrected or counters.pages_pending or counters.rows_pending or counters.rows_failed
    assert bool(why_sick(counters)) == bool(bad)
    assert judge(Verdict(), why_sick(counters), "").reason == why_sick(counters)
