"""ComputeGroups on Kubernetes where things go wrong: conflicts, lost answers, budgets, restarts, missing rights."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from groups_kubernetes import MANIFESTS, NAMESPACE, furnish, node, provider_on, rules
from kube_api import Key, KubeApi, kubeconfig, running_api

from lavalite.base.clock import SystemClock
from lavalite.base.errors import BusyError, RefusedError, UnreachableError
from lavalite.groups import ComputeGroupManager, InsufficientResourcesError, KubernetesComputeResourceProvider
from lavalite.groups.kubernetes.head import HEAD
from lavalite.groups.kubernetes.ledger import KubernetesLedger
from lavalite.groups.kubernetes.objects import Deadlines, UnplacedError
from lavalite.providers.kubernetes.connection import Connection

ONE = {"gpu": 1, "cpu": 0.1}
SHORT = Deadlines(answer=0.6, schedule=0.4, end=0.4)
RUNS = {"command": ["sleep", "600"], "drain_seconds": 1}
Open = Callable[..., Awaitable[KubernetesLedger]]


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with running_api() as running:
        furnish(running)
        yield running


@contextlib.asynccontextmanager
async def planner(api: KubeApi, folder: Path, **options: Any) -> AsyncIterator[ComputeGroupManager]:
    async with ComputeGroupManager(await provider_on(api, folder, **options)) as manager:
        yield manager


@pytest.fixture
async def manager(api: KubeApi, tmp_path: Path) -> AsyncIterator[ComputeGroupManager]:
    async with planner(api, tmp_path) as found:
        yield found


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := await condition()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return found


async def state_of(manager: ComputeGroupManager, group_id: str) -> str:
    return (await manager.get_compute_group(group_id)).allocation_state


def pods(api: KubeApi) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in api.of("pods"))


# --- the ledger -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def ledgers(api: KubeApi, tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[KubernetesLedger] = []

    async def open_one(*, patience_seconds: float = 5.0, timeout_seconds: float = 5.0) -> KubernetesLedger:
        connection = Connection.open("", kubeconfig(api, tmp_path), timeout_seconds=timeout_seconds)
        ledger = await KubernetesLedger.open(connection, SystemClock(), patience_seconds=patience_seconds)
        opened.append(ledger)
        return ledger

    yield open_one
    for ledger in opened:
        await ledger.close()


async def records(ledger: KubernetesLedger) -> dict[str, bytes]:
    return {each.key: each.value for each in await ledger.sync() if each.value is not None}


async def test_whoever_is_too_late_writes_nothing(ledgers: Open) -> None:
    one, two = await ledgers(), await ledgers()
    assert await records(one) == await records(two) == {}
    assert await one.commit({"groups/a": b"1", "nodes/N_1": b"\xff"})
    assert not await two.commit({"groups/a": b"2"}, ["nodes/N_1"])
    assert await records(two) == {"groups/a": b"1", "nodes/N_1": b"\xff"}
    assert await two.commit({"groups/a": b"2"}, ["nodes/N_1"])
    assert {(c.key, c.value) for c in await one.sync()} == {("groups/a", b"2"), ("nodes/N_1", None)}
    assert await records(await ledgers()) == {"groups/a": b"2"}


@pytest.mark.parametrize("what", [500, 503, "cut", "silence"])
@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("verb", ["update", "create"])
async def test_a_lost_answer_is_found_out_about(
    api: KubeApi, ledgers: Open, what: int | str, done: bool, verb: str
) -> None:
    """Of the head's swap (update), and of the first object that is made of it (create)."""
    ledger = await ledgers(timeout_seconds=0.3)
    await ledger.sync()
    api.fail(verb, "configmaps", what, done=done)
    assert await ledger.commit({"nodes/a": b"1", "nodes/b": b"2"})
    assert await ledger.commit({"nodes/a": b"3"})
    assert await records(await ledgers()) == {"nodes/a": b"3", "nodes/b": b"2"}


