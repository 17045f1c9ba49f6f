"""Compute groups on this machine: planners that die, GPUs that fall sick, parts of GPUs, state files that are bad."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from played_nvml import RECORDINGS, Recording, plain_gpus, playing

from lavalite.base.errors import LavaLiteError, UnreachableError
from lavalite.groups import ComputeGroupManager, InsufficientResourcesError, LocalComputeResourceProvider
from lavalite.groups.errors import UnknownGroupError
from lavalite.groups.local.processes import ask_to_end, marked

HERE = Path(__file__).parent
ONE = {"gpu": 1, "cpu": 0.1}
GPUS = [f"GPU-{number}" for number in range(4)]
DEADLINE_SECONDS = 60.0
XID = {"type": 8, "data": 79}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Recording]:
    """Four GPUs that have nothing to do with each other, in a file that tests change."""
    (tmp_path / "box.json").write_text(json.dumps(plain_gpus(GPUS)))
    with playing(tmp_path / "box.json"):
        yield Recording(tmp_path / "box.json")


@pytest.fixture
def mig_box(tmp_path: Path) -> Iterator[Recording]:
    shutil.copy(RECORDINGS / "mig2.json", tmp_path / "box.json")
    with playing(tmp_path / "box.json"):
        yield Recording(tmp_path / "box.json")


@contextlib.asynccontextmanager
async def opened(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[LocalComputeResourceProvider, Any]]:
    options.setdefault("check_seconds", None)
    provider = await LocalComputeResourceProvider.open(tmp_path / "groups.db", **options)
    async with ComputeGroupManager(provider) as manager:
        yield provider, manager


def change(box: Recording, gpu: int, **answers: Any) -> None:
    with box.changed() as data:
        data["gpus"][gpu] |= answers


def lose(box: Recording, gpu: int) -> None:
    with box.changed() as data:
        data["gpus"][gpu] = {"error": 15}


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS:g} s"
        await asyncio.sleep(0.05)
    return found


def devices(*groups: Any) -> list[str]:
    return [gpu["id"] for group in groups for gpu in group.resources["gpus"]]


# --- planners that are killed -------------------------------------------------------------------------------------

PLANNER = """
    import asyncio, os, subprocess, sys
    from pathlib import Path
    from lavalite.groups import ComputeGroupManager, LocalComputeResourceProvider

    async def main():
        provider = await LocalComputeResourceProvider.open(Path(sys.argv[1]), check_seconds=None)
        async with ComputeGroupManager(provider) as manager:
            for component in ("alone", "served"):
                group = await manager.allocate_compute_group(component, {"gpu": 1, "cpu": 0.1})
                if component == "served":
                    child = subprocess.Popen(["sleep", "600"], env={**os.environ, **group.environment})
                    print(child.pid, flush=True)
            await manager.allocate_compute_group("kept", {"gpu": 1, "cpu": 0.1}, {"lifetime": "manual"})
            created = await manager.create_compute_group({"gpu": 1, "cpu": 0.3})
            await manager.allocate_compute_group("taker", {"gpu": 1, "cpu": 0.1}, {"group": created.id})
            print("ready", flush=True)
            await asyncio.sleep(600)

    asyncio.run(main())
