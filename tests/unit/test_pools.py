"""pools.yml: what a good one means, and what is said of bad ones, all at once."""

from __future__ import annotations

import json
from signal import SIGUSR1
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavalite.base.errors import InputError
from lavalite.model.host import VmAsk
from lavalite.model.pools import check_document, check_pools_file, load_pools, pools_from
from lavalite.model.pools_hosts import HostEntry
from lavalite.model.resources import Device, NodeOffer, Resource
from lavalite.model.specs import Fairshare, Limits, LinkSpec, NodeCapacity, PoolSpec, Preemption, QueueSpec, Quota

GIB, TIB = 2**30, 2**40

GOOD = """\
plugin: lavalite.cluster.pools
cluster: rack1
mode: live
api: [https://ctl1:6880, https://ctl2:6880]
timeout: 5s
capacity:
  n01: {cpu: 32, memory: 256GiB, gpu: {model: A100, count: 8, memory: 80GiB}, storage: 3.5TiB, rack: r1}
links:
  - {from: {rack: r1}, to: r1, bandwidth: 25Gbit/s}
  - {from: r1, to: core, bandwidth: 100Gbit/s}
pools:
  general:  {nodes: {group: lavalite_nodes}, kinds: [cpu, memory], default: true}
  gpus:     {nodes: {group: lavalite_gpu, rack: r1}, kinds: [gpu], cohort: x, quota: {r: {nominal: 8, borrow: 4}}}
  flash:    {nodes: "n[01:04]", kinds: [storage], default: true}
  licences: {floating: {matlab: 20}}
logical_hosts:
  analytics:
    cpu: 16
    memory: 256GiB
    far: {memory: 50%}
    storage: {size: 2TiB, iops: 20000, pool: flash}
    network: {bandwidth: 10Gbit/s}
    near: rack
    limits: {memory: 512GiB}
  trainer:
    count: 2
    gpu: {count: 4, model: A100, pool: gpus, topology: nvlink}
    cpu: 16
    memory: 128GiB
queues:
  normal: {priority: 30, policy: best-fit, default: true}
  short:  {priority: 50, policy: first-fit, limits: {walltime: 15m, tasks_per_user: 200}}
keyed_groups: [{key: lavalite_anchor, prefix: at}]
strict: true
"""


def node(name: str, *, gpus: int = 0, model: str = "NVIDIA A100-SXM4-80GB", **labels: list[str]) -> NodeCapacity:
    """32 cores, 256 GiB, 3.5 TiB, 25 Gbit/s."""
    devices = tuple(Device(id=f"{name}-{n}", model=model, memory_bytes=80 * GIB) for n in range(gpus))
    amounts = {"cpu": 32_000, "memory": 256 * GIB, "storage": 3584 * GIB, "network": 25 * 10**9}
    if gpus:
        amounts["gpu"] = 1000 * gpus
    return NodeCapacity(
        name, {"group": ["all", "lavalite_nodes"], **labels}, amounts, {"gpu": devices} if gpus else {}
    )


def sentences(text: str, nodes: list[NodeCapacity] | None = None) -> list[str]:
    return [fault.sentence() for fault in check_pools_file(text, "pools.yml", nodes)]


# --- good ones -----------------------------------------------------------------------------------------------------


def test_hosts_one_by_one() -> None:
    analytics, first, second = load_pools(GOOD, "pools.yml").hosts()
    assert analytics.amounts == {"cpu": 16_000, "memory": 256 * GIB, "storage": 2 * TIB, "network": 10**10}
    assert analytics.pools == {"cpu": "general", "memory": "general", "storage": "flash"}
    assert analytics.far == {"memory": 128 * GIB}  # 50% of 256 GiB
    assert analytics.limits == {"memory": 512 * GIB}
    assert (analytics.near, analytics.storage_iops) == ("rack", 20_000)
    assert [first.name, second.name, second.entry] == ["trainer-1", "trainer-2", "trainer"]
    assert (first.amounts["gpu"], first.gpu_model, first.topology) == (4000, "A100", "nvlink")
    assert first.asked() == "4 A100, 16 cpu, 128GiB memory, pool general, pool gpus"


def test_pools_queues_links_and_capacity() -> None:
    document = load_pools(GOOD)
    general, gpus, _, licences = document.pool_specs()
    assert (general.kinds, general.default) == (("cpu", "memory"), True)
    assert gpus.quota == {"r": {"gpu": Quota(8000, 4000, None)}}
    assert gpus.has("n07", {"group": ["lavalite_gpu"], "rack": ["r1"]})
    assert licences == PoolSpec("licences", floating={"matlab": 20})
    assert document.queue_specs() == [
        QueueSpec("normal", 30, "best-fit", True),
        QueueSpec("short", 50, "first-fit", False, 900, 200),
    ]
    assert document.link_specs()[1] == LinkSpec("core", 10**11, switch="r1")
    [n01] = document.capacity_nodes()
    assert n01.labels == {"rack": ["r1"]}
    assert n01.amounts["network"] == 25 * 10**9  # its link to the switch
    assert n01.amounts["gpu"] == 8000
    assert document.connection.timeout == 5
    assert document.constructed == {"keyed_groups": [{"key": "lavalite_anchor", "prefix": "at"}], "strict": True}