async def test_a_swap_that_was_lost_to_another_is_no_success(api: KubeApi, ledgers: Open) -> None:
    one, two = await ledgers(), await ledgers()
    await one.sync()
    await two.sync()
    api.fail("update", "configmaps", 500)
    first = asyncio.create_task(one.commit({"nodes/a": b"1"}))

    async def failed() -> bool:
        return not api.faults[0].times

    await until(failed)
    assert await two.commit({"nodes/a": b"2"})
    assert not await first
    assert await records(one) == {"nodes/a": b"2"}


async def test_who_dies_in_the_middle_of_a_change_leaves_nothing_half_done(api: KubeApi, ledgers: Open) -> None:
    dying = await ledgers(patience_seconds=0.2)
    await dying.sync()
    assert await dying.commit({"nodes/old": b"0"})
    for verb in ("create", "update", "delete", "get"):
        api.fail(verb, "computegroups", 500, times=100)
    assert await dying.commit({"nodes/a": b"1", "groups/b": b"2"}, ["nodes/old"]), "the head says it: it is durable"
    await dying.close()
    assert not api.of("computegroups"), "and it is not carried out"
    api.faults.clear()
    later = await ledgers()
    assert await records(later) == {"nodes/a": b"1", "groups/b": b"2"}
    assert await later.commit({"nodes/c": b"3"})
    assert await records(await ledgers()) == {"nodes/a": b"1", "groups/b": b"2", "nodes/c": b"3"}
    assert len(api.of("computegroups")) == 1


async def test_many_planners_lose_no_change(ledgers: Open) -> None:
    async def count(ledger: KubernetesLedger) -> None:
        picture: dict[str, bytes] = {}
        for _ in range(6):
            while True:
                for key, value in await ledger.sync():
                    picture.pop(key, None) if value is None else picture.__setitem__(key, value)
                new = str(int(picture.get("groups/n", b"0")) + 1).encode()
                if await ledger.commit({"groups/n": new, f"groups/n{new.decode()}": new}):
                    picture["groups/n"] = new
                    break

    await asyncio.gather(*[count(await ledgers()) for _ in range(5)])
    found = await records(await ledgers())
    assert found.pop("groups/n") == b"30"
    assert sorted(map(int, found.values())) == list(range(1, 31))


async def test_a_change_that_is_too_large_for_one_object(api: KubeApi, ledgers: Open) -> None:
    one, two = await ledgers(), await ledgers()
    await one.sync()
    await two.sync()
    large = {f"nodes/n{number}": b"x" * 100_000 for number in range(12)}
    assert await one.commit(large)
    assert await records(two) == large
    assert await two.commit({}, ["nodes/n0"])
    assert not [obj for obj in api.of("configmaps") if "part" in obj["metadata"]["name"]]


async def test_history_that_is_forgotten_is_listed_anew(api: KubeApi, ledgers: Open) -> None:
    one, two = await ledgers(), await ledgers()
    await one.sync()
    await two.sync()
    api.fail("event", "configmaps", 410, times=2)
    for number in range(3):
        assert await one.commit({f"nodes/{number}": b"1"})
        api.forget()
    assert set(await records(two)) == {"nodes/0", "nodes/1", "nodes/2"}
    waiting = asyncio.create_task(two.wait(20))
    await one.commit({"nodes/3": b"1"})
    await asyncio.wait_for(waiting, 10)
    assert set(await records(two)) == {"nodes/3"}


async def test_a_write_that_comes_late_does_not_bring_back_what_was_deleted(api: KubeApi, ledgers: Open) -> None:
    one = await ledgers()
    await one.sync()
    assert await one.commit({"nodes/a": b"1"})
    (late,) = [obj for obj in api.of("configmaps") if "nodes-a" in obj["metadata"]["name"]]
    assert await one.commit({}, ["nodes/a"])
    late["metadata"].pop("resourceVersion")
    api.put("", "configmaps", late, NAMESPACE)
    assert await records(await ledgers()) == {}
    assert not [obj for obj in api.of("configmaps") if "nodes-a" in obj["metadata"]["name"]]