"""


def start(tmp_path: Path, program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "groups.db"), *arguments],
        env=os.environ
        | {"PYTHONPATH": str(HERE / "fake_gpus"), "NVML_RECORDING": str(tmp_path / "box.json")}
        | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_what_a_killed_planner_had_is_free_but_for_what_is_used_or_kept(box: Recording, tmp_path: Path) -> None:
    planner = start(tmp_path, PLANNER)
    assert planner.stdout is not None
    child = int(planner.stdout.readline())
    assert planner.stdout.readline() == "ready\n"
    try:
        async with opened(tmp_path) as (_, manager):
            by = {group.component: group for group in await manager.list_compute_groups()}
            assert set(by) == {"alone", "served", "kept", "taker"}
            assert by["served"].environment["CUDA_VISIBLE_DEVICES"] == devices(by["served"])[0]
            with pytest.raises(InsufficientResourcesError):
                await manager.allocate_compute_group("next", ONE)
            planner.kill()
            planner.wait()
            # who asks for room gets what nobody uses any more
            took = await manager.allocate_compute_group("next", ONE)
            assert devices(took) == devices(by["alone"]) or devices(took) == devices(by["taker"])
            left = {group.id: group for group in await manager.list_compute_groups()}
            assert by["alone"].id not in left and left[by["served"].id].component == "served"
            assert left[by["kept"].id].allocation_state == "allocated"
            if by["taker"].id != took.id:
                assert left[by["taker"].id].allocation_state == "free"
            # the child with the mark keeps its group, until it ends; draining asks it to
            assert await manager.drain_compute_group(by["served"].id)

            async def gone() -> bool:
                with contextlib.suppress(UnknownGroupError):
                    await manager.list_compute_groups()
                    await manager.get_compute_group(by["served"].id)
                    return False
                return True

            await until(gone)
    finally:
        planner.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


async def test_whoever_waits_gets_what_a_killed_planner_had(box: Recording, tmp_path: Path) -> None:
    planner = start(tmp_path, PLANNER)
    assert planner.stdout is not None
    child = int(planner.stdout.readline())
    assert planner.stdout.readline() == "ready\n"
    try:
        async with opened(tmp_path, check_seconds=0.1) as (_, manager):
            waiting = asyncio.create_task(manager.allocate_compute_group("next", ONE, {"wait": "60s"}))
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done
            planner.kill()
            planner.wait()
            assert (await asyncio.wait_for(waiting, DEADLINE_SECONDS)).component == "next"
    finally:
        planner.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


async def test_another_boot_ends_what_was_of_processes_and_keeps_the_rest(box: Recording, tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, manager):
        ours = await manager.allocate_compute_group("decode", ONE)
        kept = await manager.allocate_compute_group("prefill", ONE, {"lifetime": "manual"})
        free = await manager.create_compute_group(ONE)
    with contextlib.closing(sqlite3.connect(tmp_path / "groups.db")) as db, db:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        other = boot[::-1] if boot != boot[::-1] else "0" * len(boot)
        db.execute("UPDATE versions SET value = CAST(replace(CAST(value AS TEXT), ?, ?) AS BLOB)", (boot, other))
    async with opened(tmp_path) as (_, manager):
        left = {group.id: group.allocation_state for group in await manager.list_compute_groups()}
        assert left == {kept.id: "allocated", free.id: "free"} and ours.id not in left


def test_only_processes_that_carry_the_very_mark_are_of_a_group() -> None:
    def run(**environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"], **environment})

    started = [
        run(LAVALITE_COMPUTE_GROUP="g1"),
        run(LAVALITE_COMPUTE_GROUP="g11"),
        run(OLD_LAVALITE_COMPUTE_GROUP="g1"),
        run(ABOUT="LAVALITE_COMPUTE_GROUP=g1"),
        run(FIRST="x", LAVALITE_COMPUTE_GROUP="g2"),
    ]
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while set(found := marked(["g1", "g2", "g3"])) != {"g1", "g2"}:  # forked ones have our environment at first
            assert time.monotonic() < deadline
        assert [each.pid for each in found["g1"]] == [started[0].pid]
        assert [each.pid for each in found["g2"]] == [started[4].pid]
        # one that started later with the same pid is no process of the group
        later = found["g1"][0].model_copy(update={"start_ticks": found["g1"][0].start_ticks + 1})
        ask_to_end([later, found["g2"][0]])
        assert started[4].wait(DEADLINE_SECONDS) == -signal.SIGTERM
        assert started[0].poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()


# --- GPUs that fall sick or vanish --------------------------------------------------------------------------------


async def test_a_sick_gpu_is_given_to_nobody_and_its_group_says_so(box: Recording, tmp_path: Path) -> None:
    async with opened(tmp_path) as (provider, manager):
        group = await manager.allocate_compute_group("decode", ONE)
        held = GPUS.index(devices(group)[0])
        other = next(number for number in range(4) if number != held)
        told: list[dict[str, Any]] = []

        async def listen() -> None:
            async for each in manager.watch():
                told.append(each)  # noqa: PERF401 - one after the other, as they come

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        for gpu in (held, other):
            change(box, gpu, ecc_uncorrected_volatile=2)
        await provider.check()

        async def heard() -> bool:
            return any(each["id"] == group.id and each["state"] == "failed" for each in told)

        await until(heard)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        found = await manager.get_compute_group(group.id)
        assert found.allocation_state == "failed"
        assert f"GPU {GPUS[held]} of {found.node_id} is sick: 2 uncorrectable memory errors" in found.reason
        (node,) = await manager.list_compute_nodes()
        health = {gpu["id"]: gpu["health"] for gpu in node.resources["gpus"]}
        assert {gpu for gpu, why in health.items() if why != "ok"} == {GPUS[held], GPUS[other]}
        got = [await manager.allocate_compute_group("more", ONE) for _ in range(2)]
        assert not set(devices(*got)) & {GPUS[held], GPUS[other]}
        with pytest.raises(InsufficientResourcesError):
            await manager.allocate_compute_group("more", ONE)
        # it is well again once its counters are clean for a while
        for gpu in (held, other):
            change(box, gpu, ecc_uncorrected_volatile=0)
        for _ in range(3):
            await provider.check()
        assert (await manager.get_compute_group(group.id)).allocation_state == "allocated"
        assert devices(await manager.allocate_compute_group("more", ONE)) == [GPUS[other]]


async def test_an_xid_that_one_planner_heard_counts_for_all_until_the_boot(box: Recording, tmp_path: Path) -> None:
    async with opened(tmp_path) as (provider, _):
        change(box, 2, events=[XID])
        await provider.check()
    async with opened(tmp_path) as (_, manager):
        with pytest.raises(InsufficientResourcesError):
            await manager.allocate_compute_group("decode", {"gpu": 4, "cpu": 0.1})
        group = await manager.allocate_compute_group("decode", {"gpu": 3, "cpu": 0.1})
        assert GPUS[2] not in devices(group) and await manager.deallocate_compute_group(group.id)
    note = json.loads((tmp_path / "groups.db.sick").read_text())
    assert list(note["gpus"]) == [GPUS[2]]
    (tmp_path / "groups.db.sick").write_text(json.dumps(note | {"boot_id": "before"}))
    async with opened(tmp_path) as (_, manager):
        await manager.allocate_compute_group("prefill", {"gpu": 4, "cpu": 0.1})


async def test_a_gpu_that_vanishes_fails_its_group_and_is_missed_by_nobody_else(
    box: Recording, tmp_path: Path
) -> None:
    async with opened(tmp_path) as (provider, manager):
        group = await manager.allocate_compute_group("decode", ONE, {"lifetime": "manual"})
        lose(box, GPUS.index(devices(group)[0]))
        await provider.check()
        assert (await manager.get_compute_group(group.id)).allocation_state == "failed"
    # also for who comes later, and has never seen it
    async with opened(tmp_path) as (_, manager):
        found = await manager.get_compute_group(group.id)
        assert found.allocation_state == "failed" and devices(group)[0] in found.reason
        others = [await manager.allocate_compute_group("more", ONE) for _ in range(3)]
        assert len({*devices(*others), *devices(group)}) == 4
        assert await manager.deallocate_compute_group(group.id)
        with pytest.raises(InsufficientResourcesError):
            await manager.allocate_compute_group("more", ONE)


async def test_the_check_in_the_background_sees_it_by_itself(box: Recording, tmp_path: Path) -> None:
    async with opened(tmp_path, check_seconds=0.05) as (_, manager):
        group = await manager.allocate_compute_group("decode", ONE)
        change(box, GPUS.index(devices(group)[0]), remapped_rows=[0, 9, 0, 1])

        async def failed() -> bool:
            return bool((await manager.get_compute_group(group.id)).allocation_state == "failed")

        await until(failed)


async def test_what_is_used_is_told(box: Recording, tmp_path: Path) -> None:
    change(box, 0, utilization=[50, 10], temperature_celsius=66)
    async with opened(tmp_path) as (_, manager):
        (node,) = await manager.list_compute_nodes()
        assert 0 <= node.utilization["cpu"] <= 1 and 0 < node.utilization["memory"] <= 1
        first = next(gpu for gpu in node.resources["gpus"] if gpu["id"] == GPUS[0])
        assert (first["utilization"]["gpu"], first["utilization"]["temperature_celsius"]) == (0.5, 66.0)
        group = await manager.allocate_compute_group("decode", {"gpu": 4, "cpu": 0.1})
        assert (await manager.get_compute_group(group.id)).utilization["gpu"] == 0.125


# --- parts of GPUs ----------------------------------------------------------------------------------------------


async def test_a_mig_instance_is_made_for_a_group_and_removed_with_it(mig_box: Recording, tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, manager):
        small = await manager.allocate_compute_group("small", {"gpu": 0.1, "cpu": 0.1})
        (made,) = small.environment["CUDA_VISIBLE_DEVICES"].split(",")
        gpu = mig_box.read()["gpus"][0]
        assert [c["uuid"] for i in gpu["gpu_instances"] for c in i["compute_instances"]] == [made]
        assert devices(small) == [gpu["uuid"]]
        # the first GPU is divided on demand; what others made of the second is given out as it is
        asked = {"gpu": {"count": 1, "mig": "3g.40gb"}, "cpu": 0.1}
        large = [await manager.allocate_compute_group("large", asked) for _ in range(2)]
        seen = {group.environment["CUDA_VISIBLE_DEVICES"] for group in large}
        assert len(seen) == 2 and "MIG-c7384736-a75d-5afc-978f-d2f1294409fd" in seen
        for group in [small, *large]:
            await manager.deallocate_compute_group(group.id)
        assert mig_box.read()["gpus"][0]["gpu_instances"] == []
        assert len(mig_box.read()["gpus"][1]["gpu_instances"]) == 2, "others' stay"


DYING = """
    import asyncio, os, signal, sys
    from pathlib import Path
    import pynvml
    from lavalite.groups import ComputeGroupManager, LocalComputeResourceProvider

    library, last = pynvml.nvmlLib, sys.argv[2]
    call = library._call

    def dying(name, function, *arguments):
        answer = call(name, function, *arguments)
        if name == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    library._call = dying

    async def main():
        provider = await LocalComputeResourceProvider.open(Path(sys.argv[1]), check_seconds=None)
        async with ComputeGroupManager(provider) as manager:
            group = await manager.allocate_compute_group("small", {"gpu": 0.1, "cpu": 0.1})
            await manager.deallocate_compute_group(group.id)

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    "last",
    [
        "nvmlDeviceCreateGpuInstance",
        "nvmlGpuInstanceCreateComputeInstance",
        "nvmlComputeInstanceDestroy",
        "nvmlGpuInstanceDestroy",
    ],
)
async def test_who_dies_while_making_or_removing_an_instance_leaves_nothing(
    mig_box: Recording, tmp_path: Path, last: str
) -> None:
    dying = await asyncio.to_thread(start, tmp_path, DYING, last)
    assert await asyncio.to_thread(dying.wait, DEADLINE_SECONDS) == -signal.SIGKILL
    async with opened(tmp_path) as (_, manager):
        assert await manager.list_compute_groups() == []
        group = await manager.allocate_compute_group("whole", {"gpu": {"count": 1, "mig": "7g.80gb"}, "cpu": 0.1})
        assert len(mig_box.read()["gpus"][0]["gpu_instances"]) == 1
        await manager.deallocate_compute_group(group.id)
    assert mig_box.read()["gpus"][0]["gpu_instances"] == []