def test_defaults_where_little_is_written() -> None:
    document = load_pools("cluster: tiny\nlogical_hosts: {a: {cpu: 1}}\n")
    assert document.queue_specs() == [QueueSpec("normal", 30, "best-fit", True, fence_after_seconds=900)]
    assert document.hosts()[0].pools == {}  # no pools at all: any node
    assert load_pools("cluster: t\nqueues: {only: {}}\n").queue_specs()[0].default
    shorthand = load_pools("cluster: t\nlogical_hosts: {a: {cpu: 0.5, gpu: 0.5, storage: 1GB, network: 1Gbit/s}}\n")
    assert shorthand.hosts()[0].amounts == {"cpu": 500, "gpu": 500, "storage": 10**9, "network": 10**9}
    assert [h.name for h in load_pools("cluster: t\nlogical_hosts: {a: {cpu: 1, count: 1}}").hosts()] == ["a-1"]
    assert load_pools("cluster: t\nlogical_hosts: {a: {cpu: 1, count: 0}}").hosts() == []


def test_how_a_host_is_put_together() -> None:
    text = """\
cluster: t
logical_hosts:
  a:
    count: 2
    cpu: 4
    memory: 10GiB
    gpu: 4
    far: {memory: 50%, gpu: 2, circuit: 10Gbit/s}
    storage: {size: 1TiB, circuit: 5Gbit/s}
    strategy: spread
    executor: vm
    vm: {image: debian.qcow2, addresses: [10.0.0.7/24, 10.0.0.8/24], gateway: 10.0.0.1, ssh_keys: [ssh-ed25519 AA a]}
    on_loss: degrade
  b: {cpu: 1, storage: 1TiB}
"""
    document = load_pools(text)
    first, second, plain = document.hosts()
    assert first.far == {"memory": 5 * GIB, "gpu": 2000}
    assert first.circuits == {"memory": 10**10, "gpu": 10**10, "storage": 5 * 10**9}
    assert (first.strategy, first.executor, first.on_loss) == ("spread", "vm", "degrade")
    assert first.vm == VmAsk(
        image="debian.qcow2", address="10.0.0.7/24", gateway="10.0.0.1", ssh_keys=["ssh-ed25519 AA a"]
    )
    assert second.vm is not None and second.vm.address == "10.0.0.8/24"
    assert (plain.strategy, plain.executor, plain.vm, plain.on_loss) == ("near", "bare", None, "fail")
    assert (plain.far, plain.circuits) == ({}, {})
    assert pools_from(json.loads(json.dumps(document.canonical()))).hosts() == document.hosts()


def test_canonical_is_json_and_reads_back_the_same() -> None:
    document = load_pools(GOOD, "pools.yml")
    stored = json.loads(json.dumps(document.canonical()))
    assert stored["logical_hosts"]["analytics"]["memory"] == "256GiB"  # as typed
    assert stored["parsed"]["hosts"]["analytics"]["amounts"]["memory"] == 256 * GIB  # and in integers
    assert "capacity" not in stored
    assert "api" not in stored
    again = pools_from(stored)
    assert again.hosts() == document.hosts()
    assert again.pool_specs() == document.pool_specs()
    assert again.canonical() == document.canonical()


def test_a_node_from_its_offer() -> None:
    gpu = Device(id="GPU-1", model="A100")
    offer = NodeOffer(
        node="n01",
        boot_id="b",
        labels={"group": ["all"]},
        resources=[
            Resource(name="n01/cpu", kind="cpu", amount=4000, unit="milli-core", owner="n01"),
            Resource(name="n01/gpu", kind="gpu", amount=1000, unit="milli-GPU", owner="n01", devices=[gpu]),
        ],
    )
    assert NodeCapacity.from_offer(offer) == NodeCapacity(
        "n01", {"group": ["all"]}, {"cpu": 4000, "gpu": 1000}, {"gpu": (gpu,)}
    )


# --- bad ones, by themselves ---------------------------------------------------------------------------------------

BAD = """\
plugin: lavalite.cluster.pool
cluser: x
mode: offline
api: [ctl1]
capacity:
  n01: {cpu: 4, memroy: 3GiB}
  n02: {cpu: -1}
links:
  - {from: {rack: r1}, to: r1, bandwidth: 25Gbps}
  - {from: a, to: b, bandwidth: 1Gbit/s}
  - {from: b, to: a, bandwidth: 1Gbit/s}
  - {form: a, to: b, bandwidth: 1Gbit/s}
pools:
  general: {nodes: {group: g}, kinds: [cpu, memory, cpus], default: true}
  gpus: {nodes: "n[04:01]", kinds: [gpu]}
  x: {nodes: n*, kinds: [cpu], default: 1}
  z: {floating: {a: -1}}
  w:
logical_hosts:
  a:
    cpu: 0.00001
    memory: 256Gib
    gpus: 3
    count: -1
    near: rak
  b: 5
queues: []
"""