async def test_a_head_that_somebody_has_changed_is_said_to_be_none(api: KubeApi, ledgers: Open) -> None:
    await ledgers()
    head = api.objects[Key("", "configmaps", NAMESPACE, HEAD)]
    api.put("", "configmaps", {"metadata": head["metadata"], "data": {"change": "many"}}, NAMESPACE)
    with pytest.raises(UnreachableError, match="no head of a ledger"):
        await ledgers()


@pytest.mark.parametrize(
    ("what", "error"), [(429, BusyError), (500, UnreachableError), ("silence", UnreachableError)]
)
async def test_a_server_that_stays_away_is_told(
    api: KubeApi, ledgers: Open, what: int | str, error: type[Exception]
) -> None:
    ledger = await ledgers(patience_seconds=0.3, timeout_seconds=0.2)
    await ledger.sync()
    api.fail("update", "configmaps", what, times=1000)
    with pytest.raises(error):
        await ledger.commit({"nodes/a": b"1"})
    api.faults.clear()
    assert await records(ledger) == {}
    assert await ledger.commit({"nodes/a": b"2"})


async def test_where_custom_resources_may_not_be_had_groups_are_config_maps(tmp_path: Path) -> None:
    without = [rule for rule in rules() if rule["apiGroups"] != ["lavalite.io"]]
    for crd, its_rules in ((True, without), (False, rules())):
        async with running_api(its_rules) as api:
            furnish(api)
            if not crd:
                del api.kinds["lavalite.io", "computegroups"]
            async with planner(api, tmp_path) as manager:
                group = await manager.allocate_compute_group("decode", ONE)
                (kept,) = [o for o in api.of("configmaps") if o["metadata"]["name"].endswith(group.id)]
                assert kept["data"]["key"] == f"groups/{group.id}"
            assert not api.of("computegroups")


async def test_who_comes_later_goes_by_where_the_ledger_is(tmp_path: Path) -> None:
    async with running_api() as api:
        furnish(api)
        async with planner(api, tmp_path):
            pass
        api.rules = [rule for rule in rules() if rule["apiGroups"] != ["lavalite.io"]]
        with pytest.raises(RefusedError, match="computegroups"):
            await provider_on(api, tmp_path)


# --- groups as objects ----------------------------------------------------------------------------------------------


async def test_a_group_that_only_holds_is_a_pod_on_its_node(api: KubeApi, manager: ComputeGroupManager) -> None:
    group = await manager.allocate_compute_group("decode", {"gpu": 2, "cpu": 0.5, "memory": "1GiB"})
    (pod,) = api.of("pods")
    assert pod["spec"]["nodeName"] == group.node_id
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "500m", "memory": str(2**30)}
    (claim,) = api.of("resourceclaims")
    given = {result["device"] for result in claim["status"]["allocation"]["devices"]["results"]}
    assert {f"GPU-named-{name.removeprefix('gpu-')}" for name in given} == {
        gpu["id"] for gpu in group.resources["gpus"]
    }
    assert await manager.deallocate_compute_group(group.id)
    assert not api.of("pods") and not api.of("resourceclaims")


async def test_a_component_is_a_deployment(api: KubeApi, manager: ComputeGroupManager) -> None:
    await manager.register_component(
        "decode", ONE, command=["serve", "--all"], environment={"MODEL": "m"}, drain_seconds=7, image="x/serve:1"
    )
    group = await manager.allocate_compute_group("decode", ONE)
    (pod,) = api.of("pods")
    (container,) = pod["spec"]["containers"]
    assert (container["image"], container["command"]) == ("x/serve:1", ["serve", "--all"])
    told = {"MODEL": "m", "LAVALITE_GROUP": group.id, "LAVALITE_COMPONENT": "decode"}
    assert {each["name"]: each["value"] for each in container["env"]} == told
    assert pod["spec"]["terminationGracePeriodSeconds"] == 7
    assert pod["metadata"]["labels"]["lavalite.io/component"] == "decode"
    assert await manager.deallocate_compute_group(group.id)
    assert not api.of("pods") and not api.of("deployments")