async def test_what_a_dead_planners_process_still_uses_stops_nobody_else(mig_box: Recording, tmp_path: Path) -> None:
    dying = await asyncio.to_thread(start, tmp_path, DYING, "nvmlGpuInstanceCreateComputeInstance")
    assert await asyncio.to_thread(dying.wait, DEADLINE_SECONDS) == -signal.SIGKILL
    with mig_box.changed() as data:
        data["gpus"][0]["gpu_instances"][0]["compute_instances"][0]["in_use"] = True
    async with opened(tmp_path) as (_, manager):
        (left,) = await manager.list_compute_groups()
        assert left.component == "small"
        other = await manager.allocate_compute_group("other", {"gpu": 0.1, "cpu": 0.1})
        with mig_box.changed() as data:
            del data["gpus"][0]["gpu_instances"][0]["compute_instances"][0]["in_use"]
        assert [group.id for group in await manager.list_compute_groups()] == [other.id]
        await manager.deallocate_compute_group(other.id)
    assert mig_box.read()["gpus"][0]["gpu_instances"] == []


async def test_a_group_on_a_gpu_that_is_lost_can_be_given_back(mig_box: Recording, tmp_path: Path) -> None:
    async with opened(tmp_path) as (provider, manager):
        group = await manager.allocate_compute_group("small", {"gpu": 0.1, "cpu": 0.1})
        lose(mig_box, 0)
        await provider.check()
        assert (await manager.get_compute_group(group.id)).allocation_state == "failed"
        assert await manager.deallocate_compute_group(group.id)
        assert await manager.list_compute_groups() == []


