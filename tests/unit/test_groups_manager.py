"""The manager over a provider that has the seed's four methods and nothing else: those are enough to write one."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from lavalite.base.clock import ManualClock
from lavalite.base.errors import InputError, UnknownNameError
from lavalite.groups import ComputeGroupManager, ComputeResourceProvider, NotOfferedError, UnknownGroupError
from lavalite.groups.errors import GroupStateError, InsufficientResourcesError


class FourMethods(ComputeResourceProvider):
    """Cores of one machine, and no more than the abstract class demands."""

    name = "a provider of four methods"

    def __init__(self, cpu_milli: int = 4000) -> None:
        self.cpu_milli = cpu_milli
        self.groups: dict[str, dict[str, Any]] = {}
        self._ids = count(1)

    @property
    def free(self) -> int:
        return self.cpu_milli - sum(group["resources"]["cpu_milli"] for group in self.groups.values())

    async def discover_resources(self) -> dict[str, Any]:
        resources = {"cpu_milli": self.cpu_milli}
        return {"nodes": [{"id": "n1", "resources": resources, "free": {"cpu_milli": self.free}}]}

    async def allocate_resources(self, component_name: str, resources: dict[str, Any]) -> dict[str, Any]:
        wanted = int(resources["cpu"] * 1000)
        if wanted > self.free:
            raise InsufficientResourcesError(f"{wanted} asked, {self.free} free")
        group_id = f"g{next(self._ids)}"
        self.groups[group_id] = {
            "id": group_id,
            "node": "n1",
            "resources": {"cpu_milli": wanted},
            "state": "allocated" if component_name else "free",
            "component": component_name or None,
        }
        return self.groups[group_id]

    async def deallocate_resources(self, component_name: str, resource_ids: list[str]) -> bool:
        if unknown := [each for each in resource_ids if each not in self.groups]:
            raise UnknownGroupError(unknown[0])
        for each in resource_ids:
            del self.groups[each]
        return True

    async def get_resource_state(self) -> dict[str, Any]:
        return {**await self.discover_resources(), "groups": list(self.groups.values()), "pools": []}


@pytest.fixture
def manager() -> ComputeGroupManager:
    return ComputeGroupManager(FourMethods(), clock=ManualClock())


async def test_four_methods_are_enough(manager: ComputeGroupManager) -> None:
    async with manager:
        group = await manager.allocate_compute_group("decode", {"cpu": 3})
        assert (await manager.get_compute_group(group.id)) == group
        assert group.topology == {} and group.utilization == {} and group.environment == {}
        with pytest.raises(InsufficientResourcesError):
            await manager.allocate_compute_group("decode", {"cpu": 2})
        [node] = await manager.list_compute_nodes()
        assert (node.free, node.state, [g.id for g in node.compute_groups]) == (
            {"cpu_milli": 1000},
            "ready",
            [group.id],
        )
        summary = await manager.get_allocation_summary()
        assert summary["resources"] == {"cpu_milli": {"capacity": 4000, "free": 1000}}
        assert summary["components"] == {"decode": {"groups": 1, "cpu_milli": 3000}}
        assert await manager.deallocate_compute_group(group.id)
        with pytest.raises(UnknownGroupError):
            await manager.deallocate_compute_group(group.id)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("drain_compute_group", ("g1",)),
        ("resume_compute_group", ("g1",)),
        ("reserve", ("decode", {"cpu": 1})),
        ("release_reservation", ("g1",)),
        ("put_pool", ("fast", {})),
        ("delete_pool", ("fast",)),
    ],
)
async def test_what_a_provider_does_not_offer_is_said(
    manager: ComputeGroupManager, call: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(NotOfferedError, match="a provider of four methods is no provider that"):
        await getattr(manager, call)(*arguments)


async def test_growing_is_all_or_nothing(manager: ComputeGroupManager) -> None:
    await manager.register_component("decode", {"cpu": 1.5})
    assert len(await manager.scale_component("decode", 1)) == 1
    with pytest.raises(InsufficientResourcesError):
        await manager.scale_component("decode", 3)
    assert len(await manager.get_component_allocations("decode")) == 1
    assert len(await manager.scale_component("decode", 2)) == 2


async def test_registering_again_changes_what_is_asked_for_next(manager: ComputeGroupManager) -> None:
    await manager.register_component("decode", {"cpu": 1})
    await manager.scale_component("decode", 1)
    await manager.register_component("decode", {"cpu": 2})
    sizes = [group.resources["cpu_milli"] for group in await manager.scale_component("decode", 2)]
    assert sizes == [1000, 2000]


async def test_bad_input(manager: ComputeGroupManager) -> None:
    for wrong in (-1, 1.0, "3", True):
        await manager.register_component("decode", {"cpu": 1})
        with pytest.raises(InputError, match="replicas"):
            await manager.scale_component("decode", wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="register_component"):
        await manager.scale_component("router", 1)
    with pytest.raises(InputError, match="component_name"):
        await manager.register_component("", {"cpu": 1})
    with pytest.raises(InputError, match=r"requirements\.run"):
        await manager.allocate_compute_group("decode", {"cpu": 1, "run": {"command": ["true"]}})
    with pytest.raises(InputError, match="a mapping"):
        await manager.allocate_compute_group("decode", ["cpu"])  # type: ignore[arg-type]
    for wrong in ("", None, 7):
        with pytest.raises(InputError, match="group_id"):
            await manager.get_compute_group(wrong)  # type: ignore[arg-type]
    created = await manager.create_compute_group({"cpu": 1})
    with pytest.raises(GroupStateError, match="no component has it"):
        await manager.deallocate_compute_group(created.id)


class Draining(FourMethods):
    def __init__(self) -> None:
        super().__init__()
        self.drained: list[str] = []

    async def drain_resources(self, resource_ids: list[str]) -> bool:
        self.drained += resource_ids
        return True


async def test_what_has_failed_counts_and_goes_first() -> None:
    provider = Draining()
    manager = ComputeGroupManager(provider, clock=ManualClock())
    await manager.register_component("decode", {"cpu": 1}, drain_seconds=0)
    first, second, third = await manager.scale_component("decode", 3)
    provider.groups[first.id]["state"] = "failed"
    assert len(await manager.scale_component("decode", 3)) == 3 and len(provider.groups) == 3
    left = await manager.scale_component("decode", 1)
    assert [group.id for group in left] == [second.id] == list(provider.groups)
    assert provider.drained == [third.id, first.id]


@pytest.mark.parametrize(
    ("call", "arguments", "said"),
    [
        ("list_compute_groups", ({"gpu_milli": "2"},), r"filters\.gpu_milli"),
        ("list_compute_groups", ({"model": ["H100"]},), r"filters\.model"),
        ("list_compute_groups", (["state"],), "filters"),
        ("create_compute_group", (7,), "resources"),
        ("allocate_compute_group", ("decode", {"cpu": 1}, "near"), "constraints"),
        ("register_component", ("decode", "cpu"), "resource_requirements"),
        ("register_component", ("decode", {"cpu": 1}, "near"), "constraints"),
        ("put_pool", ("fast", "all"), "pool"),
    ],
)
async def test_what_is_of_the_wrong_type_is_said_by_its_name(
    manager: ComputeGroupManager, call: str, arguments: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        await getattr(manager, call)(*arguments)


class Leaving(FourMethods):
    """Its first group ends by itself as soon as another one is refused."""

    async def allocate_resources(self, component_name: str, resources: dict[str, Any]) -> dict[str, Any]:
        try:
            return await super().allocate_resources(component_name, resources)
        except InsufficientResourcesError:
            self.groups.pop("g1")
            raise


async def test_growing_that_fails_gives_the_rest_back_where_one_has_gone() -> None:
    provider = Leaving()
    manager = ComputeGroupManager(provider, clock=ManualClock())
    await manager.register_component("decode", {"cpu": 1.5})
    with pytest.raises(InsufficientResourcesError):
        await manager.scale_component("decode", 3)
    assert provider.groups == {}