BAD_SAID = """\
pools.yml:1: plugin: lavalite.cluster.pool is not known here. Did you mean lavalite.cluster.pools?
pools.yml:1: cluster: missing. Write cluster: …
pools.yml:2: cluser: unknown key. Did you mean cluster?
pools.yml:3: mode: offline is not known here. Write live or plan or auto.
pools.yml:6: capacity.n01.memroy: unknown key. Did you mean memory?
pools.yml:7: capacity.n02.cpu: -1 is negative. Write 0 or more, as 16, or 0.5 for half a core.
pools.yml:9: links[0].bandwidth: 25Gbps has no unit of a bandwidth. Write 25Gbit/s.
pools.yml:11: links[2]: b → a → b goes in a circle. Write each link once, from the nodes upwards.
pools.yml:12: links[3].from: missing. Write from: …
pools.yml:12: links[3].form: unknown key. Did you mean from?
pools.yml:14: pools.general.kinds[2]: cpus is not known here. Did you mean cpu?
pools.yml:15: pools.gpus.nodes: [04:01] ends before it begins. Write it as [01:04]: first, last, both of one \
width where there are zeros.
pools.yml:16: pools.x.default: 1 is not true or false. Write true or false.
pools.yml:17: pools.z.floating.a: -1 is negative. Write 0 or more, as 20.
pools.yml:18: pools.w: a pool of nothing. Write nodes and kinds, or floating.
pools.yml:21: logical_hosts.a.cpu: 0.00001 is finer than a thousandth. Write it as 16, or 0.5 for half a core.
pools.yml:22: logical_hosts.a.memory: 256Gib has no unit of a size. Write 256GiB.
pools.yml:23: logical_hosts.a.gpus: unknown key. Did you mean gpu?
pools.yml:24: logical_hosts.a.count: -1 is too low. Write 0 or more.
pools.yml:25: logical_hosts.a.near: rak is not known here. Did you mean rack?
pools.yml:26: logical_hosts.b: 5 is not a mapping. Write keys and values below it.
pools.yml:27: queues: a list is not a mapping. Write names, and what each is."""


def test_all_faults_of_one_document_at_once() -> None:
    assert sentences(BAD) == BAD_SAID.split("\n")
    with pytest.raises(InputError) as caught:
        load_pools(BAD, "pools.yml")
    assert str(caught.value) == BAD_SAID
    assert caught.value.exit_code == 2


def test_surprises_of_yaml_hide_no_other_fault() -> None:
    """And what stands on a surprise is said once only."""
    assert sentences(
        "cluster: t\nqueues: {a: {limits: {walltime: 15:30}, policy: no}}\nlogical_hosts: {b: {cpu: 0}}\n"
    ) == [
        "pools.yml:2: queues.a.limits.walltime: YAML reads 15:30 as 930. Write '15:30' in quotes, or 15m30s for a "
        "duration.",
        "pools.yml:2: queues.a.policy: YAML reads no as false. Write false, or 'no' in quotes for the text.",
        "pools.yml:3: logical_hosts.b.cpu: no CPU is asked for. A host is where its CPU is: write cpu: 1 or more.",
    ]
    assert len(sentences("cluster: t\npools: [\n")) == 1


GENERAL = "general: {nodes: '*', kinds: [cpu, memory, gpu], default: true}"


