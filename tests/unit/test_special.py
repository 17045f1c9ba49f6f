"""Kinds that an operator names: how they are spelled, what a node finds of them, what is shown and told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from lavalite.api.models import Amounts, Host, HostPart, Node, Pool
from lavalite.base.config import parse_config
from lavalite.base.errors import InputError
from lavalite.cli.cluster import host_columns, node_columns, pool_columns
from lavalite.cli.output import table
from lavalite.cli.parts import parse_part
from lavalite.cli.request import make_request
from lavalite.lim.config import LimConfig
from lavalite.model.job import Request
from lavalite.model.pools import check_pools_file, load_pools
from lavalite.model.request import TYPED
from lavalite.model.resources import MOST_SPECIAL, Device, NodeOffer, Resource, special_fault
from lavalite.model.specs import NodeCapacity
from lavalite.providers.local import discover
from lavalite.providers.special import find_special
from lavalite.sbatchd.accounts import Account
from lavalite.sbatchd.enter import host_environment
from lavalite.sbatchd.launch import environment
from lavalite.wire.frames import Attempt

HEAD = "plugin: lavalite.cluster.pools\ncluster: c\n"
GOOD = (
    HEAD
    + """
capacity:
  n01: {cpu: 16, memory: 64GiB, special: {fpga: 2, smart-nic: {count: 1, model: BlueField-3}}}
  n02: {cpu: 16, memory: 64GiB}
pools:
  general: {nodes: "*", kinds: [cpu, memory], default: true}
  accel:
    nodes: {group: lavalite_nodes}
    kinds: [fpga, smart-nic]
    quota: {research: {nominal: {fpga: 1}}}
    limits: {special: {fpga: 2}, per_user: {special: {fpga: 1}}}
logical_hosts:
  dsp: {cpu: 4, special: {fpga: {count: 1, pool: accel}}}
  wide: {cpu: 4, special: {fpga: {count: 2, pool: accel}}, far: {special: {fpga: 1}, circuit: 5Gbit/s}}
  net: {cpu: 4, special: {smart-nic: {count: 1, model: BlueField, pool: accel}}}