async def test_gpus_that_are_only_counted(tmp_path: Path) -> None:
    async with running_api() as api:
        counted = node("counted", **{"nvidia.com/gpu": "3"})
        counted["metadata"]["labels"] |= {"nvidia.com/gpu.product": "Test-A", "nvidia.com/gpu.memory": "40960"}
        api.put("", "nodes", counted)
        others = {"containers": [{"name": "c", "resources": {"requests": {"nvidia.com/gpu": "1", "cpu": "2"}}}]}
        api.put("", "pods", {"metadata": {"name": "theirs"}, "spec": others | {"nodeName": "counted"}}, "other")
        async with planner(api, tmp_path) as manager:
            (found,) = await manager.list_compute_nodes()
            assert [(g["id"], g["model"], g["memory_bytes"]) for g in found.resources["gpus"]] == [
                (f"counted/gpu-{number}", "Test A", 40 * 2**30) for number in range(2)
            ]
            assert found.resources["cpu_milli"] == 6000
            group = await manager.allocate_compute_group("decode", {"gpu": 2, "cpu": 0.1})
            (pod,) = [pod for pod in api.of("pods") if pod["metadata"]["name"] != "theirs"]
            assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
            with pytest.raises(InsufficientResourcesError):
                await manager.allocate_compute_group("prefill", ONE)
            await manager.deallocate_compute_group(group.id)


async def test_a_node_that_takes_no_pods_gets_no_groups(api: KubeApi, manager: ComputeGroupManager) -> None:
    cordoned = node("named")
    cordoned["spec"]["unschedulable"] = True
    group = await manager.allocate_compute_group("decode", ONE)
    api.put("", "nodes", cordoned)
    (found,) = await manager.list_compute_nodes()
    assert found.state == "it is cordoned"
    with pytest.raises(InsufficientResourcesError):
        await manager.allocate_compute_group("decode", ONE)
    assert await state_of(manager, group.id) == "allocated"
    api.put("", "nodes", node("named"))
    await manager.list_compute_nodes()
    await manager.allocate_compute_group("decode", ONE)


async def test_what_the_scheduler_does_not_place_is_undone(api: KubeApi, tmp_path: Path) -> None:
    async with planner(api, tmp_path, deadlines=SHORT) as manager:
        # Somebody takes the node after we have looked.
        theirs = {"containers": [{"name": "c", "resources": {"requests": {"cpu": "8"}}}], "nodeName": "named"}
        taken = {"metadata": {"name": "theirs"}, "spec": theirs, "status": {"phase": "Running"}}
        api.put("", "pods", taken, "other")
        with pytest.raises(UnplacedError, match="Insufficient cpu"):
            await manager.allocate_compute_group("decode", ONE)
        assert await manager.list_compute_groups() == []
        assert pods(api) == ["theirs"] and not api.of("resourceclaims")


async def test_a_pod_that_fails_fails_its_group(api: KubeApi, manager: ComputeGroupManager) -> None:
    group = await manager.allocate_compute_group("decode", ONE)
    (key,) = [key for key in api.objects if key.plural == "pods"]
    api.fail("event", "pods", 410)
    api.forget()
    api.fail_pod(key, "Evicted", "The node was low on resource: memory.")

    async def failed() -> bool:
        return await state_of(manager, group.id) == "failed"

    await until(failed)
    assert "low on resource" in (await manager.get_compute_group(group.id)).reason
    assert await manager.deallocate_compute_group(group.id)
    assert not api.of("pods")