@pytest.mark.parametrize(
    ("body", "code", "sentence"),
    [
        (
            "logical_hosts: {trainer: {cpu: 1, count: 2}, trainer-1: {cpu: 1}}",
            "duplicate_host",
            "logical_hosts.trainer-1: trainer-1 is also a host of logical_hosts.trainer. Rename one of the two.",
        ),
        (
            "capacity: {n01: {cpu: 1}}\nlogical_hosts: {n01: {cpu: 1}}",
            "name_taken",
            "logical_hosts.n01: n01 is a node already. Choose another name for the logical host.",
        ),
        (
            "logical_hosts: {lavalite_nodes: {cpu: 1}}",
            "name_taken",
            "logical_hosts.lavalite_nodes: lavalite_nodes is a name that Ansible groups have. "
            "Choose another name for the logical host.",
        ),
        (
            "logical_hosts: {a: {memory: 1GiB}}",
            "missing",
            "logical_hosts.a.cpu: missing. Write cpu: …",
        ),
        (
            "logical_hosts: {a: {cpu: 0}}",
            "out_of_range",
            "logical_hosts.a.cpu: no CPU is asked for. A host is where its CPU is: write cpu: 1 or more.",
        ),
        (
            "pools: {gpus: {nodes: '*', kinds: [gpu]}}\nlogical_hosts: {a: {cpu: 1, gpu: {count: 1, pool: gpu}}}",
            "unknown_pool",
            "logical_hosts.a.gpu.pool: there is no pool gpu. Did you mean gpus?",
        ),
        (
            f"pools: {{{GENERAL}}}\nlogical_hosts: {{a: {{cpu: 1, storage: {{size: 1GB, pool: general}}}}}}",
            "wrong_pool",
            "logical_hosts.a.storage.pool: pool general is not for storage. Add storage to its kinds.",
        ),
        (
            "pools: {gpus: {nodes: '*', kinds: [gpu]}}\nlogical_hosts: {a: {cpu: 1, gpu: 1}}",
            "no_pool",
            "logical_hosts.a.gpu: no pool is named, and no pool for gpu is the default. "
            "Write pool: gpus, or default: true at one pool for gpu.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, memory: 2GiB, limits: {memory: 1GiB}}}",
            "out_of_range",
            "logical_hosts.a.limits.memory: 1GiB is less than the 2GiB it begins with. Write 2GiB or more.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, memory: 2GiB, far: {memory: 3GiB}}}",
            "out_of_range",
            "logical_hosts.a.far.memory: more may be far than the 2GiB asked for. Write 2GiB or less, or 100%.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, gpu: 2, far: {gpu: 3}}}",
            "out_of_range",
            "logical_hosts.a.far.gpu: more may be far than the 2 asked for. Write 2 or less.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, far: {gpu: 1}}}",
            "out_of_range",
            "logical_hosts.a.far.gpu: more may be far than the 0 asked for. Leave it out, or ask for gpu.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, gpu: 2, far: {gpu: 0.5}}}",
            "out_of_range",
            "logical_hosts.a.far: a GPU of another node is had whole. Write gpu: 1.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, gpu: {count: 2, topology: nvlink}, far: {gpu: 1}}}",
            "out_of_range",
            "logical_hosts.a.far.gpu: GPUs that have nvlink in common are all of one node. "
            "Leave it out, or leave out gpu.topology.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, far: {circuit: 1Gbit/s}}}",
            "missing",
            "logical_hosts.a.far: a circuit to nothing. Write memory or gpu: what may be far.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, memory: 2GiB, far: {memory: 1GiB, circuit: 5}}}",
            "unknown_unit",
            "logical_hosts.a.far.circuit: 5 has no unit. Write 5Gbit/s.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, memory: 2GiB, near: node, far: {memory: 50%}}}",
            "out_of_range",
            "logical_hosts.a.far.memory: with near: node nothing comes from another node. "
            "Leave it out, or write near: rack or near: any.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, near: node, storage: {size: 1GB, circuit: 1Gbit/s}}}",
            "out_of_range",
            "logical_hosts.a.storage.circuit: with near: node nothing comes from another node. "
            "Leave it out, or write near: rack or near: any.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, strategy: bin-pack}}",
            "unknown_value",
            "logical_hosts.a.strategy: bin-pack is not known here. Did you mean binpack?",
        ),
        (
            "logical_hosts: {a: {cpu: 1, executor: vm}}",
            "missing",
            "logical_hosts.a.vm: missing. Write vm: {image: …}, or executor: bare.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, vm: {image: debian.qcow2}}}",
            "unknown_key",
            "logical_hosts.a.vm: only a virtual machine starts from this. Write executor: vm, or leave it out.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, executor: vm, vm: {image: i, address: 10.0.0.7}}}",
            "bad_address",
            "logical_hosts.a.vm.address: 10.0.0.7 is no address with its network. Write 10.0.0.7/24.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, executor: vm, vm: {image: i, address: 10.0.0.7/24, gateway: 10.0.1.1}}}",
            "out_of_range",
            "logical_hosts.a.vm.gateway: 10.0.1.1 is not in 10.0.0.0/24, where 10.0.0.7 is. "
            "A gateway is a neighbour: write one of that network.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, executor: vm, vm: {image: i, ssh_keys: [secret]}}}",
            "bad_key",
            "logical_hosts.a.vm.ssh_keys[0]: this is no public SSH key. "
            "Write it in one line: ssh-ed25519 AAAA… name.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, count: 2, executor: vm, vm: {image: i, address: 10.0.0.7/24}}}",
            "out_of_range",
            "logical_hosts.a.vm.address: one address for 2 hosts. "
            "Write addresses: [10.0.0.7/24, …], one for each host.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, count: 2, executor: vm, vm: {image: i, addresses: [10.0.0.7/24]}}}",
            "out_of_range",
            "logical_hosts.a.vm.addresses: 1 address for 2 hosts. Write one for each host.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, executor: vm, vm: {image: i, addresses: [10.0.0.7/24]}}}",
            "unknown_key",
            "logical_hosts.a.vm.addresses: without count it is one host. Write address: 10.0.0.7/24.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, executor: vm, vm: {image: i, address: 10.0.0.7/24}}, "
            "b: {cpu: 1, executor: vm, vm: {image: i, address: 10.0.0.7/16}}}",
            "duplicate",
            "logical_hosts.b.vm.address: 10.0.0.7 is also an address of logical_hosts.a. "
            "Give each host one of its own.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, on_loss: shrug}}",
            "unknown_value",
            "logical_hosts.a.on_loss: shrug is not known here. Write fail or degrade.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, gpu: 1.5}}",
            "out_of_range",
            "logical_hosts.a.gpu: more than one GPU is counted whole. Write 2.",
        ),
        (
            f"pools: {{{GENERAL}, b: {{nodes: 'm*', kinds: [memory], default: true}}}}",
            "two_defaults",
            "pools.b.default: pool general is the default for memory already. Keep default: true at one of them.",
        ),
        (
            "pools: {a: {floating: {matlab: 1}}, b: {floating: {matlab: 2}}}",
            "duplicate",
            "pools.b.floating.matlab: pool a has matlab already. Keep it in one pool.",
        ),
        (
            "pools: {a: {floating: {cpu: 1}}}",
            "bad_name",
            "pools.a.floating.cpu: cpu is a kind that nodes have. Choose another name.",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [cpu, memory], quota: {x: {nominal: 3}}}}",
            "missing",
            "pools.a.quota.x.nominal: of which kind is not said. Write {cpu: …, memory: …}.",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [cpu], limits: {per_user: {gpu: 3}}}}",
            "wrong_pool",
            "pools.a.limits.per_user.gpu: pool a is not for gpu. It is for cpu.",
        ),
        (
            "pools: {a: {floating: {matlab: 2}, limits: {users: {ada: {floating: {mathlab: 1}}}}}}",
            "wrong_pool",
            "pools.a.limits.users.ada.floating.mathlab: pool a is not for mathlab. It is for matlab.",
        ),
        (
            "queues: {q: {limits: {per_grup: {cpu: 3}}}}",
            "unknown_key",
            "queues.q.limits.per_grup: unknown key. Did you mean per_group?",
        ),
        (
            "queues: {q: {limits: {per_group: {memory: 3}}}}",
            "unknown_unit",
            "queues.q.limits.per_group.memory: 3 has no unit. Write 3GiB.",
        ),
        (
            "queues: {q: {limits: {tasks_per_user: 3, per_user: {tasks: 4}}}}",
            "duplicate",
            "queues.q.limits.tasks_per_user: tasks of each user are limited twice. "
            "Keep tasks_per_user, or tasks in per_user.",
        ),
        (
            "queues: {q: {fairshare: {half_life: 30s}}}",
            "out_of_range",
            "queues.q.fairshare.half_life: 30s is too short to tell anybody's use by. Write 1m or more; 7d is usual.",
        ),
        (
            "queues: {q: {fairshare: {groups: {a: 0}}}}",
            "out_of_range",
            "queues.q.fairshare.groups.a: 0 is too low. Write 1 or more.",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [memory], quota: {x: {nominal: 3}}}}",
            "unknown_unit",
            "pools.a.quota.x.nominal: 3 has no unit. Write 3GiB.",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [cpu], quota: {x: {nominal: 3, lend: 4}}}}",
            "out_of_range",
            "pools.a.quota.x.lend: more is lent than the 3 that is its own. Write 3 or less.",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [cpu], quota: {x: {nominal: 3, borrow: 4}}}}",
            "missing",
            "pools.a.quota.x.borrow: the pool is in no cohort to borrow from. "
            "Write cohort: NAME at the pool, and at those it borrows from.",
        ),
        (
            "queues: {a: {default: true}, b: {default: true}}",
            "two_defaults",
            "queues.b.default: queue a is the default already. Keep default: true at one of them.",
        ),
        (
            "queues: {a: {}, b: {}}",
            "no_default",
            "queues: no queue is the default. Write default: true at one: a, b.",
        ),
        (
            "queues: {a: {policy: bestfit}}",
            "unknown_policy",
            "queues.a.policy: there is no policy bestfit. Did you mean best-fit?",
        ),
        (
            "queues: {a: {limits: {walltime: 15}}}",
            "unknown_unit",
            "queues.a.limits.walltime: 15 is no duration. Write 15m.",
        ),
        (
            "queues: {a: {lost_after: 5m}}",
            "out_of_range",
            "queues.a.lost_after: lost_after is not 45s longer than fence_after. "
            "A node must have stopped its work before it is given up, and one that was suspended stops it some "
            "seconds late: write 15m45s or more for lost_after.",
        ),
        (
            "queues: {a: {fence_after: 1m, lost_after: 69s}}",
            "out_of_range",
            "queues.a.lost_after: lost_after is not 10s longer than fence_after. "
            "A node must have stopped its work before it is given up, and one that was suspended stops it some "
            "seconds late: write 1m10s or more for lost_after.",
        ),
        (
            "queues: {a: {fence_after: 0s}}",
            "out_of_range",
            "queues.a.fence_after: no time at all, which a node takes for never. Write 15m, or leave it out.",
        ),
        (
            "links: [{from: a, to: b, bandwidth: 1Gbit/s}, {from: a, to: b, bandwidth: 2Gbit/s}]",
            "duplicate",
            "links[1]: a to b is written already. Keep one of the two.",
        ),
        (
            "logical_hosts: {'a b': {cpu: 1}}",
            "bad_name",
            "logical_hosts.a b: a b is no name. "
            "Write letters, digits, _, . and -, at most 63, a letter or digit first.",
        ),
        (
            "queues: {a: {limits: {walltime: 15:30}}}",
            "yaml_surprise",
            "queues.a.limits.walltime: YAML reads 15:30 as 930. Write '15:30' in quotes, or 15m30s for a duration.",
        ),
    ],
)
def test_what_is_said_of_one_fault(body: str, code: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load_pools(f"cluster: t\n{body}\n")
    assert [(fault.code, fault.sentence()) for fault in caught.value.faults] == [(code, sentence)]


def test_the_api_says_the_same_without_a_file() -> None:
    with pytest.raises(InputError) as caught:
        pools_from({"cluster": "t", "logical_hosts": {"a": {"cpu": 1, "memory": 256}}})
    assert str(caught.value) == "logical_hosts.a.memory: 256 has no unit. Write 256GiB."
    assert (caught.value.faults[0].file, caught.value.faults[0].line) == ("", 0)


@pytest.mark.parametrize("text", ["", "[]", "just text", "cluster: t\npools: 3\nlinks: {}\n", "a: [", "5"])
def test_what_is_no_document_at_all(text: str) -> None:
    with pytest.raises(InputError):
        load_pools(text, "pools.yml")


def test_fairshare_and_limits() -> None:
    text = """\
cluster: t
pools:
  gpus: {nodes: '*', kinds: [gpu], limits: {gpu: 6, tasks_per_user: 4, groups: {teaching: {gpu: 0.5}}}}
queues:
  plain: {default: true}
  fair:
    fairshare: {half_life: 1d, groups: {research: 3}, users: {ada: 2}}
    limits: {walltime: 1h, cpu: 64, per_group: {memory: 1TiB}, users: {ada: {floating: {matlab: 2}}}}
  usual: {fairshare: {}}
"""
    document = load_pools(text)
    [gpus] = document.pool_specs()
    assert gpus.limits == Limits({"gpu": 6000}, {"tasks": 4}, groups={"teaching": {"gpu": 500}})
    plain, fair, usual = document.queue_specs()
    assert (plain.fairshare, bool(plain.limits)) == (None, False)
    assert fair.fairshare == Fairshare(86400, {"research": 3}, {"ada": 2}) and fair.walltime_seconds == 3600
    assert fair.limits == Limits({"cpu": 64_000}, per_group={"memory": TIB}, users={"ada": {"matlab": 2}})
    assert fair.limits.of_user("ada") == {"matlab": 2} and fair.limits.of_user("bob") == {}
    assert usual.fairshare == Fairshare(7 * 86400)


# --- bad ones, against nodes ---------------------------------------------------------------------------------------


def test_larger_than_its_pool_in_the_words_of_the_handbook() -> None:
    nodes = [
        node("n01", gpus=4, rack=["r1"], group=["lavalite_nodes", "lavalite_gpu"]),
        node("n02", gpus=2, rack=["r1"], group=["lavalite_nodes", "lavalite_gpu"]),
    ]
    assert sentences(GOOD, nodes) == [
        "pools.yml:13: pools.gpus.quota.r.nominal: with this the nominal quotas come to 8 gpu, and pool gpus of "
        "cohort x has 6. Write 6 or less, lower another tenant's, or add nodes to pool gpus.",
        "pools.yml:27: logical_hosts.trainer.gpu.count: 2 × 4 A100 asked, pool gpus has 6. "
        "Lower count, or add nodes to pool gpus.",
    ]


def test_a_good_document_fits_good_nodes() -> None:
    nodes = [node(f"n0{n}", gpus=4, rack=["r1"], group=["lavalite_nodes", "lavalite_gpu"]) for n in (1, 2)]
    assert sentences(GOOD, nodes) == []
    assert sentences(GOOD) == []  # by its own capacity, whose groups are not known
    load_pools(GOOD, "pools.yml", nodes)


@pytest.mark.parametrize(
    ("body", "code", "sentence"),
    [
        (
            "pools: {a: {nodes: {rack: r3}, kinds: [cpu]}}",
            "selects_nothing",
            "pools.a.nodes: {rack: r3} selects no node. No node has rack r3. Known: r1, r2.",
        ),
        (
            "pools: {a: {nodes: {rac: r1}, kinds: [cpu]}}",
            "selects_nothing",
            "pools.a.nodes: {rac: r1} selects no node. No node has the label rac. Did you mean rack?",
        ),
        (
            "pools: {a: {nodes: 'x[1:3]', kinds: [cpu]}}",
            "selects_nothing",
            "pools.a.nodes: x[1:3] selects no node. Check the spelling, or add such nodes.",
        ),
        (
            "pools: {a: {nodes: {group: lavalite_gpus}, kinds: [cpu]}}",
            "selects_nothing",
            "pools.a.nodes: {group: lavalite_gpus} selects no node. No node has group lavalite_gpus. "
            "Did you mean lavalite_nodes?",
        ),
        (
            "links: [{from: {rack: r9}, to: s, bandwidth: 1Gbit/s}]",
            "selects_nothing",
            "links[0].from: {rack: r9} selects no node. No node has rack r9. Known: r1, r2.",
        ),
        (
            "pools: {a: {nodes: 'n*', kinds: [cpu, memory]}, b: {nodes: {rack: r1}, kinds: [cpu]}}",
            "pools_overlap",
            "pools.b.nodes: n01: the cpu of it is in pool a already. Narrow one of the two pools.",
        ),
        (
            "logical_hosts: {n02: {cpu: 1}}",
            "name_taken",
            "logical_hosts.n02: n02 is a node already. Choose another name for the logical host.",
        ),
        (
            "logical_hosts: {webservers: {cpu: 1}}",
            "name_taken",
            "logical_hosts.webservers: webservers is a group already. Choose another name for the logical host.",
        ),
        (
            # two nodes of 32: 40 + 24 fit, and one more does not
            "pools: {a: {nodes: '*', kinds: [cpu], quota: {x: {nominal: 40}, y: {nominal: 24}, z: {nominal: 1}}}}",
            "quota_sum",
            "pools.a.quota.z.nominal: with this the nominal quotas come to 65 cpu, and pool a has 64. "
            "Write 0 or less, lower another tenant's, or add nodes to pool a.",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [cpu, memory], cohort: site, "
            "quota: {x: {nominal: {cpu: 64, memory: 256GiB}}, y: {nominal: {memory: 257GiB}}}}}",
            "quota_sum",
            "pools.a.quota.y.nominal.memory: with this the nominal quotas come to 513GiB memory, and pool a of "
            "cohort site has 512GiB. Write 256GiB or less, lower another tenant's, or add nodes to pool a.",
        ),
        (
            "logical_hosts: {a: {cpu: 65}}",
            "larger_than_pool",
            "logical_hosts.a.cpu: 65 cpu asked, the cluster has 64. Lower cpu, or add nodes.",
        ),
        (
            "logical_hosts: {a: {cpu: 33}}",
            "larger_than_node",
            "logical_hosts.a.cpu: 33 cpu asked of one node, the largest of the cluster has 32. Lower cpu.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, memory: 300GiB}}",
            "larger_than_node",
            "logical_hosts.a.memory: 300GiB memory asked of one node, the largest of the cluster has 256GiB. "
            "Lower memory, or let some be far.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, storage: 4TiB}}",
            "larger_than_node",
            "logical_hosts.a.storage.size: 4TiB storage asked of one node, the largest of the cluster has 3.5TiB. "
            "Lower storage.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, gpu: {count: 1, model: H100}}}",
            "unknown_model",
            "logical_hosts.a.gpu.model: no node of the cluster has H100. Known: NVIDIA A100-SXM4-80GB.",
        ),
        (
            "logical_hosts: {a: {cpu: 1, gpu: {count: 1, memory: 96GiB}}}",
            "unknown_model",
            "logical_hosts.a.gpu.memory: no GPU of the cluster has that much memory. Lower memory, or leave it out.",
        ),
    ],
)
def test_what_is_said_against_nodes(body: str, code: str, sentence: str) -> None:
    nodes = [
        node("n01", gpus=1, rack=["r1"]),
        node("n02", rack=["r2"], group=["all", "lavalite_nodes", "webservers"]),
    ]
    document = load_pools(f"cluster: t\n{body}\n")
    assert [(fault.code, fault.sentence()) for fault in check_document(document, nodes)] == [(code, sentence)]


def test_far_memory_does_not_have_to_fit_on_the_anchor() -> None:
    document = load_pools("cluster: t\nlogical_hosts: {a: {cpu: 1, memory: 300GiB, far: {memory: 50%}}}\n")
    assert check_document(document, [node("n01"), node("n02")]) == []


def test_unknown_groups_and_undiscovered_nodes_are_no_fault() -> None:
    text = "cluster: t\npools: {a: {nodes: {group: g}, kinds: [cpu], default: true}}\nlogical_hosts: {h: {cpu: 99}}\n"
    document = load_pools(text)
    assert check_document(document, [NodeCapacity("n01", {}, {})]) == []
    assert check_document(document, [NodeCapacity("n01", {"group": ["g"]}, {})]) == []


# --- laws ------------------------------------------------------------------------------------------------------

ASKED = list(HostEntry.model_fields)
WORDS = [
    "nodes",
    "kinds",
    "default",
    "floating",
    "quota",
    "pool",
    "model",
    "size",
    "bandwidth",
    "policy",
    "from",
    "to",
]
SECTIONS = [
    "plugin",
    "cluster",
    "mode",
    "api",
    "capacity",
    "links",
    "pools",
    "logical_hosts",
    "queues",
    "timeout",
    "x",
]
_leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4)
_junk = st.recursive(
    _leaves | st.sampled_from(["1GiB", "n*", "5m", 0.5]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*ASKED, *WORDS]), inner, max_size=4),
    max_leaves=10,
)
_documents = st.dictionaries(
    st.sampled_from(SECTIONS),
    st.dictionaries(st.sampled_from(["a", "b", "c-1", "c"]), _junk, max_size=3) | _junk | st.lists(_junk, max_size=2),
)


