"""What nodes of Kubernetes offer, and what groups are made of there: the laws, without a server."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavalite.groups.kubernetes.head import MOST_DELETED, Head, Intent, part_objects
from lavalite.groups.kubernetes.storage import object_name, text_of, value_of
from lavalite.groups.kubernetes.workloads import Options, label_of, name_of, scheduled, workload_of
from lavalite.groups.records import GroupRecord
from lavalite.model.job import Share
from lavalite.model.resources import Device
from lavalite.providers.base import NotOfferedError
from lavalite.providers.kubernetes.devices import claimed_devices, numbered_devices, sliced_devices
from lavalite.providers.kubernetes.offers import Seen, closed, offers_of
from lavalite.providers.kubernetes.usage import amount, asked_of, used_by

Json = dict[str, Any]


def container(**requests: str) -> Json:
    return {"name": "c", "resources": {"requests": requests}}


# --- amounts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "text", "found"),
    [
        ("cpu", "250m", 250),
        ("cpu", "1.5", 1500),
        ("cpu", "100u", None),
        ("memory", "16Gi", 16 * 2**30),
        ("memory", "128974848", 128974848),
        ("memory", "129e6", 129_000_000),
        ("memory", "1500m", 2),
        ("nvidia.com/gpu", "8", 8),
        ("cpu", None, 0),
        ("cpu", "0", 0),
    ],
)
def test_quantities_are_read(resource: str, text: str | None, found: int | None) -> None:
    if found is None:
        with pytest.raises(ValueError, match="suffix"):
            amount(resource, text)
    else:
        assert amount(resource, text) == found


def test_a_pod_asks_for_the_greater_of_its_containers_and_its_init_containers() -> None:
    pod: Json = {
        "spec": {
            "initContainers": [
                {**container(cpu="100m"), "restartPolicy": "Always"},
                container(cpu="2", memory="1Gi"),
            ],
            "containers": [container(cpu="500m", memory="2Gi"), container(cpu="500m")],
            "overhead": {"cpu": "10m"},
        }
    }
    assert asked_of(pod) == {"cpu": 2110, "memory": 2 * 2**30}
    pod["spec"]["resources"] = {"requests": {"cpu": "3"}}
    assert asked_of(pod)["cpu"] == 3010
    assert asked_of({"spec": {"containers": [{"resources": {"limits": {"cpu": "1"}}}]}}) == {"cpu": 1000}


def test_only_pods_that_are_on_a_node_and_have_not_ended_use_it() -> None:
    spec = {"containers": [container(cpu="1")], "nodeName": "n"}
    pods = [
        {"spec": spec, "status": {"phase": "Running"}},
        {"spec": spec, "status": {"phase": "Succeeded"}},
        {"spec": spec, "status": {"phase": "Failed"}},
        {"spec": {"containers": spec["containers"]}, "status": {"phase": "Pending"}},
    ]
    assert used_by(pods) == {"n": Counter(cpu=1000)}


# --- devices --------------------------------------------------------------------------------------------------------


def counted(total: int) -> Json:
    return {"metadata": {"name": "n"}, "status": {"allocatable": {"nvidia.com/gpu": str(total)}}}


@given(total=st.integers(0, 12), others=st.integers(0, 12), held=st.sets(st.integers(0, 15), max_size=6))
def test_numbers_stand_for_gpus(total: int, others: int, held: set[int]) -> None:
    ours = frozenset(f"n/gpu-{number}" for number in held)
    found = [gpu.id for gpu in numbered_devices(counted(total), Counter({"nvidia.com/gpu": others}), ours)]
    assert len(set(found)) == len(found)
    assert ours <= set(found), "what is held stays"
    assert len(found) == max(len(held), total - others), "and nothing is offered that others have"


def test_mig_instances_of_a_device_plugin() -> None:
    node: Json = {
        "metadata": {"name": "n", "labels": {"nvidia.com/mig-1g.10gb.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"}},
        "status": {"allocatable": {"nvidia.com/mig-1g.10gb": "2", "nvidia.com/gpu": "0", "example.com/gpu": "9"}},
    }
    found = numbered_devices(node, Counter(), frozenset())
    assert [(gpu.id, gpu.mig, gpu.model) for gpu in found] == [
        (f"n/mig-1g.10gb-{number}", "1g.10gb", "NVIDIA H100 80GB HBM3") for number in range(2)
    ]


def dra(name: str, *devices: Json, generation: int = 1, count: int = 1, pool: str = "n") -> Json:
    where = {"name": pool, "generation": generation, "resourceSliceCount": count}
    spec = {"driver": "gpu.nvidia.com", "nodeName": "n", "pool": where, "devices": list(devices)}
    return {"metadata": {"name": name}, "spec": spec}


def dra_gpu(name: str, **more: Any) -> Json:
    return {"name": name, "attributes": {"uuid": {"string": f"GPU-{name}"}, "type": {"string": "gpu"}}, **more}


def ids(slices: list[Json], taken: frozenset[Any] = frozenset(), held: frozenset[str] = frozenset()) -> list[str]:
    return [gpu.id for gpu in sliced_devices(slices, taken, held).get("n", [])]


def test_which_devices_of_slices_are_offered() -> None:
    assert ids([dra("a", dra_gpu("0"), dra_gpu("1"))]) == ["GPU-0", "GPU-1"]
    assert ids([dra("a", dra_gpu("0"), count=2)]) == [], "a slice is missing yet"
    newer = [dra("a", dra_gpu("0")), dra("b", dra_gpu("1"), generation=2)]
    assert ids(newer) == ["GPU-1"], "an old generation is no more"
    taint = {"taints": [{"effect": "NoExecute"}]}
    assert ids([dra("a", dra_gpu("0", **taint))]) == []
    assert ids([dra("a", dra_gpu("0", **taint))], held=frozenset({"GPU-0"})) == ["GPU-0"]
    assert ids([dra("a", {"name": "0", "attributes": {}})]) == [], "nothing could name it"
    mig = {"name": "m", "attributes": {"uuid": {"string": "MIG-m"}, "type": {"string": "mig"}}}
    mig["attributes"]["profile"] = {"string": "1g.10gb"}
    assert ids([dra("a", dra_gpu("0"), {**mig, "consumesCounters": [{}]})]) == ["GPU-0"]
    (found,) = sliced_devices([dra("a", mig)], frozenset(), frozenset())["n"]
    assert found.mig == "1g.10gb"


def test_what_claims_of_others_have_is_not_offered() -> None:
    result = {"request": "r", "driver": "gpu.nvidia.com", "pool": "n", "device": "0"}
    claims = [
        {
            "status": {
                "allocation": {"devices": {"results": [result, {**result, "device": "1", "adminAccess": True}]}}
            }
        },
        {"status": {}},
        {},
    ]
    assert ids([dra("a", dra_gpu("0"), dra_gpu("1"))], claimed_devices(claims)) == ["GPU-1"]


def test_where_a_node_has_its_gpus_both_ways_they_are_the_same() -> None:
    node = counted(2) | {"spec": {}}
    (offer,) = offers_of(Seen([node], [], [dra("a", dra_gpu("0"), dra_gpu("1"))]), frozenset())
    assert [gpu.id for gpu in offer.devices("gpu")] == ["GPU-0", "GPU-1"]


@pytest.mark.parametrize(
    ("spec", "conditions", "said"),
    [
        ({}, [{"type": "Ready", "status": "True"}], ""),
        ({"unschedulable": True}, [{"type": "Ready", "status": "True"}], "cordoned"),
        ({}, [{"type": "Ready", "status": "Unknown", "message": "no news"}], "not ready: no news"),
        ({}, [], "not ready"),
        ({"taints": [{"key": "k", "effect": "NoSchedule"}]}, [{"type": "Ready", "status": "True"}], "k:NoSchedule"),
        ({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}, [{"type": "Ready", "status": "True"}], ""),
    ],
)
def test_nodes_that_take_no_pods(spec: Json, conditions: list[Json], said: str) -> None:
    why = closed({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}})
    assert bool(why) == bool(said) and said in why


# --- workloads ------------------------------------------------------------------------------------------------------

DRA = Device(id="GPU-0", attributes={"driver": "gpu.nvidia.com", "claimed": "n/0"})
NUMBER = Device(id="n/gpu-0", attributes={"numbered": "nvidia.com/gpu"})


def record(device: Device, milli: int, **more: Any) -> GroupRecord:
    shares = [Share(provider="n", kind="gpu", amount=milli, devices=[device.id])]
    return GroupRecord(id="g1", node="n", shares=shares, state="allocated", component="decode", **more)


def test_parts_of_a_gpu_share_a_claim_and_whole_ones_have_their_own() -> None:
    one = workload_of(record(DRA, 500, isolation="none"), {DRA.id: DRA}, Options())
    two = workload_of(record(DRA, 500, isolation="none").model_copy(update={"id": "g2"}), {DRA.id: DRA}, Options())
    assert one.shared == two.shared and not one.claims
    whole = workload_of(record(DRA, 1000), {DRA.id: DRA}, Options())
    assert not whole.shared and '"GPU-0"' in str(whole.claims)


def test_what_kubernetes_cannot_keep_apart_is_refused() -> None:
    with pytest.raises(NotOfferedError, match="gives them out whole"):
        workload_of(record(NUMBER, 500, isolation="none"), {NUMBER.id: NUMBER}, Options())
    with pytest.raises(NotOfferedError, match="kept apart"):
        workload_of(record(DRA, 500, isolation="mps"), {DRA.id: DRA}, Options())


def test_a_run_is_a_deployment_only_once_somebody_has_the_group() -> None:
    run = {"command": ["x"], "environment": {}, "drain_seconds": 3}
    assert workload_of(record(DRA, 1000, run=run), {DRA.id: DRA}, Options()).deployment is not None
    free = record(DRA, 1000, run=run).model_copy(update={"state": "free", "component": ""})
    assert workload_of(free, {DRA.id: DRA}, Options()).deployment is None


def test_a_pod_is_placed_once_it_has_its_node() -> None:
    waits = {"type": "PodScheduled", "status": "False", "message": "no room"}
    assert scheduled([]) == (False, "")
    assert scheduled([{"metadata": {}, "spec": {}, "status": {"conditions": [waits]}}]) == (False, "no room")
    assert scheduled([{"metadata": {}, "spec": {"nodeName": "n"}, "status": {"phase": "Pending"}}]) == (True, "")
    assert not scheduled([{"metadata": {"deletionTimestamp": "now"}, "spec": {"nodeName": "n"}}])[0]


@given(st.text(min_size=1, max_size=70))
def test_labels_and_names_are_such_as_kubernetes_takes(text: str) -> None:
    import re

    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", label_of(text))
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name_of(text))


# --- the ledger's objects -------------------------------------------------------------------------------------------


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | st.just(b"base64:x"))
def test_values_are_kept_as_they_are(value: bytes) -> None:
    assert value_of(text_of(value)) == value


@given(st.sets(st.text(min_size=1, max_size=60).map("nodes/".__add__), min_size=2, max_size=8))
def test_keys_have_names_of_their_own(keys: set[str]) -> None:
    import re

    names = {object_name(key) for key in keys}
    assert len(names) == len(keys)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", name) for name in names)


@given(
    st.dictionaries(st.text(max_size=9), st.binary(max_size=20), max_size=4),
    st.lists(st.text(max_size=9), max_size=3),
)
def test_a_head_is_read_as_it_was_written(puts: dict[str, bytes], deletes: list[str]) -> None:
    intent = Intent(puts, tuple(deletes))
    assert Intent.read(intent.text()) == intent
    head = Head("configmaps", version="7").next(intent, intent.text(), "w")
    written = head.object()
    assert Head.read(written) == head and head.change == 1 and head.writer == "w" and not head.parts
    pieces = part_objects("é" * 500_000, "w", 1)
    assert "".join(piece["data"]["text"] for piece in pieces) == "é" * 500_000
    assert all(len(piece["data"]["text"].encode()) < 2**20 for piece in pieces)


def test_what_was_deleted_is_remembered_for_a_while() -> None:
    head = Head("configmaps")
    for number in range(MOST_DELETED + 5):
        intent = Intent({}, (f"nodes/{number}",))
        head = head.next(intent, intent.text(), str(number))
    assert len(head.deleted) == MOST_DELETED and "nodes/0" not in head.deleted
    again = Intent({f"nodes/{MOST_DELETED}": b""})
    assert f"nodes/{MOST_DELETED}" not in head.next(again, again.text(), "w").deleted