async def test_an_instance_that_is_still_used_keeps_its_group_until_it_is_not(
    mig_box: Recording, tmp_path: Path
) -> None:
    async with opened(tmp_path) as (_, manager):
        group = await manager.allocate_compute_group("small", {"gpu": 0.1, "cpu": 0.1})
        with mig_box.changed() as data:
            data["gpus"][0]["gpu_instances"][0]["compute_instances"][0]["in_use"] = True
        with pytest.raises(LavaLiteError, match="still in use"):
            await manager.deallocate_compute_group(group.id)
        # nobody has it, and nobody else gets what it holds
        other = await manager.allocate_compute_group("other", {"gpu": 0.1, "cpu": 0.1})
        assert other.environment["CUDA_VISIBLE_DEVICES"] != group.environment["CUDA_VISIBLE_DEVICES"]
        with mig_box.changed() as data:
            del data["gpus"][0]["gpu_instances"][0]["compute_instances"][0]["in_use"]
        assert await manager.deallocate_compute_group(group.id)
        await manager.deallocate_compute_group(other.id)
    assert mig_box.read()["gpus"][0]["gpu_instances"] == []


async def test_after_a_boot_a_group_that_stays_has_its_instance_again(mig_box: Recording, tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, manager):
        group = await manager.allocate_compute_group("small", {"gpu": 0.1, "cpu": 0.1}, {"lifetime": "manual"})
    with mig_box.changed() as data:
        data["gpus"][0]["gpu_instances"] = []
    async with opened(tmp_path) as (_, manager):
        again = (await manager.get_compute_group(group.id)).environment["CUDA_VISIBLE_DEVICES"]
        (there,) = mig_box.read()["gpus"][0]["gpu_instances"]
        assert [compute["uuid"] for compute in there["compute_instances"]] == [again]
        assert again != group.environment["CUDA_VISIBLE_DEVICES"]


