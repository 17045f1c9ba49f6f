"""What the text of ComputeGroups says, on each environment alike: this machine, a running system, Kubernetes.

Every test takes and gives back; between two of them nothing is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from groups_on import MODEL, NAMES, MakeManager, managers_on

from lavalite.base.errors import InputError, LavaLiteError, UnknownNameError
from lavalite.groups import (
    ComputeGroup,
    ComputeGroupManager,
    ComputeNode,
    ConflictingAllocationError,
    GroupStateError,
    InsufficientResourcesError,
    NotOfferedError,
    ReservationError,
    UnknownGroupError,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
ONE = {"gpu": 1, "cpu": 0.1}
DEADLINE_SECONDS = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=NAMES)
async def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[MakeManager]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    async for found in managers_on(request.param, folder):
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(make: MakeManager) -> AsyncIterator[ComputeGroupManager]:
    async with await make() as found:
        yield found


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_is_left(manager: ComputeGroupManager) -> AsyncIterator[None]:
    yield
    await clear(manager)


async def clear(manager: ComputeGroupManager) -> None:
    for group in await manager.list_compute_groups():
        if group.component and group.allocation_state in ("allocated", "draining", "failed"):
            await manager.deallocate_compute_group(group.id)
        elif group.allocation_state == "reserved":
            await manager.release_reservation(group.id)
    for group in await manager.list_compute_groups():
        if group.allocation_state in ("free", "draining"):
            await manager.delete_compute_group(group.id)
    await until(lambda: _all_free(manager))


async def _all_free(manager: ComputeGroupManager) -> bool:
    summary = await manager.get_allocation_summary()
    gpus = summary["resources"]["gpu_milli"]
    return bool(gpus["free"] == gpus["capacity"]) and not await manager.list_compute_groups()


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := await condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS:g} s"
        await asyncio.sleep(0.05)
    return found


def devices(*groups: ComputeGroup) -> list[str]:
    return [gpu["id"] for group in groups for gpu in group.resources["gpus"]]


async def free_gpus(manager: ComputeGroupManager) -> int:
    return int((await manager.get_allocation_summary())["resources"]["gpu_milli"]["free"])


# --- 1. discovery and tracking ------------------------------------------------------------------------------------


async def test_nodes_and_what_they_have_are_discovered(manager: ComputeGroupManager) -> None:
    nodes = await manager.list_compute_nodes()
    assert nodes and all(isinstance(node, ComputeNode) and node.id for node in nodes)
    node = next(node for node in nodes if node.resources["gpu_milli"] >= 4000)
    assert node.resources["cpu_milli"] >= 1000 and node.resources["memory_bytes"] >= 2**30
    gpus = node.resources["gpus"]
    assert [gpu["model"] for gpu in gpus][:4] == [MODEL] * 4
    assert len({gpu["id"] for gpu in gpus}) == len(gpus)
    assert all(gpu["memory_bytes"] == 80 * 2**30 for gpu in gpus)
    assert all(isinstance(value, float) for value in node.utilization.values())
    assert node.compute_groups == []


async def test_a_group_says_what_it_is(manager: ComputeGroupManager) -> None:
    group = await manager.allocate_compute_group("decode", {"gpu": 2, "cpu": 0.2, "memory": "64MiB"})
    assert isinstance(group, ComputeGroup) and group.id
    assert group.resources["gpu_milli"] == 2000
    assert group.resources["cpu_milli"] == 200 and group.resources["memory_bytes"] == 64 * 2**20
    assert len(set(devices(group))) == 2
    assert isinstance(group.topology, dict)
    assert all(isinstance(value, float) for value in group.utilization.values())
    assert (group.allocation_state, group.component) == ("allocated", "decode")
    again = await manager.get_compute_group(group.id)
    assert (again.id, again.resources["gpu_milli"], again.component) == (group.id, 2000, "decode")
    node = next(node for node in await manager.list_compute_nodes() if node.id == group.node_id)
    assert [each.id for each in node.compute_groups] == [group.id]
    assert node.free["gpu_milli"] == node.resources["gpu_milli"] - 2000


# --- 2. allocation ------------------------------------------------------------------------------------------------


async def test_what_is_allocated_is_nobody_elses_until_it_is_deallocated(manager: ComputeGroupManager) -> None:
    groups = [await manager.allocate_compute_group("decode", ONE) for _ in range(4)]
    assert len(set(devices(*groups))) == 4
    with pytest.raises(InsufficientResourcesError) as caught:
        await manager.allocate_compute_group("prefill", ONE)
    assert caught.value.ever and caught.value.reasons
    assert await manager.get_component_allocations("prefill") == []
    assert await manager.deallocate_compute_group(groups[0].id) is True
    await until(lambda: free_gpus(manager))
    other = await manager.allocate_compute_group("prefill", ONE)
    assert devices(other) == devices(groups[0])


async def test_all_of_it_or_nothing(manager: ComputeGroupManager) -> None:
    await manager.allocate_compute_group("decode", {"gpu": 3, "cpu": 0.1})
    before = await free_gpus(manager)
    with pytest.raises(InsufficientResourcesError):
        await manager.allocate_compute_group("prefill", {"gpu": 2, "cpu": 0.1})
    assert await free_gpus(manager) == before


async def test_what_could_never_fit_is_said_to_be_so(manager: ComputeGroupManager) -> None:
    for never in ({"gpu": 900}, {"gpu": {"count": 1, "model": "no such"}}, {"memory": "9000TiB"}):
        with pytest.raises(InsufficientResourcesError) as caught:
            await manager.allocate_compute_group("decode", never)
        assert not caught.value.ever, never


async def test_two_planners_never_get_the_same_device(make: MakeManager, manager: ComputeGroupManager) -> None:
    async with await make() as other:

        async def take(planner: ComputeGroupManager, name: str) -> list[ComputeGroup]:
            got = []
            for _ in range(4):
                with contextlib.suppress(InsufficientResourcesError, ConflictingAllocationError):
                    got.append(await planner.allocate_compute_group(name, ONE))
            return got

        mine, theirs = await asyncio.gather(take(manager, "mine"), take(other, "theirs"))
        assert len(mine) + len(theirs) == 4
        assert len(set(devices(*mine, *theirs))) == 4
        found = {group.id for group in await other.list_compute_groups({"state": "allocated"})}
        assert found == {group.id for group in [*mine, *theirs]}


async def test_groups_are_listed_by_what_they_are(manager: ComputeGroupManager) -> None:
    one = await manager.allocate_compute_group("decode", ONE)
    two = await manager.allocate_compute_group("prefill", {"gpu": 2, "cpu": 0.1})
    ids = {group.id for group in await manager.list_compute_groups()}
    assert ids == {one.id, two.id}
    for filters, found in (
        ({"component": "decode"}, {one.id}),
        ({"state": "allocated"}, {one.id, two.id}),
        ({"state": "free"}, set()),
        ({"gpu_milli": 2000}, {two.id}),
        (
            {"model": MODEL, "node": one.node_id, "component": "prefill"},
            {two.id} if two.node_id == one.node_id else set(),
        ),
    ):
        assert {group.id for group in await manager.list_compute_groups(filters)} == found, filters
    assert [group.id for group in await manager.get_component_allocations("decode")] == [one.id]
    summary = await manager.get_allocation_summary()
    assert summary["components"]["prefill"]["gpu_milli"] == 2000
    assert summary["components"]["decode"]["groups"] == 1
    assert summary["groups"]["allocated"] == 2


async def test_a_group_without_a_gpu(manager: ComputeGroupManager) -> None:
    group = await manager.allocate_compute_group("router", {"cpu": 0.5, "memory": "64MiB"})
    assert group.resources["cpu_milli"] == 500 and group.resources["gpus"] == []
    assert await manager.deallocate_compute_group(group.id)


async def test_parts_of_a_gpu_share_it(manager: ComputeGroupManager) -> None:
    half = {"gpu": 0.5, "cpu": 0.1, "isolation": "none"}
    one = await manager.allocate_compute_group("small-1", half)
    two = await manager.allocate_compute_group("small-2", half)
    assert devices(one) == devices(two) and one.resources["gpu_milli"] == 500
    three = await manager.allocate_compute_group("large", {"gpu": 3, "cpu": 0.1})
    assert not set(devices(one)) & set(devices(three))
    with pytest.raises(InsufficientResourcesError):
        await manager.allocate_compute_group("small-3", half)


async def test_parts_that_nothing_keeps_apart_are_refused_unless_that_is_said(manager: ComputeGroupManager) -> None:
    for isolation in ({}, {"isolation": "mig"}, {"isolation": "mps"}):
        with pytest.raises((InsufficientResourcesError, NotOfferedError)):
            await manager.allocate_compute_group("small", {"gpu": 0.5, "cpu": 0.1, **isolation})
        assert await manager.list_compute_groups() == []


# --- 3. life ------------------------------------------------------------------------------------------------------


async def test_a_created_group_is_free_until_somebody_takes_it_and_again_after(manager: ComputeGroupManager) -> None:
    node = next(n for n in await manager.list_compute_nodes() if n.resources["gpu_milli"] >= 4000)
    group = await manager.create_compute_group({"gpu": 2, "cpu": 0.2}, node.id)
    assert (group.allocation_state, group.component, group.node_id) == ("free", None, node.id)
    assert (
        await free_gpus(manager) == sum(n.resources["gpu_milli"] for n in await manager.list_compute_nodes()) - 2000
    )
    taken = await manager.allocate_compute_group("decode", {"gpu": 2, "cpu": 0.1}, {"group": group.id})
    assert (taken.id, taken.allocation_state, taken.component) == (group.id, "allocated", "decode")
    with pytest.raises(GroupStateError):
        await manager.delete_compute_group(group.id)
    with pytest.raises(GroupStateError):
        await manager.allocate_compute_group("prefill", {"gpu": 2, "cpu": 0.1}, {"group": group.id})
    assert await manager.deallocate_compute_group(group.id)

    async def free() -> bool:
        return (await manager.get_compute_group(group.id)).allocation_state == "free"

    await until(free)
    with pytest.raises(GroupStateError):
        await manager.deallocate_compute_group(group.id)
    assert await manager.delete_compute_group(group.id)
    with pytest.raises(UnknownGroupError):
        await manager.get_compute_group(group.id)


async def test_whoever_asks_for_the_same_gets_a_free_group(manager: ComputeGroupManager) -> None:
    group = await manager.create_compute_group({"gpu": 4, "cpu": 0.2})
    taken = await manager.allocate_compute_group("decode", {"gpu": 4, "cpu": 0.2})
    assert taken.id == group.id


async def test_what_is_drained_is_not_allocated_until_it_is_resumed(manager: ComputeGroupManager) -> None:
    group = await manager.create_compute_group({"gpu": 4, "cpu": 0.2})
    assert await manager.drain_compute_group(group.id)
    assert (await manager.get_compute_group(group.id)).allocation_state == "draining"
    for constraints in ({}, {"group": group.id}):
        with pytest.raises((InsufficientResourcesError, GroupStateError)):
            await manager.allocate_compute_group("decode", {"gpu": 4, "cpu": 0.2}, constraints)
    with pytest.raises(GroupStateError):
        await manager.drain_compute_group(group.id)
    assert await manager.resume_compute_group(group.id)
    assert (await manager.allocate_compute_group("decode", {"gpu": 4, "cpu": 0.2})).id == group.id


async def test_a_component_that_is_drained_goes(manager: ComputeGroupManager) -> None:
    await manager.register_component("decode", ONE, command=["sleep", "600"], drain_seconds=5)
    group = await manager.allocate_compute_group("decode", ONE)
    assert await manager.drain_compute_group(group.id)
    try:
        assert (await manager.get_compute_group(group.id)).allocation_state == "draining"
        await manager.deallocate_compute_group(group.id)
    except UnknownGroupError:
        pass  # it ended before we looked
    await until(lambda: _all_free(manager))


async def test_a_reservation_is_kept_for_its_component(manager: ComputeGroupManager) -> None:
    kept = await manager.reserve("decode", {"gpu": 4, "cpu": 0.2}, timeout_seconds=600)
    assert kept.allocation_state == "reserved" and kept.expires_at and kept.expires_at > time.time() + 500
    assert await manager.get_component_allocations("decode") == []
    with pytest.raises(InsufficientResourcesError):
        await manager.allocate_compute_group("prefill", ONE)
    with pytest.raises(ReservationError):
        await manager.allocate_compute_group("prefill", {"gpu": 4, "cpu": 0.2}, {"group": kept.id})
    taken = await manager.allocate_compute_group("decode", {"gpu": 4, "cpu": 0.2}, {"group": kept.id})
    assert taken.allocation_state == "allocated" and taken.component == "decode"
    assert len(set(devices(taken))) == 4


async def test_a_reservation_is_released_or_runs_out(manager: ComputeGroupManager) -> None:
    kept = await manager.reserve("decode", {"gpu": 4, "cpu": 0.2}, timeout_seconds=600)
    assert await manager.release_reservation(kept.id)
    with pytest.raises(LavaLiteError):
        await manager.release_reservation(kept.id)
    await manager.reserve("decode", {"gpu": 4, "cpu": 0.2}, timeout_seconds=1)

    async def taken() -> ComputeGroup | None:
        try:
            return await manager.allocate_compute_group("prefill", {"gpu": 4, "cpu": 0.2})
        except InsufficientResourcesError:
            return None

    group = await until(taken)
    assert group.component == "prefill"


async def test_whoever_waits_gets_room_when_there_is_some(manager: ComputeGroupManager) -> None:
    group = await manager.allocate_compute_group("decode", {"gpu": 4, "cpu": 0.2})
    waiting = asyncio.create_task(manager.allocate_compute_group("prefill", ONE, {"wait": "60s"}))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await manager.deallocate_compute_group(group.id)
    assert (await waiting).component == "prefill"


async def test_state_is_there_for_who_comes_later(make: MakeManager) -> None:
    async with await make() as first:
        group = await first.allocate_compute_group("decode", ONE, {"lifetime": "manual"})
    async with await make() as second:
        found = await second.get_compute_group(group.id)
        assert (found.component, devices(found)) == ("decode", devices(group))


async def test_changes_are_told(manager: ComputeGroupManager) -> None:
    told: list[dict[str, Any]] = []

    async def listen() -> None:
        async for change in manager.watch():
            told.append(change)  # noqa: PERF401 - one after the other, as they come

    listening = asyncio.create_task(listen())
    try:
        await asyncio.sleep(0)
        deadline, seen = time.monotonic() + DEADLINE_SECONDS, False
        while not seen:
            group = await manager.allocate_compute_group("decode", ONE)
            await manager.deallocate_compute_group(group.id)
            await until(lambda: _all_free(manager))
            seen = any(c["kind"] == "group" and c["group"] and c["group"].component == "decode" for c in told)
            assert time.monotonic() < deadline
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


# --- scaling ------------------------------------------------------------------------------------------------------


async def test_a_component_is_scaled_up_and_down(manager: ComputeGroupManager) -> None:
    await manager.register_component("decode", ONE, command=["sleep", "600"], drain_seconds=5)
    assert len(await manager.scale_component("decode", 1)) == 1
    three = await manager.scale_component("decode", 3)
    assert len(set(devices(*three))) == 3
    with pytest.raises(InsufficientResourcesError):
        await manager.scale_component("decode", 5)
    assert len(await manager.get_component_allocations("decode")) == 3, "all that is more, or nothing"
    assert len(await manager.scale_component("decode", 1)) == 1

    async def one_is_left() -> bool:
        return len(await manager.get_component_allocations("decode")) == 1 and await free_gpus(manager) == 3000

    await until(one_is_left)
    assert await manager.scale_component("decode", 0) == []


# --- 4. strategies that one node can show -------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["binpack", "spread", "priority", "topology"])
async def test_strategies_are_understood(manager: ComputeGroupManager, strategy: str) -> None:
    group = await manager.allocate_compute_group("decode", ONE, {"strategy": strategy})
    assert len(devices(group)) == 1


async def test_near_a_component_and_apart_from_one(manager: ComputeGroupManager) -> None:
    first = await manager.allocate_compute_group("decode", ONE)
    near = await manager.allocate_compute_group("prefill", ONE, {"affinity": ["decode"]})
    assert near.node_id == first.node_id
    nodes = len([n for n in await manager.list_compute_nodes() if n.resources["gpu_milli"]])
    try:
        apart = await manager.allocate_compute_group("router", ONE, {"anti_affinity": ["decode"]})
    except InsufficientResourcesError:
        assert nodes == 1
    else:
        assert apart.node_id != first.node_id


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "requirements", "constraints", "said"),
    [
        ("decode", {"gpus": 1}, None, "gpus"),
        ("decode", {"gpu": {"count": 1, "colour": "red"}}, None, "colour"),
        ("decode", {}, None, "nothing is asked for"),
        ("decode", {"gpu": 0}, None, "gpu"),
        ("decode", {"gpu": -1}, None, "gpu"),
        ("decode", {"gpu": 1.5}, None, "more than one is counted whole"),
        ("decode", {"gpu": 1, "gpu_milli": 1000}, None, "say the same"),
        ("decode", {"memory": 16}, None, "memory"),
        ("decode", {"gpu": {"count": 0.5, "mig": "1g.10gb"}}, None, "given out whole"),
        ("decode", ONE, {"strategy": "luck"}, "luck"),
        ("decode", ONE, {"flavour": "sweet"}, "flavour"),
        ("decode", ONE, {"within": "rack"}, "within"),
        ("", ONE, None, "component_name"),
        ("no/such name", ONE, None, "component_name"),
        ("-x", ONE, None, "component_name"),
        ("x" * 64, ONE, None, "component_name"),
    ],
)
async def test_bad_input_is_refused_with_where_and_why(
    manager: ComputeGroupManager,
    name: str,
    requirements: dict[str, Any],
    constraints: dict[str, Any] | None,
    said: str,
) -> None:
    with pytest.raises(InputError, match=said):
        await manager.allocate_compute_group(name, requirements, constraints)
    assert await manager.list_compute_groups() == []


async def test_what_is_not_there(manager: ComputeGroupManager) -> None:
    for call in (
        manager.get_compute_group,
        manager.delete_compute_group,
        manager.deallocate_compute_group,
        manager.drain_compute_group,
        manager.resume_compute_group,
        manager.release_reservation,
    ):
        with pytest.raises(UnknownGroupError):
            await call("no-such-group")
    with pytest.raises(InputError, match="filters"):
        await manager.list_compute_groups({"colour": "red"})
    with pytest.raises(UnknownNameError):
        await manager.scale_component("nobody", 1)
    with pytest.raises(LavaLiteError):
        await manager.create_compute_group(ONE, "no-such-node")


async def test_twice_is_an_error_and_changes_nothing(manager: ComputeGroupManager) -> None:
    group = await manager.allocate_compute_group("decode", ONE)
    assert await manager.deallocate_compute_group(group.id)

    async def gone() -> bool:
        try:
            await manager.deallocate_compute_group(group.id)
        except (UnknownGroupError, GroupStateError):
            return True
        return False

    await until(gone)
    await until(lambda: _all_free(manager))