async def test_a_pod_that_somebody_removed_fails_its_group(api: KubeApi, manager: ComputeGroupManager) -> None:
    group = await manager.allocate_compute_group("decode", ONE)
    (key,) = [key for key in api.objects if key.plural == "pods"]
    api.delete(key, 0)

    async def failed() -> bool:
        return await state_of(manager, group.id) == "failed"

    await until(failed)
    assert "is gone" in (await manager.get_compute_group(group.id)).reason


async def test_a_node_that_vanishes_fails_its_groups(api: KubeApi, manager: ComputeGroupManager) -> None:
    group = await manager.allocate_compute_group("decode", ONE)
    api.delete(Key("", "nodes", "", "named"))
    await manager.list_compute_nodes()
    assert await state_of(manager, group.id) == "failed"
    assert await manager.deallocate_compute_group(group.id)


async def test_a_device_is_given_to_nobody_while_its_pod_ends(api: KubeApi, tmp_path: Path) -> None:
    async with planner(api, tmp_path, deadlines=SHORT) as manager:
        await manager.register_component("decode", {"gpu": 4, "cpu": 0.1}, command=["serve"], drain_seconds=0)
        group = await manager.allocate_compute_group("decode", {"gpu": 4, "cpu": 0.1})
        api.hold_ends = True
        with pytest.raises(BusyError, match="does not end"):
            await manager.deallocate_compute_group(group.id)
        with pytest.raises(InsufficientResourcesError):
            await manager.allocate_compute_group("prefill", ONE)
        api.hold_ends = False
        api.settle()
        assert await manager.deallocate_compute_group(group.id)
        await manager.allocate_compute_group("prefill", ONE)


async def test_a_budget_holds_up_an_eviction(api: KubeApi, manager: ComputeGroupManager) -> None:
    await manager.register_component("decode", ONE, command=["serve"], drain_seconds=1)
    group = await manager.allocate_compute_group("decode", ONE)
    selector = {"matchLabels": {"lavalite.io/component": "decode"}}
    budget = {"metadata": {"name": "decode"}, "spec": {"minAvailable": 1, "selector": selector}}

    async def running() -> bool:
        return [pod["status"]["phase"] for pod in api.of("pods")] == ["Running"]

    await until(running)
    api.put("policy", "poddisruptionbudgets", budget, NAMESPACE)
    before = pods(api)
    assert await manager.drain_compute_group(group.id)
    assert await state_of(manager, group.id) == "draining"
    assert pods(api) == before, "the budget is respected"
    api.delete(Key("policy", "poddisruptionbudgets", NAMESPACE, "decode"))

    async def gone() -> bool:
        return not api.of("pods")

    await until(gone)
    assert await state_of(manager, group.id) == "draining"
    assert await manager.resume_compute_group(group.id)
    await until(running)
    assert await state_of(manager, group.id) == "allocated"


@pytest.mark.parametrize("what", [409, 429, 500, "cut"])
@pytest.mark.parametrize("done", [True, False])
async def test_faults_while_a_group_is_made_and_removed(
    api: KubeApi, manager: ComputeGroupManager, what: int | str, done: bool
) -> None:
    if what == 409 and done:
        what = 503  # a conflict says that nothing was done
    for verb, plural in (("create", "pods"), ("delete", "pods"), ("list", "pods"), ("create", "resourceclaims")):
        api.fail(verb, plural, what if (verb, what) != ("list", 409) else 500, done=done)
    group = await manager.allocate_compute_group("decode", ONE)
    assert len(api.of("pods")) == 1
    try:
        await manager.deallocate_compute_group(group.id)
    except Exception:
        assert what == 409  # the delete of a pod is refused: nothing is given back
        await manager.deallocate_compute_group(group.id)
    assert not api.of("pods") and await manager.list_compute_groups() == []


async def test_a_storm_of_conflicts(api: KubeApi, manager: ComputeGroupManager) -> None:
    api.fail("update", "configmaps", 409, times=8)
    api.fail("create", "computegroups", 409, times=3)
    group = await manager.allocate_compute_group("decode", ONE)
    assert await state_of(manager, group.id) == "allocated"