"""
)


def sentences(text: str) -> list[str]:
    return [f"{fault.field}: {fault.message}. {fault.hint}" for fault in check_pools_file(text, "pools.yml")]


# --- how they are spelled -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fpga", "smart-nic", "a", "u_250"])
def test_names_of_kinds(name: str) -> None:
    assert special_fault(name) == ""


@pytest.mark.parametrize(
    "name", ["gpu", "cpu", "tasks", "places", "floating", "FPGA", "2fpga", "", "a" * 32, "fp ga", "fp=ga", "fpgä"]
)
def test_what_is_no_name_of_a_kind(name: str) -> None:
    assert special_fault(name)
    with pytest.raises(ValidationError):
        Request(special={name: 1})


def test_a_request_asks_for_more_than_nothing_and_of_one_sort() -> None:
    assert Request(special={"fpga": 2}).amounts() == {"cpu": 1000, "fpga": 2}
    assert Request(special={"fpga": 0}).amounts() == {"cpu": 1000}
    with pytest.raises(ValidationError, match="0 is nothing to ask for"):
        Request.model_validate({"special": {"fpga": 0}}, context=TYPED)
    with pytest.raises(ValidationError, match="x is asked for as special and as floating"):
        Request(special={"x": 1}, floating={"x": 1})


def test_options_of_submit() -> None:
    assert make_request({}, "", [], [], ["fpga=2", "smart-nic=1"])["special"] == {"fpga": 2, "smart-nic": 1}
    assert parse_part("name=a,special=fpga:1")["request"]["special"] == {"fpga": 1}
    with pytest.raises(InputError) as refused:
        make_request({}, "", [], [], ["fpga=half"])
    assert refused.value.fault.field == "--special fpga"


def test_pools_and_capacity() -> None:
    assert sentences(GOOD) == []
    document = load_pools(GOOD)
    n01, _ = document.capacity_nodes()
    assert (n01.amounts["fpga"], n01.amounts["smart-nic"]) == (2, 1)
    assert [(d.id, d.model) for d in n01.devices["smart-nic"]] == [("smart-nic0", "BlueField-3")]
    assert [d.id for d in n01.devices["fpga"]] == ["fpga0", "fpga1"] and "special" not in n01.labels
    accel = document.pool_specs()[1]
    assert accel.quota["research"]["fpga"].nominal == 1
    assert (accel.limits.whole, accel.limits.per_user) == ({"fpga": 2}, {"fpga": 1})
    dsp, wide, net = document.hosts()
    assert (wide.far, wide.circuits) == ({"fpga": 1}, {"fpga": 5 * 10**9})
    assert (dsp.amounts, dsp.pools["fpga"]) == ({"cpu": 4000, "fpga": 1}, "accel")
    assert net.asked() == "4 cpu, 1 smart-nic BlueField, pool accel, pool general"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "pools: {a: {nodes: '*', kinds: [gpus]}}",
            "pools.a.kinds[0]: gpus is not known here. Did you mean gpu?",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [FPGA]}}",
            "pools.a.kinds[0]: FPGA is no name of a kind: up to 31 of a-z, 0-9, _ and -, a letter first. "
            "Write fpga, or whatever nodes call it in lim_special.",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [fpga]}, l: {floating: {fpga: 3}}}",
            "pools.l.floating.fpga: fpga is a kind that nodes have. Choose another name.",
        ),
        (
            "capacity: {n: {cpu: 4, special: {matlab: 1}}}\npools: {l: {floating: {matlab: 3}}}",
            "pools.l.floating.matlab: matlab is a kind that nodes have. Choose another name.",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [memory]}}\n"
            "logical_hosts: {h: {cpu: 1, special: {fpga: {count: 1, pool: a}}}}",
            "logical_hosts.h.special.fpga.pool: pool a is not for fpga. Add fpga to its kinds.",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [fpga]}}\nlogical_hosts: {h: {cpu: 1, special: {fpga: 1}}}",
            "logical_hosts.h.special.fpga: no pool is named, and no pool for fpga is the default. "
            "Write pool: a, or default: true at one pool for fpga.",
        ),
        (
            "logical_hosts: {h: {cpu: 1, special: {fpga: 0}}}",
            "logical_hosts.h.special.fpga.count: 0 is nothing to ask for. Leave it out, or ask for more than 0.",
        ),
        (
            "logical_hosts: {h: {cpu: 1, special: {fpga: 0.5}}}",
            "logical_hosts.h.special.fpga.count: 0.5 is not a whole number. Write 0.",
        ),
        (
            "logical_hosts: {h: {cpu: 1, executor: vm, vm: {image: i.raw}, special: {fpga: 1}}}",
            "logical_hosts.h.special: a virtual machine is given no special devices. "
            "Leave it out, or write executor: bare.",
        ),
        (
            "pools: {a: {nodes: '*', kinds: [cpu], limits: {special: {fpga: 1}}}}",
            "pools.a.limits.special.fpga: pool a is not for fpga. It is for cpu.",
        ),
        (
            "capacity: {n: {cpu: 4, special: {fpga: 1}}}\nlogical_hosts: {h: {cpu: 1, special: {fpga: 2}}}",
            "logical_hosts.h.special.fpga.count: 2 fpga asked, the cluster has 1. Lower count, or add nodes.",
        ),
        (
            "capacity: {n: {cpu: 4, special: {fpga: {count: 1, model: U250}}}}\n"
            "logical_hosts: {h: {cpu: 1, special: {fpga: {count: 1, model: U280}}}}",
            "logical_hosts.h.special.fpga.model: no node of the cluster has U280. Did you mean U250?",
        ),
        (
            "logical_hosts: {h: {cpu: 1, special: {fpga: 1}, far: {special: {fpga: 2}}}}",
            "logical_hosts.h.far.special.fpga: more may be far than the 1 asked for. Write 1 or less.",
        ),
        (
            "logical_hosts: {h: {cpu: 1, near: node, special: {fpga: 1}, far: {special: {fpga: 1}}}}",
            "logical_hosts.h.far.special.fpga: with near: node nothing comes from another node. "
            "Leave it out, or write near: rack or near: any.",
        ),
        (
            "capacity: {n: {cpu: 4, specials: {fpga: 1}}}",
            "capacity.n: label specials is not text. Write specials: x, or specials: [x, y].",
        ),
    ],
)
def test_what_is_said_of_one_fault(body: str, sentence: str) -> None:
    assert sentences(HEAD + body) == [sentence]


def test_nothing_floats_of_which_a_node_has_devices() -> None:
    node = NodeCapacity("n7", {"group": []}, {"matlab": 1}, {"matlab": ()})
    faults = check_pools_file(HEAD + "pools: {l: {floating: {matlab: 3}}}", "pools.yml", [node])
    assert [fault.message for fault in faults] == ["matlab is a kind that nodes have: n7 has devices of it"]


# --- what a node finds ------------------------------------------------------------------------------------------


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_each_path_that_is_there_is_a_device(tmp_path: Path) -> None:
    touch(tmp_path, "dev/xdma0", "dev/xdma1", "dev/xdma10")
    asked = {"fpga": (["/dev/xdma*", "/dev/xdma0"], "U250"), "nic": (["/dev/mlx?"], "")}
    told: list[str] = []
    found = find_special(asked, tmp_path, told.append)
    assert [(d.id, d.model) for d in found["fpga"]] == [(f"/dev/xdma{n}", "U250") for n in (0, 1, 10)]
    assert found["nic"] == [] and told == []
    (tmp_path / "dev/xdma1").unlink()
    assert [d.id for d in find_special(asked, tmp_path, told.append)["fpga"]] == ["/dev/xdma0", "/dev/xdma10"]


def test_one_device_is_offered_once_whatever_it_is_called(tmp_path: Path) -> None:
    """Else two jobs would be given the same."""
    touch(tmp_path, "dev/xdma0", "dev/odd,name")
    (tmp_path / "dev/fpga").symlink_to("xdma0")
    told: list[str] = []
    found = find_special({"fpga": (["/dev/xdma*"], ""), "board": (["/dev/*"], "")}, tmp_path, told.append)
    assert [d.id for devices in found.values() for d in devices] == ["/dev/xdma0"]
    assert told == [
        "board /dev/fpga is not offered: it is fpga /dev/xdma0 already",
        "board '/dev/odd,name' is not offered: no device is called that",
        "board /dev/xdma0 is not offered: it is fpga /dev/xdma0 already",
    ]
    nulls = find_special({"x": (["/dev/null", "/proc/self/root/dev/null"], "")}, Path("/"), told.append)
    assert [d.id for d in nulls["x"]] == ["/dev/null"]  # the same number: the same device


def test_an_offer_has_them_and_grows_its_version_when_one_vanishes(tmp_path: Path) -> None:
    touch(tmp_path, "dev/xdma0", "dev/xdma1")

    def look(previous: object = None) -> object:
        return discover(
            "n1",
            {},
            5.0,
            storage_path=tmp_path,
            root=tmp_path,
            previous=previous,  # type: ignore[arg-type]
            gpus=lambda warn: [],
            special={"fpga": (("/dev/xdma*",), "U250"), "nic": (("/dev/mlx*",), "")},
            warn=lambda sentence: None,
        )

    before = look()
    (fpga,) = [r for r in before.resources if r.kind == "fpga"]  # type: ignore[attr-defined]
    assert (fpga.name, fpga.amount, fpga.unit, len(fpga.devices)) == ("n1/fpga", 2, "device", 2)
    assert look(before) == before and before.amount("nic") == 0  # type: ignore[attr-defined]
    (tmp_path / "dev/xdma1").unlink()
    after = look(before)
    assert (after.amount("fpga"), after.version > before.version) == (1, True)  # type: ignore[attr-defined]


def test_what_a_node_says_of_itself_is_held_to_its_devices() -> None:
    """Text from nodes is not to be trusted: neither names of kinds, nor how many there are of each."""
    kinds = ["fpga", "FPGA", "x\x1b[1m", *(f"k{n:02}" for n in range(99))]
    resources = [
        Resource(name=f"n1/{k}", kind=k, amount=10**6, unit="device", owner="n1", devices=[Device(id="/dev/a")])
        for k in kinds
    ]
    found = NodeOffer(node="n1", boot_id="b", resources=resources)
    assert len(found.kinds()) == MOST_SPECIAL and found.kinds()[0] == "fpga"
    node = NodeCapacity.from_offer(found)
    assert set(node.amounts.values()) == {1} and len(node.amounts) == MOST_SPECIAL


LIM = "cluster: c\nnode: n\nstate_path: /s\ncandidates: ['a:1']\n"


def test_lims_configuration() -> None:
    text = LIM + "special: {fpga: {paths: [/dev/xdma*], model: U250}}"
    config = parse_config(text, "lim.conf", LimConfig)
    assert config.special["fpga"].paths == ("/dev/xdma*",)


@pytest.mark.parametrize(
    ("special", "words"),
    [
        ("{gpu: {paths: [/dev/x]}}", "gpu has a meaning already"),
        ("{FPGA: {paths: [/dev/x]}}", "FPGA is no name of a kind"),
        ("{fpga: {paths: [dev/x]}}", "'dev/x' is no path of devices"),
        ("{fpga: {paths: ['/dev/a,b']}}", "is no path of devices"),
        ("{fpga: {paths: []}}", "special.fpga.paths"),
        ("{fpga: {path: /dev/x}}", "special.fpga.path"),
    ],
)
def test_what_is_wrong_in_lims_configuration(special: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_config(f"{LIM}special: {special}", "lim.conf", LimConfig)
    assert any(words in f"{fault.field}: {fault.message}" for fault in refused.value.faults), refused.value.faults


# --- what a job is told ---------------------------------------------------------------------------------------------


def test_a_job_is_told_its_devices_by_kind() -> None:
    devices = {"cpu": ["0"], "fpga": ["/dev/xdma0", "/dev/xdma1"], "smart-nic": ["/dev/mlx0"]}
    asked = Attempt(
        id="1.0.1",
        journal_id="j",
        command=["x"],
        devices=devices,
        environment={"LAVALITE_SPECIAL_FPGA": "/dev/mem"},
    )
    found = environment(asked, Account("ada", "/home/ada", 1000))
    assert found["LAVALITE_SPECIAL_FPGA"] == "/dev/xdma0,/dev/xdma1"
    assert found["LAVALITE_SPECIAL_SMART_NIC"] == "/dev/mlx0"
    assert sorted(name for name in found if "SPECIAL" in name) == [
        "LAVALITE_SPECIAL_FPGA",
        "LAVALITE_SPECIAL_SMART_NIC",
    ]


def test_devices_on_other_nodes_are_named_by_node() -> None:
    there = {"fpga": {"n8": ["/dev/xdma1"], "n7": ["/dev/xdma0", "/dev/xdma2"]}}
    found = host_environment({"name": "h", "special_nodes": there})
    assert found["LAVALITE_SPECIAL_FPGA_NODES"] == "n7:/dev/xdma0,/dev/xdma2;n8:/dev/xdma1"
    assert "LAVALITE_SPECIAL_FPGA" not in found


# --- what is shown ------------------------------------------------------------------------------------------------


def test_each_special_kind_is_a_column_where_there_is_any() -> None:
    two = {"fpga": Amounts(capacity=2, committed=1, free=1), "cpu": Amounts(capacity=4000, committed=0, free=4000)}
    nodes = [Node(name="n1", state="ready", resources=two), Node(name="n2", state="ready")]
    header, first, second = table(nodes, node_columns(nodes)).split("\n")
    assert "FPGA" in header.split() and "1/2" in first and "1/2" not in second
    assert "FPGA" not in table(nodes[1:], node_columns(nodes[1:]))
    licences = Pool(name="l", kinds=["matlab"], resources={"matlab": two["fpga"]}, spec={"floating": {"matlab": 2}})
    pools = [Pool(name="accel", kinds=["fpga"], nodes=["n1"], resources={"fpga": two["fpga"]}), licences]
    header, first, second = table(pools, pool_columns(pools)).split("\n")
    assert "FPGA" in header.split() and "MATLAB" not in header and "1/2" in first and "matlab 1/2" in second
    part = HostPart(id="dsp/fpga/n1", kind="fpga", amount=1, provider="n1", devices=["/dev/xdma0"])
    hosts = [Host(name="dsp", state="composed", anchor="n1", parts=[part])]
    header, first = table(hosts, host_columns(hosts)).split("\n")
    assert header.split()[6] == "FPGA" and "1" in first.split()


def test_the_real_root_is_looked_at_without_harm() -> None:
    told: list[str] = []
    assert find_special({"x": (["/dev/no-such-device*"], "")}, Path(os.sep), told.append) == {"x": []} and not told