@given(_documents)
@settings(max_examples=200, deadline=None)
def test_anything_is_a_document_or_an_input_error(value: dict[str, Any]) -> None:
    """Law: no value breaks the reader, and every fault has a code, a sentence and a way out."""
    try:
        document = pools_from(value, [node("n01"), node("n02", gpus=2)])
    except InputError as error:
        assert all(fault.code and fault.message and fault.hint for fault in error.faults)
    else:
        assert pools_from(document.canonical()).canonical() == document.canonical()


@pytest.mark.parametrize(
    ("written", "planned"),
    [
        ("{}", 1),
        ("{backfill: easy}", 1),
        ("{backfill: none}", 0),
        ("{backfill: conservative}", 10),
        ("{backfill: {mode: conservative, depth: 25}}", 25),
    ],
)
def test_a_queue_says_of_how_many_it_plans_the_starts(written: str, planned: int) -> None:
    (queue,) = load_pools(f"cluster: t\nqueues: {{only: {written}}}\n").queue_specs()
    assert queue.planned_starts == planned


@pytest.mark.parametrize("bad", ["lazy", "{mode: easy, depth: 2}", "{mode: conservative, depth: 0}", "{depth: 3}"])
def test_backfill_that_cannot_be_is_refused(bad: str) -> None:
    with pytest.raises(InputError) as caught:
        load_pools(f"cluster: t\nqueues: {{only: {{backfill: {bad}}}}}\n")
    assert all("backfill" in (fault.field or "") for fault in caught.value.faults), caught.value.faults


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ("none", None),
        ("requeue", Preemption("requeue")),
        ("{mode: cancel, below: 20}", Preemption("cancel", below=20)),
        ("suspend", Preemption("suspend")),
        (
            "{mode: requeue, queues: [low], grace: 2m, signal: SIGUSR1}",
            Preemption("requeue", ("low",), None, 120, int(SIGUSR1)),
        ),
    ],
)
def test_a_queue_says_how_it_preempts(written: str, rule: Preemption | None) -> None:
    low = "{priority: 1, default: true, max_preemptions: 3}"
    text = f"queues: {{top: {{priority: 30, preemption: {written}}}, low: {low}}}"
    document = load_pools(f"cluster: t\n{text}\n")
    assert pools_from(document.canonical()).queue_specs() == document.queue_specs()
    top, under = document.queue_specs()
    assert (top.preemption, top.max_preemptions, under.preemption, under.max_preemptions) == (rule, None, None, 3)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("often", "preemption.mode: often is not known here. Write none or cancel or requeue or suspend."),
        (
            "{mode: none, queues: [low]}",
            "preemption: nobody is preempted, and yet it says how. Write mode: requeue or cancel.",
        ),
        ("{mode: requeue, queues: [lwo]}", "preemption.queues[0]: there is no queue lwo. Did you mean low?"),
        (
            "{mode: requeue, queues: [peer]}",
            "preemption.queues[0]: queue peer has priority 30, and top has 30. Only queues of lower priority can be"
            " preempted: leave it out, or change the priorities.",
        ),
        (
            "{mode: requeue, below: 31}",
            "preemption.below: below 31 are queues that come before top, which has priority 30. Write 30 or less, or"
            " leave it out.",
        ),
        (
            "{mode: requeue, signal: SIGKILL}",
            "preemption: SIGKILL is no signal that asks to end. Write one of SIGTERM, SIGINT, SIGHUP, SIGQUIT,"
            " SIGXCPU, SIGUSR1, SIGUSR2.",
        ),
        (
            "{mode: suspend, grace: 5s}",
            "preemption: what is suspended does not end, and has neither grace nor signal. Leave them out, or write"
            " mode: requeue.",
        ),
        ("{mode: requeue, grace: 2d}", "preemption: grace is 2d. Write from 1s to 1d."),
        ("{mode: requeue, grace: 0s}", "preemption: grace is 0s. Write from 1s to 1d."),
    ],
)
def test_preemption_that_cannot_be_is_refused(rule: str, sentence: str) -> None:
    queues = (
        f"{{top: {{priority: 30, default: true, preemption: {rule}}}, peer: {{priority: 30}}, low: {{priority: 1}}}}"
    )
    with pytest.raises(InputError) as caught:
        load_pools(f"cluster: t\nqueues: {queues}\n")
    (fault,) = caught.value.faults
    said = f"{fault.field}: {fault.message}. {fault.hint}"
    assert sentence.lower() in said.lower(), said


def test_the_lowest_queue_preempts_nobody() -> None:
    with pytest.raises(InputError) as caught:
        load_pools(
            "cluster: t\nqueues: {low: {priority: 1, preemption: requeue}, top: {priority: 2, default: true}}\n"
        )
    (fault,) = caught.value.faults
    assert fault.message == "no queue has a lower priority than low, which has 1"