# --- restarts -------------------------------------------------------------------------------------------------------


async def test_what_a_planner_was_making_when_it_died_is_undone(api: KubeApi, tmp_path: Path) -> None:
    first = await provider_on(api, tmp_path, identity="one")
    api.paused = True
    asking = asyncio.create_task(first.allocate_resources("decode", dict(ONE)))

    async def made() -> bool:
        return bool(api.of("pods"))

    await until(made)
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task() and "_give" in repr(task.get_coro()):
            task.cancel()  # as death does: nothing is unwound
    await asyncio.gather(asking, return_exceptions=True)
    await first.close()
    assert len(api.of("pods")) == 1
    api.paused = False
    async with planner(api, tmp_path, identity="one") as manager:
        assert await manager.list_compute_groups() == []
        assert not api.of("pods") and not api.of("resourceclaims")


async def test_state_is_reconciled_with_the_objects_at_start(api: KubeApi, tmp_path: Path) -> None:
    async with planner(api, tmp_path) as manager:
        kept = await manager.allocate_compute_group("decode", ONE)
    (key,) = [key for key in api.objects if key.plural == "pods"]
    stray = {"metadata": dict(api.objects[key]["metadata"]), "spec": api.objects[key]["spec"]}
    stray["metadata"]["name"] = "lavalite-stray"
    stray["metadata"]["labels"] = stray["metadata"]["labels"] | {"lavalite.io/group": "stray"}
    api.delete(key, 0)
    api.put("", "pods", stray, NAMESPACE)
    async with planner(api, tmp_path) as manager:
        assert await state_of(manager, kept.id) == "allocated"

        async def right() -> bool:
            return pods(api) == [key.name]

        await until(right)


# --- rights ---------------------------------------------------------------------------------------------------------


async def test_the_manifest_has_just_the_rights_that_are_used(tmp_path: Path) -> None:
    allowed = {
        (rule["namespace"] is not None, verb, group, resource)
        for rule in rules()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    async with running_api(rules()) as api:
        furnish(api)
        async with planner(api, tmp_path) as manager:
            await manager.register_component("decode", ONE, command=["serve"], drain_seconds=1)
            group = await manager.allocate_compute_group("decode", ONE)
            await manager.drain_compute_group(group.id)
            await manager.deallocate_compute_group(group.id)
            free = await manager.create_compute_group({"gpu": 0.5, "cpu": 0.1, "isolation": "none"})
            async with planner(api, tmp_path) as other:
                await other.deallocate_compute_group((await other.allocate_compute_group("other", ONE)).id)
            await manager.put_pool("p", {"nodes": "*", "kinds": ["gpu"]})
            await manager.delete_pool("p")
            await manager.delete_compute_group(free.id)
            assert not api.of("pods")
        assert api.used == allowed


def test_the_custom_resource_has_a_schema_of_what_is_written() -> None:
    import yaml
    from jsonschema import Draft202012Validator

    from lavalite.groups.kubernetes.storage import _object
    from lavalite.providers.kubernetes.connection import GROUPS

    crd = yaml.safe_load((MANIFESTS / "crd.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    written = _object("groups/g1", b'{"node": "n", "state": "free"}', 3, GROUPS)
    schema = version["schema"]["openAPIV3Schema"]
    Draft202012Validator(schema).validate(written)
    assert set(written["spec"]) <= set(schema["properties"]["spec"]["properties"])
    assert (crd["spec"]["group"], crd["spec"]["names"]["plural"]) == ("lavalite.io", GROUPS.resource)


async def test_a_missing_right_is_named(tmp_path: Path) -> None:
    few = [rule for rule in rules() if rule["resources"] != ["nodes", "pods"]]
    async with running_api(few) as api:
        furnish(api)
        with pytest.raises(RefusedError, match="list nodes"):
            await KubernetesComputeResourceProvider.open(kubeconfig=kubeconfig(api, tmp_path, NAMESPACE))
