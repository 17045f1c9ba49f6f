"""Compute groups on a running system where something goes wrong: planners that die, a scheduler that dies, processes
that crash, that end when they are asked to, and that do not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from api_calls import UnixHttp, call
from cluster import until
from groups_cluster import GPUS, UpSystem, up_system

from lavalite.api.client import Client
from lavalite.base.errors import LavaLiteError, UnknownNameError
from lavalite.base.processes import started_with
from lavalite.groups import (
    ComputeGroup,
    ComputeGroupManager,
    GroupStateError,
    InsufficientResourcesError,
    NotOfferedError,
    UnknownGroupError,
    connect,
)
from lavalite.groups.cluster import ClusterComputeResourceProvider
from lavalite.groups.cluster.provider import place_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
ONE = {"gpu": 1, "cpu": 0.05}
SMALL = {"cpu": 0.01}
PLANNER = Path(__file__).parent / "groups_planner.py"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[UpSystem]:
    async with up_system() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def manager(system: UpSystem) -> AsyncIterator[ComputeGroupManager]:
    async with await system.planner() as found:
        yield found
        for group in await found.list_compute_groups():
            try:
                if group.component and group.allocation_state != "reserved":
                    await found.deallocate_compute_group(group.id)
            except UnknownGroupError:
                continue
        for group in await found.list_compute_groups():
            if group.allocation_state == "reserved":
                await found.release_reservation(group.id)
            else:
                await found.delete_compute_group(group.id)
        await until(lambda: nothing_held(found), 60, "all is given back")


async def nothing_held(manager: ComputeGroupManager) -> bool:
    amounts = (await manager.get_allocation_summary())["resources"]
    return bool(amounts["gpu_milli"]["free"] == amounts["gpu_milli"]["capacity"])


async def planner(system: UpSystem, what: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(PLANNER), f"up:{system.state}", what, stdout=asyncio.subprocess.PIPE
    )


async def calls(manager: ComputeGroupManager) -> Any:
    assert isinstance(manager.provider, ClusterComputeResourceProvider)
    return manager.provider._calls


# --- planners ------------------------------------------------------------------------------------------------------


async def test_two_planners_in_two_processes_share_what_there_is(
    system: UpSystem, manager: ComputeGroupManager
) -> None:
    both = [await planner(system, "take") for _ in range(2)]
    said = [json.loads((await one.communicate())[0]) for one in both]
    taken = [tuple(pair) for each in said for pair in each]
    assert sorted(device for _, device in taken) == sorted(GPUS.split(","))
    groups = await manager.list_compute_groups()
    assert {(group.id, group.resources["gpus"][0]["id"]) for group in groups} == set(taken)


async def test_a_planner_that_dies_once_it_has_asked_leaves_a_group_that_all_see(
    system: UpSystem, manager: ComputeGroupManager
) -> None:
    dying = await planner(system, "stop")
    assert dying.stdout is not None and (await dying.stdout.readline()).strip() == b"submitted"
    dying.kill()
    await dying.wait()

    async def seen() -> list[ComputeGroup]:
        return await manager.get_component_allocations("decode")

    (group,) = await until(seen, 30, "the group is there")
    assert (group.allocation_state, len(group.resources["gpus"])) == ("allocated", 1)
    assert await manager.deallocate_compute_group(group.id)


async def test_a_planner_that_dies_while_there_is_no_room_leaves_nothing(
    system: UpSystem, manager: ComputeGroupManager
) -> None:
    full = await manager.allocate_compute_group("other", {"gpu": 4, "cpu": 0.05})
    dying = await planner(system, "stop")
    assert dying.stdout is not None and (await dying.stdout.readline()).strip() == b"submitted"
    dying.kill()
    await dying.wait()
    assert await manager.get_component_allocations("decode") == []
    ask = await calls(manager)

    async def none_waits() -> bool:
        return not await ask.every(Client.jobs, component="decode")

    await until(none_waits, 60, "what waits is given up")
    await manager.deallocate_compute_group(full.id)
    assert await manager.get_component_allocations("decode") == []


async def test_who_stops_waiting_leaves_nothing(manager: ComputeGroupManager) -> None:
    await manager.allocate_compute_group("other", {"gpu": 4, "cpu": 0.05})
    ask = await calls(manager)

    async def waits() -> bool:
        return bool(await ask.every(Client.jobs, component="decode", state="pending"))

    waiting = asyncio.create_task(manager.allocate_compute_group("decode", ONE, {"wait": "10m"}))
    await until(waits, 30, "it waits")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not await waits()


async def test_a_scheduler_that_dies_makes_no_group_twice_and_loses_none(
    system: UpSystem, manager: ComputeGroupManager
) -> None:
    made: list[str] = []

    async def grow(component: str) -> None:
        for _ in range(12):
            group = await manager.allocate_compute_group(component, SMALL)
            made.append(group.id)

    async def some() -> bool:
        return len(made) >= 6

    growing = [asyncio.create_task(grow(name)) for name in ("decode", "prefill")]
    await until(some, 30, "some are there")
    (scheduler,) = started_with(str(system.state / "mbatchd" / "mbatchd.conf"))
    os.kill(scheduler.pid, signal.SIGKILL)
    await asyncio.gather(*growing)
    groups = await manager.list_compute_groups()
    assert sorted(group.id for group in groups) == sorted(made) and len(set(made)) == 24
    assert {group.allocation_state for group in groups} == {"allocated"}


# --- components' processes -----------------------------------------------------------------------------------------


async def test_a_process_that_crashes_is_started_again_in_its_group(
    manager: ComputeGroupManager, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    script = (
        'echo "$LAVALITE_COMPUTE_GROUP $CUDA_VISIBLE_DEVICES $WHO" >> "$SAID"; [ -s "$SAID.1" ] && exec sleep 600;'
    )
    script += ' echo once > "$SAID.1"; kill -9 $$'
    environment = {"SAID": str(said), "WHO": "you"}
    await manager.register_component("decode", ONE, command=["sh", "-c", script], environment=environment)
    group = await manager.allocate_compute_group("decode", ONE)

    async def twice() -> list[str] | None:
        lines = said.read_text().splitlines() if said.exists() else []
        return lines if len(lines) == 2 else None

    lines = await until(twice, 60, "it was started twice")

    async def again() -> ComputeGroup | None:
        found = await manager.get_compute_group(group.id)
        return found if found.allocation_state == "allocated" else None

    found = await until(again, 30, "it is as before")
    gpus = [gpu["id"] for gpu in found.resources["gpus"]]
    assert lines[1] == f"{group.id} {gpus[0]} you" and lines[0].startswith(f"{group.id} GPU-")
    assert found.environment["CUDA_VISIBLE_DEVICES"] == gpus[0]
    assert found.environment["LAVALITE_COMPUTE_GROUP"] == group.id


async def test_a_process_that_is_drained_has_its_time_to_end(manager: ComputeGroupManager, tmp_path: Path) -> None:
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    script = f"trap 'sleep 1; echo done > {ended}; exit 0' TERM; echo > {ready}; while :; do sleep 0.05; done"
    await manager.register_component("decode", ONE, command=["sh", "-c", script], drain_seconds=60)
    group = await manager.allocate_compute_group("decode", ONE)
    await until(lambda: _exists(ready), 30, "it runs")
    assert await manager.drain_compute_group(group.id)
    assert (await manager.get_compute_group(group.id)).allocation_state == "draining"
    with pytest.raises(GroupStateError, match="draining already"):
        await manager.drain_compute_group(group.id)
    with pytest.raises(GroupStateError, match="was told to end already"):
        await manager.resume_compute_group(group.id)
    await until(lambda: _gone(manager, group.id), 60, "it has ended")
    assert ended.read_text() == "done\n"


async def _exists(path: Path) -> bool:
    return path.exists()


async def _gone(manager: ComputeGroupManager, group_id: str) -> bool:
    try:
        await manager.get_compute_group(group_id)
    except UnknownGroupError:
        return True
    return False


async def test_a_process_that_does_not_end_is_ended(manager: ComputeGroupManager, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap '' TERM; echo > {ready}; while :; do sleep 0.05; done"
    await manager.register_component("decode", ONE, command=["sh", "-c", script], drain_seconds=1)
    group = await manager.allocate_compute_group("decode", ONE)
    await until(lambda: _exists(ready), 30, "it runs")
    began = time.monotonic()
    await manager.deallocate_compute_group(group.id)
    assert 1 <= time.monotonic() - began < 30
    assert await _gone(manager, group.id)


async def test_scaling_starts_processes_and_ends_them(manager: ComputeGroupManager, tmp_path: Path) -> None:
    script = f'echo > {tmp_path}/up-$LAVALITE_JOB; trap "rm {tmp_path}/up-$LAVALITE_JOB; exit 0" TERM; '
    script += "while :; do sleep 0.05; done"
    await manager.register_component("decode", ONE, command=["sh", "-c", script], drain_seconds=60)

    async def running(count: int) -> bool:
        return len(list(tmp_path.glob("up-*"))) == count

    for count in (1, 3, 1):
        groups = await manager.scale_component("decode", count)
        assert len(groups) == count
        await until(lambda: running(count), 60, f"{count} run")  # noqa: B023 - it is waited for at once
    assert (await manager.get_component_allocations("decode"))[0].id == groups[0].id


# --- groups that are held, created and kept ------------------------------------------------------------------------


async def test_a_group_that_is_only_held_drains_without_a_loss_and_is_resumed(
    system: UpSystem, manager: ComputeGroupManager
) -> None:
    group = await manager.allocate_compute_group("decode", ONE)
    assert await manager.drain_compute_group(group.id)
    async with await system.planner() as other:
        seen = await other.get_compute_group(group.id)
        assert (seen.allocation_state, len(seen.resources["gpus"])) == ("draining", 1)
        assert await other.resume_compute_group(group.id)
    assert (await manager.get_compute_group(group.id)).allocation_state == "allocated"
    with pytest.raises(GroupStateError, match="not draining"):
        await manager.resume_compute_group(group.id)
    await manager.drain_compute_group(group.id)
    assert await manager.deallocate_compute_group(group.id)


async def test_a_created_group_that_is_drained_takes_nobody_after_the_scheduler_died(
    system: UpSystem, manager: ComputeGroupManager
) -> None:
    group = await manager.create_compute_group({"gpu": 1, "cpu": 0.05}, "n1")
    await manager.drain_compute_group(group.id)
    (scheduler,) = started_with(str(system.state / "mbatchd" / "mbatchd.conf"))
    os.kill(scheduler.pid, signal.SIGKILL)
    assert (await manager.get_compute_group(group.id)).allocation_state == "draining"
    with pytest.raises(GroupStateError, match="draining"):
        await manager.allocate_compute_group("decode", ONE, {"group": group.id})
    assert await manager.resume_compute_group(group.id)

    async def taken() -> ComputeGroup | None:
        # The node is back when its agent has found the new scheduler.
        try:
            return await manager.allocate_compute_group("decode", ONE, {"group": group.id})
        except InsufficientResourcesError:
            return None

    found = await until(taken, 60, "it is taken")
    assert found.id == group.id


async def test_what_a_reservation_cannot_keep_is_refused_in_one_sentence(manager: ComputeGroupManager) -> None:
    for asked in (
        {"gpu": 0.5, "isolation": "none"},
        {"gpu": {"count": 2, "topology": "numa"}},
        {"network": "1Gbit/s"},
    ):
        with pytest.raises(NotOfferedError, match="a group of a running system that nobody has yet"):
            await manager.create_compute_group(asked)
    with pytest.raises(NotOfferedError, match="does not keep parts of a GPU apart"):
        await manager.allocate_compute_group("decode", {"gpu": 0.5, "isolation": "mps"})
    with pytest.raises(InsufficientResourcesError) as caught:
        await manager.create_compute_group({"gpu": {"count": 1, "model": "no such"}})
    assert not caught.value.ever
    group = await manager.create_compute_group({"gpu": {"count": 1, "model": "Test H100", "memory": "80GiB"}})
    assert group.node_id == "n1"


async def test_a_job_that_is_no_group_is_none_and_stays_as_it_is(
    system: UpSystem, manager: ComputeGroupManager
) -> None:
    typed = ("--cpu", "0.05", "--grace", "90s", "--start-within", "10m", "--", "sleep", "600")
    number = (await system.lavalite("submit", *typed)).split()[1]
    try:
        job = await (await calls(manager))(Client.job, int(number))
        assert (job.grace_seconds, job.start_within_seconds, job.component) == (90, 600, "")
        for method in (manager.get_compute_group, manager.deallocate_compute_group, manager.drain_compute_group):
            with pytest.raises(UnknownGroupError):
                await method(f"job-{number}")
        assert await manager.list_compute_groups() == []
    finally:
        await system.lavalite("cancel", number)


async def test_a_group_without_cpu_has_none(manager: ComputeGroupManager) -> None:
    group = await manager.allocate_compute_group("decode", {"gpu": 1})
    assert (group.resources["cpu_milli"], group.resources["gpu_milli"]) == (0, 1000)


async def test_pools_and_their_quotas_hold_for_groups() -> None:
    async with up_system() as own, await own.planner() as manager:
        quota = {"team-a": {"nominal": {"gpu": 1}}}
        put = await manager.put_pool("gpus", {"nodes": "*", "kinds": ["gpu"], "quota": quota})
        assert (put["name"], put["kinds"]) == ("gpus", ["gpu"])
        assert [pool["name"] for pool in (await manager.get_allocation_summary())["pools"]] == ["gpus"]
        said = {"pool": "gpus", "team": "team-a"}
        group = await manager.allocate_compute_group("decode", ONE, said)
        assert group.pool == "gpus"
        with pytest.raises(InsufficientResourcesError) as caught:
            await manager.allocate_compute_group("decode", ONE, said)
        assert caught.value.ever and caught.value.reasons
        with pytest.raises(InsufficientResourcesError) as caught:
            await manager.allocate_compute_group("decode", {"gpu": 2, "cpu": 0.05}, said)
        assert not caught.value.ever
        with pytest.raises(UnknownNameError, match="there is no pool none"):
            await manager.allocate_compute_group("decode", ONE, {"pool": "none"})
        await manager.deallocate_compute_group(group.id)
        assert await manager.delete_pool("gpus")
        with pytest.raises(LavaLiteError):
            await manager.delete_pool("gpus")


# --- the API beneath -----------------------------------------------------------------------------------------------


async def test_resources_have_pages_and_a_tag(system: UpSystem, manager: ComputeGroupManager) -> None:
    group = await manager.allocate_compute_group("decode", ONE)

    def get(path: str, **headers: str) -> tuple[int, Any]:
        return call(UnixHttp(system.state / "mbatchd" / "api.sock"), "GET", path, None, headers)

    status, page = await asyncio.to_thread(get, "/v1/resources?limit=1")
    assert status == 200 and set(page) == {"items", "next_cursor"}
    (node,) = page["items"]
    assert node["resources"]["gpu"] == {"capacity": 4000, "committed": 1000, "free": 3000, "kept": 0}
    assert sum(device["free_milli"] for device in node["devices"]) == 3000
    assert (await asyncio.to_thread(get, "/v1/resources?state=lost"))[1]["items"] == []
    job = group.id.removeprefix("job-")
    for query, found in (("component=decode", [job]), ("component=*", [job]), ("component=none", [])):
        status, page = await asyncio.to_thread(get, f"/v1/jobs?{query}")
        assert status == 200 and [str(item["id"]) for item in page["items"]] == found
    _, described = await asyncio.to_thread(get, "/v1/openapi.json")
    assert {"/v1/resources", "/v1/reservations/{name}/drain"} <= described["paths"].keys()


async def test_where_it_is_may_be_said_in_each_way(system: UpSystem) -> None:
    socket = system.state / "mbatchd" / "api.sock"
    for where in (f"up:{system.state}", f"unix:{socket}"):
        async with await connect(where) as manager:
            assert [node.id for node in await manager.list_compute_nodes()] == ["n1"]
    assert place_of("https://a:6880,https://b:6880").api == ("https://a:6880", "https://b:6880")
    with pytest.raises(LavaLiteError, match="does not answer"):
        await connect(f"up:{system.state}/none")