@pytest.fixture
def mps(box: Recording, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "mps"
    monkeypatch.setattr("lavalite.groups.local.provider.mps_folder", lambda state: folder)
    monkeypatch.setenv("PATH", f"{HERE / 'fake_mps'}:{os.environ['PATH']}")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # what was left of the servers ends then


async def test_parts_by_mps_share_a_gpu_and_its_server(mps: Path, tmp_path: Path) -> None:
    half = {"gpu": 0.5, "cpu": 0.1, "isolation": "mps"}
    async with opened(tmp_path) as (_, manager):
        one, two = [await manager.allocate_compute_group(name, half) for name in ("one", "two")]
        (gpu,) = {*devices(one), *devices(two)}
        for group in (one, two):
            told = group.environment
            assert told["CUDA_MPS_PIPE_DIRECTORY"] == str(mps / gpu) and told["CUDA_VISIBLE_DEVICES"] == gpu
            assert told["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
            assert told["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=40960M"
        await manager.deallocate_compute_group(one.id)
        assert (mps / gpu / "calls").read_text() == f"start {gpu}\n"
        await manager.deallocate_compute_group(two.id)
        assert (mps / gpu / "calls").read_text() == f"start {gpu}\nquit\n"


async def test_a_server_that_cannot_be_started_is_an_error_and_nothing_is_held(
    mps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MPS_FAILS", "the driver is too old")
    async with opened(tmp_path) as (_, manager):
        with pytest.raises(LavaLiteError, match=r"nvidia-cuda-mps-control failed for GPU .*: the driver is too old"):
            await manager.allocate_compute_group("one", {"gpu": 0.5, "cpu": 0.1})
        assert await manager.list_compute_groups() == []
        await manager.allocate_compute_group("all", {"gpu": 4, "cpu": 0.1})


async def test_without_the_program_parts_by_mps_are_refused(box: Recording, tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, manager):
        with pytest.raises(InsufficientResourcesError, match="MPS"):
            await manager.allocate_compute_group("one", {"gpu": 0.5, "cpu": 0.1, "isolation": "mps"})


# --- the state file ---------------------------------------------------------------------------------------------


async def test_a_state_file_is_private_and_its_folder_is_made(
    box: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    provider = await LocalComputeResourceProvider.open(check_seconds=None)
    await provider.close()
    assert (tmp_path / "state/lavalite/groups.db").stat().st_mode & 0o777 == 0o600


async def test_a_damaged_state_file_is_one_clear_sentence(box: Recording, tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, manager):
        await manager.allocate_compute_group("decode", ONE, {"lifetime": "manual"})
    file = tmp_path / "groups.db"
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(UnreachableError) as caught:
        await LocalComputeResourceProvider.open(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


async def test_a_locked_state_file_is_one_clear_sentence(box: Recording, tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, manager):
        with contextlib.closing(sqlite3.connect(tmp_path / "groups.db", isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            with pytest.raises(LavaLiteError) as caught:
                await manager.allocate_compute_group("decode", ONE)
            db.execute("ROLLBACK")
        assert str(tmp_path / "groups.db") in str(caught.value) and "\n" not in str(caught.value)
        assert await manager.allocate_compute_group("decode", ONE)


async def test_a_folder_that_cannot_be_made_is_one_clear_sentence(box: Recording, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match=r"cannot be made \(.*\)\. Name another file"):
        await LocalComputeResourceProvider.open(tmp_path / "file" / "groups.db")


async def test_this_very_machine_is_looked_at_within_a_moment(tmp_path: Path) -> None:
    """Whatever GPUs it has, or none."""
    async with opened(tmp_path) as (provider, manager):
        took = []
        for _ in range(5):
            begun = time.perf_counter()
            await provider.discover_resources()
            took.append(time.perf_counter() - begun)
        assert min(took) <= 0.2
        group = await manager.allocate_compute_group("router", {"cpu": 0.1})
        assert group.environment["CUDA_VISIBLE_DEVICES"] == ""
