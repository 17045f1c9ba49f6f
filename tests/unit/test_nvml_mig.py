"""MIG instances on demand: all or nothing, whatever fails on the way, and never another's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from played_nvml import RECORDINGS, Library, Recording, playing

from lavalite.base.errors import InputError, LavaLiteError, RefusedError
from lavalite.providers.mig import (
    MigProfile,
    create_instance,
    destroy_instance,
    instances_of,
    mig_profiles,
    remove_unfinished,
)

GPU = "GPU-66666666-6666-4666-8666-666666666666"
OTHER = "GPU-77777777-7777-4777-8777-777777777777"
PROFILES = ["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"]


@pytest.fixture
def box(tmp_path: Path) -> Recording:
    shutil.copy(RECORDINGS / "mig2.json", tmp_path / "box.json")
    return Recording(tmp_path / "box.json")


def instances(box: Recording, gpu: int = 0) -> list[dict[str, Any]]:
    return list(box.read()["gpus"][gpu]["gpu_instances"])


def test_one_is_made_and_removed_and_its_gpus_mode_stays(box: Recording) -> None:
    before = box.read()["gpus"][0]
    with playing(box.path):
        made = create_instance(GPU, "1g.10gb")
        assert made.id.startswith("MIG-") and made.profile == "1g.10gb"
        assert made.memory_bytes == 9984 << 20
        assert [each.id for each in instances_of(GPU)] == [made.id]
        assert destroy_instance(made.id) is True
        assert destroy_instance(made.id) is False, "there is none any more"
    assert box.read()["gpus"][0] == before


def test_what_can_not_be_made_is_refused_with_why(box: Recording) -> None:
    with playing(box.path):
        with pytest.raises(InputError, match=r"makes no MIG instances '9g.90gb'\. It can make 1g.10gb, 1g.20gb"):
            create_instance(GPU, "9g.90gb")
        with pytest.raises(LavaLiteError, match=r"no room for one more MIG instance 7g\.80gb"):
            create_instance(OTHER, "7g.80gb")
        with pytest.raises(LavaLiteError, match="Not Found"):
            create_instance("GPU-none", "1g.10gb")
    assert len(instances(box, 1)) == 2


def test_one_that_is_used_stays_and_says_so(box: Recording) -> None:
    with playing(box.path):
        made = create_instance(GPU, "2g.20gb")
        with box.changed() as data:
            data["gpus"][0]["gpu_instances"][0]["compute_instances"][0]["in_use"] = True
        with pytest.raises(LavaLiteError, match=r"still in use by a process\. End its processes"):
            destroy_instance(made.id)
        assert [each.id for each in instances_of(GPU)] == [made.id]


def test_who_may_not_is_told_who_may(box: Recording) -> None:
    def fail(function: str, gpu: int) -> int:
        return 4 if function == "nvmlDeviceCreateGpuInstance" else 0

    with playing(box.path, fail), pytest.raises(RefusedError, match="by root only"):
        create_instance(GPU, "1g.10gb")


def test_without_a_driver_there_is_a_sentence(box: Recording) -> None:
    with box.changed() as data:
        data["init_error"] = 9
    with playing(box.path), pytest.raises(LavaLiteError, match="no NVIDIA driver"):
        create_instance(GPU, "1g.10gb")


@pytest.mark.parametrize(
    "function",
    [
        "nvmlGpuInstanceGetInfo",
        "nvmlGpuInstanceCreateComputeInstance",
        "nvmlDeviceGetMaxMigDeviceCount",
    ],
)
def test_half_an_instance_is_taken_back(box: Recording, function: str) -> None:
    failed = list[str]()

    def fail(called: str, gpu: int) -> int:
        # the first time only: what takes it back asks too
        if called == function and not failed:
            failed.append(called)
            return 23
        return 0

    with playing(box.path, fail), pytest.raises(LavaLiteError):
        create_instance(GPU, "3g.40gb")
    assert failed and instances(box) == []


class Dead(BaseException):
    """The process ends at this call."""


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("at", range(8))
def test_what_a_process_left_that_died_on_the_way_is_removed_and_nothing_else(
    box: Recording, at: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with playing(box.path):
        before = create_instance(GPU, "1g.10gb")
        foreign = create_instance(GPU, "2g.20gb")
        steps = iter(range(100))

        def dying(self: Library, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
            if "Instance" in name and next(steps) == at:
                raise Dead
            return call(self, name, function, *arguments)

        call = Library._call
        taken_back = "lavalite.providers.mig._take_back"
        with monkeypatch.context() as patched:
            patched.setattr(Library, "_call", dying)
            patched.setattr(taken_back, lambda *arguments: None)
            with pytest.raises(Dead):
                create_instance(GPU, "1g.10gb")
                raise Dead
    # whoever finds that out does so in another process
    with playing(box.path):
        left = len(instances(box)) - 2
        removed = remove_unfinished(GPU, "1g.10gb", {before.id} if kept else set())
        assert len(removed) == left + (not kept)
        assert [each.id for each in instances_of(GPU)] == ([before.id] if kept else []) + [foreign.id]
        assert len(instances(box)) == 1 + kept


def profiles_now() -> dict[str, MigProfile]:
    pynvml.nvmlInit()
    try:
        return {each.name: each for each in mig_profiles(pynvml, pynvml.nvmlDeviceGetHandleByUUID(GPU))}
    finally:
        pynvml.nvmlShutdown()


@pytest.mark.parametrize("profile", PROFILES)
def test_as_many_of_a_profile_as_a_gpu_has_room_for_are_a_gpu_at_most(box: Recording, profile: str) -> None:
    with playing(box.path):
        known = profiles_now()[profile]
        for _ in range(known.left):
            create_instance(GPU, profile)
        assert profiles_now()[profile].left == 0
    assert 0 < known.left * known.milli <= 1000


@settings(deadline=None, max_examples=40)
@given(steps=st.lists(st.one_of(st.sampled_from(PROFILES), st.integers(0, 6)), max_size=14))
def test_what_has_room_is_made_and_nothing_else(
    steps: list[str | int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("mig") / "box.json"
    shutil.copy(RECORDINGS / "mig2.json", file)
    made: list[tuple[str, str]] = []
    with playing(file):
        for step in steps:
            known = profiles_now()
            assert list(known) == sorted(known, key=lambda name: (known[name].milli, name))
            if isinstance(step, int):
                if step < len(made):
                    assert destroy_instance(made.pop(step)[0])
                continue
            try:
                made.append((create_instance(GPU, step).id, step))
            except LavaLiteError:
                assert known[step].left == 0
            else:
                assert known[step].left > 0
        assert {each.id for each in instances_of(GPU)} == {instance for instance, _ in made}
